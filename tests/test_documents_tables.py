"""Tables of the documents that are made from the code, and what pages say of the code in words that can be looked up."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from relax_rl.cli import COMMANDS
from relax_rl.estimators import ESTIMATORS
from tests.shown import ROOT
from tests.surface import options


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    """`docs/update_tables.py`."""
    spec = importlib.util.spec_from_file_location("update_tables", ROOT / "docs" / "update_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_of_the_code(tables: ModuleType) -> None:
    for path, found in tables.documents().items():
        text = path.read_text(encoding="utf-8")
        for mark, table in found.items():
            assert tables.replaced(text, mark, table) == text, f"{path.name}: run `make docs-tables`"


def test_every_option_of_every_command_is_in_the_table(tables: ModuleType) -> None:
    assert tables.CONFIGS.keys() == COMMANDS.keys()
    sections = (ROOT / "docs" / "reference" / "command_line.md").read_text(encoding="utf-8").split("\n## ")[1:]
    for section in sections:
        command = section.partition("\n")[0]
        missing = [name for name in options(command) if not name.startswith("--no-") and f"| `{name}` |" not in section]
        assert not [name for name in missing if name != "--backend"], f"{command}: {missing}"
    assert len(sections) == len(COMMANDS)
    (preset,) = [line for line in sections[0].splitlines() if line.startswith("| `--preset` |")]
    assert "| `auto` |" in preset, "as the command line has it, not as the class"


def test_every_estimator_is_in_one_family(tables: ModuleType) -> None:
    placed = [name for names in tables.FAMILIES.values() for name in names]
    assert sorted(placed) == sorted(ESTIMATORS.keys() - {"enumerated"})
