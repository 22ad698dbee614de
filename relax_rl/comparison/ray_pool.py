"""Workers on a Ray cluster, for the same pool as those on this machine."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from relax_rl.comparison.worker_process import Tell, own_environment, send
from relax_rl.errors import RelaxRLError, SettingsError
from relax_rl.runs.interruption import Interruption

__all__ = ["RayCluster", "check_installed"]

_PATIENCE = 120.0
"""Seconds that the bridge gets to leave before it is killed."""


def check_installed() -> None:
    """Raises:
    SettingsError: Ray is missing.
    """
    if find_spec("ray") is None:
        raise SettingsError("--ray-address needs Ray, which is missing: pip install 'relax-rl[ray]'")


class RayCluster:
    """A cluster that workers can be started on, by way of a process that speaks with it (see `ray_bridge`).

    Args:
        address: of the cluster, as Ray understands it; "local" starts one on this machine, for as long as this lasts.
        log: file for what the Ray library prints.
        held: a file descriptor that the process inherits: a lock on it is held until all runs have been collected.
        interruption: ends the waiting for an answer.
        timeout: seconds that the cluster may take to answer.
        collect_interval: seconds between two collections of the files of a run in progress.

    Attributes:
        about: `address`, `cpus` and `nodes`, of the moment of connecting.

    Raises:
        RelaxRLError: no cluster answers, or it cannot be used.
    """

    def __init__(
        self,
        address: str,
        log: Path,
        *,
        held: int | None = None,
        interruption: Interruption | None = None,
        timeout: float = 60.0,
        collect_interval: float = 60.0,
    ) -> None:
        self._address, self._workers = address, dict[int, _RayWorker]()
        self._gone = ""
        with open(log, "ab") as errors:
            self._bridge = subprocess.Popen(
                [sys.executable, "-m", "relax_rl.comparison.ray_bridge", address, str(collect_interval)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=own_environment(),
                # Ctrl-C in a terminal is for this process alone.
                start_new_session=True,
                pass_fds=() if held is None else (held,),
            )
        first: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._listen, args=(first.put, log), daemon=True).start()
        answer = self._first_of(first, timeout, interruption)
        if answer.get("event") != "ready":
            self._kill()
            raise RelaxRLError(f"{answer['error']}; {_advice(address)}")
        self.about = {"address": address, "cpus": answer["cpus"], "nodes": answer["nodes"]}

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the cluster; runs that are still in progress are saved and collected first."""
        assert self._bridge.stdin is not None
        with suppress(OSError):  # it has ended with something unread
            self._bridge.stdin.close()
        try:
            self._bridge.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._kill()

    @property
    def cpus(self) -> int:
        """CPUs of all nodes together."""
        return int(self.about["cpus"])

    def start(self, tell: Tell) -> _RayWorker:
        """A worker on the cluster."""
        number = len(self._workers)
        self._workers[number] = worker = _RayWorker(number, tell, self._send)
        return worker

    def _first_of(
        self, messages: queue.Queue[dict[str, Any]], timeout: float, interruption: Interruption | None
    ) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and not interruption:
            with suppress(queue.Empty):
                return messages.get(timeout=0.2)
        if interruption:
            return {"error": f"interrupted while waiting for the Ray cluster at {self._address}"}
        where = "on this machine" if self._address in ("auto", "local") else f"at {self._address}"
        return {"error": f"no Ray cluster has answered {where} within {timeout:.0f} seconds"}

    def _send(self, command: Mapping[str, Any]) -> None:
        if self._gone:
            if command["do"] == "give":
                raise RelaxRLError(self._gone)
            return
        send(self._bridge, command)

    def _listen(self, first: Callable[[dict[str, Any]], None], log: Path) -> None:
        assert self._bridge.stdout is not None
        for line in self._bridge.stdout:
            message = json.loads(line)
            if "slot" in message:
                self._workers[message["slot"]].tell(message)
            else:
                first(message)
        first({"error": f"the connection to the Ray cluster at {self._address} has failed, see {log}"})
        self._gone = (
            f"the Ray cluster at {self._address} is lost, see {log}; what was collected before is kept: go on with --resume "
            f"{log.parent.parent} once it is back, or with another --ray-address"
        )
        for worker in tuple(self._workers.values()):
            worker.tell({"event": "broken", "error": self._gone})

    def _kill(self) -> None:
        self._bridge.kill()
        self._bridge.wait()


class _RayWorker:
    """One worker, as a pool sees it."""

    def __init__(self, number: int, tell: Tell, send: Callable[[dict[str, Any]], None]) -> None:
        self._number, self.tell, self._send = number, tell, send

    def give(self, message: Mapping[str, Any]) -> None:
        """Hand over a task.

        Raises:
            RelaxRLError: the cluster is lost.
        """
        self._send({"do": "give", "slot": self._number, "task": dict(message)})

    def stop(self) -> None:
        """Ask for the run at hand to be saved and collected."""
        self._send({"do": "stop", "slot": self._number})

    def dismiss(self) -> None:
        """Give its CPUs back."""
        self._send({"do": "dismiss", "slot": self._number})

    def wait(self, seconds: float) -> None:
        """Nothing to wait for: leaving the cluster waits for all."""


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
