"""What stands on a node of a Ray cluster: a worker process, and a folder of its own whose files are told back."""

from __future__ import annotations

import os
import queue
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from relax_rl.comparison.ray_files import RESULT, RUN, Mirror, Names, apply_changes, translation
from relax_rl.comparison.worker_process import Tell, WorkerProcess

__all__ = ["PACKAGES", "NodeWorker"]

Start = Callable[[Tell], WorkerProcess]

PACKAGES = ("torch", "gymnasium", "numpy", "safetensors", "matplotlib")
"""What every node must have."""

PREFIX = "relax-rl-node-"
"""Of the names of workers' folders."""
LOCK = ".lock"


class NodeWorker:
    """Works on one task at a time on this machine. Its methods are called one after the other, from elsewhere.

    Args:
        folder: where it works; taken over, and removed when it leaves. Its name begins with `PREFIX`.
        collect_interval: seconds between two looks at the files while a run goes on.
        start: starts the worker process, given what takes its messages.
    """

    def __init__(self, folder: Path, *, collect_interval: float = 60.0, start: Start | None = None) -> None:
        self._folder, self._interval = folder, collect_interval
        self._start: Start = start or (lambda tell: WorkerProcess(tell, folder=folder))
        self._lock = _take(folder)
        self._files = self._folder / "files"
        self._worker: WorkerProcess | None = None
        self._messages: queue.Queue[dict[str, Any]] = queue.Queue()

    def about(self) -> dict[str, Any]:
        """Name of the machine, and the versions of what numbers depend on; None where it is missing."""
        return {"node": socket.gethostname(), "versions": versions()}

    def begin(self, task: Mapping[str, Any], files: Mapping[str, bytes], known: Iterable[str]) -> None:
        """Begin with a task.

        Args:
            task: the message for the worker, with the paths of the machine that it comes from.
            files: that the work goes on from.
            known: names of files that are there on that machine.
        """
        shutil.rmtree(self._files, ignore_errors=True)
        self._files.mkdir()
        here = {**task, "folder": str(self._files / RUN), "log": str(self._files / "log")}
        if "result" in task:
            here["result"] = str(self._files / RESULT)
            here["checkpoint"] = str(self._files / RUN / Path(task["checkpoint"]).relative_to(task["folder"]))
        names = Names.of(here)
        apply_changes(names, files, ())
        back = translation((here[key], str(task[key])) for key in ("folder", "result") if key in task)
        self._mirror, self._log, self._log_told = Mirror(names, known, back), Path(here["log"]), 0
        self._mirror.settle()
        self._collected = time.monotonic()
        if self._worker is None:
            self._messages = queue.Queue()
            self._worker = self._start(self._messages.put)
        self._worker.give(here)

    def poll(self, seconds: float) -> list[dict[str, Any]]:
        """What has happened: messages of the worker, and `{"event": "files", "changed", "gone", "log"}` among them.

        Returns when the task begins or ends, and after so many seconds otherwise. Files come before the message that ends a
        task.
        """
        found: list[dict[str, Any]] = []
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                message = self._messages.get(timeout=left)
            except queue.Empty:
                break
            if message["event"] == "progress":
                found = [told for told in found if told["event"] != "progress"]
            elif message["event"] in ("done", "gone"):
                found.append(self._look())
                # One that was interrupted leaves by itself, and takes no further task.
                if message["event"] == "gone" or message["outcome"]["status"] == "interrupted":
                    self._worker = None
            found.append(message)
            if message["event"] != "progress":
                return found
        if time.monotonic() - self._collected >= self._interval:
            found.append(self._look())
        return found

    def stop(self) -> None:
        """Ask the worker to save its run and to leave."""
        if self._worker is not None:
            self._worker.stop()

    def leave(self) -> None:
        """End the worker, and remove what it has left."""
        if self._worker is not None:
            self._worker.dismiss()
            self._worker.wait(5.0)
        self._lock.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _look(self) -> dict[str, Any]:
        changed, gone = self._mirror.changes()
        self._collected = time.monotonic()
        log = b""
        if self._log.exists():
            with open(self._log, "rb") as file:
                file.seek(self._log_told)
                log = file.read()
            self._log_told += len(log)
        return {"event": "files", "changed": changed, "gone": gone, "log": log}


def versions() -> dict[str, str | None]:
    """Versions of `PACKAGES` on this machine; None for one that is missing."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _take(folder: Path) -> IO[bytes]:
    """Lock a folder for this process, and remove those that others have left behind because they were killed."""
    for old in folder.parent.glob(f"{PREFIX}*"):
        try:
            with open(old / LOCK, "rb") as file:
                unused = _locked(file)
        except OSError:
            continue  # somebody else's, or just being made
        if unused:
            shutil.rmtree(old, ignore_errors=True)
    lock = open(folder / f"{LOCK}.new", "xb")  # noqa: SIM115
    _locked(lock)
    # Under its name it is never seen unlocked while it is in use.
    os.rename(folder / f"{LOCK}.new", folder / LOCK)
    return lock


def _locked(file: IO[bytes]) -> bool:
    """Lock a file; False if another process holds it, or if this system has no such locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True
