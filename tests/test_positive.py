"""Gamma and Dirichlet variables: their law, implicit and rejection-sampling gradients, exact by quadrature."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch import distributions as td

from relax_rl.distributions import Beta, DiagGaussian, Dirichlet, Gamma
from relax_rl.estimators import lax, reinforce, rejection, reparameterized, rloo
from tests.estimator_cases import seeded
from tests.oracles import assert_unbiased, central_differences, collect, repeat

SHAPES = (0.3, 0.8, 2.5, 40.0, 1e4)


def gamma(shape: float, rate: float = 2.0, dtype: torch.dtype = torch.float64) -> Gamma:
    return Gamma(torch.tensor([[math.log(shape), math.log(rate)]], dtype=dtype))


def payoff(x: Tensor) -> Tensor:
    return torch.sin(1.5 * x).sum(-1) + 0.5 * torch.log1p(x[..., 0])


def surrogate(x: Tensor) -> Tensor:
    return torch.cos(x).sum(-1) - 0.3 * x[..., 0]


# The law


@pytest.mark.parametrize("shape", SHAPES)
def test_gamma_variables_follow_their_law(shape: float) -> None:
    dist = repeat(gamma(shape, dtype=torch.float32), 30_000)
    x = dist.relax(dist.sample_noise(seeded(0))).flatten()
    law = stats.gamma(shape, scale=0.5)
    assert stats.kstest(x.double().numpy(), law.cdf).pvalue > 1e-3
    np.testing.assert_allclose(dist.cdf(x[:, None])[:99, 0].numpy(), law.cdf(x.numpy()[:99]), atol=1e-4)


@pytest.mark.parametrize("scale", [0.3, 1.0, 20.0])
def test_shares_follow_their_law(scale: float) -> None:
    concentration = scale * torch.tensor([0.5, 1.0, 2.0])
    dist = Dirichlet(concentration.log().expand(30_000, 3))
    x = dist.relax(dist.sample_noise(seeded(1)))
    torch.testing.assert_close(x.sum(-1), torch.ones(len(x)))
    for k in range(3):
        law = stats.beta(float(concentration[k]), float(concentration.sum() - concentration[k]))
        assert stats.kstest(x[:, k].double().numpy(), law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("family", ["gamma", "dirichlet"])
def test_densities_entropies_and_divergences_are_those_of_torch(family: str) -> None:
    params = torch.randn(60, 4, generator=seeded(2), dtype=torch.float64)
    make: Any = {"gamma": Gamma, "dirichlet": Dirichlet}[family]
    theirs: Any = {
        "gamma": lambda p: td.Independent(td.Gamma(*p.exp().chunk(2, -1)), 1),
        "dirichlet": lambda p: td.Dirichlet(p.exp()),
    }[family]
    dist, other = make(params), make(params.flip(0) * 0.5)
    x = dist.relax(dist.sample_noise(seeded(3)))
    torch.testing.assert_close(dist.log_prob(x), theirs(params).log_prob(x))
    torch.testing.assert_close(dist.entropy(), theirs(params).entropy())
    torch.testing.assert_close(dist.kl_divergence(other), td.kl_divergence(theirs(params), theirs(other.params)))
    torch.testing.assert_close(dist.mean, theirs(params).mean)
    leaf = params.clone().requires_grad_()
    (score,) = torch.autograd.grad(make(leaf).log_prob(x).sum(), leaf)
    torch.testing.assert_close(dist.score(x), score)
    torch.testing.assert_close(dist.relax(dist.noise_of(x)), x)
    assert (Gamma(params).mode() >= 0).all()


def test_derivatives_are_those_of_torch() -> None:
    params = torch.randn(60, 4, generator=seeded(4), dtype=torch.float64)
    slope = torch.randn(60, 4, generator=seeded(5), dtype=torch.float64)
    leaf = params.clone().requires_grad_()
    dist = Dirichlet(leaf)
    noise = dist.sample_noise(seeded(6))
    x = dist.relax(noise)
    (pathwise,) = torch.autograd.grad((x * slope).sum(), leaf)
    torch.testing.assert_close(dist.pull_back(slope, x.detach()), pathwise)
    theirs = torch._dirichlet_grad(x.detach(), params.exp(), params.exp().sum(-1, keepdim=True).expand(60, 4))
    expected = theirs * (slope - (x.detach() * slope).sum(-1, keepdim=True)) * params.exp()
    torch.testing.assert_close(pathwise, expected)
    leaf = params.clone().requires_grad_()
    positive = Gamma(leaf)
    y = positive.relax(positive.sample_noise(seeded(7)))
    (pathwise,) = torch.autograd.grad((y * slope[:, :2]).sum(), leaf)
    torch.testing.assert_close(positive.pull_back(slope[:, :2], y.detach()), pathwise)


# Estimators, by quadrature


def grid(dist: Gamma, count: int = 4_000) -> tuple[Tensor, Tensor]:
    """x and weights of an expectation under the first row, by the trapezoidal rule in log x."""
    shape, rate = float(dist.concentration), float(dist.rate)
    low, high = math.log(stats.gamma.ppf(1e-14, shape) + 1e-290), math.log(stats.gamma.isf(1e-14, shape))
    t = torch.linspace(max(low, -60.0 / min(shape, 1.0)), high, count, dtype=torch.float64)
    x = t.exp()[:, None] / rate
    weight = dist.log_prob(x).exp() * x[:, 0] * (t[1] - t[0])
    return x, weight


def exact_gradient(dist: Gamma) -> Tensor:
    x, _ = grid(dist)
    leaf = dist.params.clone().requires_grad_()
    step = (x[1, 0] / x[0, 0]).log() * x[:, 0]
    (found,) = torch.autograd.grad((step * dist.with_params(leaf).log_prob(x).exp() * payoff(x)).sum(), leaf)
    return found[0]


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_lax_and_the_implicit_gradient_are_exact_in_expectation(shape: float) -> None:
    dist = gamma(shape)
    x, weight = grid(dist)
    here = repeat(dist, len(x))
    exact = exact_gradient(dist)
    for made in (
        lax(payoff(x), here, surrogate, noise=here.noise_of(x), sample=x),
        reparameterized(payoff, here, noise=here.noise_of(x)),
    ):
        mean = (weight[:, None] * made.grad.detach()).sum(0)
        # torch's derivatives are rational approximations of 3 to 4 digits.
        torch.testing.assert_close(mean, exact, rtol=2e-3, atol=1e-4 * float(exact.norm()))


@pytest.mark.parametrize("shape", SHAPES[1:4])
def test_the_rejection_sampling_gradient_is_exact_in_expectation(shape: float) -> None:
    """Over the normals that are accepted, whose density is q(h) h', and over the exponential of the boost."""
    dist, a = gamma(shape), shape + 1.0
    d = a - 1.0 / 3.0
    low = max(-3.0 * math.sqrt(d), -10.0)
    normal = torch.linspace(low, 10.0, 602, dtype=torch.float64)[1:-1]
    h = d * (1.0 + normal / (3.0 * math.sqrt(d))) ** 3
    density = (
        torch.exp((a - 1.0) * h.log() - h - math.lgamma(a)) * math.sqrt(d) * (1.0 + normal / (3.0 * math.sqrt(d))) ** 2
    )
    nodes, weights = np.polynomial.laguerre.laggauss(40)
    pairs = torch.cartesian_prod(normal, torch.tensor(nodes))
    weight = (density * (normal[1] - normal[0]))[:, None] * torch.tensor(weights)
    assert float(weight.sum()) == pytest.approx(1.0, abs=1e-5)
    made = rejection(payoff, repeat(dist, len(pairs)), noise=(pairs[:, :1], pairs[None, :, 1:]))
    mean = (weight.flatten()[:, None] * made.grad).sum(0)
    exact = exact_gradient(dist)
    torch.testing.assert_close(mean, exact, rtol=1e-3, atol=1e-3 * float(exact.norm()))
    # With f itself as baseline the correction is gone, and what is left is biased.
    baseline = payoff(made.sample)
    alone = rejection(
        payoff, repeat(dist, len(pairs)), baseline=baseline, noise=(pairs[:, :1], pairs[None, :, 1:])
    ).grad
    off = float(((weight.flatten()[:, None] * alone).sum(0) - exact).norm() / exact.norm())
    assert off > (0.003 if shape < 10 else 1e-6)


