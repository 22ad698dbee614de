"""The report of the discrete VAE: tables in the papers' layout, published final values beside them, and curves."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.tasks import write_text
from benchmarks.vae_published import PUBLISHED_TRAIN, PUBLISHED_VALID
from relax_rl.compute.serialization import write_bytes_atomic
from relax_rl.runs.plotting import png

__all__ = ["write_report"]

Result = dict[str, Any]

TITLES = {
    "mnist-linear1": "MNIST, one linear layer",
    "omniglot-linear1": "Omniglot, one linear layer",
    "mnist-linear2": "MNIST, two linear layers",
    "omniglot-linear2": "Omniglot, two linear layers",
    "mnist-nonlinear": "MNIST, nonlinear",
    "omniglot-nonlinear": "Omniglot, nonlinear",
    "mnist-nonlinear-wide": "MNIST, nonlinear, wide decoder",
    "omniglot-nonlinear-wide": "Omniglot, nonlinear, wide decoder",
}
"""The rows, in the order of the tables."""

COLUMNS = (
    "concrete",
    "nvil",
    "muprop",
    "rebar",
    "relax-published",
    "relax",
    "reinmax",
    "disarm",
    "arms",
    "rloo",
    "double-cv",
    "rodeo",
)
"""The papers' estimators, then the others by evaluations of f."""

SECTIONS = {
    "table": "Equal steps on every row",
    "long": "Longer runs",
    "wide": "The wide decoder",
    "variances": "Variances on one model",
}

SEEDS = ("table", "seed-1", "seed-2")
"""Sets that differ in nothing but their seed."""

OTHERS = {
    "two-samples": "2 samples of each image",
    "six-samples": "6 samples of each image",
    "relax-six-samples": "6 samples of each image",
    "surrogate-lr-10": "f relaxed in all bits at once, r at 10 times the model's rate",
    "published-lr-10": "r at 10 times the model's rate",
    "r-2x100": "r of two layers of 100",
    "corrected": "f relaxed in one bit at a time, without r",
    "lr-factor-1": "scales and baseline at the model's rate",
}
"""Runs with other settings than those of the tables, which stand beside them."""


def write_report(folder: Path) -> None:
    """Write `vae.md` and the figures from the results that are there.

    Args:
        folder: holds a folder of JSON and CSV files for each set of runs.
    """
    parts = ["# Discrete VAE\n", _PREAMBLE]
    for name, title in SECTIONS.items():
        results = _results(folder / name)
        if not results:
            continue
        steps = max(result["steps"] for result in results.values())
        if name == "variances":
            parts += _variances(folder, results)
            continue
        parts.append(f"## {title}: {steps:,} steps\n")
        parts += _tables(results)
        for row in _rows(results):
            figure = f"{name}_{row}.png"
            _draw(folder / name, folder / figure, row, [e for e in COLUMNS if (row, e) in results], steps)
            parts.append(f"![{TITLES[row]}]({figure})\n")
        if name == "table":
            parts += _seeds(folder)
    parts += _others(folder)
    write_text(folder / "vae.md", "\n".join(parts))


_PREAMBLE = """\
Batches of 24, Adam (second-moment decay 0.99999), one learning rate for all runs (1e-3 of the published grid); scales,
temperatures and baselines at 10 times that, RELAX's free part r at the same; seed 0 but where others are named, one thread. `relax` relaxes f in
one bit at a time, `relax-published` in all at once, with the published r: see docs/vae.md. Estimators that take several
samples take as many as RELAX has evaluations of f in its published form, or the next lower number that they allow: see
`evaluations of f`. In brackets: the published value after 2,000,000 steps, where there is one. All bounds are in nats per
image, larger is better. Times are in speed.md. `python -m benchmarks.vae --report` writes this file.
"""


def _tables(results: Mapping[tuple[str, str], Result]) -> list[str]:
    def bound(name: str) -> Callable[[Result], float]:
        return lambda result: float(result["bounds"].get(name, math.nan))

    return [
        "Training bound (1 sample; mean over the last tenth of the steps, each batch before its step):\n",
        _grid(results, lambda result: result["train_bound"], PUBLISHED_TRAIN),
        "Validation bound (1 sample):\n",
        _grid(results, bound("valid_bound_1")),
        "Validation bound (100 importance samples):\n",
        _grid(results, bound("valid_bound_100"), PUBLISHED_VALID),
        "Log variance of the encoder's gradient (natural logarithm of the mean over parameters; last tenth):\n",
        _grid(results, lambda result: result["log_variance"]),
        "Evaluations of f in a step, as published (RELAX and REBAR make fewer here, since both controls are one; `relax` also "
        "takes two products with the second derivative of f):\n",
        _grid(results, _evaluations, digits=0),
    ]


