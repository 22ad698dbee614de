"""The estimators as they compete: each with what it learns, for all seeds at once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from relax_rl.errors import SettingsError, did_you_mean
from relax_rl.estimators import ESTIMATORS, Estimate, describe, make_estimator, variance_loss
from relax_rl.experiments.toy.problem import Problem
from relax_rl.experiments.toy.seed_noise import SeededBernoulli, SeededCategorical, SeedNoise, generators

__all__ = ["APPLICABLE", "MEASURING", "Contestant", "Surrogate", "check_estimators", "make_contestant"]

Toy = SeededBernoulli | SeededCategorical
Estimator = Callable[..., Estimate]

MEASURING, _INITIAL, _STICKS = 1, 2, 3
"""Streams of a seed beside that of training, 0."""

APPLICABLE: tuple[str, ...] = tuple(
    name
    for name, info in ESTIMATORS.items()
    if name != "vimco" and {"bits", "categories"} & set(info.outcomes)  # vimco is for a bound on log E[w], not E[f]
)
"""Estimators of the gradient of E[f(b)] for a discrete b."""


@dataclass(frozen=True)
class Contestant:
    """An estimator with all that it learns, one row for every seed.

    Attributes:
        name: in the registry.
        estimate: `estimate(dist, **noise)` at a `[*, S, P]` distribution; nothing that it learns is changed by it.
        phi: what it learns, each `[S, ...]`.
        learned: the same in words, each `[S]`, for the record: eta, temperature, scale.
        control: c(z) `[*, S]` of relaxed samples `[*, S, P]`, where there is one.
        num_noises: of how many uniform numbers a bit's estimate is a function: 0, 1 or 2; None if that is not fixed.
        observe: called with every training estimate, before the step.
    """

    name: str
    estimate: Estimator
    phi: tuple[Tensor, ...] = ()
    learned: Callable[[], Mapping[str, Tensor]] = dict
    control: Callable[[Tensor], Tensor] | None = None
    num_noises: int | None = 1
    observe: Callable[[Estimate], None] = lambda _: None

    def loss(self, estimate: Estimate) -> Tensor:
        """What phi descends, summed over seeds: a baseline's squared error, else the squared norm of the estimate."""
        loss = variance_loss(estimate.grad) if estimate.fit_loss is None else estimate.fit_loss
        return loss * estimate.value.numel()


class Surrogate:
    """The published surrogate c(z) = scale MLP(2 sigma(z / lambda) - 1), one for every seed.

    The network has a hidden layer of 10 tanh units; the scale starts at 0 and lambda at 1/2, and both are learned.

    Args:
        seeds: of the initial weights (Glorot and Bengio 2010, uniform).
        width: P.
        soften: sigma(z / lambda), with values in [0, 1].
    """

    def __init__(self, seeds: Sequence[int], width: int, soften: Callable[[Tensor, Tensor], Tensor]) -> None:
        sources, hidden = generators(seeds, _INITIAL), 10
        self.first, self.last = _glorot(sources, width, hidden), _glorot(sources, hidden, 1)
        self.first_bias = torch.zeros(len(seeds), hidden, dtype=torch.float64, requires_grad=True)
        self.last_bias = torch.zeros(len(seeds), dtype=torch.float64, requires_grad=True)
        self.scale = torch.zeros(len(seeds), dtype=torch.float64, requires_grad=True)
        self.log_temperature = _log_temperature(len(seeds))
        self._soften = soften

    def __call__(self, z: Tensor) -> Tensor:
        """`[*, S]` c of `[*, S, P]`."""
        soft = self._soften(z, self.log_temperature.exp())
        hidden = torch.einsum("...sp,sph->...sh", 2 * soft - 1, self.first) + self.first_bias
        return self.scale * ((torch.tanh(hidden) * self.last.squeeze(-1)).sum(-1) + self.last_bias)

    def parameters(self) -> tuple[Tensor, ...]:
        """All of it, each `[S, ...]`."""
        return self.first, self.first_bias, self.last, self.last_bias, self.scale, self.log_temperature

    def learned(self) -> dict[str, Tensor]:
        """`[S]` scale and temperature."""
        return {"scale": self.scale.detach(), **_temperature(self.log_temperature)}


