"""The figure of the command `variance`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relax_rl.runs.plotting import HOLLOW, make_figure, name_rows, write_figure
from relax_rl.variance.contenders import REFERENCE

if TYPE_CHECKING:
    from relax_rl.estimators.diagnostics import VarianceParts
    from relax_rl.variance.gradient import AppliedVariance

__all__ = ["plot_variances"]

_COLOURS = {"trajectory": "#bbbbbb", "state": "#7fb2d9", "action": "#d9793d"}


def plot_variances(
    path: Path, applied: Mapping[str, AppliedVariance], parts: Mapping[str, VarianceParts] | None, *, title: str
) -> None:
    """Draw the variance of each estimator as a PNG, atomically: of an update's gradient, and its parts if there are any.

    Args:
        path: the file.
        applied: by estimator.
        parts: by estimator.
        title: above the figure.

    Raises:
        RelaxRLError: the file cannot be written.
    """
    rows = max(len(applied), len(parts or ()))
    figure = make_figure(11 if parts else 6.5, 1.6 + 0.45 * rows)
    panels = figure.subplots(1, 2 if parts else 1, squeeze=False)[0]
    _plot_applied(panels[0], applied)
    if parts:
        _plot_parts(panels[1], parts)
    figure.suptitle(title)
    write_figure(path, figure)


def _plot_applied(axes: Any, applied: Mapping[str, AppliedVariance]) -> None:
    unit = applied[REFERENCE].variance.value if REFERENCE in applied else 0.0
    for place, found in enumerate(applied.values()):
        ratio = found.ratio
        axes.plot([ratio.low, ratio.high], [place, place], color="0.3", linewidth=1.5)
        axes.plot([ratio.value], [place], "o", color="#d9793d", markersize=7)
        axes.annotate(f"{ratio.value:.2g}", (ratio.high, place), (7, 0), textcoords="offset points", va="center")
        if found.squared_bias is not None and unit > 0.0:
            axes.plot([ratio.value + found.squared_bias.value / unit], [place], linestyle="none", **HOLLOW)
    axes.axvline(1.0, color="0.6", linestyle="--", linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.margins(x=0.25)
    name_rows(axes, applied)
    hollow = "; hollow: with the squared bias" * any(found.squared_bias for found in applied.values())
    axes.set_xlabel(f"variance of an update's gradient, times A2C's\n(line: 95% interval{hollow})")


def _plot_parts(axes: Any, parts: Mapping[str, VarianceParts]) -> None:
    """Stacked bars; one without baseline can be hundreds of times as long as the others, and is cut off."""
    totals = sorted(found.total.value for found in parts.values())
    middle = totals[(len(totals) - 1) // 2]
    limit = 1.15 * max(found.total.high for found in parts.values() if found.total.value <= 10 * middle)
    unit = 10.0 ** math.floor(math.log10(max(limit, 1e-30)))
    for place, found in enumerate(parts.values()):
        left = 0.0
        for name, colour in _COLOURS.items():
            # An unbiased estimate of a small part may fall below zero; as a length it is nothing.
            width = max(0.0, getattr(found, name).value)
            label = name if place == 0 else None
            axes.barh(place, width / unit, left=left / unit, color=colour, height=0.6, label=label)
            left += width
        low, high = found.total.low / unit, found.total.high / unit
        axes.plot([low, high], [place, place], color="0.3", linewidth=1.5)
        if left > limit:
            beside = {"textcoords": "offset points", "ha": "right", "va": "center"}
            axes.annotate(f"{found.total.value / unit:,.0f} →", (limit / unit, place), (-4, 0), **beside)
    axes.set_xlim(0, limit / unit)
    name_rows(axes, parts)
    axes.set_xlabel(f"variance of one row's gradient, by origin\n(in units of {unit:g}; line: 95% interval)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
