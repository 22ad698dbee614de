"""What the toy problem leaves in words and numbers: `toy.json`, `toy.md`, `curves.csv`."""

from __future__ import annotations

import csv
import inspect
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from relax_rl.estimators import describe
from relax_rl.experiments.toy.config import ToyConfig
from relax_rl.experiments.toy.problem import Problem, outcomes_in_words
from relax_rl.experiments.toy.quadrature import lowest_rebar_variance
from relax_rl.experiments.toy.training import NEAR, Run, median

__all__ = ["LATE", "curves_csv", "floors", "markdown", "summary"]

LATE = 2000
"""The log variance is summarised over the measurements from this step on (in shorter runs: over the second half)."""

_WITHOUT_FLOOR = ("relax", "dlax", "marginal", "nvil", "muprop", "simple-muprop")
"""Estimators whose control variate can take a bit's variance to 0: the constant (1 - theta) f(1) + theta f(0) does it, for
DLAX a function of z that falls off from this value at z = 0 (docs/toy.md)."""


def floors(problem: Problem, theta: float, names: Sequence[str], *, coupling: str) -> dict[str, float]:
    """The least variance that each estimator's control variate can reach at a bit's theta, where that is known.

    Args:
        names: of the estimators.
        coupling: of REBAR's noises; its floor is known for coupled ones.
    """
    if problem.kind != "bits":
        return {}
    known = dict.fromkeys(_WITHOUT_FLOOR, 0.0)
    if "rebar" in names and coupling == "coupled":
        known["rebar"] = lowest_rebar_variance(problem, theta)
    return {name: known[name] for name in names if name in known}


def summary(runs: Mapping[str, Run], problem: Problem, config: ToyConfig) -> dict[str, Any]:
    """What `toy.json` holds: the settings of the problem, and for each estimator medians over seeds and every seed's end."""
    late = LATE if config.steps > LATE else config.steps // 2
    result: dict[str, Any] = {
        "target": config.target,
        "outcomes": config.outcomes,
        "fixed_theta": config.fixed_theta,
        "steps": config.steps,
        "seeds": list(range(config.seed, config.seed + config.seeds)),
        "values": problem.values.tolist(),
        "optimum": problem.optimum,
        "near": NEAR,
        "late": late,
        "estimators": {name: _entry(run, late) for name, run in runs.items()},
    }
    if config.fixed_theta is not None:
        for name, floor in floors(problem, config.fixed_theta, list(runs), coupling=config.coupling).items():
            result["estimators"][name]["log_variance_floor"] = math.log(floor) if floor else -math.inf
    return result


