"""Critics of actions learn from earlier rollouts as V does: from what actions were worth, kept or computed anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from relax_rl.agents import AGENTS, ActorCritic
from relax_rl.agents.action_value import with_past_advantage
from relax_rl.agents.batch import Batch, standardized
from relax_rl.agents.compiled import CompiledGradients
from relax_rl.agents.gradients import Objective, gradients
from relax_rl.agents.replay import ValueReplay
from relax_rl.agents.rollouts import Rollout
from relax_rl.compute.distributed import ALONE
from tests.steps import (
    DISCRETE,
    PASSES,
    assert_alike,
    assert_gone_on_with,
    shake,
    shake_module,
    trained,
    watch_steps,
    whole_gradients,
)
from tests.test_rollout_replay import agent_for, rollout, targets

IMAGES = spaces.Box(0, 255, (4, 84, 84), np.uint8)
CRITIC: dict[str, Any] = {"surrogate_loss": "critic"}
BINS: dict[str, Any] = {**CRITIC, "critic_loss": "hl_gauss"}


def acting(agent: ActorCritic, made: Rollout) -> Tensor:
    """`[T, N]` log-probability of each action of a rollout under the policy at hand."""
    mask = None if made.mask is None else made.mask.flatten(0, 1)
    with torch.no_grad():
        dist = agent.policy.distribution(agent.policy(agent.normalized(made.obs[:-1].flatten(0, 1))), mask)
        return dist.log_prob(made.action.flatten(0, 1)).view(made.reward.shape)


def worths(agent: ActorCritic, made: Rollout, acted: Tensor) -> Tensor:
    """`[T, N]` r + gamma ((1 - lambda) V(s') + lambda v'), step by step, with V-trace's v of `targets`."""
    gamma, lambda_ = agent.config.gamma, agent.config.gae_lambda
    v, found = targets(agent, made, acted), torch.zeros(made.reward.shape, dtype=torch.float64)
    last = {(int(t), int(n)): k for k, (t, n) in enumerate(made.final_index)}
    with torch.no_grad():
        value = agent.value(agent.normalized(made.obs.flatten(0, 1))).view(7, 4).double()
        ends = agent.value(agent.normalized(made.final_obs)).double()
    for t in range(6):
        for n in range(4):
            reward = made.reward[t, n].item() * agent.reward_unit
            if not made.valid[t, n]:
                found[t, n] = value[t, n]
            elif made.terminated[t, n]:
                found[t, n] = reward
            elif (t, n) in last:
                found[t, n] = reward + gamma * ends[last[t, n]]
            else:
                after = v[t + 1, n] if t < 5 and made.valid[t + 1, n] else value[t + 1, n]
                found[t, n] = reward + gamma * ((1.0 - lambda_) * value[t + 1, n] + lambda_ * after)
    return found


@pytest.mark.parametrize(
    ("estimator", "settings", "masked"),
    [
        ("relax", {**CRITIC, "gae_lambda": 0.8, "normalize_reward": True}, True),
        ("marginal", {**BINS, "gae_lambda": 0.6}, False),
        ("lax", {**CRITIC, "normalize_obs": True}, False),
        ("lax", {**BINS, "gae_lambda": 1.0}, False),
    ],
)
def test_what_actions_were_worth_is_written_out(estimator: str, settings: dict[str, Any], masked: bool) -> None:
    agent = agent_for(estimator, **settings)
    shake_module(agent.value, torch.Generator().manual_seed(2))
    steps = watch_steps(agent)
    first, second = (rollout(agent, seed, masked=masked) for seed in range(2))
    acted = acting(agent, first)
    agent.update(first)
    own = steps[-1].batch
    assert own.past_action is not None and torch.equal(own.past_action, own.action.expand_as(own.past_action))
    assert torch.equal(own.past_worth, own.return_.expand(2, -1)), "it stands in for those that are missing"  # type: ignore[arg-type]
    shake_module(agent.policy, torch.Generator().manual_seed(0))
    expected = worths(agent, first, acted).float().flatten()
    with torch.no_grad():
        value = agent.value(agent.normalized(first.obs[:-1].flatten(0, 1)))
    agent.update(second)
    batch = steps[-1].batch
    assert batch.past_action is not None and batch.past_worth is not None
    torch.testing.assert_close(batch.past_worth[0], expected, rtol=1e-4, atol=1e-5)
    assert (
        torch.equal(batch.past_action[0], first.action.flatten(0, 1))
        and (batch.past_worth[0] != batch.past_return[0]).any()
    )  # type: ignore[index]
    if "critic_loss" not in settings:
        assert batch.past_advantage is not None
        torch.testing.assert_close(batch.past_advantage[0], expected - value, rtol=1e-4, atol=1e-5)


def of_surrogate(agent: ActorCritic, batch: Batch) -> list[Tensor]:
    objective = Objective(agent.estimator, trains=("surrogate",), surrogate_loss="critic")
    found: list[Tensor] = gradients(agent.networks, batch, objective).of["surrogate"]
    return found


@pytest.mark.parametrize("targets", ["kept", "anew"])
@pytest.mark.parametrize(
    ("estimator", "settings"), [("relax", CRITIC), ("relax", BINS), ("lax", CRITIC), ("lax", BINS), ("marginal", BINS)]
)
def test_every_rollout_counts_alike(estimator: str, settings: dict[str, Any], targets: str) -> None:
    """The gradient is the mean of those of each rollout alone."""
    agent = agent_for(estimator, replay_targets=targets, **settings)
    shake(agent)
    steps = watch_steps(agent)
    for seed in range(3):
        agent.update(rollout(agent, seed))
    batch = with_past_advantage(agent.networks, steps[-1].batch)
    past = {name: getattr(batch, f"past_{name}") for name in ("obs", "action", "worth", "weight")}
    alone = replace(batch, past_action=None, past_worth=None, past_advantage=None)
    every = [of_surrogate(agent, alone)]
    for k in range(2):
        obs, action, worth, weight = (x[k] for x in past.values())
        with torch.no_grad():
            advantage = worth - agent.value(obs)
        rows = replace(alone, obs=obs, action=action, weight=weight, return_=worth, advantage=advantage)
        every.append(of_surrogate(agent, rows))
    expected = [torch.stack(each).mean(0) for each in zip(*every, strict=True)]
    found = of_surrogate(agent, batch)
    for x, y, own in zip(found, expected, every[0], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(x, own) or not own.any()


@pytest.mark.parametrize("settings", [{}, {"share_torso": "off"}])
def test_earlier_images_are_seen_as_present_ones(settings: dict[str, Any]) -> None:
    agent = AGENTS["relax"](IMAGES, DISCRETE, seed=0, cnn_features=8, surrogate_hidden=(8,), **CRITIC, **settings)
    obs = torch.rand((5, *IMAGES.shape))
    torch.testing.assert_close(agent.networks.told(obs), agent.networks(obs).features)
    assert not agent.networks.told(obs).requires_grad


def test_centred_advantages_are_centred_in_all_rollouts() -> None:
    agent = agent_for("lax", normalize_advantage=True, **CRITIC)
    steps = watch_steps(agent)
    agent.update(rollout(agent, 0))
    batch = with_past_advantage(agent.networks, replace(steps[-1].batch, advantage_unit=None))
    centred = standardized(batch, ALONE)
    shift = (batch.advantage - centred.advantage)[batch.weight > 0]
    assert shift.std() < 1e-5 and batch.past_advantage is not None and centred.past_advantage is not None
    moved = batch.past_advantage - centred.past_advantage
    torch.testing.assert_close(moved, shift[0].expand_as(moved), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"surrogate_loss": "variance"}])
