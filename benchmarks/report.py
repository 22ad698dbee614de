"""Summarise every curve under results/ in one table and one figure per environment.

    python -m benchmarks.report

Reads `results/peers/*.csv` and `results/agents/*.csv`; writes `results/learning.json`, `results/learning.md`,
`results/learning_<env>.png` and the table in the README. Nothing is trained, and no number comes from anywhere but those files.
"""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.tasks import AGENT_RESULTS, PEER_RESULTS, RESULTS, TASKS, WINDOW, Task, write_json, write_text
from relax_rl.runs.plotting import png
from relax_rl.serialization import write_bytes_atomic

__all__ = ["Contestant", "Curve", "interquartile_mean", "interval", "main", "read_contestants", "summarize"]

Array = NDArray[np.float64]
RESAMPLES = 2_000
CONFIDENCE = 0.95
GRID = 2_000


@dataclass(frozen=True)
class Curve:
    """The last-100 mean of one run, row by row; NaN before the first episode has ended."""

    step: Array
    episodes: Array
    return_mean: Array
    variance_ratio: Array

    def reached(self, threshold: float) -> float:
        """First step at which a full window of episodes has a mean of at least `threshold`, or infinity."""
        hits = np.flatnonzero((self.episodes >= WINDOW) & (self.return_mean >= threshold))
        return float(self.step[hits[0]]) if hits.size else math.inf

    def at(self, steps: Array) -> Array:
        """Value of the latest row at each of `steps`; after the last row its value stays."""
        index = np.searchsorted(self.step, steps, side="right") - 1
        return np.where(index >= 0, self.return_mean[np.maximum(index, 0)], np.nan)


@dataclass(frozen=True)
class Contestant:
    """One learner in one environment, with a curve per seed."""

    name: str
    label: str
    color: str
    curves: dict[int, Curve]
    budget: int
    """Steps its runs were given."""


# name in the files, label, colour; own agents first
OWN = (("relax", "RELAX", "tab:red"), ("lax", "LAX", "tab:red"), ("a2c", "A2C", "tab:orange"))
PEERS = (("ppo", "SB3 PPO", "tab:blue"), ("a2c", "SB3 A2C", "tab:cyan"))