def check_estimators(names: Sequence[str], problem: Problem) -> None:
    """Raises SettingsError if one of them is unknown, or not for this problem."""
    for name in names:
        if name not in ESTIMATORS:
            near = did_you_mean(name, APPLICABLE)
            raise SettingsError(f"unknown estimator {name!r}{near}; for this problem there are {', '.join(APPLICABLE)}")
        if name not in APPLICABLE:
            why = "a bound of several samples" if name == "vimco" else "continuous outcomes"
            raise SettingsError(f"estimator {name!r} is for {why}, this problem takes {', '.join(APPLICABLE)}")
        if problem.kind not in describe(name).outcomes:
            fit = ", ".join(other for other in APPLICABLE if problem.kind in describe(other).outcomes)
            why = "bits" if "bits" in describe(name).outcomes else "one of several categories"
            raise SettingsError(f"estimator {name!r} is for {why}; with --outcomes {problem.outcomes} there are {fit}")


def make_contestant(name: str, problem: Problem, seeds: Sequence[int], *, coupling: str = "coupled") -> Contestant:
    """An estimator of the registry, with fresh learned parameters for every seed.

    Args:
        name: one that `check_estimators` lets pass.
        seeds: S of them, of the initial weights.
        coupling: of the noises of REBAR and RELAX.
    """
    return _BUILDERS.get(name, _plain)(name, problem, seeds, coupling)


def _plain(name: str, problem: Problem, seeds: Sequence[int], coupling: str) -> Contestant:
    """Estimators that learn nothing."""
    several = describe(name).evaluations == "K" or name == "gumbel-rao"
    noises = 0 if name == "enumerated" else None if several else 1
    return Contestant(name, partial(make_estimator(name), problem.f), num_noises=noises)


def _arms(name: str, problem: Problem, seeds: Sequence[int], coupling: str) -> Contestant:
    """Its copula takes uniform numbers, each seed's from its own generator."""
    count = inspect.signature(describe(name).function).parameters["num_samples"].default
    estimator = make_estimator(name)

    def estimate(dist: SeededBernoulli) -> Estimate:
        *lead, _, width = dist.params.shape
        shape = (count, *lead, width)
        each = [torch.rand(shape, generator=source, dtype=torch.float64) for source in dist.noise.generators]
        return estimator(problem.f, dist, noise=torch.stack(each, -2))

    return Contestant(name, estimate, num_noises=None)


def _antithetic(name: str, problem: Problem, seeds: Sequence[int], coupling: str) -> Contestant:
    """ARM and DisARM: their noise is that of bits, of the sticks for a category."""
    estimator = make_estimator(name)
    sticks = SeedNoise(seeds, "bits", _STICKS)

    def estimate(dist: Toy, noise: Tensor | None = None) -> Estimate:
        if noise is None and problem.kind == "categories":
            noise = sticks.draw((*dist.params.shape[:-1], dist.params.shape[-1] - 1)).to(dist.params.dtype)
        elif noise is None:
            noise = dist.sample_noise()
        return estimator(problem.f, dist, noise=noise)

    return Contestant(name, estimate)


class _MeanOfPast:
    """Moving means of f, one for every seed, where the estimator expects one for all.

    Its `std` is 0: f lies in [0, 1] here, where NVIL's division by max(1, std) does nothing.
    """

    std = 0.0

    def __init__(self, seeds: int) -> None:
        self.mean, self._weight = torch.zeros(seeds, dtype=torch.float64), 0.0

    def update(self, value: Tensor) -> None:
        """Called by every estimate, those that only measure the variance too: nothing is taken in."""

    def take(self, value: Tensor) -> None:
        """Take in a value `[S]` of training; the past has a weight of 0.9, and the start is not biased towards zero."""
        before = 0.9 * self._weight
        self._weight = before + 0.1
        self.mean = (before * self.mean + 0.1 * value.detach()) / self._weight


def _nvil(name: str, problem: Problem, seeds: Sequence[int], coupling: str) -> Contestant:
    """There is no input, so that the baseline network is a number."""
    baseline = torch.zeros(len(seeds), dtype=torch.float64, requires_grad=True)
    average = _MeanOfPast(len(seeds))

    def estimate(dist: Toy, **noise: Tensor) -> Estimate:
        expanded = baseline.expand(dist.params.shape[:-1])
        return make_estimator(name, baseline=expanded, average=average)(problem.f, dist, **noise)

    def observe(made: Estimate) -> None:
        average.take(made.value - baseline.detach())

    return Contestant(
        name, estimate, (baseline,), lambda: {"baseline": average.mean + baseline.detach()}, observe=observe
    )


