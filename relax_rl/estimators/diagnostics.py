"""How good an estimator is: the variance and bias of the applied gradient, with the certainty of the answer.

Most of it works on independent draws of one gradient at fixed parameters, `[R, P]` float tensors: of the gradient that
would be applied, averaged over the whole batch, and not of its rows, whose covariance across a batch is then missing.
For policies, `variance_parts` says where the variance of a single row comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Bias",
    "Interval",
    "VarianceParts",
    "bias",
    "draws_of",
    "effective_sample_size_ratio",
    "mean",
    "squared_distance",
    "squared_norm",
    "variance",
    "variance_parts",
]

_RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A number, `value`, and the bootstrap interval of 95% around it, from `low` to `high`."""

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


@dataclass(frozen=True)
class VarianceParts:
    """Where the variance of a policy gradient's row comes from (Tucker et al. 2018, eq. 2), traces of covariances.

    Attributes:
        trajectory: E[Var(g | s, a)], from what happens after the action; no baseline of state and action changes it.
        action: E[Var(E[g | s, a] | s)], from the choice of the action; an action-dependent baseline works on this.
        state: Var(E[g | s]), from the choice of the state.
        total: their sum.
    """

    trajectory: Interval
    action: Interval
    state: Interval
    total: Interval


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


def mean(values: Tensor, *, generator: torch.Generator | None = None) -> Interval:
    """Mean of independent numbers.

    Args:
        values: `[R]`.
        generator: of the resampling.
    """
    values = values.double()
    return _interval(float(values.mean()), values[_resampled(values, generator)].mean(-1))


def squared_norm(draws: Tensor) -> float:
    """Squared norm of the mean gradient, without the bias that the variance adds to the norm of `draws`'s mean.

    Args:
        draws: `[R, P]` independent gradients.
    """
    return float(_mean_product(draws.double()))


def squared_distance(draws: Tensor, reference: Tensor, *, generator: torch.Generator | None = None) -> Interval:
    """Squared distance between two mean gradients, without the bias that variances add, so that a small one may fall below 0.

    Args:
        draws: `[R, P]` independent gradients of one estimator.
        reference: `[R, P]` of another at the same parameters; row i of both comes from the same samples.
        generator: of the resampling.

    Raises:
        ValueError: with fewer than two draws, or when they differ in number.
    """
    if len(draws) != len(reference) or len(draws) < 2:
        raise ValueError(f"paired draws come in equal numbers of at least 2, not {len(draws)} and {len(reference)}")
    difference = draws.double() - reference.double()
    products, rows = difference @ difference.T, _resampled(difference, generator)
    return _interval(float(_mean_product(difference)), _mean_of_pairs(products, _counts(rows)))


def variance(draws: Tensor, *, generator: torch.Generator | None = None) -> Interval:
    """Total variance of the gradient, the trace of its covariance.

    Args:
        draws: `[R, P]` independent gradients at the same parameters.
        generator: of the resampling.
    """
    draws = draws.double()
    deviations = (draws - draws.mean(0)).square().sum(-1)
    correction = len(draws) / (len(draws) - 1)
    means = deviations[_resampled(deviations, generator)].mean(-1) * correction
    return _interval(float(deviations.mean()) * correction, means)


def effective_sample_size_ratio(
    draws: Tensor, reference: Tensor, *, paired: bool = False, generator: torch.Generator | None = None
) -> Interval:
    """How many draws of the reference estimator one of this is worth: the ratio of their variances.

    Args:
        draws: `[R, P]` independent gradients of the estimator in question.
        reference: `[R', P]` of the one it is compared with, at the same parameters.
        paired: row i of both comes from the same samples; most of their noise is then common, and the interval narrow.
        generator: of the resampling.

    Raises:
        ValueError: when paired draws differ in number.
    """
    if paired and len(draws) != len(reference):
        raise ValueError(f"paired draws come in equal numbers, not {len(draws)} and {len(reference)}")
    draws, reference = draws.double(), reference.double()
    here, there = ((x - x.mean(0)).square().sum(-1) for x in (draws, reference))
    corrections = len(reference) / (len(reference) - 1) * (len(draws) - 1) / len(draws)
    rows = _resampled(here, generator)
    below = here[rows].mean(-1)
    above = there[rows if paired else _resampled(there, generator)].mean(-1)
    return _interval(float(there.mean() / here.mean()) * corrections, above / below * corrections)


