"""`kill -9` at random moments: afterwards the same command goes on, or `--resume`, and the end is that of a whole run."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from relax_rl.agents import ActorCritic
from relax_rl.compute.serialization import load_state
from relax_rl.runs.checkpoints import KEEP, newest_first
from tests.attack.children import OPERATIONS, Child
from tests.attack.trials import Attack, called, gentle, lasting_folder, rng_of, untidy

__all__ = ["KILLS"]

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "train": (
        *(
            "train",
            "--env=CartPole-v1",
            "--total-steps=2000",
            "--hidden",
            "8",
            "--surrogate-hidden",
            "8",
            "--num-envs=4",
        ),
        *(
            "--num-steps=5",
            "--checkpoint-interval=300",
            "--log-interval=100",
            "--eval-interval=500",
            "--eval-episodes=1",
        ),
        *("--quiet", "--run-dir=run"),
    ),
    "vae": (
        *(
            "vae",
            "--data=digits",
            "--width=8",
            "--steps=60",
            "--log-interval=7",
            "--checkpoint-interval=10",
            "--eval-samples=2",
        ),
        *("--valid-images=20", "--surrogate-width=4", "--batch-size=8", "--quiet", "--run-dir=run", "--no-tensorboard"),
    ),
    "toy": ("toy", "--steps=60", "--seeds=2", "--draws=8", "--log-interval=20", "--quiet", "--run-dir=run"),
    "compare": (
        *(
            "compare",
            "--env=CartPole-v1",
            "--estimators",
            "relax",
            "a2c",
            "--seeds=1",
            "--total-steps=1500",
            "--num-workers=2",
        ),
        *("--set", "hidden=8", "surrogate_hidden=8", "--quiet", "--run-dir=run"),
    ),
}
CYCLE = ("train", "vae", "train", "toy", "train async", "vae", "toy", "compare")
UNTIMED = ("seconds", "microseconds_per_step", "steps_per_second", "step_seconds", "time", "run_dir")


@dataclass(frozen=True)
class Whole:
    """A run that nothing has disturbed: its folder, how long it took, and how often it touched a file."""

    run: Path
    seconds: float
    operations: int


def _attempt(seed: int, number: int, folder: Path) -> str | None:
    name, moment, by_operation = _plan(seed, number)
    words = _words(name)
    whole = _whole(name)
    with Child(words, folder, operation=int(moment * whole.operations) if by_operation else None) as child:
        if not by_operation:
            time.sleep(moment * whole.seconds)
            child.kill()
        elif not child.wait_for(child.ended):
            return "it did not come to the operation at which it is killed"
        if not child.wait_for(lambda: not child.family(), 60.0):
            return f"left {len(child.family())} processes"
    with _working_in(folder), gentle():
        return _go_on(name, words) or _LOOKS[words[0]](Path("run"), whole.run) or _leftovers(Path("run"))


def _plan(seed: int, number: int) -> tuple[str, float, bool]:
    """The command, when in its course it is killed, from 0 to 1, and whether that is counted in file operations."""
    random = rng_of(seed, number)
    return CYCLE[number % len(CYCLE)], float(random.random()), bool(random.random() < 0.5)


def _words(name: str) -> tuple[str, ...]:
    command, _, how = name.partition(" ")
    more = ("--vectorization=async", "--no-tensorboard") if how else ()
    return (*COMMANDS[command], *more)


@cache
def _whole(name: str) -> Whole:
    folder = lasting_folder()
    with Child(["--help"], folder) as child:  # so that everything is imported
        child.wait_for(child.ended)
    started = time.monotonic()
    with Child(_words(name), folder, operation=-1) as child:
        child.wait_for(child.ended, 120.0)
        seconds = time.monotonic() - started
        if child.code != 0:
            raise AssertionError(f"{name} without a kill: {child.code}, {child.told()[-500:]}")
    return Whole(folder / "run", seconds, int((folder / OPERATIONS).read_text()))


def _go_on(name: str, words: tuple[str, ...]) -> str | None:
    """Give the same command again, or go on with what it has left; what went wrong."""
    again = called(words)
    if again.code == 0 or (fault := untidy(again, limits=False)) is not None:
        return None if again.code == 0 else f"the same command: {fault}"
    if "already holds" not in again.err:
        return f"the same command: {again.err[-300:]!r}"
    if name == "toy":
        return None
    twin = name.startswith("train") and newest_first(Path("run/checkpoints"))
    if twin:
        shutil.copytree("run", "twin")
    resumed = called([words[0], "--resume", "run", "--quiet"])
    if resumed.code == 2 and "has already taken" in resumed.err:
        return None
    if resumed.code != 0:
        return f"--resume: {untidy(resumed, limits=False) or resumed.err[-300:]!r}"
    if twin:
        called([words[0], "--resume", "twin", "--quiet"])
        return _differ(Path("run"), Path("twin"), "two resumptions of one checkpoint")
    return None


def _look_at_agent(run: Path, whole: Path) -> str | None:
    """What is missing, doubled or damaged in the folder of an agent's run."""
    newest = newest_first(run / "checkpoints")
    if (
        not newest
        or len(newest) > KEEP
        or [path for path in (run / "checkpoints").iterdir() if path.suffix == ".damaged"]
    ):
        return f"{len(newest)} checkpoints, or damaged ones"
    agent, episodes, progress = ActorCritic.load(newest[0]), _rows(run / "episodes.csv"), _rows(run / "progress.csv")
    steps = [int(row["step"]) for row in progress]
    ended = [int(row["step"]) for row in episodes]
    record = json.loads((run / "config.json").read_text())
    if agent.steps < record["run"]["total_steps"] or steps[-1] != agent.steps:
        return f"ends at step {agent.steps}, and progress.csv at {steps[-1]}"
    if len(episodes) != agent.episodes or int(progress[-1]["episodes"]) != agent.episodes:
        return f"{len(episodes)} rows of episodes, of {agent.episodes}"
    if sorted(set(steps)) != steps or sorted(ended) != ended or ended[-1] > agent.steps:
        return "rows are doubled or out of order"
    if sum(int(row["length"]) for row in episodes) > agent.steps:
        return "episodes are longer than the run"
    for table in ("evaluation.csv",) if (run / "evaluation.csv").exists() else ():
        if len({row["step"] for row in _rows(run / table)}) < len(_rows(run / table)):
            return f"rows of {table} are doubled"
    # Gone on with, a run begins new episodes; begun anew, it is the same.
    return None if record["resumed"] else _differ(run, whole, "begun anew, and")


