"""The figures of a comparison, each written as a PNG from what `comparison.json` holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relax_rl.comparison.report import FEWEST_FOR_CERTAIN, both_ways, certain, of_many, solved_by_any
from relax_rl.runs.plotting import HOLLOW, count_in_thousands, make_figure, name_rows, never_fatal, plain, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Styles",
    "band",
    "draw_all",
    "plot_curves",
    "plot_improvement",
    "plot_scores",
    "plot_solved",
    "plot_variance",
    "runs_of",
    "styles",
]

Styles = Mapping[str, Mapping[str, Any]]

_COLOURS = [
    "#d9793d",
    "#3b75af",
    "#519e3e",
    "#8d69b8",
    "#c53a32",
    "#84584e",
    "#d57dbe",
    "#7f7f7f",
    "#bcbd22",
    "#4dbeee",
]
_LINES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (8, 2, 2, 2)))

_FEWEST_FOR_BANDS = 5
"""With fewer runs the intervals of a performance profile reach over almost everything."""
_FAR = 20.0
"""Variances beyond this ratio to A2C's are told in numbers, so that the others can be told apart."""


def draw_all(result: Mapping[str, Any], path: Callable[[str, str], Path]) -> None:
    """Every figure of a comparison; one that cannot be drawn is a warning, and the others are.

    Args:
        result: what `comparison.json` holds.
        path: of the figure of an environment (or of "all") that shows one thing.
    """
    stops = result["options"]["stop_when_solved"]

    def draw(plot: Callable[..., None], env: str, what: str, *about: Any, **how: Any) -> None:
        file = path(env, what)
        with never_fatal(f"the figure {file.name}"):
            file.unlink(missing_ok=True)
            plot(file, "all environments" if env == "all" else env, *about, **how)

    for env, summary in result["environments"].items():
        if not summary["contestants"]:
            continue
        style = styles(list(result["contestants"][env]))
        draw(plot_curves, env, "curves", summary, style)
        draw(plot_scores, env, "scores", summary, style)
        path(env, "solved").unlink(missing_ok=True)
        if solved_by_any(summary):
            draw(plot_solved, env, "solved", summary, style)
        if summary["improvement"]:
            draw(plot_improvement, env, "improvement", summary["improvement"], stops=stops)
        if result["variance"][env]:
            draw(plot_variance, env, "variance", result["variance"][env])
    if result["aggregate"] is not None and result["aggregate"]["improvement"]:
        draw(plot_improvement, "all", "improvement", result["aggregate"]["improvement"], stops=stops)


