"""`report.md`: what a comparison has found, in tables with its figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from relax_rl.comparison.contestants import file_names
from relax_rl.comparison.trials import best_trial
from relax_rl.runs.displays import describe_number

__all__ = ["FEWEST_FOR_CERTAIN", "both_ways", "certain", "markdown", "of_many", "solved_by_any"]

_MOST_IN_A_LIST = 6
"""Contestants whose pairs stand in a list, each with its interval: of more there are more than twenty pairs."""
FEWEST_FOR_CERTAIN = 4
"""That two runs of one are ahead of two of another is chance in one case of six, of three in one of twenty, of four in one of 70."""


def markdown(result: Mapping[str, Any]) -> str:
    """The report.

    Args:
        result: what `comparison.json` holds.
    """
    options = result["options"]
    lines = [
        "# Comparison",
        "",
        *(f"    {command}" for command in result["commands"]),
        "",
        f"{_count(options['seeds'], 'seed')} from {options['first_seed']} on; "
        f"{_at_a_time(result['num_workers'])} on {_place(result)}, each with one CPU thread unless its "
        "settings say otherwise: wall times are those under this load.",
    ]
    if result["failures"]:
        lines += ["", "## Runs that failed or have no score", ""]
        lines += [f"- {failure['run']}: {failure['status']}: {failure['error']}" for failure in result["failures"]]
        lines += [
            "",
            "A run that diverged counts with its last mean return, and as one that never solved the task unless it had before; "
            "one that failed otherwise, or before its first episode had ended, is left out.",
        ]
    stems = file_names((env,) for env in result["environments"])
    for env, summary in result["environments"].items():
        variance, stem = result["variance"].get(env, {}), stems[(env,)]
        lines += ["", *_environment(env, summary, variance, stem=stem, options=options)]
    if options["seeds"] and result["aggregate"] is not None and result["aggregate"]["improvement"]:
        lines += ["", *_aggregate(result["aggregate"])]
    lines += ["", *_settings(result), "", *_METHODS]
    return "\n".join(lines) + "\n"


def solved_by_any(summary: Mapping[str, Any]) -> bool:
    """Whether any run of an environment has reached its threshold."""
    return any(entry["solved"] and entry["solved"]["solved"] for entry in summary["contestants"].values())


def _environment(
    env: str, summary: Mapping[str, Any], variance: Mapping[str, Any], *, stem: str, options: Mapping[str, Any]
) -> list[str]:
    contestants, threshold = summary["contestants"], summary["threshold"]
    lines = [f"## {env}", ""]
    if not contestants:
        return [*lines, "No run has ended with a score." if options["seeds"] else "Tuned, and not yet compared."]
    known = "no registered threshold" if threshold is None else f"solved at a mean return of {threshold:g}"
    known += ", where a run ends" * options["stop_when_solved"]
    lines += [f"{summary['total_steps']:,} steps a run; {known}.", ""]
    head = ["contestant", "runs", "final score"]
    if threshold is not None:
        head += ["solved", "steps to solve", "episodes to solve", "seconds to solve"]
    lines += _table([*head, "steps/s"], [_row(label, entry) for label, entry in contestants.items()])
    if beyond := _beyond(summary):
        lines += ["", beyond]
    lines += ["", _image(stem, "curves", "Learning curves")]
    if solved_by_any(summary):
        lines += [_image(stem, "solved", "Share of runs that have solved it")]
    lines += [_image(stem, "scores", "Final scores and speed")]
    if summary["improvement"]:
        lines += [_image(stem, "improvement", "Probability of improvement"), "", *_pairs(summary["improvement"])]
    if variance:
        lines += ["", *_variance(stem, variance)]
    return lines


def _beyond(summary: Mapping[str, Any]) -> str:
    """Who took more steps than it was to, by more than one in fifty: the end of its last rollout."""
    longest = {label: max(run["steps"] for run in entry["runs"]) for label, entry in summary["contestants"].items()}
    found = [f"{label} {steps:,.0f}" for label, steps in longest.items() if steps > 1.02 * summary["total_steps"]]
    return f"Steps to the end of the last rollout, which final scores count: {', '.join(found)}." if found else ""


def _row(label: str, entry: Mapping[str, Any]) -> list[str]:
    runs = len(entry["runs"])
    cells = [label, str(runs), _interval(entry["final"], None, runs)]
    solved = entry["solved"]
    if solved is not None:
        cells.append(f"{solved['solved']} of {solved['runs']}")
        cells += [_interval(solved[unit]["median"], ",.0f", runs) for unit in ("steps", "episodes")]
        cells.append(_interval(solved["seconds"]["median"], ",.1f", runs))
    return [*cells, f"{entry['steps_per_second']:,.0f}"]


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    told = f"Bold, with at least {FEWEST_FOR_CERTAIN} runs of each: 1/2 lies outside the 95% interval"
    some = any(map(certain, pairs))
    if (labels := of_many(pairs)) is None:
        cells = [_interval(pair, ".2f", pair["runs"]) for pair in pairs]
        marked = [f"**{cell}**" if certain(pair) else cell for pair, cell in zip(pairs, cells, strict=True)]
        rows = [[f"P({pair['x']} > {pair['y']})", cell] for pair, cell in zip(pairs, marked, strict=True)]
        return [*_table(["pair", "probability of improvement"], rows), *(["", f"{told}."] if some else [])]
    found = {(x, y): f"**{value:.2f}**" if sure else f"{value:.2f}" for x, y, value, sure in both_ways(pairs)}
    head = ["P(row > column)", *(str(place) for place in range(1, len(labels) + 1))]
    rows = [[f"{place}: {x}", *(found.get((x, y), "") for y in labels)] for place, x in enumerate(labels, 1)]
    return [*_table(head, rows), *(["", f"{told}, which `comparison.json` has."] if some else [])]


def certain(pair: Mapping[str, float]) -> bool:
    """Whether 1/2 lies outside the interval of a probability of improvement, and there are runs enough to say so."""
    return pair["runs"] >= FEWEST_FOR_CERTAIN and (pair["low"] > 0.5 or pair["high"] < 0.5)


def both_ways(pairs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, float, bool]]:
    """X, Y, P(X > Y) and whether it is certain, of each pair and of the same pair turned round."""
    for pair in pairs:
        yield pair["x"], pair["y"], pair["value"], certain(pair)
        yield pair["y"], pair["x"], 1.0 - pair["value"], certain(pair)


def of_many(pairs: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """The contestants of more pairs than a list can show, which a square does; None if a list will do."""
    labels = list(dict.fromkeys(label for pair in pairs for label in (pair["x"], pair["y"])))
    return labels if len(labels) > _MOST_IN_A_LIST else None


def _variance(stem: str, stages: Mapping[str, Any]) -> list[str]:
    first = next(iter(stages.values()))
    rows = []
    for name in (name for name in first["applied"] if all(name in found["applied"] for found in stages.values())):
        cells = [name]
        for found in stages.values():
            applied = found["applied"][name]
            ratio = {key: float(value) for key, value in applied["ratio"].items()}
            cell = f"{ratio['value']:.3g} [{ratio['low']:.3g}, {ratio['high']:.3g}]"
            if bias := applied.get("squared_bias"):
                unit = float(found["applied"]["a2c"]["variance"]["value"]) or math.nan
                cell += f" + {float(bias['value']) / unit:.2g}"
            cells.append(cell)
        rows.append(cells)
    head = ["estimator", *(f"{stage}, {found['step']:,} steps" for stage, found in stages.items())]
    squares = ", ".join(f"{float(found['squared_gradient_norm']):.3g} {stage}" for stage, found in stages.items())
    return [
        f"Variance of an update's gradient, times A2C's, at frozen parameters of {first['estimator']} on the same "
        f"{first['batches']} rollouts of {first['rows_per_batch']} rows. *Fitted* surrogates were trained on "
        f"{first['fit_batches']} rollouts at these parameters. What is added to a variance is the squared bias of an estimate "
        f"that has one, in the same unit. The squared norm of the gradient itself: {squares}.",
        "",
        *_table(head, rows),
        "",
        _image(stem, "variance", "Gradient variance"),
    ]


def _aggregate(found: Mapping[str, Any]) -> list[str]:
    return [
        "## All environments",
        "",
        f"Probability of improvement, averaged over {', '.join(found['environments'])} with equal weight. It asks for no "
        "common scale of returns, whose choice would decide the outcome.",
        "",
        *_pairs(found["improvement"]),
        "",
        _image("all", "improvement", "Probability of improvement over all environments"),
    ]


def _settings(result: Mapping[str, Any]) -> list[str]:
    lines = ["## Settings", ""]
    for env, contestants in result["contestants"].items():
        lines += [f"### {env}", ""]
        for label, entry in contestants.items():
            if entry["peer"] is None:
                kind = f"{entry['kind']} (preset {entry['preset']})"
            else:
                peer = entry["peer"]
                kind = f"{entry['kind']}, {peer['source']}; departures: {peer['departure']}"
            given = ", ".join(f"{name} {_value(value)}" for name, value in entry["settings"].items())
            lines.append(f"- **{label}**: {kind}" + (f"; with {given}" if given else ""))
            if entry["tuning"] is not None:
                lines.append(f"  - {_tuned(entry['tuning'])}")
        lines.append("")
    return lines[:-1]


def _tuned(tuning: Mapping[str, Any]) -> str:
    trials, steps, rungs = tuning["trials"], tuning["steps"], tuning.get("rungs", [])
    together = isinstance(steps, Mapping)
    length = f"{steps:,} steps" if not together else ", ".join(f"{steps[env]:,} steps of {env}" for env in steps)
    told = f"tuned{' over all environments' if together else ''}: {len(trials)} trials of {length}"
    if rungs:
        reached = [sum(len(trial["reached"]) > rung for trial in trials) for rung in range(len(rungs))]
        told += ", " + ", ".join(f"{count} to {rung:.3g}" for count, rung in zip(reached, rungs, strict=True))
    told += f" on {'seed' if len(tuning['seeds']) == 1 else 'seeds'} {', '.join(map(str, tuning['seeds']))}"
    if failed := sum("failed" in trial for trial in trials):
        told += f", {failed} of which failed"
    best = best_trial(trials)
    if best is None:
        return f"{told}; none ended well with a finished episode, so its own settings are kept"
    settings = ", ".join(f"{name} {_value(value)}" for name, value in best["settings"].items())
    first = next((trial["score"] for trial in trials if trial["number"] == 0), None)
    score, form = ("normalised mean of the curves", ".3f") if together else ("mean of the curve", ".1f")
    before = "" if first is None else f" (untuned {first:{form}})"
    return f"{told}; best, number {best['number']}, {score} {best['score']:{form}}{before}: " + (
        settings or "its own settings"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = "|".join(["---", *["---:"] * (len(head) - 1)])
    # A label may hold what Markdown reads as the end of a cell.
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    body = [f"| {' | '.join(row)} |" for row in cells]
    return [body[0], f"|{rule}|", *body[1:]]


def _image(stem: str, what: str, told: str) -> str:
    return f"![{told}](figures/{stem}-{what}.png)"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _at_a_time(workers: int) -> str:
    return "one run at a time" if workers == 1 else f"{workers} runs side by side"


def _place(result: Mapping[str, Any]) -> str:
    cores, cluster = _count(result["cores"], "core"), result.get("cluster")
    return cores if cluster is None else f"{cores} of {_count(cluster['nodes'], 'node')} of a Ray cluster"


def _interval(found: Mapping[str, float], form: str | None, runs: int) -> str:
    """A value over so many runs with its interval, where it has one; without a form with the digits that its size asks for."""
    value, low, high = (_finite(found[name], form) for name in ("value", "low", "high"))
    nowhere = value == low == high and not math.isfinite(found["value"])
    return value if runs == 1 or nowhere else f"{value} [{low}, {high}]"


def _finite(value: float, form: str | None) -> str:
    if not math.isfinite(value):
        return "unknown" if math.isnan(value) else "beyond"
    return describe_number(value) if form is None else format(value, form)


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


_METHODS = [
    "## How to read this",
    "",
    "- In brackets: 95% bootstrap intervals (2,000 samples, runs resampled within each environment). With few runs they are "
    "too narrow; with one there is none.",
    "- **Final score**: mean return of the last 100 training episodes of a run, interquartile mean over runs (that is, "
    "without the lowest and the highest quarter; the plain mean of fewer than four).",
    "- **Steps, episodes, seconds to solve**: when the mean return of the last 100 training episodes first reached the "
    "threshold, and not before there were 100. Medians are over all runs; one that did not get there counts as later than "
    "all that did, and a median among these is *beyond* the budget.",
    "- **Probability of improvement** P(X > Y): that a run of X drawn at random ends with a higher score than one of Y, ties "
    "counting half. Where runs end once they have solved the task: that it solves it in fewer steps, or ends higher where "
    "neither does.",
    "- **steps/s**: environment steps over the whole time of a run, median over runs.",
    "",
    "Statistics after Agarwal et al. 2021, *Deep Reinforcement Learning at the Edge of the Statistical Precipice*.",
]
