"""What every script here agrees on: the tasks, their thresholds and budgets, the folders, and how files are written."""

from __future__ import annotations

import argparse
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relax_rl.compute.serialization import write_text_atomic

__all__ = ["RESULTS", "TASKS", "Task", "at_least_one", "checkout", "commit", "commit_of", "write_json", "write_text"]

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One environment and what is asked of an agent in it."""

    env: str
    """Gymnasium id."""
    budget: int
    """Environment steps, summed over all environments, at which a curve ends at the latest."""
    threshold: float
    """Mean raw return of the last 100 training episodes that is asked for."""
    within: int
    """Steps within which the threshold is asked for."""
    stop_when_reached: bool
    """Whether a run ends as soon as the threshold is reached."""


TASKS: dict[str, Task] = {
    task.env: task
    for task in (
        Task(env="CartPole-v1", budget=500_000, threshold=475.0, within=150_000, stop_when_reached=True),
        Task(env="InvertedPendulum-v5", budget=300_000, threshold=950.0, within=150_000, stop_when_reached=True),
        Task(env="LunarLander-v3", budget=1_000_000, threshold=200.0, within=1_000_000, stop_when_reached=True),
        Task(env="ALE/Pong-v5", budget=4_000_000, threshold=0.0, within=4_000_000, stop_when_reached=False),
    )
}


def commit() -> str:
    """The commit that is checked out, marked where the package differs from it."""
    root = Path(__file__).parent.parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    name = git("describe", "--always", "--abbrev=12", "--exclude=*")
    return f"{name} with changes" if git("status", "--porcelain", "--", "relax_rl") else name


def commit_of(tree: Path) -> str:
    """The commit that another checkout stands on."""
    command = ["git", "-C", str(tree), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def checkout(text: str) -> Path:
    """An argument that is the folder of another checkout of this repository."""
    tree = Path(text).resolve()
    if not (tree / ".git").exists() or not (tree / "train_agent.py").is_file():
        raise argparse.ArgumentTypeError(f"{text} is no checkout of this repository; make one by git worktree add")
    return tree


def at_least_one(text: str) -> int:
    """An argument that is a whole number of 1 or more."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of at least 1")
    return int(text)


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing, also while others write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, text)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")
