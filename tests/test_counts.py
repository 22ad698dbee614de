"""Counts: their law, the relaxation they share, and estimators with it, against sums, scipy and `torch.distributions`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor
from torch import distributions as td

from relax_rl.distributions import Bernoulli, Binomial, Gamma, Geometric, NegativeBinomial, Poisson
from relax_rl.distributions.tails import beta_tails
from relax_rl.estimators import (
    concrete,
    dlax,
    enumerated,
    gumbel_rao,
    lax,
    marginal,
    muprop,
    rebar,
    reinforce,
    reinmax,
    relax,
    reparameterized,
    rloo,
    straight_through,
)
from tests.estimator_cases import seeded
from tests.oracles import assert_unbiased, central_differences, collect, rejects, repeat

Family = Callable[[Tensor], Any]
FAMILIES: dict[str, tuple[Family, Callable[[Tensor], Any]]] = {
    "poisson": (Poisson, lambda x: td.Poisson(x.exp())),
    "geometric": (lambda x: Geometric(-x), lambda x: td.Geometric(logits=-x)),
    "binomial": (lambda x: Binomial(x, 7), lambda x: td.Binomial(7, logits=x)),
    "many trials": (lambda x: Binomial(x - 5.0, 20_000), lambda x: td.Binomial(20_000, logits=x - 5.0)),
    "negative binomial": (lambda x: NegativeBinomial(x, 2.5), lambda x: td.NegativeBinomial(2.5, logits=x)),
    "overdispersed": (lambda x: NegativeBinomial(x, 0.3), lambda x: td.NegativeBinomial(0.3, logits=x)),
}
every = pytest.mark.parametrize("name", FAMILIES)
RATES = (1e-3, 0.7, 30.0, 1e4)


def of_counts(b: Tensor) -> Tensor:
    """Nonlinear and not separable, of any number of leading dimensions; bounded, for it meets every count."""
    return torch.sin(0.9 * b[..., 0]) + 1.5 * torch.exp(-0.3 * b.sum(-1)) - 0.4 * torch.tanh(0.5 * b[..., -1])


def curved(z: Tensor) -> Tensor:
    return torch.tanh(0.4 * z[..., 0] - 0.6) + torch.sin(z.sum(-1))


def family(name: str, *params: float, dtype: torch.dtype = torch.float64) -> Any:
    return FAMILIES[name][0](torch.tensor([params], dtype=dtype))


def reference(dist: Any) -> Any:
    """The frozen distribution of scipy at the first parameter."""
    x = float(dist.params.flatten()[0])
    if isinstance(dist, Poisson):
        return stats.poisson(math.exp(x))
    if isinstance(dist, Geometric):
        return stats.nbinom(1, special.expit(x))
    if isinstance(dist, Binomial):
        return stats.binom(dist.total_count, special.expit(x))
    return stats.nbinom(dist.total_count, special.expit(-x))


def test_incomplete_beta_functions_are_those_of_scipy() -> None:
    a, b = (10 ** (6 * torch.rand(3000, generator=seeded(k), dtype=torch.float64) - 2) for k in (0, 1))
    mean = a / (a + b)
    std = (mean * b / (a + b) / (a + b + 1)).sqrt()
    x = (mean + 4 * std * torch.randn(3000, generator=seeded(2), dtype=torch.float64)).clamp(1e-6, 1 - 1e-6)
    below, above = (each.numpy() for each in beta_tails(a, b, x.log(), torch.log1p(-x)))
    np.testing.assert_allclose(below, special.betainc(a, b, x), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(above, special.betaincc(a, b, x), rtol=1e-8, atol=1e-10)


# The law


@every
@pytest.mark.parametrize("param", [-7.0, -1.0, 0.6, 3.4])
def test_counts_follow_their_law(name: str, param: float) -> None:
    dist = repeat(family(name, param, dtype=torch.float32), 5_000)
    b = dist.threshold(dist.relax(dist.sample_noise(seeded(3)))).flatten().numpy()
    law = reference(dist)
    low, high = int(law.ppf(0.002)), int(law.ppf(0.998))
    edges = np.unique(np.linspace(low, high, 25).astype(int))
    below = law.cdf(edges)
    expected = np.diff(np.concatenate([[0.0], below, [1.0]]))
    seen = np.histogram(b, np.concatenate([[-1.0], edges + 0.5, [np.inf]]))[0] / len(b)
    for p, share in zip(expected, seen, strict=True):
        assert abs(share - p) <= 5 * math.sqrt(max(p * (1 - p), 1e-6) / len(b))


@pytest.mark.parametrize("rate", RATES)
def test_z_is_spread_evenly_around_the_counts_of_any_rate(rate: float) -> None:
    dist = repeat(Poisson(torch.tensor([[math.log(rate)]])), 20_000)
    z = dist.relax(dist.sample_noise(seeded(4)))
    b = dist.threshold(z)
    v = (z - b + 0.5).flatten().double().numpy()
    assert v.min() > 0 and v.max() < 1
    assert (
        stats.kstest(v + np.random.default_rng(0).uniform(-5e-4, 5e-4, len(v)) * (rate > 100), "uniform").pvalue > 1e-3
    )
    assert float(b.double().mean()) == pytest.approx(rate, abs=5 * math.sqrt(rate / len(b)))
    assert float(b.double().var()) == pytest.approx(rate, rel=0.05 if rate > 0.01 else 0.7)
    for value in (
        dist.log_prob(b),
        dist.score(b),
        dist.pull_back(torch.ones_like(z), z),
        dist.noise_of(z),
        dist.cdf(b),
    ):
        assert value.isfinite().all()
    exact = stats.poisson(float(dist.params[0].double().exp())).logpmf(b[:500, 0].numpy())
    np.testing.assert_allclose(dist.log_prob(b)[:500].numpy(), exact, rtol=1e-5, atol=1e-5)


@every
def test_noise_is_rebuilt_and_outcomes_are_given_back(name: str) -> None:
    params = torch.linspace(-14.0, 9.0 if name == "poisson" else 5.0, 100).reshape(-1, 2)
    dist = FAMILIES[name][0](params)
    noise = dist.sample_noise(seeded(5))
    noise[::7] = torch.tensor([36.7, -36.7])
    z = dist.relax(noise)
    b = dist.threshold(z)
    assert z.isfinite().all() and (b >= 0).all() and (b <= (dist.most or math.inf)).all()
    torch.testing.assert_close(dist.relax(dist.noise_of(z)), z, rtol=1e-6, atol=3e-3)
    for other in (b, b.flip(0), torch.zeros_like(b)):
        z_tilde = dist.relax_given(other, noise)
        assert torch.equal(dist.threshold(z_tilde), other)
    again = dist.relax_given(b, dist.noise_given(b, z))
    torch.testing.assert_close(again, z, rtol=1e-6, atol=1e-4)


@every
def test_densities_are_those_of_torch_and_distribution_functions_those_of_scipy(name: str) -> None:
    dist, theirs = family(name, 0.6, -0.8), FAMILIES[name][1](torch.tensor([[0.6, -0.8]], dtype=torch.float64))
    b = torch.arange(8.0, dtype=torch.float64).reshape(-1, 1).expand(8, 2)
    torch.testing.assert_close(dist.log_prob(b), theirs.log_prob(b).sum(-1))
    torch.testing.assert_close(dist.mean, theirs.mean)
    law = reference(dist)
    np.testing.assert_allclose(dist.cdf(b)[:, 0].numpy(), law.cdf(b[:, 0].numpy()), rtol=1e-9)
    leaf = dist.with_params(dist.params.clone().requires_grad_())
    (score,) = torch.autograd.grad(leaf.log_prob(b)[5], leaf.params)
    torch.testing.assert_close(dist.score(b)[5:6], score)
    near = np.arange(0, int(law.ppf(1 - 1e-16)) + 2)
    p = law.pmf(near).clip(1e-300)
    assert float(dist.with_params(dist.params[:, :1]).entropy()) == pytest.approx(-(p * np.log(p)).sum(), rel=1e-9)
    assert float(dist.mode()[0, 0]) == near[p.argmax()]


@every
def test_divergences_are_sums_over_counts(name: str) -> None:
    dist, other = family(name, 0.6), family(name, -0.3)
    law = reference(dist)
    b = torch.arange(int(law.ppf(1 - 1e-14)) + 2, dtype=torch.float64)[:, None]
    b = b.clamp(max=dist.most) if dist.most else b
    b = b.unique(dim=0)
    log_p, log_q = dist.log_prob(b), other.log_prob(b)
    assert float(dist.kl_divergence(other)) == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()), rel=1e-8)
    assert float(dist.kl_divergence(dist)) == 0.0


# The relaxation


@every
@pytest.mark.parametrize("param", [-2.0, 0.5, 3.0])
def test_the_derivative_of_z_is_that_of_the_quantile_function(name: str, param: float) -> None:
    """By finite differences of z(u, params), the same u."""
    params = torch.full((100, 1), param, dtype=torch.float64)
    noise = torch.linspace(-8.0, 8.0, 100, dtype=torch.float64)[:, None]
    make = FAMILIES[name][0]
    z = make(params).relax(noise)
    dist, step = make(params), 1e-6
    above, below = (dist.with_params(dist.params + by).relax(noise) for by in (step, -step))
    moved = (above - below) / (2 * step)
    inner = ((z - z.round()).abs() < 0.49).flatten()
    found = dist.pull_back(torch.ones_like(z), z)
    torch.testing.assert_close(moved[inner], found[inner], rtol=1e-4, atol=1e-4)
    leaf = dist.params.clone().requires_grad_()
    (pathwise,) = torch.autograd.grad(dist.with_params(leaf).relax(noise).sum(), leaf)
    torch.testing.assert_close(pathwise, found)


@every
def test_softened_counts_stand_between_z_and_the_count(name: str) -> None:
    dist = repeat(family(name, 0.6, 0.2), 500)
    z = dist.relax(dist.sample_noise(seeded(6))).requires_grad_()
    b = dist.threshold(z)
    positive = z.detach().clamp(0, dist.most)
    torch.testing.assert_close(dist.soften(z, 1e3).detach(), positive, rtol=1e-5, atol=1e-5)
    near = (z - b).abs() < 0.4
    torch.testing.assert_close(dist.soften(z, 0.01)[near].detach(), b[near], rtol=0, atol=1e-6)
    for temperature in (0.3, 1.0, torch.tensor(2.0)):
        relaxed = dist.soften(z, temperature)
        (slope,) = torch.autograd.grad(relaxed.sum(), z)
        found = dist.soften_slope(relaxed.detach(), torch.ones_like(z), temperature)
        inner = relaxed.detach() > 0
        torch.testing.assert_close(found[inner], slope[inner], rtol=1e-5, atol=1e-7)


# Estimators


def grid(dist: Any, top: int, nodes: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, z and weights of an expectation over z of the first row: every count, and Gauss's rule in its interval."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    size = dist.params.shape[-1]
    axis = torch.tensor([b + 0.5 * t for b in range(top) for t in x], dtype=torch.float64)
    weight = torch.tensor([0.5 * v for _ in range(top) for v in w], dtype=torch.float64)
    z = torch.cartesian_prod(*[axis] * size).reshape(-1, size)
    within = torch.cartesian_prod(*[weight] * size).reshape(-1, size).prod(-1)
    b = z.round()
    return b, z, within * dist.log_prob(b).exp().detach()


def exact_gradient(dist: Any, f: Callable[[Tensor], Tensor], top: int) -> Tensor:
    leaf = dist.params.clone().requires_grad_()
    b = torch.cartesian_prod(*[torch.arange(top, dtype=torch.float64)] * leaf.shape[-1]).reshape(-1, leaf.shape[-1])
    (found,) = torch.autograd.grad((dist.with_params(leaf).log_prob(b).exp() * f(b)).sum(), leaf)
    return found[0]


TOPS = {"poisson": 25, "geometric": 80, "binomial": 8, "negative binomial": 70, "overdispersed": 60}


@pytest.mark.parametrize("name", TOPS)
def test_estimates_with_a_surrogate_are_exact_in_expectation(name: str) -> None:
    dist, top = family(name, 0.3), TOPS[name]
    b, z, weight = grid(dist, top, nodes=20)
    here = repeat(dist, len(z))
    noise, given = here.noise_of(z), here.noise_given(b, z)
    known: dict[str, Any] = {"noise": noise, "sample": b}
    exact = exact_gradient(dist, of_counts, top)
    estimates = {
        "relax": relax(of_counts(b), here, curved, conditional_noise=given, **known).grad,
        "coupled": relax(of_counts(b), here, curved, coupling="coupled", **known).grad,
        "3 conditional": relax(
            of_counts(b), here, curved, conditional_noise=given.expand(3, -1, -1), num_conditional=3, **known
        ).grad,
        "rebar": rebar(of_counts, here, temperature=0.7, noise=noise, conditional_noise=given).grad,
        "dlax": dlax(of_counts, here, curved, noise=noise).grad,
    }
    for label, grad in estimates.items():
        mean = (weight[:, None] * grad.detach()).sum(0)
        # A staircase has corners at the edges of its steps, which the rule meets, and at 0, which it does not.
        tolerance = 2e-3 if label == "rebar" else 1e-6
        torch.testing.assert_close(mean, exact, rtol=tolerance, atol=tolerance * float(exact.abs())), label


@pytest.mark.parametrize("name", ["poisson", "geometric", "binomial", "negative binomial"])
@pytest.mark.parametrize("make", ["reinforce", "rloo", "rebar", "relax"])
def test_unbiased_as_drawn(name: str, make: str) -> None:
    dist, generator = family(name, 0.3, -0.4, dtype=torch.float32), seeded(7)
    exact = exact_gradient(family(name, 0.3, -0.4), of_counts, TOPS[name] if name != "geometric" else 60)
    functions: dict[str, Any] = {
        "reinforce": lambda d: reinforce(of_counts, d, baseline=0.5, generator=generator),
        "rloo": lambda d: rloo(of_counts, d, num_samples=3, generator=generator),
        "rebar": lambda d: rebar(of_counts, d, generator=generator),
        "relax": lambda d: relax(of_counts, d, curved, num_conditional=2, generator=generator),
    }
    rows = 30_000
    assert_unbiased(collect(lambda n: functions[make](repeat(dist, n)).grad, rows, 10_000), exact, power=0.15)


def test_a_z_that_does_not_move_as_its_law_is_found_biased() -> None:
    """Moved as b alone would be, without what flows over the upper edge."""
    dist = family("poisson", 0.3)
    b, z, weight = grid(dist, 25, nodes=20)
    here = repeat(dist, len(z))
    right = relax(of_counts(b), here, curved, noise=here.noise_of(z), sample=b, coupling="coupled").grad
    v = z - b + 0.5
    leaf = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(curved(leaf).sum(), leaf)
    wrong = right - slope * v * here.mean
    exact = exact_gradient(dist, of_counts, 25)
    assert float(((weight[:, None] * wrong.detach()).sum(0) - exact).abs()) > 0.1 * float(exact.abs())


def test_rebar_has_less_variance_than_three_samples_without_a_relaxation() -> None:
    dist = repeat(Poisson(torch.tensor([[math.log(30.0)]])), 10_000)
    f = lambda b: ((b - 25.0) / 10.0).square().sum(-1)  # noqa: E731
    plain = rloo(f, dist, num_samples=3, generator=seeded(8)).grad.var(0)
    assert float(rebar(f, dist, generator=seeded(8)).grad.detach().var(0)) < 0.7 * float(plain)


def test_biased_estimators_differentiate_what_they_say() -> None:
    """At a high temperature the relaxed problem is that of z: E[z^2] = E[b^2] + 1/12 has the gradient of E[b^2]."""
    square = lambda b: b.square().sum(-1)  # noqa: E731
    dist, generator = Poisson(torch.tensor([[1.5]])), seeded(9)
    exact = exact_gradient(family("poisson", 1.5), square, 60)
    found = collect(
        lambda n: concrete(square, repeat(dist, n), temperature=50.0, generator=generator).grad, 40_000, 20_000
    )
    assert_unbiased(found, exact, power=0.1)
    through = collect(lambda n: straight_through(square, repeat(dist, n), generator=generator).grad, 40_000, 20_000)
    rate = math.exp(1.5)
    assert_unbiased(through, torch.tensor([2 * rate * rate], dtype=torch.float64), power=0.1)  # E[f'(b)] drate
    assert rejects(through, exact)
    rao = collect(
        lambda n: gumbel_rao(square, repeat(dist, n), temperature=50.0, generator=generator).grad, 40_000, 20_000
    )
    # E[2 b dz]: E[dz given b] is (b + rate) / 2
    assert_unbiased(rao, torch.tensor([rate + 2 * rate * rate], dtype=torch.float64), power=0.1)


def test_counts_that_can_be_listed_are() -> None:
    dist = family("binomial", 0.3, -0.4)
    exact = exact_gradient(dist, of_counts, 8)
    torch.testing.assert_close(enumerated(of_counts, dist).grad[0], exact)
    single = family("binomial", 0.3)
    b = single.support()
    assert b.flatten().tolist() == list(range(8))
    here, weight = repeat(single, 8), single.log_prob(b).exp()
    noise = here.noise_of(b)
    expected = exact_gradient(single, of_counts, 8)
    for found in (
        marginal(of_counts(b), here, of_counts, noise=noise, sample=b).grad,
        muprop(of_counts, here, noise=noise).grad,
    ):
        torch.testing.assert_close((weight[:, None] * found).sum(0), expected)


def test_the_gradient_of_the_variance_is_that_of_finite_differences() -> None:
    dist, phi = repeat(family("negative binomial", 0.3, -0.2), 50), torch.tensor([0.7, -0.4], dtype=torch.float64)
    phi.requires_grad_()

    def loss() -> Tensor:
        return relax(of_counts, dist, lambda z: torch.sin(z @ phi), generator=seeded(10)).variance_loss()

    loss().backward()
    torch.testing.assert_close(phi.grad, central_differences(loss, phi), rtol=1e-6, atol=1e-8)


def test_estimates_are_transformed() -> None:
    noise, fresh = (torch.randn(5, 2, generator=seeded(k), dtype=torch.float64) for k in (11, 12))

    def loss(params: Tensor) -> Tensor:
        return relax(of_counts, Poisson(params), curved, noise=noise, conditional_noise=fresh).loss()

    params = torch.full((5, 2), 0.4, dtype=torch.float64, requires_grad=True)
    (eager,) = torch.autograd.grad(loss(params), params)
    torch.testing.assert_close(torch.func.grad(loss)(params.detach()), eager)


def test_what_is_no_count_is_told() -> None:
    dist = Binomial(torch.zeros(2, 1), 3)
    for wrong, told in ((-1.0, "has -1"), (0.5, "has 0.5"), (4.0, "from 0 to 3, but the sample has 4")):
        with pytest.raises(ValueError, match=told):
            dist.log_prob(torch.full((2, 1), wrong))
    with pytest.raises(ValueError, match="total_count is 0, expected a whole number"):
        Binomial(torch.zeros(1), 0)
    with pytest.raises(ValueError, match=r"total_count is -1.0, expected a number above 0"):
        NegativeBinomial(torch.zeros(1), -1.0)
    with pytest.raises(ValueError, match="not of one family"):
        dist.kl_divergence(Binomial(torch.zeros(2, 1), 4))
    with pytest.raises(ValueError, match="not of one family"):
        Poisson(torch.zeros(2, 1)).kl_divergence(Bernoulli(torch.zeros(2, 1)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a finite number"):
        Poisson(torch.tensor([[math.inf]])).sample_noise()
    for refuse in (reparameterized, reinmax, enumerated):
        with pytest.raises(ValueError):
            refuse(of_counts, Poisson(torch.zeros(3, 1)))
    with pytest.raises(ValueError, match="use relax for Poisson"):
        lax(of_counts, Poisson(torch.zeros(3, 1)), curved)


def test_entropies_are_sums_of_any_length_and_those_of_no_rows_are_none() -> None:
    for logit in (2.0, 9.0):
        mean = 5.0 * math.exp(logit)
        dist = NegativeBinomial(torch.tensor([[logit], [0.3]], dtype=torch.float64), 5.0)
        # Beside that of the gamma variable that a negative binomial one is nearly, less what rounding takes.
        gamma = Gamma(torch.tensor([5.0, mean / 5.0], dtype=torch.float64).log() * torch.tensor([1.0, -1.0])).entropy()
        assert abs(float(dist.entropy()[0] - gamma)) < 0.5 / math.exp(logit)
        low = NegativeBinomial(dist.params[1:], 5.0)
        assert torch.equal(dist.entropy()[1:], low.entropy()), "the other rows change nothing"
    with pytest.raises(ValueError, match=r"the entropy is a sum over [\d,]+ counts, expected at most 10,000,000"):
        Poisson(torch.tensor([30.0])).entropy()
    for dist in (Poisson(torch.zeros(0, 2)), Binomial(torch.zeros(0, 2), 3)):
        assert dist.entropy().shape == (0,)


class Rare(Poisson):
    """A family of one's own."""


def test_a_family_of_ones_own_is_drawn_as_what_it_is_made_of() -> None:
    params = torch.full((50, 1), 0.7, dtype=torch.float64)
    noise = Poisson(params).sample_noise(torch.Generator().manual_seed(0))
    assert torch.equal(Poisson(params).relax(noise), Rare(params).relax(noise))
