"""Environments that the runs under `tests/fixtures` were trained on; they import nothing of the package and never change."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

LENGTH = 10
"""Steps of every episode."""


class Echo(gym.Env):
    """Each step shows four numbers and pays for actions whose entries follow their signs."""

    observation_space: spaces.Space[Any] = spaces.Box(-1, 1, (4,), np.float32)

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.action_space = action_space
        self.shown = np.zeros(4, np.float32)
        self.t = 0

    def see(self) -> Any:
        self.shown = self.np_random.uniform(-1, 1, 4).astype(np.float32)
        return self.shown

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.see(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        entries = np.atleast_1d(action)
        reward = float(np.mean((entries > 0) == (self.shown[: entries.size] > 0)))
        self.t += 1
        return self.see(), reward, False, self.t == LENGTH, {}


class Images(Echo):
    """The first of the numbers as the brightness of a small grey image."""

    observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)

    def see(self) -> np.ndarray:
        super().see()
        return np.full((36, 36, 1), int(127 * (1 + self.shown[0])), np.uint8)


gym.register("relax_rl_old/Bits-v0", Echo, kwargs={"action_space": spaces.MultiBinary(3)})
gym.register("relax_rl_old/Choices-v0", Echo, kwargs={"action_space": spaces.MultiDiscrete([3, 2])})
gym.register("relax_rl_old/Images-v0", Images, kwargs={"action_space": spaces.Discrete(2)})
