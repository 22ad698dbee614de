"""The process that speaks with a Ray cluster for a comparison.

It stands apart from the comparison because the Ray library waits for minutes where nothing answers, prints as it likes, and
ends its process when the cluster is lost. It takes lines of JSON, `{"do": "give", "slot": 0, "task": {...}}`, "stop" or
"dismiss", and tells what happens in each slot in lines of JSON. When the comparison is gone, the runs at hand are saved and
collected, and it leaves.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any

from relax_rl.comparison.ray_slots import Slots, one_line
from relax_rl.errors import RelaxRLError
from relax_rl.host import usable_cores

__all__ = ["connect", "main"]

_ANSWER = 5.0
"""Seconds that a cluster's port may take to answer."""


def connect(address: str) -> tuple[Any, dict[str, Any]]:
    """The Ray module, connected, and what is known of the cluster: `cpus`, `nodes`.

    Raises:
        RelaxRLError: no cluster answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()
        except OSError as error:
            raise RelaxRLError(f"no Ray cluster answers at {address}: {error.strerror or error}") from None
    import ray

    local: dict[str, Any] = {"include_dashboard": False, "num_cpus": usable_cores()} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **local)
    except Exception as error:  # whatever it is, the cluster cannot be used
        raise RelaxRLError(f"the Ray cluster at {address} cannot be used: {one_line(error)}") from None
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return ray, {"cpus": int(sum(node["Resources"].get("CPU", 0) for node in nodes)), "nodes": len(nodes)}


def main() -> None:
    """Connect to the address that is the first argument, and work until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    commands: queue.Queue[dict[str, Any] | None] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin.fileno(), commands), daemon=True).start()

    def tell(message: Mapping[str, Any]) -> None:
        try:
            answers.write(json.dumps(message) + "\n")
            answers.flush()
        except BrokenPipeError:
            pass  # nobody hears it any more; the runs are collected all the same

    # Nobody is counted who has not asked for it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray, about = connect(sys.argv[1])
    except RelaxRLError as error:
        tell({"event": "refused", "error": str(error)})
        return
    tell({"event": "ready", **about})
    slots = Slots(ray, tell, collect_interval=float(sys.argv[2]))
    alone = False
    while not alone or slots.busy:
        while not commands.empty():
            command = commands.get()
            if command is None:
                alone = True
                slots.stop_all()
            else:
                slots.handle(command)
        slots.step()
    slots.release_all()
    ray.shutdown()


def _listen(source: int, commands: queue.Queue[dict[str, Any] | None]) -> None:
    """Read from the bare descriptor: a buffered reader's lock, held by this thread, would disturb leaving."""
    pending = b""
    while chunk := os.read(source, 1 << 16):
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            commands.put(json.loads(line))
    commands.put(None)


if __name__ == "__main__":
    main()
