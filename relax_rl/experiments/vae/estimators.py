"""The registry's estimators for stacks of layers of bits, by the same names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from relax_rl.errors import SettingsError
from relax_rl.estimators import ESTIMATORS, arm, arms, disarm
from relax_rl.experiments.vae.antithetic_estimators import Antithetic
from relax_rl.experiments.vae.baselines import Baseline, Centring, InputBaseline
from relax_rl.experiments.vae.exact_estimators import MAX_BITS, Enumerated, Marginal
from relax_rl.experiments.vae.gradient import LayeredEstimator
from relax_rl.experiments.vae.multisample_estimators import DoubleControlVariates, Rodeo
from relax_rl.experiments.vae.pathwise_estimators import (
    Concrete,
    StraightThrough,
    gumbel_rao_slope,
    gumbel_slope,
    mean_slope,
    reinmax_slope,
)
from relax_rl.experiments.vae.relaxation_estimators import ParameterRebar, Relax, SurrogateContext
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork
from relax_rl.experiments.vae.score_estimators import MuProp, Reinforce, Rloo, Vimco
from relax_rl.experiments.vae.surrogate import ResidualNetwork, SurrogateActivation

__all__ = ["LAYERED", "EstimatorSettings", "make_layered_estimator"]


@dataclass(frozen=True, kw_only=True)
class EstimatorSettings:
    """The options of all estimators; each takes those that concern it.

    Attributes:
        num_samples: K of the estimators that take several samples.
        baseline: of reinforce.
        normalize_variance: nvil divides its signal by max(1, moving standard deviation).
        temperature: of the relaxation; where it is learned, at the start.
        num_conditional: z given b that gumbel-rao averages over.
        rebar_scope: learned scales of rebar for each parameter tensor, or for each layer; or for each layer with a control
            for each bit.
        surrogate: c = eta f(sigma(z)) + r(z); with each bit's other bits corrected; or r(z) alone.
        surrogate_context: what r is given beside z: input and bits before the layer, or the layer's logits alone.
        surrogate_depth, surrogate_width, surrogate_activation: of r.
    """

    num_samples: int = 2
    baseline: Baseline = "moving-average"
    normalize_variance: bool = False
    temperature: float = 0.5
    num_conditional: int = 10
    rebar_scope: Literal["parameter", "layer", "bit"] = "parameter"
    surrogate: Literal["corrected", "objective", "free"] = "corrected"
    surrogate_context: SurrogateContext = "logits"
    surrogate_depth: int = 1
    surrogate_width: int = 50
    surrogate_activation: SurrogateActivation = "relu"


_Maker = Callable[[EstimatorSettings, SigmoidBeliefNetwork, torch.Generator], LayeredEstimator]


def make_layered_estimator(
    name: str, settings: EstimatorSettings, model: SigmoidBeliefNetwork, generator: torch.Generator
) -> LayeredEstimator:
    """An estimator for the layers of a model.

    Args:
        name: a key of `relax_rl.estimators.ESTIMATORS` that applies to layers of bits.
        settings: those that concern it are used.
        model: whose sizes it takes.
        generator: of its initial weights.

    Raises:
        SettingsError: the estimator is not for bits, or not for a model of this size.
    """
    if name not in ESTIMATORS:
        raise SettingsError(f"unknown estimator {name!r}, expected one of {', '.join(LAYERED)}")
    if name not in LAYERED:
        raise SettingsError(f"{name} does not apply to layers of bits; there are {', '.join(LAYERED)}")
    return LAYERED[name](settings, model, generator)


def _residuals(
    settings: EstimatorSettings, model: SigmoidBeliefNetwork, generator: torch.Generator
) -> Sequence[ResidualNetwork]:
    context, networks = model.split, []
    for width in model.layers:
        seen = context if settings.surrogate_context == "input" else width
        networks.append(
            ResidualNetwork(
                seen,
                width,
                depth=settings.surrogate_depth,
                width=settings.surrogate_width,
                activation=settings.surrogate_activation,
                generator=generator,
            )
        )
        context += width
    return networks


def _several(least: int, make: Callable[[int], LayeredEstimator]) -> _Maker:
    """A maker of an estimator that takes K samples, at least `least`."""

    def maker(settings: EstimatorSettings, model: SigmoidBeliefNetwork, _: torch.Generator) -> LayeredEstimator:
        if settings.num_samples < least:
            raise SettingsError(f"num_samples is {settings.num_samples}, expected at least {least}")
        return make(settings.num_samples)

    return maker


def _score(baseline: Baseline | None = None, *, normalize: bool = False) -> _Maker:
    def maker(settings: EstimatorSettings, model: SigmoidBeliefNetwork, generator: torch.Generator) -> LayeredEstimator:
        normalized = normalize and settings.normalize_variance
        kind = baseline or settings.baseline
        return Reinforce(Centring(kind, model.split, normalize=normalized, generator=generator))

    return maker


def _muprop(*, slope: bool) -> _Maker:
    def maker(_: EstimatorSettings, model: SigmoidBeliefNetwork, generator: torch.Generator) -> LayeredEstimator:
        return MuProp([Centring("input", model.split, generator=generator) for _ in model.layers], slope=slope)

    return maker


def _pathwise(make: Callable[[EstimatorSettings], LayeredEstimator]) -> _Maker:
    return lambda settings, model, generator: make(settings)


def _relax(*, conditional: bool) -> _Maker:
    def maker(settings: EstimatorSettings, model: SigmoidBeliefNetwork, generator: torch.Generator) -> LayeredEstimator:
        return Relax(
            model.layers,
            residuals=_residuals(settings, model, generator),
            objective=settings.surrogate != "free",
            corrected=settings.surrogate == "corrected",
            temperature=settings.temperature,
            conditional=conditional,
            context=settings.surrogate_context,
        )

    return maker


def _rebar(settings: EstimatorSettings, model: SigmoidBeliefNetwork, generator: torch.Generator) -> LayeredEstimator:
    if settings.rebar_scope != "parameter":
        return Relax(model.layers, temperature=settings.temperature, corrected=settings.rebar_scope == "bit")
    baseline = InputBaseline(model.split, generator=generator)
    return ParameterRebar(len(model.encoder_parameters), baseline, temperature=settings.temperature)


def _disarm(settings: EstimatorSettings, model: SigmoidBeliefNetwork, _: torch.Generator) -> LayeredEstimator:
    if settings.num_samples < 2 or settings.num_samples % 2:
        raise SettingsError(f"num_samples is {settings.num_samples}, but disarm takes pairs: an even number is needed")
    return Antithetic(disarm, groups=settings.num_samples // 2)


def _rodeo(settings: EstimatorSettings, model: SigmoidBeliefNetwork, generator: torch.Generator) -> LayeredEstimator:
    if settings.num_samples < 2:
        raise SettingsError(f"num_samples is {settings.num_samples}, expected at least 2")
    return Rodeo(settings.num_samples, generator=generator)


def _small(make: Callable[[], LayeredEstimator], size: Callable[[Sequence[int]], int]) -> _Maker:
    """A maker of an estimator that sums over all outcomes of `size(layers)` bits."""

    def maker(_: EstimatorSettings, model: SigmoidBeliefNetwork, __: torch.Generator) -> LayeredEstimator:
        if size(model.layers) > MAX_BITS:
            raise SettingsError(
                f"a sum over all outcomes of {size(model.layers)} bits is out of reach, expected at most {MAX_BITS}; "
                "take narrower layers or an estimator that samples"
            )
        return make()

    return maker


LAYERED: Mapping[str, _Maker] = {
    "reinforce": _score(),
    "nvil": _score("input", normalize=True),
    "rloo": _several(2, Rloo),
    "vimco": _several(2, Vimco),
    "simple-muprop": _muprop(slope=False),
    "muprop": _muprop(slope=True),
    "concrete": _pathwise(lambda settings: Concrete(settings.temperature)),
    "straight-through": _pathwise(lambda settings: StraightThrough(mean_slope)),
    "straight-through-gumbel": _pathwise(lambda settings: StraightThrough(gumbel_slope(settings.temperature))),
    "gumbel-rao": _pathwise(
        lambda settings: StraightThrough(gumbel_rao_slope(settings.temperature, settings.num_conditional))
    ),
    "reinmax": _pathwise(lambda settings: StraightThrough(reinmax_slope())),
    "dlax": _relax(conditional=False),
    "rebar": _rebar,
    "relax": _relax(conditional=True),
    "arm": _pathwise(lambda settings: Antithetic(arm)),
    "disarm": _disarm,
    "arms": _several(2, lambda count: Antithetic(partial(arms, num_samples=count), given_noise=False)),
    "double-cv": _several(2, DoubleControlVariates),
    "rodeo": _rodeo,
    "marginal": _small(Marginal, max),
    "enumerated": _small(Enumerated, sum),
}
"""By registry name, how an estimator for layers of bits is made."""
