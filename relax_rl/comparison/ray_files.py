"""Files on their way between this machine and the nodes of a cluster that share no disk with it."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import relax_rl
from relax_rl.comparison.recording import OUTCOME, SNAPSHOTS
from relax_rl.serialization import write_bytes_atomic, writing

__all__ = ["RESULT", "RUN", "Mirror", "Names", "apply_changes", "inputs", "package", "translation"]

RUN, RESULT = "run", "result.json"


class Names:
    """What the files of a task are called on the way, and where they lie on a machine.

    A file `x` of the run's folder travels as `run/x`; the result of a measurement as `result.json`.

    Args:
        folder: of the run.
        result: of a measurement, if it is one.
    """

    def __init__(self, folder: str, result: str | None = None) -> None:
        self._folder, self._result = Path(folder), result

    @classmethod
    def of(cls, task: Mapping[str, Any]) -> Names:
        """Those of a task's message."""
        return cls(task["folder"], task.get("result"))

    def path(self, name: str) -> Path:
        """Where a file lies.

        Raises:
            ValueError: the name leads elsewhere.
        """
        if name == RESULT and self._result is not None:
            return Path(self._result)
        first, *rest = PurePosixPath(name).parts
        if first != RUN or not rest or ".." in rest:
            raise ValueError(f"{name!r} is no file of the task")
        return self._folder.joinpath(*rest)

    def found(self) -> dict[str, Path]:
        """The files that are there, by name; those that are just being written are left out."""
        paths = {}
        for root, _, files in os.walk(self._folder):
            for file in files:
                path = Path(root, file)
                if not (file.startswith(".") and file.endswith(".tmp")):
                    paths[f"{RUN}/{path.relative_to(self._folder).as_posix()}"] = path
        if self._result is not None and Path(self._result).exists():
            paths[RESULT] = Path(self._result)
        return paths


class Mirror:
    """Tells which files of a task have changed since it was last asked.

    Args:
        names: of the files here.
        known: that the other side has.
        translate: the content of a JSON file as it should be there.
    """

    def __init__(self, names: Names, known: Iterable[str] = (), translate: Callable[[bytes], bytes] = bytes) -> None:
        self._names, self._translate = names, translate
        self._known: dict[str, tuple[int, int] | None] = dict.fromkeys(known)

    def settle(self) -> None:
        """Take the files that are here for those that the other side has."""
        for name, path in self._names.found().items():
            about = path.stat()
            self._known[name] = (about.st_mtime_ns, about.st_size)

    def changes(self) -> tuple[dict[str, bytes], list[str]]:
        """Files that are new or different, by name, and names of those that are gone.

        Checkpoints are read before the tables, which may thus reach further than these, but never end before them.
        """
        changed: dict[str, bytes] = {}
        found = self._names.found()
        for name in sorted(found, key=lambda name: (not name.endswith(".safetensors"), name)):
            try:
                about = found[name].stat()
                if self._known.get(name) == (about.st_mtime_ns, about.st_size):
                    continue
                data = found[name].read_bytes()
            except FileNotFoundError:
                continue  # an old checkpoint, removed this very moment
            self._known[name] = (about.st_mtime_ns, about.st_size)
            changed[name] = self._translate(data) if name.endswith(".json") else data
        gone = [name for name in self._known if name not in found]
        for name in gone:
            del self._known[name]
        return changed, gone


def apply_changes(names: Names, changed: Mapping[str, bytes], gone: Iterable[str]) -> None:
    """Bring files up to what a `Mirror` has told, each atomically.

    Tables come before checkpoints, and the outcome, which says that the run is complete, comes after all others: a stop in
    between leaves something that can be gone on with.

    Raises:
        RelaxRLError: a file cannot be written.
        ValueError: a name leads elsewhere.
    """
    last = (f"{RUN}/{OUTCOME}", RESULT)
    for name in sorted(changed, key=lambda name: (name in last, name.endswith(".safetensors"), name)):
        path = names.path(name)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(path, changed[name])
    for name in gone:
        path = names.path(name)
        with writing(path):
            path.unlink(missing_ok=True)


def inputs(task: Mapping[str, Any]) -> tuple[dict[str, bytes], list[str]]:
    """The files that a task is worked on from, and the names of all that it may replace or remove."""
    found = Names.of(task).found()
    if task["kind"] == "peer":  # starts over
        return {}, list(found)
    if task["kind"] == "variance":
        checkpoint = Path(task["checkpoint"]).relative_to(task["folder"]).as_posix()
        wanted = [name for name in found if name == f"{RUN}/{checkpoint}" or name.count("/") == 1]
    else:
        wanted = [name for name in found if not name.startswith(f"{RUN}/{SNAPSHOTS}/")]
    return {name: found[name].read_bytes() for name in wanted}, wanted


def translation(pairs: Iterable[tuple[str, str]]) -> Callable[[bytes], bytes]:
    """What replaces paths, `(from, to)` each, in JSON."""
    escaped = [tuple(json.dumps(path)[1:-1].encode() for path in pair) for pair in pairs]

    def translate(data: bytes) -> bytes:
        for before, after in escaped:
            data = data.replace(before, after)
        return data

    return translate


def package() -> bytes:
    """This relax_rl, as a ZIP file that another machine's Python can take it from once it is unpacked."""
    root = Path(relax_rl.__file__).resolve().parent
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                archive.write(path, path.relative_to(root.parent))
    return buffer.getvalue()
