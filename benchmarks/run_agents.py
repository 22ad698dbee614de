"""Train this package's agents with their default presets, through the command line that a user types.

    python -m benchmarks.run_agents --jobs 2            # the whole queue; finished runs are skipped
    python -m benchmarks.run_agents --envs CartPole-v1 --estimators relax --seeds 0 1 2

Every run leaves `results/agents/<env>-<estimator>-s<seed>.csv` (the run's progress.csv, chosen columns) and its
effective settings in `results/agents/settings.json`. Run folders lie under `runs/benchmarks/`, which git ignores; a
queue that was stopped goes on from the last checkpoint of each unfinished run, and says so in `settings.json`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.tasks import AGENT_RESULTS, TASKS, WINDOW, Task, file_stem, write_json, write_text

__all__ = ["Run", "main"]

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs" / "benchmarks"
SETTINGS = AGENT_RESULTS / "settings.json"
COLUMNS = ("step", "episodes", "return_mean", "seconds", "steps_per_second", "estimate/variance_ratio")
DEFAULT_ENVS = ("CartPole-v1", "InvertedPendulum-v5", "LunarLander-v3")
OWN_ESTIMATOR = {"InvertedPendulum-v5": "lax"}
SECTIONS = ("run", "env", "agent", "versions")
"""What is kept of a run's config.json, but for the entries that name the run."""
PER_RUN = ("seed", "run_dir", "resume", "quiet")
"""Settings that differ between the runs of one contestant."""


RunT = TypeVar("RunT")
StartedT = TypeVar("StartedT")


@dataclass(frozen=True)
class Run:
    """One agent trained from one seed."""

    task: Task
    estimator: str
    seed: int

    @property
    def stem(self) -> str:
        """Name of everything this run leaves."""
        return file_stem(self.task.env, self.estimator, self.seed)

    @property
    def folder(self) -> Path:
        """The run folder that the trainer writes."""
        return RUNS / self.stem

    @property
    def result(self) -> Path:
        """The curve that is kept."""
        return AGENT_RESULTS / f"{self.stem}.csv"


@dataclass(frozen=True)
class Started:
    """A run in progress."""

    run: Run
    resumed: bool
    commit: str
    time: float


def prepare(run: Run) -> tuple[list[str], bool]:
    """The command that starts the run or goes on with it, and which of the two it is.

    A folder without a checkpoint holds nothing to go on from and is removed.
    """
    command = [sys.executable, str(ROOT / "train_agent.py")]
    if any(run.folder.rglob("*.safetensors")):
        return [*command, "--resume", str(run.folder), "--quiet"], True
    shutil.rmtree(run.folder, ignore_errors=True)
    command += ["--env", run.task.env, "--estimator", run.estimator, "--seed", str(run.seed)]
    command += ["--total-steps", str(run.task.budget), "--run-dir", str(run.folder), "--quiet"]
    if run.task.stop_when_reached:
        command += ["--stop-at-return", str(run.task.threshold)]
    return command, False


