"""What f does with its sample is its own affair: no estimate is made of a sample that f has changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from relax_rl.distributions import Bernoulli, Categorical
from relax_rl.estimators import arms, disarm, enumerated, marginal, reinforce, relax, rloo, unordered_set
from tests.estimator_cases import seeded

LOGITS = torch.tensor([[0.4, -0.8, 0.1]], dtype=torch.float64).expand(40, 3)


def pure(b: Tensor) -> Tensor:
    return (b - 0.3).square().sum(-1) + b[..., 0]


def in_place(b: Tensor) -> Tensor:
    first = b[..., 0].clone()
    return b.sub_(0.3).square().sum(-1) + first


def through_numpy(b: Tensor) -> Tensor:
    first, array = b[..., 0].clone(), b.detach().numpy()
    array -= 0.3
    return torch.from_numpy((array**2).sum(-1)) + first


@pytest.mark.parametrize("f", [in_place, through_numpy])
@pytest.mark.parametrize(
    "estimator",
    [
        reinforce,
        rloo,
        disarm,
        arms,
        lambda f, dist, **how: relax(f, dist, lambda z: z.sum(-1), **how),
        lambda f, dist, **how: enumerated(f, Categorical(dist.params, one_hot=True), **how),
        lambda f, dist, **how: marginal(f, Categorical(dist.params, one_hot=True), lambda b: b[..., 0], **how),
        lambda f, dist, **how: unordered_set(f, Categorical(dist.params, one_hot=True), **how),
    ],
    ids=["reinforce", "rloo", "disarm", "arms", "relax", "enumerated", "marginal", "unordered_set"],
)
def test_an_f_that_changes_its_sample_in_place_is_the_same_f(estimator: Any, f: Any) -> None:
    found, expected = (estimator(each, Bernoulli(LOGITS), generator=seeded(3)) for each in (f, pure))
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-12, atol=0)
    assert torch.equal(found.sample, expected.sample)
