"""Small deterministic environments whose every transition is known, shared by the tests."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from relax_rl.envs import VectorEnvs

Ending = Literal["terminated", "truncated", "both"]

CYCLE: tuple[tuple[int, Ending], ...] = (
    (3, "terminated"),
    (1, "truncated"),
    (4, "both"),
    (2, "truncated"),
    (1, "terminated"),
    (5, "truncated"),
)
"""Length and ending of successive golden episodes, over and over."""


class GoldenEnv(gym.Env):
    """Episodes of known lengths and endings; the observation says which episode, step and environment it belongs to.

    Observation `[index, episode, t]`; reward `100 * episode + 10 * t + action`, t being the step before the action.
    """

    def __init__(self, index: int = 0, cycle: Sequence[tuple[int, Ending]] = CYCLE, start: int = 0) -> None:
        self.index, self.cycle = index, tuple(cycle)
        self.observation_space = spaces.Box(-1, np.inf, (3,), np.float32)
        self.action_space = spaces.Discrete(2, start=start)
        self.episode = -1
        self.t = 0

    def see(self) -> Any:
        return np.array([self.index, self.episode, self.t], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode += 1
        self.t = 0
        return self.see(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        length, ending = self.cycle[(self.episode + self.index) % len(self.cycle)]
        reward = 100.0 * self.episode + 10.0 * self.t + float(action)
        self.t += 1
        ends = self.t == length
        assert self.t <= length, "stepped after the end of an episode"
        return self.see(), reward, ends and ending != "truncated", ends and ending != "terminated", {}


class BufferReusingEnv(GoldenEnv):
    """A golden environment that hands out the same array every time and writes to it."""

    def __init__(self, index: int = 0, cycle: Sequence[tuple[int, Ending]] = CYCLE) -> None:
        super().__init__(index, cycle)
        self.buffer = np.zeros(3, np.float32)

    def see(self) -> np.ndarray:
        self.buffer[:] = super().see()
        return self.buffer


class DictEnv(GoldenEnv):
    """A golden environment seen through a nested Dict: a vector, a number, a switch and a small image."""

    def __init__(self, index: int = 0, cycle: Sequence[tuple[int, Ending]] = CYCLE) -> None:
        super().__init__(index, cycle)
        self.observation_space = spaces.Dict(
            {
                "camera": spaces.Box(0, 255, (40, 36, 3), np.uint8),
                "inner": spaces.Dict({"clock": spaces.Discrete(10, start=1), "lights": spaces.MultiBinary(3)}),
                "place": spaces.Box(-1, np.inf, (3,), np.float64),
            }
        )

    def see(self) -> dict[str, Any]:
        return {
            "camera": np.full((40, 36, 3), 10 * self.episode + self.t, np.uint8),
            "inner": {"clock": np.int64(self.t + 1), "lights": np.array([self.t % 2, 1, 0], np.int8)},
            "place": np.array([self.index, self.episode, self.t], np.float64),
        }


class TupleEnv(GoldenEnv):
    """A golden environment seen through a Tuple of a vector and a number."""

    def __init__(self, index: int = 0, cycle: Sequence[tuple[int, Ending]] = CYCLE) -> None:
        super().__init__(index, cycle)
        self.observation_space = spaces.Tuple((spaces.Box(-1, np.inf, (3,), np.float32), spaces.Discrete(10)))

    def see(self) -> tuple[np.ndarray, np.int64]:
        return np.array([self.index, self.episode, self.t], np.float32), np.int64(self.t)


class TargetEnv(gym.Env):
    """Episodes of ten steps in which each step asks for one of two actions and pays 1 for it, less for others.

    Works with any action space of floats, bits or choices, and refuses actions outside it. The observation is one-hot:
    which of the two targets counts in this step.
    """

    def __init__(self, action_space: spaces.Space[Any], length: int = 10) -> None:
        self.action_space, self.length = action_space, length
        self.observation_space = spaces.Box(0, 1, (2,), np.float32)
        targets = np.random.default_rng(5)
        if isinstance(action_space, spaces.Box):
            bounded = action_space.low.clip(-1, None), action_space.high.clip(None, 1)
            self.targets = [targets.uniform(*bounded) for _ in range(2)]
        elif isinstance(action_space, spaces.MultiBinary):
            self.targets = [targets.integers(0, 2, action_space.shape) for _ in range(2)]
        else:
            start, count = (
                (action_space.start, action_space.n)
                if isinstance(action_space, spaces.Discrete)
                else (action_space.start, action_space.nvec)
            )
            self.targets = [start + which * (count - 1) for which in range(2)]
        self.t = 0
        self.asked = 0

    def see(self) -> np.ndarray:
        self.asked = int(self.np_random.integers(2))
        return np.eye(2, dtype=np.float32)[self.asked]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.see(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise AssertionError(f"{action!r} is outside {self.action_space}")
        wrong = np.asarray(action, np.float64) - self.targets[self.asked]
        if isinstance(self.action_space, spaces.Box):
            reward = 1.0 - float(np.mean(wrong**2))
        else:
            reward = float(np.mean(wrong == 0))
        self.t += 1
        return self.see(), reward, False, self.t == self.length, {}


class ImageEnv(TargetEnv):
    """A target environment whose observations are images."""

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        super().__init__(action_space)
        self.observation_space = spaces.Box(0, 255, (1, 36, 36), np.uint8)

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        return self._image(obs), info

    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return self._image(obs), *rest

    def _image(self, obs: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(obs.tobytes()))
        return rng.integers(0, 256, self.observation_space.shape, dtype=np.uint8)


class LivesEnv(gym.Env):
    """Games of a few lives of `life_length` steps each, worth 1 per step; `lives` in the infos, as in Atari.

    Successive games start with the numbers of `lives` in turn. With `lingers`, a game ends a step after the last life
    is gone, as some Atari games do. `limit` cuts games off.
    """

    def __init__(
        self, lives: Sequence[int] = (3,), life_length: int = 2, lingers: bool = False, limit: int | None = None
    ) -> None:
        self.games, self.life_length, self.lingers, self.limit = tuple(lives), life_length, lingers, limit
        self.observation_space = spaces.Box(0, np.inf, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.t = 0
        self.game = -1

    def lives(self) -> int:
        return max(0, self.games[self.game % len(self.games)] - self.t // self.life_length)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        self.game += 1
        return np.zeros(1, np.float32), {"lives": self.lives()}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        over = self.t == self.games[self.game % len(self.games)] * self.life_length + self.lingers
        return np.array([self.t], np.float32), 1.0, over, self.t == self.limit, {"lives": self.lives()}


class DyingEnv(GoldenEnv):
    """A golden environment whose process dies at its second step."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.t == 1:
            os._exit(1)
        return super().step(action)


