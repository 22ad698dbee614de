"""How large returns and advantages have been: what a distribution over bins, or the policy's gradient, is measured in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relax_rl.compute.distributed import Workers
from relax_rl.critics import OverBins

__all__ = ["Spread"]


class Spread:
    """Root mean square of numbers over recent rollouts; 1 until there was one that is not 0.

    About 0 and not about the mean: bins on both sides of 0 have to hold the mean too, and a gradient keeps its direction. Rollouts
    count by their rows, less for every one that has come since.

    Args:
        decay: what a rollout counts for after one more; 0.999 halves it after seven hundred.

    Attributes:
        value: the spread.
    """

    def __init__(self, decay: float = 0.999) -> None:
        self.decay = decay
        self.count = self.total = 0.0
        self.value = 1.0
        self._summary = np.zeros(2)

    def look_at(self, numbers: Tensor, weight: Tensor, workers: Workers) -> None:
        """Note what the present rollout will bring in, for `summary`; the first one's spread is taken over at once.

        Args:
            numbers, weight: `[B]` in a unit that does not move, and 0 for rows that are none.
            workers: all of them.
        """
        square = numbers.double().square() * weight
        self._summary = np.array([float(weight.sum()), float(square.sum())])
        if not self.count:
            count, total = workers.gather(self._summary).sum(0)
            self._refresh(count, total)

    def tell(self, critics: Iterable[Any], reward_unit: float) -> None:
        """Make it the unit of those that are distributions over bins, in rewards that are multiplied by `reward_unit`."""
        for value in critics:
            if isinstance(value, OverBins):
                value.unit.fill_(self.value * reward_unit)

    def summary(self) -> np.ndarray:
        """`[2]` rows and sum of squared returns of the present rollout."""
        return self._summary

    def merge(self, summaries: np.ndarray) -> None:
        """Take in the summaries of one rollout of all workers, one a row."""
        count, total = summaries.sum(0)
        self.count, self.total = self.decay * self.count + float(count), self.decay * self.total + float(total)
        self._refresh(self.count, self.total)

    def _refresh(self, count: float, total: float) -> None:
        mean = total / count if count else 0.0
        self.value = math.sqrt(mean) if 0.0 < mean < math.inf else 1.0

    def state_dict(self) -> dict[str, Tensor]:
        return {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in ("count", "total")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.count, self.total = float(state["count"]), float(state["total"])
        self._refresh(self.count, self.total)
