"""Advantages in units of what they have been, and less what other environments have."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from relax_rl.agents import A2C, LAX, RELAX, ActorCritic, Reinforce
from relax_rl.agents.batch import centred
from relax_rl.agents.gradients import Objective, gradients
from relax_rl.compute.distributed import ALONE
from relax_rl.errors import SettingsError
from relax_rl.settings.config import AgentConfig
from tests.steps import BOX, DISCRETE, OBS, PASSES, rollout_for, shake, watch_steps

SMALL: dict[str, Any] = {"hidden": (8,), "surrogate_hidden": (8,), "scale_advantage": True}


def agent_for(kind: type[ActorCritic], **settings: Any) -> ActorCritic:
    agent = kind(OBS, BOX if kind is LAX else DISCRETE, seed=0, **SMALL, **settings)
    shake(agent)
    return agent


@pytest.mark.parametrize("kind", [A2C, RELAX, LAX, Reinforce])
def test_the_unit_is_the_root_mean_square_of_earlier_rollouts(kind: type[ActorCritic]) -> None:
    """Of the first rollout it is its own, and rows that are none do not count; what rewards are multiplied by goes along."""
    agent = agent_for(kind, normalize_reward=True)
    steps, squares = watch_steps(agent), []
    for seed in range(4):
        rollout = rollout_for(agent, seed=seed)
        rollout = replace(rollout, reward=3.0**seed * rollout.reward, valid=torch.rand(6, 4) > 0.2)
        batch, unit = agent.batch(rollout)[0], agent.reward_unit
        own = getattr(batch, "return_" if kind is Reinforce else "advantage")[batch.weight > 0] / unit
        agent.update(rollout)
        squares.append((float(own.square().sum()), len(own)))
        counted = squares[: max(1, seed)]
        faded = [0.9 ** (len(counted) - 1 - k) for k in range(len(counted))]
        mean = sum(f * x for f, (x, _) in zip(faded, counted, strict=True)) / sum(
            f * n for f, (_, n) in zip(faded, counted, strict=True)
        )
        told = steps[-1].batch.advantage_unit
        assert told is not None and float(told) == pytest.approx(math.sqrt(mean) * unit, rel=1e-5)
    assert len({float(step.batch.advantage_unit) for step in steps}) > 2  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [A2C, RELAX, LAX])
def test_the_estimate_is_divided_and_the_bonus_is_not(kind: type[ActorCritic]) -> None:
    agent = agent_for(kind)
    batch, _ = agent.batch(rollout_for(agent))
    objective = Objective(agent.estimator, ("policy", "value"), value_coef=0.0, max_grad_norm=math.inf)
    plain, bonus = batch, replace(batch, entropy_coef=torch.tensor(0.7))
    found = [
        torch.cat([x.flatten() for x in gradients(agent.networks, each, objective).of["policy"]])
        for each in (plain, bonus, replace(bonus, advantage_unit=torch.tensor(5.0)))
    ]
    torch.testing.assert_close(found[2], found[0] / 5.0 + (found[1] - found[0]), rtol=1e-4, atol=1e-6)
    assert float((found[1] - found[0]).norm()) > 1e-3


@pytest.mark.parametrize("settings", [{}, PASSES])
def test_however_large_rewards_are_the_policy_takes_the_same_steps(settings: dict[str, Any]) -> None:
    """As far as V is the same in their unit: here it says 0 and does not learn."""
    policies = []
    for size in (1.0, 1000.0):
        agent = agent_for(A2C, entropy_coef=0.05, value_lr=1e-12, max_grad_norm=math.inf, **settings)
        with torch.no_grad():
            agent.value.head.weight.zero_()
        for seed in range(3):
            rollout = rollout_for(agent, seed=seed)
            agent.update(replace(rollout, reward=size * rollout.reward))
        policies.append(torch.cat([x.flatten() for x in agent.policy.parameters()]))
    torch.testing.assert_close(*policies, rtol=1e-3, atol=1e-5)


def test_advantages_are_centred_by_all_other_environments() -> None:
    """Rows that are none neither count nor get anything; returns stay what they are, and so does a single environment."""
    made = replace(
        rollout_for(agent_for(A2C)), valid=torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) > 0.3
    )
    plain, found = (A2C(OBS, DISCRETE, seed=0, center_advantage=on).batch(made)[0] for on in (False, True))
    assert torch.equal(plain.return_, found.return_)
    before, after = plain.advantage.view(6, 4), found.advantage.view(6, 4)
    for env in range(4):
        others = [k for k in range(4) if k != env]
        mean = before[:, others][made.valid[:, others]].mean()
        torch.testing.assert_close(after[:, env], torch.where(made.valid[:, env], before[:, env] - mean, 0.0))
    alone = torch.randn(6, 1)
    assert torch.equal(centred(alone, torch.ones(6, 1, dtype=torch.bool), ALONE), alone)


def test_what_is_subtracted_does_not_move_the_gradient() -> None:
    """A z-test that sees 1% of the estimate's deviation; the mean over all rows, one's own among them, is far outside it."""
    generator, groups, steps, num_envs, p = torch.Generator().manual_seed(0), 40_000, 3, 2, 0.3
    action = (torch.rand(groups, steps, num_envs, generator=generator) < p).double()
    score = action - p
    advantage = 1.0 + action.flip(1).cumsum(1).flip(1)  # one's own action and all later ones
    valid = torch.ones(steps, num_envs, dtype=torch.bool)
    left = torch.stack([centred(each, valid, ALONE) for each in advantage])
    for subtracted, fair in ((advantage - left, True), (advantage.mean((1, 2), keepdim=True), False)):
        added = (subtracted * score).sum((1, 2))
        error = float(added.std()) / math.sqrt(groups)
        assert error < 0.01 * float((advantage * score).sum((1, 2)).std())
        assert (abs(float(added.mean())) < 4.0 * error) is fair


def test_one_unit_at_a_time() -> None:
    for name in ("scale_advantage", "center_advantage"):
        with pytest.raises(SettingsError, match=f"{name} is True, expected False beside normalize_advantage"):
            AgentConfig(normalize_advantage=True, **{name: True})
    with pytest.raises(SettingsError, match="center_advantage is True, but 'reinforce' has no advantages"):
        agent_for(Reinforce, center_advantage=True)
