"""What a critic that sees more than the policy is worth: a cart whose rewards depend on weather that the policy never sees.

    python -m benchmarks.asymmetric                            # runs that are there are kept
    python -m benchmarks.asymmetric --seeds 2

The weather of an episode changes every reward by the same amount and has no part in what should be done: a critic without it
takes good weather for good actions. The task is one `train_agent.py compare` command, which is gone on with where it is there,
and leaves its report in `results/asymmetric/`; `results/asymmetric.md` sums it up. Importing this module registers `Weather-v0`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from benchmarks.matches import Match, main_of, write_summary

__all__ = ["MATCHES", "Weather", "main"]

GROUP = "asymmetric"
ID = "Weather-v0"
LENGTH = 25
PUSH, GUST = 0.3, 0.05


class Weather(gym.Env[dict[str, Any], Any]):
    """Keep a cart in the middle: a step pays minus its distance plus the weather, which is drawn once an episode from N(0, 1).

    Observations: `cart`, where it is, from -3 to 3, and `weather`. Actions: push left, wait, push right.
    """

    observation_space = spaces.Dict({"cart": spaces.Box(-3, 3, (1,)), "weather": spaces.Box(-9, 9, (1,))})
    action_space = spaces.Discrete(3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self._cart = float(self.np_random.uniform(-2, 2))
        self._weather = float(np.clip(self.np_random.normal(), -9, 9))
        return self._see(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        moved = self._cart + PUSH * (int(action) - 1) + GUST * self.np_random.normal()
        self._cart = float(np.clip(moved, -3, 3))
        return self._see(), self._weather - abs(self._cart), False, False, {}

    def _see(self) -> dict[str, Any]:
        return {name: np.array([x], np.float32) for name, x in (("cart", self._cart), ("weather", self._weather))}


if ID not in gym.registry:
    gym.register(ID, "benchmarks.asymmetric:Weather", max_episode_steps=LENGTH)

MATCHES = {
    "Weather": Match(
        env=f"benchmarks.asymmetric:{ID}",
        steps=40_000,
        contestants=(
            "relax, critic sees all=relax",
            "relax, critic sees the cart=relax:critic_keys=cart",
            "a2c, critic sees all=a2c",
            "a2c, critic sees the cart=a2c:critic_keys=cart",
        ),
        settings={"policy_keys": "cart"},
        seeds=10,
    )
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and sum up all that is there."""
    main_of(MATCHES, GROUP, _write_summary, __doc__, argv)


def _write_summary() -> None:
    """`results/asymmetric.md` from the comparison, if it is there."""
    write_summary("A critic that sees more than the policy", GROUP, MATCHES)


if __name__ == "__main__":
    main()
