"""What is handed out: the source distribution and the wheel hold all that belongs to them, and describe themselves rightly."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import relax_rl
from tests import dist

ROOT = Path(relax_rl.__file__).parent.parent
NOT_HANDED_OUT = {".ci/run", ".gitignore"}
WRITTEN = {"PKG-INFO", "setup.cfg"}
"""By setuptools, beside its folder `relax_rl.egg-info`."""

pytest.importorskip("setuptools", minversion="77", reason="needs the extra test")


def tracked() -> set[str]:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    done = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(filter(None, done.stdout.split("\0")))


def of_the_forge() -> set[str]:
    """What only a public forge reads."""
    return {name for name in tracked() if name.startswith(".github/")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution of what is tracked, and the wheel that is built of it, as `python -m build` makes them."""
    folder = tmp_path_factory.mktemp("distribution")
    for name in tracked():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        large = name.startswith("benchmarks/results/")
        shutil.copyfile(os.devnull if large else ROOT / name, folder / "source" / name)
    (folder / "source" / "tests" / "left.pyc").touch()
    sdist = folder / build("build_sdist", folder / "source", folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return sdist, folder / build("build_wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)


def build(what: str, source: Path, target: Path) -> str:
    """Call setuptools as pip does; returns the name of the file in `target`."""
    code = f"from setuptools import build_meta; print(build_meta.{what}({str(target)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def metadata(built: tuple[Path, Path]) -> Message:
    with zipfile.ZipFile(built[1]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(wheel.read(name).decode("utf-8"))


def test_the_source_distribution_is_complete(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    assert {name for name in names if ".egg-info/" not in name} == tracked() - of_the_forge() - NOT_HANDED_OUT | WRITTEN
    assert {"train_agent.py", "constraints.txt", "docs/index.md", "examples/ppo.py", "tests/steps.py"} <= names


def test_the_wheel_holds_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == {name for name in tracked() if name.startswith("relax_rl/")}
    assert {"relax_rl/py.typed", "relax_rl/comparison/published.json"} <= names


def test_it_says_where_it_runs(metadata: Message) -> None:
    classifiers = metadata.get_all("Classifier") or []
    versions = [each.rpartition(" :: ")[2] for each in classifiers if re.search(r"Python :: 3\.\d+$", each)]
    assert versions == ["3.10", "3.11", "3.12", "3.13"] and metadata["Requires-Python"] == ">=3.10"
    assert "Operating System :: POSIX :: Linux" in classifiers
    table = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    assert all(f"| {version} |" in table for version in versions)
    assert metadata["License-Expression"] == "MIT" and metadata.get_all("License-File") == ["LICENSE"]


def test_its_description_can_be_read_outside_the_repository(metadata: Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = metadata.get_payload()
    assert isinstance(text, str) and "nothing is biased (docs/unbiased.md)" in text
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert links and all(link.startswith("https://") for link in links), links


def test_what_is_tried_of_the_wheel_is_the_first_training_of_the_readme() -> None:
    assert dist.first_training() == ["--env", "CartPole-v1", "--estimator", "relax"]


def test_a_step_that_fails_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(command: Sequence[str], folder: Path) -> None:
        raise subprocess.CalledProcessError(3, command)

    monkeypatch.setattr(dist, "run", fails)
    monkeypatch.setattr(dist, "ROOT", tmp_path)
    assert dist.main(["--out", str(tmp_path / "dist")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("dist: failed with code 3: ") and "-m build" in err and len(err.splitlines()) == 1
