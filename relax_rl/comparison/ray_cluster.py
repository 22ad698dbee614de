"""Commands on the nodes of a Ray cluster, which need share no disk with this machine.

A run is an actor: Ray places it where its CPUs and GPUs are free, brings this package there as a runtime environment, and
ends it with its node or with this process. It works in a folder for temporary files; what changes there comes back through
Ray's object store once in a while and at the end, checkpoints included, and is written to the run's folder here. A run
whose actor is lost goes on from there.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import relax_rl
from relax_rl.checkpoint_files import newest_first
from relax_rl.comparison.config import usable_cores
from relax_rl.comparison.pool import OUTCOME, ProcessLost, Task
from relax_rl.comparison.process import CommandProcess
from relax_rl.errors import RelaxRLError, SettingsError
from relax_rl.runs import RunFolder, versions
from relax_rl.serialization import write_bytes_atomic, writing

__all__ = ["NodeRun", "RayCluster", "check_installed"]

PACKAGES = ("torch", "gymnasium", "numpy")
"""What a run's numbers depend on."""
PREFIX = "relax-rl-node-"
"""Of the names of folders on nodes."""
COLLECT = 60.0
"""Seconds between two collections of the files of a run in progress."""

_ANSWER = 5.0
"""Seconds that a cluster's port may take to answer."""
_PATIENCE = 60.0
"""Seconds that it may take to connect."""
_GONE = 20.0
"""Seconds without an answer after which a cluster is given up; Ray itself would end this process after a minute."""
_UNHEARD = 60.0
"""Seconds without a free node after which the user is told."""
_LOOK = 2.0
"""Seconds that a node waits for the end of a command before it tells how far that has got."""


def check_installed() -> None:
    """Raises:
    SettingsError: Ray is missing.
    """
    if find_spec("ray") is None:
        raise SettingsError("--ray-address needs Ray, which is missing: pip install 'relax-rl[ray]'")


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
        self._folder, self._interval = self._root / run, collect_interval
        write_files(self._folder, files, ())
        self._known = {name: stamp for name, (_, stamp) in _files(self._folder).items()}
        self._log, self._log_told, self._collected = self._root / "log", 0, time.monotonic()
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
        files, present = {}, _files(self._folder)
        for name in sorted(present, key=_checkpoints_first):
            path, stamp = present[name]
            if self._known.get(name) != stamp:
                with suppress(FileNotFoundError):  # an old checkpoint, removed this very moment
                    files[name], self._known[name] = path.read_bytes(), stamp
        gone = [name for name in self._known if name not in present]
        self._known = {name: stamp for name, stamp in self._known.items() if name in present}
        log = self._log.read_bytes()[self._log_told :]
        self._log_told += len(log)
        self._collected = time.monotonic()
        return {"files": files, "gone": gone, "log": log}


class RayCluster:
    """A cluster that commands can be started on.

    Args:
        address: of the cluster, as Ray understands it; "local" starts one on this machine, for as long as this lasts.
        root: the comparison's folder.

    Attributes:
        about: `address`, `cpus` and `nodes`, of the moment of connecting.
        warn: takes a line about something that ends no run.
        errors: where standard error led before: what Ray prints goes to `logs/ray.log` as long as this lasts.

    Raises:
        RelaxRLError: no cluster answers, or it cannot be used.
    """

    def __init__(self, address: str, root: Path) -> None:
        self.root = root
        self.warn: Callable[[str], None] = lambda line: None
        with ExitStack() as stack:
            self.errors = _apart(root / "logs" / "ray.log", stack)
            self.ray = _connect(address)
            stack.callback(self.ray.shutdown)
            self._leave = stack.pop_all()
        self._address, self._heard = address, time.monotonic()
        host = address if ":" in address else self.ray.get_runtime_context().gcs_address
        self._endpoint = _endpoint(host)
        nodes = self._nodes()
        self.about: dict[str, Any] = {"address": address, "nodes": len(nodes)}
        self.about["cpus"] = int(sum(node.get("CPU", 0) for node in nodes))
        self._versions, self._compared = versions(PACKAGES), set[str]()

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the cluster."""
        self._leave.close()

    def start(self, task: Task, log: Path) -> RayProcess:
        """Start the command of a task on a node that has room for it."""
        return RayProcess(self, task, log)

    def resources(self, task: Task) -> dict[str, float]:
        """CPUs and GPUs that a task takes; one that takes all of a machine's CPUs gets those of the largest node.

        Raises:
            RelaxRLError: more than any node has.
        """
        most = {kind: max((node.get(kind, 0.0) for node in self._nodes()), default=0.0) for kind in ("CPU", "GPU")}
        wanted = {"CPU": float(task.cpus) or max(1.0, most["CPU"]), "GPU": float(task.gpus)}
        # A cluster of which no node has any CPU grows when something waits for it.
        if most["CPU"] and any(wanted[kind] > most[kind] for kind in wanted):
            raise RelaxRLError(f"it needs {describe(wanted)}, the largest node has {describe(most)}")
        return wanted

    def compare(self, node: str, found: Mapping[str, str]) -> None:
        """Tell, once for each node, of versions with which numbers need not agree."""
        other = [name for name, version in self._versions.items() if found.get(name) != version]
        if other and node not in self._compared:
            self._compared.add(node)
            there = ", ".join(f"{name} {found.get(name, 'missing')}" for name in other)
            here = ", ".join(f"{name} {self._versions[name]}" for name in other)
            self.warn(f"{node} has {there}, here is {here}: numbers need not agree")

    def check(self) -> None:
        """See, now and then, that the cluster still answers.

        Raises:
            RelaxRLError: it has not for some time.
        """
        silent = time.monotonic() - self._heard
        if silent < _LOOK:
            return
        try:
            socket.create_connection(self._endpoint, timeout=_LOOK).close()
            self._heard = time.monotonic()
        except OSError as error:
            if silent > _GONE:
                raise RelaxRLError(
                    f"the Ray cluster at {self._address} is lost ({error.strerror or error}); what was collected before is "
                    f"kept: go on with --resume {self.root} once it is back, or with another --ray-address"
                ) from None

    def _nodes(self) -> list[dict[str, float]]:
        """Resources of every node."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]


