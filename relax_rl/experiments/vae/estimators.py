"""The registry's estimators for stacks of layers of bits, by the same names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from relax_rl.distributions import Bernoulli
from relax_rl.errors import SettingsError
from relax_rl.estimators import ESTIMATORS, arm, arms, disarm
from relax_rl.estimators.pathwise import moving_gumbel_rao, moving_mean, moving_reinmax, moving_softened
from relax_rl.experiments.vae.antithetic import antithetic
from relax_rl.experiments.vae.baselines import Baseline, Centring, InputBaseline
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.experiments.vae.exact import MAX_BITS, enumerated, marginal
from relax_rl.experiments.vae.gradient import LayeredEstimator
from relax_rl.experiments.vae.noise import Noise
from relax_rl.experiments.vae.pathwise import Move, concrete, straight_through
from relax_rl.experiments.vae.relaxation import ParameterRebar, Relax
from relax_rl.experiments.vae.residual import ResidualNetwork
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork
from relax_rl.experiments.vae.score import DoubleControlVariates, MuProp, Reinforce, Rodeo, rloo, vimco

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
        SettingsError: the estimator is not for bits, or not for a model of this size.
    """
    if name not in ESTIMATORS:
        raise SettingsError(f"unknown estimator {name!r}, expected one of {', '.join(LAYERED)}")
    if name not in LAYERED:
        raise SettingsError(f"{name} does not apply to layers of bits; there are {', '.join(LAYERED)}")
    return LAYERED[name](config, model, generator)


def _score(baseline: Baseline | None = None, *, normalize: bool = False) -> _Maker:
    def maker(config: VaeConfig, model: SigmoidBeliefNetwork, generator: torch.Generator) -> LayeredEstimator:
        normalized = normalize and config.normalize_variance
        return Reinforce(Centring(baseline or config.baseline, model.split, normalize=normalized, generator=generator))

    return maker


def _muprop(*, slope: bool) -> _Maker:
    def maker(_: VaeConfig, model: SigmoidBeliefNetwork, generator: torch.Generator) -> LayeredEstimator:
        return MuProp([Centring("input", model.split, generator=generator) for _ in model.layers], slope=slope)

    return maker


def _several(make: Callable[[int, torch.Generator], LayeredEstimator]) -> _Maker:
    """A maker of an estimator that takes K samples, at least 2."""

    def maker(config: VaeConfig, model: SigmoidBeliefNetwork, generator: torch.Generator) -> LayeredEstimator:
        if config.num_samples < 2:
            raise SettingsError(f"num_samples is {config.num_samples}, expected at least 2")
        return make(config.num_samples, generator)

    return maker


def _disarm(config: VaeConfig, model: SigmoidBeliefNetwork, _: torch.Generator) -> LayeredEstimator:
    if config.num_samples < 2 or config.num_samples % 2:
        raise SettingsError(f"num_samples is {config.num_samples}, but disarm takes pairs: an even number is needed")
    return LayeredEstimator(partial(antithetic, estimate=disarm, groups=config.num_samples // 2))


def _arms(count: int, _: torch.Generator) -> LayeredEstimator:
    return LayeredEstimator(partial(antithetic, estimate=partial(arms, num_samples=count), uniforms=count))


def _straight_through(move: Callable[[VaeConfig], Move]) -> _Maker:
    return lambda config, model, generator: LayeredEstimator(partial(straight_through, move=move(config)))


def _gumbel_rao(config: VaeConfig) -> Move:
    def move(here: Bernoulli, bits: Tensor, drawn: Tensor, noise: Noise) -> Callable[[Bernoulli], Tensor]:
        (many,) = noise.logistic((config.num_conditional, len(bits)), bits.shape[-1:])
        return moving_gumbel_rao(here, bits, many, config.temperature)

    return move


def _relax(*, conditional: bool) -> _Maker:
    def maker(config: VaeConfig, model: SigmoidBeliefNetwork, generator: torch.Generator) -> LayeredEstimator:
        return Relax(
            model.layers,
            residuals=_residuals(config, model, generator),
            objective=config.surrogate != "free",
            corrected=config.surrogate == "corrected",
            temperature=config.temperature,
            conditional=conditional,
            context=config.surrogate_context,
        )

    return maker


def _residuals(config: VaeConfig, model: SigmoidBeliefNetwork, generator: torch.Generator) -> list[ResidualNetwork]:
    context, networks = model.split, []
    for width in model.layers:
        networks.append(
            ResidualNetwork(
                context if config.surrogate_context == "input" else width,
                width,
                depth=config.surrogate_depth,
                width=config.surrogate_width,
                activation=config.surrogate_activation,
                generator=generator,
            )
        )
        context += width
    return networks


def _rebar(config: VaeConfig, model: SigmoidBeliefNetwork, generator: torch.Generator) -> LayeredEstimator:
    if config.rebar_scope != "parameter":
        return Relax(model.layers, temperature=config.temperature, corrected=config.rebar_scope == "bit")
    baseline = InputBaseline(model.split, generator=generator)
    return ParameterRebar(len(model.encoder_parameters), baseline, temperature=config.temperature)


def _small(make: Callable[[], LayeredEstimator], size: Callable[[Sequence[int]], int]) -> _Maker:
    """A maker of an estimator that sums over all outcomes of `size(layers)` bits."""

    def maker(_: VaeConfig, model: SigmoidBeliefNetwork, __: torch.Generator) -> LayeredEstimator:
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
    "rloo": _several(lambda count, _: LayeredEstimator(partial(rloo, num_samples=count))),
    "vimco": _several(lambda count, _: LayeredEstimator(partial(vimco, num_samples=count))),
    "simple-muprop": _muprop(slope=False),
    "muprop": _muprop(slope=True),
    "concrete": lambda config, _, __: LayeredEstimator(partial(concrete, temperature=config.temperature)),
    "straight-through": _straight_through(lambda _: lambda here, bits, drawn, noise: moving_mean(bits)),
    "straight-through-gumbel": _straight_through(
        lambda config: lambda here, bits, drawn, noise: moving_softened(bits, drawn, config.temperature)
    ),
    "gumbel-rao": _straight_through(_gumbel_rao),
    "reinmax": _straight_through(lambda _: lambda here, bits, drawn, noise: moving_reinmax(here, bits)),
    "dlax": _relax(conditional=False),
    "rebar": _rebar,
    "relax": _relax(conditional=True),
    "arm": lambda _, __, ___: LayeredEstimator(partial(antithetic, estimate=arm)),
    "disarm": _disarm,
    "arms": _several(_arms),
    "double-cv": _several(lambda count, _: DoubleControlVariates(count)),
    "rodeo": _several(lambda count, generator: Rodeo(count, generator=generator)),
    "marginal": _small(lambda: LayeredEstimator(marginal), max),
    "enumerated": _small(lambda: LayeredEstimator(enumerated), sum),
}
"""By registry name, how an estimator for layers of bits is made."""