def _entry(run: Run, late: int) -> dict[str, Any]:
    rows = [row for row, step in enumerate(run.steps) if step >= late]
    solved = [step for step in run.solved.tolist() if step >= 0]
    return {
        "final_loss": _spread(run.expected_loss[-1]),
        "theta": _spread(run.theta[-1]),
        "log_variance": _spread(run.log_variance[rows].flatten()),
        "log_variance_exact": None if run.exact is None else _spread(run.exact[rows].log().flatten()),
        "log_variance_first": median(run.log_variance[0]),
        "log_variance_last": median(run.log_variance[-1]),
        "solved_seeds": len(solved),
        "steps_to_solve": sorted(run.solved.tolist(), key=lambda step: (step < 0, step))[(len(run.solved) - 1) // 2],
        "learned": {name: median(value[-1]) for name, value in run.learned.items()},
        "microseconds_per_step": round(run.seconds * 1e6),
        "seeds": {
            "theta": run.theta[-1].tolist(),
            "expected_loss": run.expected_loss[-1].tolist(),
            "steps_to_solve": run.solved.tolist(),
        },
    }


def markdown(result: Mapping[str, Any]) -> str:
    """`toy.md`: one table, and what its columns mean."""
    return _fixed_markdown(result) if result["fixed_theta"] is not None else _free_markdown(result)


def _free_markdown(result: Mapping[str, Any]) -> str:
    seeds = len(result["seeds"])
    rows = []
    for name, entry in result["estimators"].items():
        steps = "not reached" if entry["steps_to_solve"] < 0 else f"{entry['steps_to_solve']:,}"
        cells = (
            f"{entry['final_loss']['median']:.6f}",
            _with_quartiles(entry["theta"], 3),
            f"{steps} ({entry['solved_seeds']} of {seeds})",
            _with_quartiles(entry["log_variance"], 2),
            _exact(entry),
            _evaluations(name, result["outcomes"]),
            describe(name).bias,
        )
        rows.append((name, *cells))
    return _page(
        f"Toy problem, t = {result['target']:g}, {outcomes_in_words(result['outcomes'])}",
        f"{result['steps']:,} steps of one sample each, {seeds} seeds. The least expected loss is "
        f"{result['optimum']:.6f}. Medians, and in brackets the quartiles.",
        "estimator | expected loss at the end | theta at the end | "
        f"steps to within {NEAR:g} of the optimum (seeds that got there) | log variance | by quadrature | "
        "evaluations of f a step | bias",
        rows,
        "theta is the probability of b = 1 (of all outcomes but the first, if there are more). The log variance is the "
        "natural logarithm of the variance of one estimate at the current parameters, summed over them; its median is "
        f"over the measurements from step {result['late']:,} on and over seeds.",
    )


def _evaluations(name: str, outcomes: int) -> str:
    """Of f in one step, here where the numbers of samples and of outcomes are known."""
    info = describe(name)
    known = {"M": outcomes}
    if (samples := inspect.signature(info.function).parameters.get("num_samples")) is not None:
        known["K"] = samples.default
    return str(known.get(info.evaluations, info.evaluations.partition(" ")[0]))


def _fixed_markdown(result: Mapping[str, Any]) -> str:
    rows = []
    for name, entry in result["estimators"].items():
        floor = entry.get("log_variance_floor")
        learned = ", ".join(f"{key} {value:.3g}" for key, value in entry["learned"].items())
        cells = (
            _number(entry["log_variance_first"], 2),
            _number(entry["log_variance_last"], 2),
            _with_quartiles(entry["log_variance"], 2),
            _exact(entry),
            ("unknown" if learned else "") if floor is None else _number(floor, 2),
            learned or "nothing",
        )
        rows.append((name, *cells))
    return _page(
        f"Toy problem at theta = {result['fixed_theta']:g}, t = {result['target']:g}, "
        f"{outcomes_in_words(result['outcomes'])}",
        f"theta stays where it is; what each estimator learns is trained for {result['steps']:,} steps of one sample "
        f"each, {len(result['seeds'])} seeds. Medians, and in brackets the quartiles.",
        "estimator | log variance at the start | at the end | from step "
        f"{result['late']:,} on | by quadrature | floor | learned",
        rows,
        "The floor is the log variance with the best control variate of the estimator's own form: -inf where that leaves "
        "no variance at all; for REBAR the best eta at the best temperature from 0.05 to 20.",
    )


def _page(title: str, before: str, columns: str, rows: Sequence[Sequence[str]], after: str) -> str:
    """A title, and a table between two paragraphs; `columns` are their names with ` | ` between them."""
    table = [f"| {columns} |", "|---" * (columns.count(" | ") + 1) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([f"# {title}", "", before, "", *table, "", after]) + "\n"


def curves_csv(runs: Mapping[str, Run], config: ToyConfig) -> str:
    """Every measurement of every seed, one a row."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("estimator", "seed", "step", "theta", "expected_loss", "log_variance", "log_variance_exact"))
    for name, run in runs.items():
        exact = torch.full_like(run.variance, math.nan) if run.exact is None else run.exact.log()
        for row, step in enumerate(run.steps):
            for column in range(config.seeds):
                values = (table[row, column] for table in (run.theta, run.expected_loss, run.log_variance, exact))
                cells = ("" if math.isnan(value) else f"{value:.7g}" for value in map(float, values))
                writer.writerow((name, config.seed + column, step, *cells))
    return buffer.getvalue()


def _spread(values: Tensor) -> dict[str, float]:
    """Median and quartiles, entries of the sample: a mean of -inf and a number would be neither."""
    ordered = values.sort().values
    last = len(ordered) - 1
    at = {"median": 0.5, "lower_quartile": 0.25, "upper_quartile": 0.75}
    if torch.isfinite(ordered).all():
        places = {name: (math.floor(q * last), math.ceil(q * last), q * last % 1.0) for name, q in at.items()}
        return {name: float(ordered[low].lerp(ordered[high], part)) for name, (low, high, part) in places.items()}
    return {name: float(ordered[math.floor(q * last)]) for name, q in at.items()}


def _with_quartiles(spread: Mapping[str, float], digits: int) -> str:
    low, high = (_number(spread[key], digits) for key in ("lower_quartile", "upper_quartile"))
    return f"{_number(spread['median'], digits)} [{low}, {high}]"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else str(value)


def _exact(entry: Mapping[str, Any]) -> str:
    exact = entry["log_variance_exact"]
    return "none" if exact is None else _number(exact["median"], 2)
