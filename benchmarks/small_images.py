"""What the small CNN is worth on grids: MinAtar and MiniGrid through it, as plain numbers through the MLP, and by Stable-Baselines3.

    python -m benchmarks.small_images                          # every task; runs that are there are kept
    python -m benchmarks.small_images --tasks Seaquest --seeds 2

Needs the packages minatar and minigrid. Each task is one `train_agent.py compare` command, which is gone on with where it is
there, and leaves its report in `results/small_images/`; `results/small_images.md` sums them up. Stable-Baselines3's PPO has its
own defaults, for which a grid is a row of numbers too. Importing this module registers `DoorKey-v0`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from benchmarks.matches import Match, main_of, write_summary

__all__ = ["MATCHES", "main"]

GROUP = "small_images"
DOOR_KEY = "DoorKey-v0"


def door_key(**settings: Any) -> gym.Env[Any, Any]:
    """MiniGrid's room with a door and its key, `[7, 7, 3]` of what the agent sees; the text of the mission says nothing new."""
    import minigrid  # noqa: F401  (registers)
    from minigrid.wrappers import ImgObsWrapper

    found: gym.Env[Any, Any] = ImgObsWrapper(gym.make("MiniGrid-DoorKey-5x5-v0", **settings))
    return found


if DOOR_KEY not in gym.registry:
    gym.register(DOOR_KEY, "benchmarks.small_images:door_key")


def _match(env: str, steps: int, memory: str = "", threshold: float | None = None) -> Match:
    contestants = [f"{kind}=relax:cnn={cnn}" for kind, cnn in (("small CNN", "small"), ("MLP", "none"))]
    if memory:
        contestants += [
            f"{label}, {memory}={rest},memory={memory}" for label, rest in (x.split("=", 1) for x in contestants)
        ]
    peers = ("sb3-ppo",)
    return Match(env=env, steps=steps, contestants=tuple(contestants), peers=peers, seeds=5, threshold=threshold)


MATCHES = {
    "SpaceInvaders": _match("minatar:MinAtar/SpaceInvaders-v1", 300_000),
    "Seaquest": _match("minatar:MinAtar/Seaquest-v1", 300_000),
    "DoorKey-5x5": _match(f"benchmarks.small_images:{DOOR_KEY}", 200_000, memory="gru", threshold=0.9),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and sum up all that is there."""
    main_of(MATCHES, GROUP, _write_summary, __doc__, argv)


def _write_summary() -> None:
    """`results/small_images.md` from the comparisons that are there."""
    write_summary("Small images through a CNN and through an MLP", GROUP, MATCHES)


if __name__ == "__main__":
    main()
