"""What a critic that sees more than the policy is worth, on two tasks.

    python -m benchmarks.asymmetric                            # runs that are there are kept
    python -m benchmarks.asymmetric --tasks Positions --seeds 2

Positions is CartPole whose policy sees no velocities and has a memory, by which it can learn them; the critic is given them.
In Weather a cart's rewards change with weather that is turned round half-way, so that it leaves returns as they are, and has no part
in what should be done: a critic without it takes good weather for good actions. Each task is one `train_agent.py compare`
command, which is gone on with where it is there, and leaves its report in `results/asymmetric/`; `results/asymmetric.md` sums them
up. Importing this module registers `CartPoleParts-v0` and `Weather-v0`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from benchmarks.matches import Match, main_of, write_summary

__all__ = ["MATCHES", "Parts", "Weather", "main"]

GROUP = "asymmetric"
WEATHER_ID, PARTS_ID = "Weather-v0", "CartPoleParts-v0"
LENGTH = 24
PUSH, GUST, WEATHER = 0.3, 0.05, 3.0


class Parts(gym.ObservationWrapper[dict[str, Any], Any, np.ndarray]):
    """CartPole whose observation comes in two leaves, `position` and `velocity`, of the cart and of the pole."""

    def __init__(self, env: gym.Env[np.ndarray, Any]) -> None:
        super().__init__(env)
        of_two = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = spaces.Dict({"position": of_two, "velocity": of_two})

    def observation(self, observation: np.ndarray) -> dict[str, Any]:
        return {"position": observation[[0, 2]], "velocity": observation[[1, 3]]}


def _cart_pole(**settings: Any) -> gym.Env[Any, Any]:
    from gymnasium.envs.classic_control import CartPoleEnv

    inner: Any = CartPoleEnv(**settings)
    return Parts(inner)


class Weather(gym.Env[dict[str, Any], Any]):
    """Keep a cart in the middle: a step pays minus its distance plus the weather.

    The weather is drawn once an episode from N(0, 9), and is the opposite in the episode's second half.

    Observations: `cart`, where it is, from -3 to 3; `weather`, of the present step, and which part of the episode is over.
    Actions: push left, wait, push right.
    """

    observation_space = spaces.Dict({"cart": spaces.Box(-3, 3, (1,)), "weather": spaces.Box(-20, 20, (2,))})
    action_space = spaces.Discrete(3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self._step = 0
        self._cart = float(self.np_random.uniform(-2, 2))
        self._drawn = float(np.clip(WEATHER * self.np_random.normal(), -20, 20))
        return self._see(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        moved = self._cart + PUSH * (int(action) - 1) + GUST * self.np_random.normal()
        self._cart = float(np.clip(moved, -3, 3))
        reward = self._weather - abs(self._cart)
        self._step += 1
        return self._see(), reward, self._step == LENGTH, False, {}

    @property
    def _weather(self) -> float:
        return self._drawn if self._step < LENGTH // 2 else -self._drawn

    def _see(self) -> dict[str, Any]:
        seen = {"cart": [self._cart], "weather": [self._weather, self._step / LENGTH]}
        return {name: np.array(x, np.float32) for name, x in seen.items()}


if WEATHER_ID not in gym.registry:
    gym.register(WEATHER_ID, "benchmarks.asymmetric:Weather")
    gym.register(PARTS_ID, "benchmarks.asymmetric:_cart_pole", max_episode_steps=500)


def _match(env: str, steps: int, of_policy: str, threshold: float, settings: dict[str, str]) -> Match:
    return Match(
        env=f"benchmarks.asymmetric:{env}",
        steps=steps,
        contestants=tuple(
            f"{kind}, critic sees {what}={kind}{rest}"
            for kind in ("relax", "a2c")
            for what, rest in (("all", ""), ("the same", f":critic_keys={of_policy}"))
        ),
        settings={"policy_keys": of_policy, **_COMMON, **settings},
        seeds=10,
        threshold=threshold,
        stop_when_solved=True,
    )


_COMMON = {
    "preset": "none",
    "normalize_obs": "true",
    "normalize_reward": "true",
    "value_lr": "0.003",
    "surrogate_lr": "0.003",
}
# As `benchmarks.memory` plays it, with the threshold of there.
_WITH_MEMORY = {
    "memory": "gru",
    "num_envs": "8",
    "num_steps": "128",
    "minibatch_size": "256",
    "epochs": "4",
    "clip_range": "0.2",
}
_RATES = {"policy_lr": "0.003", "value_lr": "0.003", "lr_schedule": "linear", "normalize_reward": "true"}

MATCHES = {
    "Positions": _match(PARTS_ID, 150_000, "position", 400.0, _WITH_MEMORY | _RATES),
    "Weather": _match(WEATHER_ID, 40_000, "cart", -6.0, {}),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and sum up all that is there."""
    main_of(MATCHES, GROUP, _write_summary, __doc__, argv)


def _write_summary() -> None:
    """`results/asymmetric.md` from the comparisons that are there."""
    write_summary("A critic that sees more than the policy", GROUP, MATCHES)


if __name__ == "__main__":
    main()
