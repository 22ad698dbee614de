"""The folder of a run: where its files lie, and `config.json`, from which the run can be told and gone on with."""

from __future__ import annotations

import itertools
import json
import os
import platform
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import IO, Any, ClassVar, TypeVar

from relax_rl.compute.distributed import elastic
from relax_rl.compute.host import lock
from relax_rl.compute.serialization import write_json, writing
from relax_rl.errors import CheckpointError, SettingsError
from relax_rl.settings.config import TrainConfig
from relax_rl.settings.fields import check_resumable, flat, from_json, of_the_call, to_json, with_settings
from relax_rl.settings.naming import is_own

__all__ = [
    "PACKAGES",
    "KeepingFolder",
    "RunFolder",
    "Within",
    "default_run_dir",
    "note",
    "now",
    "read_config",
    "read_object",
    "read_record",
    "read_settings",
    "refuse_used",
    "resumed_config",
    "settings_to_resume",
    "versions",
    "write_config",
]

C = TypeVar("C")

_OWN = {"estimator": "auto", "networks": None, "vectorization": "auto"}
"""Settings that may name code of the user's own, and what they are where they do not."""

PACKAGES = ("torch", "gymnasium", "numpy", "ale-py")
"""What a run's numbers depend on beside Python and this package."""


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
        if self.config.exists() and not self.is_stillborn:
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
            file: IO[bytes] = open(self.path / ".lock", "ab")  # noqa: SIM115
        with file:
            if not lock(file):
                raise SettingsError(
                    f"{self.path} is being worked on; wait until its processes have saved their runs and left"
                )
            yield file.fileno() if os.name == "posix" else None


@dataclass(frozen=True)
class RunFolder(KeepingFolder):
    """Paths of the files a run leaves behind."""

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
    curve = Within("learning_curve.png")
    """The learning curve, as PNG."""
    checkpoints = Within("checkpoints")
    """Folder of the saved states."""
    videos = Within("videos")
    """Folder of recorded videos."""

    @property
    def is_stillborn(self) -> bool:
        return self.checkpoints.is_dir() and not any(not x.name.startswith(".") for x in self.checkpoints.iterdir())

    def create(self, *, resumed: bool = False) -> None:
        if not resumed and self.config.exists():
            self.check_unused()
            warnings.warn(f"{self.path} held a run without a checkpoint: begun anew", UserWarning, stacklevel=2)
            with writing(self.path):
                for old in (self.progress, self.episodes, self.evaluations, *self.path.glob("events.out.tfevents.*")):
                    old.unlink(missing_ok=True)
        super().create(resumed=resumed)
        with writing(self.path):  # what writers that were killed have left
            for left in (*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")):
                left.unlink(missing_ok=True)


def default_run_dir(*names: str) -> Path:
    """A new folder `runs/NAME-NAME-...-TIME`, with a number behind it if there is such a one already.

    Raises:
        RelaxRLError: it cannot be made.
    """
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in "-".join(names))
    base = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for count in itertools.count(1):
        path = base if count == 1 else base.with_name(f"{base.name}-{count}")
        with writing(path), suppress(FileExistsError):
            path.mkdir(parents=True)
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


def now() -> str:
    """The time, as written into a run's record."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def write_config(
    folder: RunFolder,
    config: Any,
    extra: Mapping[str, Any],
    *,
    section: str | None = None,
    packages: Iterable[str] = PACKAGES,
) -> None:
    """Write `config.json`: every setting, the versions it ran with, and `extra` (the command, resumptions).

    Args:
        folder: of the run.
        config: its settings.
        extra: further entries.
        section: the entry that holds the settings; the top level by default.
        packages: whose versions are noted.
    """
    settings = to_json(config) if section is None else {section: to_json(config)}
    write_json(folder.config, {**settings, "versions": versions(packages), **extra})


def note(folder: RunFolder, **entries: Any) -> None:
    """Add entries to `config.json`, or replace them.

    Raises:
        CheckpointError: the file cannot be read.
        RelaxRLError: it cannot be written.
    """
    write_json(folder.config, {**read_record(folder), **entries})


def read_record(folder: RunFolder) -> dict[str, Any]:
    """The content of `config.json` as it stands.

    Raises:
        CheckpointError: the folder holds no run, or the file cannot be read.
    """
    if not folder.path.is_dir():
        raise CheckpointError(f"run {folder.path} does not exist")
    return read_object(folder.config, "run")


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file without which its folder holds no run, or no other thing that `what` names.

    Raises:
        CheckpointError: there is no such file, or it cannot be read.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} holds no {what}: it has no {path.name}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is damaged: it is not JSON") from None
    if not isinstance(record, dict):
        raise CheckpointError(f"{path} is damaged: it is not a JSON object")
    return record


def read_config(folder: RunFolder) -> TrainConfig:
    """The settings of an agent's run; raises CheckpointError as `read_settings`."""
    return read_settings(folder, TrainConfig)


def read_settings(folder: RunFolder, kind: type[C], *, section: str | None = None) -> C:
    """The settings of a run, as `write_config` wrote them.

    Raises:
        CheckpointError: the folder holds no such run, or the file cannot be read or has settings unknown to this version.
    """
    record = read_record(folder)
    names = [section] if section is not None else [part.name for part in fields(kind)]  # type: ignore[arg-type]
    for name in names:
        if name not in record:
            raise CheckpointError(f"{folder.config} has no section {name!r}: it is damaged, or of another kind of run")
    try:
        return from_json(kind, record[section] if section is not None else {name: record[name] for name in names})
    except SettingsError as error:
        raise CheckpointError(f"{folder.config} has settings that this relax_rl cannot take: {error}") from None


def settings_to_resume(resume: str, kind: type[C], *, section: str | None = None) -> C:
    """The settings of the run in a folder, without those that belong to one call, as the defaults of another call.

    Raises:
        CheckpointError: as `read_settings`.
    """
    saved = read_settings(RunFolder(Path(resume)), kind, section=section)
    # Code of the user's own that only the file names is not taken from there: see `resumed_config`.
    own = {name: default for name, default in _OWN.items() if is_own(flat(saved).get(name))}
    return with_settings(saved, {**of_the_call(saved), **own, "resume": resume, "run_dir": resume})


def resumed_config(saved: TrainConfig, wanted: TrainConfig) -> TrainConfig:
    """The settings that an agent's run goes on with.

    Raises:
        CheckpointError: the environment differs.
        SettingsError: another setting differs that is not resumable.
    """
    if wanted.env.env != saved.env.env:
        raise CheckpointError(
            f"cannot resume with --env {wanted.env.env}: the run was trained on {saved.env.env}; start a new run instead"
        )
    for name, default in _OWN.items():
        before, now = flat(saved)[name], flat(wanted)[name]
        if is_own(before) and now == default:
            raise SettingsError(f"{name} of this run is {before!r}, code that is not this package's; name it again")
    if wanted.run.estimator == "auto":
        wanted = with_settings(wanted, {"estimator": saved.run.estimator})
    return check_resumable(saved, wanted)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python, of relax_rl, and of those packages that are installed."""
    from relax_rl import __version__

    found = {"python": platform.python_version(), "relax_rl": __version__}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
