"""What the documents show: code runs, command lines are understood, and options that are named exist."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from relax_rl.agents import AGENTS
from relax_rl.commands.check import CheckConfig
from relax_rl.commands.evaluate import EvaluateConfig
from relax_rl.commands.export import ExportConfig
from relax_rl.commands.push import PushConfig
from relax_rl.comparison.config import CompareConfig
from relax_rl.experiments.toy.config import ToyConfig
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.settings.config import TrainConfig
from relax_rl.settings.options import parse
from relax_rl.variance.measure import VarianceConfig
from tests.shown import DOCUMENTS, LANGUAGES, NOT_RUN, ROOT, Shell, blocks, commands, program_words, would_start
from tests.surface import options

COMMANDS: dict[str, Any] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "variance": VarianceConfig,
    "check": CheckConfig,
    "export": ExportConfig,
    "push": PushConfig,
    "compare": CompareConfig,
    "toy": ToyConfig,
    "vae": VaeConfig,
}
_STEPS = re.compile(r"(?<=[( =])\d{1,3}(_\d{3})+(?=[,)])")
"""Numbers such as 100_000, which documents write for steps alone."""
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
OTHERS = {
    *("--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts"),  # torchrun
    *("--head", "--address", "--ray-client-server-port", "--port"),  # ray
    *("--no-cache-dir", "--no-install-recommends"),  # pip and apt
    "--contests",  # benchmarks.zoo
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
        "--only",
        "--anew",
        "--data-dir",
    ),
    *("--other", "--algo", "--help", "--version", "--backend", "--index-url", "--extra-index-url"),
    *("--env", "--busy", "--not-tried", "--push", "--speed", "--write"),
    "--project",  # trackio
    *("--job-name", "--array", "--cpus-per-task", "--mem", "--time", "--signal", "--requeue"),  # sbatch
    *("--nodes", "--ntasks-per-node"),
    *("--total-timesteps", "--num-minibatches", "--update-epochs", "--learning-rate", "--anneal-lr"),  # CleanRL's
    *("--clip-coef", "--ent-coef", "--vf-coef", "--norm-adv"),
}


@pytest.fixture(autouse=True)
def own_estimators() -> Iterator[None]:
    """What a document or its commands register is known in its test alone."""
    with mock.patch.dict(AGENTS):
        yield


def test_every_block_says_what_it_is() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        found = len(blocks(document, *LANGUAGES))
        assert 2 * found == len(re.findall(r"^ *```", text, re.MULTILINE)), (
            f"{document.name} has a block of no language"
        )


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_no_document_is_left_in_two_versions(document: Path) -> None:
    assert not re.findall(r"^(?:<{7}|>{7})(?: .*)?$", document.read_text(encoding="utf-8"), re.MULTILINE)


def test_blocks_and_commands_are_found() -> None:
    found = {str(document.relative_to(ROOT)): len(blocks(document, "python")) for document in DOCUMENTS}
    assert sum(found.values()) >= 19 and found["README.md"] == 2 and found["docs/estimators.md"] == 9
    assert sum(len(commands(document)) for document in DOCUMENTS) >= 45


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if blocks(d, "python") and d.parent.name != "notebooks"], ids=lambda d: d.name
)
def test_code_runs(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a document, one after the other, with fewer steps; notebooks run as they are in test_site.py."""
    monkeypatch.chdir(tmp_path)
    if document.name == "vae.md":
        pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    if document.name == "export.md":
        for module in ("onnxscript", "onnxruntime"):
            pytest.importorskip(module, reason="exports and runs a policy")
    if document.name == "logging.md":
        pytest.importorskip("pandas", reason="reads tables with it")
    namespace: dict[str, Any] = {}
    for number, block in enumerate(blocks(document, "python")):
        # Estimators have numbers of draws beside those of steps.
        code = block if document.name == "estimators.md" else _STEPS.sub("500", block)
        code = re.sub(r"steps=[\d_]+", "steps=60", code) if document.name == "vae.md" else code
        exec(compile(code, f"{document.name}, block {number}", "exec"), namespace)


MY_ENVS = """
from gymnasium.envs.classic_control import CartPoleEnv


class Corridor(CartPoleEnv):
    def __init__(self, size=9, **settings):
        super().__init__(**settings)

    def step(self, action):
        *found, info = super().step(action)
        return *found, info | {"nearer": 1.0, "is_success": False}


MyEnv = Corridor
"""
MY_LOGGERS = "from tests.fakes import Rows\n\ndef Highest(config):\n    return Rows()\n"


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if commands(d)], ids=lambda d: d.name)
def test_commands_run(document: Path, tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands of a document, one after the other, shortened, but for those with a reason in `NOT_RUN`."""
    for module in ("Box2D", "mujoco", "stable_baselines3", "optuna", "moviepy"):
        pytest.importorskip(module, reason="needs the extra all")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "envs.py").write_text(MY_ENVS)
    (tmp_path / "my_package" / "loggers.py").write_text(MY_LOGGERS)
    (tmp_path / "my_package" / "networks.py").write_text("from examples.your_own import normalised as networks")
    for body in blocks(document, "text"):
        if body.startswith("{"):
            (tmp_path / "space.json").write_text(body)
    shell = Shell(finished_run, monkeypatch)
    found = commands(document)
    left_out = [line for line in found if line.startswith((*NOT_RUN, ". "))]
    for line in found:
        if line not in left_out:
            shell(line)
    assert len(shell.ran) + len(left_out) == len(found)


def test_what_is_installed_exists() -> None:
    lines = [line for document in DOCUMENTS for line in commands(document) if line.startswith("pip install")]
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert len(lines) >= 4
    for words in map(shlex.split, lines):
        assert (ROOT / words[words.index("-c") + 1]).is_file()
        named = re.fullmatch(r"\.\[(.*)\]", words[-1])
        assert words[-1] == "torch" or named is not None
        for extra in named[1].split(",") if named is not None else ():
            assert re.search(rf"^{extra} = \[", settings, re.MULTILINE), extra


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_what_make_would_start() -> None:
    targets = {line for document in DOCUMENTS for line in commands(document) if line.startswith("make")}
    assert {"make train", "make test", "make site"} <= targets
    for target in [*targets, "make train ENV=LunarLander-v3 ESTIMATOR=a2c"]:
        would_start(target)
    (line,) = would_start("make train ENV=LunarLander-v3 ESTIMATOR=a2c")
    command, *arguments = program_words(line) or [""]
    config = parse(COMMANDS[command], arguments, prog="prog", description="")
    assert (config.env.env, config.run.estimator) == ("LunarLander-v3", "a2c")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_command_lines_are_understood(document: Path) -> None:
    """As they stand, not shortened."""
    for command, *arguments in filter(None, map(program_words, commands(document))):
        parse(COMMANDS[command], arguments, prog=f"prog {command}", description="")


def test_options_that_are_named_exist() -> None:
    known = OTHERS.union(*(options(command) for command in COMMANDS))
    for document in DOCUMENTS:
        if document.name == "moving.md":  # what is no longer there stands there
            continue
        text = re.sub(r"\(up to commit [^)]*\)", "", document.read_text(encoding="utf-8"))
        named = set(_OPTION.findall(text))
        assert named <= known, f"{document.name} names {', '.join(sorted(named - known))}"
