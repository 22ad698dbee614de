"""The table of the discrete VAE: every row of the papers' tables with every estimator, and longer runs on MNIST.

    python -m benchmarks.vae                       # the whole queue; finished runs are skipped
    python -m benchmarks.vae --sets table --rows mnist-linear2 --estimators nvil rebar relax
    python -m benchmarks.vae --report              # results/vae/vae.md and its figures, from the runs that are there

One run is one process on one thread, through the command line that a user types. It leaves
`results/vae/<set>/<row>-<estimator>.json` (settings, bounds, variance, seconds) and `.csv` (its progress.csv). Run
folders lie under `runs/benchmarks/vae/`, which git ignores; a queue that was stopped goes on from the last checkpoint of
each unfinished run.
"""

from __future__ import annotations

import argparse
import csv
import json
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tasks import RESULTS, commit, write_json, write_text
from relax_rl.comparison.pool import Pool, Progress
from relax_rl.comparison.task import Task
from relax_rl.runs.interruption import interruptible

__all__ = ["ESTIMATORS", "ROWS", "SETS", "Run", "main"]

RUNS = Path(__file__).parent.parent / "runs" / "benchmarks" / "vae"
VAE_RESULTS = RESULTS / "vae"

ROWS = tuple(f"{data}-{model}" for model in ("linear1", "linear2", "nonlinear") for data in ("mnist", "omniglot"))
"""Rows of the papers' tables."""

NONLINEAR = ("mnist-nonlinear", "omniglot-nonlinear")

ESTIMATORS = (
    "relax",
    "rebar",
    "nvil",
    "muprop",
    "relax-published",
    "concrete",
    "rloo",
    "disarm",
    "arms",
    "double-cv",
    "rodeo",
    "reinmax",
)
"""Columns: those of the papers, then those that came after."""


TABULATED = tuple(estimator for estimator in ESTIMATORS if estimator != "relax-published")
"""Those that every row of the table has been run with."""

ONE_LAYER = ("mnist-linear1", "omniglot-linear1")

LEARNING_RATE = 1e-3
"""Of the published grid {5e-3, 1e-3, 5e-4, 1e-4, 5e-5}, for every run alike."""

TRACKED = ("nvil", "muprop", "relax", "rloo", "disarm", "reinmax")
"""Whose variance is measured while REBAR trains the model; with 4 samples for RLOO, and for DisARM in each layer."""


@dataclass(frozen=True)
class Set:
    """Runs of one length."""

    name: str
    steps: int
    rows: tuple[str, ...]
    estimators: tuple[str, ...]
    lr: float = LEARNING_RATE
    options: tuple[str, ...] = ()


def _r(depth: int, width: int) -> tuple[str, ...]:
    """Options for an r of another size."""
    return "--surrogate-depth", str(depth), "--surrogate-width", str(width)


SETS = {
    each.name: each
    for each in (
        Set("table", 50_000, ROWS, ESTIMATORS),
        Set("seed-1", 50_000, ONE_LAYER, TABULATED, options=("--seed", "1")),
        Set("seed-2", 50_000, ONE_LAYER, TABULATED, options=("--seed", "2")),
        Set("long", 300_000, ("mnist-linear1", "mnist-linear2"), ("relax", "rebar", "nvil")),
        Set(
            "variances",
            20_000,
            ("omniglot-linear2",),
            ("rebar",),
            lr=3e-4,
            options=("--freeze-at", "10000", "--num-samples", "4", "--track-variances", *TRACKED),
        ),
        Set(
            "surrogate-lr-10",
            50_000,
            ("mnist-linear1",),
            ("relax",),
            options=(*_r(2, 200), "--surrogate", "objective", "--surrogate-lr-factor", "10"),
        ),
        Set(
            "published-lr-10", 50_000, ("mnist-linear1",), ("relax-published",), options=("--surrogate-lr-factor", "10")
        ),
        Set("two-samples", 50_000, NONLINEAR, ("relax", "rebar"), options=("--samples-per-image", "2")),
        Set("six-samples", 50_000, NONLINEAR, ("double-cv", "arms", "rloo"), options=("--num-samples", "6")),
        Set("relax-six-samples", 50_000, ("mnist-nonlinear",), ("relax",), options=("--samples-per-image", "6")),
        Set("r-2x100", 50_000, ROWS, ("relax",), options=_r(2, 100)),
        Set("corrected", 50_000, ("mnist-linear1",), ("rebar-corrected",)),
        Set("lr-factor-1", 50_000, ("mnist-linear1",), ("rebar", "nvil", "muprop"), options=("--lr-factor", "1")),
        Set(
            "wide",
            50_000,
            ("mnist-nonlinear-wide", "omniglot-nonlinear-wide"),
            ("relax", "rebar", "nvil", "relax-published"),
        ),
    )
}
"""Equal steps on every row; two more seeds of the rows with one layer; three estimators six times as long; the variances of several on one model, which stands still
from half of the steps on; the other published learning rate of r, and of scales and baselines; more samples where
the decoder is nonlinear; RELAX's default with a larger r, and without r; and the decoder that explains the published
nonlinear rows."""


