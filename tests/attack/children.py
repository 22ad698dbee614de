"""Commands in processes that are there at once, to be killed: forked from one that has everything imported."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["OPERATIONS", "Child", "living"]

OPERATIONS = "operations"
"""The file that a child leaves in its folder if it counts its file operations."""

_MARK = "RELAX_RL_ATTACK"
_PRELOAD = ["tests.attack.preloaded"]


class Child:
    """A command of the package at work in a process of its own; whatever is left of it goes at the end of the block.

    Args:
        words: of the command.
        folder: that it works in; its output goes to a file there.
        operation: it kills itself just before the file operation with this number that is within `folder`; with -1 it counts
            them.
    """

    def __init__(self, words: Sequence[str], folder: Path, *, operation: int | None = None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
        self._log, self._mark = folder / "child.log", secrets.token_hex(8)
        arguments = (list(words), str(folder), str(self._log), self._mark, operation)
        self._process: Any = context.Process(target=_work, args=arguments)
        self._process.start()
        self.pid: int = self._process.pid

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in (self.pid, *self.family()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.join()

    def kill(self) -> None:
        """End it as a full memory would."""
        self._process.kill()
        self._process.join()

    def ended(self) -> bool:
        return not self._process.is_alive()

    @property
    def code(self) -> int | None:
        """Its exit code, minus the number of a signal."""
        found: int | None = self._process.exitcode
        return found

    def told(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def family(self) -> set[int]:
        """Processes that it has started, in whatever way, and that still live."""
        return {pid for pid in _processes() if pid != self.pid and self._is_ours(pid)}

    def wait_for(self, holds: Callable[[], bool], seconds: float = 60.0) -> bool:
        """Wait until something holds or the process has ended; whether it holds."""
        deadline = time.monotonic() + seconds
        while not holds() and time.monotonic() < deadline:
            time.sleep(0.01)
        return holds()

    def _is_ours(self, pid: int) -> bool:
        try:
            state, _, _, session = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[:4]
            if state in "ZX":
                return False
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return int(session) == self.pid or f"{_MARK}={self._mark}".encode() in environment


def living(parent: int) -> set[int]:
    """The children of a process that live."""
    found = set()
    for pid in _processes():
        with suppress(OSError):
            state, of = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[:2]
            if int(of) == parent and state not in "ZX":
                found.add(pid)
    return found


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _work(words: list[str], folder: str, log: str, mark: str, operation: int | None) -> None:
    from relax_rl.commands.main import main
    from tests.attack.trials import gentle

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which what runs in the background ignores
    os.environ[_MARK] = mark
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    os.chdir(folder)
    counted = [0]
    if operation is not None:
        sys.addaudithook(_killer(folder, operation, counted))
    with gentle():
        code = main(words)
    if operation == -1:
        Path(folder, OPERATIONS).write_text(str(counted[0]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _killer(folder: str, operation: int, counted: list[int]) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that counts operations on files, and ends the process by SIGKILL before that of this number."""
    main = os.getpid()

    def look(event: str, args: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir") or os.getpid() != main:
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if not os.path.abspath(os.fsdecode(args[0]) if not isinstance(args[0], int) else "/").startswith(folder):
            return
        if counted[0] == operation:
            os.kill(main, signal.SIGKILL)
        counted[0] += 1

    return look
