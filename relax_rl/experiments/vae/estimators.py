"""The registry's estimators for stacks of layers of bits, by the same names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from relax_rl.distributions import Bernoulli
from relax_rl.errors import SettingsError
from relax_rl.estimators import ESTIMATORS, arm, arms, disarm
from relax_rl.estimators.pathwise import moving_gumbel_rao, moving_mean, moving_reinmax, moving_softened
from relax_rl.experiments.vae.baselines import Baseline, Centring, InputBaseline
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.experiments.vae.controls import ResidualNetwork
from relax_rl.experiments.vae.exact import MAX_BITS, enumerated, marginal
from relax_rl.experiments.vae.gradient import Gradient, LayeredEstimator
from relax_rl.experiments.vae.noise import Noise
from relax_rl.experiments.vae.pathwise import concrete, straight_through
from relax_rl.experiments.vae.relaxation import ParameterRebar, Relax
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork
from relax_rl.experiments.vae.score import DoubleControlVariates, MuProp, Reinforce, Rodeo, antithetic, rloo, vimco

__all__ = ["LAYERED", "make_layered_estimator"]

_Maker = Callable[[VaeConfig, SigmoidBeliefNetwork, torch.Generator], LayeredEstimator]


def make_layered_estimator(
    name: str, config: VaeConfig, model: SigmoidBeliefNetwork, generator: torch.Generator
) -> LayeredEstimator:
    """An estimator for the layers of a model.

    Args:
        name: a key of `relax_rl.estimators.ESTIMATORS` that applies to layers of bits.
        config: the settings that concern it are used; not `estimator`.
        model: whose sizes it takes.
        generator: of its initial weights.

    Raises:
        SettingsError: the estimator is not for bits, or not for a model of this size, or takes another number of samples.
    """
    if name not in ESTIMATORS:
        raise SettingsError(f"unknown estimator {name!r}, expected one of {', '.join(LAYERED)}")
    if name not in LAYERED:
        raise SettingsError(f"{name} does not apply to layers of bits; there are {', '.join(LAYERED)}")
    samples = config.num_samples
    if name == "disarm" and (samples < 2 or samples % 2):
        raise SettingsError(f"num_samples is {samples}, but disarm takes pairs: an even number is needed")
    if ESTIMATORS[name].evaluations == "K" and samples < 2:
        raise SettingsError(f"num_samples is {samples}, expected at least 2")
    summed = {"marginal": max(model.layers), "enumerated": sum(model.layers)}.get(name, 0)
    if summed > MAX_BITS:
        raise SettingsError(
            f"a sum over all outcomes of {summed} bits is out of reach, expected at most {MAX_BITS}; "
            "take narrower layers or an estimator that samples"
        )
    return LAYERED[name](config, model, generator)


def _function(make: Callable[[VaeConfig], Callable[..., Gradient]]) -> _Maker:
    """A maker of an estimator that learns nothing, given what it does with a batch."""
    return lambda config, model, generator: LayeredEstimator(make(config))


def _reinforce(
    config: VaeConfig, model: SigmoidBeliefNetwork, generator: torch.Generator, *, baseline: Baseline | None = None
) -> LayeredEstimator:
    normalize = baseline is not None and config.normalize_variance
    return Reinforce(Centring(baseline or config.baseline, model.split, normalize=normalize, generator=generator))


def _muprop(_: VaeConfig, model: SigmoidBeliefNetwork, generator: torch.Generator, *, slope: bool) -> LayeredEstimator:
    return MuProp([Centring("input", model.split, generator=generator) for _ in model.layers], slope=slope)


def _gumbel_rao(config: VaeConfig) -> Callable[..., Gradient]:
    def move(here: Bernoulli, bits: Tensor, drawn: Tensor, noise: Noise) -> Callable[[Bernoulli], Tensor]:
        (many,) = noise.logistic((config.num_conditional, len(bits)), bits.shape[-1:])
        return moving_gumbel_rao(here, bits, many, config.temperature)

    return partial(straight_through, move=move)


def _relax(
    config: VaeConfig, model: SigmoidBeliefNetwork, generator: torch.Generator, *, conditional: bool
) -> LayeredEstimator:
    before = accumulate(model.layers, initial=model.split)
    residuals = [
        ResidualNetwork(
            given if config.surrogate_context == "input" else width,
            width,
            depth=config.surrogate_depth,
            width=config.surrogate_width,
            activation=config.surrogate_activation,
            generator=generator,
        )
        for given, width in zip(before, model.layers, strict=False)
    ]
    return Relax(
        model.layers,
        residuals=residuals,
        objective=config.surrogate != "free",
        corrected=config.surrogate == "corrected",
        temperature=config.temperature,
        conditional=conditional,
        context=config.surrogate_context,
    )


def _rebar(config: VaeConfig, model: SigmoidBeliefNetwork, generator: torch.Generator) -> LayeredEstimator:
    if config.rebar_scope != "parameter":
        return Relax(model.layers, temperature=config.temperature, corrected=config.rebar_scope == "bit")
    baseline = InputBaseline(model.split, generator=generator)
    return ParameterRebar(len(model.encoder_parameters), baseline, temperature=config.temperature)


LAYERED: Mapping[str, _Maker] = {
    "reinforce": _reinforce,
    "nvil": partial(_reinforce, baseline="input"),
    "rloo": _function(lambda config: partial(rloo, num_samples=config.num_samples)),
    "vimco": _function(lambda config: partial(vimco, num_samples=config.num_samples)),
    "simple-muprop": partial(_muprop, slope=False),
    "muprop": partial(_muprop, slope=True),
    "concrete": _function(lambda config: partial(concrete, temperature=config.temperature)),
    "straight-through": _function(
        lambda config: partial(straight_through, move=lambda here, bits, drawn, noise: moving_mean(bits))
    ),
    "straight-through-gumbel": _function(
        lambda config: partial(
            straight_through, move=lambda here, bits, drawn, noise: moving_softened(bits, drawn, config.temperature)
        )
    ),
    "gumbel-rao": _function(_gumbel_rao),
    "reinmax": _function(
        lambda config: partial(straight_through, move=lambda here, bits, drawn, noise: moving_reinmax(here, bits))
    ),
    "dlax": partial(_relax, conditional=False),
    "rebar": _rebar,
    "relax": partial(_relax, conditional=True),
    "arm": _function(lambda config: partial(antithetic, estimate=arm)),
    "disarm": _function(lambda config: partial(antithetic, estimate=disarm, groups=config.num_samples // 2)),
    "arms": _function(
        lambda config: partial(
            antithetic, estimate=partial(arms, num_samples=config.num_samples), uniforms=config.num_samples
        )
    ),
    "double-cv": lambda config, model, generator: DoubleControlVariates(config.num_samples),
    "rodeo": lambda config, model, generator: Rodeo(config.num_samples, generator),
    "marginal": _function(lambda config: marginal),
    "enumerated": _function(lambda config: enumerated),
}
"""By registry name, how an estimator for layers of bits is made."""
