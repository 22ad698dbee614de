"""Long training, with memory and file descriptors looked at on the way: both stay as they are."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

from relax_rl.runs.training import train
from tests.attack.trials import Attack
from tests.steps import small_run

__all__ = ["ENDURANCE", "drift"]

STEPS = 300_000
EVERY = STEPS // 10
MOST_MIB = 24.0
"""That memory may grow by between the first looks and the last ones."""
HOW = ("sync", "async")


def _attempt(seed: int, number: int, folder: Path) -> str | None:
    return drift(seed, HOW[number], folder, STEPS)


def drift(seed: int, how: str, folder: Path, steps: int) -> str | None:
    """What grows in a training of so many steps, in a line, or None."""
    looks: list[tuple[float, int]] = []
    due = [steps * k // 10 for k in range(1, 11)]

    def look(agent: Any, info: Any) -> None:
        if due and info.steps >= due[0]:
            due.pop(0)
            looks.append((_resident(), len(os.listdir("/proc/self/fd"))))

    settings = {"log_interval": 1000, "checkpoint_interval": 5000, "eval_interval": 10_000, "eval_episodes": 2}
    config = small_run(folder / "run", estimator="relax", seed=seed, vectorization=how, total_steps=steps, **settings)
    train(config, callbacks=[look])
    # The first looks see what is taken up once and for all.
    (before, few), (after, many) = looks[3], max(looks[-3:])
    if after - before > MOST_MIB:
        return f"memory grew by {after - before:.0f} MiB in {steps * 6 // 10:,} steps"
    return f"{many - few} more file descriptors" if many > few else None


def _resident() -> float:
    """MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


ENDURANCE = Attack(
    name="endurance",
    what=f"{STEPS:,} steps of training: memory and file descriptors stay as they are",
    trials=len(HOW),
    sample=0,
    attempt=_attempt,
    about=lambda seed, number: f"{HOW[number]}, {STEPS:,} steps",
)
