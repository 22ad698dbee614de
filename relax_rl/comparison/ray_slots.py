"""What a comparison has on a Ray cluster: slots, each with a task and with an actor that works on it.

An actor is a process that Ray puts on a node where the CPUs that the task wants are free. It keeps them until its slot has
been idle for a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from relax_rl.comparison.ray_files import Names, apply_changes, inputs, package
from relax_rl.comparison.ray_node import versions
from relax_rl.errors import RelaxRLError

__all__ = ["RESTARTS", "Slots", "one_line", "wants"]

RESTARTS = 2
"""How often a run is started again because its node or its process was lost."""

_IDLE = 10.0
"""Seconds after which a slot without a task gives its CPUs back."""
_UNHEARD = 60.0
"""Seconds without a free node after which the user is told."""


@dataclass
class _Slot:
    number: int
    task: dict[str, Any] | None = None
    actor: Any = None
    wants: tuple[float, float] = (0.0, 0.0)
    phase: str = "joining"
    pending: Any = None
    node: str = ""
    losses: int = 0
    stopping: bool = False
    since: float = 0.0
    told: bool = False


class Slots:
    """All slots, by their numbers.

    Args:
        ray: the module, connected.
        tell: takes messages, with the number of their slot.
        collect_interval: seconds between two collections of a run's files.
    """

    def __init__(self, ray: Any, tell: Callable[[dict[str, Any]], None], *, collect_interval: float = 60.0) -> None:
        self._ray, self._tell, self._interval = ray, tell, collect_interval
        self._slots: dict[int, _Slot] = {}
        self._package = ray.put(package())
        self._own_versions = versions()
        self._nodes_told: set[str] = set()

    @property
    def busy(self) -> bool:
        """Whether any slot has a task."""
        return any(slot.task is not None for slot in self._slots.values())

    def handle(self, command: Mapping[str, Any]) -> None:
        """Do what a line of the comparison asks for."""
        slot = self._slots.setdefault(command["slot"], _Slot(command["slot"]))
        if command["do"] == "give":
            slot.task, slot.losses, slot.stopping = dict(command["task"]), 0, False
            self._place(slot)
        elif command["do"] == "stop":
            self._stop(slot)
        elif slot.task is None:
            self._release(slot)

    def stop_all(self) -> None:
        """Ask all workers to save and leave."""
        for slot in self._slots.values():
            self._stop(slot)

    def release_all(self) -> None:
        """Give all CPUs back."""
        for slot in self._slots.values():
            self._release(slot)

    def step(self) -> None:
        """Take in what has happened, for a fraction of a second."""
        waiting = {slot.pending: slot for slot in self._slots.values() if slot.pending is not None}
        if not waiting:
            time.sleep(0.05)
        else:
            ready, rest = self._ray.wait(list(waiting), timeout=0.2)
            if rest and ready:
                ready = [*ready, *self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]]
            for ref in ready:
                self._heard(waiting[ref], ref)
        for slot in self._slots.values():
            idle = time.monotonic() - slot.since
            if slot.task is None and slot.actor is not None and idle > _IDLE:
                self._release(slot)
            elif slot.phase == "joining" and slot.pending is not None and idle > _UNHEARD and not slot.told:
                slot.told = True
                line = f"has waited {_UNHEARD:.0f} seconds for {_resources(slot.wants)} on a node, and goes on waiting"
                self._say(slot, {"event": "warning", "line": line})

    def _say(self, slot: _Slot, message: Mapping[str, Any]) -> None:
        self._tell({**message, "slot": slot.number})

    def _end(self, slot: _Slot, outcome: Mapping[str, Any]) -> None:
        slot.task, slot.pending, slot.since = None, None, time.monotonic()
        self._say(slot, {"event": "done", "outcome": outcome})

    def _fail(self, slot: _Slot, why: str) -> None:
        self._end(slot, {"status": "failed", "error": why})

    def _place(self, slot: _Slot) -> None:
        """Find a worker for the slot's task: the one it has, if that has enough CPUs, or another one."""
        assert slot.task is not None
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        most = [max((float(node.get(kind, 0)) for node in nodes), default=0.0) for kind in ("CPU", "GPU")]
        wanted = wants(slot.task, most[0])
        # A cluster of which no node has any CPU grows when something waits for it.
        if most[0] and (wanted[0] > most[0] or wanted[1] > most[1]):
            self._fail(slot, f"it needs {_resources(wanted)}, the largest node has {_resources((most[0], most[1]))}")
            return
        if slot.actor is not None and slot.wants == wanted:
            self._begin(slot)
            return
        self._release(slot)
        slot.wants, slot.since, slot.told = wanted, time.monotonic(), False
        options = {"num_cpus": wanted[0], "num_gpus": wanted[1], "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        slot.actor = self._ray.remote(_node_class()).options(**options).remote(self._package, self._interval)
        slot.phase, slot.pending = "joining", slot.actor.call.remote("about")

    def _begin(self, slot: _Slot) -> None:
        assert slot.task is not None
        try:
            files, known = inputs(slot.task)
        except OSError as error:
            self._fail(slot, f"its files cannot be read: {error.strerror or error}")
            return
        slot.phase, slot.pending = "beginning", slot.actor.call.remote("begin", slot.task, files, known)

    def _heard(self, slot: _Slot, ref: Any) -> None:
        """The actor has answered, or is gone."""
        slot.pending = None
        if slot.task is None:
            return
        try:
            answer = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None) or error
            where = f" on {slot.node}" if slot.node else ""
            self._drop(slot)
            self._fail(slot, f"{type(cause).__name__}{where}: {one_line(cause)}")
            return
        except self._ray.exceptions.RayError as error:
            self._lost(slot, f"{slot.node or 'its node'} is lost ({type(error).__name__})")
            return
        if slot.phase == "joining":
            slot.node = answer["node"]
            missing = [name for name, version in answer["versions"].items() if version is None]
            if missing:
                node = slot.node
                self._release(slot)
                self._fail(slot, f"node {node} has no {', '.join(missing)}; install what relax-rl needs there")
                return
            self._compare(slot, answer["versions"])
            self._begin(slot)
            return
        if slot.phase == "beginning":
            slot.phase, answer = "working", []
        for message in answer:
            self._take(slot, message)
            if slot.task is None or slot.phase != "working":
                return  # ended, or begun anew
        slot.pending = slot.actor.call.remote("poll", 1.0)

    def _take(self, slot: _Slot, message: Mapping[str, Any]) -> None:
        """Take in what the worker has told; its files are written here."""
        assert slot.task is not None
        event = message["event"]
        if event == "files":
            try:
                self._write(slot.task, message)
            except (RelaxRLError, OSError, ValueError) as error:
                self._drop(slot)
                self._fail(slot, one_line(error))
        elif event == "done" and message["outcome"]["status"] == "interrupted" and not slot.stopping:
            self._lost(slot, f"it was stopped from outside on {slot.node}")
        elif event == "done":
            self._end(slot, message["outcome"])
        elif event == "gone" and slot.stopping:
            self._release(slot)
            self._end(slot, {"status": "interrupted"})
        elif event == "gone" and message["killed"]:
            self._lost(slot, f"{message['error']} on {slot.node}")
        elif event == "gone":
            self._fail(slot, f"{message['error'].partition(', see')[0]} on {slot.node}, see {slot.task['log']}")
        else:
            self._say(slot, message)

    def _write(self, task: Mapping[str, Any], message: Mapping[str, Any]) -> None:
        apply_changes(Names.of(task), message["changed"], message["gone"])
        with open(task["log"], "ab") as log:
            log.write(message["log"])

    def _lost(self, slot: _Slot, why: str) -> None:
        """What worked on the slot's task is gone: work on it anew, from what has been collected."""
        self._drop(slot)
        if slot.stopping:
            self._end(slot, {"status": "interrupted"})
        elif slot.losses < RESTARTS:
            slot.losses += 1
            self._say(slot, {"event": "warning", "line": f"{why}; started again"})
            self._place(slot)
        else:
            self._fail(slot, f"{why}; given up after {RESTARTS} restarts")

    def _stop(self, slot: _Slot) -> None:
        if slot.task is None or slot.stopping:
            return
        slot.stopping = True
        if slot.phase == "joining":
            self._drop(slot)
            self._end(slot, {"status": "interrupted"})
        else:
            slot.actor.call.remote("stop")

    def _drop(self, slot: _Slot) -> None:
        """End the slot's actor at once."""
        if slot.actor is not None:
            self._ray.kill(slot.actor)
        slot.actor, slot.pending, slot.node = None, None, ""

    def _release(self, slot: _Slot) -> None:
        """Let the slot's actor clean up; Ray ends it when nobody knows it any more and it has done what it was asked."""
        if slot.actor is not None:
            slot.actor.call.remote("leave")
        slot.actor, slot.pending, slot.node = None, None, ""

    def _compare(self, slot: _Slot, found: Mapping[str, str]) -> None:
        """Tell, once for each node, of versions with which numbers need not agree."""
        other = [f"{name} {v}" for name, v in found.items() if v != self._own_versions[name]]
        if other and slot.node not in self._nodes_told:
            self._nodes_told.add(slot.node)
            here = ", ".join(f"{name} {self._own_versions[name]}" for name in (text.split()[0] for text in other))
            line = f"{slot.node} has {', '.join(other)}, here is {here}: numbers need not agree"
            self._say(slot, {"event": "warning", "line": line})