def _seeds(folder: Path) -> list[str]:
    """Mean and spread of every estimator over the seeds of the rows that have several."""
    runs: dict[tuple[str, str], list[Result]] = {}
    for name in SEEDS:
        for case, result in _results(folder / name).items():
            runs.setdefault(case, []).append(result)
    several = {case: found for case, found in runs.items() if len(found) > 1}
    if not several:
        return []
    parts = [
        "## Other seeds\n",
        "Mean and standard deviation over as many seeds, from 0 on, of what was run with more than one. Seeds differ in the weights "
        "at the start, the order of images and all noise. What stands above from one seed is known no better than this.\n",
    ]
    for row in _rows({case: {} for case in several}):
        lines = [
            f"{TITLES[row]}:\n",
            f"| estimator | seeds | {' | '.join(_SPREADS)} |",
            f"|---|---:|{'---:|' * len(_SPREADS)}",
        ]
        for name in (name for name in COLUMNS if (row, name) in several):
            found = several[row, name]
            cells = [_spread([value(run) for run in found]) for value in _SPREADS.values()]
            lines.append(f"| {name} | {len(found)} | {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
    return parts


_SPREADS: Mapping[str, Callable[[Result], float]] = {
    "training bound": lambda result: float(result["train_bound"]),
    "validation bound, 1 sample": lambda result: float(result["bounds"]["valid_bound_1"]),
    "validation bound, 100 samples": lambda result: float(result["bounds"]["valid_bound_100"]),
    "log variance": lambda result: float(result["log_variance"]),
}


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def _others(folder: Path) -> list[str]:
    """Runs with other settings of surrogates and baselines, each under the run of the tables."""
    usual = _results(folder / "table")
    other = [(what, _results(folder / name)) for name, what in OTHERS.items()]
    lines = []
    for row, estimator in sorted({case for _, results in other for case in results}, key=_place):
        runs = {what: results[row, estimator] for what, results in other if (row, estimator) in results}
        if (row, estimator) in usual:
            runs = {"as in the tables": usual[row, estimator], **runs}
        for what, run in runs.items():
            worst = max(float(each["log_variance"]) for each in run["progress"][len(run["progress"]) // 10 :])
            cells = f"{run['train_bound']:.2f} | {run['log_variance']:.2f} | {worst:.2f}"
            lines.append(f"| {TITLES[row]} | {estimator} | {what} | {cells} |")
    if not lines:
        return []
    return [
        "## Other settings\n",
        "The published search took 1 and 10 times the model's learning rate. In the tables, r takes 1, scales, temperatures and "
        "baselines take 10. Training bound and log variance as above; `largest` is the largest log variance in any row of "
        "progress.csv after the first tenth.\n",
        "| | estimator | how | training bound | log variance | largest |\n|---|---|---|---|---|---|\n"
        + "\n".join(lines)
        + "\n",
    ]


def _variances(folder: Path, results: Mapping[tuple[str, str], Result]) -> list[str]:
    """Log variances of all estimators on the same model, and their curves."""
    parts = []
    for (row, estimator), result in results.items():
        rows = _progress(folder / "variances" / f"{row}-{estimator}.csv")
        settings = result["settings"]
        freeze_at = int(settings["freeze_at"])
        curves = {estimator: "log_variance"} | {name: f"log_variance/{name}" for name in settings["track_variances"]}
        while_learning = [each for each in rows if freeze_at * 0.8 <= int(each["step"]) <= freeze_at]
        frozen = rows[-max(1, len(rows) // 10) :]
        means = {
            name: [sum(float(each[column]) for each in some) / len(some) for some in (while_learning, frozen)]
            for name, column in curves.items()
        }
        lines = [
            f"## Variances on one model: {TITLES[row]}, learning rate {settings['lr']:g}, {result['steps']:,} steps\n",
            f"{estimator} trains the model until step {freeze_at:,}, where it stops; the others watch, each with a surrogate or "
            "baseline of its own. Log variance of the encoder's gradient (natural logarithm of the mean over parameters):\n",
            f"| estimator | before step {freeze_at:,} | at fixed parameters, last tenth |",
            "|---|---|---|",
        ]
        lines += [
            f"| {name} | {a:.2f} | {b:.2f} |" for name, (a, b) in sorted(means.items(), key=lambda pair: pair[1][0])
        ]
        figure = f"variances_{row}.png"
        _draw_variances(folder / figure, TITLES[row], rows, curves, freeze_at)
        parts += ["\n".join(lines) + "\n", f"![{TITLES[row]}]({figure})\n"]
    return parts


def _draw_variances(
    path: Path, title: str, rows: list[dict[str, str]], curves: Mapping[str, str], freeze_at: int
) -> None:
    """Log variance of each estimator against steps, with a line where the model stops."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 4.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name, column in curves.items():
        axes.plot([int(each["step"]) for each in rows], [float(each[column]) for each in rows], label=name)
    axes.axvline(freeze_at, color="0.4", linestyle="--", linewidth=1)
    axes.text(freeze_at, 0.99, " the model stops", transform=axes.get_xaxis_transform(), va="top", fontsize="small")
    axes.set_xlabel("steps")
    axes.set_ylabel("log variance of the encoder's gradient")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.suptitle(title, fontsize="medium")
    write_bytes_atomic(path, png(figure))


def _progress(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _evaluations(result: Result) -> float:
    layers, count = int(result["settings"]["layers"]), int(result["settings"]["num_samples"])
    name = result["estimator"]
    if name in ("relax", "relax-published", "rebar"):
        return 2 * layers + 1
    if name in ("disarm", "arms"):
        return count * layers
    if name in ("rloo", "double-cv", "rodeo"):
        return count
    return 2 if name == "muprop" else 1


def _grid(
    results: Mapping[tuple[str, str], Result],
    value: Callable[[Result], float],
    published: Mapping[str, Mapping[str, float]] | None = None,
    *,
    digits: int = 2,
) -> str:
    columns = [name for name in COLUMNS if any(name == estimator for _, estimator in results)]
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for row in _rows(results):
        cells = []
        for name in columns:
            cell = f"{value(results[row, name]):.{digits}f}" if (row, name) in results else ""
            known = (published or {}).get(row, {}).get(name)
            cells.append(cell if known is None or not cell else f"{cell} ({known:.2f})")
        lines.append(f"| {TITLES[row]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _place(case: tuple[str, str]) -> tuple[int, str]:
    """Orders rows as the tables do, then by the estimator's name."""
    row, estimator = case
    return list(TITLES).index(row), estimator


def _rows(results: Mapping[tuple[str, str], Result]) -> list[str]:
    return [row for row in TITLES if any(row == here for here, _ in results)]


def _results(folder: Path) -> dict[tuple[str, str], Result]:
    """Finished runs by row and estimator; runs at another learning rate are no part of the tables."""
    found: dict[tuple[str, str], Result] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if path.stem == f"{result['row']}-{result['estimator']}":
            found[result["row"], result["estimator"]] = {**result, "progress": _progress(path.with_suffix(".csv"))}
    return found


def _draw(folder: Path, path: Path, row: str, estimators: list[str], steps: int) -> None:
    """Training bound and log variance of all estimators of a row, against steps."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(11, 4.4), dpi=120, layout="constrained")
    bounds, variances = figure.subplots(1, 2)
    lows = []
    for index, name in enumerate(estimators):
        rows = _progress(folder / f"{row}-{name}.csv")
        x = [int(each["step"]) for each in rows]
        style: dict[str, Any] = {"color": f"C{index % 10}", "linestyle": "-" if index < 10 else "--", "linewidth": 1.3}
        train = [float(each["train_bound"]) for each in rows]
        lows += train[len(train) // 10 :]
        bounds.plot(x, train, label=name, **style)
        variances.plot(x, [float(each["log_variance"]) for each in rows], label=name, **style)
    if lows:
        bounds.set_ylim(bottom=min(lows) - 1)
    bounds.set_ylabel("training bound (nats per image)")
    variances.set_ylabel("log variance of the encoder's gradient")
    for axes in (bounds, variances):
        axes.set_xlabel("steps")
        axes.set_xlim(0, steps)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25)
    labelled = bounds.get_legend_handles_labels()
    figure.legend(*labelled, loc="outside lower center", frameon=False, fontsize="small", ncols=6)
    figure.suptitle(TITLES[row], fontsize="medium")
    write_bytes_atomic(path, png(figure))
