"""Estimators that draw the sample themselves: `estimator(f, dist, ...)` for the distributions of this package.

Each of them works at a detached copy of `dist.params`, so that nothing but `Estimate.backward()` ever reaches theta.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from relax_rl.distributions import Distribution, RelaxedDistribution
from relax_rl.estimators.estimate import Estimate
from relax_rl.estimators.gradients import lax_gradient, reinforce_gradient, relax_gradient

__all__ = ["Objective", "Surrogate", "lax", "reinforce", "relax"]

D = TypeVar("D", bound=Distribution)

Objective = Callable[[Tensor], Tensor] | Tensor
"""f: a function of a batch of samples, or its `[B]` values already known for the sample that `noise` gives."""

Surrogate = Callable[[Tensor], Tensor]
"""c: relaxed samples z to `[B]` values, differentiable twice."""


def reinforce(
    f: Objective,
    dist: Distribution,
    *,
    baseline: Tensor | float = 0.0,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Score-function estimate g = (f(b) - baseline) dlog p(b) (Williams 1992).

    Args:
        f: a function of the samples, or its `[B]` values (`noise` is needed then).
        dist: distribution with `[B, P]` parameters.
        baseline: a number or `[B]`, independent of the sample.
        noise: the base noise of the sample; drawn from `generator` by default.

    Raises:
        ValueError: when f is given by its values but the noise of the sample is not, or f or the baseline does not give
            one number a row.
    """
    at_leaf, _, sample, value = _draw(f, dist, noise, generator)
    grad = reinforce_gradient(value - baseline, at_leaf.log_prob(sample), at_leaf.params)
    return Estimate(sample, value, grad, dist.params)


def lax(
    f: Objective,
    dist: Distribution,
    surrogate: Surrogate,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """LAX estimate for a reparameterised distribution (Grathwohl et al. 2018, section 3).

    Args:
        f: a function of the samples (need not be differentiable), or its `[B]` values (`noise` is needed then).
        dist: distribution with `[B, P]` parameters whose outcome is its relaxed sample, such as `DiagGaussian`.
        surrogate: c, from samples to `[B]`.
        noise: the base noise of the sample; drawn from `generator` by default.

    Raises:
        ValueError: when f is given by its values but the noise of the sample is not; when the outcomes are discrete
            (their score is not that of z, and the estimate would be biased: `relax` is for them); when f or the
            surrogate does not give one number a row.
    """
    if hasattr(dist, "relax_given"):
        raise ValueError(f"lax needs an outcome that is its own relaxed sample: use relax for {type(dist).__name__}")
    at_leaf, z, sample, value = _draw(f, dist, noise, generator)
    grad = lax_gradient(value, at_leaf.log_prob(sample), surrogate(z), at_leaf.params)
    return Estimate(sample, value, grad, dist.params)


def relax(
    f: Objective,
    dist: RelaxedDistribution,
    surrogate: Surrogate,
    *,
    noise: Tensor | None = None,
    conditional_noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """RELAX estimate for a discrete distribution (Grathwohl et al. 2018, eq. 9).

    Args:
        f: a function of the samples (need not be differentiable), or its `[B]` values (`noise` is needed then).
        dist: discrete distribution with `[B, P]` parameters.
        surrogate: c, from relaxed samples to `[B]`.
        noise: the base noise of the sample; drawn from `generator` by default.
        conditional_noise: the noise of z~, independent of `noise`; drawn from `generator` by default.

    Raises:
        ValueError: when f is given by its values but the noise of the sample is not; when z cannot be sampled given b
            (`lax` is for those outcomes); when f or the surrogate does not give one number a row.
    """
    if not hasattr(dist, "relax_given"):
        raise ValueError(f"relax needs a sample of z given b, which {type(dist).__name__} lacks: use lax")
    at_leaf, z, sample, value = _draw(f, dist, noise, generator)
    if conditional_noise is None:
        conditional_noise = at_leaf.sample_noise(generator)
    z_tilde = at_leaf.relax_given(sample, conditional_noise)
    grad = relax_gradient(value, at_leaf.log_prob(sample), surrogate(z), surrogate(z_tilde), at_leaf.params)
    return Estimate(sample, value, grad, dist.params)


def _draw(
    f: Objective, dist: D, noise: Tensor | None, generator: torch.Generator | None
) -> tuple[D, Tensor, Tensor, Tensor]:
    """The distribution at a detached leaf, its z, the sample b = H(z) and f(b)."""
    if noise is None:
        if isinstance(f, Tensor):
            raise ValueError("f is given by its values: pass the noise of the sample that they belong to")
        noise = dist.sample_noise(generator)
    at_leaf = dist.with_params(dist.params.detach().requires_grad_())
    z = at_leaf.relax(noise)
    sample = at_leaf.threshold(z).detach()
    value = f if isinstance(f, Tensor) else f(sample)
    return at_leaf, z, sample, value.detach()
