"""The page on versions says of the code what is so."""

from __future__ import annotations

import re
from pathlib import Path

import relax_rl
from relax_rl.compute.serialization import FORMAT_VERSION
from relax_rl.runs import zoo
from tests import test_outside
from tests.surface import MODULES

ROOT = Path(relax_rl.__file__).parent.parent
PAGE = (ROOT / "docs" / "versioning.md").read_text(encoding="utf-8")


def test_what_is_public_is_what_is_frozen() -> None:
    (row,) = (line for line in PAGE.splitlines() if line.startswith("| names, and the parameters"))
    told = set(re.findall(r"`(relax_rl[\w.]*)`", row))
    assert told == {*MODULES, "relax_rl.envs"}
    moving = (ROOT / "docs" / "moving.md").read_text(encoding="utf-8")
    assert all(f"`{module}`" in moving for module in told)


def test_formats_and_columns_are_those_of_the_code() -> None:
    assert (
        f"| checkpoints | format `{FORMAT_VERSION}`:" in PAGE and f"version `{zoo._VERSION}` of `manifest.json`" in PAGE
    )
    assert len(test_outside.FIRST_COLUMNS) == len(test_outside.EVALUATION_COLUMNS) == 6


def test_every_gate_is_there() -> None:
    section = PAGE.partition("## What holds this")[2]
    gates = re.findall(r"`(tests/[\w./]+)`", section)
    assert len(gates) >= 8 and all((ROOT / gate).exists() for gate in gates), gates
    assert all(
        (ROOT / f"{module.replace('.', '/')}.py").is_file() for module in re.findall(r"python -m (tests\.\w+)", PAGE)
    )


def test_versions_are_numbers_that_the_changelog_knows() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", relax_rl.__version__)
    headings = re.findall(r"^## \[?([^]\s]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased" or headings[0] == relax_rl.__version__
    assert relax_rl.__version__ in headings and all(
        re.fullmatch(r"Unreleased|\d+\.\d+\.\d+", each) for each in headings
    )


def test_removals_are_listed_where_the_page_says() -> None:
    assert (
        "`REMOVED` of `tests/test_outside.py`" in PAGE
        and {"options", "names", "signatures"} == test_outside.REMOVED.keys()
    )
    assert "## Renamed and removed" in (ROOT / "docs" / "moving.md").read_text(encoding="utf-8")
