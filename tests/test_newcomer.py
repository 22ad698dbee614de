"""The way of a newcomer is one that the documents show; `python -m benchmarks.newcomer` goes it for real."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import relax_rl
from benchmarks import newcomer
from benchmarks.newcomer import STEPS, Step, code_of, commands_of, main, walk

ROOT = Path(relax_rl.__file__).parent.parent


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.what)
def test_the_pages_show_what_a_step_takes(step: Step) -> None:
    page = ROOT / "docs" / step.page
    assert len(commands_of(page, step.commands)) == len(step.commands)
    if step.file is not None:
        code, shown = code_of(page, step.file[1]), page.read_text(encoding="utf-8")
        compile(code, step.file[0], "exec")
        assert f"class {step.file[1]}" in code and all(line in shown for line in code.splitlines())
        module = step.file[0].removesuffix(".py").replace("/", ".")
        later = [command for each in STEPS for command in commands_of(ROOT / "docs" / each.page, each.commands)]
        assert any(f"{module}:" in command for command in later), "somebody uses it"


def test_definitions_are_imported_without_running_anything(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nimport math\n\n\nclass A:  # one\n    x = math.pi\n\n\nA().train()\n```\n")
    assert code_of(page, "A") == "import math\nclass A:  # one\n    x = math.pi\n"
    for name in ("B", "A.x"):
        with pytest.raises(LookupError, match=f"page.md has 0 blocks that define {name}, expected 1"):
            code_of(page, name)


def test_a_command_that_is_no_longer_shown_is_told(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash\nmake train && . .venv/bin/activate   # both\n```\n")
    assert commands_of(page, ["make", ". "]) == ["make train", ". .venv/bin/activate"]
    with pytest.raises(LookupError, match="shows no command that begins with 'make test'"):
        commands_of(page, ["make test"])


def test_the_way_is_gone_in_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a page of its own, whose commands leave what a comparison leaves."""
    source = tmp_path / "source"
    (source / "docs").mkdir(parents=True)
    lines = "mkdir -p runs/one && echo {} > runs/one/config.json\ncp RUN runs/compare-1 -r\necho x > runs/compare-1/report.md\n"
    (source / "docs" / "page.md").write_text(f"```python\nclass A:\n    pass\n```\n\n```bash\n{lines}```\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(source)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "pages"]):
        subprocess.run([*git, *words], check=True)
    commands = ("mkdir", "echo {}"), ("cp RUN", "echo x")
    steps = [Step(what="a", page="page.md", file=("own/a.py", "A"), commands=commands[0])]
    steps.append(Step(what="b", page="page.md", commands=commands[1]))
    rows = walk(steps, source)
    assert [row[:2] for row in rows] == [("clone", "README.md"), ("a", "docs/page.md"), ("b", "docs/page.md")]
    assert "| a | docs/page.md |" in newcomer.report(rows, "a commit")
    monkeypatch.setattr(newcomer, "STEPS", steps[:1])
    monkeypatch.setattr(newcomer, "walk", lambda _: (_ for _ in ()).throw(subprocess.CalledProcessError(3, "make")))
    assert main([]) == 1
