"""The toy problem in closed form, and noise that belongs to a seed."""

from __future__ import annotations

import pytest
import torch

from relax_rl.estimators import enumerated
from relax_rl.experiments.toy.problem import Problem
from relax_rl.experiments.toy.seed_noise import BLOCK, SeedNoise

PROBLEMS = [Problem(), Problem(0.45), Problem(0.7), Problem(0.499, 3), Problem(0.3, 5)]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_expected_loss_is_the_sum_over_outcomes(problem):
    params = torch.randn(6, problem.num_params, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = enumerated(problem.f, problem.distribution(params, SeedNoise((), problem.kind)))
    torch.testing.assert_close(problem.expected_loss(params), exact.value)
    assert problem.optimum == pytest.approx(float(problem.values.min()))


def test_the_published_bit():
    problem = Problem(0.499)
    assert problem.values.tolist() == pytest.approx([0.499**2, 0.501**2])
    assert problem.optimum == pytest.approx(0.249001)
    logit = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(problem.expected_loss(logit).sum(), logit)
    theta = torch.sigmoid(logit).item()
    assert slope.item() == pytest.approx(0.002 * theta * (1 - theta))


@pytest.mark.parametrize("outcomes", [2, 3, 7])
@pytest.mark.parametrize("target", [0.499, 0.2])
def test_every_other_outcome_costs_the_margin_more_than_the_first(outcomes, target):
    problem = Problem(target, outcomes)
    values = problem.values
    torch.testing.assert_close(values[1:] - values[0], torch.full_like(values[1:], 1 - 2 * target))
    assert values.min() >= 0 and values.max() <= 1
    if outcomes > 2:
        assert problem.targets.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_params_stand_where_they_are_asked_to(problem):
    assert problem.theta(problem.params_at(0.3, 4)).tolist() == pytest.approx([0.3] * 4)
    start = problem.theta(problem.params_at(None, 2))
    assert start.tolist() == pytest.approx([(problem.outcomes - 1) / problem.outcomes] * 2)


@pytest.mark.parametrize("kind", ["bits", "categories"])
def test_a_seed_draws_the_same_whoever_is_beside_it(kind):
    together, alone = SeedNoise((7, 8, 9), kind), SeedNoise((8,), kind)
    for shape in ((3, 2), (4, 3, 2), (3, 1), (2, 5, 3, 2)):
        own = (*shape[:-2], 1, shape[-1])
        drawn = together.draw(shape)
        assert drawn.shape == shape
        assert torch.equal(drawn[..., 1:2, :], alone.draw(own))


def test_a_stream_goes_on_where_it_stopped():
    whole, pieces = SeedNoise((0, 1), "bits"), SeedNoise((0, 1), "bits")
    expected = whole.draw((BLOCK + 10, 2, 1))
    drawn = torch.cat([pieces.draw((count, 2, 1)) for count in (1, BLOCK - 2, 3, 8)])
    assert torch.equal(drawn, expected)
    assert not torch.equal(expected[:, 0], expected[:, 1])
    assert not torch.equal(SeedNoise((0, 1), "bits", stream=1).draw((9, 2, 1)), expected[:9])


def test_noise_has_its_distribution():
    logistic = SeedNoise((3,), "bits").draw((40_000, 1, 1)).flatten().double()
    gumbel = SeedNoise((3,), "categories").draw((40_000, 1, 1)).flatten().double()
    assert abs(logistic.mean()) < 4 * logistic.std() / 200 and logistic.std().item() == pytest.approx(1.8138, rel=0.02)
    assert gumbel.mean().item() == pytest.approx(0.5772, abs=4 * 1.2825 / 200)


def test_noise_for_other_seeds_is_refused():
    with pytest.raises(ValueError, match="there are 2 seeds"):
        SeedNoise((0, 1), "bits").draw((3, 1))
