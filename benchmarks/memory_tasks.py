"""Tasks that need a memory: `benchmarks.memory_tasks:Cue-v0` and `benchmarks.memory_tasks:CartPolePositions-v0`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

__all__ = ["Cue", "Positions"]


class Cue(gym.Env[np.ndarray, Any]):
    """A sign that is shown first, and asked for at the last of `length` steps.

    The observation is the sign, -1 or 1 in the first step and 0 later, whether this is the first step, and whether it is the
    last. The reward is 1 for the sign's action (0 or 1) at the last step, else -1 there, and 0 before: without a memory
    the best mean return is 0, with one it is 1.

    Args:
        length: steps of an episode.
        cut: end episodes by `truncated`.
    """

    observation_space = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int = 20, cut: bool = False) -> None:
        self.length, self.cut = length, cut

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._time, self._sign = 0, int(self.np_random.integers(2))
        return self._obs(), {}

    def step(self, action: int) -> Any:
        self._time += 1
        over = self._time == self.length
        reward = (1.0 if int(action) == self._sign else -1.0) if over else 0.0
        return self._obs(), reward, over and not self.cut, over and self.cut, {}

    def _obs(self) -> np.ndarray:
        first = self._time == 0
        return np.array([(2 * self._sign - 1) * first, first, self._time == self.length - 1], np.float32)


class Positions(gym.ObservationWrapper[np.ndarray, Any, np.ndarray]):
    """CartPole whose observation is the cart's place and the pole's angle, without their velocities."""

    def __init__(self, env: gym.Env[np.ndarray, Any]) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[[0, 2]]


def _cart_pole(**settings: Any) -> gym.Env[np.ndarray, Any]:
    from gymnasium.envs.classic_control import CartPoleEnv

    inner: Any = CartPoleEnv(**settings)
    return Positions(inner)


gym.register("Cue-v0", "benchmarks.memory_tasks:Cue")
gym.register(
    "CartPolePositions-v0", "benchmarks.memory_tasks:_cart_pole", max_episode_steps=500, reward_threshold=475.0
)
