"""Several processes that learn together, started by the tests without torchrun."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["run_workers"]


def run_workers(
    count: int,
    work: Callable[[int], Any],
    *,
    environ: Mapping[str, str] | None = None,
    patience: float = 90.0,
) -> list[tuple[str, Any]]:
    """Call `work(rank)` in `count` processes with the environment variables of torchrun.

    The processes are forked, so that they need not import torch again.

    Args:
        work: what it returns must be picklable.
        environ: further environment variables.
        patience: seconds after which they are killed, which fails the test.

    Returns:
        By rank, ("done", what `work` returned), ("raised", the error) or ("died", the exit code).
    """
    context = multiprocessing.get_context("fork")
    port = _free_port()
    pipes, processes = [], []
    for rank in range(count):
        receiver, sender = context.Pipe(duplex=False)
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **(environ or {})}
        process = context.Process(target=_child, args=(work, rank, own, sender))
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    deadline = time.monotonic() + patience
    found = [_answer(pipe, deadline) for pipe in pipes]
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
    late = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for rank in late:
        processes[rank].kill()
        processes[rank].join()
    assert not late, f"workers {late} did not end within {patience} s"
    return [answer or ("died", process.exitcode) for answer, process in zip(found, processes, strict=True)]


def _child(work: Callable[[int], Any], rank: int, environ: Mapping[str, str], sender: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(environ)
    try:
        sender.send(("done", work(rank)))
    except BaseException as error:
        traceback.print_exc()
        sender.send(("raised", error))
    sys.stderr.flush()
    os._exit(0)


def _answer(pipe: Any, deadline: float) -> tuple[str, Any] | None:
    try:
        if pipe.poll(max(0.1, deadline - time.monotonic())):
            return tuple(pipe.recv())  # type: ignore[return-value]
    except EOFError:
        pass
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
