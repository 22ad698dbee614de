"""Signals: the first asks, the second kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from relax_rl.runs.interruption import Leaving, interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_only_noted(number):
    before = signal.getsignal(number)
    with interruptible() as interruption:
        assert not interruption
        os.kill(os.getpid(), number)
        assert interruption and interruption.signal is number
    assert signal.getsignal(number) is before


def test_the_second_signal_kills_at_once():
    code = (
        "import os, signal\n"
        "from relax_rl.runs.interruption import interruptible\n"
        "with interruptible():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('alive', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('survived', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGINT
    assert done.stdout == "alive\n"


def test_another_thread_handles_no_signals():
    found = []

    def work() -> None:
        with interruptible() as interruption:
            found.append(bool(interruption))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def test_what_can_be_left_anywhere_is_left_at_once():
    with interruptible() as interruption:
        with pytest.raises(Leaving), interruption.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        assert interruption.signal is signal.SIGTERM
        with pytest.raises(Leaving), interruption.at_once():
            pytest.fail("a signal had asked to leave before")
