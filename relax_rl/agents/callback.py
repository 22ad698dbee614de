"""What an agent tells after every update, and to whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from relax_rl.agents.base import ActorCritic
    from relax_rl.envs import Episode

__all__ = ["Callback", "UpdateInfo"]


@dataclass(frozen=True)
class UpdateInfo:
    """What callbacks hear after every update.

    Attributes:
        steps, updates: environment steps and updates of the agent so far.
        episodes: the episodes that ended during this rollout.
        metrics: scalars by name, as numbers or 0-d tensors.
    """

    steps: int
    updates: int
    episodes: tuple[Episode, ...]
    metrics: Mapping[str, Tensor | float]


Callback = Callable[["ActorCritic", UpdateInfo], "bool | None"]
"""Called with the agent and an `UpdateInfo` after every update; returning False ends the training."""
