"""Files that users get from elsewhere: read under checks, told in one line, and never run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import save

from relax_rl.agents import ActorCritic
from relax_rl.cli import main
from relax_rl.compute.serialization import load_state, read_regular, save_state
from relax_rl.errors import CheckpointError, SettingsError
from relax_rl.runs import RunFolder
from relax_rl.runs.record import read_record
from relax_rl.runs.training import resume_config, train
from tests.fakes import DictEnv, GoldenEnv
from tests.steps import small_run

OWN_ENV = "tests.test_reading:relax_rl_fakes/Read-v0"
gym.register("relax_rl_fakes/Read-v0", GoldenEnv, kwargs={"cycle": ((20, "truncated"),)})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Tests must not write to it."""
    return train(small_run(tmp_path_factory.mktemp("made") / "run", eval_interval=200, eval_episodes=1)).run_dir


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step_*"))[-1]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that a command ends with, which has to be a single one, soon, with exit code 2."""
    capsys.readouterr()
    started = time.monotonic()
    assert main(arguments) == 2
    assert time.monotonic() - started < 20
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].startswith("error: ") and "Traceback" not in "".join(told) and len(told[-1]) < 600
    return told[-1]


def change(record: Any, at: str, value: Any) -> None:
    """Replace what stands at a path of keys joined by dots; the last `-` removes it."""
    *path, last = at.split(".")
    for key in path:
        record = record[int(key) if isinstance(record, list) else key]
    record[last] = value


# Checkpoints