def variance_parts(
    draws: Tensor, *, given_action: Tensor | None = None, generator: torch.Generator | None = None
) -> VarianceParts:
    """The variance of single gradients split by its causes, each part without bias, so that a small one may fall below 0.

    Products of draws that share a state, or a state and an action, but nothing else have the squared norms of the
    conditional means as their expectations; no mean has to be estimated.

    Args:
        draws: `[S, A, C, P]` gradients at S independent states, A >= 2 independent actions in each, and C >= 2
            independent continuations of each action that share the action's noise.
        given_action: `[S]` unbiased estimates of E[|E[g | s, a]|^2 | s] to take the place of those from `draws`: for a
            baseline in the state alone that is itself known by independent estimates only.
        generator: of the resampling, which draws states.

    Raises:
        ValueError: with fewer than two states, actions or continuations.
    """
    if min(draws.shape[:3]) < 2:
        raise ValueError(f"draws are {tuple(draws.shape)}, expected at least 2 states, actions and continuations")
    draws = draws.double()
    squared = draws.square().sum((-1, -2)) / draws.shape[2]
    of_pairs = _mean_product(draws).mean(1)
    action_means = draws.mean(2)
    given_state = _mean_product(action_means)
    state_means = action_means.mean(1)
    products = state_means @ state_means.T
    second_moment = of_pairs if given_action is None else given_action.double()
    columns = torch.stack([squared.mean(1) - of_pairs, second_moment - given_state, given_state], -1)

    def parts(counts: Tensor) -> Tensor:
        """`[..., 4]` parts when state i is counted `counts[..., i]` times."""
        means = counts @ columns / counts.sum(-1, keepdim=True)
        state = means[..., 2] - _mean_of_pairs(products, counts)
        return torch.stack([means[..., 0], means[..., 1], state, means[..., 0] + means[..., 1] + state], -1)

    counts = _counts(_resampled(draws, generator))
    values = parts(torch.ones_like(counts[0]))
    return VarianceParts(*(_interval(float(v), x) for v, x in zip(values, parts(counts).unbind(-1), strict=True)))


def bias(draws: Tensor, reference: Tensor) -> Bias:
    """Distance of the mean gradient from a reference.

    Args:
        draws: `[R, P]` independent gradients.
        reference: `[P]`, such as an enumerated gradient.
    """
    rounding = 4 * max(torch.finfo(draws.dtype).eps, torch.finfo(reference.dtype).eps)
    draws, reference = draws.double(), reference.double().flatten()
    error = (draws.std(0) / len(draws) ** 0.5).maximum(rounding * reference.abs())
    difference = draws.mean(0) - reference
    norm = reference.norm().clamp(min=torch.finfo(torch.float64).tiny)
    return Bias(
        relative=float(difference.norm() / norm),
        largest_z=float((difference / error.clamp(min=1e-300)).abs().max()),
        visible=float(4 * error.norm() / norm),
    )


def _mean_product(draws: Tensor) -> Tensor:
    """`[*]` mean of x_i . x_j over pairs i != j of `[*, C, P]` vectors."""
    count = draws.shape[-2]
    everything, same = draws.sum(-2).square().sum(-1), draws.square().sum((-1, -2))
    return (everything - same) / (count * (count - 1))


def _mean_of_pairs(products: Tensor, counts: Tensor) -> Tensor:
    """`[*]` mean of x_i . x_j over pairs i != j, from `[R, R]` products, x_i being there `counts[*, i]` times.

    One that is there twice is no pair.
    """
    pairs = counts.sum(-1).square() - counts.square().sum(-1)
    apart = products - torch.diag(products.diagonal())
    return ((counts @ apart) * counts).sum(-1) / pairs.clamp(min=1.0)


def _counts(rows: Tensor) -> Tensor:
    """`[resamples, R]` how often each row is in a resample `[resamples, R]` of indices."""
    ones = torch.ones_like(rows, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add_(1, rows, ones)


def _resampled(rows: Tensor, generator: torch.Generator | None) -> Tensor:
    """`[resamples, R]` indices into `[R, ...]` rows, on their device; drawn where the generator lives."""
    home = "cpu" if generator is None else generator.device
    return torch.randint(len(rows), (_RESAMPLES, len(rows)), generator=generator, device=home).to(rows.device)


def _interval(value: float, resamples: Tensor) -> Interval:
    low, high = torch.quantile(resamples, resamples.new_tensor([0.025, 0.975])).tolist()
    return Interval(value, low, high)
