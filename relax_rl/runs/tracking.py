"""A run's numbers to a tracker, Weights & Biases, MLflow or Trackio, by a process of its own.

The training never waits for that process while it goes on, and at its end for a limited time; whatever fails there is a
warning, once for each tracker.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from relax_rl.compute.installation import install_line
from relax_rl.compute.serialization import write_json
from relax_rl.errors import RelaxRLError, SettingsError
from relax_rl.runs import trackers
from relax_rl.runs.folder import RunFolder
from relax_rl.runs.loggers import GroupLogger, named_numbers
from relax_rl.runs.record import object_in

__all__ = ["Tracker", "default_project", "places", "require_trackers"]

_MOST = 2**25
"""Bytes that wait for a tracker; where more would have to, it is given up."""
_LEAVING = 10.0
"""Seconds, at most, in which a tracker that has everything has to leave."""


def require_trackers(names: Iterable[str]) -> None:
    """Raises SettingsError if the package of one of these trackers is missing."""
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # W&B leaves a folder of this very name where it works
            raise SettingsError(f"--track {name} needs {name}, which is missing: {install_line(name)}")


def default_project(env: str) -> str:
    """The project of runs on an environment: its id, as far as trackers take it."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in env.rpartition(":")[2])


def places(folder: RunFolder) -> dict[str, str]:
    """Where each tracker of a run shows it, or the command that does, by name."""
    found = {name: entry.get("place") for name, entry in object_in(folder.tracking).items() if isinstance(entry, dict)}
    return {name: place for name, place in found.items() if isinstance(place, str)}


class Tracker(GroupLogger):
    """Rows of numbers to a tracker, each under the name that it has in TensorBoard.

    Args:
        name: of the tracker, one of `relax_rl.runs.trackers.TRACKERS`.
        folder: of the run; it keeps by which name the tracker knows it (`tracking.json`), and what it prints.
        project: that the run belongs to there.
        settings: its hyperparameters.
        resumed: go on with the tracked run that the folder knows of, if that is of the same project.

    Attributes:
        name: as given.
    """

    def __init__(
        self, name: str, folder: RunFolder, *, project: str, settings: Mapping[str, Any], resumed: bool
    ) -> None:
        self.name, self._folder, self._project = name, folder, project
        self._step, self._code, self._ended = 0, 1, False  # failed, unless `finish` says otherwise
        self._outcome: dict[str, float] = {}
        self._figure: str | None = None
        self._deadline = math.inf
        self._pending, self._heard = bytearray(), b""
        self._warned = self._lost = False
        self._process = _started(name, folder)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        for pipe in (self._to, self._from):
            os.set_blocking(pipe, False)
        before = object_in(folder.tracking).get(name) if resumed else None
        known = before if isinstance(before, dict) and before.get("project") == project else {}
        self._send(
            begin={
                "project": project,
                "name": folder.path.name,
                "identity": known.get("identity"),
                "settings": json.loads(json.dumps(settings, default=str)),
                "folder": str(folder.path),
            }
        )

    def log(self, row: Mapping[str, float], *, group: str | None = None) -> None:
        self._step = int(row["step"])
        self._send(step=self._step, log=named_numbers(row, group))

    def finish(self, step: int, outcome: Mapping[str, float], *, figure: Path | None = None, code: int = 0) -> None:
        self._step, self._outcome, self._code = step, {name: float(x) for name, x in outcome.items()}, code
        self._figure = None if figure is None else str(figure)
        self._end()

    def close(self) -> None:
        self._end()
        while not (self._lost or self._ended) and (left := self._deadline - time.monotonic()) > 0:
            select.select([self._from], [self._to] if self._pending else [], [], left)
            self._push()
        if not (self._lost or self._ended):
            self._warn(f"has not taken everything in {trackers.PATIENCE:.0f} s")
        self._leave()

    def _end(self) -> None:
        """Say that the run has ended; from here on, time counts."""
        if math.isinf(self._deadline):
            self._deadline = time.monotonic() + trackers.PATIENCE
            self._send(step=self._step, end={"outcome": self._outcome, "figure": self._figure, "code": self._code})

    def _leave(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()
        try:
            self._process.wait(min(_LEAVING, max(0.0, self._deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _send(self, **message: Any) -> None:
        if self._lost:
            return
        self._pending += json.dumps(message).encode() + b"\n"
        self._push()
        if len(self._pending) > _MOST and not self._lost:
            self._lost = True
            self._warn("has taken nothing for long")

    def _push(self) -> None:
        """Hand on what can be handed on at once, and hear what there is to hear."""
        try:
            while self._pending:
                del self._pending[: os.write(self._to, self._pending)]
        except BlockingIOError:
            pass
        except OSError:  # it has left; what it has said stands below
            self._pending.clear()
        while not self._lost:
            try:
                found = os.read(self._from, 2**16)
            except BlockingIOError:
                return
            self._heard += found
            *lines, self._heard = self._heard.split(b"\n")
            for line in lines:
                self._hear(json.loads(line))
            if not found:
                self._lost = True
                if not self._ended:
                    self._warn("has left before the end")

    def _hear(self, answer: Mapping[str, str]) -> None:
        if "identity" in answer:
            try:
                known = object_in(self._folder.tracking)
                write_json(self._folder.tracking, {**known, self.name: {"project": self._project, **answer}})
            except RelaxRLError as error:
                self._warn(str(error))
        elif "error" in answer:
            self._warn(answer["error"])
        self._ended = self._ended or "ended" in answer

    def _warn(self, what: str) -> None:
        """Say once that something is wrong: one line, whatever follows from it."""
        if not self._warned:
            self._warned = True
            said = f"--track {self.name}: {what}; the run goes on, its numbers are in {self._folder.progress.name}"
            warnings.warn(f"{said}, and what {self.name} printed in {self._folder.tracking_log.name}", stacklevel=2)


def _started(name: str, folder: RunFolder) -> subprocess.Popen[bytes]:
    """The process of a tracker, which imports what this one does, and which no terminal signals."""
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    with open(folder.tracking_log, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "relax_rl.runs.trackers", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,
        )
