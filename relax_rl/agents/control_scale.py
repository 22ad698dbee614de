"""How much of the surrogate enters an estimate: a fraction fitted on recent rollouts, none of it at worst."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["ControlScale"]


class ControlScale:
    """eta of g = p + eta d, where p is the gradient without surrogate and d the zero-mean rest that brings one in.

        eta = -E[p . d] / E|d|^2, between 0 and 1,

    is the least-variance choice (Ross 2006, section 8.2; REBAR's scale, Tucker et al. 2017, section 3.1, in closed
    form). It is taken from running moments of rollouts before the one it is used on, so that the estimate stays
    unbiased. A surrogate that adds more noise than it takes away gets 0, and what is left is A2C.

    Each rollout counts in units of its own E|p|^2, or of E|d|^2 if that is larger: advantages vary by orders of magnitude,
    and a single rollout full of failures, or of a surrogate gone astray, would otherwise decide for a hundred others.

    Args:
        decay: of the moments, by rollout.
    """

    def __init__(self, decay: float = 0.9) -> None:
        self.decay = decay
        self.shared = 0.0
        self.own = 0.0

    @property
    def value(self) -> float:
        """eta; 0 until a surrogate has made a difference."""
        return min(max(self.shared / self.own, 0.0), 1.0) if self.own > 0.0 else 0.0

    def update(self, *, shared: float, own: float, plain: float) -> None:
        """Take in the sums (or means) over a rollout's rows of -p . d, |d|^2 and |p|^2."""
        unit = max(plain, own)
        if unit > 0.0:
            self.shared = self.decay * self.shared + (1.0 - self.decay) * shared / unit
            self.own = self.decay * self.own + (1.0 - self.decay) * own / unit

    def state_dict(self) -> dict[str, Tensor]:
        return {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in ("shared", "own")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.shared, self.own = float(state["shared"]), float(state["own"])
