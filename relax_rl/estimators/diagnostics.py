"""How good an estimator is: the variance and bias of the applied gradient, with the certainty of the answer.

All of it works on independent draws of one gradient at fixed parameters, `[R, P]` float tensors: of the gradient that
would be applied, averaged over the whole batch, and not of its rows, whose covariance across a batch is then missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Bias", "Interval", "bias", "draws_of", "effective_sample_size_ratio", "variance"]

_RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A number and the bootstrap interval of 95% around it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Bias:
    """How far the mean of a gradient estimate lies from a reference.

    Attributes:
        relative: norm of the difference over the norm of the reference, an overestimate by the noise of the mean.
        largest_z: the largest component of the difference in standard errors; beyond 4 or so it is a bias.
        visible: the relative bias that these draws could have shown beyond 4 standard errors.
    """

    relative: float
    largest_z: float
    visible: float


def draws_of(draw: Callable[[], Tensor], num_draws: int) -> Tensor:
    """`[R, P]` independent gradients.

    Args:
        draw: one gradient, of any shape, from noise of its own at parameters that it leaves alone.
        num_draws: R, at least 2.

    Raises:
        ValueError: with fewer than two draws.
    """
    if num_draws < 2:
        raise ValueError(f"num_draws is {num_draws}, expected at least 2")
    return torch.stack([draw().detach().flatten() for _ in range(num_draws)])


def variance(draws: Tensor, *, generator: torch.Generator | None = None) -> Interval:
    """Total variance of the gradient, the trace of its covariance.

    Args:
        draws: `[R, P]` independent gradients at the same parameters.
        generator: of the resampling.
    """
    draws = draws.double()
    deviations = (draws - draws.mean(0)).square().sum(-1)
    correction = len(draws) / (len(draws) - 1)
    means = deviations[_resampled(len(draws), generator)].mean(-1) * correction
    return _interval(float(deviations.mean()) * correction, means)


def effective_sample_size_ratio(
    draws: Tensor, reference: Tensor, *, generator: torch.Generator | None = None
) -> Interval:
    """How many draws of the reference estimator one of this is worth: the ratio of their variances.

    Args:
        draws: `[R, P]` independent gradients of the estimator in question.
        reference: `[R', P]` of the one it is compared with, at the same parameters.
        generator: of the resampling.
    """
    draws, reference = draws.double(), reference.double()
    here, there = ((x - x.mean(0)).square().sum(-1) for x in (draws, reference))
    corrections = len(reference) / (len(reference) - 1) * (len(draws) - 1) / len(draws)
    above = there[_resampled(len(there), generator)].mean(-1)
    below = here[_resampled(len(here), generator)].mean(-1)
    return _interval(float(there.mean() / here.mean()) * corrections, above / below * corrections)


def bias(draws: Tensor, reference: Tensor) -> Bias:
    """Distance of the mean of `draws` `[R, P]` from a reference `[P]`, such as an enumerated gradient."""
    draws, reference = draws.double(), reference.double().flatten()
    error = draws.std(0) / len(draws) ** 0.5
    difference = draws.mean(0) - reference
    norm = reference.norm().clamp(min=torch.finfo(torch.float64).tiny)
    return Bias(
        relative=float(difference.norm() / norm),
        largest_z=float((difference / error.clamp(min=1e-300)).abs().max()),
        visible=float(4 * error.norm() / norm),
    )


def _resampled(count: int, generator: torch.Generator | None) -> Tensor:
    """`[resamples, count]` indices."""
    return torch.randint(count, (_RESAMPLES, count), generator=generator)


def _interval(value: float, resamples: Tensor) -> Interval:
    low, high = torch.quantile(resamples, torch.tensor([0.025, 0.975], dtype=resamples.dtype)).tolist()
    return Interval(value, low, high)