def read_curve(path: Path) -> Curve:
    """The curve in one result file."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def column(name: str) -> Array:
        return np.array([float(row.get(name) or "nan") for row in rows])

    return Curve(column("step"), column("episodes"), column("return_mean"), column("estimate/variance_ratio"))


def read_contestants(task: Task) -> list[Contestant]:
    """Everyone who has at least one finished run in this environment."""
    published = json.loads((PEER_RESULTS / "peers.json").read_text(encoding="utf-8"))["peers"]
    budgets = {(peer["env"], peer["algo"]): peer["total_steps"] for peer in published}
    found = []
    for folder, entries in ((AGENT_RESULTS, OWN), (PEER_RESULTS, PEERS)):
        for name, label, color in entries:
            pattern = f"{task.env.replace('/', '-')}-{name}-s*.csv"
            paths = {int(path.stem.rsplit("-s", 1)[1]): path for path in folder.glob(pattern)}
            curves = {seed: read_curve(paths[seed]) for seed in sorted(paths)}
            budget = budgets[task.env, name] if folder == PEER_RESULTS and curves else task.budget
            if curves:
                found.append(Contestant(name, label, color, curves, budget))
    return found


def interquartile_mean(values: Array) -> Array:
    """Mean of the middle half along the last axis."""
    return np.asarray(stats.trim_mean(values, 0.25, axis=-1))


def median(values: Array) -> Array:
    """Median along the last axis; infinite where half of the values or more are."""
    return np.asarray(np.median(values, axis=-1))


def interval(values: Array, statistic: Callable[[Array], Array]) -> tuple[Array, Array]:
    """Percentile bootstrap over runs: `values` is `[..., runs]`, the bounds are `[...]`."""
    runs = values.shape[-1]
    picks = np.random.default_rng(0).integers(runs, size=(RESAMPLES, runs))
    resampled = np.stack([statistic(values[..., pick]) for pick in picks])
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(resampled, [tail, 1.0 - tail], axis=0, method="inverted_cdf")
    return low, high


def summarize(task: Task, contestant: Contestant) -> dict[str, Any]:
    """Every number that the table shows, and the per-seed values they come from."""
    curves = contestant.curves
    reached = np.array([curve.reached(task.threshold) for curve in curves.values()])
    final = np.array([float(curve.at(np.array([task.budget]))[0]) for curve in curves.values()])
    best = np.array([float(np.nanmax(curve.return_mean)) for curve in curves.values()])
    steps_low, steps_high = interval(reached, median)
    final_low, final_high = interval(final, interquartile_mean)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # peers have no such column: a mean over nothing
        ratios = np.array([float(np.nanmedian(curve.variance_ratio)) for curve in curves.values()])
    return {
        "contestant": contestant.label,
        "budget": contestant.budget,
        "seeds": list(curves),
        "steps_to_threshold": [finite(value) for value in reached],
        "reached": int(np.isfinite(reached).sum()),
        "reached_within": int((reached <= task.within).sum()),
        "median_steps": finite(float(median(reached))),
        "median_steps_interval": [finite(float(steps_low)), finite(float(steps_high))],
        "final_return_mean": [finite(value) for value in final],
        "final_at_threshold": int((final >= task.threshold).sum()),
        "final_iqm": finite(float(interquartile_mean(final))),
        "final_iqm_interval": [finite(float(final_low)), finite(float(final_high))],
        "best_return_mean": [finite(value) for value in best],
        "median_variance_ratio": finite(float(np.median(ratios))),
    }


def finite(value: float) -> float | None:
    """The number, or None for one that JSON cannot hold (never reached, not measured)."""
    return round(float(value), 4) if math.isfinite(value) else None


def steps_text(value: float | None) -> str:
    """A number of steps for the table."""
    return "not reached" if value is None else f"{value:,.0f}"


def table(task: Task, summaries: list[dict[str, Any]]) -> str:
    """The Markdown section of one environment."""
    goal = f"{task.threshold:g}"
    asked = f"a mean return of the last {WINDOW} training episodes of at least {goal} within {task.within:,} steps"
    header = (
        "contestant",
        "seeds",
        f"reached {goal}",
        f"within {task.within:,}",
        f"median steps to {goal} [95% interval]",
        "fastest, slowest seed",
        "at the end: IQM [95% interval]",
        f"at the end: seeds at {goal}",
        "lowest, highest seed",
        "variance / A2C's",
    )
    lines = [f"## {task.env}", "", f"Asked: {asked}.", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in summaries:
        steps = [math.inf if value is None else value for value in row["steps_to_threshold"]]
        fastest, slowest = (steps_text(finite(value)) for value in (min(steps), max(steps)))
        low, high = (steps_text(value) for value in row["median_steps_interval"])
        ratio = row["median_variance_ratio"]
        final = [value for value in row["final_return_mean"] if value is not None]
        seeds = len(row["seeds"])
        cells = (
            row["contestant"],
            str(seeds),
            f"{row['reached']}/{seeds}",
            f"{row['reached_within']}/{seeds}",
            f"{steps_text(row['median_steps'])} [{low}, {high}]",
            f"{fastest}, {slowest}",
            f"{row['final_iqm']:.1f} [{row['final_iqm_interval'][0]:.1f}, {row['final_iqm_interval'][1]:.1f}]",
            f"{row['final_at_threshold']}/{seeds}",
            f"{min(final):.1f}, {max(final):.1f}",
            "" if ratio is None else f"{ratio:.3f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"![{task.env}]({figure_path(task).name})", ""])


def figure_path(task: Task) -> Path:
    """Where the figure of an environment lies."""
    return RESULTS / f"learning_{task.env.replace('/', '-')}.png"


def curve_grid(contestant: Contestant, horizon: int) -> tuple[Array, Array]:
    """Steps `[G]` and the runs' values there `[G, runs]`, from where every run has finished an episode."""
    steps = np.arange(0, min(contestant.budget, horizon) + 1, GRID, dtype=np.float64)
    values = np.stack([curve.at(steps) for curve in contestant.curves.values()], axis=-1)
    known = np.isfinite(values).all(axis=-1)
    return steps[known], values[known]


def draw(task: Task, contestants: list[Contestant]) -> None:
    """IQM over seeds against environment steps, with its bootstrap interval and the threshold."""
    from matplotlib.figure import Figure

    last = max(float(curve.step[-1]) for contestant in contestants for curve in contestant.curves.values())
    horizon = int(min(task.budget, last))
    figure = Figure(figsize=(9, 5.2), dpi=110)
    axes = figure.subplots()
    for contestant in contestants:
        steps, values = curve_grid(contestant, horizon)
        low, high = interval(values, interquartile_mean)
        runs = len(contestant.curves)
        label = f"{contestant.label} ({runs} {'seed' if runs == 1 else 'seeds'})"
        axes.plot(steps, interquartile_mean(values), color=contestant.color, label=label, linewidth=2)
        axes.fill_between(steps, low, high, color=contestant.color, alpha=0.18, linewidth=0)
    axes.axhline(task.threshold, color="0.35", linestyle="--", linewidth=1, label=f"asked: {task.threshold:g}")
    if task.within < horizon:
        axes.axvline(task.within, color="0.35", linestyle=":", linewidth=1, label=f"within {task.within:,} steps")
    axes.set(xlabel="environment steps, all environments together", ylabel=f"mean return, last {WINDOW} episodes")
    axes.set_title(task.env)
    axes.set_xlim(0, horizon)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k")
    axes.grid(alpha=0.25)
    axes.legend(loc="best", framealpha=0.9)
    figure.text(0.01, 0.008, NOTE, fontsize=7.5, color="0.3")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    write_bytes_atomic(figure_path(task), png(figure))


