"""Variance, bias and effective sample size of draws whose law is known."""

from __future__ import annotations

import pytest
import torch

from relax_rl.distributions import Bernoulli
from relax_rl.estimators import enumerated, reinforce, rloo, straight_through
from relax_rl.estimators.diagnostics import bias, draws_of, effective_sample_size_ratio, squared_distance, variance
from tests.estimator_cases import seeded


def normals(rows: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(rows, 3, generator=seeded(seed)) * torch.tensor([1.0, 2.0, 0.5]) * scale + 4.0


def test_the_interval_of_the_variance_holds_the_truth_as_often_as_it_says() -> None:
    truth = 1.0 + 4.0 + 0.25
    intervals = [variance(normals(200, seed), generator=seeded(seed)) for seed in range(200)]
    held = sum(interval.low <= truth <= interval.high for interval in intervals)
    assert 0.88 * 200 <= held <= 0.99 * 200
    assert sum(interval.value for interval in intervals) / 200 == pytest.approx(truth, rel=0.03)


def test_the_squared_distance_of_means_is_unbiased_and_its_interval_holds_the_truth() -> None:
    shift = torch.tensor([0.1, 0.0, -0.1])
    for truth, moved in ((0.02, shift), (0.0, 0.0 * shift)):
        found = [
            squared_distance(normals(100, 2 * seed) + moved, normals(100, 2 * seed + 1), generator=seeded(seed))
            for seed in range(200)
        ]
        values = torch.tensor([interval.value for interval in found])
        assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / 200**0.5
        assert sum(interval.low <= truth <= interval.high for interval in found) >= 0.85 * 200
    common = normals(50, 0)
    paired = squared_distance(common + shift, common)
    assert paired.value == pytest.approx(0.02, rel=1e-4) and paired.high - paired.low < 1e-6
    with pytest.raises(ValueError, match="equal numbers of at least 2, not 50 and 49"):
        squared_distance(common, common[1:])


def test_the_ratio_of_variances() -> None:
    found = effective_sample_size_ratio(normals(2_000, 1), normals(2_000, 2, scale=2.0), generator=seeded(5))
    assert found.low < 4.0 < found.high and found.value == pytest.approx(4.0, rel=0.15)
    assert str(found).startswith(f"{found.value:.4g} [")


def test_bias_is_seen_where_it_is_and_nowhere_else() -> None:
    draws = normals(5_000, 3)
    none = bias(draws, torch.full((3,), 4.0))
    assert none.largest_z < 4 and none.visible < 0.03 and none.relative < none.visible
    some = bias(draws, torch.tensor([4.0, 4.0, 4.1]))
    assert some.largest_z > 10 and some.relative == pytest.approx(0.1 / torch.tensor([4.0, 4.0, 4.1]).norm(), rel=0.5)


def test_estimators_of_the_same_gradient_side_by_side() -> None:
    dist = Bernoulli(torch.tensor([[0.3, -0.6, 0.9]]).expand(10, 3))
    generator = seeded(4)

    def f(b: torch.Tensor) -> torch.Tensor:
        return (b * torch.tensor([1.0, -2.0, 0.5])).sum(-1) + b.prod(-1) - 0.4 * (b[..., 0] - 0.3) ** 4

    exact = enumerated(f, dist).grad.mean(0)
    plain = draws_of(lambda: reinforce(f, dist, generator=generator).grad.mean(0), 2_000)
    paired = draws_of(lambda: rloo(f, dist, num_samples=4, generator=generator).grad.mean(0), 2_000)
    biased = draws_of(lambda: straight_through(f, dist, generator=generator).grad.mean(0), 2_000)
    assert bias(plain, exact).largest_z < 4 and bias(paired, exact).largest_z < 4
    assert bias(biased, exact).largest_z > 8
    assert effective_sample_size_ratio(paired, plain, generator=generator).low > 1.5
    assert variance(paired, generator=generator).high < variance(plain, generator=generator).low


def test_too_few_draws() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        draws_of(lambda: torch.zeros(3), 1)
