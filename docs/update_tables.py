"""Write the tables of the documentation that come from the code: `python docs/update_tables.py`."""

from __future__ import annotations

from pathlib import Path

from relax_rl.estimators import estimator_table

DOCUMENT = Path(__file__).parent / "estimators.md"
MARK = "<!-- estimators -->\n"


def main() -> None:
    """Replace each table by what the code says now."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, table, after = text.split(MARK)
    del table
    DOCUMENT.write_text(before + MARK + estimator_table() + MARK + after, encoding="utf-8")


if __name__ == "__main__":
    main()
