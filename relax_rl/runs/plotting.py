"""Figures, drawn without a screen."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from relax_rl.compute.serialization import write_bytes_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Curve", "draw_line", "finish_steps", "new_figure", "plot_curves", "png"]


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
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    for curve in curves:
        draw_line(axes, curve.steps, curve.returns, curve.label, points=curve.points)
    if threshold is not None:
        axes.axhline(threshold, color="0.4", linestyle="--", linewidth=1, label=f"solved at {threshold:g}")
    axes.set_title(title)
    axes.set_ylabel("return (sum of raw rewards per episode)")
    finish_steps(axes, "environment steps")
    axes.legend(loc="best", frameon=False)
    write_bytes_atomic(path, png(figure))


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches."""
    from matplotlib.figure import Figure  # no pyplot: it would pick a screen and keep figures alive

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def draw_line(axes: Axes, steps: Sequence[float], values: Sequence[float], label: str, *, points: bool = False) -> None:
    """Values against steps, without those that are not finite; as points too where asked for, or where it is only one."""
    known = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    marker = "o" if points or len(known) == 1 else None
    axes.plot([step for step, _ in known], [value for _, value in known], label=label, marker=marker, markersize=3)


def finish_steps(axes: Axes, label: str) -> None:
    """An axis of steps from 0 on, with round numbers, and a grid."""
    from matplotlib.ticker import EngFormatter

    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)


def png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
