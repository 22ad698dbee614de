"""Faulty environments, in this process and in processes of their own, and how runs on them end."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

from tests.attack.children import Child, living
from tests.attack.faulty import FAULTS, HANGING
from tests.attack.trials import Attack, Ended, called, gentle

__all__ = ["ENVIRONMENTS"]

CASES = [(name, how) for name in FAULTS for how in ("sync", "async") if (name, how) != ("Dies", "sync")]
SAMPLE = (
    *(("Raises", "sync"), ("RaisesUnsendable", "async"), ("Leaves", "sync"), ("WrongShape", "async")),
    *(("OldStep", "sync"), ("RaisesAtReset", "sync"), ("Moves", "async"), ("Hangs", "async")),
)
CASES = [*SAMPLE, *(case for case in CASES if case not in SAMPLE)]


def _attempt(seed: int, number: int, folder: Path) -> str | None:
    name, how = CASES[number]
    words = [
        "train",
        "--env",
        f"tests.attack.faulty:relax_rl_attack/{name}-v0",
        "--vectorization",
        how,
        "--num-envs",
        "2",
    ]
    words += ["--total-steps", "60", "--hidden", "4", "--surrogate-hidden", "4", "--seed", str(seed), "--quiet"]
    words += ["--run-dir", str(folder / "run"), "--no-tensorboard", "--num-steps", "5"]
    if FAULTS[name].ends == "hangs":
        return _killed(words, folder)
    here, before = Path.cwd(), living(os.getpid())
    try:
        with gentle():
            ended = called(words)
    finally:
        os.chdir(here)
    return _wrong(name, ended, folder / "run") or _left(folder, before)


def _wrong(name: str, ended: Ended, run: Path) -> str | None:
    """What is wrong with the end of a run on an environment."""
    fault = FAULTS[name]
    if ended.error is not None:
        return f"{type(ended.error).__name__} came out: {str(ended.error)[:100]!r}"
    if ended.code == 0 and fault.ends in ("trains", "either"):
        return None if list((run / "checkpoints").glob("step_*")) else "trained, and saved nothing"
    if ended.code not in (1, 2):
        return f"exit code {ended.code}: {ended.err[-200:]!r}"
    if fault.ends == "trains":
        return f"nothing is wrong with it, but the run ended: {ended.err[-200:]!r}"
    last = (ended.err.splitlines() or [""])[-1]
    if not last.startswith("error: ") or len(last) > 1200 or f"{name}-v0" not in last:
        return f"the last line does not tell it: {last[:300]!r}"
    if not re.search(fault.when, last):
        return f"it does not say when: {last[:300]!r}"
    if "step" not in fault.when:
        return f"left {run.name}" if (run / "config.json").exists() else None
    if not re.search(r"environment \d", last):
        return f"it does not say which: {last[:300]!r}"
    return None if list((run / "checkpoints").glob("step_*")) and "--resume" in last else f"nothing was saved: {last!r}"


def _left(folder: Path, before: set[int]) -> str | None:
    """What a run has left: files in the making, processes."""
    if left := [path.name for path in folder.rglob(".*.tmp")]:
        return f"left {left[0]}"
    deadline = time.monotonic() + 30
    while (more := living(os.getpid()) - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    return f"left {len(more)} processes" if more else None


def _killed(words: list[str], folder: Path) -> str | None:
    """Have a run hang, and press Ctrl-C twice."""
    with Child(words, folder) as child:
        if not child.wait_for(lambda: (folder / HANGING).exists()):
            return f"it did not come so far as to hang: {child.told()[-200:]!r}"
        time.sleep(0.2)
        os.kill(child.pid, signal.SIGINT)
        if not child.wait_for(lambda: "waiting for the step at hand" in child.told(), 30.0):
            return f"Ctrl-C was not answered: {child.told()[-200:]!r}"
        os.kill(child.pid, signal.SIGINT)
        if not child.wait_for(child.ended, 30.0):
            return "a second Ctrl-C did not end it"
        if not child.wait_for(lambda: not child.family(), 30.0):
            return f"left {len(child.family())} processes"
    return f"left {left[0]}" if (left := [path.name for path in folder.rglob(".*.tmp")]) else None


ENVIRONMENTS = Attack(
    name="environments",
    what="environments with a fault each, in one process (sync) and in several (async)",
    trials=len(CASES),
    sample=len(SAMPLE),
    attempt=_attempt,
    about=lambda seed, number: " ".join(CASES[number]),
)
