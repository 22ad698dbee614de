"""The learning curves of `benchmarks.contests` in one figure, a panel for each task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relax_rl.comparison.figures import band, runs_of, styles
from relax_rl.runs.plotting import count_in_thousands, make_figure, write_figure

__all__ = ["Panel", "draw"]

COLUMNS = (4, 3)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One task.

    Attributes:
        title: above it.
        steps: of a run.
        curves: by label what `comparison.json` has of a contestant.
        asked: a return that is marked, if one is asked for.
    """

    title: str
    steps: int
    curves: Mapping[str, Mapping[str, Any]]
    asked: float | None = None


def draw(panels: list[Panel], path: Path) -> None:
    """Write the figure; each label has one colour in all panels.

    Raises:
        RelaxRLError: the file cannot be written.
    """
    columns = min(COLUMNS, key=lambda number: -len(panels) % number)  # that leave the fewest places empty
    rows = -(-len(panels) // columns)
    figure = make_figure(13, 0.5 + 2.7 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    style = styles(list(dict.fromkeys(label for panel in panels for label in panel.curves)))
    for axes, panel in zip(grid, panels, strict=False):
        for label, entry in panel.curves.items():
            curve = {name: list(map(float, values)) for name, values in entry["curve"].items()}  # "nan" in JSON
            band(axes, curve["steps"], curve, label, style[label])
        if panel.asked is not None:
            axes.axhline(panel.asked, color="0.4", linestyle="--", linewidth=1)
        axes.set_title(f"{panel.title}, {runs_of(panel.curves)}", fontsize="medium")
        axes.set_xlim(0, panel.steps)
        axes.grid(alpha=0.25)
        count_in_thousands(axes)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    known = {label: line for axes in grid for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=len(known), frameon=False)
    told = "interquartile mean over runs, shaded: 95% bootstrap interval"
    told += "; dashed: what is asked" * any(panel.asked is not None for panel in panels)
    told += "; flat where all runs have ended"
    figure.suptitle(f"mean return of the last 100 episodes over environment steps\n{told}", fontsize="medium")
    write_figure(path, figure)
