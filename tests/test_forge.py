"""What a public forge reads of a repository: a workflow of the same commands that a reader types, and forms that can be filled in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import relax_rl
from tests.surface import options

yaml = pytest.importorskip("yaml", reason="needs the extra test")

ROOT = Path(relax_rl.__file__).parent.parent
FORGE = ROOT / ".github"
FORMS = sorted(path for path in (FORGE / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
KINDS = {
    "markdown": {"value"},
    "textarea": {"label"},
    "input": {"label"},
    "dropdown": {"label", "options"},
    "checkboxes": {"label", "options"},
}
"""Of the parts of a form, with what each must have."""

pytestmark = pytest.mark.skipif(not FORGE.is_dir(), reason="not a clone: distributions leave it out")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_workflow_runs_what_make_has_on_every_python_that_is_tested() -> None:
    found = read(FORGE / "workflows" / "tests.yml")
    jobs = found["jobs"]
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    known = re.findall(r"Python :: (3\.\d+)\"", settings)
    assert jobs["test"]["strategy"]["matrix"]["python"] == [version for version in known if version != "3.10"]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    ran = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    made = {name: [line.split()[1] for line in lines if line.startswith("make ")] for name, lines in ran.items()}
    assert made == {"test": ["test"], "site": ["docs-audit"], "dist": ["dist"], "versions": ["site-version"]}
    assert {target for each in made.values() for target in each} <= set(targets)
    assert jobs["versions"]["if"] == jobs["dist"]["if"] and jobs["versions"]["needs"] == ["dist"]
    assert [name for name, job in jobs.items() if "permissions" in job] == ["versions"]
    assert jobs["dist"]["if"] == "startsWith(github.ref, 'refs/tags/v')" and jobs["dist"]["needs"] == ["test", "site"]
    assert found["permissions"] == {"contents": "read"} and all(job["timeout-minutes"] <= 120 for job in jobs.values())
    for step in (step for job in jobs.values() for step in job["steps"] if "uses" in step):
        assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]), step


def test_a_tag_that_is_not_the_version_stops_a_release() -> None:
    (line,) = (
        step["run"]
        for step in read(FORGE / "workflows" / "tests.yml")["jobs"]["dist"]["steps"]
        if "grep" in step.get("run", "")
    )
    wanted = line.split('"')[1].replace("\\", "") + '"' + relax_rl.__version__ + '"'
    assert wanted in (ROOT / "relax_rl" / "__init__.py").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms_are_whole(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= form.keys() <= {"name", "description", "body", "labels", "title"}
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    labels = [part["attributes"]["label"] for part in form["body"] if part["type"] != "markdown"]
    assert len(set(ids)) == len(ids) and len(set(labels)) == len(labels)
    assert any(part.get("validations", {}).get("required") for part in form["body"])
    for part in form["body"]:
        assert KINDS[part["type"]] <= part["attributes"].keys() and part.keys() <= {
            "type",
            "id",
            "attributes",
            "validations",
        }
        texts = [str(value) for value in part["attributes"].values()]
        for document in re.findall(r"docs/[\w/]+\.md", " ".join(texts)):
            assert (ROOT / document).is_file(), document
        for option in re.findall(r"(?<![\w-])--[a-z-]+", " ".join(texts)):
            assert option in {"--version", *options("check"), *options("train")}, option


def test_there_is_a_form_for_each_purpose_and_no_address_is_made_up() -> None:
    assert [path.stem for path in FORMS] == ["bug", "feature", "question"]
    ids = {part.get("id") for part in read(FORGE / "ISSUE_TEMPLATE" / "bug.yml")["body"]}
    assert {"what", "how", "config", "check", "version", "system"} <= ids
    for path in (path for path in FORGE.rglob("*") if path.is_file()):
        assert "://" not in path.read_text(encoding="utf-8"), path
    for document in re.findall(r"docs/[\w/]+\.md", (FORGE / "PULL_REQUEST_TEMPLATE.md").read_text(encoding="utf-8")):
        assert (ROOT / document).is_file(), document
