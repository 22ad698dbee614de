"""A run that is about to train: begun in a folder of its own, or gone on with from its newest good checkpoint.

Two steps, with the making of what is trained between them: `open_run` reads, and `Opening.start` writes.
"""

from __future__ import annotations

import math
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from relax_rl.compute import distributed
from relax_rl.compute.distributed import ALONE, Workers
from relax_rl.compute.host import set_threads, single_precision
from relax_rl.errors import RelaxRLError, SettingsError
from relax_rl.runs.checkpoints import KEEP, Checkpoint, CheckpointFolder
from relax_rl.runs.displays import Display, make_display
from relax_rl.runs.folder import RunFolder
from relax_rl.runs.interruption import Interruption, Leaving, interruptible
from relax_rl.runs.loggers import CsvLogger, Logger, TensorBoardLogger, read_csv, truncate_csv
from relax_rl.runs.record import (
    PACKAGES,
    check_recorded,
    entries,
    lasting,
    now,
    read_record,
    read_settings,
    write_config,
)
from relax_rl.settings.fields import check_resumable, flat, to_json, with_settings
from relax_rl.settings.synonyms import flag

__all__ = ["Clock", "Opening", "Process", "Session", "open_run", "training_process"]

C = TypeVar("C")


class Clock:
    """Seconds spent in a run, over all resumptions."""

    def __init__(self, before: float = 0.0) -> None:
        self._before, self._started = before, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Up to this moment."""
        return self._before + time.perf_counter() - self._started


@dataclass(frozen=True)
class Process:
    """What a training process works with.

    Attributes:
        device: where its networks go.
        workers: the processes that learn together.
        interruption: notes the first SIGINT, SIGTERM or SIGHUP.
        display: shows how the run goes on, in the first worker.
        stack: puts back and closes what the run takes up.
    """

    device: str
    workers: Workers
    interruption: Interruption
    display: Display
    stack: ExitStack

    def signal(self) -> str | None:
        """Name of the signal that has asked to leave, in whichever worker; all of them ask together."""
        number = int(self.workers.gather(np.array([float(self.interruption.signal or 0)])).max())
        return signal.Signals(number).name if number else None


@contextmanager
def training_process(
    device: str, *, threads: int, quiet: bool, timeout: float = 1800.0, describe: Callable[[Any], str] | None = None
) -> Iterator[Process]:
    """Join the workers, note signals, set threads, and show progress, until the end of the block.

    Args:
        device: by name.
        threads: as in `set_threads`.
        quiet: show nothing.
        timeout: seconds that workers wait for one another.
        describe: what the display is given as a status, in words; a mean return by default.

    Raises:
        SettingsError: there is no such device.
        WorkerLost: not all workers join in time.
    """
    from relax_rl.compute import compilation
    from relax_rl.compute.devices import resolve_device

    with ExitStack() as stack:
        local = str(distributed.local_device(resolve_device(device)))
        workers = stack.enter_context(distributed.joined(device=local, timeout=timeout))
        interruption = stack.enter_context(interruptible())  # while waiting for the others, a signal simply kills
        display = make_display(describe, quiet=quiet or workers.rank > 0)
        stack.callback(display.end)
        set_threads(threads, stack)
        stack.enter_context(single_precision())
        stack.enter_context(compilation.announced(lambda: _compiling(display, interruption)))
        yield Process(local, workers, interruption, display, stack)


@contextmanager
def _compiling(display: Display, interruption: Interruption) -> Iterator[None]:
    """Say that code is compiled in the block, which a signal ends at once: the step at hand is then taken by eager code."""
    from relax_rl.compute.compilation import NotKept

    try:
        with (
            display.busy("compiling the update, about half a minute (--compile off leaves it out)"),
            interruption.at_once(),
        ):
            yield
    except Leaving:
        raise NotKept("a signal has asked to leave") from None


@dataclass(frozen=True)
class Opening(Generic[C]):
    """A run that is about to begin or to go on; nothing has been written yet.

    Attributes:
        config: its settings.
        folder: of the run to go on with; None of a new one.
        checkpoint: the one to go on from, its tensors in the first worker alone.
        workers: that learn together.
        section: the entry of `config.json` that holds the settings.
        saved: the settings of the run to go on with as they were; None of a new one.
        here: what its folder is relative to, wherever an environment moves this process.
    """

    config: C
    workers: Workers
    section: str | None = None
    folder: RunFolder | None = None
    checkpoint: Checkpoint | None = None
    saved: C | None = None
    here: Path = field(default_factory=Path.cwd)

    def check_steps(self, steps: int, total: str, *, complete: bool = True) -> None:
        """Refuse to go on with a run that is done.

        Args:
            steps: that it has taken.
            total: the setting of how many it is to take.
            complete: whether nothing else is left to do.

        Raises:
            SettingsError: it has taken them all.
        """
        wanted = flat(self.config)[total]
        if self.folder is not None and (steps > wanted or (steps == wanted and complete)):
            if self.workers.rank == 0:
                with suppress(RelaxRLError), self.folder.locked():
                    self.folder.sweep()  # it may have been killed at its last figure
            raise SettingsError(
                f"{self.folder.path} has already taken {steps} of {wanted} steps; raise {flag(total)} to go on"
            )

    def start(
        self,
        default: Callable[[Path], Path],
        stack: ExitStack,
        *,
        steps: int,
        command: str,
        keep: int = KEEP,
        packages: Iterable[str] = PACKAGES,
        extra: Mapping[str, Any] | None = None,
    ) -> Session[C]:
        """Make the folder, or bring its tables back to the checkpoint and write down the resumption.

        Args:
            default: makes the folder of a new run that was given none, in a folder.
            stack: holds the folder, in which nobody else may be at work.
            steps: that have been taken.
            command: kept in `config.json`.
            keep: how many checkpoints; 0 keeps all.
            packages: whose versions are kept there.
            extra: further entries there.

        Raises:
            SettingsError: the folder already holds a run, or another process is at work in it.
            RelaxRLError: the folder cannot be written.
        """
        given, first = flat(self.config)["run_dir"], self.workers.rank == 0
        path = Path(self.workers.from_first(str(given or default(self.here)) if first else None))
        config = with_settings(self.config, {"run_dir": str(path), "resume": None})
        folder = RunFolder(self.here / path)
        if first:
            stack.enter_context(folder.locked())
            self._check_newest(folder)
            folder.create(resumed=self.checkpoint is not None)
        if first and self.checkpoint is None:
            history: dict[str, Any] = {"command": command, "started": now(), "resumed": []}
        elif first and self.checkpoint is not None:
            for table in (folder.progress, folder.episodes, folder.evaluations):
                truncate_csv(table, max(0, steps))
            record = read_record(folder)
            entry = {"step": steps, "checkpoint": self.checkpoint.path.name, "time": now(), "command": command}
            history = {name: record.get(name, "") for name in ("command", "started")}
            history["resumed"] = [*entries(record, "resumed"), entry]
        if first:
            write_config(folder, config, {**(extra or {}), **history}, section=self.section, packages=packages)
        checkpoints = CheckpointFolder(folder.checkpoints, keep=keep, writes=first, settings=lasting(config))
        last = self.checkpoint.path if self.checkpoint is not None else None
        return Session(config, folder, checkpoints, self.workers, steps, last)

    def _check_newest(self, folder: RunFolder) -> None:
        """Raises SettingsError if the run has been gone on with since its checkpoint was read; the folder is held."""
        if self.checkpoint is None:
            return
        newest = CheckpointFolder(folder.checkpoints).newest_first()
        if not newest or newest[0].name != self.checkpoint.path.name:
            raise SettingsError(
                f"{folder.path} has been gone on with since {self.checkpoint.path.name} was read; give the same command again"
            )


@dataclass(frozen=True)
class Session(Generic[C]):
    """A run that is ready to train.

    Attributes:
        config, folder, checkpoints, workers: of the run.
        start_step: the steps that had been taken before.
        resumed_from: the checkpoint it goes on from; None of a new run.
    """

    config: C
    folder: RunFolder
    checkpoints: CheckpointFolder
    workers: Workers
    start_step: int
    resumed_from: Path | None = None

    @property
    def first(self) -> bool:
        """Whether this worker is the one that logs, evaluates and saves."""
        return self.workers.rank == 0

    def headline(self, what: str) -> str:
        """The line that a run begins with."""
        line = f"{what} · {flat(self.config)['run_dir']}"
        return line if self.resumed_from is None else f"{line} · resumed at step {self.start_step:,}"

    def loggers(
        self, columns: Iterable[str], stack: ExitStack, theirs: Iterable[Logger] = (), *, outcome: str
    ) -> list[Logger]:
        """`progress.csv` with these first columns, TensorBoard if the settings ask for it, and the caller's loggers.

        They are for the first worker, the others have none; the stack closes them all. `outcome` is the column that says
        how good the run is.
        """
        found: list[Logger] = []
        if self.first:
            found.append(CsvLogger(self.folder.progress, tuple(columns)))
            if flat(self.config)["tensorboard"]:
                found.append(self._tensorboard(outcome))
        found += theirs
        for logger in found:
            stack.push(partial(_close, logger))
        return found if self.first else []

    def _tensorboard(self, outcome: str) -> TensorBoardLogger:
        settings: dict[str, Any] = flat(self.config)
        if self.resumed_from is None:
            return TensorBoardLogger(self.folder.path, settings=settings, outcome=outcome)
        before = [value for value in read_csv(self.folder.progress).get(outcome, []) if not math.isnan(value)]
        best, start = max(before, default=math.nan), self.start_step + 1
        return TensorBoardLogger(self.folder.path, from_step=start, settings=settings, outcome=outcome, best=best)


def _close(logger: Logger, kind: object, error: BaseException | None, trace: object) -> None:
    """Close a logger; where an error is on its way already, one of the logger's own is but a warning."""
    try:
        logger.close()
    except RelaxRLError as fault:
        if error is None:
            raise
        warnings.warn(str(fault), UserWarning, stacklevel=2)


