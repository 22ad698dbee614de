"""Settings of the rows of the published tables: `{data}-{model}-{estimator}`.

Grathwohl et al. (2018, appendix) and Tucker et al. (2017) train with batches of 24, Adam with a second-moment decay of
0.99999, and for 2,000,000 steps; learning rates were searched over {5e-3, 1e-3, 5e-4, 1e-4, 5e-5}, and RELAX took REBAR's
best or the next larger one. Which rate won in each row was not published; here all rows have 1e-4.
"""

from __future__ import annotations

from typing import Any, Literal

from relax_rl.errors import SettingsError, did_you_mean
from relax_rl.experiments.vae.config import ESTIMATOR_NAMES, VaeConfig

__all__ = ["MODELS", "preset_config", "preset_names"]

MODELS = ("linear1", "linear2", "nonlinear", "nonlinear-wide")
"""Rows of the tables: one and two linear layers, and one layer behind two tanh layers, with 200 units or as in RELAX's code."""

_DATA: tuple[Literal["mnist", "omniglot"], ...] = ("mnist", "omniglot")
_SURROGATES = ("relax", "dlax")

_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "relax-published": (
        "relax",
        {"surrogate": "objective", "surrogate_context": "input", "surrogate_depth": 4, "surrogate_width": 200},
    ),
    "rebar-corrected": ("rebar", {"rebar_scope": "bit"}),
}
"""Estimators with other options than their defaults: RELAX with the published surrogate, REBAR with RELAX's correction."""

_NAMES = (*ESTIMATOR_NAMES, *_VARIANTS)


def preset_names() -> list[str]:
    """All presets."""
    return [f"{data}-{model}-{name}" for data in _DATA for model in MODELS for name in _NAMES]


def preset_config(name: str) -> VaeConfig:
    """The settings of a preset; "none" is the plain defaults.

    Raises:
        SettingsError: there is no such preset.
    """
    if name == "none":
        return VaeConfig()
    if name not in preset_names():
        raise SettingsError(
            f"unknown preset {name!r}, expected DATA-MODEL-ESTIMATOR with DATA one of {', '.join(_DATA)}, MODEL one of "
            f"{', '.join(MODELS)} and an estimator, such as mnist-linear2-relax{did_you_mean(name, preset_names())}"
        )
    data = next(each for each in _DATA if name.startswith(f"{each}-"))
    rest = name.removeprefix(f"{data}-")
    model = max((model for model in MODELS if rest.startswith(f"{model}-")), key=len)
    variant = rest[len(model) + 1 :]
    estimator, options = _VARIANTS.get(variant, (variant, {}))
    layers = 2 if model == "linear2" else 1
    return VaeConfig(
        preset=name,
        data=data,
        layers=layers,
        nonlinear=model.startswith("nonlinear"),
        wide_decoder=model == "nonlinear-wide",
        estimator=estimator,
        num_samples=_num_samples(estimator, layers),
        lr=1e-4,
        pretrain_steps=1_000 if estimator in _SURROGATES else 0,
        steps=2_000_000,
        **options,
    )


def _num_samples(estimator: str, layers: int) -> int:
    """As many evaluations of f as RELAX is published with, three with one layer and five with two, or just below."""
    if estimator in ("disarm", "arms"):  # K for each layer
        return 2 if layers > 1 or estimator == "disarm" else 3
    return 2 * layers + 1
