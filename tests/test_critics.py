"""The gain of a surrogate, and explained variance."""

from __future__ import annotations

import torch

from relax_rl.critics import ActionSurrogate, explained_variance


def test_the_gain_scales_the_surrogate() -> None:
    surrogate = ActionSurrogate(3, 2, (8,))
    torch.nn.init.normal_(surrogate.head.weight)
    features, action = torch.randn(5, 3), torch.randn(5, 2)
    whole = surrogate(features, action)
    with torch.no_grad():
        surrogate.gain.fill_(0.5)
    for c in (surrogate(features, action), surrogate.at(features)(action)):
        torch.testing.assert_close(c, whole / 2)


def test_explained_variance_against_its_definition() -> None:
    target = torch.tensor([2.0, 2.0, 2.0, 0.0])
    residual = torch.tensor([0.0, 2.0, 8.0, 1.0])
    assert explained_variance(target, residual).tolist() == [1.0, 0.0, -3.0, 0.0]