def _look_at_vae(run: Path, whole: Path) -> str | None:
    if fault := _differ(run, whole, "gone on with, and"):
        return fault
    for name in ("evaluation.json",):
        one, other = (_untimed(json.loads((each / name).read_text())) for each in (run, whole))
        if one != other:
            return f"another {name}"
    return None


def _look_at_toy(run: Path, whole: Path) -> str | None:
    for name in ("toy.md", "curves.csv", "toy.json", "config.json", "densities.png", "expected_loss.png"):
        if not (run / name).exists():
            return f"no {name}"
    one, other = (_untimed(json.loads((each / "toy.json").read_text())) for each in (run, whole))
    if one != other or (run / "curves.csv").read_bytes() != (whole / "curves.csv").read_bytes():
        return "other results than those of a whole run"
    return None


def _look_at_comparison(run: Path, whole: Path) -> str | None:
    result = json.loads((run / "comparison.json").read_text())
    if result["failures"] or not (run / "report.md").exists():
        return f"failures: {result['failures']}"
    runs = sorted((run / "runs").iterdir())
    if [path.name for path in runs] != [path.name for path in sorted((whole / "runs").iterdir())]:
        return f"the runs are {[path.name for path in runs]}"
    for path in runs:
        if not (path / "outcome.json").exists():
            return f"{path.name} has no outcome"
        if fault := _look_at_agent(path, whole / "runs" / path.name):
            return f"{path.name}: {fault}"
    return None


_LOOKS: Mapping[str, Callable[[Path, Path], str | None]] = {
    "train": _look_at_agent,
    "vae": _look_at_vae,
    "toy": _look_at_toy,
    "compare": _look_at_comparison,
}


def _differ(one: Path, other: Path, what: str) -> str | None:
    """Where two folders of runs differ in more than seconds: in the last checkpoint, a table, or a row of one."""
    left, right = (load_state(newest_first(each / "checkpoints")[0]) for each in (one, other))
    if left[0].keys() != right[0].keys() or not all(torch.equal(x, right[0][name]) for name, x in left[0].items()):
        return f"{what} other tensors"
    if _untimed(left[1]) != _untimed(right[1]):
        return f"{what} another state"
    for table in ("progress.csv", "episodes.csv", "evaluation.csv"):
        if (one / table).exists() != (other / table).exists():
            return f"{what} {table} missing"
        if (one / table).exists() and [_untimed(row) for row in _rows(one / table)] != [
            _untimed(row) for row in _rows(other / table)
        ]:
            return f"{what} another {table}"
    return None


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table, each of which has to have all columns."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(None not in row and None not in row.values() for row in rows), f"{path.name} has broken rows"
    return rows


def _untimed(value: Any) -> Any:
    """Nested dictionaries and lists without what tells the time."""
    if isinstance(value, dict):
        return {key: _untimed(entry) for key, entry in value.items() if key not in UNTIMED}
    return [_untimed(entry) for entry in value] if isinstance(value, list) else value


def _leftovers(run: Path) -> str | None:
    left = sorted(path.relative_to(run) for path in run.rglob(".*.tmp*"))
    return f"left {left[0]}" if left else None


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _about(seed: int, number: int) -> str:
    name, moment, by_operation = _plan(seed, number)
    return f"{name}: killed after {moment:.4f} of its {'file operations' if by_operation else 'time'}"


KILLS = Attack(
    name="kills",
    what="train, vae, toy and compare killed at random moments and before random file operations, then gone on with",
    trials=60,
    sample=8,
    attempt=_attempt,
    about=_about,
)
