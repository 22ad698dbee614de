"""A small task with hybrid actions: a boat that moors at a dock, `benchmarks.docks:relax_rl/Docks-v0`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

__all__ = ["DOCKS", "Docks"]

DOCKS = "benchmarks.docks:relax_rl/Docks-v0"
_REACH = 1.0
"""How far full thrust carries."""


class Docks(gym.Env[Any, Any]):
    """Brings a boat to a dock on a line from -1 to 1, and moors.

    Observations are where the boat and the dock are. A gear is chosen (back, moor, ahead) and a thrust from 0 to 500 newtons,
    which carries the boat up to 1 and counts for nothing when it moors. Mooring ends the episode with 1 - twice the
    distance to the dock, -1 at least; every other step costs 0.05. An episode without it is cut off after 20 steps.

    Gear and thrust belong together: which thrust is right depends on the distance, whether it is of use on the gear. The
    best that can be done is about 0.9.
    """

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Dict({"gear": spaces.Discrete(3), "thrust": spaces.Box(0.0, 500.0, (1,), np.float32)})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Boat and dock anywhere."""
        super().reset(seed=seed)
        self._boat, self._dock = (float(x) for x in self.np_random.uniform(-1.0, 1.0, 2))
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One gear, one thrust."""
        direction = int(action["gear"]) - 1
        if direction == 0:
            reward = max(1.0 - 2.0 * abs(self._boat - self._dock), -1.0)
            return self._seen(), reward, True, False, {}
        moved = self._boat + direction * _REACH * float(action["thrust"][0]) / 500.0
        self._boat = min(max(moved, -1.0), 1.0)
        return self._seen(), -0.05, False, False, {}

    def _seen(self) -> np.ndarray:
        return np.array([self._boat, self._dock], np.float32)


gym.register("relax_rl/Docks-v0", "benchmarks.docks:Docks", max_episode_steps=20, reward_threshold=0.7)