def styles(labels: Sequence[str]) -> Styles:
    """Colour and line of each contestant, the same in all figures."""
    return {
        label: {"color": _COLOURS[k % len(_COLOURS)], "linestyle": _LINES[k // len(_COLOURS) % len(_LINES)]}
        for k, label in enumerate(labels)
    }


def plot_curves(path: Path, env: str, summary: Mapping[str, Any], style: Styles) -> None:
    """Learning curves against environment steps and against wall time."""
    figure, contestants = make_figure(11, 4.6), summary["contestants"]
    left, right = figure.subplots(1, 2, sharey=True)
    longest = max(max(entry["wall_curve"]["seconds"], default=0.0) for entry in contestants.values())
    unit, name = (3600.0, "h") if longest > 7200 else (60.0, "min") if longest > 120 else (1.0, "s")
    for label, entry in contestants.items():
        band(left, entry["curve"]["steps"], entry["curve"], plain(label), style[label])
        times = [second / unit for second in entry["wall_curve"]["seconds"]]
        band(right, times, entry["wall_curve"], None, style[label])
    near = _is_near(summary["threshold"], left.get_ylim())
    for axes in (left, right):
        if near:
            known = f"threshold {summary['threshold']:g}" if axes is left else None
            axes.axhline(summary["threshold"], color="0.4", linestyle="--", linewidth=1, label=known)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
    left.set_xlim(right=summary["total_steps"])
    count_in_thousands(left)
    left.set_xlabel("environment steps")
    right.set_xlabel(f"wall time of a run ({name})")
    left.set_ylabel("mean return of the last 100 episodes")
    _legend_below(figure, left)
    _finish(path, figure, env, _mean_over(contestants))


def plot_solved(path: Path, env: str, summary: Mapping[str, Any], style: Styles) -> None:
    """Share of runs that have solved the task, against steps, episodes and wall time."""
    figure = make_figure(11, 4.2)
    panels = figure.subplots(1, 3, sharey=True)
    contestants = summary["contestants"]
    names = {"steps": "environment steps", "episodes": "episodes", "seconds": "wall time of a run (s)"}
    for axes, (unit, name) in zip(panels, names.items(), strict=True):
        for label, entry in contestants.items():
            solved = entry["solved"]
            told = f"{plain(label)}: {solved['solved']} of {solved['runs']}" if axes is panels[0] else None
            fraction = solved[unit]["fraction"]
            axes.step(fraction["at"], fraction["solved"], where="post", label=told, linewidth=1.8, **style[label])
        axes.set_xlabel(name)
        axes.set_xlim(left=0)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.25)
        if unit != "seconds":
            count_in_thousands(axes)
    panels[0].set_ylabel("share of runs that have solved it")
    _legend_below(figure, panels[0])
    _finish(path, figure, env, f"solved: mean return of 100 episodes at {summary['threshold']:g}")


def plot_scores(path: Path, env: str, summary: Mapping[str, Any], style: Styles) -> None:
    """Final scores of the runs, their performance profile, and how fast the runs were."""
    contestants = summary["contestants"]
    figure = make_figure(12, 2.6 + 0.42 * max(4, len(contestants)))
    scores, profile, speed = figure.subplots(1, 3, width_ratios=(1.2, 1.2, 0.9))
    for place, (label, entry) in enumerate(contestants.items()):
        colour = style[label]["color"]
        _dots(scores, place, [run["final"] for run in entry["runs"]], colour)
        _interval(scores, place, entry["final"], colour)
        _dots(speed, place, [run["steps_per_second"] for run in entry["runs"]], colour)
        _interval(speed, place, dict.fromkeys(("value", "low", "high"), entry["steps_per_second"]), colour)
    near = _is_near(summary["threshold"], scores.get_xlim())
    if near:
        scores.axvline(summary["threshold"], color="0.4", linestyle="--", linewidth=1, zorder=0)
    for label, line in summary["profiles"]["contestants"].items():
        grid = summary["profiles"]["scores"]
        profile.step(grid, line["value"], where="post", linewidth=1.6, **style[label])
        if len(contestants[label]["runs"]) < _FEWEST_FOR_BANDS:
            continue
        profile.fill_between(
            grid, line["low"], line["high"], step="post", color=style[label]["color"], alpha=0.15, linewidth=0
        )
    name_rows(scores, contestants)
    name_rows(speed, contestants, named=False)
    scores.set_xlabel("mean return of the last 100 episodes" + " (dashed: threshold)" * near)
    for axes, most in ((scores, 5), (profile, 4)):  # more labels than that run into each other
        axes.locator_params(axis="x", nbins=most)
    scores.set_title("final score: runs, IQM and its interval", fontsize="medium")
    profile.set_xlabel("score τ")
    profile.set_ylabel("share of runs above τ")
    profile.set_ylim(-0.03, 1.03)
    profile.set_title("performance profile", fontsize="medium")
    profile.grid(alpha=0.25)
    speed.set_xlabel("environment steps per second")
    speed.set_title("speed: runs and median", fontsize="medium")
    speed.margins(x=0.15)
    speed.set_xlim(left=0)
    count_in_thousands(speed)
    _finish(path, figure, env, f"{summary['total_steps']:,} steps, {runs_of(contestants)}")


def _is_near(threshold: float | None, limits: tuple[float, float]) -> bool:
    """Whether there is a threshold that can be shown: one far from all scores would press them together."""
    low, high = limits
    return threshold is not None and bool(abs(threshold - (low + high) / 2) <= high - low)


def plot_improvement(path: Path, title: str, pairs: Sequence[Mapping[str, Any]], *, stops: bool = False) -> None:
    """Probability of improvement of each pair: with its interval, or of many contestants in a square; `stops` as in `summarise`."""
    better = "solves it sooner (or ends higher) than" if stops else "ends with a higher score than"
    if (labels := of_many(pairs)) is not None:
        _square(path, title, pairs, labels, better)
        return
    figure = make_figure(7.5, 1.7 + 0.42 * len(pairs))
    axes = figure.subplots()
    for place, pair in enumerate(pairs):
        _interval(axes, place, pair, "#3b75af" if certain(pair) else "0.45")
    axes.axvline(0.5, color="0.4", linestyle="--", linewidth=1, zorder=0)
    axes.set_xlim(-0.03, 1.03)
    name_rows(axes, [f"{pair['x']} > {pair['y']}" for pair in pairs])
    figure.supxlabel(f"P(X > Y): a run of X {better} one of Y", fontsize="medium")
    _finish(path, figure, title, f"probability of improvement, {_marked('blue')}")


def _square(path: Path, title: str, pairs: Sequence[Mapping[str, Any]], labels: Sequence[str], better: str) -> None:
    """Every contestant's row against every other's column."""
    places = {label: place for place, label in enumerate(labels)}
    found = np.full((len(labels), len(labels)), np.nan)
    size = 0.55 * len(labels)
    figure = make_figure(size + 3.5, size + 1.6)
    axes = figure.subplots()
    for x, y, value, sure in both_ways(pairs):
        row, column = places[x], places[y]
        found[row, column] = value
        weight, colour = ("bold", "black") if sure else ("normal", "0.35")
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", size=8, weight=weight, color=colour)
    axes.imshow(found, cmap="PuOr_r", vmin=-0.6, vmax=1.6, aspect="auto")
    rows = [plain(f"{label}  {place}") for place, label in enumerate(labels, 1)]
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(rows)), [str(place) for place in range(1, len(rows) + 1)])
    figure.supxlabel(f"P(row > column): a run of the row {better} one of the column", fontsize="medium")
    _finish(path, figure, title, f"probability of improvement, {_marked('bold')}")


