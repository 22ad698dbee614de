"""The pathwise gradient through a rejection sampler, and its correction: gamma, beta and Dirichlet variables."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from relax_rl.distributions import Beta, Dirichlet, Gamma
from relax_rl.distributions.gamma_variables import accepted, proposals, transformed
from relax_rl.estimators.draws import check_wrapped, detached, values_for
from relax_rl.estimators.estimate import Estimate
from relax_rl.estimators.gradients import value_and_gradient

__all__ = ["rejection"]

Positive = Beta | Dirichlet | Gamma


def rejection(
    f: Callable[[Tensor], Tensor],
    dist: Positive,
    *,
    boost: int = 1,
    baseline: Tensor | float = 0.0,
    noise: tuple[Tensor, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Rejection-sampling reparameterisation (Naesseth, Ruiz, Linderman and Blei 2017, algorithm 1). Unbiased.

    Every gamma variable at a = concentration + boost is h(eps; a), Marsaglia and Tsang's proposal for the normal eps that
    was accepted, times boost many powers of uniform numbers; a beta or Dirichlet variable is made of them.

        g = f'(b) dh(eps) + (f(b) - baseline) d[log q(h(eps); a) + log h'(eps)]

    The second term is the score of what an accepted eps is distributed as. It shrinks as the concentrations or `boost`
    grow, and what is left is the pathwise gradient; the implicit gradient of `reparameterized` has no such term.

    Args:
        f: a differentiable function of the samples.
        dist: `Gamma`, `Beta` or `Dirichlet`.
        boost: by how much concentrations are raised for the proposals, at least 1.
        baseline: a number or `[*]`, independent of the sample, for the second term.
        noise: normals `[*, G]` that were accepted and exponentials `[boost, *, G]` of the uniform numbers, for the G gamma
            variables of a row; drawn from `generator` by default.
        generator: of the noise; torch's global one by default.

    Returns:
        the estimate, from one sample a row; its `value` is f(b).

    Raises:
        ValueError: for other distributions, a boost below 1, or when f does not give one number a row.
    """
    check_wrapped(dist)
    if not isinstance(dist, Positive):
        raise ValueError(f"rejection is for Gamma, Beta and Dirichlet outcomes, not for {type(dist).__name__}")
    if boost < 1:
        raise ValueError(f"boost is {boost}, expected at least 1")
    here = detached(dist)
    with torch.no_grad():
        normal, lowered = _noise(_concentrations(here) + boost, boost, generator) if noise is None else noise
        sample = _sample(here, normal, lowered)
    value, slope = value_and_gradient(f, sample)
    value = values_for(here, value)
    signal = value.detach() - baseline

    def surrogate(params: Tensor) -> Tensor:
        at = here.with_params(params)
        pathwise = (_sample(at, normal, lowered) * slope).sum(-1)
        return pathwise + signal * _log_density_of_normals(_concentrations(at) + boost, normal)

    _, grad = value_and_gradient(surrogate, here.params)
    return Estimate(sample, value, grad, dist.params)


def _noise(raised: Tensor, boost: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    normal = accepted(raised, proposals(tuple(raised.shape), raised, generator))[1]
    lowered = torch.empty((boost, *raised.shape), device=raised.device, dtype=raised.dtype)
    return normal, lowered.exponential_(generator=generator)


def _concentrations(dist: Positive) -> Tensor:
    """`[*, G]` of the gamma variables that a sample is made of."""
    return torch.cat(dist.concentrations, -1) if isinstance(dist, Beta) else dist.concentration


def _sample(dist: Positive, normal: Tensor, lowered: Tensor) -> Tensor:
    """The outcome as a function of `params`, of normals `[*, G]` and of exponentials `[boost, *, G]`."""
    a, boost = _concentrations(dist), len(lowered)
    steps = torch.arange(boost, device=a.device, dtype=a.dtype).reshape(-1, *[1] * a.dim())
    log_gamma = transformed(a + boost, normal).log() - (lowered / (a + steps)).sum(0)
    tiny = torch.finfo(a.dtype).tiny
    if isinstance(dist, Gamma):
        return (log_gamma - dist.params.chunk(2, -1)[1]).exp().clamp(min=tiny)
    if isinstance(dist, Beta):
        first, second = log_gamma.chunk(2, -1)
        edge = torch.finfo(a.dtype).eps
        return torch.sigmoid(first - second).clamp(edge, 1.0 - edge)
    return log_gamma.softmax(-1).clamp(min=tiny)


def _log_density_of_normals(a: Tensor, normal: Tensor) -> Tensor:
    """`[*]` log q(h; a) + log dh / dnormal at h = h(normal; a), up to what does not depend on a."""
    h = transformed(a, normal)
    d = a - 1.0 / 3.0
    log_slope = 0.5 * d.log() + 2.0 * torch.log1p(normal / (3.0 * d.sqrt()))
    return ((a - 1.0) * h.log() - h - torch.lgamma(a) + log_slope).sum(-1)
