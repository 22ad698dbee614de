"""The tables and the figure of `benchmarks.decision`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relax_rl.compute.serialization import write_bytes_atomic
from relax_rl.runs.plotting import png

__all__ = ["choices", "draw", "pick", "reference", "report"]

Entry = Mapping[str, Any]
COLUMNS = {
    "f evaluated": (False, False),
    "f evaluated, something kept": (False, True),
    "f differentiated": (True, False),
    "f differentiated, something kept": (True, True),
}
"""Whether f may be differentiated, and whether something is kept from step to step."""

CAPTION = """# Which estimator for which problem

Made by `python -m benchmarks.decision`. Mean squared error, bias^2 + variance, of estimates of dE[f] at fixed parameters, over the
squared norm of the exact gradient, from a sum over all outcomes or by quadrature; ± one standard error. {rows:,} estimates
each, fixed seeds. f has mean 1 and standard deviation 1; smooth and rough are what they are called in
`benchmarks/decision_problems.py`.

A budget is a number of evaluations of f for one gradient. Estimators of K samples take all; the others are averaged over
as many independent estimates as the budget allows, and 3 evaluations go into 4 once. Biases of estimators that are unbiased
by proof count as 0. `enumerated` asks f for all outcomes, which are more than 16 here; where they are not, take it.