def read_progress(run: Run) -> list[dict[str, str]]:
    """Rows of the run's progress.csv."""
    with (run.folder / "progress.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def is_complete(run: Run, rows: list[dict[str, str]]) -> bool:
    """Whether the curve got to the budget, or to the threshold where that ends a run."""
    if not rows:
        return False
    last = rows[-1]
    solved = int(last["episodes"]) >= WINDOW and float(last["return_mean"] or "nan") >= run.task.threshold
    return int(last["step"]) >= run.task.budget or (run.task.stop_when_reached and solved)


def keep(started: Started, rows: list[dict[str, str]]) -> None:
    """Write the settings and then the curve, whose presence means that the run is done."""
    record_settings(started)
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(started.run.result, out.getvalue())


def record_settings(started: Started) -> None:
    """Add the run under its contestant in settings.json, beside earlier runs with equal settings."""
    run = started.run
    saved = json.loads((run.folder / "config.json").read_text(encoding="utf-8"))
    config = {name: without(saved[name], PER_RUN) for name in SECTIONS}
    settings: dict[str, Any] = json.loads(SETTINGS.read_text(encoding="utf-8")) if SETTINGS.exists() else {}
    groups = settings.setdefault(f"{run.task.env} {run.estimator}", [])
    for group in groups:
        group["runs"].pop(str(run.seed), None)
    groups[:] = [group for group in groups if group["runs"]]
    group = next((group for group in groups if group["config"] == config), None)
    if group is None:
        group = {"config": config, "runs": {}}
        groups.append(group)
    group["runs"][str(run.seed)] = {"commit": started.commit, "resumed": started.resumed}
    write_json(SETTINGS, settings)


def without(section: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The section without the named entries."""
    return {name: value for name, value in section.items() if name not in names}


def commit() -> str:
    """The commit that is checked out, marked where the package differs from it."""
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*"]
    name = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    command = ["git", "status", "--porcelain", "--", "relax_rl"]
    changed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return f"{name} with changes" if changed else name


def queue(arguments: argparse.Namespace) -> Iterator[Run]:
    """Unfinished runs in order: environment by environment, seed by seed, each seed with every estimator."""
    for env in arguments.envs:
        own = OWN_ESTIMATOR.get(env, "relax")
        for seed in arguments.seeds:
            for estimator in arguments.estimators or (own, "a2c"):
                run = Run(TASKS[env], estimator, seed)
                if not run.result.exists():
                    yield run


def start(run: Run) -> tuple[subprocess.Popen[bytes], Started]:
    """Start the run's process, with its output in a log beside the run folder."""
    command, resumed = prepare(run)
    RUNS.mkdir(parents=True, exist_ok=True)
    with (RUNS / f"{run.stem}.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    return process, Started(run, resumed, commit(), time.perf_counter())


def work(
    runs: Iterator[RunT],
    jobs: int,
    start: Callable[[RunT], tuple[subprocess.Popen[bytes], StartedT]],
    finish: Callable[[subprocess.Popen[bytes], StartedT], bool],
) -> int:
    """Keep `jobs` runs going until the queue is empty; returns how many did not finish.

    Args:
        runs: the queue.
        jobs: runs side by side.
        start: starts a run's process.
        finish: keeps what a process that has ended leaves; whether the run is complete.
    """
    active: dict[subprocess.Popen[bytes], StartedT] = {}
    failures = 0
    try:
        while True:
            while len(active) < jobs and (run := next(runs, None)) is not None:
                process, started = start(run)
                active[process] = started
            if not active:
                return failures
            time.sleep(0.2)
            for process in [process for process in active if process.poll() is not None]:
                failures += not finish(process, active.pop(process))
    finally:
        for process in active:
            process.terminate()
        for process in active:
            process.wait()


def finish(process: subprocess.Popen[bytes], started: Started) -> bool:
    """Keep the result of a run that has ended, or say that it ended early."""
    run = started.run
    rows = read_progress(run) if process.returncode == 0 else []
    complete = is_complete(run, rows)
    if complete:
        keep(started, rows)
        outcome = f"{rows[-1]['return_mean']} at step {rows[-1]['step']}"
    else:
        outcome = f"not finished (exit code {process.returncode}), see {RUNS / run.stem}.log"
    print(f"{run.stem}: {outcome}, {time.perf_counter() - started.time:.0f} s", flush=True)
    return complete


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train relax_rl's agents with their default presets.")
    parser.add_argument("--envs", nargs="+", choices=list(TASKS), default=list(DEFAULT_ENVS), help="in order")
    parser.add_argument(
        "--estimators", nargs="+", help="estimators (default: a2c, and relax or lax by the kind of action)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(10)), help="seeds (default 0 to 9)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    return parser.parse_args()


def stop(signum: int, frame: Any) -> None:
    """Leave as on Ctrl-C, so that runs in progress are told to save a checkpoint."""
    raise KeyboardInterrupt


def main() -> None:
    """Work through the queue."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, stop)
    try:
        failures = work(queue(arguments), arguments.jobs, start, finish)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
