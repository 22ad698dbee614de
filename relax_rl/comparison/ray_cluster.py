"""Commands on the nodes of a Ray cluster, which need share no disk with this machine.

A run is an actor: Ray places it where its CPUs and GPUs are free, brings this package there as a runtime environment, and
ends it with its node or with this process. What changes in its folder there comes back through Ray's object store once in
a while and at the end, checkpoints included, and is written to the run's folder here. A run whose actor is lost goes on
from there.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, redirect_stderr, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from relax_rl.comparison.pool import ProcessLost
from relax_rl.comparison.ray_node import NodeRun, read_files, write_files
from relax_rl.comparison.task import Task
from relax_rl.compute.host import usable_cores
from relax_rl.compute.installation import install_line
from relax_rl.compute.serialization import writing
from relax_rl.errors import RelaxRLError, SettingsError
from relax_rl.runs import versions
from relax_rl.runs.record import PACKAGES

__all__ = ["RayCluster", "RayProcess", "check"]

COLLECT = 60.0
"""Seconds between two collections of the files of a run in progress."""

_ANSWER = 5.0
"""Seconds that a cluster's port may take to answer."""
_PATIENCE = 60.0
"""Seconds that it may take to connect, and without a free node after which the user is told."""
_GONE = 20.0
"""Seconds without an answer after which a cluster is given up; Ray itself would end this process after a minute."""
_PLACES = 5
"""How often a run that has not begun is given to another node."""
_LOOK = 2.0
"""Seconds that a node waits for the end of a command before it tells how far that has got."""


def check(address: str) -> None:
    """See that Ray is installed, and that something answers at the address.

    Raises:
        SettingsError: Ray is missing.
        RelaxRLError: nothing answers.
    """
    if find_spec("ray") is None:
        raise SettingsError(f"--ray-address needs Ray, which is missing: {install_line('ray')}")
    if ":" in address:
        try:
            socket.create_connection(_endpoint(address), timeout=_ANSWER).close()
        except OSError as error:
            why = error.strerror or error
            raise RelaxRLError(f"no Ray cluster answers at {address}: {why}; {_advice(address)}") from None


class RayCluster:
    """A cluster that commands can be started on.

    Args:
        address: of the cluster, as Ray understands it; "local" starts one on this machine, for as long as this lasts.
        root: the comparison's folder.

    Attributes:
        about: `address`, `cpus` and `nodes`, of the moment of connecting.
        errors: where standard error led before: what Ray prints goes to `logs/ray.log` as long as this lasts.
        warn: takes a line about something that ends no run.

    Raises:
        RelaxRLError: no cluster answers, or it cannot be used.
    """

    def __init__(self, address: str, root: Path) -> None:
        self.root, self._address = root, address
        self.warn: Callable[[str], None] = lambda line: None
        with ExitStack() as stack:
            self.errors = _apart(root / "logs" / "ray.log", stack)
            self.ray = _connect(address)
            stack.callback(self.ray.shutdown)
            self._leave = stack.pop_all()
        nodes = self._nodes()
        self.about: dict[str, Any] = {"address": address, "nodes": len(nodes)}
        self.about["cpus"] = int(sum(node.get("CPU", 0) for node in nodes))
        self._endpoint = _endpoint(address if ":" in address else self.ray.get_runtime_context().gcs_address)
        self._heard, self._versions, self._compared = time.monotonic(), versions(PACKAGES), set[str]()

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
        if found != self._versions and node not in self._compared:
            there, here = (" ".join(map(" ".join, sorted(each.items()))) for each in (found, self._versions))
            self.warn(f"{node} has {there}, here is {here}: numbers need not agree")
        self._compared.add(node)

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
        self._actor: Any = None
        self._answer: Any = None
        self._node, self._since, self._places = "", time.monotonic(), 0
        try:
            self._wanted = cluster.resources(task)
        except RelaxRLError as error:
            self._fail(str(error))
            return
        self._arguments = task.command(cluster.root), task.folder, self._ray.put(read_files(self._folder)), COLLECT
        self._place()

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
            self._take(self._ray.get(self._answer))
        except self._ray.exceptions.RayActorError as error:
            if getattr(error, "actor_init_failed", False):
                return self._fail(_one_line(error))
            self._ray.kill(self._actor)
            if not self._node and self._places < _PLACES:  # on a node of whose death Ray had not heard
                self._place()
                return None
            raise ProcessLost(
                f"{self._node or 'its node'} is lost, or its process there ({_one_line(error)})"
            ) from None
        except self._ray.exceptions.RayError as error:
            return self._fail(_one_line(error))
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

    def _place(self) -> None:
        """Let Ray find a node, and begin there."""
        self._places += 1
        kind = self._ray.remote(NodeRun).options(
            num_cpus=self._wanted["CPU"], num_gpus=self._wanted["GPU"], max_restarts=0, scheduling_strategy="SPREAD"
        )
        self._actor = kind.remote(*self._arguments)
        self._answer = self._actor.about.remote()

    def _take(self, found: Mapping[str, Any]) -> None:
        """What the node has told: where it is; then how far the command is, files first and then that it has ended."""
        if "node" in found:
            self._node = found["node"]
            self._cluster.compare(self._node, found["versions"])
            return
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
        if not self._node and self._since and time.monotonic() - self._since > _PATIENCE:
            self._since = 0.0
            line = f"has waited {_PATIENCE:.0f} seconds for {describe(self._wanted)} on a node, and goes on waiting"
            self._cluster.warn(f"{self._name}: {line}")


def describe(resources: Mapping[str, float]) -> str:
    """`1 CPU`, `4 CPUs and 1 GPU`."""
    counts = {kind: count for kind, count in resources.items() if count or kind == "CPU"}
    return " and ".join(f"{count:g} {kind}{'' if count == 1 else 's'}" for kind, count in counts.items())


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
        RelaxRLError: no cluster answers, or it cannot be used.
    """
    # Nobody is counted who has not asked for it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    options: dict[str, Any] = {"runtime_env": {"py_modules": [str(Path(__file__).resolve().parents[1])]}}
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
    """What an error says, in one line without colours."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())[:300] or type(error).__name__