† keeps something from step to step: the mean of f, or what the variance loss trains, a surrogate (REBAR: eta and the
temperature). {steps} steps at these very parameters come before the error is measured, each of as many estimates as the budget
allows. A training makes these evaluations anyhow, and they are not counted on top; but its parameters do not stand still,
which favours †. Derivatives of f are not counted either. ∂ differentiates f. The best of a column is in bold, and what is within
two standard errors of it.
"""


def of(found: Sequence[Entry], **wanted: Any) -> list[Entry]:
    """The entries with these values."""
    return [entry for entry in found if all(entry[name] == value for name, value in wanted.items())]


def reference(budget: int) -> str:
    """What others are compared with: leave-one-out, which takes two evaluations."""
    return "rloo" if budget > 1 else "reinforce, running mean"


def errors(found: Sequence[Entry], kind: str, budget: int) -> dict[str, dict[str, float]]:
    """By contestant and function, for those that are there for every function."""
    table: dict[str, dict[str, float]] = {}
    for entry in of(found, kind=kind, budget=budget):
        table.setdefault(entry["estimator"], {})[entry["function"]] = entry["mse"]
    return table


def pick(
    found: Sequence[Entry], kind: str, budget: int, *, differentiable: bool, kept: bool
) -> tuple[str, dict[str, float]] | None:
    """The contestant whose error is least far, as a ratio, from the best of the column at the worse of the functions.

    Args:
        differentiable: whether f may be differentiated; it need not be.
        kept: whether only those are asked that keep something from step to step, or only those that do not.

    Returns:
        its name, and by function its error over that of the reference; None where there is nobody.
    """
    every = errors(found, kind, budget)
    allowed = {
        entry["estimator"]
        for entry in of(found, kind=kind, budget=budget, kept=kept)
        if differentiable or not entry["differentiable"]
    }
    if not allowed:
        return None
    functions = list(every[reference(budget)])
    best = {function: min(every[name][function] for name in allowed) for function in functions}

    def regret(name: str) -> float:
        return max(every[name][g] / best[g] if best[g] > 0 else float(every[name][g] > 0) * 1e9 + 1 for g in functions)

    chosen = min(sorted(allowed), key=regret)
    rival = every[reference(budget)]
    return chosen, {g: every[chosen][g] / rival[g] for g in functions}


def choices(results: Mapping[str, Any]) -> str:
    """The table of the documentation: a row for each kind and budget."""
    found = results["found"]
    functions = list(dict.fromkeys(entry["function"] for entry in found))
    lines = [f"| outcomes | evaluations | {' | '.join(COLUMNS)} |", "|---|---:|---|---|---|---|"]
    for kind in results["kinds"]:
        for budget in sorted({entry["budget"] for entry in found}):
            cells = []
            for differentiable, kept in COLUMNS.values():
                chosen = pick(found, kind, budget, differentiable=differentiable, kept=kept)
                if chosen is None:
                    cells.append("")
                    continue
                name, ratios = chosen
                cells.append(f"`{name}` {' / '.join(f'{ratios[g]:.2g}' for g in functions)}")
            lines.append(f"| {kind} | {budget} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def report(results: Mapping[str, Any]) -> str:
    """The Markdown of everything."""
    found = results["found"]
    lines = [CAPTION.format(**results), "## In short", ""]
    lines += [
        "Of each column the estimator whose error is least far from the column's best on the worse of the two functions, and its",
        "error over that of `rloo` (at 1 evaluation: of REINFORCE less a running mean), on the smooth f and on the rough one. Where f",
        "may be differentiated it need not be.",
        "",
        choices(results),
    ]
    for kind, told in results["kinds"].items():
        lines += [f"## {kind.capitalize()}: {told}", "", *_kind(of(found, kind=kind)), ""]
    reasons: dict[str, list[str]] = {}
    for name, reason in results["left_out"].items():
        reasons.setdefault(reason, []).append(f"`{name}`")
    lines += [f"Not here: {', '.join(names)}, for {reason}." for reason, names in reasons.items()]
    return "\n".join(lines) + "\n"


def _kind(found: Sequence[Entry]) -> list[str]:
    """One row for each estimator, one column for each function and budget."""
    columns = list(dict.fromkeys((entry["function"], entry["budget"]) for entry in found))
    columns.sort(key=lambda column: column[0] == "rough")
    lines = [
        f"| estimator | {' | '.join(f'{g}, {budget}' for g, budget in columns)} |",
        "|---|" + "---:|" * len(columns),
    ]
    best = {
        (g, budget): min(of(found, function=g, budget=budget), key=lambda entry: float(entry["mse"]))
        for g, budget in columns
    }
    for name in dict.fromkeys(entry["estimator"] for entry in found):
        own = {(entry["function"], entry["budget"]): entry for entry in of(found, estimator=name)}
        any_ = next(iter(own.values()))
        cells = []
        for column in columns:
            entry = own.get(column)
            if entry is None:
                cells.append("")
                continue
            text, top = f"{entry['mse']:.3g} ± {entry['mse_error']:.1g}", best[column]
            margin = 2.0 * (entry["mse_error"] ** 2 + top["mse_error"] ** 2) ** 0.5
            known = entry["mse_error"] < 0.5 * entry["mse"] or entry is top
            cells.append(f"**{text}**" if known and entry["mse"] - top["mse"] <= margin else text)
        mark = ("†" if any_["kept"] else "") + ("∂" if any_["differentiable"] else "")
        lines.append(f"| {name}{' ' + mark if mark else ''} | {' | '.join(cells)} |")
    return lines


_COLORS = dict(zip(COLUMNS, ("#3b6ea5", "#7fb069", "#d98f3d", "#b5577a"), strict=True))


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Errors over the reference's, a panel for each kind and function: the best of each class against the evaluations."""
    from matplotlib.figure import Figure

    found, kinds = results["found"], list(results["kinds"])
    functions = list(dict.fromkeys(entry["function"] for entry in found))
    budgets = sorted({entry["budget"] for entry in found})
    figure = Figure(figsize=(2.3 * len(kinds), 2.3 * len(functions) + 0.6), dpi=110, layout="constrained")
    panels = figure.subplots(len(functions), len(kinds), squeeze=False, sharex=True)
    for row, function in zip(panels, functions, strict=True):
        for axes, kind in zip(row, kinds, strict=True):
            for label, (differentiable, kept) in COLUMNS.items():
                points = []
                for budget in budgets:
                    here = of(found, kind=kind, function=function, budget=budget)
                    rival = of(here, estimator=reference(budget))[0]["mse"]
                    values = [entry["mse"] for entry in of(here, differentiable=differentiable, kept=kept)]
                    points += [(budget, min(values) / rival)] if values else []
                if points:
                    axes.plot(*zip(*points, strict=True), color=_COLORS[label], label=label, marker="o", ms=3, lw=1.2)
            axes.axhline(1.0, color="0.3", lw=0.8, ls="--")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(budgets, [str(budget) for budget in budgets])
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
            axes.grid(alpha=0.25)
            axes.set_title(f"{kind}, {function} f", fontsize=9)
            axes.tick_params(which="both", labelsize=7)
    figure.supxlabel("evaluations of f", fontsize=9)
    figure.supylabel("least error / leave-one-out's", fontsize=9)
    handles = {
        label: line for axes in panels.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    write_bytes_atomic(path, png(figure))