def test_what_lowers_the_variance_keeps_no_actions(settings: dict[str, Any]) -> None:
    agent = agent_for("relax" if settings else "a2c", **{**CRITIC, **settings})
    steps = watch_steps(agent)
    agent.update(rollout(agent, 0))
    assert steps[-1].batch.past_action is None and steps[-1].batch.past_obs is not None


@pytest.mark.parametrize("targets", ["kept", "anew"])
@pytest.mark.parametrize(("estimator", "settings"), [("relax", {**CRITIC, **PASSES}), ("lax", BINS)])
def test_an_agent_with_such_a_critic_is_gone_on_with_bit_for_bit(
    estimator: str, settings: dict[str, Any], targets: str, tmp_path: Any
) -> None:
    agent = agent_for(estimator, replay_targets=targets, **settings)
    shake(agent)
    for seed in range(2):
        agent.update(rollout(agent, seed))
    assert_gone_on_with(agent, rollout(agent, 2), tmp_path)


def test_a_replay_without_actions_begins_anew() -> None:
    """Of checkpoints from before actions were kept."""
    rows = {"0.obs": torch.zeros(3, 2), "0.return": torch.zeros(3), "0.weight": torch.ones(3)}
    replay = ValueReplay(2, actions=True)
    replay.load_state_dict(rows)
    assert replay.state_dict() == {}
    replay.load_state_dict({**rows, "0.action": torch.zeros(3)})
    assert set(replay.state_dict()) == {*rows, "0.action"}


@pytest.mark.parametrize(("estimator", "settings"), [("relax", {**CRITIC, **PASSES}), ("lax", BINS)])
def test_compiled_steps_are_those_of_eager_code(
    estimator: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relax_rl.compute.compilation._compile", lambda graph, inputs, key: graph)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    how: dict[str, Any] = {"value_replay": 2, "replay_targets": "anew", **settings}
    compiled, eager = (trained(estimator, updates=4, compile=choice, **how) for choice in ("on", "off"))
    assert compiled.learner.compiled is not None
    assert_alike(compiled, eager)


@pytest.mark.parametrize(("estimator", "settings"), [("relax", CRITIC), ("lax", BINS)])
def test_every_field_of_earlier_rollouts_means_the_same_in_compiled_code(
    estimator: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relax_rl.compute.compilation._compile", lambda graph, inputs, key: graph)
    agent = agent_for(estimator, **settings)
    shake(agent)
    steps = watch_steps(agent)
    for seed in range(3):
        agent.update(rollout(agent, seed))
    batch = with_past_advantage(agent.networks, steps[-1].batch)
    objective = Objective(agent.estimator, trains=("surrogate",), surrogate_loss="critic")
    compiled = CompiledGradients(agent.networks, agent.learner.flat)

    def check(batch: Batch) -> Tensor:
        found, exact = (
            compiled(batch, objective).of["surrogate"],
            whole_gradients(agent, batch, objective).of["surrogate"],
        )
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)
        return exact

    first = check(batch)
    for name in ("past_obs", "past_action", "past_worth", "past_advantage", "past_weight"):
        x = getattr(batch, name)
        if x is None:
            assert name == "past_advantage" and settings is BINS
            continue
        changed = check(replace(batch, **{name: 0.6 * x if x.is_floating_point() else x.flip(1)}))
        assert torch.allclose(changed, first) == (name == "past_worth" and settings is CRITIC), name