def _marked(how: str) -> str:
    return f"{how} where 1/2 lies outside\nits 95% bootstrap interval and each has at least {FEWEST_FOR_CERTAIN} runs"


def plot_variance(path: Path, env: str, stages: Mapping[str, Mapping[str, Any]]) -> None:
    """Variance of an update's gradient relative to A2C's, for every estimator at every stage of learning; beside it with the bias."""
    first, *others = (found["applied"] for found in stages.values())
    names = [name for name in first if all(name in other for other in others)]
    # Infinity is a string in JSON.
    ratios = {
        stage: {name: {k: float(v) for k, v in found["applied"][name]["ratio"].items()} for name in names}
        for stage, found in stages.items()
    }
    shown = [ratio for found in ratios.values() for ratio in found.values() if ratio["value"] <= _FAR]
    low = 0.7 * min((ratio["low"] for ratio in shown), default=1.0)
    high = 1.4 * min(_FAR, max((1.5, *(ratio["high"] for ratio in shown))))
    figure = make_figure(3.2 + 3.1 * len(stages), 1.9 + 0.42 * len(names))
    panels = figure.subplots(1, len(stages), squeeze=False)[0]
    for axes, (stage, found) in zip(panels, stages.items(), strict=True):
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.axvline(1.0, color="0.4", linestyle="--", linewidth=1, zorder=0)
        for place, name in enumerate(names):
            _ratio(axes, place, ratios[stage][name], high)
            if bias := _squared_bias(found["applied"], name):
                axes.plot(min(high, ratios[stage][name]["value"] + bias), place, **HOLLOW)
        _plain_log_ticks(axes, low, high)
        name_rows(axes, names, named=axes is panels[0])
        axes.set_title(f"{stage}, after {found['step']:,} steps", fontsize="medium")
    figure.supxlabel("variance of an update's gradient, times A2C's", fontsize="medium")
    told = f"at frozen parameters of {next(iter(stages.values()))['estimator']}; bars: 95% interval"
    biased = any(_squared_bias(found["applied"], name) for found in stages.values() for name in names)
    _finish(path, figure, env, told + "; hollow: with the squared bias" * biased)


