"""Settings of the toy problem."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from relax_rl.errors import SettingsError

__all__ = ["ToyConfig"]

_MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """The toy problem: minimise E[(b - t)^2] over theta, b ~ Bernoulli(theta), by stochastic gradients."""

    target: float = 0.499
    """t; the best outcome is better than any other by |1 - 2 t|."""
    outcomes: int = 2
    """Outcomes of b: 2 for one bit, more for a categorical variable."""
    estimators: tuple[str, ...] = ("reinforce", "rebar", "relax")
    """Estimators to compare, by their names in the table of docs/estimators.md."""
    steps: int = 10_000
    """Steps of the optimiser, each on one sample."""
    seeds: int = 10
    """Independent runs of every estimator, side by side."""
    seed: int = 0
    """The first seed; the others count up from it."""
    lr: float = 0.01
    """Learning rate of theta (Adam)."""
    surrogate_lr: float = 0.01
    """Learning rate of whatever an estimator learns: surrogate, scale, temperature, baseline (Adam)."""
    coupling: Literal["coupled", "independent"] = "coupled"
    """Noise of the conditional sample of REBAR and RELAX: that of the sample, or its own."""
    fixed_theta: float | None = None
    """Keep theta here and train the control variates alone."""
    shown_theta: float = 0.5
    """Where the figure of the surrogate and that of the densities are drawn, unless theta is fixed."""
    log_interval: int = 50
    """Steps between two measurements of the gradient's variance."""
    draws: int = 1000
    """Gradients drawn at the current theta for each measurement."""
    run_dir: str | None = None
    """Folder of the results; runs/toy-... by default."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        self._check("target", 0 <= self.target <= 1, "expected a number from 0 to 1")
        for name, least in (("outcomes", 2), ("steps", 1), ("seeds", 1), ("log_interval", 1), ("draws", 2)):
            self._check(name, getattr(self, name) >= least, f"expected at least {least}")
        self._check("seed", 0 <= self.seed <= _MAX_SEED - self.seeds, "expected 0 or above, within 63 bits")
        for name in ("lr", "surrogate_lr"):
            value = getattr(self, name)
            self._check(name, value > 0 and math.isfinite(value), "expected a number above 0")
        for name in ("fixed_theta", "shown_theta"):
            value = getattr(self, name)
            self._check(name, value is None or 0 < value < 1, "expected a number between 0 and 1")
        self._check("coupling", self.coupling in ("coupled", "independent"), "expected coupled or independent")
        self._check("estimators", bool(self.estimators), "expected at least one")
        self._check("estimators", len(set(self.estimators)) == len(self.estimators), "expected each of them once")

    def _check(self, name: str, right: bool, expected: str) -> None:
        if not right:
            raise SettingsError(f"{name} is {getattr(self, name)!r}, {expected}")