def test_gradients_as_drawn_and_their_variances_side_by_side() -> None:
    """By z-tests; the implicit gradient varies least, the rejection sampler's 5% more, and the score's three times as much."""
    dist = gamma(0.8)
    generator, exact = seeded(9), exact_gradient(dist)
    draws: dict[str, Any] = {
        "implicit": lambda n: reparameterized(payoff, repeat(dist, n), generator=generator).grad,
        "rejection": lambda n: rejection(payoff, repeat(dist, n), generator=generator).grad,
        "rejection, boosted by 5": lambda n: rejection(payoff, repeat(dist, n), boost=5, generator=generator).grad,
        "lax": lambda n: lax(payoff, repeat(dist, n), surrogate, generator=generator).grad,
        "score": lambda n: reinforce(payoff, repeat(dist, n), generator=generator).grad,
        "rloo": lambda n: rloo(payoff, repeat(dist, n), num_samples=3, generator=generator).grad,
    }
    found = {name: collect(draw, 150_000, 50_000) for name, draw in draws.items()}
    for statistics in found.values():
        assert_unbiased(statistics, exact, power=0.2)
    variances = {name: statistics.variance for name, statistics in found.items()}
    assert variances["implicit"] < variances["rejection"] < 1.2 * variances["implicit"], variances
    assert 2.0 * variances["rejection"] < variances["score"], variances


