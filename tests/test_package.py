"""The package as a whole: what imports what, what it exports, and that what its documents show works."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

import relax_rl
from tests.house import (
    DOCUMENT,
    FLOOR,
    MODULES,
    PACKAGE,
    PICTURE,
    PLACES,
    ROOT,
    arrows,
    imports,
    observation_way,
    picture,
    room,
    rooms_drawn,
    way_drawn,
)

MOST_FILES = 12
"""That are handed an observation on its way from the environments to the optimisers."""


def test_no_import_runs_upward() -> None:
    assert len(MODULES) > 100 and {room(name) for name in MODULES} == FLOOR.keys()
    for name, path in MODULES.items():
        for module in imports(path):
            assert FLOOR[room(module)] <= FLOOR[room(name)], f"{path.relative_to(ROOT)} imports {module}"


def test_no_imports_form_a_ring() -> None:
    waiting = {name: imports(path) - {name} for name, path in MODULES.items()}
    while free := {name for name, others in waiting.items() if not others & waiting.keys()}:
        waiting = {name: others for name, others in waiting.items() if name not in free}
    assert not waiting, f"each of these imports another of them: {', '.join(sorted(waiting))}"


def test_few_rooms_stand_side_by_side() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert len(rooms - {"__init__.py", "__main__.py"}) <= 16


def test_files_and_functions_are_short() -> None:
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 350, f"{path} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                start = (
                    node.body[1 if ast.get_docstring(node) is not None else 0].lineno
                    if len(node.body) > 1
                    else node.lineno
                )
                length = (node.end_lineno or 0) - start + 1
                assert length <= 60, f"{path}: {node.name} has {length} lines"


def test_an_observation_goes_one_way() -> None:
    way = observation_way()
    assert way[0] == "envs.py" and way[-1] == "compute/optimizers.py"
    assert len(way) <= MOST_FILES, way


def test_the_drawings_of_the_house_are_those_of_the_code() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert rooms_drawn() in text and way_drawn() in text, "run python -m tests.house"
    assert PICTURE.read_text(encoding="utf-8") == picture(), "run python -m tests.house"
    assert PLACES.keys() == {name for name in FLOOR if not name.startswith("__")}
    assert all(PLACES[name][1] > PLACES[other][1] for name, other in arrows()), "arrows lead down"


def test_the_core_knows_no_network_and_no_environment() -> None:
    for path in [*(PACKAGE / "distributions").glob("*.py"), *(PACKAGE / "estimators").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert "gymnasium" not in text and "nn.Module" not in text and "manual_seed" not in text, path


def loaded_by(code: str) -> set[str]:
    """Top-level modules that are there after a fresh interpreter has run `code`."""
    code = f"import sys\n{code}\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return set(run.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import relax_rl",
        "from relax_rl.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass",
        "from relax_rl.cli import main\ntry:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass",
        "from relax_rl.cli import main\ntry:\n    main(['train', '--seed', 'x'])\nexcept SystemExit:\n    pass",
    ],
)
def test_importing_and_helping_stay_light(code: str) -> None:
    assert not loaded_by(code) & {"torch", "gymnasium", "ale_py", "matplotlib", "tensorboard", "scipy"}


def test_public_names() -> None:
    for name in relax_rl.__all__:
        assert getattr(relax_rl, name).__doc__, name
    assert set(relax_rl.__all__) <= set(dir(relax_rl))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = relax_rl.nonsense  # type: ignore[attr-defined]


def test_class_variables_have_a_type() -> None:
    """Python 3.10 cannot evaluate the hints of a class with a bare `ClassVar`."""
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").glob("*.py")]:
        assert not re.search(r"^ +\w+: (?:ClassVar|Final) *=", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_the_package_ships_its_types() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_documents_link_to_files_that_exist() -> None:
    for document in [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
