"""Evaluation: whole episodes, no favour to short ones, an agent that comes out as it went in."""

from __future__ import annotations

import json
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from relax_rl.agents import A2C, RELAX
from relax_rl.cli import main
from relax_rl.commands.evaluate import EvaluateConfig, evaluate_run
from relax_rl.compute.serialization import save_state
from relax_rl.envs import VectorEnvs, make_envs
from relax_rl.errors import EnvironmentFault, SettingsError
from relax_rl.runs.checkpoints import Checkpoint
from relax_rl.runs.evaluation import (
    EVALUATION_STREAM,
    SELECTION_STREAM,
    Scores,
    evaluate,
    evaluation_envs,
    now_and_then,
)
from relax_rl.runs.loggers import read_csv
from relax_rl.runs.training import resume_config, train
from relax_rl.settings.config import EnvConfig, TrainConfig
from tests.fakes import LivesEnv
from tests.steps import small_run


def fixed_envs(*lengths, mode=AutoresetMode.NEXT_STEP):
    """Environments whose episodes have a fixed number of steps each, worth 1 per step."""
    return VectorEnvs(SyncVectorEnv([lambda n=n: LivesEnv((1,), n) for n in lengths], autoreset_mode=mode))


@pytest.fixture
def agent():
    with fixed_envs(1) as envs:
        return A2C(envs.single_observation_space, envs.single_action_space, seed=0, hidden=(4,))


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_short_episodes_are_not_favoured(agent, mode):
    # Taking the first five to finish would give (2, 2, 2, 2, 2): the long environment would never be heard.
    scores = evaluate(agent, fixed_envs(2, 50, mode=mode), episodes=5, seed=0, deterministic=True)
    assert scores == Scores((2.0, 2.0, 2.0, 50.0, 50.0), (2, 2, 2, 50, 50))


def test_no_episodes_are_refused(agent):
    with pytest.raises(SettingsError, match="episodes is 0, expected a whole number from 1"):
        evaluate(agent, fixed_envs(2), episodes=0, seed=0, deterministic=True)


def test_fewer_episodes_than_environments(agent):
    scores = evaluate(agent, fixed_envs(2, 3, 4), episodes=2, seed=0, deterministic=True)
    assert scores.returns == (2.0, 3.0)


@pytest.fixture
def cartpole():
    with make_envs("CartPole-v1", num_envs=4, seed=0) as envs:
        yield envs


def test_the_agent_is_left_as_it_was(cartpole):
    agent = RELAX(
        cartpole.single_observation_space, cartpole.single_action_space, seed=3, hidden=(8,), normalize_obs=True
    )
    agent.learn(cartpole, 100)
    before, before_state = agent.state_dict()
    before = {name: x.clone() for name, x in before.items()}
    assert evaluate(agent, cartpole, episodes=5, seed=1, deterministic=False) is not None
    after, after_state = agent.state_dict()
    assert before_state == after_state
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_same_seed_gives_the_same_scores_and_another_one_others(cartpole):
    agent = A2C(cartpole.single_observation_space, cartpole.single_action_space, seed=3, hidden=(8,))
    first = evaluate(agent, cartpole, episodes=6, seed=1, deterministic=False)
    agent.act(cartpole.obs)  # moves the agent's own random stream
    assert evaluate(agent, cartpole, episodes=6, seed=1, deterministic=False) == first
    assert evaluate(agent, cartpole, episodes=6, seed=2, deterministic=False) != first


def test_it_can_be_broken_off(cartpole):
    agent = A2C(cartpole.single_observation_space, cartpole.single_action_space, hidden=(8,))
    taken = []
    scores = evaluate(
        agent,
        cartpole,
        episodes=50,
        seed=0,
        deterministic=False,
        after_step=lambda: taken.append(1),
        should_stop=lambda: len(taken) == 3,
    )
    assert scores is None and len(taken) == 3


def test_environments_are_those_of_training_with_other_streams():
    config = EnvConfig(env="CartPole-v1", num_envs=8, vectorization="sync")
    with evaluation_envs(config, episodes=3, seed=0) as envs, make_envs("CartPole-v1", num_envs=3, seed=0) as training:
        assert (envs.num_envs, envs.vectorization) == (3, "sync")
        assert not np.array_equal(envs.obs, training.obs)


def test_a_lost_life_ends_nothing():
    config = EnvConfig(env="ALE/Breakout-v5", num_envs=2)
    with evaluation_envs(config, episodes=1, seed=0) as envs:
        lives = []
        for _ in range(300):
            step = envs.step(np.ones(1, dtype=np.int64))
            lives.append(bool(step.terminated[0]))
            if lives[-1]:
                break
        game = envs.drain_episodes()
        assert len(game) == sum(lives)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_endless_episodes_are_cut_off_and_count_with_what_they_had(agent, mode):
    endless = 10**9
    scores = evaluate(agent, fixed_envs(3, endless, mode=mode), episodes=5, seed=0, deterministic=True, step_limit=20)
    assert scores == Scores((3.0, 3.0, 3.0, 20.0, 20.0), (3, 3, 3, 20, 20), cut_off=2, step_limit=20)
    told = scores.cut_off_told("--step-limit")
    assert told == (
        "2 of 5 episodes were cut off after 20 steps, and count with the return and length they had by then; "
        "--step-limit changes that"
    )
    whole = evaluate(agent, fixed_envs(3, 20, mode=mode), episodes=5, seed=0, deterministic=True, step_limit=21)
    assert whole.cut_off == 0 and whole.cut_off_told("--step-limit") == "" and whole.returns == scores.returns
    assert evaluate(agent, fixed_envs(30), episodes=1, seed=0, deterministic=True, step_limit=0).lengths == (30,)


