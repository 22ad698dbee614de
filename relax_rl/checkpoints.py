"""Checkpoints: an agent and what its run remembers beside it, in files that any of which brings the run back.

A checkpoint is a file that `ActorCritic.load` reads, with the run's own state in one more entry of its JSON.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relax_rl import checkpoint_files
from relax_rl.errors import CheckpointError
from relax_rl.serialization import load_state, save_state

if TYPE_CHECKING:
    from relax_rl.agents import ActorCritic
    from relax_rl.envs import Episode

__all__ = ["CheckpointFolder", "RunState", "load_checkpoint"]

WINDOW = 100
"""Episodes that the reported mean return is taken over."""

_KEY = "run"


class RunState:
    """What a run remembers beside its agent: the last episodes, the time it has taken and the best evaluation."""

    def __init__(self, *, seconds: float = 0.0, best_evaluation: float | None = None) -> None:
        self.episodes: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self.best_evaluation = best_evaluation
        self._seconds_before = seconds
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time spent in this run, over all resumptions."""
        return self._seconds_before + time.perf_counter() - self._started

    @property
    def return_mean(self) -> float:
        """Mean return of the last 100 episodes; NaN before the first one."""
        return math.fsum(r for r, _ in self.episodes) / len(self.episodes) if self.episodes else math.nan

    @property
    def length_mean(self) -> float:
        """Mean length of the last 100 episodes; NaN before the first one."""
        return sum(length for _, length in self.episodes) / len(self.episodes) if self.episodes else math.nan

    @property
    def window_full(self) -> bool:
        """Whether 100 episodes have finished."""
        return len(self.episodes) == WINDOW

    def add(self, episodes: Iterable[Episode]) -> None:
        """Take in finished episodes, oldest first."""
        self.episodes.extend((float(episode.return_), int(episode.length)) for episode in episodes)

    def to_json(self) -> dict[str, Any]:
        """As stored in a checkpoint."""
        return {
            "seconds": self.seconds,
            "best_evaluation": self.best_evaluation,
            "episodes": [list(episode) for episode in self.episodes],
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> RunState:
        """The state as `to_json` told it; its clock goes on from there."""
        state = cls(seconds=float(saved["seconds"]), best_evaluation=saved["best_evaluation"])
        state.episodes.extend((float(r), int(length)) for r, length in saved["episodes"])
        return state


class CheckpointFolder:
    """The checkpoints of a run, `step_000050000.safetensors` and so on; the last `keep` are kept.

    Args:
        path: the folder.
        keep: how many, besides `best.safetensors`; 0 keeps all. Two, so that a damaged last one does not cost the run.
        writes: False where another process writes them, and only their names are told here.
    """

    def __init__(self, path: Path, *, keep: int = 2, writes: bool = True) -> None:
        self.path, self.keep, self.writes = path, keep, writes

    @property
    def best(self) -> Path:
        """The agent that did best in an evaluation during training."""
        return self.path / "best.safetensors"

    def newest_first(self) -> list[Path]:
        """Checkpoints by step, whether they can be read or not."""
        return checkpoint_files.newest_first(self.path)

    def save(self, agent: ActorCritic, run: RunState) -> Path:
        """Write a checkpoint of now, then remove those that are no longer needed.

        Raises:
            RelaxRLError: the file cannot be written; the checkpoints before it stay.
            TrainingDiverged: a weight is not finite.
        """
        path = checkpoint_files.path_at(self.path, agent.steps)
        if not self.writes:
            agent.state_dict()  # raises if a weight is not finite, in all processes alike
            return path
        _save(path, agent, run)
        if self.keep:
            checkpoint_files.remove_all_but(self.path, self.keep)
        return path

    def save_best(self, agent: ActorCritic, run: RunState) -> Path:
        """Write the agent as the best one so far."""
        _save(self.best, agent, run)
        return self.best

    def load(self, which: str, device: str = "cpu", *, warn: Callable[[str], None]) -> tuple[ActorCritic, Path]:
        """The agent that a user asks for, and its file.

        Args:
            which: "latest" (the newest that can be read), "best", or the path of a checkpoint.
            device: where the networks go.
            warn: takes a line for each damaged checkpoint that is passed over.

        Raises:
            CheckpointError: there is no such checkpoint, or none that can be read.
        """
        if which == "latest":
            agent, _, path = self.load_newest(device, warn=warn)
            return agent, path
        path = self.best if which == "best" else Path(which)
        if which == "best" and not path.exists():
            raise CheckpointError(
                f"{self.path.parent} has no best checkpoint: it was trained without --eval-interval; use latest"
            )
        return load_checkpoint(path, device)[0], path

    def load_newest(
        self, device: str = "cpu", *, warn: Callable[[str], None], set_aside: bool = False
    ) -> tuple[ActorCritic, RunState, Path]:
        """The newest checkpoint that can be read, with the run's state in it.

        Args:
            device: where the networks go.
            warn: takes a line for each damaged checkpoint that is passed over.
            set_aside: rename damaged ones, so that they no longer count among those to keep.

        Raises:
            CheckpointError: there is none, or none can be read.
        """
        (agent, run), path = checkpoint_files.newest_readable(
            self.path, lambda path: load_checkpoint(path, device), warn=warn, set_aside=set_aside
        )
        return agent, run, path


def load_checkpoint(path: Path, device: str = "cpu") -> tuple[ActorCritic, RunState]:
    """An agent and the state of its run. A file that `agent.save` wrote has a fresh state.

    Raises:
        CheckpointError: the file is missing, damaged, or not an agent's.
    """
    from relax_rl.agents import ActorCritic

    _, state = load_state(path)
    agent = ActorCritic.load(path, device=device)
    try:
        return agent, RunState.from_json(state[_KEY]) if _KEY in state else RunState()
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"checkpoint {path} is damaged: the state of its run cannot be read") from None


def _save(path: Path, agent: ActorCritic, run: RunState) -> None:
    tensors, state = agent.state_dict()
    save_state(path, tensors, {"agent": state, _KEY: run.to_json()})
