"""Derivatives of relaxations in closed form, against automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from relax_rl.distributions import Bernoulli, Categorical, DiagGaussian, MultiCategorical, TanhGaussian

Family = Callable[[Tensor], Any]
DISCRETE: dict[str, Family] = {
    "categorical": Categorical,
    "one-hot": lambda params: Categorical(params, one_hot=True),
    "equal factors": lambda params: MultiCategorical(params, (3, 3)),
    "unequal factors": lambda params: MultiCategorical(params, (2, 3, 1)),
    "one-hot factors": lambda params: MultiCategorical(params, (2, 3, 1), one_hot=True),
    "bits": Bernoulli,
}
CONTINUOUS: dict[str, Family] = {"normal": DiagGaussian, "squashed": TanhGaussian}
discrete = pytest.mark.parametrize("family", DISCRETE.values(), ids=DISCRETE)
every = pytest.mark.parametrize("family", [*DISCRETE.values(), *CONTINUOUS.values()], ids=[*DISCRETE, *CONTINUOUS])
GENERATOR = torch.Generator().manual_seed(0)


def parts(family: Family) -> tuple[Any, Tensor, Tensor]:
    """A distribution of four rows in float64, noise for it, and a vector in the space of z."""
    dist = family(torch.randn(4, 6, generator=GENERATOR).double().requires_grad_())
    noise = dist.sample_noise(GENERATOR).double()
    return dist, noise, torch.randn(noise.shape, generator=GENERATOR).double()


@every
def test_slopes_at_the_parameters(family: Family) -> None:
    dist, noise, vector = parts(family)
    z = dist.relax(noise)
    (exact,) = torch.autograd.grad(z, dist.params, vector)
    torch.testing.assert_close(dist.pull_back(vector, z.detach()), exact)


@discrete
def test_slopes_of_conditional_samples(family: Family) -> None:
    dist, noise, vector = parts(family)
    sample = dist.threshold(dist.relax(dist.sample_noise(GENERATOR).double())).detach()
    z_tilde = dist.relax_given(sample, noise)
    weight = dist.conditional_weight(sample, z_tilde.detach())
    (exact,) = torch.autograd.grad(z_tilde, dist.params, vector)
    torch.testing.assert_close(dist.pull_back(weight * vector, z_tilde.detach()), exact)


@every
def test_slopes_of_softened_samples(family: Family) -> None:
    dist, noise, vector = parts(family)
    z, temperature = dist.relax(noise).detach(), 0.7
    relaxed = dist.soften(z, temperature)
    exact = torch.func.jvp(lambda z: dist.soften(z, temperature), (z,), (vector,))[1]
    torch.testing.assert_close(dist.soften_slope(relaxed, vector, temperature), exact)
    pulled = torch.func.vjp(lambda z: dist.soften(z, temperature), z)[1](vector)[0]
    torch.testing.assert_close(pulled, exact)


@discrete
@pytest.mark.parametrize("logit", [-80.0, 80.0])
def test_extreme_logits_stay_finite(family: Family, logit: float) -> None:
    params = torch.zeros(3, 6)
    params[:, ::2] = logit
    dist = family(params)
    noise = dist.sample_noise(GENERATOR)
    z = dist.relax(noise)
    z_tilde = dist.relax_given(dist.threshold(z), dist.sample_noise(GENERATOR))
    vector = torch.ones_like(z)
    for found in (
        dist.pull_back(vector, z),
        dist.conditional_weight(dist.threshold(z), z_tilde),
        dist.soften_slope(dist.soften(z), vector),
    ):
        assert bool(found.isfinite().all())
