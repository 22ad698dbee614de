"""Estimators: unbiased against enumeration and quadrature.

The z-tests state the smallest bias they could see. That a mis-coupled estimator fails the same test shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relax_rl.distributions import Bernoulli, Categorical, MultiCategorical
from relax_rl.estimators import (
    lax,
    lax_gradient,
    reinforce,
    relax,
    relax_gradient,
    score_of,
)
from tests.estimator_cases import (
    CONTINUOUS,
    DISCRETE,
    DRAWS,
    EXTREME,
    MILLION,
    MLP,
    adversarial,
    at_leaf,
    of_three,
    relaxed_size,
    seeded,
    sine,
    true_gradient,
)
from tests.oracles import (
    Function,
    assert_unbiased,
    collect,
    exact_gradient,
    gradient_by_quadrature,
    noise_grid,
    outcomes,
    probabilities,
    rejects,
    repeat,
)

# Unbiased in expectation, by deterministic quadrature: exact to many digits, for improbable outcomes too


def expected_relax(dist: Any, f: Function, surrogate: Function, count: int) -> Tensor:
    """`[P]` expectation of the RELAX estimate: a sum over outcomes and over a grid of noise, in float64.

    z and z~ share the grid: the estimate is a sum of a term in z and a term in z~, so their coupling is irrelevant.
    """
    dist = dist.with_params(dist.params.double())
    nodes, weights = noise_grid(dist, count, reach=None if isinstance(dist, Bernoulli) else 20.0)
    table, p = outcomes(dist), probabilities(dist)
    b = table.repeat_interleave(len(nodes), 0)
    noise, weight = nodes.repeat(len(table), 1), (p[:, None] * weights).flatten()
    leaf = dist.with_params(dist.params.expand(len(b), -1).clone().requires_grad_())
    z, z_tilde = leaf.relax(noise), leaf.relax_given(b, noise)
    estimate = relax_gradient(f(b), leaf.log_prob(b), surrogate(z), surrogate(z_tilde), leaf.params)
    return (weight[:, None] * estimate.detach()).sum(0)


EXPECTED: dict[str, tuple[Any, Function, int]] = {
    "one bit": (Bernoulli(torch.tensor([[0.3]])), lambda b: (b[:, 0] - 0.499) ** 2, 200),
    "one rare bit": (Bernoulli(torch.tensor([[-10.0]])), lambda b: 3 * b[:, 0] + 1, 200),
    "one sure bit": (Bernoulli(torch.tensor([[12.0]])), lambda b: 3 * b[:, 0] + 1, 200),
    "two bits": (Bernoulli(torch.tensor([[5.0, -0.4]])), lambda b: torch.sin(3 * b.sum(-1)) + b[:, 0], 240),
    "two-way": (Categorical(torch.tensor([[1.0, 9.0]])), lambda b: torch.tensor([3.0, -1.0])[b], 100),
    "3-way": (Categorical(torch.tensor([[0.4, -4.0, 1.0]])), of_three, 48),
    "2 x 1": (MultiCategorical(torch.tensor([[0.3, -2.0, 7.0]]), (2, 1)), lambda b: 1.0 - 2.0 * b[:, 0], 48),
}


@pytest.mark.parametrize("surrogate", ["mlp", "adversarial"])
@pytest.mark.parametrize("case", EXPECTED)
def test_the_expected_relax_estimate_is_the_gradient_to_six_digits(case: str, surrogate: str) -> None:
    dist, f, count = EXPECTED[case]
    c: Function = adversarial if surrogate == "adversarial" else MLP(relaxed_size(dist), dtype=torch.float64)
    exact = exact_gradient(dist, f)
    # Float32 logits and values leave 1e-7; the smallest gradient here is 2e-5.
    torch.testing.assert_close(expected_relax(dist, f, c, count), exact, rtol=1e-6, atol=1e-6 * float(exact.norm()))


@pytest.mark.parametrize("surrogate", ["mlp", "adversarial"])
@pytest.mark.parametrize("case", CONTINUOUS)
def test_the_expected_lax_estimate_is_the_gradient_to_six_digits(case: str, surrogate: str) -> None:
    dist, f = CONTINUOUS[case]
    c: Function = adversarial if surrogate == "adversarial" else MLP(relaxed_size(dist), dtype=torch.float64)
    nodes, weights = noise_grid(dist, 60, reach=9.0)
    leaf = repeat(dist.with_params(dist.params.double()), len(nodes))
    leaf = leaf.with_params(leaf.params.clone().requires_grad_())
    z = leaf.relax(nodes)
    b = z.detach()
    estimate = lax_gradient(f(b), leaf.log_prob(b), c(z), leaf.params)
    exact = gradient_by_quadrature(dist, f)
    mean = (weights[:, None] * estimate.detach()).sum(0)
    torch.testing.assert_close(mean, exact, rtol=1e-6, atol=1e-6 * float(exact.norm()))


def test_the_oracle_agrees_with_gaussian_gradients_in_closed_form() -> None:
    mean, log_std = 0.3, -0.4
    std = torch.tensor(log_std, dtype=torch.float64).exp()
    # E sin(2 z + 1/2) = sin(2 mean + 1/2) exp(-2 std^2)
    decay, phase = torch.exp(-2 * std**2), torch.tensor(2 * mean + 0.5, dtype=torch.float64)
    closed = torch.stack([2 * phase.cos() * decay, -4 * std**2 * phase.sin() * decay])
    torch.testing.assert_close(gradient_by_quadrature(CONTINUOUS["sine"][0], sine), closed, rtol=1e-6, atol=1e-7)


# Unbiased as drawn: z-tests of the whole chain from the generator to the estimate


@pytest.mark.parametrize("case", [*DISCRETE, *CONTINUOUS])
def test_reinforce_is_unbiased(case: str) -> None:
    dist, f = (DISCRETE | CONTINUOUS)[case]
    generator = seeded(1)
    statistics = collect(lambda n: reinforce(f, repeat(dist, n), generator=generator).grad, DRAWS.get(case, MILLION))
    assert_unbiased(statistics, true_gradient(dist, f), power=0.01)


@pytest.mark.parametrize("case", EXTREME)
def test_reinforce_is_unbiased_where_outcomes_are_rare(case: str) -> None:
    dist, f = EXTREME[case]
    generator = seeded(2)
    statistics = collect(lambda n: reinforce(f, repeat(dist, n), baseline=0.2, generator=generator).grad, MILLION)
    assert_unbiased(statistics, true_gradient(dist, f), power=0.03)


@pytest.mark.parametrize("case", DISCRETE)
def test_relax_is_unbiased(case: str) -> None:
    dist, f = DISCRETE[case]
    surrogate, generator = MLP(relaxed_size(dist)), seeded(3)
    statistics = collect(
        lambda n: relax(f, repeat(dist, n), surrogate, generator=generator).grad, DRAWS.get(case, MILLION)
    )
    assert_unbiased(statistics, true_gradient(dist, f), power=0.01)


@pytest.mark.parametrize("case", [*DISCRETE, *EXTREME])
def test_relax_is_unbiased_under_an_adversarial_surrogate(case: str) -> None:
    dist, f = (DISCRETE | EXTREME)[case]
    generator = seeded(4)
    statistics = collect(lambda n: relax(f, repeat(dist, n), adversarial, generator=generator).grad, MILLION // 2)
    # Mere noise where outcomes are rare, for c does not shrink with them; quadrature has the digits there.
    assert_unbiased(statistics, true_gradient(dist, f), power=0.5 if case in EXTREME else 0.05)


@pytest.mark.parametrize("surrogate", ["mlp", "adversarial"])
@pytest.mark.parametrize("case", CONTINUOUS)
def test_lax_is_unbiased(case: str, surrogate: str) -> None:
    dist, f = CONTINUOUS[case]
    c: Function = adversarial if surrogate == "adversarial" else MLP(relaxed_size(dist))
    generator = seeded(5)
    statistics = collect(lambda n: lax(f, repeat(dist, n), c, generator=generator).grad, DRAWS.get(case, MILLION))
    assert_unbiased(statistics, true_gradient(dist, f), power=0.01 if surrogate == "mlp" else 0.02)


# The same z-test finds the mistakes of published code


def test_lax_at_an_action_drawn_anew_is_found_biased() -> None:
    dist, f = CONTINUOUS["quadratic"]
    surrogate, generator = MLP(2), seeded(6)

    def mistaken(rows: int) -> Tensor:
        leaf = at_leaf(dist, rows)
        b, anew = (leaf.relax(leaf.sample_noise(generator)) for _ in range(2))
        return lax_gradient(f(b), leaf.log_prob(b.detach()), surrogate(anew), leaf.params)

    assert rejects(collect(mistaken, MILLION // 4), true_gradient(dist, f))


def test_lax_on_a_discrete_outcome_is_found_biased() -> None:
    dist, f = DISCRETE["3-way"]
    surrogate, generator = MLP(3), seeded(7)

    def mistaken(rows: int) -> Tensor:
        leaf = at_leaf(dist, rows)
        z = leaf.relax(leaf.sample_noise(generator))
        b = leaf.threshold(z)
        return lax_gradient(f(b), leaf.log_prob(b), surrogate(z), leaf.params)

    assert rejects(collect(mistaken, MILLION // 4), true_gradient(dist, f))


def _shared_noise(leaf: Any, b: Tensor, noise: Tensor, fresh: Tensor) -> Tensor:
    return leaf.relax_given(b, noise)  # type: ignore[no-any-return]


def _detached(leaf: Any, b: Tensor, noise: Tensor, fresh: Tensor) -> Tensor:
    return leaf.relax_given(b, fresh).detach()  # type: ignore[no-any-return]


def _not_normalised(leaf: Any, b: Tensor, noise: Tensor, fresh: Tensor) -> Tensor:
    return _truncated(leaf.params, b, fresh, fresh.gather(-1, b[:, None]))


def _largest_at_log_p(leaf: Any, b: Tensor, noise: Tensor, fresh: Tensor) -> Tensor:
    return _truncated(leaf.log_probs, b, fresh, (leaf.log_probs + fresh).gather(-1, b[:, None]))


def _truncated(location: Tensor, b: Tensor, gumbel: Tensor, largest: Tensor) -> Tensor:
    rest = -torch.logaddexp(-gumbel - location, -largest)
    return torch.where(nn.functional.one_hot(b, location.shape[-1]).bool(), largest, rest)


@pytest.mark.parametrize(
    "conditional", [_shared_noise, _detached, _not_normalised, _largest_at_log_p], ids=lambda f: f.__name__
)
def test_relax_with_a_wrong_conditional_sample_is_found_biased(conditional: Callable[..., Tensor]) -> None:
    dist = Categorical(torch.tensor([[0.9, 0.2, 0.6]]))
    surrogate, generator = MLP(3, seed=1), seeded(8)

    def mistaken(rows: int) -> Tensor:
        leaf = at_leaf(dist, rows)
        noise, fresh = (leaf.sample_noise(generator) for _ in range(2))
        z = leaf.relax(noise)
        b = leaf.threshold(z)
        z_tilde = conditional(leaf, b, noise, fresh)
        return relax_gradient(of_three(b), leaf.log_prob(b), surrogate(z), surrogate(z_tilde), leaf.params)

    assert rejects(collect(mistaken, MILLION // 4), true_gradient(dist, of_three))


def test_a_score_that_is_at_hand_is_taken() -> None:
    dist, noise = Categorical(torch.randn(6, 3)), torch.randn(6, 3)
    sample = dist.threshold(dist.relax(noise))
    value, known = torch.randn(6), {"noise": noise, "sample": sample}
    for score in (score_of(dist, sample), torch.randn(6, 3)):
        found = reinforce(value, dist, **known, score=score).grad
        torch.testing.assert_close(found, value.unsqueeze(-1) * score)
        control = relax(value, dist, lambda z: z.square().sum(-1), **known, coupling="coupled", score=score).grad
        without = relax(
            torch.zeros(6), dist, lambda z: z.square().sum(-1), **known, coupling="coupled", score=score
        ).grad
        torch.testing.assert_close(control - without, value.unsqueeze(-1) * score)
