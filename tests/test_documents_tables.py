"""Tables of the documents that are made from the code, and what pages say of the code in words that can be looked up."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from relax_rl.cli import COMMANDS
from relax_rl.estimators import ESTIMATORS
from relax_rl.settings.config import TrainConfig
from relax_rl.settings.fields import flag, settings_of
from tests.shown import ROOT
from tests.surface import options


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    """`docs/update_tables.py`, which imports what lies beside it."""
    sys.path.insert(0, str(ROOT / "docs"))
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


def test_the_readme_says_what_has_not_been_reached_or_trained(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        "| A | 10 | curve | 1.0 [0.0, 2.0] |  | 3.0 | not below PPO | |",
        "| B | 10 | steps | 5 [4, beyond] | beyond | | 4 | no |",
        "| C | 10 | runs at 9 | 3 | 20.7 (published) | | 4 | no |",
    ]
    head = [
        "# Presets and PPO",
        "",
        "| task | steps | measure | ours | PPO | PPO, searched | asked | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    (tmp_path / "contests.md").write_text("\n".join([*head, *rows, ""]))
    monkeypatch.setattr(tables.results, "RESULTS", tmp_path)
    assert tables.results.contests().splitlines()[2:] == [
        "| A | 10 | mean of the curve | 1.0 [0.0, 2.0] | not trained yet |",
        "| B | 10 | steps to the threshold | 5 [4, not reached] | not reached |",
        "| C | 10 | runs at 9 | 3 | not trained yet |",
    ]


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


PAGES = sorted(path for path in (ROOT / "docs" / "algorithms").glob("*.md") if path.name != "index.md")
TEMPLATE = [
    "Can I use it?",
    "Equations",
    "An update",
    "In the code",
    "Metrics",
    "Settings",
    "Results",
    "Reproduce",
    "References",
]
_PLACES = re.compile(r"`(relax_rl/[\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_pages_of_algorithms_keep_to_the_template(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert ["An update" if name == "An estimate" else name for name in found] == TEMPLATE
    results = text.split("\n## Results\n")[1].split("\n## ")[0]
    assert "](../../benchmarks/results/" in results and "![" in results and "<!--" in results
    assert text.count("$$") >= 2 and not text.count("$$") % 2


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_what_is_said_to_be_in_the_code_is_there(path: Path) -> None:
    places = _PLACES.findall(path.read_text(encoding="utf-8"))
    assert len(places) >= 2
    for file, names in places:
        known = defined(ast.parse((ROOT / file).read_text(encoding="utf-8")).body)
        for name in re.findall(r"`([\w.]+)`", names):
            assert name in known, f"{file} has no {name}"


def defined(body: list[ast.stmt], within: str = "") -> set[str]:
    """Names of functions, classes, their methods and variables of a module; `Kind.method`, those of a parent not."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(within + node.name)
            found |= defined(node.body, f"{node.name}.") if isinstance(node, ast.ClassDef) else set()
        elif isinstance(node, ast.Assign):
            found |= {within + target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def test_every_result_is_in_the_index() -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    results = ROOT / "benchmarks" / "results"
    for path in (path for path in results.rglob("*") if path.suffix in (".md", ".png")):
        assert f"](../benchmarks/results/{path.relative_to(results).as_posix()})" in text, (
            f"{path}: run `make docs-tables`"
        )
    for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        assert "`python -m benchmarks." in section or "`make soak`" in section, section.partition("\n")[0]


def test_what_may_change_on_resuming_is_listed() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    told = text.split("\n## Going on with other settings\n")[1].partition("```")[0]
    resumable = {flag(name) for name, known in settings_of(TrainConfig).items() if known.rule.resumable}
    assert set(re.findall(r"`(--[a-z-]+)`", told)) - {"--resume"} == resumable
