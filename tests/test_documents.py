"""What the documents show: code runs, command lines are understood, and options that are named exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import relax_rl
from relax_rl.commands.evaluate import EvaluateConfig
from relax_rl.comparison.config import CompareConfig
from relax_rl.experiments.toy.config import ToyConfig
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.settings.config import TrainConfig
from relax_rl.settings.options import parse
from relax_rl.variance.measure import VarianceConfig
from tests.surface import options

ROOT = Path(relax_rl.__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS: dict[str, Any] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "variance": VarianceConfig,
    "compare": CompareConfig,
    "toy": ToyConfig,
    "vae": VaeConfig,
}
_STEPS = re.compile(r"(?<=[( =])\d{1,3}(_\d{3})+(?=[,)])")
"""Numbers such as 100_000, which documents write for steps alone."""
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
OTHERS = {
    *("--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts"),  # torchrun
    *("--head", "--address", "--ray-client-server-port", "--port"),  # ray
    *(
        "--logdir",
        "--no-deps",
        "--device",
        "--rounds",
        "--matches",
        "--tasks",
        "--seeds",
        "--jobs",
        "--report",
        "--data-dir",
    ),
    *("--other", "--algo", "--help", "--version", "--backend", "--index-url", "--extra-index-url"),
    *("--env", "--busy"),
}


def blocks(document: Path, *languages: str) -> list[str]:
    return [body for language, body in _BLOCK.findall(document.read_text(encoding="utf-8")) if language in languages]


def test_blocks_are_found() -> None:
    found = {str(document.relative_to(ROOT)): len(blocks(document, "python")) for document in DOCUMENTS}
    assert sum(found.values()) >= 19 and found["README.md"] == 2 and found["docs/estimators.md"] == 9


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if blocks(d, "python")], ids=lambda d: d.name)
def test_code_runs(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a document, one after the other, with fewer steps."""
    monkeypatch.chdir(tmp_path)
    if document.name == "vae.md":
        pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    namespace: dict[str, Any] = {}
    for number, block in enumerate(blocks(document, "python")):
        # Estimators have numbers of draws beside those of steps.
        code = block if document.name == "estimators.md" else _STEPS.sub("500", block)
        code = re.sub(r"steps=[\d_]+", "steps=60", code) if document.name == "vae.md" else code
        exec(compile(code, f"{document.name}, block {number}", "exec"), namespace)


def command_lines(document: Path) -> Iterator[list[str]]:
    """What stands behind `train_agent.py`, with its first word, the command."""
    for block in blocks(document, "", "bash", "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            _, found, rest = line.partition("train_agent.py ")
            if found and "..." not in rest:
                words = shlex.split(rest, comments=True)
                yield words if words[0] in COMMANDS else ["train", *words]


def test_command_lines_are_found() -> None:
    assert sum(len(list(command_lines(document))) for document in DOCUMENTS) >= 30


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if list(command_lines(d))], ids=lambda d: d.name)
def test_command_lines_are_understood(document: Path) -> None:
    for command, *arguments in command_lines(document):
        parse(COMMANDS[command], arguments, prog=f"prog {command}", description="")


def test_options_that_are_named_exist() -> None:
    known = OTHERS.union(*(options(command) for command in COMMANDS))
    for document in DOCUMENTS:
        if document.name == "moving.md":  # what is no longer there stands there
            continue
        text = re.sub(r"\(up to commit [^)]*\)", "", document.read_text(encoding="utf-8"))
        named = set(_OPTION.findall(text))
        assert named <= known, f"{document.name} names {', '.join(sorted(named - known))}"
