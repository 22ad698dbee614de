"""The folder of a run: where its files lie, and `config.json`, from which the run can be told and gone on with."""

from __future__ import annotations

import itertools
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

from relax_rl.compute.distributed import elastic
from relax_rl.compute.host import lock
from relax_rl.compute.serialization import without_waiting, writing
from relax_rl.errors import SettingsError
from relax_rl.settings.fields import flat

__all__ = [
    "BEST",
    "KeepingFolder",
    "RunFolder",
    "Within",
    "default_run_dir",
    "refuse_used",
]


BEST = "best.safetensors"
"""Among the checkpoints of a run, the agent that did best."""
_IN_THE_MAKING = re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\.mp4)?")
"""What `replacing` calls a file until it is whole."""


class Within:
    """A file or folder within that of a run, or of something else."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: KeepingFolder, kind: type | None = None) -> Path:
        return folder.path / self.name


@dataclass(frozen=True)
class KeepingFolder:
    """A folder that one thing is kept in, which `config` tells of and can be gone on with.

    Attributes:
        holds: what that is.
        folders: in it that are made at once.
    """

    path: Path

    holds: ClassVar[str] = "run"
    folders: ClassVar[tuple[str, ...]] = ("checkpoints",)
    config = Within("config.json")
    """Settings, versions and command, as JSON."""

    def check_unused(self, *, resumable: bool = True) -> None:
        """Refuse a folder that is in use.

        Args:
            resumable: whether what is in it can be gone on with.

        Raises:
            SettingsError: the folder already holds something.
        """
        if os.path.exists(self.config) and not self.is_stillborn:
            way = f"go on with it by --resume {self.path} or choose" if resumable else "choose"
            raise SettingsError(f"{self.path} already holds a {self.holds}; {way} another --run-dir")

    def create(self, *, resumed: bool = False) -> None:
        """Make the folders that are not there, or no longer.

        Args:
            resumed: whether what it holds is gone on with.

        Raises:
            SettingsError: the folder already holds something that is not gone on with.
            RelaxRLError: the folders cannot be made.
        """
        if not resumed:
            self.check_unused()
        with writing(self.path):
            for name in self.folders:
                (self.path / name).mkdir(parents=True, exist_ok=True)

    def sweep(self) -> None:
        """Remove files in the making that writers have left when they were killed; nobody else may be at work here.

        Raises:
            RelaxRLError: one cannot be removed.
        """
        with writing(self.path):
            for folder in (self.path, *(self.path / name for name in (*self.folders, "videos"))):
                for left in folder.glob(".*.tmp*"):
                    if _IN_THE_MAKING.fullmatch(left.name) and left.is_file() and not left.is_symlink():
                        left.unlink(missing_ok=True)

    @property
    def is_stillborn(self) -> bool:
        """Whether what it holds ended before there was anything to go on from: then it may be begun anew."""
        return False

    @contextmanager
    def locked(self) -> Iterator[int | None]:
        """Hold the folder, which is made if need be, for this process and for those that inherit the descriptor it yields.

        Raises:
            SettingsError: another process, or one that such a process has left behind, is at work in it.
            RelaxRLError: it cannot be written.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            file: IO[bytes] = open(self.path / ".lock", "ab", opener=without_waiting)  # noqa: SIM115
        with file:
            if not lock(file):
                raise SettingsError(
                    f"{self.path} is being worked on; wait until its processes have saved their runs and left"
                )
            yield file.fileno() if os.name == "posix" else None


@dataclass(frozen=True)
class RunFolder(KeepingFolder):
    """Paths of the files that a run leaves behind in its folder, `path`."""

    progress = Within("progress.csv")
    """One row per log interval."""
    episodes = Within("episodes.csv")
    """One row per finished episode."""
    evaluations = Within("evaluation.csv")
    """One row per evaluation during training."""
    evaluation = Within("evaluation.json")
    """Result of the last evaluation after training, as JSON."""
    variance = Within("variance.json")
    """Result of the last `variance` command, as JSON."""
    variance_figure = Within("variance.png")
    """The same as PNG."""
    tracking = Within("tracking.json")
    """By which ids trackers know the run, and where they show it, as JSON."""
    tracking_log = Within("tracking.log")
    """What trackers have printed."""
    curve = Within("learning_curve.png")
    """The learning curve, as PNG."""
    checkpoints = Within("checkpoints")
    """Folder of the saved states."""
    best = Within(f"checkpoints/{BEST}")
    """The agent that did best."""
    videos = Within("videos")
    """Folder of recorded videos."""

    @property
    def is_stillborn(self) -> bool:
        """Also where the best agent so far has been kept, but nothing to go on from."""
        if not self.checkpoints.is_dir():
            return False
        return all(x.name.startswith(".") or x == self.best for x in self.checkpoints.iterdir())

    def create(self, *, resumed: bool = False) -> None:
        if not resumed and self.config.exists():
            self.check_unused()
            warnings.warn(f"{self.path} held a run without a checkpoint: begun anew", UserWarning, stacklevel=2)
            with writing(self.path):
                tables = self.progress, self.episodes, self.evaluations
                for old in (*tables, self.tracking, self.best, *self.path.glob("events.out.tfevents.*")):
                    old.unlink(missing_ok=True)
        super().create(resumed=resumed)
        self.sweep()


def default_run_dir(*names: str, within: Path | None = None) -> Path:
    """A new folder `runs/NAME-NAME-...-TIME`, with a number behind it if there is such a one already.

    Args:
        names: in its name.
        within: where it is made, instead of the working folder; what comes back is relative to it.

    Raises:
        RelaxRLError: it cannot be made.
    """
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in "-".join(names))
    base = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for count in itertools.count(1):
        path = base if count == 1 else base.with_name(f"{base.name}-{count}")
        with writing(path), suppress(FileExistsError):
            ((within or Path()) / path).mkdir(parents=True)
            break
    return path


def refuse_used(config: Any) -> None:
    """Refuse settings that would begin a run in a folder that holds one, before anything heavy is imported.

    Where torchrun starts the same command anew after a failure, such a run is gone on with.

    Raises:
        SettingsError: the folder already holds a run.
    """
    given = flat(config)
    if given["resume"] is None and given["run_dir"] is not None and not elastic():
        RunFolder(Path(given["run_dir"])).check_unused()
