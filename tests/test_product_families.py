"""Products with orders, subsets, ranks, counts and positive numbers among their factors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as td

from relax_rl.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    DiagGaussian,
    Dirichlet,
    Gamma,
    Geometric,
    Matching,
    NegativeBinomial,
    Ordinal,
    PlackettLuce,
    Poisson,
    Product,
    Subset,
    from_torch,
)
from relax_rl.estimators import (
    concrete,
    dlax,
    enumerated,
    marginal,
    rebar,
    reinforce,
    relax,
    relax_gradient,
    rloo,
    straight_through,
)
from tests.estimator_cases import seeded
from tests.oracles import assert_unbiased, collect, repeat

FAMILIES: dict[str, Any] = {
    "order": lambda params: PlackettLuce(params, one_hot=True),
    "first 2": lambda params: PlackettLuce(params, 2, one_hot=True),
    "order, by index": PlackettLuce,
    "pair": lambda params: Subset(params, 2, one_hot=True),
    "ranks": Ordinal,
    "Poisson": Poisson,
    "geometric": Geometric,
    "binomial": lambda params: Binomial(params, 4),
    "negative binomial": lambda params: NegativeBinomial(params, 2.5),
    "gamma": lambda params: Gamma(torch.cat([params, -params], -1)),
    "Dirichlet": Dirichlet,
}
DISCRETE = [name for name in FAMILIES if name not in ("gamma", "Dirichlet")]
LOGITS = torch.tensor([[0.4, -0.7, 1.1]], dtype=torch.float64)


def product(family: str, rows: int = 40) -> tuple[Product, tuple[Any, ...]]:
    """The family between a number and a bit."""
    params = LOGITS + 0.1 * torch.randn(rows, 3, generator=seeded(1), dtype=torch.float64)
    factors = DiagGaussian(params[:, :2]), FAMILIES[family](params), Bernoulli(params[:, :1])
    return Product.of(*factors), factors


def f(sample: Tensor) -> Tensor:
    """Neither linear nor separable in the factors."""
    weights = torch.linspace(-1.0, 2.0, sample.shape[-1], dtype=sample.dtype)
    return torch.sin(sample @ weights) + 0.3 * sample[..., 0] * sample[..., -1] + 0.2 * torch.tanh(sample[..., 1])


def c(z: Tensor) -> Tensor:
    """Unrelated to f, coupled."""
    return torch.tanh(z).sum(-1) + torch.sin(z[..., 0] * torch.tanh(z[..., 1]) + z[..., -1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_product_is_its_factors_side_by_side(family: str) -> None:
    dist, factors = product(family)
    noise = dist.sample_noise(seeded(2)).double()
    z = dist.relax(noise)
    sample = dist.threshold(z)
    own = dist.samples(sample)
    assert own[1].dtype == factors[1].threshold(factors[1].relax(factors[1].sample_noise())).dtype
    for name in ("log_prob", "score", "embed"):
        parts = [getattr(factor, name)(b) for factor, b in zip(factors, own, strict=True)]
        expected = sum(parts) if name == "log_prob" else torch.cat(parts, -1)
        torch.testing.assert_close(getattr(dist, name)(sample), expected)
    given = dist.relax_given(sample, dist.sample_noise(seeded(3)).double())
    assert torch.equal(dist.threshold(given), sample) and torch.equal(given[:, 0], z[:, 0])
    torch.testing.assert_close(dist.relax_given(sample, dist.noise_given(sample, z)), z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dist.entropy(), sum(factor.entropy() for factor in factors))
    others = [factor.with_params(factor.params.flip(0)) for factor in factors]
    expected = sum(factor.kl_divergence(other) for factor, other in zip(factors, others, strict=True))
    torch.testing.assert_close(dist.kl_divergence(Product.of(*others)), expected)


@pytest.mark.parametrize("coupling", ["coupled", "independent"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_relax_estimate_is_the_formula_with_controls_of_all_factors(family: str, coupling: Any) -> None:
    """z~ of numbers stands still; that of discrete factors moves as their own."""
    dist, _ = product(family)
    noise, fresh = (dist.sample_noise(seeded(seed)).double() for seed in (4, 5))
    z = dist.relax(noise)
    sample = dist.threshold(z)
    fresh = dist.noise_given(sample, z) if coupling == "coupled" else fresh
    leaf = dist.with_params(dist.params.clone().requires_grad_())
    pieces, given = [], []
    every = zip(leaf.factors, dist.samples(sample), dist._noises(noise), dist._noises(fresh), strict=True)
    for factor, b, own, again in every:
        pieces.append(factor.relax(own))
        given.append(factor.relax_given(b, again) if hasattr(factor, "relax_given") else b.detach())
    controls = c(torch.cat(pieces, -1)), c(torch.cat(given, -1))
    expected = relax_gradient(f(sample), leaf.log_prob(sample), *controls, leaf.params)
    options = {"coupling": coupling} if coupling == "coupled" else {"conditional_noise": fresh}
    found = relax(f, dist, c, noise=noise, **options).grad
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("family", DISCRETE)
def test_every_estimator_takes_it(family: str) -> None:
    dist, factors = product(family)
    discrete = Product.of(*factors[1:])
    estimates = [reinforce(f, dist), rloo(f, dist), relax(f, dist, c), relax(f, dist, c, num_conditional=2)]
    if "index" not in family:
        estimates += [rebar(f, dist), concrete(f, discrete), straight_through(f, discrete)]
    if family != "ranks":
        estimates.append(dlax(f, dist, c))
    for estimate in estimates:
        assert estimate.grad.isfinite().all() and estimate.grad.shape == estimate.params.shape
        assert bool((estimate.grad.abs().sum(0) > 0).all())


@pytest.mark.parametrize("family", ["order", "first 2", "pair", "ranks", "binomial"])
def test_sums_over_the_outcomes_of_a_product_are_exact(family: str) -> None:
    """A family beside a choice: nested sums, with probabilities and their derivatives by autograd."""
    factors = FAMILIES[family](LOGITS), Categorical(LOGITS[:, :2], one_hot=True)
    dist = Product.of(*factors)
    leaf = dist.with_params(dist.params.clone().requires_grad_())
    outcomes = [list(factor.support()) for factor in factors]
    total = torch.zeros((), dtype=torch.float64)
    for pair in itertools.product(*outcomes):
        chance = [factor.log_prob(b[None]) for factor, b in zip(leaf.factors, pair, strict=True)]
        total = total + sum(chance).exp().squeeze() * f(torch.cat(pair))  # type: ignore[attr-defined]
    (gradient,) = torch.autograd.grad(total, leaf.params)
    torch.testing.assert_close(enumerated(f, dist).grad, gradient)
    torch.testing.assert_close(marginal(f, dist, f).grad, gradient)


@pytest.mark.parametrize("family", ["order", "ranks"])
def test_relax_of_a_number_with_an_order_or_a_rank_is_unbiased(family: str) -> None:
    normal = torch.tensor([[0.3, -0.4]])
    dist = Product.of(DiagGaussian(normal), FAMILIES[family](LOGITS.float()))
    inner = FAMILIES[family](LOGITS)
    row = torch.cat([normal.double(), LOGITS], -1).requires_grad_()
    nodes = torch.linspace(-9, 9, 200, dtype=torch.float64)
    weights = torch.softmax(-0.5 * nodes.square(), 0)
    x = row[0, 0] + row[0, 1].exp() * nodes
    total = torch.zeros((), dtype=torch.float64)
    for b in inner.support():
        payoff = f(torch.cat([x[:, None], b.expand(len(x), -1)], -1))
        total = total + inner.with_params(row[:, 2:]).log_prob(b[None]).exp().squeeze() * (weights * payoff).sum()
    (gradient,) = torch.autograd.grad(total, row)
    generator = seeded(6)
    small = repeat(dist, 25_000)
    found = collect(lambda _: relax(f, small, lambda z: 0.3 * c(z), generator=generator).grad, 300_000, chunk=25_000)
    assert_unbiased(found, gradient[0], power=0.06)


# Divergences


def of_torch(family: str, params: Tensor) -> Any:
    if family == "geometric":
        return td.Geometric(logits=params)
    if family == "binomial":
        return td.Binomial(4, logits=params)
    if family == "Poisson":
        return td.Poisson(params.exp())
    if family == "gamma":
        return td.Gamma(params.exp(), (-params).exp())
    return td.Dirichlet(params.exp())


@pytest.mark.parametrize("family", FAMILIES)
def test_divergences_equal_torchs_or_a_sum_over_outcomes(family: str) -> None:
    p, q = LOGITS.clone().requires_grad_(), LOGITS.flip(-1).mul(0.8).requires_grad_()
    here, there = FAMILIES[family](p), FAMILIES[family](q)
    found = here.kl_divergence(there)
    if family in ("geometric", "binomial", "Poisson", "gamma"):
        expected = td.kl_divergence(of_torch(family, p), of_torch(family, q)).sum(-1)
    elif family == "Dirichlet":
        expected = td.kl_divergence(of_torch(family, p), of_torch(family, q))
    elif family == "negative binomial":
        counts = torch.arange(400.0, dtype=torch.float64)
        log_p, log_q = (td.NegativeBinomial(2.5, logits=x[0].unsqueeze(-1)).log_prob(counts) for x in (p, q))
        expected = (log_p.exp() * (log_p - log_q)).sum()[None]
    else:
        table = here.support()
        log_p, log_q = (d.with_params(d.params.expand(len(table), -1)).log_prob(table) for d in (here, there))
        expected = (log_p.exp() * (log_p - log_q)).sum()[None]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    for left, right in zip(torch.autograd.grad(found, (p, q)), torch.autograd.grad(expected, (p, q)), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-8)
    assert float(here.kl_divergence(here).detach().abs()) < 1e-12


INF = math.inf


@pytest.mark.parametrize(
    ("family", "p", "q", "expected"),
    [
        ("order", [0.0, -INF, -INF, -INF], [0.0, 0.0, 0.0, 0.0], math.log(24)),  # 0, and then the others by index
        ("order", [0.0, 0.0, 0.0, -INF], [0.0, 0.0, 0.0, -INF], 0.0),
        ("order", [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -INF], INF),
        ("first 2", [0.0, 0.0, -INF, -INF], [0.0, 0.0, 0.0, -INF], math.log(3)),
        ("pair", [0.0, 0.0, -INF, -INF], [0.0, 0.0, 0.0, 0.0], math.log(6)),
        ("pair", [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -INF], INF),
        ("pair", [0.0, 0.0, 0.0, -INF], [0.0, 0.0, 0.0, -INF], 0.0),
    ],
)
def test_masked_items_have_their_divergence(family: str, p: list[float], q: list[float], expected: float) -> None:
    x, y = (torch.tensor([values], dtype=torch.float64, requires_grad=True) for values in (p, q))
    found = FAMILIES[family](x).kl_divergence(FAMILIES[family](y))
    assert float(found.detach()) == pytest.approx(expected, abs=1e-9)
    for params, gradient in zip((x, y), torch.autograd.grad(found, (x, y)), strict=True):
        assert gradient.isfinite().all() and not gradient[params.isinf()].any()


def test_what_cannot_be_compared_or_be_a_factor_is_told() -> None:
    three = torch.zeros(2, 3)
    for left, right in (
        (PlackettLuce(three), Subset(three, 2)),
        (PlackettLuce(three), PlackettLuce(three, 2)),
        (Subset(three, 2), Subset(three, 1)),
    ):
        with pytest.raises(ValueError, match="not of one family and width"):
            left.kl_divergence(right)  # type: ignore[attr-defined]
    assert PlackettLuce(three, 3).kl_divergence(PlackettLuce(three)).tolist() == [0.0, 0.0]
    large = torch.zeros(1, 30)
    for dist in (PlackettLuce(large), Subset(large, 15)):
        with pytest.raises(ValueError, match=r"runs through \d+ cases, \d+ at most: estimate it from samples"):
            dist.kl_divergence(dist)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"StudentT cannot be a factor, .* make it a draw of a StochasticGraph"):
        Product.of(from_torch(td.StudentT(4.0, torch.zeros(2), torch.ones(2))), Bernoulli(three))
    matched = Product.of(Matching(torch.zeros(2, 4), one_hot=True), Bernoulli(three))
    assert concrete(f, matched, generator=seeded(7)).grad.abs().sum() > 0
    for estimate in (lambda: reinforce(f, matched), lambda: relax(f, matched, c)):
        with pytest.raises(ValueError, match="of a Matching has no tractable form"):
            estimate()
