"""What stands on a node of a Ray cluster: a command at work in a folder for temporary files, whose changes are told."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from relax_rl.comparison.process import CommandProcess
from relax_rl.comparison.task import OUTCOME
from relax_rl.compute.host import lock
from relax_rl.compute.serialization import write_bytes_atomic, writing
from relax_rl.runs import RunFolder, versions
from relax_rl.runs.checkpoints import KEEP, newest_first
from relax_rl.runs.record import PACKAGES

__all__ = ["PREFIX", "NodeRun", "read_files", "write_files"]

PREFIX = "relax-rl-node-"
"""Of the names of folders on nodes."""


class NodeRun:
    """A command at work on a node. Ray calls its methods one after the other.

    Args:
        command: the module and its arguments.
        run: the run's folder, from that of the comparison.
        files: of that folder, by name, that the command goes on from.
        collect_interval: seconds between two looks at the files while it works.
    """

    def __init__(self, command: Sequence[str], run: str, files: Mapping[str, bytes], collect_interval: float) -> None:
        self._root, self._lock = _own_folder()
        self._folder, self._log, self._interval = self._root / run, self._root / "log", collect_interval
        write_files(self._folder, files, ())
        self._known = {name: stamp for name, (_, stamp) in _stamps(self._folder).items()}
        self._log_told, self._collected = 0, time.monotonic()
        self._process = CommandProcess(command, self._root, run, self._log, held=self._lock.fileno())

    def about(self) -> dict[str, Any]:
        """Name of the node, and the versions of what numbers depend on."""
        return {"node": socket.gethostname(), "versions": versions(PACKAGES)}

    def look(self, seconds: float) -> dict[str, Any]:
        """The exit `code` (None while it works) and the last `row` of progress, after so long or at the end.

        Now and then, and at the end, also what has changed: the new content of `files`, the names of those that are `gone`,
        and what the command has printed (`log`). Nothing is left on the node after the end.
        """
        deadline = time.monotonic() + seconds
        while (code := self._process.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        found = {"code": code, "row": self._process.progress()}
        if code is not None or time.monotonic() - self._collected >= self._interval:
            found |= self._changes()
        if code is not None:
            shutil.rmtree(self._root, ignore_errors=True)
        return found

    def stop(self) -> None:
        """Ask the command to save its run and to leave."""
        self._process.stop()

    def _changes(self) -> dict[str, Any]:
        """Checkpoints are read before tables, which may thus reach further than these, but never end before them."""
        files, present = {}, _stamps(self._folder)
        for name in sorted(present, key=_checkpoints_first):
            path, stamp = present[name]
            if self._known.get(name) != stamp:
                with suppress(FileNotFoundError):  # an old checkpoint, removed this very moment
                    files[name], self._known[name] = path.read_bytes(), stamp
        gone = [name for name in self._known if name not in present]
        for name in gone:
            del self._known[name]
        log = self._log.read_bytes()[self._log_told :]
        self._log_told += len(log)
        self._collected = time.monotonic()
        return {"files": files, "gone": gone, "log": log}


def read_files(folder: Path) -> dict[str, bytes]:
    """What a run goes on from, by name: all its files but the older ones of many checkpoints."""
    skipped = {*newest_first(RunFolder(folder).checkpoints)[KEEP:], folder / OUTCOME}
    return {name: path.read_bytes() for name, (path, _) in _stamps(folder).items() if path not in skipped}


def write_files(folder: Path, files: Mapping[str, bytes], gone: Sequence[str]) -> None:
    """Bring a folder up to what a node has told, each file atomically.

    Tables come before checkpoints: a stop in between leaves something that can be gone on with.

    Raises:
        RelaxRLError: a file cannot be written.
        ValueError: a name leads out of the folder.
    """
    for name in [*sorted(files, key=_checkpoints_first, reverse=True), *gone]:
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{name!r} is no file of {folder}")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if name not in files:
                path.unlink(missing_ok=True)
        if name in files:
            write_bytes_atomic(path, files[name])


def _stamps(folder: Path) -> dict[str, tuple[Path, tuple[int, int]]]:
    """Path, and time and size, of every file but those that are just being written, by name."""
    found = {}
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file() and not (path.name.startswith(".") and path.suffix == ".tmp"):
                about = path.stat()
                found[path.relative_to(folder).as_posix()] = path, (about.st_mtime_ns, about.st_size)
    return found


def _checkpoints_first(name: str) -> tuple[bool, str]:
    return not name.startswith("checkpoints/"), name


def _own_folder() -> tuple[Path, IO[bytes]]:
    """A folder for temporary files and the lock that is held on it; those of killed processes are removed first."""
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError), open(old / ".lock", "rb") as file:  # somebody else's, or just being made
            if lock(file):
                shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    held = open(folder / ".lock.new", "xb")  # noqa: SIM115
    lock(held)
    (folder / ".lock.new").rename(folder / ".lock")  # under its name it is never seen unlocked while it is in use
    return folder, held
