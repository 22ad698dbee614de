"""Controls by the chain rule at z, for distributions that know the derivatives of their relaxation.

With J = dz/dparams, dc(z) = J' c'(z): only c is left to be differentiated, and a surrogate that brings its slope c' saves
that as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from relax_rl.distributions import SlopedDistribution, SlopedRelaxation
from relax_rl.estimators.gradients import Weight, check_rows, value_and_gradient, weighted

__all__ = [
    "SlopedSurrogate",
    "Surrogate",
    "control_through_both",
    "control_through_coupled",
    "control_through_z",
    "is_sloped",
    "is_sloped_relaxation",
]

Surrogate = Callable[[Tensor], Tensor]
"""c: relaxed samples z `[*, A]` to `[*]` values, differentiable twice, or a `SlopedSurrogate`."""


class SlopedSurrogate(Protocol):
    """A surrogate that knows its slope, so that no graph need be differentiated twice."""

    def __call__(self, z: Tensor) -> Tensor:
        """`[*]` c at `[*, A]` relaxed samples."""

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """`[*]` c and `[*, A]` dc/dz, both differentiable in phi, once; whatever dimensions lead."""


def is_sloped(dist: Any) -> TypeGuard[SlopedDistribution]:
    """Whether J is known."""
    return hasattr(dist, "pull_back") and getattr(dist, "sloped", True)


def is_sloped_relaxation(dist: Any) -> TypeGuard[SlopedRelaxation]:
    """Whether J is known, and that of z~."""
    return is_sloped(dist) and hasattr(dist, "conditional_weight")


def control_through_z(surrogate: Surrogate, dist: SlopedDistribution, z: Tensor) -> tuple[Tensor, Tensor]:
    """c(z) `[*]` and dc(z) `[*, P]`, with the graph that leads to phi."""
    control, slope = _value_and_slope(surrogate, z)
    check_rows(dist.params.shape[:-1], control=control)
    return control, dist.pull_back(slope, z)


def control_through_both(
    surrogate: Surrogate,
    dist: SlopedRelaxation,
    sample: Tensor,
    z: Tensor,
    z_tilde: Tensor,
    *,
    residual_weight: Weight = 1.0,
) -> tuple[Tensor, Tensor]:
    """c(z~) `[*]` and dc(z) - w dc(z~) `[*, P]`, with the graph that leads to phi.

    Args:
        surrogate: c; one that knows its slope is asked once, for all z at a time.
        dist: without graph.
        sample: b.
        z: of b.
        z_tilde: another one given b, or `[m, *, ...]` of them: c(z~) is the mean then.
        residual_weight: w.
    """
    rows, many = dist.params.shape[:-1], z_tilde.dim() > z.dim()
    if hasattr(surrogate, "value_and_slope"):
        everywhere = torch.cat([z.unsqueeze(0), z_tilde if many else z_tilde.unsqueeze(0)])
        (control, conditional), (slope, conditional_slope) = (
            (x[0], x[1:]) if many else x.unbind() for x in surrogate.value_and_slope(everywhere)
        )
    else:
        control, slope = _value_and_slope(surrogate, z)
        conditional, conditional_slope = _value_and_slope(surrogate, z_tilde)
    if many:
        check_rows((len(z_tilde), *rows), conditional_control=conditional)
        conditional = conditional.mean(0)
    check_rows(rows, control=control, conditional_control=conditional)
    conditional_slope = dist.conditional_weight(sample, z_tilde) * conditional_slope
    conditional_slope = weighted(residual_weight, conditional_slope.mean(0) if many else conditional_slope)
    return conditional, dist.pull_back(slope - conditional_slope, z)


def control_through_coupled(
    surrogate: Surrogate, dist: SlopedRelaxation, sample: Tensor, z: Tensor, *, residual_weight: Weight = 1.0
) -> tuple[Tensor, Tensor]:
    """`control_through_both` where z~ = z, so that c and its slope at z serve both: c(z) and c'(z) (dz - w dz~)."""
    control, slope = _value_and_slope(surrogate, z)
    check_rows(dist.params.shape[:-1], control=control)
    return control, dist.pull_back((1.0 - weighted(residual_weight, dist.conditional_weight(sample, z))) * slope, z)


def _value_and_slope(surrogate: Surrogate, z: Tensor) -> tuple[Tensor, Tensor]:
    """c(z) and c'(z): the surrogate's own slope, or that of its graph."""
    if hasattr(surrogate, "value_and_slope"):
        found: tuple[Tensor, Tensor] = surrogate.value_and_slope(z)
        return found
    return value_and_gradient(surrogate, z, create_graph=True)
