"""One comparison by `train_agent.py compare`, and what is kept of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.tasks import RESULTS, write_text

__all__ = ["RUNS", "Match", "play", "spread"]

RUNS = Path("runs/benchmarks")


@dataclass(frozen=True, kw_only=True)
class Match:
    """Contestants on one environment."""

    env: str
    steps: int
    contestants: tuple[str, ...]
    """As `compare` takes them: label=estimator:setting=value,..."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Of all of ours, over the preset of the environment."""
    peers: tuple[str, ...] = ()
    seeds: int = 10
    first_seed: int = 0
    stop_when_solved: bool = False
    variance_of: str | None = None
    """The contestant at whose frozen parameters the gradient's variance is measured, under all estimators."""
    fit_batches: int = 300
    """Rollouts that each surrogate is fitted on before."""

    def command(self, folder: Path, seeds: int) -> list[str]:
        """What is started; a comparison that is there already is gone on with."""
        start = [sys.executable, "train_agent.py", "compare"]
        if (folder / "settings.json").exists():
            return [*start, "--resume", str(folder), "--seeds", str(seeds)]
        options = ["--env", self.env, "--estimators", *self.contestants]
        if self.peers:
            options += ["--peers", *self.peers]
        if self.settings:
            options += ["--set", *(f"{name}={value}" for name, value in self.settings.items())]
        options += ["--total-steps", str(self.steps), "--seeds", str(seeds), "--run-dir", str(folder)]
        if self.first_seed:
            options += ["--first-seed", str(self.first_seed)]
        if self.stop_when_solved:
            options.append("--stop-when-solved")
        if self.variance_of is not None:
            options += ["--variance", "--variance-of", self.variance_of]
            options += ["--variance-fit-batches", str(self.fit_batches)]
        return [*start, *options]


def play(name: str, match: Match, group: str, *, seeds: int | None = None) -> Path:
    """Run a comparison to its end, from where it stands, and keep its report, numbers and figures.

    Args:
        name: of its folders.
        match: what is compared.
        group: folder of the results that it belongs to.
        seeds: other than the match's own.

    Returns:
        The folder with what is kept, `results/<group>/<name>`.
    """
    folder, kept = RUNS / group / name, RESULTS / group / name
    subprocess.run(match.command(folder, match.seeds if seeds is None else seeds), check=True)
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for file in ("report.md", "settings.json"):
        shutil.copy(folder / file, kept / file)
    # As written by the comparison, with a number a line, it would be half a megabyte.
    numbers = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    write_text(kept / "comparison.json", json.dumps(numbers, separators=(",", ":")) + "\n")
    shutil.copytree(folder / "figures", kept / "figures")
    return kept


def spread(interval: Mapping[str, Any], style: str) -> str:
    """A value of `comparison.json` with its interval; what lies beyond the comparison's steps is said in words."""
    value, low, high = (float(interval[name]) for name in ("value", "low", "high"))
    told = [format(x, style) if x < float("inf") else "beyond" for x in (value, low, high)]
    return told[0] if value == float("inf") == low else f"{told[0]} [{told[1]}, {told[2]}]"