CRAFTED: dict[str, tuple[str, Any]] = {
    "no estimator": ("agent.estimator", ""),
    "another estimator": ("agent.estimator", "a2c"),
    "an estimator that is no text": ("agent.estimator", None),
    "infinite steps": ("agent.steps", float("inf")),
    "too many updates": ("agent.updates", 10**400),
    "episodes as text": ("agent.episodes", "many"),
    "a seed that is none": ("agent.seed", 2**64),
    "an activation that is none": ("agent.config.activation", "softsign"),
    "an optimiser that is none": ("agent.config.optimizer", "sgd"),
    "half a width": ("agent.config.hidden", [1.5]),
    "a width beyond memory": ("agent.config.hidden", [10**9]),
    "a thousand layers": ("agent.config.hidden", [4] * 1000),
    "a discount of text": ("agent.config.gamma", "high"),
    "another rate": ("agent.config.policy_lr", 0.5),
    "bounds beyond floats": ("agent.observation_space.low", 10**400),
    "a box beyond memory": ("agent.observation_space.shape", [10**6, 10**6]),
    "a shape below 0": ("agent.observation_space.shape", [-4]),
    "a space that is none": ("agent.action_space.type", "Pickle"),
    "too many choices": ("agent.action_space.n", 10**12),
    "no choice": ("agent.action_space.n", 0),
    "a type that is none": ("agent.observation_space.dtype", "os.system"),
    "infinite seconds": ("run.seconds", float("inf")),
    "returns that are none": ("run.episodes", [[None, 3]]),
    "a torso beyond memory": ("agent.config.hidden", [2**14] * 64),
    "a surrogate beyond memory": ("agent.config.surrogate_hidden", [2**14] * 64),
    "an observation beyond memory": ("agent.observation_space.shape", [2**24]),
    "choices beyond memory": ("agent.action_space.n", 2**24),
    "no run": ("run", None),
    "no agent": ("agent", []),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_a_crafted_checkpoint_is_told_in_one_line(case: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = newest(run)
    tensors, state = load_state(path)
    change(state, *CRAFTED[case])
    for each in (run / "checkpoints").iterdir():
        each.unlink()
    save_state(path, tensors, json.loads(json.dumps(state)))
    refused(["--resume", str(run), "--total-steps", "800", "--quiet"], capsys)
    started = time.process_time()
    with contextlib.suppress(CheckpointError):
        ActorCritic.load(path)
    assert time.process_time() - started < 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["policy.head.weight", "policy_optimizer.square", "value.head.bias"])
def test_numbers_that_are_none_are_not_loaded(
    name: str, value: float, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = newest(run)
    tensors, state = load_state(path)
    tensors[name].reshape(-1)[0] = value
    save_state(path, tensors, state)
    assert "is not finite" in refused(["evaluate", str(run), "--checkpoint", str(path)], capsys)


@pytest.mark.parametrize("version", [None, [1], {}, "x", "1e9", -1, 10**400])
def test_versions_that_are_none(version: Any, tmp_path: Path) -> None:
    content = save({"x": torch.zeros(1)}, metadata={"format": "relax_rl", "version": "1", "state": "{}", "sha256": ""})
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"]["version"] = version
    raw = json.dumps(header).encode()
    (tmp_path / "file").write_bytes(len(raw).to_bytes(8, "little") + raw + content[8 + size :])
    with pytest.raises(CheckpointError):
        load_state(tmp_path / "file")


# Settings

SETTINGS: dict[str, tuple[str, Any]] = {
    "a float beyond floats": ("agent.policy_lr", 10**400),
    "resumed null": ("resumed", None),
    "resumed once": ("resumed", 1),
    "resumed in words": ("resumed", "once"),
    "a hundred million environments": ("env.num_envs", 10**8),
    "a billion threads": ("run.threads", 10**9),
    "an activation that is none": ("agent.activation", "softsign"),
    "another rate than the checkpoint's": ("agent.policy_lr", 0.5),
    "another length than the checkpoint's": ("agent.num_steps", 777),
    "another seed than the checkpoint's": ("run.seed", 5),
    "another estimator than the checkpoint's": ("run.estimator", "a2c"),
    "another environment than the checkpoint's": ("env.env", "CartPole-v0"),
    "another way of stepping than the checkpoint's": ("env.vectorization", "sync"),
    "lives that end nothing": ("env.life_loss_terminal", False),
    "networks of one's own": ("run.networks", "tests.test_your_own:networks"),
    "a section that is a list": ("agent", []),
    "a name that is none": ("agent.nonsense", 1),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_changed_settings_are_told_in_one_line(case: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((run / "config.json").read_text())
    change(record, *SETTINGS[case])
    (run / "config.json").write_text(json.dumps(record))
    more = ["--resume", str(run), "--total-steps", "800", "--quiet"]
    if case.startswith("resumed"):
        assert main(more) == 0
    else:
        refused(more, capsys)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in its file system")
@pytest.mark.parametrize("file", ["config.json", "checkpoint"])
@pytest.mark.parametrize("kind", ["pipe", "endless device", "link", "hole", "folder"])
def test_only_regular_files_are_read(file: str, kind: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "config.json" if file == "config.json" else newest(run)
    kept = path.rename(run / "kept")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless device":
        path.symlink_to("/dev/zero")
    elif kind == "link":
        path.symlink_to(kept)
    elif kind == "hole":
        with open(path, "wb") as hole:
            hole.truncate(2**36)
    else:
        path.mkdir()
    assert "cannot be read" in refused(["evaluate", str(run), "--episodes", "1", "--checkpoint", "latest"], capsys)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in its file system")
def test_a_lock_that_is_a_pipe_keeps_nobody_waiting(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / ".lock").unlink(missing_ok=True)
    os.mkfifo(run / ".lock")
    assert "cannot write" in refused(["--resume", str(run), "--total-steps", "800", "--quiet"], capsys)


def test_a_file_over_the_size_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(11))
    assert len(read_regular(tmp_path / "file", most=11)) == 11
    with pytest.raises(OSError, match="11 bytes, expected at most 10"):
        read_regular(tmp_path / "file", most=10)


# Code


def test_a_module_that_only_a_run_names_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(small_run(tmp_path / "run", OWN_ENV, "a2c", total_steps=100)).run_dir
    record = read_record(RunFolder(run))
    record["env"]["env"] = "payload:Env-v0"
    (run / "config.json").write_text(json.dumps(record))
    (tmp_path / "payload.py").write_text("raise SystemExit('it ran')")
    monkeypatch.chdir(tmp_path)
    for arguments in (["evaluate", str(run)], ["variance", str(run)], ["--resume", str(run), "--total-steps", "200"]):
        assert "name it again if you trust it: --env payload:Env-v0" in refused(arguments, capsys)
    assert "payload" not in sys.modules


def test_the_commands_that_are_printed_name_what_is_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The module lies in the working folder, where the launcher does not."""
    (tmp_path / "mine_here.py").write_text(
        "import gymnasium\nfrom tests.fakes import GoldenEnv\n"
        "gymnasium.register('relax_rl_fakes/Here-v0', GoldenEnv, kwargs={'cycle': ((20, 'truncated'),)})\n"
    )
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    env = "mine_here:relax_rl_fakes/Here-v0"
    small = ["--total-steps", "100", "--hidden", "4", "--run-dir", "run", "--no-tensorboard"]
    assert main(["--env", env, "--estimator", "a2c", *small]) == 0
    told = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("evaluate "))
    words = told.split()
    assert main([*words[words.index("evaluate", 1) :], "--episodes", "1"]) == 0


def test_an_environment_of_ones_own_is_named_again(tmp_path: Path) -> None:
    run = train(small_run(tmp_path / "run", OWN_ENV, "a2c", total_steps=100)).run_dir
    assert main(["evaluate", str(run), "--episodes", "1", "--env", OWN_ENV]) == 0
    with pytest.raises(SettingsError, match="name it again"):
        train(resume_config(run, total_steps=200))
    assert train(resume_config(run, total_steps=200, env=OWN_ENV)).steps >= 200
    assert main(["evaluate", str(run), "--episodes", "1", "--env", "CartPole-v1"]) == 2


# Command lines


@pytest.mark.parametrize(
    "arguments",
    [
        ["--total-steps", f"1{'0' * 30}"],
        ["--num-envs", "20000000"],
        ["--hidden", "200000", "200000"],
        ["--threads", "100000"],
        ["--seed", "18446744073709551616"],
        ["--log-std-init", "nan"],
        ["--stop-at-return", "nan"],
        ["--policy-lr", "1e30"],
        ["--env", "x" * 5000],
        ["--run-dir", "r" * 300, "--total-steps", "10"],
        ["--gamma", "9" * 5000],
        ["vae", "--data", "digits", "--steps", f"1{'0' * 30}"],
        ["toy", "--seeds", f"1{'0' * 30}"],
        ["toy", "--run-dir", "r" * 300],
        ["compare", "--env", "CartPole-v1", "--seeds", f"1{'0' * 30}"],
        ["evaluate", "r" * 300],
    ],
    ids=lambda words: " ".join(words)[:30],
)
def test_command_lines_that_cannot_work(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(arguments, capsys)


@pytest.mark.parametrize("make", [lambda run: ActorCritic.load(newest(run))])
def test_what_is_whole_is_read(make: Callable[[Path], ActorCritic], run: Path) -> None:
    agent = make(run)
    assert agent.steps > 0 and np.isfinite(agent.predict(np.zeros(4))[0])


def test_a_run_that_normalised_nothing_beside_an_image_goes_on_so_and_says_it(tmp_path: Path) -> None:
    gym.register("relax_rl_tests/Camera-v0", DictEnv)
    settings = {
        "num_envs": 2,
        "num_steps": 5,
        "cnn_features": 4,
        "hidden": (4,),
        "estimator": "a2c",
        "log_interval": 10,
    }
    plain = {**settings, "normalize_obs": False}
    run = train(small_run(tmp_path / "run", env="relax_rl_tests/Camera-v0", total_steps=20, **plain)).run_dir
    (path,) = (run / "checkpoints").glob("step_*")
    tensors, state = load_state(path)
    assert not state["agent"].pop("normalizes")
    state.pop("settings", None)
    state["agent"]["config"]["normalize_obs"] = True  # as version 0.1 wrote it
    save_state(path, tensors, state)
    record = json.loads((run / "config.json").read_text())
    record["agent"]["normalize_obs"] = True
    (run / "config.json").write_text(json.dumps(record))
    done = train(resume_config(run, total_steps=40))
    assert done.steps >= 40 and done.agent.obs_normalizer is None
    assert not json.loads((run / "config.json").read_text())["agent"]["normalize_obs"]
    again = train(resume_config(run, total_steps=60))
    assert again.agent.obs_normalizer is None
    fresh = {**settings, "normalize_obs": True}
    new = train(small_run(tmp_path / "new", env="relax_rl_tests/Camera-v0", total_steps=20, **fresh))
    assert json.loads((new.run_dir / "config.json").read_text())["agent"]["normalize_obs"]
    assert new.agent.obs_normalizer is not None and new.agent.obs_normalizer.chosen.sum() == 16
