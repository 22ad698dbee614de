"""What documents show in blocks of code, and their commands run in this process, shortened."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import relax_rl
from relax_rl.cli import COMMANDS, main
from relax_rl.comparison import peer_training, pool
from relax_rl.comparison.process import last_row
from relax_rl.experiments.data import Dataset
from relax_rl.experiments.toy import run as toy
from relax_rl.experiments.vae import session
from relax_rl.runs import RunFolder, reporting
from relax_rl.runs.loggers import GroupLogger

__all__ = ["DOCUMENTS", "LANGUAGES", "NOT_RUN", "ROOT", "Shell", "blocks", "commands", "program_words", "would_start"]

ROOT = Path(relax_rl.__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"python", "bash", "text", "bibtex"}
"""Of blocks; every block says which it is, and the first two are run."""
NOT_RUN = {
    "python -m venv": "makes an environment and activates it in the shell",
    "pip install": "installs packages from a network; its files and extras are looked at",
    "python train_agent.py push": "needs a hub; its tests have a stand-in for one",
    "python -m benchmarks.newcomer": "installs packages; its steps are looked at in tests/test_newcomer.py",
    "python -m benchmarks.zoo": "trains for minutes; tests/test_zoo.py makes a small one",
    "ray start": "starts a cluster; the commands behind it run on this machine alone",
    "python train_agent.py --env minigrid:": "needs a package of somebody else's",
    "make": "installs into .venv; what it would start is looked at",
}
"""Commands that no test runs, by their beginnings, and why."""

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHORT: dict[str, dict[str, str]] = {
    "train": {"total-steps": "64", "num-envs": "2", "num-steps": "8", "hidden": "4", "surrogate-hidden": "4"},
    "evaluate": {"episodes": "1", "num-envs": "2"},
    "check": {"steps": "20", "num-envs": "2"},
    "export": {},
    "variance": {"batches": "2", "fit-batches": "1", "states": "2", "actions": "3"},
    "toy": {"steps": "20", "seeds": "2", "draws": "10", "log-interval": "10"},
    "vae": {
        "steps": "4",
        "width": "3",
        "batch-size": "4",
        "valid-images": "4",
        "eval-samples": "1",
        "log-interval": "2",
        "pretrain-steps": "0",
    },
    "compare": {"total-steps": "40", "seeds": "1", "num-workers": "1"},
}
"""Options that shorten a command, in place of its own."""
_SMALL = ("num_envs=2", "num_steps=5", "hidden=4", "surrogate_hidden=4", "log_interval=20", "compile=off")


def blocks(document: Path, *languages: str) -> list[str]:
    """Blocks of code in these languages, in their order."""
    return [body for language, body in _BLOCK.findall(document.read_text(encoding="utf-8")) if language in languages]


def commands(document: Path) -> list[str]:
    """Every command of a document's `bash` blocks; `&&` and `;` part commands."""
    lines = "".join(blocks(document, "bash")).replace("\\\n", " ").splitlines()
    whole = [shlex.join(shlex.split(line, comments=True)) for line in lines]
    return [part.strip() for line in whole for part in re.split(r"'?&&'?|'?;'?", line) if part.strip()]


def program_words(line: str) -> list[str] | None:
    """What stands behind `train_agent.py`, with its first word, the command; None if that is not called."""
    _, found, rest = line.partition("train_agent.py ")
    words = shlex.split(rest)
    return (words if words[0] in COMMANDS else ["train", *words]) if found else None


