"""What environments of third parties need before they are ones of Gymnasium with one agent and one reward.

    python train_agent.py --env benchmarks.third_party_environments:Crafter

Their packages are imported once one is made.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


def deep_sea_treasure() -> gym.Env[Any, Any]:
    """Two rewards as one: their mean, by the package's own wrapper."""
    import mo_gymnasium
    from mo_gymnasium.wrappers import LinearReward

    found: gym.Env[Any, Any] = LinearReward(mo_gymnasium.make("deep-sea-treasure-v0"), weight=np.array([0.5, 0.5]))
    return found


def trading() -> gym.Env[Any, Any]:
    """A random walk as prices, with its relative change as the one feature."""
    import gym_trading_env  # noqa: F401
    import pandas as pd

    price = 100.0 * np.exp(np.cumsum(0.01 * np.random.default_rng(0).standard_normal(500)))
    hours = pd.date_range("2024-01-01", periods=500, freq="h")
    frame = pd.DataFrame({"open": price, "high": price, "low": price, "close": price, "volume": 1.0}, index=hours)
    frame["feature_change"] = frame["close"].pct_change()
    return gym.make("TradingEnv", df=frame.dropna(), positions=[-1, 0, 1], verbose=0)


def foraging() -> gym.Env[Any, Any]:
    """Two players of level-based foraging led by one agent: actions side by side, rewards added up."""
    import lbforaging  # noqa: F401

    return TeamAsOne(gym.make("Foraging-5x5-2p-1f-v3"))


def warehouse() -> gym.Env[Any, Any]:
    """Two robots of a warehouse led by one agent."""
    import rware  # noqa: F401

    return TeamAsOne(gym.make("rware-tiny-2ag-v2"))


class TeamAsOne(gym.Wrapper[Any, Any, Any, Any]):
    """A team with a Tuple of observations and of Discrete actions, and a reward each, as one agent."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        assert isinstance(env.action_space, spaces.Tuple)
        self.action_space = spaces.MultiDiscrete([part.n for part in env.action_space.spaces])  # type: ignore[attr-defined]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        found: Any = self.env.step(tuple(map(int, action)))
        obs, rewards, terminated, truncated, info = found
        return obs, float(np.sum(rewards)), bool(terminated), bool(truncated), info


class Crafter(gym.Env[np.ndarray, int]):
    """crafter.Env, which speaks the interface that Gym had before Gymnasium."""

    observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space: Any = spaces.Discrete(17)

    def __init__(self) -> None:
        import crafter

        self._env = crafter.Env()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._env._seed, self._env._episode = seed, 0
        return self._env.reset(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, done, info = self._env.step(int(action))
        died = info["discount"] == 0.0
        return obs, float(reward), bool(done and died), bool(done and not died), {}
