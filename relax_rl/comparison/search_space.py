"""What tuning varies: the same ranges for every contestant that has the setting, under the names each library gives it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relax_rl.comparison.contestants import Contestant

__all__ = ["SPACE", "Dimension", "dimensions"]

SURROGATES = ("relax", "lax", "marginal")


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A setting that is tuned, in a range.

    Attributes:
        name: under which it is searched and recorded; for `gamma` one minus it, log-uniformly.
        own, a2c, ppo: its name in this package, and in Stable-Baselines3's A2C and PPO, where it has one.
        estimators: those of this package that read it.
        low, high: bounds, both included.
        log: whether the logarithm is uniform.
        choices: values to choose from, instead of bounds.
    """

    name: str
    own: str | None = None
    a2c: str | None = None
    ppo: str | None = None
    estimators: tuple[str, ...] | None = None
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[int, ...] = ()

    def setting(self, value: Any) -> Any:
        """The setting from a value that was searched."""
        return 1.0 - value if self.name == "one_minus_gamma" else value

    def searched(self, setting: Any) -> Any:
        """The value to search near for a setting, moved into the range."""
        if self.choices:
            return min(self.choices, key=lambda choice: abs(choice - setting))
        value = min(self.high, max(self.low, 1.0 - setting if self.name == "one_minus_gamma" else setting))
        return round(value) if self.whole else float(value)

    def for_kind(self, kind: str) -> str | None:
        """Its name for a contestant of that kind, or None if that has no such setting."""
        if kind in ("sb3-a2c", "sb3-ppo"):
            return self.a2c if kind == "sb3-a2c" else self.ppo
        return self.own if self.estimators is None or kind in (*self.estimators, "auto") else None


def _shared(
    name: str, own: str, peer: str, low: float, high: float, *, log: bool = True, whole: bool = False
) -> Dimension:
    return Dimension(name=name, own=own, a2c=peer, ppo=peer, low=low, high=high, log=log, whole=whole)


SPACE: tuple[Dimension, ...] = (
    _shared("policy_lr", "policy_lr", "learning_rate", 1e-5, 1e-2),
    _shared("one_minus_gamma", "gamma", "gamma", 1e-4, 1e-1),
    _shared("gae_lambda", "gae_lambda", "gae_lambda", 0.8, 1.0, log=False),
    _shared("entropy_coef", "entropy_coef", "ent_coef", 1e-8, 1e-1),
    _shared("num_steps", "num_steps", "n_steps", 4, 1024, whole=True),
    _shared("max_grad_norm", "max_grad_norm", "max_grad_norm", 0.3, 5.0),
    Dimension(name="value_lr", own="value_lr", low=1e-4, high=3e-2, log=True),
    Dimension(name="vf_coef", a2c="vf_coef", ppo="vf_coef", low=0.1, high=1.0),
    Dimension(name="surrogate_lr", own="surrogate_lr", estimators=SURROGATES, low=1e-4, high=3e-2, log=True),
    Dimension(
        name="surrogate_steps", own="surrogate_steps", estimators=SURROGATES, low=1, high=8, log=True, whole=True
    ),
    Dimension(name="clip_range", ppo="clip_range", low=0.1, high=0.4),
    Dimension(name="n_epochs", ppo="n_epochs", low=1, high=20, log=True, whole=True),
    Dimension(name="batch_size", ppo="batch_size", choices=(32, 64, 128, 256)),
)


def dimensions(contestant: Contestant) -> dict[str, Dimension]:
    """What is tuned for a contestant, by the name of its setting; what was set for it by hand is left alone."""
    found = ((dimension.for_kind(contestant.kind), dimension) for dimension in SPACE)
    return {name: dimension for name, dimension in found if name is not None and name not in contestant.pinned}


def searched_values(settings: Mapping[str, Any], space: Mapping[str, Dimension]) -> dict[str, Any] | None:
    """The point of the search space at some settings, or None if one of its settings is not known."""
    if any(name not in settings or not math.isfinite(settings[name]) for name in space):
        return None
    return {dimension.name: dimension.searched(settings[name]) for name, dimension in space.items()}