class Shell:
    """Runs the commands of one document in a working folder, one after the other.

    `RUN` stands for a run that earlier commands have made there, or else for a copy of `finished`.

    Attributes:
        ran: commands that have run.
    """

    def __init__(self, finished: Path, patch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self._finished, self._patch = finished, patch
        images = np.random.default_rng(0).integers(0, 2, (30, 12), dtype=np.uint8)
        data = Dataset("stripes", images[:14], images[14:22], images[22:], shape=(4, 3), dynamic=False)
        patch.setattr(session, "load_data", lambda *_, **__: data)
        patch.setattr(pool, "CommandProcess", _Here)
        patch.setattr(reporting, "Tracker", _Untold)  # tests/test_tracking.py has the libraries themselves
        patch.setattr(reporting, "require_trackers", lambda names: None)
        patch.setattr(toy, "SURROGATE_STEPS", 20)
        patch.setattr(Figure, "savefig", lambda *_, **__: None)  # drawing takes longer than all the rest

    def __call__(self, line: str) -> None:
        """Run a command; fails the test if it fails."""
        words = program_words(line)
        if line.startswith("torchrun "):
            _understood_by_torchrun(shlex.split(line)[1:])
        if words is not None:
            code = self._program(*words)
        elif line.startswith("python -m benchmarks."):
            code = self._benchmark(*shlex.split(line)[2:])
        elif line.startswith("tensorboard "):
            code = _tensorboard(shlex.split(line))
        else:
            raise AssertionError(f"no test knows how to run {line!r}")
        assert code == 0, line
        self.ran.append(line)

    def _program(self, command: str, *arguments: str) -> int:
        given = [self._place(command, word) for word in arguments]
        return main([command, *shortened(command, given)])

    def _place(self, command: str, word: str) -> str:
        """A folder of an earlier run in place of one that the document only names."""
        if word.startswith("/shared/"):
            return word[1:]
        if word not in ("RUN", "runs/RUN") and not re.fullmatch(r"runs/compare-\d+-\d+", word):
            return word
        kinds = {"compare": "compare-*", "vae": "vae-*"}
        made = sorted(Path("runs").glob(kinds.get(command, "[!cv]*")), key=lambda path: ("CartPole" in path.name, path))
        return str(made[-1]) if made else str(shutil.copytree(self._finished, "runs/finished"))

    def _benchmark(self, module: str, *arguments: str) -> int:
        """With results and runs in the working folder."""
        script, matches = import_module(module), import_module("benchmarks.matches")
        for each in (script, matches) if hasattr(script, "RESULTS") else (matches,):
            self._patch.setattr(each, "RESULTS", Path("results"))

        def played(command: Sequence[str]) -> None:
            assert command[1] == "train_agent.py" and self._program(*command[2:]) == 0

        for each in (script, matches) if hasattr(script, "run_command") else (matches,):
            self._patch.setattr(each, "run_command", played)
        script.main(list(arguments))
        return 0


def shortened(command: str, arguments: Sequence[str]) -> list[str]:
    """Arguments with those in place that make a command short."""
    short = dict(SHORT[command])
    words = list(arguments)
    resumed = "--resume" in words
    if resumed:  # only what may change, and what goes beyond where the run is
        short = {"train": {"total-steps": "400"}, "vae": {"steps": "8"}}.get(command, {})
    if command == "train" and "--minibatch-size" in words:
        short["minibatch-size"] = "8"
    if any(word.startswith("ALE/") for word in words):
        short |= {"total-steps": "4", "num-steps": "2", "cnn-features": "8"}
    if "--tune" in words:
        short |= {"tune": "1", "tune-steps": "40", "tune-seeds": "1"}
    for name in [*short, "ray-address"]:
        if f"--{name}" in words:
            at = words.index(f"--{name}")
            del words[at : at + 2]
    if command == "compare" and not resumed:
        at = words.index("--set") + 1 if "--set" in words else len(words)
        words[at:at] = _SMALL if "--set" in words else ("--set", *_SMALL)
    words += [word for name, value in short.items() for word in (f"--{name}", value)]
    if command in ("train", "vae") and not resumed:
        words += ["--compile", "off"]
    return [*words, *(["--quiet"] if command not in ("check", "evaluate", "export", "variance") else [])]


class _Untold(GroupLogger):
    """In place of `Tracker`: nobody hears anything."""

    def __init__(self, name: str, *_: Any, **__: Any) -> None:
        self.name = name

    def log(self, *_: Any, **__: Any) -> None:
        """Nobody hears it."""


class _Here:
    """In place of `CommandProcess`: the command runs here, to its end, before anything else goes on."""

    def __init__(self, command: Sequence[str], folder: Path, run: str, log: Path, *, held: int | None = None) -> None:
        self._table = RunFolder(folder / run).progress
        call = main if command[0] == "relax_rl" else peer_training.main
        here, log = Path.cwd(), log.resolve()
        os.chdir(folder)
        try:
            with open(log, "a", encoding="utf-8") as output, contextlib.redirect_stdout(output):
                self._code = call(list(command[1:]))
        finally:
            os.chdir(here)

    def poll(self) -> int:
        return self._code

    def progress(self) -> dict[str, float]:
        return last_row(self._table)

    def stop(self) -> None:
        """It has ended."""

    def wait(self, seconds: float) -> int:
        return self._code


def _understood_by_torchrun(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    assert get_args_parser().parse_args(words).training_script == "train_agent.py"


def _tensorboard(words: list[str]) -> int:
    """Says what is in the folder, instead of serving it."""
    from tensorboard import program

    board = program.TensorBoard()
    board.configure([*words, "--inspect"])
    return int(board.main())


def would_start(target: str) -> list[str]:
    """The commands that make would start, without those that install."""
    done = subprocess.run(
        ["make", "-n", *shlex.split(target)[1:]], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [line for line in done.stdout.replace("\\\n", " ").splitlines() if "train_agent.py" in line]