NOTE = (
    "IQM over seeds with 95% bootstrap interval; training episodes, raw returns. SB3 with rl-baselines3-zoo's settings,"
    " own agents with their presets.\nWhere a run ended because it had reached what is asked, its last value is kept."
)

CAPTION = f"""# Learning curves

RELAX, LAX and A2C are this package's agents with their default presets (`agents/settings.json` holds the effective
settings); SB3 A2C and SB3 PPO are Stable-Baselines3's with the settings that rl-baselines3-zoo publishes
(`peers/peers.json` names each source and every departure from it). So the peers run as their authors tuned them, not
with our settings. All numbers are means of raw returns over the last {WINDOW} *training* episodes, with exploration on.

- Where a task ends once its threshold is reached, a run that reached it keeps its last value in the figure and under
  "at the end". A run whose own budget was shorter than the task's (`budget` in `learning.json`) keeps its last value
  too, and its line in the figure ends at its budget.
- Curves have a row about every 2,000 steps. Where a task ends at its threshold there is one more at the very end: our
  runs are checked after every update, the peers' after every step.
- IQM is the mean of the middle half of the seeds. Intervals are 95% percentile bootstraps over seeds ({RESAMPLES:,}
  resamples); the median counts a run that never reached the threshold as later than all others.
- "variance / A2C's" is the median over the run, then over seeds, of the variance of the gradient estimate divided by
  that of the plain A2C gradient on the same batch.
"""


def settings_notes() -> list[str]:
    """A line for every contestant whose runs do not all share settings and commit, or were interrupted."""
    path = AGENT_RESULTS / "settings.json"
    groups = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    notes = []
    for name, entries in groups.items():
        runs = [run for entry in entries for run in entry["runs"].values()]
        commits = sorted({run["commit"] for run in runs})
        resumed = sum(run["resumed"] for run in runs)
        if len(entries) > 1:
            notes.append(f"- {name}: the runs have {len(entries)} different settings.")
        if len(commits) > 1:
            notes.append(f"- {name}: the runs come from commits {', '.join(commits)}.")
        if resumed:
            notes.append(f"- {name}: {resumed} of {len(runs)} runs were interrupted and went on from a checkpoint.")
    return notes


def readme_cell(task: Task, summary: dict[str, Any]) -> str:
    """One contestant in one environment, as the README shows it."""
    seeds = len(summary["seeds"])
    if not task.stop_when_reached:
        reached = f"{summary['final_at_threshold']} of {seeds}"
        return f"{reached}; mean of the middle half {summary['final_iqm']:.0f}"
    return f"{summary['reached_within']} of {seeds}; median {steps_text(summary['median_steps'])}"


def readme_table(summary: dict[str, Any]) -> str:
    """The README's table: one row an environment, one column a contestant."""
    columns = ("RELAX", "LAX", "A2C", "SB3 A2C", "SB3 PPO")
    lines = [f"| | asked | RELAX or LAX | {' | '.join(columns[2:])} |", "|---" * 6 + "|"]
    for env, entry in summary.items():
        task = TASKS[env]
        cells = {row["contestant"]: readme_cell(task, row) for row in entry["contestants"]}
        own = cells.get("RELAX", cells.get("LAX", ""))
        when = f"within {task.within:,} steps" if task.stop_when_reached else f"after {task.within:,} steps"
        asked = f"{task.threshold:g} {when}"
        lines.append(f"| {env} | {asked} | {own} | {' | '.join(cells.get(name, '') for name in columns[2:])} |")
    return "\n".join(lines)


def write_readme(summary: dict[str, Any]) -> None:
    """Put the table between the README's two markers."""
    path = RESULTS.parent.parent / "README.md"
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition("<!-- results: written by benchmarks/report.py -->\n")
    _, end, after = rest.partition("<!-- end of results -->")
    if not begin or not end:
        raise SystemExit(f"{path} has lost the markers that its results stand between")
    write_text(path, f"{before}{begin}\n{readme_table(summary)}\n\n{end}{after}")


def main() -> None:
    """Write the summary of all environments that have results."""
    sections = [CAPTION]
    summary = {}
    for task in TASKS.values():
        contestants = read_contestants(task)
        if not contestants:
            continue
        summaries = [summarize(task, contestant) for contestant in contestants]
        summary[task.env] = {"threshold": task.threshold, "within": task.within, "contestants": summaries}
        sections.append(table(task, summaries))
        draw(task, contestants)
    notes = settings_notes()
    if notes:
        sections.append("\n".join(["## Notes on the runs", "", *notes, ""]))
    write_readme(summary)
    write_json(RESULTS / "learning.json", summary)
    write_text(RESULTS / "learning.md", "\n".join(sections))


if __name__ == "__main__":
    main()