class RayProcess:
    """A command on a node, as a pool sees it.

    Args:
        cluster: that it is on.
        task: whose command it is.
        log: file that its output is added to.
    """

    def __init__(self, cluster: RayCluster, task: Task, log: Path) -> None:
        self._cluster, self._ray, self._log = cluster, cluster.ray, log
        self._folder, self._name = cluster.root / task.folder, task.name
        self._row: Mapping[str, float] = {}
        self._code: int | None = None
        self._node, self._since, self._stopping = "", time.monotonic(), False
        try:
            wanted = cluster.resources(task)
        except RelaxRLError as error:
            self._fail(str(error))
            return
        self._wanted = describe(wanted)
        kind = self._ray.remote(NodeRun).options(
            num_cpus=wanted["CPU"], num_gpus=wanted["GPU"], max_restarts=0, scheduling_strategy="SPREAD"
        )
        inputs = self._ray.put(_inputs(self._folder))
        self._actor = kind.remote(task.command(cluster.root), task.folder, inputs, COLLECT)
        self._answer = self._actor.about.remote()

    def poll(self) -> int | None:
        """The exit code, once the run's files are in its folder here; None while it works.

        Raises:
            ProcessLost: its node, or its process there, is lost.
            RelaxRLError: the cluster is lost, or a file cannot be written.
        """
        if self._code is not None:
            return self._code
        self._cluster.check()
        if not self._ray.wait([self._answer], timeout=0)[0]:
            self._tell_of_waiting()
            return None
        try:
            found = self._ray.get(self._answer)
        except self._ray.exceptions.RayActorError as error:
            if getattr(error, "actor_init_failed", False):
                return self._fail(_one_line(error))
            self._ray.kill(self._actor)
            raise ProcessLost(
                f"{self._node or 'its node'} is lost, or its process there ({_one_line(error)})"
            ) from None
        except self._ray.exceptions.RayError as error:
            return self._fail(_one_line(error))
        if "node" in found:
            self._node = found["node"]
            self._cluster.compare(self._node, found["versions"])
        else:
            self._take(found)
        if self._code is None:
            self._answer = self._actor.look.remote(_LOOK)
        else:
            self._ray.kill(self._actor)
        return self._code

    def progress(self) -> Mapping[str, float]:
        """The last row of the run's `progress.csv`, by column; empty before the first one."""
        return self._row

    def stop(self) -> None:
        """Ask it to save its run and to leave."""
        self._stopping = True
        if self._code is None and self._node:
            self._actor.stop.remote()
        elif self._code is None:  # it has not begun
            self._ray.kill(self._actor)
            self._code = -signal.SIGTERM

    def wait(self, seconds: float) -> int:
        """Wait until it has left and its files are here; after so long it is killed."""
        deadline = time.monotonic() + seconds
        with suppress(ProcessLost, RelaxRLError):
            while self.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
        if self._code is None:
            self._ray.kill(self._actor)
            self._code = -signal.SIGKILL
        return self._code

    def _take(self, found: Mapping[str, Any]) -> None:
        """What the node has told: files first, then that the command has ended."""
        self._row = found["row"]
        if "files" in found:
            write_files(self._folder, found["files"], found["gone"])
            self._add_to_log(found["log"])
        self._code = found["code"]

    def _fail(self, why: str) -> int:
        self._add_to_log(f"error: {why}\n".encode())
        self._code = 2
        return self._code

    def _add_to_log(self, text: bytes) -> None:
        with writing(self._log), open(self._log, "ab") as file:
            file.write(text)

    def _tell_of_waiting(self) -> None:
        if not self._node and self._since and time.monotonic() - self._since > _UNHEARD:
            self._since = 0.0
            self._cluster.warn(
                f"{self._name}: has waited {_UNHEARD:.0f} seconds for {self._wanted} on a node, and goes on waiting"
            )


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


