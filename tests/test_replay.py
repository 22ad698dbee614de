"""Surrogates that learn after the policy's steps, from the last rollouts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from relax_rl.agents.surrogate import SurrogateActorCritic
from torch import Tensor

from relax_rl.agents import LAX, RELAX, ActorCritic, Marginal
from relax_rl.agents.batch import Batch
from relax_rl.agents.replay import MOST_RATIO
from relax_rl.errors import SettingsError
from relax_rl.settings.config import AgentConfig
from tests.steps import shake
from tests.test_agents import BOX, OBS, rollout_for

DISCRETE = spaces.Discrete(3)
PASSES = {"epochs": 3, "minibatch_size": 7, "clip_range": 0.2}
ROWS = 24


def agent_for(kind: type[ActorCritic], **settings: Any) -> SurrogateActorCritic:
    agent = kind(OBS, BOX if kind is LAX else DISCRETE, seed=0, hidden=(8,), surrogate_hidden=(8,), **settings)
    assert isinstance(agent, SurrogateActorCritic)
    shake(agent)
    return agent


def surrogate_of(agent: SurrogateActorCritic) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in agent.surrogate.named_parameters()}


def watch_training(agent: SurrogateActorCritic) -> list[Batch]:
    """The batches that an agent's surrogate will be trained on."""
    seen: list[Batch] = []
    train = agent.train_surrogate

    def watched(batch: Batch, estimated: Any) -> Any:
        seen.append(batch)
        return train(batch, estimated)

    agent.train_surrogate = watched  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("kind", [RELAX, LAX, Marginal])
@pytest.mark.parametrize("settings", [PASSES, {"surrogate_replay": 2}, {**PASSES, "surrogate_replay": 2}])
def test_the_policy_takes_its_steps_by_a_surrogate_that_has_not_seen_them(
    kind: type[ActorCritic], settings: dict[str, Any]
) -> None:
    agent = agent_for(kind, **settings)
    seen, before, at_steps = watch_training(agent), surrogate_of(agent), []
    step = agent.step

    def watched(batch: Batch, params: Tensor, value: Tensor) -> Any:
        at_steps.append((len(seen), all(torch.equal(x, before[name]) for name, x in surrogate_of(agent).items())))
        return step(batch, params, value)

    agent.step = watched  # type: ignore[method-assign]
    metrics = agent.update(rollout_for(agent))
    policy_steps = 3 * 4 if "epochs" in settings else 1
    assert at_steps == [(0, True)] * policy_steps
    assert len(seen) == policy_steps
    assert any(not torch.equal(x, before[name]) for name, x in surrogate_of(agent).items())
    assert float(metrics["losses/variance"]) > 0 and "surrogate/gain" in metrics


def test_a_plain_step_trains_the_surrogate_on_its_own_batch() -> None:
    agent = agent_for(RELAX)
    seen = watch_training(agent)
    agent.update(rollout_for(agent))
    assert len(seen) == 1 and len(seen[0].weight) == ROWS
    assert len(agent._replay) == 0  # and keeps nothing


def test_without_replay_the_surrogate_sees_the_advantages_that_the_policy_learned_from() -> None:
    agent = agent_for(RELAX, normalize_reward=True, value_lr=0.1, **{**PASSES, "minibatch_size": 24})
    agent.update(rollout_for(agent, seed=0))
    rollout, seen = rollout_for(agent, seed=1), watch_training(agent)
    before = agent.batch(rollout)[0].advantage
    agent.update(rollout)
    assert len(seen) == 3 and all(torch.equal(batch.advantage.sort()[0], before.sort()[0]) for batch in seen)


@pytest.mark.parametrize("settings", [{}, {**PASSES, "minibatch_size": 24}])
def test_the_last_rollouts_are_kept_and_seen_under_the_present_value_function(settings: dict[str, Any]) -> None:
    agent = agent_for(RELAX, surrogate_replay=2, normalize_reward=True, value_lr=0.1, **settings)
    rollouts = [rollout_for(agent, seed=number) for number in range(3)]
    rollouts = [replace(each, reward=each.reward * 10.0**number) for number, each in enumerate(rollouts)]
    seen: list[Batch] = []
    advantages: list[Tensor] = []
    train = agent.train_surrogate

    def watched(batch: Batch, estimated: Any) -> Any:
        if not seen:
            advantages[:] = [agent.batch(rollout)[0].advantage for rollout in rollouts[1:]]
        seen.append(batch)
        return train(batch, estimated)

    agent.update(rollouts[0])
    unit = agent.reward_unit
    agent.update(rollouts[1])
    assert agent.reward_unit < 0.5 * unit  # that of the second rollout's advantages then, and now
    before = [agent.batch(rollout)[0].advantage for rollout in rollouts[1:]]
    agent.train_surrogate = watched  # type: ignore[method-assign]
    agent.update(rollouts[2])
    kept, obs = torch.cat(advantages), torch.cat([rollout.obs[:-1].flatten(0, 1) for rollout in rollouts[1:]])
    assert all(float((then - now).abs().max()) > 0.01 for then, now in zip(before, advantages, strict=True))
    places = (seen[0].features.unsqueeze(1) - obs).abs().sum(-1).argmin(1)
    assert torch.equal(seen[0].features, obs[places])
    assert 0 < int((places < ROWS).sum()) < ROWS
    torch.testing.assert_close(seen[0].advantage, kept[places])


@pytest.mark.parametrize("kind", [RELAX, LAX])
def test_rows_of_an_earlier_policy_count_by_their_present_probability(kind: type[ActorCritic]) -> None:
    agent = agent_for(kind, surrogate_replay=1, policy_lr=0.3)
    rollout = rollout_for(agent)
    rollout = replace(rollout, valid=torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) > 0.3)
    old = agent.batch(rollout)[0]
    before = old.dist.log_prob(old.action).detach()
    seen = watch_training(agent)
    agent.update(rollout)
    (part,) = seen
    now = agent.batch(rollout)[0]
    ratio = torch.exp(now.dist.log_prob(now.action) - before).detach()
    assert ratio.max() > MOST_RATIO and ratio.min() < 0.9
    order = (part.features.unsqueeze(1) - now.features).abs().sum(-1).argmin(1)
    torch.testing.assert_close(part.weight, (now.weight * ratio.clamp(max=MOST_RATIO))[order])
    torch.testing.assert_close(part.dist.params, now.dist.params[order])
    # The noise leads to the action by the present policy.
    torch.testing.assert_close(part.dist.threshold(part.dist.relax(part.noise)).detach(), part.action)


def test_images_can_be_kept() -> None:
    space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    agent = RELAX(space, DISCRETE, seed=0, cnn_features=16, surrogate_replay=2)
    shake(agent)
    before = surrogate_of(agent)
    for seed in range(3):
        agent.update(rollout_for(agent, seed=seed))
    assert len(agent._replay) == 2
    assert any(not torch.equal(x, before[name]) for name, x in surrogate_of(agent).items())


def test_it_cannot_keep_less_than_nothing() -> None:
    with pytest.raises(SettingsError, match="surrogate_replay is -1, expected 0 or above"):
        AgentConfig(surrogate_replay=-1)