@dataclass(frozen=True)
class Run:
    """One row with one estimator."""

    set: Set
    row: str
    estimator: str
    lr: float

    @property
    def stem(self) -> str:
        """Name of everything this run leaves."""
        own = f"{self.row}-{self.estimator}"
        return own if self.lr == self.set.lr else f"{own}-lr{self.lr:.0e}"

    @property
    def folder(self) -> Path:
        """The run folder that the trainer writes."""
        return RUNS / self.set.name / self.stem

    @property
    def result(self) -> Path:
        """What is kept, without its ending."""
        return VAE_RESULTS / self.set.name / self.stem


def task_of(run: Run, data_dir: str | None) -> Task:
    """The run as a task of a pool that works in `RUNS`."""
    folder = f"{run.set.name}/{run.stem}"
    begin = ["relax_rl", "vae", "--preset", f"{run.row}-{run.estimator}", "--run-dir", folder, "--no-tensorboard"]
    begin += ["--lr", str(run.lr), "--steps", str(run.set.steps), "--quiet", *run.set.options]
    begin += [] if data_dir is None else ["--data-dir", str(Path(data_dir).resolve())]
    return Task(
        name=f"{run.set.name}-{run.stem}",
        folder=folder,
        begin=tuple(begin),
        resume=("relax_rl", "vae", "--resume", folder, "--quiet"),
    )


def keep(run: Run, commit: str) -> dict[str, Any]:
    """Write what is kept of a finished run; the JSON comes last, and its presence means that the run is done."""
    text = (run.folder / "progress.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    saved = json.loads((run.folder / "config.json").read_text(encoding="utf-8"))
    evaluation = json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))
    last = rows[-max(1, len(rows) // 10) :]
    result = {
        "row": run.row,
        "estimator": run.estimator,
        "steps": int(rows[-1]["step"]),
        "data": evaluation["data"],
        "train_bound": mean(last, "train_bound"),
        "log_variance": mean(last, "log_variance"),
        "bounds": evaluation["bounds"],
        "seconds_per_step": float(rows[-1]["seconds"]) / int(rows[-1]["step"]),
        "settings": {name: value for name, value in saved["vae"].items() if name not in ("run_dir", "data_dir")},
        "versions": saved["versions"],
        "resumed": len(saved["resumed"]),
        "commit": commit,
    }
    write_text(run.result.with_suffix(".csv"), text)
    write_json(run.result.with_suffix(".json"), result)
    return result


def mean(rows: list[dict[str, str]], column: str) -> float:
    """Mean of a column over the last tenth of the rows, which is what the tables show."""
    return sum(float(row[column]) for row in rows) / len(rows)


def queue(arguments: argparse.Namespace) -> Iterator[Run]:
    """Unfinished runs in order: set by set, row by row."""
    for each in (SETS[name] for name in arguments.sets):
        for row in each.rows:
            for estimator in each.estimators:
                run = Run(each, row, estimator, arguments.lr or each.lr)
                wanted = (arguments.rows is None or row in arguments.rows) and (
                    arguments.estimators is None or estimator in arguments.estimators
                )
                if wanted and not run.result.with_suffix(".json").exists():
                    yield run


def is_finished(run: Run) -> bool:
    """Whether the run had ended before, and only its result had not been kept."""
    try:
        evaluation = json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(evaluation["evaluated_at"] == run.set.steps)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train discrete VAEs for the papers' tables.")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS), help="in order")
    parser.add_argument("--rows", nargs="+", help="only these rows")
    parser.add_argument("--estimators", nargs="+", help="only these estimators")
    parser.add_argument("--lr", type=float, help="another learning rate of the model than the set's")
    parser.add_argument("--data-dir", help="folder with the data files")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--report", action="store_true", help="write the report and train nothing")
    return parser.parse_args()


def main() -> None:
    """Work through the queue, then write the report."""
    from benchmarks.vae_report import write_report

    arguments = parse_arguments()
    tasks = {task_of(run, arguments.data_dir): run for run in queue(arguments)} if not arguments.report else {}
    present, failures = commit(), 0

    def after(task: Task, outcome: Mapping[str, Any]) -> None:
        if outcome["status"] == "finished":
            result = keep(tasks[task], present)
            told = f"training bound {result['train_bound']:.2f}, {1e3 * result['seconds_per_step']:.1f} ms a step"
            print(f"{task.name}: {told}", flush=True)

    # Of a run that had ended before, only the result had not been kept.
    ended = [task for task, run in tasks.items() if is_finished(run)]
    for task in ended:
        after(task, {"status": "finished"})
    if tasks:
        (RUNS / "logs").mkdir(parents=True, exist_ok=True)
        with interruptible() as interruption, Pool(arguments.jobs, RUNS, Progress(quiet=True, after=after)) as pool:
            outcomes = pool.run((task for task in tasks if task not in ended), interruption)
        if outcomes is None:
            sys.exit(128 + (interruption.signal or signal.SIGINT))
        failures = sum(outcome["status"] != "finished" for outcome in outcomes.values())
    write_report(VAE_RESULTS)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
