"""The value function learns from earlier rollouts whose returns are computed anew, by V-trace with the policy and V at hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from relax_rl.agents import A2C, AGENTS, ActorCritic
from relax_rl.agents.rollouts import Rollout
from relax_rl.errors import SettingsError
from relax_rl.settings.config import AgentConfig
from tests.steps import (
    BOX,
    DISCRETE,
    OBS,
    PASSES,
    assert_alike,
    assert_same,
    rollout_for,
    shake,
    shake_module,
    trained,
    watch_steps,
)

ANEW: dict[str, Any] = {"value_replay": 2, "replay_targets": "anew", "hidden": (8,), "surrogate_hidden": (8,)}


def agent_for(estimator: str = "a2c", **settings: Any) -> ActorCritic:
    return AGENTS[estimator](OBS, BOX if estimator == "lax" else DISCRETE, seed=0, **{**ANEW, **settings})


def rollout(agent: ActorCritic, seed: int, *, masked: bool = False) -> Rollout:
    """One with ends of both kinds, last observations, rows that autoreset made up, and perhaps masks."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand((6, 4), generator=generator) > 0.2
    made = rollout_for(agent, seed=seed, valid=valid)
    assert made.terminated.any() or made.truncated.any()
    index = made.truncated.nonzero()
    final = torch.randn((len(index), 3), generator=generator)
    mask = None
    if masked:
        mask = torch.rand((6, 4, 3), generator=generator) > 0.4
        mask.scatter_(-1, made.action.unsqueeze(-1), True)
    return replace(made, reward=5.0 * made.reward, final_obs=final, final_index=index, mask=mask)


def targets(agent: ActorCritic, made: Rollout, acting: Tensor) -> Tensor:
    """`[T, N]` V-trace's targets, env by env and step by step, by the present policy and V.

    Args:
        acting: `[T, N]` log-probability of each action under the policy that acted.
    """
    gamma, lambda_, clip = agent.config.gamma, agent.config.gae_lambda, agent.config.reward_clip
    found = torch.zeros(made.reward.shape, dtype=torch.float64)
    last = {(int(t), int(n)): k for k, (t, n) in enumerate(made.final_index)}
    with torch.no_grad():
        value = agent.value(agent.normalized(made.obs.flatten(0, 1))).view(7, 4).double()
        ends = agent.value(agent.normalized(made.final_obs)).double()
        mask = None if made.mask is None else made.mask.flatten(0, 1)
        dist = agent.policy.distribution(agent.policy(agent.normalized(made.obs[:-1].flatten(0, 1))), mask)
        ratio = (dist.log_prob(made.action.flatten(0, 1)).view(6, 4) - acting).exp().double()
    assert (ratio > 1.2).any() and (ratio < 0.8).any()
    for n in range(4):
        after = 0.0  # v_{t+1} - V(s_{t+1})
        for t in reversed(range(6)):
            if not made.valid[t, n]:
                found[t, n], after = value[t, n], 0.0
                continue
            rho = min(1.0, ratio[t, n].item())
            reward = max(-clip, min(clip, made.reward[t, n].item())) * agent.reward_unit
            bootstrap = 0.0 if made.terminated[t, n] else float(ends[last[t, n]] if (t, n) in last else value[t + 1, n])
            over = bool(made.terminated[t, n] or made.truncated[t, n])
            delta = rho * (reward + gamma * bootstrap - value[t, n].item())
            after = delta + (0.0 if over else gamma * lambda_ * rho * after)
            found[t, n] = value[t, n] + after
    return found


