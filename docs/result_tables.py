"""Rows of the committed results, for the pages of algorithms: no number of theirs is written by hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
_COMBINED = re.compile(r"\[([^]]+)\]\([^)]*\)")

Row = dict[str, str]


def tables(path: Path) -> dict[str, list[list[Row]]]:
    """The tables of a page of results by heading, rows by the names of their columns."""
    found: dict[str, list[list[Row]]] = {}
    heading, head = "", list[str]()
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = _COMBINED.sub(r"\1", line.lstrip("# "))
        if not line.startswith("|"):
            head = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not head:
            head = cells
            found.setdefault(heading, []).append([])
        elif not set(line) <= set("|-: "):
            found[heading][-1].append(dict(zip(head, cells, strict=True)))
    return found


def learning(tasks: Sequence[str], contestants: Sequence[str]) -> str:
    """How soon the presets of this package and Stable-Baselines3 with its zoo's settings solve tasks."""
    known = tables(RESULTS / "learning.md")
    lines = ["| task | contestant | seeds that got there | median steps, 95% interval |", "|---|---|---:|---:|"]
    for task in tasks:
        for row in known[task][0]:
            if row["contestant"] in contestants:
                ((asked, reached), (_, steps)) = list(row.items())[2], list(row.items())[4]
                lines.append(f"| {task}, {asked.split()[-1]} | {row['contestant']} | {reached} | {steps} |")
    return "\n".join(lines) + "\n"


def against_ppo(tasks: Sequence[str], contestants: dict[str, str]) -> str:
    """Final scores with and without a surrogate; `contestants` are called so on the page, by their names in the results."""
    known = tables(RESULTS / "against_ppo.md")
    lines = ["| task | contestant | runs | final score | solved | steps to solve |", "|---|---|---:|---:|---:|---:|"]
    for task in tasks:
        for row in known[task][0]:
            if row["contestant"] in contestants:
                cells = (contestants[row["contestant"]], row["runs"], row["final score"], row["solved"], row["steps"])
                lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def variance(tasks: Sequence[str], estimator: str) -> str:
    """What an estimator leaves of the variance of A2C's gradient at frozen agents."""
    lines = ["| task | early | midway | late |", "|---|---:|---:|---:|"]
    for task in tasks:
        for table in (
            table for found in tables(RESULTS / "against_ppo" / task / "report.md").values() for table in found
        ):
            for row in table:
                if row.get("estimator") == estimator:
                    lines.append(f"| {task} | {' | '.join(list(row.values())[1:])} |")
    return "\n".join(lines) + "\n"


def toy(names: Iterable[str]) -> str:
    """How estimators do on the toy problem of one bit, ten seeds."""
    lines = ["| estimator | expected loss at the end | log variance |", "|---|---:|---:|"]
    rows = tables(RESULTS / "toy" / "toy.md")["Every estimator for one bit"][0]
    known = {row["estimator"]: row for row in rows}
    for name in (name for name in names if name in known):
        row = known[name]
        lines.append(f"| `{name}` | {row['expected loss at the end']} | {row['log variance']} |")
    return "\n".join(lines) + "\n"


def autoencoders(names: Iterable[str]) -> str:
    """Training bound and log variance of the encoder's gradient on MNIST with one linear layer of bits."""
    task = "MNIST, one linear layer"
    found = tables(RESULTS / "vae" / "vae.md")["Equal steps on every row: 50,000 steps"]
    (bound,), (noise,) = ([row for row in found[k] if row[""] == task] for k in (0, 3))
    lines = ["| estimator | training bound, nats | log variance of the gradient |", "|---|---:|---:|"]
    for name in (name for name in names if name in bound):
        lines.append(f"| `{name}` | {bound[name].split(' (')[0]} | {noise[name]} |")
    return "\n".join(lines) + "\n"
