"""Runs that pause at a step: no run takes another schedule because it was paused."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from matplotlib.figure import Figure

from relax_rl.cli import main
from relax_rl.compute.serialization import load_state
from relax_rl.errors import SettingsError
from relax_rl.runs import RunFolder
from relax_rl.runs.record import read_config
from relax_rl.runs.training import resume_config, train
from relax_rl.settings.config import AgentConfig, EnvConfig, RunConfig, TrainConfig


class OneStep(gym.Env):
    """Episodes of one step without any chance in them, so that beginning a new one leaves no trace."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.array([0.5, -0.5], np.float32), {}

    def step(self, action):
        return np.array([0.5, 0.25], np.float32), float(action) ** 2, True, False, {}


ENV = "tests.test_pausing:OneStep"


def trained(run_dir: Path, estimator: str, **options):
    agent = AgentConfig(
        num_steps=4,
        hidden=(8,),
        surrogate_hidden=(8,),
        lr_schedule="linear",
        entropy_schedule="linear",
        entropy_coef=0.1,
        normalize_obs=True,
        normalize_reward=True,
        value_replay=2,
        compile="off",
    )
    settings = {"total_steps": 60, "checkpoint_interval": 4, "keep_checkpoints": 0, "tensorboard": False, "quiet": True}
    run = RunConfig(**{**settings, "seed": 3, "estimator": estimator, "run_dir": str(run_dir), **options})
    return train(TrainConfig(run=run, env=EnvConfig(env=ENV, num_envs=2, vectorization="sync"), agent=agent))


def saved(run_dir: Path, step: int):
    """Tensors and the agent's entries of a checkpoint."""
    tensors, state = load_state(run_dir / "checkpoints" / f"step_{step:09d}.safetensors")
    return tensors, {name: value for name, value in state["agent"].items() if name != "config"}


def assert_equal(one, other) -> None:
    (tensors, state), (theirs, their_state) = one, other
    assert tensors.keys() == theirs.keys() and state == their_state
    assert all(torch.equal(tensors[name], theirs[name]) for name in tensors)


@pytest.fixture(autouse=True)
def _nothing_is_drawn(monkeypatch) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)


@pytest.mark.parametrize("estimator", ["relax", "a2c"])
def test_a_paused_run_is_bit_for_bit_the_run_that_was_not(estimator, tmp_path):
    trained(tmp_path / "whole", estimator)
    result = trained(tmp_path / "paused", estimator, stop_at_step=17)
    assert (result.stopped_by, result.steps, result.interrupted) == ("step", 20, False)
    assert read_config(RunFolder(tmp_path / "paused")).run.total_steps == 60
    assert_equal(saved(tmp_path / "paused", 20), saved(tmp_path / "whole", 20))
    again = train(resume_config(tmp_path / "paused", env=ENV, stop_at_step=40, quiet=True))
    assert (again.stopped_by, again.steps) == ("step", 40)
    last = train(resume_config(tmp_path / "paused", env=ENV, quiet=True))
    assert (last.stopped_by, last.steps) == ("total_steps", 60)
    assert_equal(saved(tmp_path / "paused", 60), saved(tmp_path / "whole", 60))


def test_a_shorter_run_is_another_run(tmp_path):
    """What pausing is for: a run of fewer steps has learned at other rates."""
    trained(tmp_path / "whole", "a2c")
    trained(tmp_path / "short", "a2c", total_steps=20)
    (tensors, _), (theirs, _) = saved(tmp_path / "whole", 20), saved(tmp_path / "short", 20)
    assert not all(torch.equal(tensors[name], theirs[name]) for name in tensors)


def test_what_pausing_says(tmp_path, capsys):
    args = ["--env", "CartPole-v1", "--estimator", "a2c", "--total-steps", "400", "--hidden", "4", "--num-envs", "2"]
    run = str(tmp_path / "run")
    assert main(["train", *args, "--compile", "off", "--run-dir", run, "--stop-at-step", "100"]) == 0
    out = capsys.readouterr().out
    assert "paused at step 100: 10" in out and f"--resume {run}" in out
    assert main(["train", "--resume", run, "--stop-at-step", "100", "--quiet"]) == 2
    err = capsys.readouterr().err
    assert "of 100 steps; raise --stop-at-step to go on" in err and len(err.splitlines()) == 1
    assert main(["train", "--resume", run, "--quiet"]) == 0, "a pause belongs to the call"
    assert capsys.readouterr().out.startswith("all steps taken: 40")
    with pytest.raises(SettingsError, match="stop_at_step is 0, expected at least 1"):
        RunConfig(stop_at_step=0)
