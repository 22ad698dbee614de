"""The value function learns from earlier rollouts beside the present one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from relax_rl.agents import A2C, RELAX, ActorCritic
from relax_rl.agents.replay import ValueReplay
from relax_rl.agents.rollouts import Rollout
from tests.steps import DISCRETE, OBS, PASSES, rollout_for, watch_steps, weights

PLAIN: dict[str, Any] = {"hidden": (8,), "max_grad_norm": float("inf")}


def agent_for(kind: type[ActorCritic] = A2C, **settings: Any) -> ActorCritic:
    return kind(OBS, DISCRETE, seed=0, **{**PLAIN, **settings})


def rollout(agent: ActorCritic, seed: int, scale: float = 1.0) -> Rollout:
    """One with rows that autoreset made up, and rewards of some size."""
    valid = torch.rand((6, 4), generator=torch.Generator().manual_seed(seed)) > 0.2
    made = rollout_for(agent, seed=seed, valid=valid)
    return replace(made, reward=made.reward * scale)


def test_what_comes_from_a_checkpoint_joins_rows_of_another_device() -> None:
    agent = agent_for(value_replay=2)
    for number in range(2):
        agent.update(rollout(agent, number))
    assert agent.value_replay is not None
    kept = ValueReplay(2)
    kept.load_state_dict(agent.value_replay.state_dict())
    batch = agent.batch(rollout(agent, 2))[0]
    moved = replace(batch, **{name: getattr(batch, name).to("meta") for name in ("obs", "return_", "weight")})
    joined = kept.join(moved, 1.0)
    assert joined.past_obs is not None and joined.past_obs.device.type == "meta"


@pytest.mark.parametrize("targets", ["kept", "anew"])
def test_a_shorter_replay_takes_the_latest_rollouts(targets: str) -> None:
    agent, shorter = (agent_for(value_replay=size, replay_targets=targets) for size in (3, 1))
    for number in range(4):
        agent.update(rollout(agent, number))
    assert agent.value_replay is not None and shorter.value_replay is not None
    kept = agent.value_replay.state_dict()
    shorter.value_replay.load_state_dict(kept)
    found = shorter.value_replay.state_dict()
    assert found and all(torch.equal(x, kept[f"2{name.removeprefix('0')}"]) for name, x in found.items())
    assert len(kept) == 3 * len(found)
    longer = agent_for(value_replay=4, replay_targets=targets).value_replay
    assert longer is not None
    longer.load_state_dict(kept)
    assert all(torch.equal(x, kept[name]) for name, x in longer.state_dict().items())


def test_the_gradient_of_v_is_the_mean_over_the_last_rollouts() -> None:
    agent = agent_for(value_replay=2, normalize_reward=True)
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    units = []
    steps = watch_steps(agent)
    for number in range(4):
        made = rollout(agent, number, scale=10.0**number)
        batch = agent.batch(made)[0]
        units.append(agent.reward_unit)
        rows.append((made.obs[:-1].flatten(0, 1), batch.return_ / units[-1], batch.weight))
        loss = torch.zeros(())
        last = rows[-3:] + [rows[-1]] * (3 - len(rows))  # the present one where there is none before it
        for obs, return_, weight in last:
            error = agent.value(obs) - return_ * units[-1]
            loss = loss + (error.square() * weight).sum() * agent.config.value_coef / (3 * len(weight))
        expected = agent.learner.flat["value"].flatten(torch.autograd.grad(loss, list(agent.value.parameters())))
        agent.update(made)
        torch.testing.assert_close(steps[-1].gradients["value"], expected, rtol=1e-4, atol=1e-7)
    assert units[3] < 0.5 * units[2], "the unit of rewards has changed"


@pytest.mark.parametrize("kind", [A2C, RELAX])
def test_the_policy_has_the_gradient_it_had(kind: type[ActorCritic]) -> None:
    found = []
    for size in (0, 2):
        agent = agent_for(kind, value_replay=size)
        steps = watch_steps(agent)
        for seed in range(2):
            agent.update(rollout(agent, seed))
        found.append(steps[1].gradients)
    torch.testing.assert_close(found[0]["policy"], found[1]["policy"], rtol=1e-3, atol=1e-6)
    assert not torch.allclose(found[0]["value"], found[1]["value"], rtol=1e-2)


def test_minibatches_take_the_same_rows_of_every_rollout() -> None:
    agent = agent_for(value_replay=1, **PASSES)
    first, second = rollout(agent, 0), rollout(agent, 1)
    agent.update(first)
    steps = watch_steps(agent)
    agent.update(second)
    assert [len(step.batch.weight) for step in steps] == [7, 7, 7, 3] * 3
    own, earlier = second.obs[:-1].flatten(0, 1), first.obs[:-1].flatten(0, 1)
    for batch in (step.batch for step in steps):
        assert batch.past_obs is not None and batch.past_return is not None and batch.past_weight is not None
        places = (batch.obs.unsqueeze(1) - own).abs().sum(-1).argmin(1)
        assert torch.equal(batch.past_obs[0], earlier[places])
        assert torch.equal(batch.past_weight[0], first.valid.flatten()[places].float())
        assert batch.past_return.shape == (1, len(places))


def test_rollouts_of_another_size_are_left_out() -> None:
    agent = agent_for(value_replay=2)
    steps, made = watch_steps(agent), [rollout(agent, 0), *(rollout_for(agent, num_envs=3, seed=s) for s in (1, 2))]
    for each in made:
        agent.update(each)
    past = [step.batch.past_obs for step in steps]
    obs = [each.obs[:-1].flatten(0, 1) for each in made]
    for found, expected in zip(past, ([obs[0]] * 2, [obs[1]] * 2, [obs[1], obs[2]]), strict=True):
        assert found is not None and torch.equal(found, torch.stack(expected))


def test_images_can_be_kept() -> None:
    space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    agents = [A2C(space, DISCRETE, seed=0, cnn_features=16, value_replay=size) for size in (0, 1)]
    for agent in agents:
        for seed in range(2):
            agent.update(rollout_for(agent, seed=seed))
    plain, replayed = (weights(agent) for agent in agents)
    assert any(not torch.equal(x, replayed[name]) for name, x in plain.items())


def test_a_checkpoint_that_holds_no_rollouts_begins_anew() -> None:
    agent = agent_for(value_replay=2)
    agent.update(rollout(agent, 0))
    tensors, state = agent.state_dict()
    tensors = {name: x for name, x in tensors.items() if not name.startswith("value_replay.")}
    agent.load_state_dict(tensors, state)
    assert agent.value_replay is not None and agent.value_replay.state_dict() == {}
    agent.update(rollout(agent, 1))


def test_a_rollout_that_is_not_learned_from_puts_none_out() -> None:
    agent, replay = agent_for(value_replay=2), ValueReplay(2)
    batches = [agent.batch(rollout(agent, number))[0] for number in range(4)]
    for batch in batches[:2]:
        replay.join(batch, 1.0)
    before = replay.state_dict()
    for batch in batches[2:]:
        replay.join(batch, 1.0)
        replay.forget_last()
        assert all(torch.equal(x, before[name]) for name, x in replay.state_dict().items())
    assert len(replay.state_dict()) == len(before)
