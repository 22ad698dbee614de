"""The last observations of an environment, stacked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from relax_rl.errors import SettingsError

__all__ = ["FrameStack", "stacked_space"]


class FrameStack(gym.Wrapper[Any, Any, Any, Any]):
    """The last `size` observations, leaf by leaf along a new first axis, the newest last.

    Args:
        env: of any observations that networks read, nested or not.
        size: how many.
        blank: what stands before the first observation of an episode: zeros, or that observation again.

    Raises:
        SettingsError: observations of another kind.
    """

    def __init__(self, env: gym.Env[Any, Any], size: int, *, blank: bool = False) -> None:
        super().__init__(env)
        self.observation_space = stacked_space(env.observation_space, size)
        self._size, self._blank = size, blank
        self._stack: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self._stack = self._first(self.observation_space, obs)
        return self._stack, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._stack = _pushed(self._stack, obs)
        return self._stack, reward, terminated, truncated, info

    def _first(self, space: spaces.Space[Any], obs: Any) -> Any:
        if isinstance(space, spaces.Dict):
            return {key: self._first(part, obs[key]) for key, part in space.spaces.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(self._first(part, value) for part, value in zip(space.spaces, obs, strict=True))
        stack = np.zeros(space.shape or (), space.dtype)
        stack[-1 if self._blank else slice(None)] = obs
        return stack


def stacked_space(space: spaces.Space[Any], size: int) -> spaces.Space[Any]:
    """The space of `size` observations of a space, each leaf of them with a new first axis.

    Raises:
        SettingsError: a leaf that no network reads.
    """
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: stacked_space(part, size) for key, part in space.spaces.items()})
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([stacked_space(part, size) for part in space.spaces])
    if isinstance(space, spaces.Box):
        low, high = (np.repeat(bound[None], size, axis=0) for bound in (space.low, space.high))
        return spaces.Box(low, high, dtype=space.dtype.type)
    if isinstance(space, spaces.Discrete):
        return spaces.MultiDiscrete(np.full(size, space.n), start=np.full(size, space.start))
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(
            np.repeat(space.nvec[None], size, axis=0), start=np.repeat(space.start[None], size, axis=0)
        )
    if isinstance(space, spaces.MultiBinary):
        return spaces.MultiBinary((size, *space.shape))
    raise SettingsError(f"frame_stack cannot stack {space}; expected Box, Discrete, MultiDiscrete or MultiBinary")


def _pushed(stack: Any, obs: Any) -> Any:
    """A new stack with the observation at its end; the old one stays as it is."""
    if isinstance(stack, Mapping):
        return {key: _pushed(part, obs[key]) for key, part in stack.items()}
    if isinstance(stack, tuple):
        return tuple(_pushed(part, value) for part, value in zip(stack, obs, strict=True))
    pushed = np.empty_like(stack)
    pushed[:-1], pushed[-1] = stack[1:], obs
    return pushed
