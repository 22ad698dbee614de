"""A task whose actions are mostly impossible: `benchmarks.masks_task:Dispatch-v0`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

__all__ = ["BEST", "Dispatch"]

DIMENSIONS, CHOICES, LEFT, CONTEXTS, LENGTH = 4, 20, 2, 5, 20
VALUES = np.random.default_rng(0).random((CONTEXTS, DIMENSIONS, CHOICES))
"""What each choice is worth in each context."""


class Dispatch(gym.Env[np.ndarray, np.ndarray]):
    """Four choices among twenty in each step, of which eighteen are impossible, drawn anew.

    The observation is one of five contexts, one-hot, and the mask. A choice is worth what a table says for the context,
    between 0 and 1, and -1 where it is impossible; the reward is the mean over the four. Masks are given in the infos and by
    a method, flat.
    """

    observation_space = gym.spaces.MultiBinary(CONTEXTS + DIMENSIONS * CHOICES)
    action_space = gym.spaces.MultiDiscrete([CHOICES] * DIMENSIONS)

    def action_masks(self) -> np.ndarray:
        """`[4 * 20]` bool."""
        return self._mask.ravel()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._steps = 0
        return self._draw()

    def step(self, action: np.ndarray) -> Any:
        rows = np.arange(DIMENSIONS)
        worth = np.where(self._mask[rows, action], VALUES[self._context, rows, action], -1.0)
        self._steps += 1
        obs, info = self._draw()
        return obs, float(worth.mean()), False, self._steps == LENGTH, info

    def _draw(self) -> tuple[np.ndarray, dict[str, Any]]:
        self._context = int(self.np_random.integers(CONTEXTS))
        self._mask = self.np_random.random((DIMENSIONS, CHOICES)).argsort(1) < LEFT
        seen = np.concatenate([np.eye(CONTEXTS)[self._context], self._mask.ravel()]).astype(np.int8)
        return seen, {"action_mask": self._mask.ravel()}


def _best() -> float:
    """The mean return of always choosing the better of the two that are left."""
    ranked = np.sort(VALUES, -1)
    # Of two drawn without repetition, the k-th of n is the larger one k - 1 times in n (n - 1) / 2.
    weight = np.arange(CHOICES) / (CHOICES * (CHOICES - 1) / 2)
    return float(LENGTH * (ranked @ weight).mean())


BEST = _best()
gym.register("Dispatch-v0", "benchmarks.masks_task:Dispatch")
