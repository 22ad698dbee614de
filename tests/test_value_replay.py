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
from relax_rl.agents.batch import Batch
from relax_rl.errors import SettingsError
from relax_rl.rollouts import Rollout
from relax_rl.settings.config import AgentConfig
from tests.test_agents import OBS, assert_same, rollout_for, weights

DISCRETE = spaces.Discrete(3)
PASSES: dict[str, Any] = {"epochs": 2, "minibatch_size": 7, "clip_range": 0.2}
PLAIN: dict[str, Any] = {"hidden": (8,), "max_grad_norm": float("inf")}


def agent_for(kind: type[ActorCritic] = A2C, **settings: Any) -> ActorCritic:
    return kind(OBS, DISCRETE, seed=0, **{**PLAIN, **settings})


def rollout(agent: ActorCritic, seed: int, scale: float = 1.0) -> Rollout:
    """One with rows that autoreset made up, and rewards of some size."""
    valid = torch.rand((6, 4), generator=torch.Generator().manual_seed(seed)) > 0.2
    made = rollout_for(agent, seed=seed, valid=valid)
    return replace(made, reward=made.reward * scale)


def gradients_at_steps(agent: ActorCritic) -> list[tuple[Batch, Tensor, Tensor]]:
    """The batch of every step to come, and the gradients of policy and value function in it."""
    seen: list[tuple[Batch, Tensor, Tensor]] = []
    step = agent.policy_optimizer.step

    def watched(factor: float = 1.0) -> None:
        seen.append((batches[-1], agent.theta[0].grad.clone(), agent.theta[1].grad.clone()))
        step(factor)

    batches: list[Batch] = []
    estimate = agent.estimate

    def keep(batch: Batch) -> Any:
        batches.append(batch)
        return estimate(batch)

    agent.estimate = keep  # type: ignore[method-assign]
    agent.policy_optimizer.step = watched  # type: ignore[method-assign]
    return seen


def test_the_gradient_of_v_is_the_mean_over_the_last_rollouts() -> None:
    agent = agent_for(value_replay=2, normalize_reward=True)
    assert agent.reward_scaler is not None
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    units = []
    for number in range(4):
        made = rollout(agent, number, scale=10.0**number)
        batch = agent.batch(made)[0]
        units.append(agent.reward_scaler.scale)
        rows.append((made.obs[:-1].flatten(0, 1), batch.return_ / units[-1], batch.weight))
        twin = agent_for()
        twin.theta[1].data.copy_(agent.theta[1].data)
        seen = gradients_at_steps(agent)
        agent.update(made)
        expected = torch.zeros(())
        last = rows[-3:] + [rows[-1]] * (3 - len(rows))  # the present one where there is none before it
        for obs, return_, weight in last:
            error = twin.value(obs) - return_ * units[-1]
            expected = expected + (error.square() * weight).sum() * agent.config.value_coef / (3 * len(weight))
        twin.theta[1].zero_grad()
        expected.backward()
        torch.testing.assert_close(seen[0][2], twin.theta[1].grad, rtol=1e-4, atol=1e-7)
        agent.__dict__.pop("estimate")
        del agent.policy_optimizer.step  # type: ignore[method-assign]
    assert units[3] < 0.5 * units[2], "the unit of rewards has changed"


@pytest.mark.parametrize("kind", [A2C, RELAX])
def test_the_policy_has_the_gradient_it_had(kind: type[ActorCritic]) -> None:
    found = []
    for size in (0, 2):
        agent = agent_for(kind, value_replay=size)
        agent.update(rollout(agent, 0))
        value = agent.theta[1].data.clone()
        agent.update(rollout(agent, 1))
        agent.theta[1].data.copy_(value)
        found.append((agent.theta[0].data.clone(), agent.theta[1].grad.clone()))
    # Without clipping, V enters the policy's second step through the first one alone, which is the same.
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(found[0][1], found[1][1], rtol=1e-2)


def test_the_first_rollout_stands_in_for_those_before_it() -> None:
    plain, replayed = agent_for(), agent_for(value_replay=3)
    for agent in (plain, replayed):
        agent.update(rollout(agent, 0))
    for name, x in weights(plain).items():
        torch.testing.assert_close(x, weights(replayed)[name], rtol=1e-4, atol=1e-6)


def test_minibatches_take_the_same_rows_of_every_rollout() -> None:
    agent = agent_for(value_replay=1, **PASSES)
    first, second = rollout(agent, 0), rollout(agent, 1)
    agent.update(first)
    seen = gradients_at_steps(agent)
    agent.update(second)
    assert [len(batch.weight) for batch, _, _ in seen] == [7, 7, 7, 3] * 2
    own, earlier = second.obs[:-1].flatten(0, 1), first.obs[:-1].flatten(0, 1)
    for batch, _, _ in seen:
        assert batch.past_obs is not None and batch.past_return is not None and batch.past_weight is not None
        places = (batch.features.unsqueeze(1) - own).abs().sum(-1).argmin(1)
        assert torch.equal(batch.past_obs[0], earlier[places])
        assert torch.equal(batch.past_weight[0], first.valid.flatten()[places].float())
        assert batch.past_return.shape == (1, len(places))


def test_rollouts_of_another_size_are_left_out() -> None:
    agent = agent_for(value_replay=2)
    agent.update(rollout(agent, 0))
    agent.update(rollout_for(agent, num_envs=3))
    agent.update(rollout_for(agent, num_envs=3, seed=2))
    assert agent.updates == 3


def test_images_can_be_kept() -> None:
    space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    agents = [A2C(space, DISCRETE, seed=0, cnn_features=16, value_replay=size) for size in (0, 1)]
    for agent in agents:
        for seed in range(2):
            agent.update(rollout_for(agent, seed=seed))
    plain, replayed = (weights(agent) for agent in agents)
    assert any(not torch.equal(x, replayed[name]) for name, x in plain.items())


def test_the_same_seed_gives_the_same_numbers() -> None:
    agents = [agent_for(RELAX, value_replay=2, **PASSES) for _ in range(2)]
    for agent in agents:
        for seed in range(3):
            agent.update(rollout(agent, seed))
    assert_same(weights(agents[0]), weights(agents[1]))


def test_it_cannot_keep_less_than_nothing() -> None:
    with pytest.raises(SettingsError, match="value_replay is -1, expected 0 or above"):
        AgentConfig(value_replay=-1)
