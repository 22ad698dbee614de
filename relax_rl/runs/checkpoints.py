"""The checkpoints of a run: named by their step, the newest few kept, damaged ones passed over."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from relax_rl.compute.serialization import load_state, save_state, writing
from relax_rl.errors import CheckpointError, DamagedCheckpoint
from relax_rl.runs.folder import BEST

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KEEP", "Checkpoint", "CheckpointFolder", "Trainable", "newest_first", "remove_all_but", "step_of"]

KEEP = 2
"""Checkpoints that are kept unless more are asked for: two, so that a damaged last one does not cost the run."""
_NAME = re.compile(r"step_(\d+)\.(safetensors|zip)")  # a peer's are archives


class Trainable(Protocol):
    """What a run trains and keeps: all of it goes into a checkpoint and comes back from there.

    Attributes:
        steps: taken so far.
    """

    @property
    def steps(self) -> int: ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, and the rest as JSON has words for.

        Raises:
            TrainingDiverged: a tensor is not finite; such a state is never saved.
        """

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take back what `state` gave.

        Raises:
            CheckpointError: it is damaged, or of a run with other settings.
        """


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: tensors by name, the rest as JSON, and the file."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    path: Path

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """The checkpoint in a file.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        return cls(*load_state(path), path)


def step_of(path: Path) -> int | None:
    """The step in a checkpoint's name; None for what is no checkpoint."""
    found = _NAME.fullmatch(path.name)
    return None if found is None else int(found[1])


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder by step, whether they can be read or not; none where there is no such folder."""
    try:
        entries = list(folder.iterdir())
    except OSError:
        return []
    named = [(step, entry) for entry in entries if (step := step_of(entry)) is not None]
    return [entry for _, entry in sorted(named, reverse=True)]


def remove_all_but(folder: Path, keep: int = KEEP) -> None:
    """Remove checkpoints that are no longer needed; the newest `keep` stay.

    Raises:
        RelaxRLError: a file cannot be removed.
    """
    with writing(folder):
        for old in newest_first(folder)[keep:]:
            old.unlink(missing_ok=True)


class CheckpointFolder:
    """The checkpoints of a run, `step_000050000.safetensors` and so on; the newest are kept.

    Args:
        path: the folder.
        keep: how many, besides `best.safetensors`; 0 keeps all.
        writes: False where another process writes them, and only their names are given here.
        settings: written into each, to be held against those of a run that goes on from it.
    """

    def __init__(
        self, path: Path, *, keep: int = KEEP, writes: bool = True, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.path, self.keep, self.writes = path, keep, writes
        self._entry = {} if settings is None else {"settings": dict(settings)}

    @property
    def best(self) -> Path:
        """The state that did best: in an evaluation during training, or else over 100 training episodes."""
        return self.path / BEST

    def newest_first(self) -> list[Path]:
        """Checkpoints by step, whether they can be read or not; none where there is no such folder."""
        return newest_first(self.path)

    def save(self, trained: Trainable) -> Path:
        """Write a checkpoint of now, then remove those that are no longer needed.

        Raises:
            RelaxRLError: the file cannot be written; the checkpoints before it stay.
            TrainingDiverged: a tensor is not finite, in all processes alike.
        """
        path = self.path / f"step_{max(0, trained.steps):09d}.safetensors"
        tensors, state = trained.state()
        if self.writes:
            save_state(path, tensors, {**state, **self._entry})
            if self.keep:
                remove_all_but(self.path, self.keep)
        return path

    def save_best(self, trained: Trainable) -> Path:
        """Write the present state as the best one so far."""
        tensors, state = trained.state()
        save_state(self.best, tensors, {**state, **self._entry})
        return self.best

    def find(self, which: str) -> Checkpoint:
        """The checkpoint that a user asks for.

        Args:
            which: "latest" (the newest that can be read), "best", the path of a file, or "auto": the best, if the run
                says of which step that is, as runs of 0.1.0 do not, and the latest else.

        Raises:
            CheckpointError: there is no such checkpoint, or none that can be read.
        """
        if which == "auto":
            return self._best_of_now() or self.newest()
        if which == "latest":
            return self.newest()
        if which == "best" and not self.best.exists():
            raise CheckpointError(
                f"{self.path.parent} has no best checkpoint, which takes --eval-interval or 100 finished episodes; use latest"
            )
        return Checkpoint.read(self.best if which == "best" else Path(which))

    def _best_of_now(self) -> Checkpoint | None:
        """The best one, if there is one that can be read and that tells its step."""
        if not self.best.exists():
            return None
        try:
            found = Checkpoint.read(self.best)
        except DamagedCheckpoint as error:
            warnings.warn(f"{error}; taking the latest", UserWarning, stacklevel=3)
            return None
        run = found.state.get("run")
        return found if isinstance(run, dict) and run.get("best_step") is not None else None

    def newest(self, *, set_aside: bool = False) -> Checkpoint:
        """The newest checkpoint that is whole, with a warning for each damaged one that is passed over.

        Args:
            set_aside: rename damaged ones, so that they no longer count among those to keep.

        Raises:
            CheckpointError: there is none, or none is whole, or the newest whole one cannot be read here.
        """
        found = self.newest_first()
        if not found:
            raise CheckpointError(f"{self.path} holds no checkpoint; start a new run, or choose another")
        for path in found:
            try:
                return Checkpoint.read(path)
            except DamagedCheckpoint as error:
                warnings.warn(f"{error}; trying the one before it", UserWarning, stacklevel=2)
                if set_aside:
                    with writing(path):
                        path.rename(path.with_name(f"{path.name}.damaged"))
        raise CheckpointError(f"none of the {len(found)} checkpoints in {self.path} can be read; start a new run")
