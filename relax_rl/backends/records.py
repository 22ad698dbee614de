"""What environments hand out: steps and finished episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Episode", "Step"]


@dataclass(frozen=True)
class Step:
    """One step of N environments. Its arrays belong to the receiver: no environment writes to them later.

    Attributes:
        obs: what the action was chosen on, `[N, ...]`, nested like the observation space.
        action: as it was chosen, `[N, ...]` in the action space (bins, where those stand for numbers).
        reward: raw, `[N]` float64; 0 where not `valid`.
        next_obs: the true successor, also at the end of an episode, where it is the last observation.
        terminated: `[N]` bool, the episode ended in a final state (or, in Atari, a life was lost): bootstrap nothing.
        truncated: `[N]` bool, it was cut off: bootstrap from `next_obs`. Never True together with `terminated`.
        valid: `[N]` bool, False where the step was only an environment resetting itself and no transition.
    """

    obs: Any
    action: Any
    reward: np.ndarray
    next_obs: Any
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class Episode:
    """A finished episode (in Atari, a whole game).

    Attributes:
        return_: the sum of its raw rewards.
        length: its number of steps.
        info: what the infos of its steps come to: `success` (0 or 1) by the last of them, the mean of any other term.
    """

    return_: float
    length: int
    info: Mapping[str, float] = field(default_factory=dict, hash=False)