def _squared_bias(applied: Mapping[str, Any], name: str) -> float:
    """Of an estimator, in units of A2C's variance; 0 for one that has none."""
    found = applied[name].get("squared_bias")
    unit = float(applied["a2c"]["variance"]["value"]) if found else 0.0
    return float(found["value"]) / unit if unit else 0.0


def _ratio(axes: Axes, place: int, ratio: Mapping[str, float], right: float) -> None:
    told = f"{ratio['value']:.2g}" if ratio["value"] < 100 else f"{ratio['value']:,.0f}"
    if ratio["value"] > _FAR:
        axes.annotate(f"{told} →", (right, place), (-4, 0), textcoords="offset points", ha="right", va="center", size=8)
        return
    _interval(axes, place, {**ratio, "high": min(ratio["high"], right)}, "#d9793d")
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    axes.annotate(told, (ratio["value"], place), (0, 8), textcoords="offset points", ha="center", size=8, bbox=box)


def _plain_log_ticks(axes: Axes, low: float, high: float) -> None:
    """1, 2, 5 in every decade, or powers of ten where that would be too many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if len(decades) <= 4 else (1,)
    ticks = [digit * 10.0**decade for decade in decades for digit in digits]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def band(axes: Axes, x: Sequence[float], curve: Mapping[str, Any], label: str | None, style: Mapping[str, Any]) -> None:
    """A curve of `comparison.json` over `x`, with its interval."""
    axes.plot(x, curve["iqm"], label=label, linewidth=1.8, **style)
    axes.fill_between(x, curve["low"], curve["high"], color=style["color"], alpha=0.18, linewidth=0)


def _interval(axes: Axes, place: int, found: Mapping[str, float], colour: str) -> None:
    axes.plot(
        [found["low"], found["high"]], [place, place], color=colour, linewidth=5, alpha=0.45, solid_capstyle="butt"
    )
    axes.plot(found["value"], place, "D", color=colour, markersize=7, markeredgecolor="white")


def _dots(axes: Axes, place: int, values: Sequence[float], colour: str) -> None:
    """One dot per run, spread a little so that equal ones can be told apart."""
    count = len(values)
    heights = [place + 0.22 + (0.12 * (k / max(1, count - 1) - 0.5) if count > 1 else 0.0) for k in range(count)]
    axes.plot(values, heights, "o", color=colour, markersize=3.5, alpha=0.7, markeredgewidth=0)


def _mean_over(contestants: Mapping[str, Any]) -> str:
    runs = runs_of(contestants)
    return runs if runs == "1 run" else f"interquartile mean over {runs}, shaded: 95% bootstrap interval"


def runs_of(contestants: Mapping[str, Any]) -> str:
    """How many runs contestants have, in words."""
    counts = {len(entry["runs"]) for entry in contestants.values()}
    low, high = min(counts), max(counts)
    told = str(low) if low == high else f"{low} to {high}"
    return f"{told} runs" if high > 1 else "1 run"


def _finish(path: Path, figure: Figure, title: str, below: str) -> None:
    figure.suptitle(f"{title}\n{below}", fontsize="medium")
    write_figure(path, figure)


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(5, len(labels), math.floor(110 / (6 + max(map(len, labels))))))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize="small")
