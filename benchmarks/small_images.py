"""What the small CNN is worth on grids: MinAtar and MiniGrid through it, and as plain numbers through the MLP.

    python -m benchmarks.small_images                          # every task; runs that are there are kept
    python -m benchmarks.small_images --tasks Breakout --seeds 2

Needs the packages minatar and minigrid. Each task is one `train_agent.py compare` command, which is gone on with where it is
there, and leaves its report in `results/small_images/`; `results/small_images.md` sums them up.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.matches import Match, main_of, write_summary

__all__ = ["MATCHES", "main"]

GROUP = "small_images"
CONTESTANTS = (
    "small CNN=relax:cnn=small",
    "MLP=relax:cnn=none",
    "small CNN, a2c=a2c:cnn=small",
    "MLP, a2c=a2c:cnn=none",
)


def _match(env: str, steps: int) -> Match:
    return Match(env=env, steps=steps, contestants=CONTESTANTS, seeds=5)


MATCHES = {
    "Breakout": _match("minatar:MinAtar/Breakout-v1", 1_000_000),
    "SpaceInvaders": _match("minatar:MinAtar/SpaceInvaders-v1", 1_000_000),
    "Empty-8x8": _match("minigrid:MiniGrid-Empty-8x8-v0", 200_000),
    "DoorKey-5x5": _match("minigrid:MiniGrid-DoorKey-5x5-v0", 500_000),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and sum up all that is there."""
    main_of(MATCHES, GROUP, _write_summary, __doc__, argv)


def _write_summary() -> None:
    """`results/small_images.md` from the comparisons that are there."""
    write_summary("Small images through a CNN and through an MLP", GROUP, MATCHES)


if __name__ == "__main__":
    main()
