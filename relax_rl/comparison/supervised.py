"""A module run as a program that does not outlive whoever started it: `python .../supervised.py MODULE ...`.

The end of standard input, which comes when its starter is gone in whatever way, is a SIGTERM: a run is saved, and the
program leaves. It is started by its file: what `-m` names would be looked for in the working folder before all else.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

__all__ = ["main"]

_PATIENCE = 120.0
"""Seconds after which a program that was asked to leave is ended by force."""


def main(args: list[str]) -> None:
    """Run the module that the first argument names, with the others as its own."""
    threading.Thread(target=_leave_with_starter, daemon=True).start()
    # Python has put this file's folder first, whose modules are no programs' own.
    beside = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) != beside]
    from relax_rl.settings.naming import find_here

    find_here()
    sys.argv = args
    runpy.run_module(args[0], run_name="__main__", alter_sys=True)


def _leave_with_starter() -> None:
    # From the bare descriptor: a buffered reader's lock, held by this thread, would disturb leaving.
    while os.read(0, 1 << 16):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