@pytest.mark.parametrize(
    ("estimator", "settings", "masked"),
    [
        ("a2c", {"gae_lambda": 0.8}, False),
        ("a2c", {"normalize_obs": True, "normalize_reward": True, "reward_clip": 6.0}, False),
        ("a2c", {"critic_loss": "hl_gauss"}, True),
        ("lax", {"gae_lambda": 1.0, "gamma": 0.9}, False),
    ],
)
def test_returns_are_those_of_v_trace_written_out(estimator: str, settings: dict[str, Any], masked: bool) -> None:
    agent = agent_for(estimator, **settings)
    shake_module(agent.value, torch.Generator().manual_seed(2))
    made, acting = [], []
    steps = watch_steps(agent)
    for seed in range(3):
        each = rollout(agent, seed, masked=masked)
        made.append(each)
        mask = None if each.mask is None else each.mask.flatten(0, 1)
        with torch.no_grad():
            params = agent.policy(agent.normalized(each.obs[:-1].flatten(0, 1)))
            dist = agent.policy.distribution(params, mask)
            acting.append(dist.log_prob(each.action.flatten(0, 1)).view(6, 4))
        own = agent.batch(each)[0]
        expected = [targets(agent, made[k], acting[k]).float().flatten() for k in range(len(made) - 1)]
        expected += [own.return_] * (2 - len(expected))
        seen = [agent.normalized(rows.obs[:-1].flatten(0, 1)) for rows in made[:-1]] + [own.obs] * (3 - len(made))
        agent.update(each)
        batch = steps[-1].batch
        assert batch.past_return is not None and batch.past_obs is not None and batch.past_weight is not None
        torch.testing.assert_close(batch.past_return, torch.stack(expected), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(batch.past_obs, torch.stack(seen))
        torch.testing.assert_close(batch.past_weight[0], made[0].valid.flatten().float())
        shake_module(agent.policy, torch.Generator().manual_seed(seed))  # another policy, and its ratios


def test_where_nothing_has_moved_returns_are_those_that_were_kept() -> None:
    still = {"policy_lr": 1e-12, "value_lr": 1e-12}
    found = []
    for how in ("anew", "kept"):
        agent = agent_for(replay_targets=how, **still)
        steps = watch_steps(agent)
        for seed in range(3):
            agent.update(rollout(agent, seed))
        batch = steps[-1].batch
        assert batch.past_return is not None and batch.past_weight is not None
        found.append(batch.past_return * batch.past_weight)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_they_are_computed_once_a_rollout() -> None:
    agent = agent_for(**PASSES)
    agent.update(rollout(agent, 0))
    steps, made = watch_steps(agent), rollout(agent, 1)
    agent.update(made)
    first = made.obs[:-1].flatten(0, 1)
    returns: dict[int, float] = {}
    for batch in (step.batch for step in steps):
        assert batch.past_return is not None
        for obs, return_ in zip(batch.obs, batch.past_return[0], strict=True):
            place = int((first - obs).abs().sum(-1).argmin())
            assert returns.setdefault(place, float(return_)) == float(return_)
    assert len(returns) == 24 and len(steps) == 12


def test_rollouts_of_another_size_are_left_out() -> None:
    agent = agent_for()
    steps = watch_steps(agent)
    for made in (rollout(agent, 0), rollout_for(agent, num_envs=3, seed=1)):
        agent.update(made)
    past = steps[-1].batch.past_obs
    assert past is not None and torch.equal(past, made.obs[:-1].flatten(0, 1).expand(2, -1, -1))


@pytest.mark.parametrize(
    ("estimator", "settings", "masked"),
    [
        ("relax", {"normalize_reward": True, "normalize_obs": True}, True),
        ("lax", PASSES, False),
        ("a2c", {"critic_loss": "hl_gauss"}, False),
    ],
)
def test_an_agent_is_gone_on_with_bit_for_bit(
    estimator: str, settings: dict[str, Any], masked: bool, tmp_path: Any
) -> None:
    agent = agent_for(estimator, **settings)
    shake(agent)
    for seed in range(2):
        agent.update(rollout(agent, seed, masked=masked))
    made = rollout(agent, 2, masked=masked)
    agent.save(tmp_path / "agent")
    again = ActorCritic.load(tmp_path / "agent")
    assert_same(again.state_dict()[0], agent.state_dict()[0])
    if agent.reward_scaler is not None:
        agent.reward_scaler.returns = np.zeros(0)  # of episodes, which begin anew where environments do
    agent.update(made), again.update(made)
    assert_same(again.state_dict()[0], agent.state_dict()[0])


def test_compiled_steps_are_those_of_eager_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relax_rl.compute.compilation._compile", lambda graph, inputs, key: graph)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    compiled, eager = (trained("a2c", updates=4, compile=how, **ANEW) for how in ("on", "off"))
    assert compiled.learner.compiled is not None
    assert_alike(compiled, eager)


def test_without_a_replay_there_is_nothing_to_compute() -> None:
    with pytest.raises(SettingsError, match="expected value_replay of at least 1"):
        AgentConfig(replay_targets="anew")


def test_a_policy_that_would_never_act_so_counts_for_nothing() -> None:
    agent = A2C(OBS, DISCRETE, seed=0, **{**ANEW, "value_replay": 1})
    made = rollout(agent, 0)
    agent.update(made)
    with torch.no_grad():
        agent.policy.head.weight.zero_()
        agent.policy.head.bias.copy_(torch.tensor([200.0, 0.0, 0.0]))
    steps = watch_steps(agent)
    agent.update(rollout(agent, 1))
    past = steps[-1].batch.past_return
    value = agent.value(made.obs[:-1].flatten(0, 1)).detach()
    others = made.action.flatten() != 0
    assert past is not None and torch.isfinite(past).all() and math.isfinite(float(value.sum()))
    torch.testing.assert_close(past[0][others], value[others], rtol=0, atol=0.1)  # V has made one step since
