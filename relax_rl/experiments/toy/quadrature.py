"""The variance of a gradient estimate without sampling: integrals over the uniform numbers that a bit comes from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from relax_rl.distributions import Bernoulli
from relax_rl.estimators import rebar
from relax_rl.experiments.toy.contestants import Contestant
from relax_rl.experiments.toy.problem import Problem
from relax_rl.experiments.toy.seed_noise import SeedNoise

__all__ = ["exact_variance", "lowest_rebar_variance", "uniform_nodes"]

ORDER = 32
"""Gauss-Legendre nodes in each piece on which the estimate is smooth."""
PIECES = 5
"""Of the way from a cut to 1/2, which grow with the distance from it: what varies near a cut varies as fast as it is near to the edge."""

TEMPERATURES: Sequence[float] = tuple(np.geomspace(0.05, 20, 121).tolist())
"""Temperatures among which the best one of REBAR is looked for."""


def exact_variance(contestant: Contestant, problem: Problem, params: Tensor, *, order: int = ORDER) -> Tensor | None:
    """`[S]` variance of one estimate at a bit's params `[S, 1]`, by quadrature over its noise.

    With b = 1[u > 1 - theta] the estimate is a smooth function of u on each side of 1 - theta (of theta too, for
    antithetic pairs), and for independent noises of v.

    Returns:
        None where the noise has more than two dimensions: several samples, or categories.
    """
    if problem.kind != "bits" or contestant.num_noises is None:
        return None
    if contestant.num_noises == 0:
        return torch.zeros(len(params), dtype=params.dtype)
    u, weight = uniform_nodes(problem.theta(params), order)
    noise = {"noise": torch.logit(u).unsqueeze(-1)}
    if contestant.num_noises == 2:
        v, v_weight = (torch.tensor(x, dtype=torch.float64).unsqueeze(-1) for x in _legendre(order))
        rows = (len(u), len(v), len(params))
        noise = {
            "noise": noise["noise"].unsqueeze(1).expand(*rows, 1),
            "conditional_noise": torch.logit(v).unsqueeze(-1).expand(*rows, 1),
        }
        weight = (weight.unsqueeze(1) * v_weight).flatten(0, 1)
    shape = noise["noise"].shape
    dist = problem.distribution(params.detach().expand(shape), SeedNoise((), problem.kind))
    grad = contestant.estimate(dist, **noise).grad.detach()
    return _variance(grad.reshape(-1, len(params)), weight)


def lowest_rebar_variance(problem: Problem, theta: float, *, temperatures: Sequence[float] = TEMPERATURES) -> float:
    """The least variance of REBAR with coupled noise over eta and these temperatures, at a bit's theta.

    The estimate is linear in eta, whose best value therefore is known at each temperature.
    """
    params = problem.params_at(theta, 1)
    u, weight = uniform_nodes(torch.tensor([theta], dtype=torch.float64), ORDER)
    noise = torch.logit(u).unsqueeze(-1)
    dist = Bernoulli(params.expand(noise.shape))
    least = float("inf")
    for temperature in temperatures:
        without, with_control = (
            rebar(problem.f, dist, eta=eta, temperature=temperature, noise=noise, coupling="coupled")
            .grad.detach()
            .squeeze(-1)
            for eta in (0.0, 1.0)
        )
        control = with_control - without
        deviation = control - (weight * control).sum(0)
        eta = -(weight * deviation * without).sum(0) / (weight * deviation.square()).sum(0)
        least = min(least, float(_variance(without + eta * control, weight)))
    return least


def uniform_nodes(theta: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Nodes u in (0, 1) and their weights, both `[Q, S]`, on the pieces that theta and 1 - theta `[S]` cut."""
    low = torch.minimum(theta, 1 - theta)
    grown = [low ** (1 - k / PIECES) * 0.5 ** (k / PIECES) for k in range(PIECES)]
    ends = [torch.zeros_like(low), *grown]
    edges = torch.stack([*ends, torch.full_like(low, 0.5), *(1 - edge for edge in reversed(ends))])
    nodes, weights = (torch.tensor(x, dtype=torch.float64) for x in _legendre(order))
    widths = edges[1:] - edges[:-1]
    u = edges[:-1, None] + widths[:, None] * nodes[:, None]
    return u.flatten(0, 1), (widths[:, None] * weights[:, None]).flatten(0, 1)


@lru_cache(maxsize=8)
def _legendre(order: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Nodes and weights of Gauss-Legendre quadrature on (0, 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    return tuple((0.5 * nodes + 0.5).tolist()), tuple((0.5 * weights).tolist())


def _variance(values: Tensor, weight: Tensor) -> Tensor:
    """Variance along the first dimension."""
    mean = (weight * values).sum(0)
    return (weight * (values - mean).square()).sum(0)
