"""Checkpoints: what is kept, what is passed over, and that nothing half-written counts."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
import torch
from gymnasium import spaces

from relax_rl.agents import A2C, ActorCritic
from relax_rl.envs import Episode
from relax_rl.errors import CheckpointError, TrainingDiverged
from relax_rl.runs import RunFolder
from relax_rl.runs.agent import WINDOW, AgentRun, load_agent
from relax_rl.runs.checkpoints import CheckpointFolder


@pytest.fixture
def run():
    agent = A2C(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2), seed=0, hidden=(4,))
    run = AgentRun(agent)
    run.add([Episode(1.0, 10), Episode(2.5, 20)])
    return run


def save_at(folder, run, *steps):
    for step in steps:
        run.agent.steps = step
        folder.save(run)


def test_the_window_holds_the_last_hundred_episodes(run):
    run.episodes.clear()
    assert math.isnan(run.return_mean) and math.isnan(run.length_mean) and not run.reaches(0.0)
    run.add([Episode(1000.0, 1000)])
    run.add([Episode(float(i), i) for i in range(WINDOW - 1)])
    assert run.reaches(run.return_mean) and not run.reaches(run.return_mean + 1e-9) and not run.reaches(None)
    run.add([Episode(WINDOW - 1.0, WINDOW - 1)])
    assert run.return_mean == run.length_mean == np.mean(range(WINDOW))


def test_the_state_of_the_run_comes_back(tmp_path, run):
    run.best_evaluation = 3.5
    tensors, state = run.state()
    back = AgentRun(A2C(run.agent.observation_space, run.agent.action_space, seed=1, hidden=(4,)))
    back.load(tensors, json.loads(json.dumps(state)))
    assert list(back.episodes) == [(1.0, 10), (2.5, 20)] and back.best_evaluation == 3.5
    assert state["run"]["seconds"] <= back.clock.seconds < state["run"]["seconds"] + 60
    for ours, theirs in zip(run.agent.policy.parameters(), back.agent.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_agent_that_a_user_asks_for(tmp_path, run):
    folder = RunFolder(tmp_path)
    checkpoints = CheckpointFolder(folder.checkpoints)
    folder.checkpoints.mkdir()
    run.agent.save(tmp_path / "agent.safetensors")
    with pytest.raises(CheckpointError, match="no best checkpoint"):
        load_agent(folder, "best", "cpu")
    save_at(checkpoints, run, 10)
    checkpoints.save_best(run)
    save_at(checkpoints, run, 20)
    for which, steps in (("latest", 20), ("best", 10), (str(tmp_path / "agent.safetensors"), 0)):
        agent, path = load_agent(folder, which, "cpu")
        assert agent.steps == steps and path.exists()


def test_the_last_two_are_kept_and_the_best(tmp_path, run):
    folder = CheckpointFolder(tmp_path)
    save_at(folder, run, 5)
    folder.save_best(run)
    save_at(folder, run, 10, 900, 1000)
    assert [path.name for path in folder.newest_first()] == ["step_000001000.safetensors", "step_000000900.safetensors"]
    assert ActorCritic.load(folder.best).steps == 5
    assert len(list(tmp_path.iterdir())) == 3


def test_another_process_only_names_them(tmp_path, run):
    assert CheckpointFolder(tmp_path, writes=False).save(run).name == "step_000000000.safetensors"
    assert list(tmp_path.iterdir()) == []
    run.agent.learner.flat["policy"].data.fill_(math.nan)
    with pytest.raises(TrainingDiverged):
        CheckpointFolder(tmp_path, writes=False).save(run)


def test_order_is_by_number_not_by_name(tmp_path, run):
    folder = CheckpointFolder(tmp_path)
    save_at(folder, run, 999_999_999, 1_000_000_000)
    assert folder.newest_first()[0].name == "step_1000000000.safetensors"


def test_a_damaged_newest_one_is_passed_over(tmp_path, run):
    folder = CheckpointFolder(tmp_path)
    save_at(folder, run, 10, 20)
    newest = folder.newest_first()[0]
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=newest.name) as told:
        found = folder.newest()
    assert found.path.name == "step_000000010.safetensors" and found.state["agent"]["steps"] == 10
    assert len(told) == 1 and "\n" not in str(told[0].message)
    assert newest.exists()

    with pytest.warns(UserWarning, match="trying the one before it"):
        folder.newest(set_aside=True)
    assert not newest.exists() and newest.with_name(f"{newest.name}.damaged").exists()
    save_at(folder, run, 15)
    assert [path.name for path in folder.newest_first()] == ["step_000000015.safetensors", "step_000000010.safetensors"]


def test_none_and_none_good(tmp_path, run):
    folder = CheckpointFolder(tmp_path / "none")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        folder.newest()
    folder = CheckpointFolder(tmp_path)
    save_at(folder, run, 10, 20)
    for path in folder.newest_first():
        path.write_bytes(b"")
    with pytest.warns(UserWarning) as told, pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        folder.newest()
    assert len(told) == 2


def test_a_kill_in_the_middle_of_saving_costs_nothing(tmp_path, run, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    save_at(folder, run, 10, 20)
    replace = os.replace

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_at(folder, run, 30)
    monkeypatch.setattr(os, "replace", replace)
    assert folder.newest().state["agent"]["steps"] == 20
    # What a kill without any clean-up leaves behind is no checkpoint either.
    (tmp_path / ".step_000000030.safetensors.abc.tmp").write_bytes(b"half")
    assert folder.newest().state["agent"]["steps"] == 20


def test_a_foreign_run_state_is_damage(run):
    tensors, state = run.state()
    for wrong in ({**state, "run": {"seconds": "soon"}}, {"run": state["run"]}):
        with pytest.raises(CheckpointError, match="state of its run"):
            run.load(tensors, wrong)


def test_the_best_agent_is_the_one_on_disk(tmp_path, run):
    """It may have been kept after the checkpoint from which a run goes on, or be gone."""
    folder = CheckpointFolder(tmp_path)
    run.agent.steps = run.best_step = 20
    run.best_evaluation, run.best_return = 300.0, None
    folder.save_best(run)
    run.best_evaluation, run.best_step = 200.0, 10
    run.recall_best(folder)
    assert (run.best, run.best_step) == (300.0, 20)
    run.best_evaluation, run.best_step = 400.0, 30
    run.recall_best(folder)
    assert (run.best, run.best_step) == (400.0, 30)
    folder.best.unlink()
    run.recall_best(folder)
    assert run.best is run.best_step is None
