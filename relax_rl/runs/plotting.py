"""Figures, drawn without a screen."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relax_rl.compute.serialization import write_bytes_atomic
from relax_rl.runs.loggers import read_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from relax_rl.runs.folder import RunFolder

__all__ = [
    "HOLLOW",
    "Curve",
    "count_in_thousands",
    "draw_line",
    "finish_steps",
    "make_figure",
    "name_rows",
    "never_fatal",
    "plain",
    "plot_curves",
    "plot_learning",
    "png",
    "say_nothing_yet",
    "write_figure",
]


HOLLOW: dict[str, Any] = {"marker": "D", "markersize": 7, "markerfacecolor": "white", "markeredgecolor": "#d9793d"}
"""How a variance together with the squared bias is marked, beside the variance alone."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Returns against environment steps.

    Attributes:
        steps, returns: of one length; NaN returns are left out.
        label: what the legend says.
        points: show the points themselves (few evaluations, say) besides the line.
    """

    steps: Sequence[float]
    returns: Sequence[float]
    label: str
    points: bool = False


def plot_learning(folder: RunFolder, title: str, *, episodes: int, threshold: float | None) -> None:
    """Draw the learning curve of a run as it stands in its tables; without a row there is nothing to draw.

    Args:
        folder: of the run.
        title: above the figure.
        episodes: of an evaluation.
        threshold: as in `plot_curves`.

    Raises:
        RelaxRLError: a file cannot be read or written.
    """
    progress = read_csv(folder.progress)
    if not progress.get("step"):
        return
    training = "training, mean of 100 episodes"
    curves = [Curve(steps=progress["step"], returns=progress["return_mean"], label=training)]
    evaluations = read_csv(folder.evaluations) if folder.evaluations.exists() else {}
    if evaluations:
        label, scores = f"evaluation, mean of {episodes} episodes", evaluations["return_mean"]
        curves.append(Curve(steps=evaluations["step"], returns=scores, label=label, points=True))
    plot_curves(folder.curve, curves, title=title, threshold=threshold)


def plot_curves(path: Path, curves: Sequence[Curve], *, title: str, threshold: float | None = None) -> None:
    """Write learning curves as a PNG, atomically.

    Args:
        path: the file.
        curves: what to draw, in this order.
        title: above the figure.
        threshold: the return at which the task counts as solved, drawn as a dashed line.

    Raises:
        RelaxRLError: the file cannot be written.
    """
    figure = make_figure(8, 4.5)
    axes = figure.subplots()
    drawn = [draw_line(axes, curve.steps, curve.returns, curve.label, points=curve.points) for curve in curves]
    if threshold is not None:
        axes.axhline(threshold, color="0.4", linestyle="--", linewidth=1, label=f"solved at {threshold:g}")
    axes.set_title(title)
    axes.set_ylabel("return (sum of raw rewards per episode)")
    finish_steps(axes, "environment steps", last=max((step for curve in curves for step in curve.steps), default=0))
    if not any(drawn):
        say_nothing_yet(axes, "no episode has finished yet")
    axes.legend(loc="best", frameon=False)
    write_figure(path, figure)


def make_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches."""
    from matplotlib.figure import Figure  # no pyplot: it would pick a screen and keep figures alive

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def count_in_thousands(axes: Axes) -> None:
    """Write the numbers along x as 5k, 2M and so on."""
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def plain(name: str) -> str:
    """A name of the user's own, as matplotlib shows it: not read as a formula, and not left out of a legend."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def name_rows(axes: Axes, rows: Iterable[str], *, named: bool = True) -> None:
    """Have one thing stand at each whole number along y, from the top, with its name beside it if `named`."""
    names = list(map(plain, rows))
    axes.set_yticks(range(len(names)), names if named else [""] * len(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.25)


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG, atomically.

    Raises:
        RelaxRLError: the file cannot be written.
    """
    write_bytes_atomic(path, png(figure))


def draw_line(axes: Axes, steps: Sequence[float], values: Sequence[float], label: str, *, points: bool = False) -> int:
    """Values against steps, without those that are not finite; as points too where asked for, or where it is only one.

    Returns:
        how many there are.
    """
    known = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    marker = "o" if points or len(known) == 1 else None
    axes.plot([step for step, _ in known], [value for _, value in known], label=label, marker=marker, markersize=3)
    return len(known)


def finish_steps(axes: Axes, label: str, *, last: float) -> None:
    """An axis of steps from 0 to the last one, with round numbers, and a grid."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(label)
    count_in_thousands(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], nbins=9))
    axes.set_xlim(0, 1.02 * last if last > 0 else 1)
    axes.grid(alpha=0.25)


def say_nothing_yet(axes: Axes, text: str) -> None:
    """Where no line has a point yet, say so; without any line that spans the axes, there are no numbers along y."""
    axes.text(0.5, 0.4, text, transform=axes.transAxes, ha="center", va="center", color="0.4")
    if not any(np.size(line.get_xdata()) for line in axes.get_lines()):
        axes.set_yticks([])


@contextmanager
def never_fatal(what: str) -> Iterator[None]:
    """Within the block, whatever goes wrong is only a warning: no picture is worth a run."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        warnings.warn(f"{what} could not be drawn: {reason}", UserWarning, stacklevel=3)


def png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
