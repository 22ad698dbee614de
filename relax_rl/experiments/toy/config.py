"""Settings of the toy problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from relax_rl.errors import SettingsError
from relax_rl.settings.fields import check, setting

__all__ = ["ToyConfig"]

_MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """The toy problem: minimise E[(b - t)^2] over theta, b ~ Bernoulli(theta), by stochastic gradients."""

    target: float = setting(0.499, least=0.0, most=1.0, expected="a number from 0 to 1")
    """t; the best outcome is better than any other by |1 - 2 t|."""
    outcomes: int = setting(2, least=2, cap=2**12)
    """Outcomes of b: 2 for one bit, more for a categorical variable."""
    estimators: tuple[str, ...] = setting(("reinforce", "rebar", "relax"), fits=bool, expected="at least one")
    """Estimators to compare, by their names in the table of docs/estimators.md."""
    steps: int = setting(10_000, least=1)
    """Steps of the optimiser, each on one sample."""
    seeds: int = setting(10, least=1, cap=10**6)
    """Independent runs of every estimator, side by side."""
    seed: int = setting(0, least=0, cap=2**63 - 1)
    """The first seed; the others count up from it."""
    lr: float = setting(0.01, above=0.0, expected="a number above 0")
    """Learning rate of theta (Adam)."""
    surrogate_lr: float = setting(0.01, above=0.0, expected="a number above 0")
    """Learning rate of whatever an estimator learns: surrogate, scale, temperature, baseline (Adam)."""
    coupling: Literal["coupled", "independent"] = "coupled"
    """Noise of the conditional sample of REBAR and RELAX: that of the sample, or its own."""
    fixed_theta: float | None = setting(None, above=0.0, below=1.0, expected="a number between 0 and 1")
    """Keep theta here and train the control variates alone."""
    shown_theta: float = setting(0.5, above=0.0, below=1.0, expected="a number between 0 and 1")
    """Where the figure of the surrogate and that of the densities are drawn, unless theta is fixed."""
    log_interval: int = setting(50, least=1)
    """Steps between two measurements of the gradient's variance."""
    draws: int = setting(1000, least=2, cap=10**7)
    """Gradients drawn at the current theta for each measurement."""
    run_dir: str | None = None
    """Folder of the results; runs/toy-... by default."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        check(self)
        if self.seed > _MAX_SEED - self.seeds:
            raise SettingsError(f"seed is {self.seed!r}, expected 0 or above, within 63 bits")
        if len(set(self.estimators)) < len(self.estimators):
            raise SettingsError(f"estimators is {self.estimators!r}, expected each of them once")
