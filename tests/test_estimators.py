"""Estimators: unbiased against enumeration and quadrature, differentiable in phi alone, and what they refuse.

The z-tests state the smallest bias they could see. That a mis-coupled estimator fails the same test shows it.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vjp, vmap

from relax_rl.distributions import Bernoulli, Categorical, DiagGaussian, Distribution, MultiCategorical, TanhGaussian
from relax_rl.estimators import (
    Estimate,
    lax,
    lax_gradient,
    reinforce,
    reinforce_gradient,
    relax,
    relax_gradient,
    score_function,
    variance_loss,
    weighted_moments,
)
from tests.oracles import (
    Function,
    assert_unbiased,
    central_differences,
    collect,
    exact_gradient,
    gradient_by_quadrature,
    noise_grid,
    outcomes,
    probabilities,
    rejects,
    repeat,
)

MILLION = 1_000_000
# Draws that make a bias of 1% visible where a million are too few: the estimate's variance is larger there.
DRAWS = {"quadratic": 3 * MILLION, "3 bits": MILLION * 5 // 4}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Objectives. They are nonlinear, not separable, and as far from 0 on average as REINFORCE without a baseline can bear.


def of_three(b: Tensor) -> Tensor:
    return torch.tensor([1.1, -0.7, -0.5])[b]


def of_five(b: Tensor) -> Tensor:
    return torch.tensor([1.6, -1.0, 0.4, 2.1, -1.3])[b]


def of_factors(b: Tensor) -> Tensor:
    return torch.tensor([[1.9, -0.2, 0.8], [0.3, -1.6, -1.2]])[b[:, 0], b[:, 1]]


def of_bits(b: Tensor) -> Tensor:
    return (
        2 * b[:, 0] - torch.sin(2 * b[:, 1] + b[:, 0]) + 1.5 * (b[:, 2] - 0.499) ** 2 + b.prod(-1) + 2 * b[:, 2] - 1.8
    )


def quadratic(z: Tensor) -> Tensor:
    return 0.5 * (z[:, 0] - 1) ** 2 + z[:, 0] * z[:, -1] - 2 * z[:, -1] - 0.5


def sine(z: Tensor) -> Tensor:
    return torch.sin(2 * z[:, 0] + 0.5)


def of_squashed(z: Tensor) -> Tensor:
    outcome = torch.tanh(z)
    return torch.sin(2 * outcome[:, 0]) * (1 + 0.5 * outcome[:, -1]) + 1.5 * outcome[:, -1]


DISCRETE: dict[str, tuple[Any, Function]] = {
    "3-way": (Categorical(torch.tensor([[0.4, -0.3, 0.1]])), of_three),
    "5-way": (Categorical(torch.tensor([[0.4, -0.3, 0.1, -1.0, 0.8]])), of_five),
    "3 bits": (Bernoulli(torch.tensor([[0.3, -0.6, 0.9]])), of_bits),
    "2 x 3": (MultiCategorical(torch.tensor([[0.3, -0.2, 0.1, -0.5, 0.4]]), (2, 3)), of_factors),
    "2 x 2": (MultiCategorical(torch.tensor([[0.3, -0.2, 0.6, -0.5]]), (2, 2)), of_factors),
}
EXTREME: dict[str, tuple[Any, Function]] = {
    "3-way, rare": (Categorical(torch.tensor([[3.0, -2.0, 0.0]])), lambda b: torch.tensor([0.0, -4.0, 3.0])[b]),
    "3 bits, rare": (Bernoulli(torch.tensor([[4.0, -0.6, -3.0]])), of_bits),
}
CONTINUOUS: dict[str, tuple[Any, Function]] = {
    "quadratic": (DiagGaussian(torch.tensor([[0.5, -0.3, -0.2, -0.6]])), quadratic),
    "sine": (DiagGaussian(torch.tensor([[0.3, -0.4]])), sine),
    "squashed": (TanhGaussian(torch.tensor([[0.2, -0.3, -0.5, -0.4]])), of_squashed),
}


class MLP(nn.Module):
    """A tanh network c(z) with fixed random weights of a size that lets the z-tests see 1%."""

    def __init__(self, inputs: int, hidden: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden, dtype=dtype)
        self.last = nn.Linear(hidden, 1, dtype=dtype)
        generator = seeded(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)

    def forward(self, z: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(z))).squeeze(-1)  # type: ignore[no-any-return]


def zero_mlp(inputs: int) -> MLP:
    """c as an agent starts it: random but for the last layer, which is zero."""
    surrogate = MLP(inputs)
    nn.init.zeros_(surrogate.last.weight)
    nn.init.zeros_(surrogate.last.bias)
    return surrogate


def adversarial(z: Tensor) -> Tensor:
    """Unbounded, oscillating, coupled and unrelated to any f: the estimate must stay unbiased all the same."""
    return torch.sin(2 * z).sum(-1) - torch.tanh(z).sum(-1) + 0.3 * z[:, 0] * torch.tanh(z[:, -1])


def relaxed_size(dist: Distribution) -> int:
    return dist.params.shape[-1] // (2 if isinstance(dist, DiagGaussian) else 1)


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


def true_gradient(dist: Distribution, f: Function) -> Tensor:
    return gradient_by_quadrature(dist, f) if isinstance(dist, DiagGaussian) else exact_gradient(dist, f)


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


def at_leaf(dist: Any, rows: int) -> Any:
    """`rows` copies of a distribution at parameters of their own, which take a gradient."""
    return dist.with_params(dist.params.expand(rows, -1).clone().requires_grad_())


# The formulas


def test_the_gradients_are_their_equations() -> None:
    """Against the Jacobian of each term, written out row by row."""
    dist = at_leaf(Categorical(torch.tensor([[0.4, -0.3, 0.1]], dtype=torch.float64)), 7)
    surrogate = MLP(3, dtype=torch.float64)
    noise, fresh = (dist.sample_noise(seeded(k)).double() for k in (9, 10))
    z = dist.relax(noise)
    b = dist.threshold(z)
    z_tilde, value = dist.relax_given(b, fresh), torch.arange(7, dtype=torch.float64)
    log_prob, c, c_tilde = dist.log_prob(b), surrogate(z), surrogate(z_tilde)

    def rowwise(output: Tensor) -> Tensor:
        rows = [torch.autograd.grad(output[k], dist.params, retain_graph=True)[0][k] for k in range(7)]
        return torch.stack(rows)

    score, dc, dc_tilde = rowwise(log_prob), rowwise(c), rowwise(c_tilde)
    column = value[:, None]
    expect = torch.testing.assert_close
    expect(score_function(log_prob, dist.params), score)
    expect(reinforce_gradient(value, log_prob, dist.params), column * score)
    expect(lax_gradient(value, log_prob, c, dist.params), (column - c[:, None]) * score + dc)
    expect(
        relax_gradient(value, log_prob, c, c_tilde, dist.params),
        (column - c_tilde[:, None]) * score + dc - dc_tilde,
    )


@pytest.mark.parametrize("case", [*DISCRETE, *CONTINUOUS])
def test_a_fresh_zero_surrogate_gives_exactly_the_reinforce_gradient(case: str) -> None:
    dist, f = (DISCRETE | CONTINUOUS)[case]
    rows = repeat(dist, 1_000)
    noise, surrogate = rows.sample_noise(seeded(11)), zero_mlp(relaxed_size(dist))
    plain = reinforce(f, rows, noise=noise)
    estimator: Any = lax if isinstance(dist, DiagGaussian) else relax
    fresh = estimator(f, rows, surrogate, noise=noise, generator=seeded(12))
    assert torch.equal(fresh.grad, plain.grad)
    fresh.variance_loss().backward()
    assert surrogate.last.weight.grad is not None and surrogate.last.weight.grad.abs().max() > 0, (
        "c must be able to start"
    )


def test_a_baseline_is_subtracted_from_the_value() -> None:
    dist, f = DISCRETE["3-way"]
    rows = repeat(dist, 50)
    noise, baseline = rows.sample_noise(seeded(13)), torch.randn(50, generator=seeded(14))
    plain, shifted = (reinforce(f, rows, noise=noise, baseline=x) for x in (0.0, baseline))
    score = reinforce(torch.ones(50), rows, noise=noise).grad
    torch.testing.assert_close(shifted.grad, plain.grad - baseline[:, None] * score)
    torch.testing.assert_close(shifted.value, plain.value)


@pytest.mark.parametrize("case", [*DISCRETE, *CONTINUOUS])
def test_values_that_are_known_already_give_the_same_estimate(case: str) -> None:
    dist, f = (DISCRETE | CONTINUOUS)[case]
    rows = repeat(dist, 200)
    noise = rows.sample_noise(seeded(15))
    surrogate = MLP(relaxed_size(dist))
    estimator: Any = lax if isinstance(dist, DiagGaussian) else relax
    drawn = estimator(f, rows, surrogate, noise=noise, generator=seeded(16))
    known = estimator(f(drawn.sample), rows, surrogate, noise=noise, generator=seeded(16))
    assert torch.equal(drawn.grad, known.grad) and torch.equal(drawn.value, known.value)
    assert torch.equal(drawn.sample, rows.threshold(rows.relax(noise)))
    assert torch.equal(reinforce(f, rows, noise=noise).grad, reinforce(f(drawn.sample), rows, noise=noise).grad)


def test_the_generator_decides_every_draw() -> None:
    for estimator, (dist, f) in ((relax, DISCRETE["3-way"]), (lax, CONTINUOUS["sine"])):
        rows, surrogate = repeat(dist, 100), MLP(relaxed_size(dist))
        first, same, other = (estimator(f, rows, surrogate, generator=seeded(k)).grad for k in (1, 1, 2))
        assert torch.equal(first, same) and not torch.equal(first, other)
    rows = repeat(DISCRETE["3-way"][0], 100)
    noise, conditional = rows.sample_noise(seeded(3)), rows.sample_noise(seeded(4))
    given = relax(of_three, rows, MLP(3), noise=noise, conditional_noise=conditional)
    assert torch.equal(given.grad, relax(of_three, rows, MLP(3), noise=noise, generator=seeded(4)).grad)


# phi: the variance loss


def flat_surrogate(inputs: int, hidden: int = 4) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """phi as one float64 vector, and c(phi, z)."""
    phi = torch.randn(hidden * (inputs + 2), generator=seeded(17), dtype=torch.float64)

    def c(phi: Tensor, z: Tensor) -> Tensor:
        first, bias, last = phi[: hidden * inputs], phi[hidden * inputs : -hidden], phi[-hidden:]
        return torch.tanh(z @ first.reshape(inputs, hidden) + bias) @ last

    return phi, c


def assert_gradient(loss: Function, phi: Tensor) -> None:
    """Autograd against central differences in every direction."""
    leaf = phi.clone().requires_grad_()
    (analytic,) = torch.autograd.grad(loss(leaf), leaf)
    numeric = central_differences(lambda: loss(phi), phi)
    assert analytic.abs().max() > 1e-3
    torch.testing.assert_close(analytic, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", ["3-way", "3 bits", "2 x 3", "quadratic", "sine", "squashed"])
def test_the_gradient_of_the_variance_loss_equals_finite_differences(case: str) -> None:
    """Common random numbers make the averaged second moment a smooth function of phi."""
    dist, f = (DISCRETE | CONTINUOUS)[case]
    rows = repeat(dist.with_params(dist.params.double()), 64)
    noise, fresh = (rows.sample_noise(seeded(k)).double() for k in (18, 19))
    phi, c = flat_surrogate(relaxed_size(dist))

    def loss(phi: Tensor) -> Tensor:
        if isinstance(dist, DiagGaussian):
            return lax(f, rows, lambda z: c(phi, z), noise=noise).variance_loss()
        return relax(f, rows, lambda z: c(phi, z), noise=noise, conditional_noise=fresh).variance_loss()

    assert_gradient(loss, phi)


def enumerated_estimates(phi: Tensor, c: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """RELAX estimates of one bit for every b, z given b and z~ given b on grids, and their probabilities."""
    dist = Bernoulli(torch.tensor([[0.6]], dtype=torch.float64))
    nodes, weights = noise_grid(dist, 120)
    pairs, pair_weights = torch.cartesian_prod(nodes[:, 0], nodes[:, 0]), torch.outer(weights, weights).flatten()
    table, p = outcomes(dist), probabilities(dist)
    b = table.repeat_interleave(len(pairs), 0)
    leaf = at_leaf(dist, len(b))
    behind_z, behind_z_tilde = (pairs[:, [k]].repeat(2, 1) for k in (0, 1))
    noise = (leaf.relax_given(b, behind_z) - leaf.params).detach()
    z, z_tilde = leaf.relax(noise), leaf.relax_given(b, behind_z_tilde)
    value = 3 * (b[:, 0] - 0.3) ** 2
    estimates = relax_gradient(value, leaf.log_prob(b), c(phi, z), c(phi, z_tilde), leaf.params)
    return estimates, (p[:, None] * pair_weights).flatten()


def test_the_variance_loss_is_the_enumerated_second_moment_and_falls_with_the_variance() -> None:
    phi, c = flat_surrogate(1)

    def second_moment(phi: Tensor) -> Tensor:
        return variance_loss(*enumerated_estimates(phi, c))

    assert_gradient(second_moment, phi)
    leaf = phi.clone().requires_grad_()
    estimates, weight = enumerated_estimates(leaf, c)
    mean = weight @ estimates[:, 0]
    exact = exact_gradient(Bernoulli(torch.tensor([[0.6]], dtype=torch.float64)), lambda b: 3 * (b[:, 0] - 0.3) ** 2)
    assert float(mean.detach()) == pytest.approx(float(exact), rel=1e-7)
    # The mean does not move with phi, so the second moment and the variance have the same gradient.
    (drift,) = torch.autograd.grad(mean, leaf, retain_graph=True)
    assert drift.abs().max() < 1e-7
    (of_moment,) = torch.autograd.grad(variance_loss(estimates, weight), leaf, retain_graph=True)
    variance = (weight * (estimates[:, 0] - mean).square()).sum()
    torch.testing.assert_close(torch.autograd.grad(variance, leaf)[0], of_moment, rtol=1e-6, atol=1e-8)


def test_weights_of_the_variance_loss() -> None:
    rows = torch.randn(6, 3, generator=seeded(20), requires_grad=True)
    squared = rows.detach().square().sum(-1)
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    expect = torch.testing.assert_close
    expect(variance_loss(rows).detach(), squared.mean())
    expect(variance_loss(rows, weight).detach(), squared[weight > 0].mean())
    expect(variance_loss(rows, weight / 100).detach(), squared[weight > 0].mean())
    expect(variance_loss(rows, torch.full((6,), 3.0)).detach(), squared.mean())
    (slope,) = torch.autograd.grad(variance_loss(rows, weight), rows)
    assert torch.equal(slope[1], torch.zeros(3)) and slope[0].abs().max() > 0
    nothing = variance_loss(rows, torch.zeros(6))
    assert float(nothing.detach()) == 0
    assert torch.equal(torch.autograd.grad(nothing, rows)[0], torch.zeros(6, 3))


@pytest.mark.parametrize("case", ["3 bits", "2 x 2", "quadratic", "squashed"])
def test_a_trained_surrogate_halves_the_variance_and_stays_unbiased(case: str) -> None:
    dist, f = (DISCRETE | CONTINUOUS)[case]
    estimator: Any = lax if isinstance(dist, DiagGaussian) else relax
    surrogate, generator, rows = MLP(relaxed_size(dist)), seeded(21), repeat(dist, 128)
    nn.init.zeros_(surrogate.last.weight)
    optimizer = torch.optim.Adam(surrogate.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        estimator(f, rows, surrogate, generator=generator).variance_loss().backward()
        optimizer.step()
    mean_value = float(f(rows.threshold(rows.relax(rows.sample_noise(seeded(22))))).mean())
    trained = collect(lambda n: estimator(f, repeat(dist, n), surrogate, generator=generator).grad, MILLION // 2)
    plain = collect(lambda n: reinforce(f, repeat(dist, n), generator=generator).grad, MILLION // 4)
    based = collect(
        lambda n: reinforce(f, repeat(dist, n), baseline=mean_value, generator=generator).grad, MILLION // 4
    )
    assert trained.variance < (0.5 if estimator is relax else 0.2) * plain.variance
    assert trained.variance < 0.8 * based.variance
    assert_unbiased(trained, true_gradient(dist, f), power=0.01)


# theta: the pull-back


def policy_and_observations(outputs: int) -> tuple[nn.Module, Tensor]:
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(23)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs))
    torch.random.set_rng_state(torch_state)
    return net, torch.randn(32, 4, generator=seeded(24))


@pytest.mark.parametrize("weight", [None, 0.25, torch.tensor(0.25), torch.rand(32, generator=seeded(25))], ids=str)
def test_backward_is_the_pull_back_of_the_estimate(weight: Any) -> None:
    net, obs = policy_and_observations(3)
    params = net(obs)
    estimate = relax(of_three, Categorical(params), MLP(3), generator=seeded(26))
    assert estimate.params is params
    factor = torch.full((32,), 1 / 32) if weight is None else torch.as_tensor(weight).expand(32)
    parameters = list(net.parameters())
    surface = (factor[:, None] * estimate.grad.detach() * params).sum()
    expected = torch.autograd.grad(surface, parameters, retain_graph=True)
    estimate.backward(weight)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    # Like every backward, it adds to what is there.
    relax(of_three, Categorical(net(obs)), MLP(3), generator=seeded(26)).backward(weight)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


def grads(*modules: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for module in modules for parameter in module.parameters()]


@pytest.mark.parametrize("kind", ["relax", "lax"])
def test_theta_and_phi_never_reach_each_other(kind: str) -> None:
    net, obs = policy_and_observations(4)
    surrogate, objective = MLP(4 if kind == "relax" else 2), MLP(2, seed=3)

    def make() -> Estimate:
        if kind == "relax":
            bits = Bernoulli(net(obs))
            return relax(lambda b: objective(b[:, :2]), bits, surrogate, generator=seeded(27))
        return lax(objective, DiagGaussian(net(obs)), surrogate, generator=seeded(27))

    estimate = make()
    assert not estimate.sample.requires_grad
    estimate.variance_loss().backward()
    assert all(g is None for g in grads(net, objective))
    assert all(g is not None and g.abs().max() > 0 and not g.requires_grad for g in grads(surrogate))
    surrogate.zero_grad(set_to_none=True)

    estimate.backward()
    assert all(g is None for g in grads(surrogate))
    assert all(g is not None and g.abs().max() > 0 and not g.requires_grad for g in grads(net))
    # What f holds of its own is learned too: the mean of f at the samples, as it stands.
    expected = torch.autograd.grad(estimate.value.mean(), list(objective.parameters()), retain_graph=True)
    for g, same in zip(grads(objective), expected, strict=True):
        torch.testing.assert_close(g, same)

    # In the other order too: the pull-back is the same, and the variance adds nothing to it.
    alone = [g.clone() for g in grads(net, objective) if g is not None]
    for module in (net, objective):
        module.zero_grad(set_to_none=True)
    again = make()
    again.backward()
    again.variance_loss().backward()
    assert all(torch.equal(g, same) for g, same in zip(grads(net, objective), alone, strict=True) if g is not None)


def test_a_baseline_learns_from_the_variance_alone() -> None:
    net, obs = policy_and_observations(3)
    baseline = torch.zeros(32, requires_grad=True)
    estimate = reinforce(of_three, Categorical(net(obs)), baseline=baseline, generator=seeded(28))
    estimate.backward()
    assert baseline.grad is None and all(g is not None for g in grads(net))
    net.zero_grad(set_to_none=True)
    estimate.variance_loss().backward()
    assert baseline.grad is not None and baseline.grad.abs().min() > 0 and all(g is None for g in grads(net))
    assert not reinforce(of_three, Categorical(net(obs))).grad.requires_grad


def test_known_values_take_no_gradient() -> None:
    rows = repeat(DISCRETE["3-way"][0], 32)
    value = torch.ones(32, requires_grad=True)
    estimate = relax(value, rows, MLP(3), noise=rows.sample_noise(seeded(29)), generator=seeded(29))
    estimate.variance_loss().backward()
    assert value.grad is None
    dist = at_leaf(DISCRETE["3-way"][0], 32)
    b = dist.threshold(dist.relax(dist.sample_noise(seeded(29))))
    control = MLP(3)(dist.relax(dist.sample_noise(seeded(30))))
    log_prob = dist.log_prob(b)
    assert not reinforce(value, rows, noise=rows.sample_noise(seeded(29))).grad.requires_grad
    for estimates in (
        lax_gradient(value, log_prob, control, dist.params),
        relax_gradient(value, log_prob, control, MLP(3)(dist.relax_given(b, torch.zeros(32, 3))), dist.params),
    ):
        slopes: tuple[Any, ...] = torch.autograd.grad(variance_loss(estimates), value, allow_unused=True)
        assert slopes[0] is None


@pytest.mark.parametrize("logit", [-80.0, 80.0])
@pytest.mark.parametrize("case", DISCRETE)
def test_estimates_and_their_phi_gradients_stay_finite_at_extreme_logits(case: str, logit: float) -> None:
    dist, f = DISCRETE[case]
    size = dist.params.shape[-1]
    params = torch.where(torch.rand(2_000, size, generator=seeded(30)) < 0.5, logit, torch.zeros(())).requires_grad_()
    surrogate = MLP(size)
    estimate = relax(f, dist.with_params(params), surrogate, generator=seeded(31))
    estimate.variance_loss().backward()
    estimate.backward()
    assert params.grad is not None and params.grad.isfinite().all() and estimate.grad.isfinite().all()
    assert all(g is not None and g.isfinite().all() for g in grads(surrogate))


# What they refuse


def test_known_values_need_the_noise_of_their_sample() -> None:
    bits, normals = repeat(DISCRETE["3 bits"][0], 8), repeat(CONTINUOUS["sine"][0], 8)
    for attempt in (
        lambda: relax(torch.ones(8), bits, MLP(3), conditional_noise=torch.zeros(8, 3)),
        lambda: lax(torch.ones(8), normals, MLP(1)),
        lambda: reinforce(torch.ones(8), bits),
    ):
        with pytest.raises(ValueError, match="noise"):
            attempt()


def test_a_network_output_that_was_not_squeezed_is_refused() -> None:
    """`[B, 1]` would broadcast to [B, B] and mix the examples without a word."""
    bits, normals = repeat(Bernoulli(torch.zeros(1, 1)), 8), repeat(CONTINUOUS["sine"][0], 8)
    linear = nn.Linear(1, 1)
    attempts: dict[str, Callable[[], Any]] = {
        "f": lambda: relax(lambda b: b, bits, MLP(1)),
        "control": lambda: relax(lambda b: b[:, 0], bits, linear),
        "control ": lambda: lax(sine, normals, linear),
        "value": lambda: reinforce(lambda b: b[:, 0], bits, baseline=torch.zeros(8, 1)),
        "f ": lambda: reinforce(torch.ones(1), bits, noise=torch.zeros(8, 1)),
    }
    for name, attempt in attempts.items():
        with pytest.raises(ValueError, match=rf"^{name.strip()} has shape .*\[8\]$"):
            attempt()


def test_each_kind_of_outcome_has_its_estimator() -> None:
    with pytest.raises(ValueError, match="use relax for Categorical"):
        lax(of_three, repeat(DISCRETE["3-way"][0], 8), MLP(3))
    with pytest.raises(ValueError, match="DiagGaussian lacks: use lax"):
        relax(sine, repeat(CONTINUOUS["sine"][0], 8), MLP(1))


# Memory


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Without the collector of cycles, only what nothing refers to is freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("kind", ["relax", "lax", "reinforce"])
@pytest.mark.parametrize("used", [False, True])
def test_no_graph_outlives_its_estimate(kind: str, used: bool) -> None:
    net, obs = policy_and_observations(4)
    surrogate = MLP(4 if kind != "lax" else 2)
    alive: list[weakref.ref[Any]] = []

    class Mark:
        """Lives as long as the node of the graph that holds it."""

    def marked(output: Tensor) -> Tensor:
        mark = Mark()
        assert output.grad_fn is not None
        metadata: Any = output.grad_fn.metadata
        metadata["mark"] = mark
        alive.append(weakref.ref(mark))
        return output

    params = marked(net(obs))
    c: Function = lambda z: marked(surrogate(z))  # noqa: E731
    if kind == "lax":
        estimate = lax(sine, DiagGaussian(params), c, generator=seeded(32))
    elif kind == "relax":
        estimate = relax(lambda b: b.sum(-1), Bernoulli(params), c, generator=seeded(32))
    else:
        estimate = reinforce(lambda b: b.sum(-1), Bernoulli(params), generator=seeded(32))
    alive.append(weakref.ref(estimate))
    if kind != "reinforce":
        marked(estimate.grad)
    if used:
        if kind != "reinforce":
            estimate.variance_loss().backward()
        estimate.backward()
    assert len(alive) == {"relax": 5, "lax": 4, "reinforce": 2}[kind]
    # c(z) is used up by the pathwise gradient; everything else is held by the estimate.
    assert sum(reference() is not None for reference in alive) >= len(alive) - 1
    del params, estimate
    assert [reference() for reference in alive] == [None] * len(alive)


# Function transforms


def test_the_low_level_gradients_run_under_function_transforms() -> None:
    """`params` must be an argument of the innermost transform, for the estimate differentiates in it."""
    params = torch.randn(5, 3, generator=seeded(33), dtype=torch.float64)
    dist = Categorical(params)
    noise, fresh = (dist.sample_noise(seeded(k)).double() for k in (34, 35))
    value = torch.randn(5, generator=seeded(36), dtype=torch.float64)
    phi, c = flat_surrogate(3)

    def estimate(phi: Tensor, params: Tensor) -> Tensor:
        here = dist.with_params(params)
        z = here.relax(noise)
        b = here.threshold(z)
        controls = c(phi, z), c(phi, here.relax_given(b, fresh))
        return relax_gradient(value, here.log_prob(b), *controls, params)

    def loss(phi: Tensor, params: Tensor) -> Tensor:
        return variance_loss(estimate(phi, params))

    leaf, weights = params.clone().requires_grad_(), phi.clone().requires_grad_()
    (eager,) = torch.autograd.grad(loss(weights, leaf), weights)
    torch.testing.assert_close(grad(loss, argnums=(0, 1))(phi, params)[0], eager)
    torch.testing.assert_close(vjp(estimate, phi, params)[0], estimate(weights, leaf).detach())
    many = torch.stack([phi, 2 * phi])
    mapped = vmap(grad(loss, argnums=(0, 1)), in_dims=(0, None))(many, params)[0]
    torch.testing.assert_close(mapped[0], eager)
    assert not torch.allclose(mapped[0], mapped[1])


def test_weighted_moments_leave_out_rows_without_weight() -> None:
    columns = torch.tensor([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0], [1e6, -1e6]])
    mean, variance = weighted_moments(columns, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    torch.testing.assert_close(mean, torch.tensor([3.0, 5.0]))
    torch.testing.assert_close(variance, torch.tensor([8 / 3, 0.0]))
    mean, variance = weighted_moments(columns, torch.tensor([2.0, 0.0, 2.0, 0.0]))
    torch.testing.assert_close(variance, torch.tensor([4.0, 0.0]))
    assert not torch.stack(weighted_moments(columns, torch.zeros(4))).any()
