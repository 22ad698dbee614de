"""Gumbel-Sinkhorn: rounding against every permutation, the relaxation against its limits, the estimates against differences."""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from relax_rl.distributions import Matching
from relax_rl.estimators import concrete, make_estimator, straight_through
from tests.estimator_cases import of_vector, seeded


def best(z: Tensor) -> list[int]:
    """Of one `[n, n]`, by trying all."""
    n = len(z)
    return list(max(itertools.permutations(range(n)), key=lambda chosen: sum(float(z[i, chosen[i]]) for i in range(n))))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_outcome_is_the_best_of_all_matchings(n: int) -> None:
    dist = Matching(torch.randn(5, 3, n * n, generator=seeded(1)))
    z = dist.relax(dist.sample_noise(seeded(2)))
    sample = dist.threshold(z)
    assert sample.shape == (5, 3, n)
    expected = [best(row) for row in z.reshape(15, n, n)]
    assert sample.reshape(15, n).tolist() == expected
    hot = Matching(dist.params, one_hot=True)
    assert torch.equal(hot.threshold(z), dist.embed(sample))
    torch.testing.assert_close(dist.noise_of(z), dist.sample_noise(seeded(2)), rtol=1e-5, atol=1e-5)


def test_soft_matchings_are_doubly_stochastic_and_harden_as_the_temperature_falls() -> None:
    dist = Matching(torch.randn(200, 16, generator=seeded(3), dtype=torch.float64), iterations=200)
    z = dist.relax(dist.sample_noise(seeded(4)))
    soft = dist.soften(z, 1.0).unflatten(-1, (4, 4))
    for dim in (-1, -2):
        torch.testing.assert_close(soft.sum(dim), torch.ones(200, 4, dtype=torch.float64), rtol=0, atol=1e-3)
    hard = Matching(dist.params, iterations=2_000).soften(z, 0.02)
    assert ((hard - dist.embed(dist.threshold(z))).abs() < 0.1).double().mean() > 0.97
    few = Matching(dist.params, iterations=1).soften(z).unflatten(-1, (4, 4))
    torch.testing.assert_close(few.sum(-1), torch.ones(200, 4, dtype=torch.float64))


def test_a_forbidden_pair_is_not_matched_and_has_no_gradient() -> None:
    params = torch.zeros(300, 9)
    params[:, 4] = -math.inf
    dist = Matching(params.requires_grad_(), one_hot=True)
    assert not dist.threshold(dist.relax(dist.sample_noise(seeded(5))))[:, 4].any()
    estimate = concrete(of_vector, dist, generator=seeded(6))
    assert estimate.grad.isfinite().all() and not estimate.grad[:, 4].any() and estimate.grad[:, 3].any()


@pytest.mark.parametrize("make", [concrete, lambda f, d, **o: straight_through(f, d, temperature=0.5, **o)])
def test_the_estimates_are_derivatives_along_the_soft_matching(make: Any) -> None:
    dist = Matching(torch.randn(3, 9, generator=seeded(7), dtype=torch.float64), one_hot=True)
    noise = dist.sample_noise(seeded(8))
    estimate = make(of_vector, dist, noise=noise)
    slope = torch.autograd.functional.jacobian(lambda b: of_vector(b).sum(), estimate.sample)
    for k in (0, 4):
        step = 1e-6 * torch.eye(9, dtype=torch.float64)[k]
        up, down = (dist.with_params(dist.params + s) for s in (step, -step))
        moved = (up.soften(up.relax(noise), 0.5) - down.soften(down.relax(noise), 0.5)) / 2e-6
        torch.testing.assert_close(estimate.grad[:, k], (slope * moved).sum(-1), rtol=1e-5, atol=1e-7)


def test_a_low_temperature_leaves_little_of_the_bias() -> None:
    """Against differences of E[f] over all matchings, with the same noise on both sides of the step."""
    weight = torch.randn(9, generator=seeded(9))
    rows, step = 20_000, 0.25

    def f(b: Tensor) -> Tensor:
        return b @ weight

    def at(shift: float) -> Any:
        params = torch.tensor([0.3, 0.0, -0.4, 0.1, 0.5, 0.0, -0.2, 0.2, 0.4])
        params[0] += shift
        return Matching(params.expand(rows, -1), iterations=30, one_hot=True)

    noise = at(0.0).sample_noise(seeded(10))
    z = torch.cat([at(step).relax(noise), at(-step).relax(noise)])
    orders = torch.tensor(list(itertools.permutations(range(3))))
    hot = Matching(torch.zeros(6, 9)).embed(orders)
    value = f(hot[(z @ hot.T).argmax(-1)]).split(rows)
    exact = float((value[0] - value[1]).mean()) / (2 * step)
    near, far = (float(concrete(f, at(0.0), temperature=t, noise=noise).grad[:, 0].mean()) for t in (0.3, 3.0))
    assert abs(near - exact) < 0.15 * abs(exact) < 0.5 * abs(far - exact)


def test_what_is_not_defined_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    dist = Matching(torch.zeros(2, 9), one_hot=True)
    for name in ("reinforce", "rloo", "gumbel-rao"):
        with pytest.raises(ValueError, match=r"of a Matching has no tractable form: use concrete or straight_through"):
            make_estimator(name)(of_vector, dist)
    with pytest.raises(ValueError, match="needs mean, which Matching lacks: give it a temperature"):
        straight_through(of_vector, dist)
    with pytest.raises(ValueError, match=r"^params of Matching have a last dimension of 8, expected a square"):
        Matching(torch.zeros(2, 8))
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"^Matching rounds by scipy, which is not installed: pip install scipy$"):
        dist.threshold(torch.zeros(2, 9))
