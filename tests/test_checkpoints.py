"""Checkpoints: what is kept, what is passed over, and that nothing half-written counts."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from gymnasium import spaces

from relax_rl.agents import A2C, ActorCritic
from relax_rl.checkpoints import WINDOW, CheckpointFolder, RunState, load_checkpoint
from relax_rl.envs import Episode
from relax_rl.errors import CheckpointError


@pytest.fixture
def agent():
    return A2C(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2), seed=0, hidden=(4,))


@pytest.fixture
def run():
    run = RunState()
    run.add([Episode(1.0, 10), Episode(2.5, 20)])
    return run


def save_at(folder, agent, run, *steps):
    for step in steps:
        agent.steps = step
        folder.save(agent, run)


def test_the_window_holds_the_last_hundred_episodes():
    run = RunState()
    assert math.isnan(run.return_mean) and math.isnan(run.length_mean) and not run.window_full
    run.add([Episode(1000.0, 1000)])
    run.add([Episode(float(i), i) for i in range(WINDOW)])
    assert run.window_full
    assert run.return_mean == np.mean(range(WINDOW))
    assert run.length_mean == np.mean(range(WINDOW))


def test_the_state_of_the_run_comes_back(run):
    run.best_evaluation = 3.5
    saved = run.to_json()
    back = RunState.from_json(saved)
    assert list(back.episodes) == [(1.0, 10), (2.5, 20)]
    assert back.best_evaluation == 3.5
    assert saved["seconds"] <= back.seconds < saved["seconds"] + 60


def test_a_checkpoint_is_a_file_that_the_agent_loads(tmp_path, agent, run):
    agent.steps = 40
    path = CheckpointFolder(tmp_path).save(agent, run)
    assert path.name == "step_000000040.safetensors"
    alone = ActorCritic.load(path)
    assert isinstance(alone, A2C) and alone.steps == 40
    back, state = load_checkpoint(path)
    assert list(state.episodes) == list(run.episodes)
    for ours, theirs in zip(agent.policy.parameters(), back.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_file_saved_by_an_agent_alone_has_a_fresh_state(tmp_path, agent):
    agent.save(tmp_path / "agent.safetensors")
    _, state = load_checkpoint(tmp_path / "agent.safetensors")
    assert not state.episodes


def test_the_last_two_are_kept_and_the_best(tmp_path, agent, run):
    folder = CheckpointFolder(tmp_path)
    save_at(folder, agent, run, 5)
    folder.save_best(agent, run)
    save_at(folder, agent, run, 10, 900, 1000)
    assert [path.name for path in folder.newest_first()] == ["step_000001000.safetensors", "step_000000900.safetensors"]
    assert load_checkpoint(folder.best)[0].steps == 5
    assert len(list(tmp_path.iterdir())) == 3


def test_order_is_by_number_not_by_name(tmp_path, agent, run):
    folder = CheckpointFolder(tmp_path)
    save_at(folder, agent, run, 999_999_999, 1_000_000_000)
    assert folder.newest_first()[0].name == "step_1000000000.safetensors"


def test_a_damaged_newest_one_is_passed_over(tmp_path, agent, run):
    folder = CheckpointFolder(tmp_path)
    save_at(folder, agent, run, 10, 20)
    newest = folder.newest_first()[0]
    newest.write_bytes(newest.read_bytes()[:-100])
    told: list[str] = []
    back, _, path = folder.load_newest(warn=told.append)
    assert (back.steps, path.name) == (10, "step_000000010.safetensors")
    assert len(told) == 1 and newest.name in told[0] and "\n" not in told[0]
    assert newest.exists()

    folder.load_newest(warn=told.append, set_aside=True)
    assert not newest.exists() and newest.with_name(f"{newest.name}.damaged").exists()
    save_at(folder, agent, run, 15)
    assert [load_checkpoint(path)[0].steps for path in folder.newest_first()] == [15, 10]


def test_none_and_none_good(tmp_path, agent, run):
    folder = CheckpointFolder(tmp_path / "none")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        folder.load_newest(warn=print)
    folder = CheckpointFolder(tmp_path)
    save_at(folder, agent, run, 10, 20)
    for path in folder.newest_first():
        path.write_bytes(b"")
    told: list[str] = []
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        folder.load_newest(warn=told.append)
    assert len(told) == 2


def test_a_kill_in_the_middle_of_saving_costs_nothing(tmp_path, agent, run, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    save_at(folder, agent, run, 10, 20)
    replace = os.replace

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_at(folder, agent, run, 30)
    monkeypatch.setattr(os, "replace", replace)
    assert folder.load_newest(warn=pytest.fail)[0].steps == 20
    # What a kill without any clean-up leaves behind is no checkpoint either.
    (tmp_path / ".step_000000030.safetensors.abc.tmp").write_bytes(b"half")
    assert folder.load_newest(warn=pytest.fail)[0].steps == 20


def test_a_foreign_run_state_is_damage(tmp_path, agent, run):
    from relax_rl.serialization import load_state, save_state

    path = CheckpointFolder(tmp_path).save(agent, run)
    tensors, state = load_state(path)
    save_state(path, tensors, {**state, "run": {"seconds": "soon"}})
    with pytest.raises(CheckpointError, match="state of its run"):
        load_checkpoint(path)
