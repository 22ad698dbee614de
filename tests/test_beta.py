"""The beta distribution: its law, its implicit derivatives, and LAX with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor
from torch import distributions as td

from relax_rl.distributions import Beta, DiagGaussian
from relax_rl.estimators import lax, reparameterized
from tests.estimator_cases import seeded
from tests.oracles import central_differences

PARAMS = torch.tensor(
    [[-5.0, -5.0], [0.4, -0.3], [3.0, -4.0], [-4.0, 3.0], [30.0, 2.0], [200.0, 300.0], [0.0, 800.0]],
    dtype=torch.float64,
)


def samples(rows: int = 200, dtype: torch.dtype = torch.float64) -> tuple[Beta, Tensor]:
    """Rows of every kind of parameters, and a sample of each."""
    dist = Beta(PARAMS.repeat(rows, 1).to(dtype))
    return dist, dist.relax(dist.sample_noise(seeded(0)))


def reference(dist: Beta) -> tuple[np.ndarray, np.ndarray]:
    alpha, beta = (np.asarray(x, np.float64)[:, 0] for x in dist.concentrations)
    return alpha, beta


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("row", range(len(PARAMS)))
def test_samples_follow_their_law(row: int, dtype: torch.dtype) -> None:
    dist = Beta(PARAMS[row].to(dtype).expand(40_000, -1))
    x = dist.relax(dist.sample_noise(seeded(row))).flatten().double().numpy()
    alpha, beta = (float(c[0]) for c in dist.concentrations)
    assert x.min() > 0 and x.max() < 1
    assert stats.kstest(x, stats.beta(alpha, beta).cdf).pvalue > 1e-3
    assert x.mean() == pytest.approx(float(dist.mean[0]), abs=5 * x.std() / 200)


def test_densities_entropies_and_divergences_are_those_of_torch() -> None:
    dist, x = samples()
    theirs = td.Beta(*dist.concentrations)
    other = Beta(dist.params.flip(-1) * 0.5)
    torch.testing.assert_close(dist.log_prob(x), theirs.log_prob(x).sum(-1))
    torch.testing.assert_close(dist.entropy(), theirs.entropy().sum(-1))
    expected = td.kl_divergence(theirs, td.Beta(*other.concentrations)).sum(-1)
    torch.testing.assert_close(dist.kl_divergence(other), expected)
    # Two narrow ones close to each other, in float32: smaller than the rounding of any of its terms.
    narrow = torch.full((200, 2), 3000.0) + torch.rand(200, 2, generator=seeded(0))
    near, far = narrow.double(), (narrow * (1 + 1e-4)).double()
    exact = Beta(near).kl_divergence(Beta(far))
    torch.testing.assert_close(Beta(narrow).kl_divergence(Beta(narrow * (1 + 1e-4))), exact.float(), rtol=1e-3, atol=0)
    alpha, beta = reference(dist)
    np.testing.assert_allclose(dist.cdf(x)[:, 0].numpy(), special.betainc(alpha, beta, x[:, 0].numpy()), atol=1e-7)
    np.testing.assert_allclose(dist.mode()[:, 0].numpy(), alpha / (alpha + beta), rtol=1e-9)
    leaf = dist.with_params(dist.params.clone().requires_grad_())
    (score,) = torch.autograd.grad(leaf.log_prob(x).sum(), leaf.params)
    torch.testing.assert_close(dist.score(x), score)


def test_derivatives_are_those_of_the_quantile_function() -> None:
    """dx / dparams with F(x) held, by finite differences of scipy's incomplete beta function."""
    dist, x = samples(100)
    slope = torch.ones_like(x)
    found = dist.pull_back(slope, x)
    at, step = x[:, 0].numpy(), 1e-4

    def moved(column: int, by: float) -> np.ndarray:
        params = dist.params.clone()
        params[:, column] += by
        alpha, beta = reference(Beta(params))
        return np.asarray(special.betainc(alpha, beta, at))

    density = dist.log_prob(x).exp().numpy()
    for column in (0, 1):
        expected = -(moved(column, step) - moved(column, -step)) / (2 * step) / density
        np.testing.assert_allclose(found[:, column].numpy(), expected, rtol=1e-5, atol=1e-9)
    leaf = dist.with_params(dist.params.clone().requires_grad_())
    (pathwise,) = torch.autograd.grad(leaf.relax(leaf.noise_of(x)).sum(), leaf.params)
    torch.testing.assert_close(pathwise, found)


