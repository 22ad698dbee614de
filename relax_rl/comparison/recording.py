"""What a run of a comparison leaves besides an ordinary run: every episode, its outcome, and agents frozen on the way."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from relax_rl.runs import write_json
from relax_rl.runs.callbacks import Every
from relax_rl.runs.loggers import truncate_csv
from relax_rl.serialization import writing

if TYPE_CHECKING:
    from relax_rl.agents import ActorCritic, UpdateInfo

__all__ = ["EpisodeTable", "ReportProgress", "TakeSnapshots", "read_outcome", "write_outcome"]

EPISODES = "episodes.csv"
OUTCOME = "outcome.json"
SNAPSHOTS = "snapshots"

Send = Callable[[dict[str, Any]], None]
"""Takes a message for whoever started the run."""


class EpisodeTable:
    """`episodes.csv`: a row per finished episode, with the step of the update that learned from its end.

    Args:
        folder: of the run.
        from_step: rows behind this step are cut off: they will be gone over again.
    """

    def __init__(self, folder: Path, *, from_step: int = 0) -> None:
        self._path = folder / EPISODES
        if from_step:
            truncate_csv(self._path, from_step)
        with writing(self._path):
            mode = "a" if from_step and self._path.exists() else "w"
            self._file: IO[str] = open(self._path, mode, encoding="utf-8", newline="")  # noqa: SIM115
            if mode == "w":
                self._file.write("step,return,length\n")

    def add(self, step: int, episodes: Iterable[tuple[float, int]]) -> None:
        """Write the (return, length) of episodes; they are on disk when this returns."""
        with writing(self._path):
            csv.writer(self._file, lineterminator="\n").writerows((step, f"{r:.10g}", n) for r, n in episodes)
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ReportProgress:
    """Callback that tells how a run goes on, twice a second at most."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._window: list[float] = []
        self._time, self._step = time.perf_counter(), -1
        self._speed: float | None = None

    def __call__(self, agent: ActorCritic, info: UpdateInfo) -> None:
        self.update(info.steps, [float(episode.return_) for episode in info.episodes])

    def update(self, step: int, returns: Iterable[float]) -> None:
        """Take in finished episodes, and report if it is time."""
        self._window = [*self._window, *returns][-100:]
        elapsed = time.perf_counter() - self._time
        if self._step < 0:
            self._step, self._time = step, time.perf_counter()
        elif elapsed >= 0.5:
            speed = (step - self._step) / elapsed
            # Smoothed, as the share of the processor changes from moment to moment.
            self._speed = speed if self._speed is None else 0.8 * self._speed + 0.2 * speed
            self._step, self._time = step, time.perf_counter()
            mean = sum(self._window) / len(self._window) if self._window else None
            self._send({"event": "progress", "step": step, "return_mean": mean, "steps_per_second": self._speed})


class TakeSnapshots:
    """Callback that saves the agent at `count` evenly spaced steps, for measurements at frozen parameters."""

    def __init__(self, folder: Path, *, total_steps: int, count: int = 30) -> None:
        self._folder = folder / SNAPSHOTS
        self._interval = max(1, total_steps // count)
        self._every: Every | None = None

    def __call__(self, agent: ActorCritic, info: UpdateInfo) -> None:
        if self._every is None:
            self._every = Every(self._interval)
            with writing(self._folder):
                self._folder.mkdir(exist_ok=True)
        if self._every.due(info.steps):
            agent.save(self._folder / f"step_{info.steps:09d}.safetensors")


def write_outcome(folder: Path, outcome: dict[str, Any]) -> None:
    """Write how a run ended; its presence means that the run needs no more work."""
    write_json(folder / OUTCOME, outcome)


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """How a run ended, or None if it has not."""
    try:
        outcome = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return outcome if isinstance(outcome, dict) else None
