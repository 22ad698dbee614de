"""What was tried and what failed: `benchmarks/results/reliability.json` and `.md`, and the table in the documentation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.tasks import RESULTS, write_json, write_text

__all__ = ["DOCUMENT", "MARK", "RESULT", "Row", "read", "table", "write"]

RESULT = RESULTS / "reliability.json"
DOCUMENT = RESULTS.parent.parent / "docs" / "reliability.md"
MARK = "<!-- reliability: written by python -m tests.attack -->\n"


@dataclass(frozen=True)
class Row:
    """An attack that has come to its end.

    Attributes:
        attack: its name.
        what: it is.
        seed, commit: that its trials were made from and on.
        tried: how many there were.
        failures: one for each that failed: `number`, `about` and `fault`.
    """

    attack: str
    what: str
    seed: int
    commit: str
    tried: int
    failures: Sequence[Mapping[str, Any]]


def read(path: Path = RESULT) -> list[Row]:
    """The rows of earlier calls."""
    return [Row(**row) for row in json.loads(path.read_text())["attacks"]] if path.exists() else []


def write(rows: Sequence[Row], path: Path = RESULT, document: Path | None = DOCUMENT) -> None:
    """Write the rows as JSON and Markdown, and into the documentation."""
    write_json(path, {"attacks": [asdict(row) for row in rows]})
    failures = [
        f"- {row.attack} {each['number']}: {each['about']}: {each['fault']}" for row in rows for each in row.failures
    ]
    parts = [
        f"# Reliability\n\n`make soak`; see docs/reliability.md.\n\n{table(rows)}",
        *(["\n".join(failures) + "\n"] if failures else []),
    ]
    write_text(path.with_suffix(".md"), "\n".join(parts))
    if document is not None:
        before, _, after = document.read_text(encoding="utf-8").split(MARK)
        write_text(document, f"{before}{MARK}{table(rows)}{MARK}{after}")


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| attack | what is tried | seed | tried | failed | commit |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = (row.attack, row.what, row.seed, f"{row.tried:,}", len(row.failures), row.commit)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"
