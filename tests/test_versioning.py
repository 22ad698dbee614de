"""The page on versions says of the code what is so."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import relax_rl
from relax_rl.compute.serialization import FORMAT_VERSION
from relax_rl.runs import zoo
from tests import test_outside
from tests.shown import DOCUMENTS
from tests.surface import MODULES, OF_ENVS, named_in_reference, public_names

ROOT = Path(relax_rl.__file__).parent.parent
PAGE = (ROOT / "docs" / "versioning.md").read_text(encoding="utf-8")


def test_what_is_public_is_what_is_frozen() -> None:
    (row,) = (line for line in PAGE.splitlines() if line.startswith("| names, and the parameters"))
    told = set(re.findall(r"`(relax_rl[\w.]*)`", row))
    assert told == {*MODULES, "relax_rl.envs"} and all(f"`{name}`" in row for name in OF_ENVS)
    moving = (ROOT / "docs" / "moving.md").read_text(encoding="utf-8")
    assert all(f"`{module}`" in moving for module in told)


def test_the_reference_says_what_is_provisional() -> None:
    """Of each page either all names are public, or it says that they are not."""
    public = {*OF_ENVS}.union(*public_names().values())
    for page, names in named_in_reference().items():
        text = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
        homes = {module if module in (*MODULES, "relax_rl.envs") else module.rpartition(".")[0] for module, _ in names}
        is_public = homes <= {*MODULES, "relax_rl.envs"} and {name for _, name in names} <= public
        mark = "*Provisional*: these names may change in a [minor version](../versioning.md#what-is-public).\n"
        assert text.count(mark) == (bool(names) and not is_public), page


def test_names_that_the_documents_use_are_in_the_reference() -> None:
    known = [getattr(import_module(module), name) for names in named_in_reference().values() for module, name in names]
    used: set[tuple[str, str]] = set()
    for path in [*DOCUMENTS, *sorted((ROOT / "examples").glob("*.py"))]:
        found = re.findall(
            r"^ *from (relax_rl[\w.]*) import (\([^)]*\)|[\w, ]+)$", path.read_text("utf-8"), re.MULTILINE
        )
        used |= {(module, name) for module, names in found for name in re.findall(r"\w+", names)}
    assert len(used) > 60
    for module, name in used - {("relax_rl", "estimators"), ("relax_rl.compute", "distributed")}:
        assert any(getattr(import_module(module), name) is each for each in known), f"{module}.{name}"


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
    number, dev, _ = relax_rl.__version__.partition(".dev")
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", relax_rl.__version__)
    headings = re.findall(r"^## \[?([^]\s]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == ("Unreleased" if dev else number) and (number in headings) != bool(dev)
    assert all(re.fullmatch(r"Unreleased|\d+\.\d+\.\d+", each) for each in headings)


def test_removals_are_listed_where_the_page_says() -> None:
    assert (
        "`REMOVED` of `tests/test_outside.py`" in PAGE
        and {"options", "names", "signatures"} == test_outside.REMOVED.keys()
    )
    assert "## Renamed and removed" in (ROOT / "docs" / "moving.md").read_text(encoding="utf-8")