class PoisonedEnv(TargetEnv):
    """A target environment whose reward is not a number from the hundredth step on."""

    def __init__(self) -> None:
        super().__init__(spaces.Discrete(2))
        self.taken = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, infos = super().step(action)
        self.taken += 1
        return obs, math.nan if self.taken > 100 else reward, terminated, truncated, infos


class FadingEnv(TargetEnv):
    """A target environment of episodes of two steps, each worth 1 in its first 150 steps and nothing afterwards."""

    def __init__(self) -> None:
        super().__init__(spaces.Discrete(2), length=2)
        self.taken = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, _, *ends = super().step(action)
        self.taken += 1
        return obs, float(self.taken <= 150), *ends


class WordyEnv(GoldenEnv):
    """A golden environment that observes text, which no policy here reads."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Text(5)

    def see(self) -> str:
        return "a"


class KeywordEnv(GoldenEnv):
    """A golden environment with a setting of two numbers."""

    def __init__(self, size: tuple[int, int] = (1, 2)) -> None:
        super().__init__()
        self.size = size


@dataclass
class Rows:
    """A logger that remembers its rows."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    closed: bool = False

    def log(self, row: Any) -> None:
        assert not self.closed
        self.rows.append(dict(row))

    def close(self) -> None:
        self.closed = True


def need(env_id: str) -> None:
    """Skip the test where the package that an environment of Gymnasium's needs is not installed."""
    for family, module in {"box2d": "Box2D", "mujoco": "mujoco"}.items():
        if f".{family}" in str(gym.registry[env_id].entry_point):
            pytest.importorskip(module, reason=f"needs the extra {family}")


def vector_of(
    factories: Sequence[Callable[[], gym.Env]], mode: AutoresetMode, kind: str = "sync", **kwargs: Any
) -> VectorEnv:
    """A Gymnasium vector environment of one kind and autoreset mode."""
    if kind == "sync":
        return SyncVectorEnv(factories, autoreset_mode=mode, **kwargs)
    return AsyncVectorEnv(factories, autoreset_mode=mode, **kwargs)


def golden_envs(
    mode: AutoresetMode, kind: str = "sync", env: type[GoldenEnv] = GoldenEnv, n: int = 3, **kwargs: Any
) -> VectorEnvs:
    """`n` golden environments behind the adapter."""
    return VectorEnvs(vector_of([lambda i=i: env(i) for i in range(n)], mode, kind, **kwargs))


gym.register("relax_rl_fakes/Golden-v0", GoldenEnv, kwargs={"cycle": ((20, "truncated"),)}, reward_threshold=7.0)
gym.register("relax_rl_fakes/Keyword-v0", KeywordEnv)
gym.register("relax_rl_fakes/Dying-v0", DyingEnv)
gym.register("relax_rl_fakes/BufferReusing-v0", BufferReusingEnv)
gym.register("relax_rl_fakes/Poisoned-v0", PoisonedEnv)
gym.register("relax_rl_fakes/Fading-v0", FadingEnv)
gym.register("relax_rl_fakes/Wordy-v0", WordyEnv)
gym.register("relax_rl_fakes/Lives-v0", LivesEnv)
