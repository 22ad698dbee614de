"""The lines that users are told to type: for an extra that is missing, and for programs that the shell does not find."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

import relax_rl
from relax_rl.cli import main
from relax_rl.compute import installation
from relax_rl.compute.installation import install_line, typed

ROOT = Path(relax_rl.__file__).parent.parent


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a clone, with an environment `.venv` in which this Python seems to lie; on no PATH."""
    root = tmp_path.resolve() / "a clone"
    programs = root / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "pip", "tensorboard"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt"):
        (root / name).touch()
    monkeypatch.setattr(installation, "_ROOT", root)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(root)
    return root


def activate(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(clone / ".venv" / "bin"))


def test_an_extra_of_a_clone(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert install_line("video") == '.venv/bin/pip install -c constraints.txt -e ".[video]"'
    activate(clone, monkeypatch)
    assert install_line("video") == 'pip install -c constraints.txt -e ".[video]"'


def test_an_extra_of_a_clone_that_is_not_the_working_folder(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    activate(clone, monkeypatch)
    monkeypatch.chdir(clone.parent)
    line = shlex.split(install_line("video"))
    assert line == ["pip", "install", "-c", f"{clone}/constraints.txt", "-e", f"{clone}[video]"]


def test_an_extra_of_an_installed_package(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    activate(clone, monkeypatch)
    (clone / "pyproject.toml").unlink()
    assert install_line("video") == 'pip install "relax-rl[video]"'


def test_programs_are_told_as_the_shell_finds_them(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [typed(name) for name in ("python", "tensorboard")] == [".venv/bin/python", ".venv/bin/tensorboard"]
    activate(clone, monkeypatch)
    assert [typed(name) for name in ("python", "tensorboard")] == ["python", "tensorboard"]


def test_a_program_elsewhere_is_told_with_its_whole_path(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = clone.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert typed("python") == shlex.quote(f"{clone}/.venv/bin/python")
    assert typed("no-such-program") == "no-such-program"


def test_a_python_that_has_no_short_name(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's is called python3 alone."""
    activate(clone, monkeypatch)
    (clone / ".venv" / "bin" / "python").rename(clone / ".venv" / "bin" / "python3")
    monkeypatch.setattr(sys, "executable", str(clone / ".venv" / "bin" / "python3"))
    assert typed("python") == "python3"


def test_no_other_place_says_how_extras_are_installed() -> None:
    for path in (ROOT / "relax_rl").rglob("*.py"):
        if path.name != "installation.py":
            assert "relax-rl[" not in path.read_text(encoding="utf-8"), path


def test_a_run_whose_python_is_not_on_the_path_tells_lines_that_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after `make train`, whose environment is not the shell's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train_agent.py")])
    small = ["--num-envs", "2", "--num-steps", "2", "--hidden", "4", "--surrogate-hidden", "4"]
    assert main(["--env", "CartPole-v1", "--total-steps", "4", "--run-dir", "run", *small]) == 0
    told = dict(line.strip().split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line.strip())
    for what in ("TensorBoard", "evaluate"):
        program = shlex.split(told[what])[0]
        assert Path(program).parent == Path(sys.executable).parent and os.access(program, os.X_OK), told
