"""V(s), the surrogate, explained variance."""

from __future__ import annotations

import torch

from relax_rl.critics import ActionSurrogate, ValueFunction, explained_variance
from relax_rl.networks.torsos import MLP


def test_values_are_one_number_an_observation() -> None:
    assert ValueFunction(MLP(3, (8,), "tanh"))(torch.randn(5, 3)).shape == (5,)


def test_a_fresh_surrogate_is_zero_and_so_is_its_gradient_in_the_action() -> None:
    surrogate = ActionSurrogate(3, 2, (8, 8))
    action = torch.randn(5, 2, requires_grad=True)
    c = surrogate(torch.randn(5, 3), action)
    assert torch.equal(c, torch.zeros(5))
    assert torch.equal(torch.autograd.grad(c.sum(), action)[0], torch.zeros(5, 2))


def test_a_fresh_surrogate_can_learn_through_its_gradient_in_the_action() -> None:
    surrogate = ActionSurrogate(3, 2, (8, 8))
    action = torch.randn(5, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(surrogate(torch.randn(5, 3), action).sum(), action, create_graph=True)
    (gradient,) = torch.autograd.grad((slope - 1).square().sum(), surrogate.head.weight)
    assert gradient.abs().max() > 0


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