def _own_folder() -> tuple[Path, IO[bytes]]:
    """A folder for temporary files and the lock that is held on it; those of killed processes are removed first."""
    import fcntl

    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError), open(old / ".lock", "rb") as file:  # somebody else's, or just being made
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = open(folder / ".lock.new", "xb")  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / ".lock.new").rename(folder / ".lock")  # under its name it is never seen unlocked while it is in use
    return folder, lock


def describe(resources: Mapping[str, float]) -> str:
    """`1 CPU`, `4 CPUs and 1 GPU`."""
    counts = {kind: count for kind, count in resources.items() if count or kind == "CPU"}
    return " and ".join(f"{count:g} {kind}{'' if count == 1 else 's'}" for kind, count in counts.items())


def _files(folder: Path) -> dict[str, tuple[Path, tuple[int, int]]]:
    """Path, and time and size, of every file but those that are just being written, by name."""
    found = {}
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file() and not (path.name.startswith(".") and path.suffix == ".tmp"):
                about = path.stat()
                found[path.relative_to(folder).as_posix()] = path, (about.st_mtime_ns, about.st_size)
    return found


def _inputs(folder: Path) -> dict[str, bytes]:
    """What a run goes on from: all files but the older ones of many checkpoints."""
    skipped = set(newest_first(RunFolder(folder).checkpoints)[2:])
    found = {name: path for name, (path, _) in _files(folder).items() if path not in skipped and name != OUTCOME}
    return {name: path.read_bytes() for name, path in found.items()}


def _checkpoints_first(name: str) -> tuple[bool, str]:
    return not name.startswith("checkpoints/"), name


def _endpoint(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return host.strip("[]"), int(port)


def _apart(path: Path, stack: ExitStack) -> IO[str]:
    """Have standard error, on which Ray tells of all it misses, lead to a file; returns where it led before."""
    log = stack.enter_context(open(path, "a", encoding="utf-8"))  # noqa: SIM115
    before, descriptor = sys.stderr, os.dup(2)
    kept = stack.enter_context(os.fdopen(descriptor, "w", encoding="utf-8", errors="replace"))
    stack.callback(os.dup2, descriptor, 2)
    stack.enter_context(redirect_stderr(log))
    os.dup2(log.fileno(), 2)
    return kept if before is sys.__stderr__ else before


def _connect(address: str) -> Any:
    """The Ray module, connected.

    Raises:
        RelaxRLError: no cluster answers.
    """
    if ":" in address:
        try:
            socket.create_connection(_endpoint(address), timeout=_ANSWER).close()
        except OSError as error:
            raise RelaxRLError(
                f"no Ray cluster answers at {address}: {error.strerror or error}; {_advice(address)}"
            ) from None
    # Nobody is counted who has not asked for it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    options: dict[str, Any] = {"runtime_env": {"py_modules": [str(Path(relax_rl.__file__).resolve().parent)]}}
    if address == "local":
        options |= {"include_dashboard": False, "num_cpus": usable_cores(), "object_store_memory": 200_000_000}
    failures: list[Exception] = []

    def init() -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # whatever it is, the cluster cannot be used
            failures.append(error)

    # Apart, as it waits for minutes where something answers that is no cluster, and would take over SIGTERM.
    waiting = threading.Thread(target=init, daemon=True)
    waiting.start()
    waiting.join(_PATIENCE)
    if failures or waiting.is_alive():
        why = f"cannot be used: {_one_line(failures[0])}" if failures else f"has not answered within {_PATIENCE:.0f} s"
        raise RelaxRLError(f"the Ray cluster at {address} {why}; {_advice(address)}")
    return ray


def _advice(address: str) -> str:
    """What can be done where no cluster answers."""
    if address == "local":
        return "leave out --ray-address to train in processes of this machine"
    if address == "auto":
        return "start one by `ray start --head`, or give its address by --ray-address HOST:PORT"
    token = "if the cluster asks for a token, set RAY_AUTH_MODE=token"
    if address.startswith("ray://"):
        return f"check that its head node runs and lets clients in (`ray start --head --ray-client-server-port PORT`); {token}"
    return f"check the address that `ray start --head` has told, and that this machine is one of its nodes; {token}"


def _one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