def _muprop(name: str, problem: Problem, seeds: Sequence[int], coupling: str) -> Contestant:
    """With learned scales of the expansion's terms, which start at 1."""
    scales = {key: _ones(len(seeds)) for key in (("eta", "slope") if name == "muprop" else ("eta",))}
    return Contestant(
        name,
        partial(make_estimator(name, **scales), problem.f),
        tuple(scales.values()),
        lambda: {key: scale.detach() for key, scale in scales.items()},
    )


def _rebar(name: str, problem: Problem, seeds: Sequence[int], coupling: str) -> Contestant:
    eta, log_temperature = _ones(len(seeds)), _log_temperature(len(seeds))

    def estimate(dist: Toy, **noise: Tensor) -> Estimate:
        options = {"eta": eta, "temperature": log_temperature.exp(), **_coupled(coupling, noise)}
        return make_estimator(name, **options)(problem.f, dist, **noise)

    return Contestant(
        name,
        estimate,
        (eta, log_temperature),
        lambda: {"eta": eta.detach(), **_temperature(log_temperature)},
        lambda z: eta * problem.f(problem.soften(z, log_temperature.exp())),
        1 if coupling == "coupled" else 2,
    )


def _relax(name: str, problem: Problem, seeds: Sequence[int], coupling: str) -> Contestant:
    """RELAX and DLAX with the published surrogate."""
    surrogate = Surrogate(seeds, problem.num_params, problem.soften)
    estimator = make_estimator(name, surrogate=surrogate)
    two = name == "relax"

    def estimate(dist: Toy, **noise: Tensor) -> Estimate:
        options = _coupled(coupling, noise) if two else {}
        return estimator(problem.f, dist, **noise, **options)

    noises = 2 if two and coupling == "independent" else 1
    return Contestant(name, estimate, surrogate.parameters(), surrogate.learned, surrogate, noises)


def _marginal(name: str, problem: Problem, seeds: Sequence[int], coupling: str) -> Contestant:
    """With a free value of c for every outcome, which needs no network: c(b) = slope b + intercept, both 0 at first."""
    slope = torch.zeros(len(seeds), problem.num_params, dtype=torch.float64, requires_grad=True)
    intercept = torch.zeros(len(seeds), dtype=torch.float64, requires_grad=True)
    estimator = make_estimator(name, surrogate=lambda b: (b * slope).sum(-1) + intercept)
    return Contestant(
        name, partial(estimator, problem.f), (slope, intercept), lambda: {"intercept": intercept.detach()}
    )


_BUILDERS: Mapping[str, Callable[[str, Problem, Sequence[int], str], Contestant]] = {
    "arm": _antithetic,
    "arms": _arms,
    "disarm": _antithetic,
    "dlax": _relax,
    "marginal": _marginal,
    "muprop": _muprop,
    "nvil": _nvil,
    "rebar": _rebar,
    "relax": _relax,
    "simple-muprop": _muprop,
}


def _coupled(coupling: str, noise: Mapping[str, Tensor]) -> dict[str, Any]:
    """The coupling, unless the noise of z~ is given."""
    return {} if "conditional_noise" in noise else {"coupling": coupling}


def _ones(seeds: int) -> Tensor:
    return torch.ones(seeds, dtype=torch.float64, requires_grad=True)


def _log_temperature(seeds: int) -> Tensor:
    """`[S, 1]` log of 1/2."""
    return torch.full((seeds, 1), math.log(0.5), dtype=torch.float64).requires_grad_()


def _temperature(log_temperature: Tensor) -> dict[str, Tensor]:
    return {"temperature": log_temperature.detach().exp().squeeze(-1)}


def _glorot(sources: Sequence[torch.Generator], inputs: int, outputs: int) -> Tensor:
    """`[S, inputs, outputs]`, every seed's from its own generator."""
    limit = math.sqrt(6 / (inputs + outputs))
    each = [torch.rand(inputs, outputs, dtype=torch.float64, generator=source) for source in sources]
    return (torch.stack(each) * 2 * limit - limit).requires_grad_()