def open_run(
    config: C,
    *,
    workers: Workers = ALONE,
    section: str | None = None,
    resumed: Callable[[C, C], C] = check_resumable,
) -> Opening[C]:
    """Look at the folder that a run is to be begun in, or read what it is to go on from.

    Args:
        config: the settings, the same on all workers; `run_dir` and `resume` are among them.
        workers: the processes that learn together; the first of them reads and writes the folder.
        section: the entry of `config.json` that holds the settings; the top level by default.
        resumed: the settings to go on with, given the run's own and the wanted ones; refuses those of another run.

    Raises:
        SettingsError: settings that cannot work, or a folder that already holds a run.
        CheckpointError: a run that cannot be resumed.
    """
    distributed.check_same_settings(to_json(config), workers)
    given, first = flat(config), workers.rank == 0
    run_dir = given["run_dir"]
    resume = distributed.run_to_resume(given["resume"], run_dir, _has_checkpoint, workers)
    if resume is None:
        if first and run_dir is not None:
            RunFolder(Path(run_dir)).check_unused()
        return Opening(config, workers, section)
    folder = RunFolder(Path(resume))
    saved = read_settings(folder, type(config), section=section)
    if run_dir is not None and Path(run_dir).resolve() != folder.path.resolve():
        raise SettingsError(f"run_dir is {run_dir!r}, but a resumed run stays in its folder, {resume!r}")
    config = with_settings(resumed(saved, config), {"run_dir": resume})
    if first:
        checkpoint = CheckpointFolder(folder.checkpoints).newest(set_aside=True)
        check_recorded(checkpoint.state.get("settings", {}), lasting(saved), checkpoint.path)
        workers.from_first([checkpoint.state, str(checkpoint.path)])
    else:
        state, path = workers.from_first(None)
        checkpoint = Checkpoint({}, state, Path(path))
    return Opening(config, workers, section, folder, checkpoint, saved)


def _has_checkpoint(run_dir: str) -> bool:
    return bool(CheckpointFolder(RunFolder(Path(run_dir)).checkpoints).newest_first())
