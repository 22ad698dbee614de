"""Doubly reparameterised gradients: unbiased for the multi-sample bound by quadrature, and with less variance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from relax_rl.distributions import Bernoulli, DiagGaussian, Gamma
from relax_rl.estimators import dreg, reparameterized, vimco
from tests.estimator_cases import seeded
from tests.oracles import RowStatistics, assert_unbiased, collect, noise_grid, repeat

NORMAL = DiagGaussian(torch.tensor([[0.4, -0.3]]))


def log_joint(z: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    x = z[..., 0]
    return -0.5 * (x + 0.5).square() - 0.3 * (scale * x - 1.0).square() + 0.2 * torch.sin(2 * x)


def exact_gradients(num_samples: int) -> tuple[Tensor, Tensor, float]:
    """Of L at the parameters of q and at a parameter of the joint, and L itself, for one or two samples."""
    params = NORMAL.params[0].double().requires_grad_()
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    nodes, weights = noise_grid(NORMAL, 120, reach=8.0)
    q = DiagGaussian(params)
    z = q.relax(nodes)
    log_w = log_joint(z, scale) - q.log_prob(z)
    if num_samples == 2:
        pair = torch.logaddexp(log_w[:, None], log_w[None, :]) - math.log(2.0)
        bound = (weights[:, None] * weights[None, :] * pair).sum()
    else:
        bound = (weights * log_w).sum()
    return *torch.autograd.grad(bound, (params, scale)), float(bound.detach())


@pytest.mark.parametrize("num_samples", [1, 2])
def test_unbiased_for_the_bound(num_samples: int) -> None:
    exact, of_scale, bound = exact_gradients(num_samples)
    generator = seeded(1)
    found = collect(
        lambda n: dreg(log_joint, repeat(NORMAL, n), num_samples=num_samples, generator=generator).grad, 300_000
    )
    assert_unbiased(found, exact, power=0.02)
    scale = torch.ones(200_000, requires_grad=True)
    estimate = dreg(
        lambda z: log_joint(z, scale), repeat(NORMAL, len(scale)), num_samples=num_samples, generator=generator
    )
    assert float(estimate.value.detach().mean()) == pytest.approx(
        bound, abs=4 * float(estimate.value.detach().std()) / 400
    )
    estimate.backward(1.0)
    assert scale.grad is not None
    error = float(scale.grad.std()) / len(scale) ** 0.5
    assert float(scale.grad.mean()) == pytest.approx(float(of_scale), abs=4 * error)


def test_the_variance_is_below_that_of_the_score_and_of_the_plain_pathwise_gradient() -> None:
    def spread(name: str) -> RowStatistics:
        generator, count = seeded(2), 16

        def plain(n: int) -> Tensor:
            leaf = NORMAL.params.expand(n, 2).clone().requires_grad_()
            q = DiagGaussian(leaf.expand(count, n, 2))
            z = q.relax(q.sample_noise(generator))
            log_w = log_joint(z) - q.log_prob(z)
            return torch.autograd.grad(torch.logsumexp(log_w, 0).sum(), leaf)[0]

        draws = {
            "dreg": lambda n: dreg(log_joint, repeat(NORMAL, n), num_samples=count, generator=generator).grad,
            "vimco": lambda n: (
                vimco(
                    lambda z: log_joint(z) - repeat(NORMAL, z.shape[1]).log_prob(z),
                    repeat(NORMAL, n),
                    num_samples=count,
                    generator=generator,
                ).grad
            ),
            "plain": plain,
        }
        return collect(draws[name], 20_000, 10_000)

    doubly = spread("dreg").variance
    assert doubly < 0.5 * spread("plain").variance and doubly < 0.5 * spread("vimco").variance


def test_a_posterior_that_is_exact_leaves_no_variance() -> None:
    """w is a constant where q is the posterior: the estimate is 0 for every sample, as the score is gone."""
    q = Gamma(torch.tensor([[0.5, -0.2]]).expand(50, 2))
    found = dreg(lambda z: Gamma(q.params.detach()).log_prob(z) + 3.0, q, num_samples=3)
    torch.testing.assert_close(found.grad, torch.zeros(50, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.value, torch.full((50,), 3.0))


def test_one_sample_is_the_pathwise_gradient_without_the_score() -> None:
    q = repeat(NORMAL, 20)
    noise_seed = 5
    expected = reparameterized(
        lambda z: log_joint(z) - q.with_params(q.params.detach()).log_prob(z), q, generator=seeded(noise_seed)
    ).grad
    torch.testing.assert_close(dreg(log_joint, q, num_samples=1, generator=seeded(noise_seed)).grad, expected)


def test_discrete_outcomes_are_refused() -> None:
    with pytest.raises(ValueError, match="dreg needs samples that move with the parameters: use vimco for Bernoulli"):
        dreg(log_joint, Bernoulli(torch.zeros(3, 1)))
    with pytest.raises(ValueError, match="num_samples is 0"):
        dreg(log_joint, NORMAL, num_samples=0)
