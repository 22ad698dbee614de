"""A surrogate behind a relaxed action: c^(s, soften(z)) and its slope in z, without a graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relax_rl.critics.closed_form import Evaluation
from relax_rl.critics.surrogate import ActionSurrogate
from relax_rl.distributions import SlopedDistribution

__all__ = ["RelaxedControl", "relaxed_control"]


@dataclass(frozen=True)
class RelaxedControl:
    """c^ at K relaxed samples of each of B rows.

    Attributes:
        value: `[K, B]` c^(s, soften(z)).
        slope: `[K, B, ...]` its derivative in z.
    """

    value: Tensor
    slope: Tensor
    _surrogate: ActionSurrogate
    _dist: SlopedDistribution
    _z: Tensor
    _relaxed: Tensor
    _evaluation: Evaluation

    @torch.no_grad()
    def add_gradient(self, weight: Tensor, direction: Tensor) -> None:
        """Add the gradient of sum(weight value + direction . slope) in phi to `.grad`.

        Args:
            weight: `[K, B]`.
            direction: `[K, B, ...]`, in the space of z.
        """
        surrogate, dist, relaxed = self._surrogate, self._dist, self._relaxed
        temperature = surrogate.temperature
        along = dist.soften_slope(relaxed, direction, temperature)
        back, back_along = surrogate.add_gradient(self._evaluation, weight.flatten(), along.flatten(0, 1))
        curvature = getattr(dist, "soften_curvature", None)
        if curvature is None:  # nothing is softened by a temperature
            return
        # With kappa = log temperature: dsoften(z)/dkappa = -S z, and that of S direction by the product rule.
        change = -dist.soften_slope(relaxed, self._z, temperature)
        change_along = curvature(relaxed, change, direction / temperature) - along
        assert surrogate.log_temperature.grad is not None
        surrogate.log_temperature.grad.add_(
            torch.dot(back.flatten(), change.flatten()) + torch.dot(back_along.flatten(), change_along.flatten())
        )


@torch.no_grad()
def relaxed_control(
    surrogate: ActionSurrogate, dist: SlopedDistribution, features: Tensor, z: Tensor
) -> RelaxedControl:
    """Ask the surrogate.

    Args:
        surrogate: c^.
        dist: of the actions, `B` rows.
        features: `[B, F]` description of the states.
        z: `[K, B, ...]` relaxed samples.
    """
    count = len(z)
    relaxed = dist.soften(z, surrogate.temperature)
    flat = features.expand(count, *features.shape).flatten(0, 1)
    found = surrogate.evaluate(flat, relaxed.flatten(0, 1))
    slope = dist.soften_slope(relaxed, found.slope.view(relaxed.shape), surrogate.temperature)
    return RelaxedControl(found.value.view(z.shape[:2]), slope, surrogate, dist, z, relaxed, found)