@pytest.mark.parametrize("make", ["dirichlet", "beta"])
def test_shares_and_bounded_numbers_have_both_gradients(make: str) -> None:
    """E[x_0] and E[x_0^2] in closed form."""
    params = torch.tensor([[0.3, -0.4, 0.8]]) if make == "dirichlet" else torch.tensor([[0.4, -0.3]])
    dist: Any = (Dirichlet if make == "dirichlet" else Beta)(params)
    leaf = params.double().requires_grad_()
    a = leaf[0].exp() if make == "dirichlet" else 1.0 + torch.nn.functional.softplus(leaf[0])
    total = a.sum()
    moment = a[0] / total - 2.0 * a[0] * (a[0] + 1.0) / (total * (total + 1.0))
    (exact,) = torch.autograd.grad(moment, leaf)
    f = lambda x: x[..., 0] - 2.0 * x[..., 0].square()  # noqa: E731
    generator = seeded(10)
    for draw in (
        lambda n: reparameterized(f, repeat(dist, n), generator=generator).grad,
        lambda n: rejection(f, repeat(dist, n), boost=2, baseline=-0.1, generator=generator).grad,
    ):
        assert_unbiased(collect(draw, 200_000, 50_000), exact[0], power=0.05)


def test_the_surrogate_learns_without_a_second_derivative_of_the_sample() -> None:
    dist = repeat(gamma(1.7), 20)
    phi = torch.tensor([1.5, -0.4], dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        found = lax(payoff, dist, lambda x: torch.sin(phi[0] * x[..., 0]) * phi[1], generator=seeded(11)).grad
        return found.square().sum()

    (found,) = torch.autograd.grad(loss(), phi)
    torch.testing.assert_close(found, central_differences(loss, phi), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("log_shape", [-3.0, 0.0, 9.0])
def test_float32_stays_finite(log_shape: float) -> None:
    for dist in (Gamma(torch.tensor([[log_shape, 5.0]]).repeat(300, 1)), Dirichlet(torch.full((300, 3), log_shape))):
        leaf = dist.with_params(dist.params.clone().requires_grad_())
        x = leaf.relax(leaf.sample_noise(seeded(12)))
        (gradient,) = torch.autograd.grad(x.sum(), leaf.params)
        at = x.detach()
        for value in (x, gradient, dist.log_prob(at), dist.score(at), dist.entropy(), dist.noise_of(at)):
            assert value.isfinite().all()


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="log concentrations and then log rates"):
        Gamma(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="rejection is for Gamma, Beta and Dirichlet outcomes, not for DiagGaussian"):
        rejection(payoff, DiagGaussian(torch.zeros(2, 2)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="boost is 0, expected at least 1"):
        rejection(payoff, gamma(1.0), boost=0)
