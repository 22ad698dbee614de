"""A worker process: takes tasks as lines of JSON, works on one at a time, and tells how it goes in lines of JSON.

When whoever started it is gone, the run at hand is saved and the worker leaves.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from relax_rl.errors import RelaxRLError

__all__ = ["main"]


def main() -> None:
    """Work until the input ends, or a run is interrupted."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    tasks: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin.fileno(), tasks), daemon=True).start()

    def send(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    _warm_up()
    while True:
        task = tasks.get()
        with open(task["log"], "ab") as log:
            os.dup2(log.fileno(), sys.stdout.fileno())
            os.dup2(log.fileno(), sys.stderr.fileno())
        outcome = _work(task, send)
        send({"event": "done", "outcome": outcome})
        if outcome["status"] == "interrupted":
            return


def _listen(source: int, tasks: queue.Queue[dict[str, Any]]) -> None:
    """Read from the bare descriptor: a buffered reader's lock, held by this thread, would disturb leaving."""
    pending = b""
    while chunk := os.read(source, 1 << 16):
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            tasks.put(json.loads(line))
    os.kill(os.getpid(), signal.SIGTERM)


def _warm_up() -> None:
    """Import what runs need before the clock of the first one starts."""
    import matplotlib.figure  # noqa: F401

    import relax_rl.runs.training  # noqa: F401


def _work(task: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    try:
        return _function(task["kind"])(task, send)
    except RelaxRLError as error:
        return {"status": "failed", "error": str(error)}
    except Exception as error:  # one run that fails must not take the others with it
        import traceback

        traceback.print_exc()
        return {"status": "failed", "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _function(kind: str) -> Callable[[dict[str, Any], Callable[[dict[str, Any]], None]], dict[str, Any]]:
    if kind == "own":
        from relax_rl.comparison.own_training import train_own

        return train_own
    if kind == "peer":
        from relax_rl.comparison.peer_training import train_peer

        return train_peer
    from relax_rl.comparison.frozen_variance import measure

    return measure


if __name__ == "__main__":
    main()