def wants(task: Mapping[str, Any], most: float = 1.0) -> tuple[float, float]:
    """CPUs and GPUs of a task: as many CPUs as it has threads, and a GPU if its device is one.

    Args:
        task: its message.
        most: CPUs of the largest node, which a run with `threads=0` takes all of.
    """
    settings = task.get("settings", {}) if task["kind"] == "own" else {}
    threads = int(settings.get("threads", 1))
    return float(threads or max(1.0, most)), float(str(settings.get("device", "cpu")).startswith("cuda"))


def _node_class() -> type:
    """The actor. It stands inside a function so that it travels whole: a node need not have relax_rl."""

    class Node:
        def __init__(self, package: bytes, collect_interval: float) -> None:
            import io
            import sys
            import tempfile
            import zipfile
            from pathlib import Path

            folder = tempfile.mkdtemp(prefix="relax-rl-node-")
            with zipfile.ZipFile(io.BytesIO(package)) as archive:
                archive.extractall(folder)
            sys.path.insert(0, folder)
            from relax_rl.comparison.ray_node import NodeWorker

            self.worker = NodeWorker(Path(folder), collect_interval=collect_interval)

        def call(self, name: str, *args: Any) -> Any:
            return getattr(self.worker, name)(*args)

    return Node


def _resources(wanted: tuple[float, float]) -> str:
    cpus, gpus = wanted
    told = f"{cpus:g} CPU{'s' if cpus != 1 else ''}"
    return f"{told} and {gpus:g} GPU{'s' if gpus != 1 else ''}" if gpus else told


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
