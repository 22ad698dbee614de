"""Exact answers to test against: enumeration, quadrature, differences, and z-tests whose power is stated.

Nothing here uses the formulas under test: probabilities come from `torch.distributions`, in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributions as td

from relax_rl.distributions import (
    Bernoulli,
    Categorical,
    DiagGaussian,
    Distribution,
    MultiCategorical,
)

__all__ = [
    "Function",
    "RowStatistics",
    "assert_unbiased",
    "central_differences",
    "collect",
    "exact_gradient",
    "gradient_by_quadrature",
    "noise_grid",
    "outcomes",
    "probabilities",
    "rejects",
    "repeat",
    "z_scores",
]

Function = Callable[[Tensor], Tensor]
D = TypeVar("D", bound=Distribution)


def outcomes(dist: Distribution) -> Tensor:
    """Every outcome of one row: `[M]` or `[M, K]`, in the type of a sample."""
    if isinstance(dist, Categorical):
        return torch.arange(dist.params.shape[-1])
    if isinstance(dist, MultiCategorical):
        return torch.tensor(list(itertools.product(*(range(n) for n in dist.nvec))))
    if isinstance(dist, Bernoulli):
        return torch.tensor(list(itertools.product((0.0, 1.0), repeat=dist.params.shape[-1])), dtype=dist.params.dtype)
    raise TypeError(f"no enumeration of {type(dist).__name__}")


def probabilities(dist: Distribution, params: Tensor | None = None) -> Tensor:
    """`[M]` probability of each of the `outcomes` of the first row, float64, differentiable in `params` `[P]`."""
    row = dist.params[0].detach().double() if params is None else params
    every = outcomes(dist)
    factors: list[Tensor]
    if isinstance(dist, Categorical):
        factors = [td.Categorical(logits=row).log_prob(every)]
    elif isinstance(dist, Bernoulli):
        factors = [td.Bernoulli(logits=row).log_prob(every.double()).sum(-1)]
    else:
        assert isinstance(dist, MultiCategorical)
        factors = [td.Categorical(logits=x).log_prob(every[:, k]) for k, x in enumerate(row.split(dist.nvec))]
    return torch.stack(factors).sum(0).exp()


def one_hot_outcomes(dist: Distribution) -> Tensor:
    """The `outcomes` of a categorical, factor by factor as rows of the identity."""
    table = outcomes(dist)
    if isinstance(dist, MultiCategorical):
        return torch.cat([torch.eye(n, dtype=torch.float64)[table[:, k]] for k, n in enumerate(dist.nvec)], -1)
    return torch.eye(dist.params.shape[-1], dtype=torch.float64)[table]


def exact_gradient(dist: Distribution, f: Function) -> Tensor:
    """`[P]` gradient of E[f(b)] at the first row of `dist.params`, by enumeration."""
    row = dist.params[0].detach().double().requires_grad_()
    here = dist.with_params(row[None])
    value = f(one_hot_outcomes(here) if getattr(here, "one_hot", False) else outcomes(here)).double()
    (gradient,) = torch.autograd.grad((probabilities(dist, row) * value).sum(), row)
    return gradient


def gradient_by_quadrature(dist: DiagGaussian, f: Function) -> Tensor:
    """`[P]` gradient of E[f(z)] at the first row of a Gaussian, by the trapezoidal rule on +-9 standard deviations."""
    row = dist.params[0].detach().double().requires_grad_()
    mean, log_std = row.chunk(2)
    nodes, weights = noise_grid(dist, 60, reach=9.0)
    z = (mean + log_std.exp() * nodes).detach()
    # The nodes stay where they are; the density moves with the parameters.
    log_ratio = td.Normal(mean, log_std.exp()).log_prob(z).sum(-1)
    (gradient,) = torch.autograd.grad((weights * f(z).double() * torch.exp(log_ratio - log_ratio.detach())).sum(), row)
    return gradient


def noise_grid(dist: Distribution, count: int, reach: float | None = None) -> tuple[Tensor, Tensor]:
    """A product rule for expectations over the noise of one row: `[R, D]` nodes and `[R]` weights that sum to 1.

    The trapezoidal rule on the density itself, which converges exponentially for analytic integrands. `count` nodes a
    dimension; without `reach` the range leaves out less than 1e-12 of Gumbel noise, 1e-14 of logistic noise.
    """
    dims = dist.params.shape[-1]
    if isinstance(dist, DiagGaussian):
        dims, span = dims // 2, (-(reach or 8.0), reach or 8.0)
        density: Function = lambda x: -0.5 * x.square()  # noqa: E731
    elif isinstance(dist, Bernoulli):
        span = (-(reach or 33.0), reach or 33.0)
        density = lambda x: -x - 2 * torch.nn.functional.softplus(-x)  # noqa: E731
    else:
        span = (-4.0, reach or 28.0)
        density = lambda x: -x - torch.exp(-x)  # noqa: E731
    axis = torch.linspace(*span, count, dtype=torch.float64)
    weight = torch.softmax(density(axis), 0)
    nodes = torch.cartesian_prod(*[axis] * dims).reshape(-1, dims)
    weights = torch.cartesian_prod(*[weight] * dims).reshape(-1, dims).prod(-1)
    return nodes, weights


def central_differences(f: Callable[[], Tensor | float], x: Tensor, *, every: int = 1, step: float = 1e-5) -> Tensor:
    """`[M, ...]` derivatives of f() in every so many-th of the entries of `x`, which f reads where it stands."""
    entries, found = x.detach().view(-1), []
    for index in range(0, len(entries), every):
        before = float(entries[index])
        entries[index] = before + step
        above = torch.as_tensor(f()).detach()
        entries[index] = before - step
        found.append((above - torch.as_tensor(f()).detach()) / (2 * step))
        entries[index] = before
    return torch.stack(found)


def repeat(dist: D, rows: int) -> D:
    """The first row of `dist`, `rows` times."""
    return dist.with_params(dist.params[:1].detach().expand(rows, -1))


@dataclass(frozen=True)
class RowStatistics:
    """Mean `[P]`, its standard error `[P]` and the variance summed over components, of independent rows."""

    mean: Tensor
    standard_error: Tensor
    variance: float


def collect(draw: Callable[[int], Tensor], rows: int, chunk: int = 62_500) -> RowStatistics:
    """Statistics of `rows` rows `[chunk, P]` of draw(chunk), accumulated in float64."""
    total = squares = torch.zeros(())
    for _ in range(rows // chunk):
        x = draw(chunk).detach().double()
        total, squares = total + x.sum(0), squares + x.square().sum(0)
    count = rows // chunk * chunk
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0.0) * count / (count - 1)
    return RowStatistics(mean, (variance / count).sqrt(), float(variance.sum()))


def z_scores(statistics: RowStatistics, exact: Tensor) -> Tensor:
    """`[P]` distance of the mean from `exact`, in standard errors."""
    return (statistics.mean - exact) / statistics.standard_error.clamp(min=1e-12)


def assert_unbiased(statistics: RowStatistics, exact: Tensor, power: float = 0.01) -> None:
    """Every component within 4 standard errors, in a test that could have seen a bias of `power` times the norm.

    For if a bias vector is longer than the vector of the 4 standard errors, it exceeds them in one component at least.
    """
    visible = 4 * float(statistics.standard_error.norm() / exact.norm())
    assert visible < power, f"too few draws: only a bias above {visible:.2%} of the gradient would be seen"
    scores = z_scores(statistics, exact)
    assert scores.abs().max() < 4, f"biased: z = {scores.tolist()}, mean {statistics.mean}, exact {exact}"


def rejects(statistics: RowStatistics, exact: Tensor) -> bool:
    """Whether the z-test finds a bias beyond any doubt."""
    return bool(z_scores(statistics, exact).abs().max() > 8)
