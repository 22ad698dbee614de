"""Estimators from different outcomes of one categorical variable: unbiased by a sum over all sets, ratios from loops."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from relax_rl.distributions import Bernoulli, Categorical, set_integral
from relax_rl.distributions.set_integral import log_leave_out_ratios
from relax_rl.estimators import enumerated, rloo, unordered_set, without_replacement
from tests.estimator_cases import of_vector, seeded
from tests.oracles import assert_unbiased, collect, exact_gradient, repeat

WAYS = Categorical(torch.tensor([[0.4, -0.3, 0.1, -0.8, 1.0]], dtype=torch.float64), one_hot=True)
RARE = Categorical(torch.tensor([[6.0, -5.0, 0.0, 1.0, -9.0]], dtype=torch.float64), one_hot=True)


def probability(p: list[float], members: tuple[int, ...], left: tuple[int, ...]) -> float:
    """That the first items drawn of those that are left are these, in any order."""
    total = 0.0
    for order in itertools.permutations(members):
        term, rest = 1.0, sum(p[i] for i in left)
        for item in order:
            term, rest = term * p[item] / rest, rest - p[item]
        total += term
    return total


def by_set(make: Any, dist: Any, count: int) -> dict[tuple[int, ...], Tensor]:
    """The estimate `[P]` for each set that is drawn."""
    estimate = make(of_vector, repeat(dist, 3_000), num_samples=count, generator=seeded(1))
    sets = estimate.sample.argmax(-1).sort(0).values.T
    return {tuple(chosen.tolist()): grad for chosen, grad in zip(sets, estimate.grad, strict=True)}


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_unordered_set_estimate_is_unbiased_to_seven_digits(count: int) -> None:
    found, p = by_set(unordered_set, WAYS, count), WAYS.mean[0].tolist()
    assert len(found) == math.comb(5, count)
    mean = sum(probability(p, chosen, tuple(range(5))) * grad for chosen, grad in found.items())
    torch.testing.assert_close(mean, exact_gradient(WAYS, of_vector), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dist", [WAYS, RARE], ids=["ways", "rare"])
@pytest.mark.parametrize("chosen", [(0, 3), (1, 2, 4), (0, 1, 2, 3)])
def test_leave_one_out_ratios_are_those_of_sums_over_orders(dist: Any, chosen: tuple[int, ...]) -> None:
    p, every = dist.mean[0].tolist(), tuple(range(5))
    rest = sum(p[i] for i in every if i not in chosen)
    odds = torch.tensor([[math.log(p[s] / rest) for s in chosen]], dtype=torch.float64)
    first, second = (x.exp() for x in log_leave_out_ratios(odds))

    def without(*left_out: int) -> float:
        return probability(p, tuple(set(chosen) - {*left_out}), tuple(set(every) - {*left_out}))

    for i, s in enumerate(chosen):
        assert float(first[0, i]) == pytest.approx(without(s) / without(), rel=1e-6)
        for j, other in enumerate(chosen):
            assert float(second[0, i, j]) == pytest.approx(without(s, other) / without(s), rel=1e-6)


@pytest.mark.parametrize("count", [2, 5, 10])
def test_ratios_by_recursion_are_those_of_integrals(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    odds = 3 * torch.randn(7, count, dtype=torch.float64, generator=seeded(count))
    odds[0, 0], odds[1, 0] = -900.0, 700.0  # a masked member; one beside which all else is nothing
    found = log_leave_out_ratios(odds)
    monkeypatch.setattr(set_integral, "_MOST_BY_SUBSETS", 0)
    for by_recursion, by_integral in zip(found, log_leave_out_ratios(odds), strict=True):
        torch.testing.assert_close(by_recursion, by_integral, rtol=1e-6, atol=1e-6)


def test_the_estimate_without_replacement_is_unbiased() -> None:
    exact = exact_gradient(WAYS, of_vector)
    for count, rows in ((2, 120_000), (4, 40_000)):
        generator = seeded(2)
        found = collect(
            lambda n, k=count, g=generator: (  # type: ignore[misc]
                without_replacement(of_vector, repeat(WAYS, n), num_samples=k, generator=g).grad
            ),
            rows,
            chunk=20_000,
        )
        assert_unbiased(found, exact, power=0.08)


@pytest.mark.parametrize("make", [unordered_set, without_replacement])
@pytest.mark.parametrize("dist", [WAYS, RARE], ids=["ways", "rare"])
def test_all_outcomes_give_the_gradient_itself(make: Any, dist: Any) -> None:
    found, exact = make(of_vector, dist, num_samples=5, generator=seeded(3)), enumerated(of_vector, dist)
    torch.testing.assert_close(found.grad, exact.grad)
    torch.testing.assert_close(found.value, exact.value)


@pytest.mark.parametrize("make", [unordered_set, without_replacement])
def test_values_are_unbiased_and_carry_the_graph_of_f(make: Any) -> None:
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    estimate = make(lambda b: scale * of_vector(b), repeat(WAYS, 6_000), num_samples=3, generator=seeded(4))
    values = estimate.value.detach()
    error = float(values.std()) / len(values) ** 0.5
    assert abs(float(values.mean() - enumerated(of_vector, WAYS).value)) < 4 * error < 0.12
    torch.testing.assert_close(torch.autograd.grad(estimate.value.sum(), scale)[0], estimate.value.sum().detach())
    indices = Categorical(WAYS.params)
    plain = make(lambda b: of_vector(indices.embed(b)), indices, num_samples=3, generator=seeded(5))
    torch.testing.assert_close(plain.grad, make(of_vector, WAYS, num_samples=3, generator=seeded(5)).grad)


def test_without_replacement_lowers_the_variance_and_the_set_more_than_the_order() -> None:
    rows = repeat(WAYS, 4_000)
    unordered, ordered, independent = (
        float(make(of_vector, rows, num_samples=3, generator=seeded(6)).grad.var(0).sum())
        for make in (unordered_set, without_replacement, rloo)
    )
    assert unordered < 0.8 * ordered and unordered < 0.8 * independent


@pytest.mark.parametrize("make", [unordered_set, without_replacement])
def test_what_is_refused(make: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^num_samples is 6, expected at most 5, the number of outcomes: take enumerated$"
    ):
        make(of_vector, WAYS, num_samples=6)
    with pytest.raises(ValueError, match=r"^num_samples is 1, expected at least 2$"):
        make(of_vector, WAYS, num_samples=1)
    with pytest.raises(ValueError, match=r"is for Categorical outcomes, not for Bernoulli$"):
        make(of_vector, Bernoulli(torch.zeros(1, 3)))