def test_an_episode_that_was_cut_off_and_then_ends_counts_once(agent):
    scores = evaluate(agent, fixed_envs(30, 7), episodes=14, seed=0, deterministic=True, step_limit=10)
    assert scores.lengths == (10,) * 7 + (7,) * 7 and scores.cut_off == 7


def test_a_long_evaluation_tells_how_far_it_is(agent):
    seen, lines = [], []
    evaluate(agent, fixed_envs(4, 2), episodes=4, seed=0, deterministic=True, progress=lambda *at: seen.append(at))
    assert seen[0] == (0, 2) and seen[-1][0] == 4 and sorted(seen) == seen
    tell = now_and_then(lines.append, 20, interval=0.0)
    tell(3, 12_000)
    assert lines == ["evaluating: 3 of 20 episodes so far, 12,000 steps"]
    now_and_then(lines.append, 20, interval=60.0)(4, 13_000)
    assert len(lines) == 1


class Odd(gym.Wrapper):
    """A reward or an observation that is no number, in the fifth step."""

    def __init__(self, env, reward=0.0, obs=0.0):
        super().__init__(env)
        self.odd, self.steps = (reward, obs), 0

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        self.steps += 1
        if self.steps == 5:
            reward, obs = reward + self.odd[0], obs + np.float32(self.odd[1])
        return obs, reward, *rest


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ({"reward": -np.inf}, "a reward of -inf"),
        ({"reward": 1e300}, "a reward of inf"),
        ({"obs": np.nan}, "observation of nan"),
    ],
)
def test_what_is_no_number_is_no_score(odd, told):
    make = lambda: Odd(gym.make("CartPole-v1"), **odd)  # noqa: E731
    envs = VectorEnvs(SyncVectorEnv([make] * 2, autoreset_mode=AutoresetMode.SAME_STEP))
    agent = RELAX(envs.single_observation_space, envs.single_action_space, hidden=(4,))
    with pytest.raises(
        EnvironmentFault, match=f"environment 0 of .* gave .*{told} in an evaluation, expected a finite"
    ):
        evaluate(agent, envs, episodes=2, seed=0, deterministic=False)


def test_a_best_score_that_is_no_number_stands_in_nobodys_way(tmp_path):
    train(small_run(tmp_path / "run"))
    (path,) = (tmp_path / "run" / "checkpoints").iterdir()
    found = Checkpoint.read(path)
    save_state(path, found.tensors, {**found.state, "run": {**found.state["run"], "best_evaluation": -math.inf}})
    assert train(resume_config(tmp_path / "run", total_steps=500, eval_interval=40, eval_episodes=2)).best is not None


def test_runs_and_the_command_have_a_limit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("relax_rl.runs.plotting.plot_curves", lambda *_, **__: None)
    walk = ["--env", "CliffWalking-v1", "--total-steps", "40", "--num-envs", "2", "--hidden", "4", "--no-tensorboard"]
    few = ["--estimator", "a2c", "--eval-interval", "20", "--eval-episodes", "2", "--eval-step-limit", "30"]
    assert main([*walk, *few, "--num-steps", "10", "--run-dir", "run"]) == 0
    assert "2 of 2 episodes were cut off after 30 steps" in capsys.readouterr().out
    assert main(["evaluate", "run", "--episodes", "3", "--step-limit", "40"]) == 0
    assert "3 of 3 episodes were cut off after 40 steps" in capsys.readouterr().out
    told = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert told["cut_off"] == 3 and told["lengths"] == [40, 40, 40]
    assert EvaluateConfig(run="run").step_limit == TrainConfig().run.eval_step_limit == 27_000


class OddAtFirst(gym.Wrapper):
    """An observation after `reset` that is no number."""

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        return obs * np.float32(np.nan), info


def test_the_first_observation_is_looked_at_too():
    make = lambda: OddAtFirst(gym.make("CartPole-v1"))  # noqa: E731
    envs = VectorEnvs(SyncVectorEnv([make], autoreset_mode=AutoresetMode.SAME_STEP))
    agent = RELAX(envs.single_observation_space, envs.single_action_space, hidden=(4,))
    with pytest.raises(EnvironmentFault, match="observation of nan in an evaluation"):
        evaluate(agent, envs, episodes=1, seed=0, deterministic=True)


def test_the_best_agent_is_scored_on_other_episodes_than_it_was_chosen_by(tmp_path):
    train(small_run(tmp_path / "run", eval_interval=100, eval_episodes=3))
    chosen = max(read_csv(tmp_path / "run" / "evaluation.csv")["return_mean"])
    agent = RELAX.load(tmp_path / "run" / "checkpoints" / "best.safetensors")
    found = {}
    for stream in (SELECTION_STREAM, EVALUATION_STREAM):
        with evaluation_envs(EnvConfig(env="CartPole-v1", num_envs=4), episodes=3, seed=0) as envs:
            found[stream] = evaluate(agent, envs, episodes=3, seed=0, deterministic=True, stream=stream)
    assert chosen == pytest.approx(found[SELECTION_STREAM].mean)
    evaluate_run(EvaluateConfig(run=str(tmp_path / "run"), episodes=3, num_envs=4))
    played = json.loads((tmp_path / "run" / "evaluation.json").read_text())["returns"]
    assert tuple(played) == found[EVALUATION_STREAM].returns != found[SELECTION_STREAM].returns