def test_the_noise_of_a_sample_rebuilds_it() -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 3e-7)):
        dist, x = samples(dtype=dtype)
        noise = dist.noise_of(x)
        assert torch.isfinite(noise).all() and noise.shape == (len(x), 24)
        torch.testing.assert_close(dist.relax(noise), x, rtol=0, atol=tolerance)
        moved = dist.with_params(dist.params + 0.3)
        torch.testing.assert_close(moved.relax(moved.noise_of(x)), x, rtol=0, atol=tolerance)


def payoff(x: Tensor) -> Tensor:
    return torch.sin(3 * x[..., 0]) + 0.5 * x[..., 0] ** 2


def surrogate(x: Tensor) -> Tensor:
    return torch.cos(5 * x[..., 0]) - x[..., 0]


@pytest.mark.parametrize("row", [1, 2, 3, 4])
def test_lax_is_exact_in_expectation(row: int) -> None:
    leaf = PARAMS[row : row + 1].clone().requires_grad_()
    nodes = torch.linspace(0, torch.pi, 3002, dtype=torch.float64)[1:-1]
    x, step = ((1 - nodes.cos()) / 2)[:, None], nodes.sin() / 2 * (nodes[1] - nodes[0])
    dist = Beta(leaf.expand(len(x), -1))
    weight = step * dist.log_prob(x).exp()
    (gradient,) = torch.autograd.grad((weight * payoff(x)).sum(), leaf)
    here = Beta(dist.params.detach())
    for made in (
        lax(payoff(x), here, surrogate, noise=here.noise_of(x), sample=x),
        reparameterized(payoff, here, noise=here.noise_of(x)),
    ):
        total = (weight.detach()[:, None] * made.grad).sum(0)
        torch.testing.assert_close(total, gradient[0], rtol=1e-5, atol=1e-7)


def test_the_surrogate_learns_without_a_second_derivative_of_the_sample() -> None:
    """The gradient of the variance in phi, of LAX with implicit derivatives, by finite differences."""
    dist, _ = samples(5)
    phi = torch.tensor([1.5, -0.4], dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        found = lax(payoff, dist, lambda x: torch.sin(phi[0] * x[..., 0]) * phi[1], generator=seeded(3)).grad
        return found.square().sum()

    (found,) = torch.autograd.grad(loss(), phi)
    torch.testing.assert_close(found, central_differences(loss, phi), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("params", [(-80.0, -80.0), (80.0, 80.0), (80.0, -80.0), (-80.0, 80.0), (1e4, 1e4)])
def test_float32_stays_finite(params: tuple[float, float]) -> None:
    leaf = torch.tensor([params]).repeat(500, 1).requires_grad_()
    dist = Beta(leaf)
    x = dist.relax(dist.sample_noise(seeded(4)))
    at = x.detach()
    values = [x, dist.log_prob(at), dist.entropy(), dist.score(at), dist.pull_back(torch.ones_like(at), at)]
    values += [dist.mode(), dist.cdf(at), dist.noise_of(at), dist.kl_divergence(dist.with_params(leaf.flip(-1)))]
    for value in values:
        assert torch.isfinite(value).all()
    for value in (dist.log_prob(at), dist.entropy(), x):
        (gradient,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True)
        assert torch.isfinite(gradient).all()


def test_what_is_no_beta_is_told() -> None:
    with pytest.raises(ValueError, match="expected a last dimension of an even number, of alpha and then of beta"):
        Beta(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="not of one family"):
        Beta(torch.zeros(2, 2)).kl_divergence(DiagGaussian(torch.zeros(2, 2)))  # type: ignore[arg-type]
