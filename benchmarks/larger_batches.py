"""What a gradient of lower variance could buy: A2C with two and four times the batch and the same number of updates.

    python -m benchmarks.larger_batches                        # every task; what is done already is kept
    python -m benchmarks.larger_batches --tasks CartPole-v1 --seeds 5
    python -m benchmarks.larger_batches --report               # the table and the figure alone

With twice the environments an update's gradient has half the variance, and the value function sees twice the data as
well: what that gains, update by update, bounds what a surrogate could gain that takes half of the variance away. RELAX or
LAX at the plain batch stands beside it. Each pair of a task and a batch is one `train_agent.py compare` command, which
can be stopped and gone on with. Writes `results/larger_batches/<task>.json`, `results/larger_batches.md` and `.png`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.matches import RUNS, Match, spread
from benchmarks.tasks import RESULTS, write_json, write_text
from relax_rl.comparison.contestants import safe_name
from relax_rl.comparison.results import read_run
from relax_rl.comparison.statistics import bootstrap, iqm, median
from relax_rl.plotting import png
from relax_rl.presets import preset_config
from relax_rl.serialization import write_bytes_atomic

__all__ = ["TASKS", "Task", "main"]

GROUP = "larger_batches"
POINTS = 50
WINDOW = 0.1
"""Share of all updates whose episodes each point of a curve is the mean of."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One environment.

    Attributes:
        steps: at the preset's batch; so many times more with a larger one.
        threshold: mean return that is waited for.
        surrogate: the estimator beside A2C.
        factors: of the number of environments, and of the rows in a minibatch.
        seeds: runs of each contestant.
    """

    steps: int
    threshold: float
    surrogate: str = "relax"
    factors: tuple[int, ...] = (1, 2, 4)
    seeds: int = 10

    def match(self, env: str, factor: int) -> Match:
        """The comparison with one batch."""
        preset = preset_config(env, "a2c")
        larger = {"num_envs": str(factor * preset.env.num_envs)}
        if preset.agent.minibatch_size:
            larger["minibatch_size"] = str(factor * preset.agent.minibatch_size)
        contestants = ("a2c", self.surrogate) if factor == 1 else ("a2c",)
        return Match(env=env, steps=factor * self.steps, contestants=contestants, settings=larger, seeds=self.seeds)


TASKS: dict[str, Task] = {
    "CartPole-v1": Task(steps=100_000, threshold=475.0),
    "InvertedPendulum-v5": Task(steps=150_000, threshold=950.0, surrogate="lax"),
    "Acrobot-v1": Task(steps=100_000, threshold=-100.0),
    "LunarLander-v3": Task(steps=500_000, threshold=200.0, factors=(1, 2), seeds=5),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and write the table and the figure of all that is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, help="runs of each contestant (default: the task's)")
    parser.add_argument("--report", action="store_true", help="write the table and the figure, and train nothing")
    args = parser.parse_args(argv)
    for name in () if args.report else args.tasks:
        _play(name, TASKS[name], args.seeds or TASKS[name].seeds)
        _report()
    _report()


def _play(env: str, task: Task, seeds: int) -> None:
    """Train, and keep a curve of every run."""
    curves: dict[str, Any] = {}
    preset = preset_config(env, "a2c")
    batch = preset.env.num_envs * preset.agent.num_steps
    for factor in task.factors:
        match, folder = task.match(env, factor), RUNS / GROUP / f"{env}-x{factor}"
        subprocess.run(match.command(folder, seeds), check=True)
        for label in match.contestants:
            runs = [read_run(folder / "runs" / f"{safe_name(env)}-{label}-s{seed}", seed) for seed in range(seeds)]
            rows = [_curve(run.episode_steps, run.episode_returns, match.steps) for run in runs if run is not None]
            curves[f"{label} x{factor}"] = np.round(rows, 2).tolist()
    content = {
        "env": env,
        "threshold": task.threshold,
        "updates": task.steps // batch,
        "batch": batch,
        "at": [(k + 1) / POINTS for k in range(POINTS)],
        "curves": curves,
    }
    write_json(RESULTS / GROUP / f"{env}.json", content)


def _curve(steps: np.ndarray, returns: np.ndarray, total: int) -> np.ndarray:
    """Mean return of the episodes that ended in the last `WINDOW` of all updates, at `POINTS` times; NaN without any."""
    ends = np.linspace(0, total, POINTS + 1)[1:]
    found = np.full(POINTS, np.nan)
    for k, end in enumerate(ends):
        inside = (steps > end - WINDOW * total) & (steps <= end)
        if inside.any():
            found[k] = returns[inside].mean()
    return _held(found)


def _held(curve: np.ndarray) -> np.ndarray:
    """Points without an episode take the last known one, or the first at the beginning."""
    known = np.flatnonzero(np.isfinite(curve))
    at = np.maximum(0, np.searchsorted(known, np.arange(len(curve)), side="right") - 1)
    return curve[known[at]]


def _found() -> list[dict[str, Any]]:
    files = [RESULTS / GROUP / f"{env}.json" for env in TASKS]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]


def _updates_to_threshold(task: Mapping[str, Any], rows: np.ndarray) -> np.ndarray:
    reached = rows >= task["threshold"]
    at = np.asarray(task["at"]) * task["updates"]
    return np.where(reached.any(1), at[reached.argmax(1)], np.inf)


def _interval(estimate: Any, style: str) -> str:
    return spread({name: getattr(estimate, name) for name in ("value", "low", "high")}, style)


def _report() -> None:
    """`results/larger_batches.md` and its figure."""
    lines = [
        "# What a gradient of lower variance could buy",
        "",
        "A2C (`x1`: the preset's batch) with twice (`x2`) and four times (`x4`) as many environments and the same number of",
        "updates, and RELAX or LAX at the preset's batch. Updates until the mean return of the episodes that ended in the",
        f"last {WINDOW:.0%} of all updates reaches the threshold: medians, those that did not reach it beyond all others. Mean",
        "return over the whole training: interquartile means. Intervals of 95% over runs.",
        "`python -m benchmarks.larger_batches` trains and writes this file.",
        "",
        "| task | contestant | runs | reached | updates to the threshold | mean return over training |",
        "|---|---|---:|---:|---:|---:|",
    ]
    tasks = _found()
    for task in tasks:
        name = f"{task['env']}, {task['threshold']:g}; {task['updates']:,} updates of {task['batch']}"
        for label, curves in task["curves"].items():
            rows = np.asarray(curves)
            times = _updates_to_threshold(task, rows)
            cells = [name, label, str(len(rows)), f"{np.isfinite(times).sum()} of {len(rows)}"]
            cells.append(_interval(bootstrap(median, times), ",.0f"))
            cells.append(_interval(bootstrap(iqm, rows.mean(1)), ".1f"))
            lines.append("| " + " | ".join(cells) + " |")
            name = ""
    write_text(RESULTS / f"{GROUP}.md", "\n".join(lines) + "\n")
    if tasks:
        _draw(tasks)


def _draw(tasks: Sequence[Mapping[str, Any]]) -> None:
    """A panel for each task: curves against updates."""
    from matplotlib.figure import Figure

    columns = min(2, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(5.5 * columns, 3.6 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    blues = {"x1": "#9ec5e8", "x2": "#3b75af", "x4": "#16324f"}
    for axes, task in zip(panels, tasks, strict=False):
        at = np.asarray(task["at"]) * task["updates"]
        for label, curves in task["curves"].items():
            estimate = bootstrap(iqm, np.asarray(curves))
            estimator, _, factor = label.partition(" ")
            colour = blues[factor] if estimator == "a2c" else "#d9793d"
            axes.plot(at, estimate.value, color=colour, label=label, linewidth=1.8)
            axes.fill_between(at, estimate.low, estimate.high, color=colour, alpha=0.15, linewidth=0)
        axes.axhline(task["threshold"], color="0.4", linestyle="--", linewidth=1)
        axes.set_title(task["env"], fontsize="medium")
        axes.set_xlim(0, task["updates"])
        axes.grid(alpha=0.25)
        axes.legend(fontsize="small", frameon=False)
        axes.set_xlabel("updates")
        axes.set_ylabel("mean return")
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    figure.suptitle("the same number of updates, from more environments: interquartile means", fontsize="medium")
    write_bytes_atomic(RESULTS / f"{GROUP}.png", png(figure))


if __name__ == "__main__":
    main()
