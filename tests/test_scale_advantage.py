"""Advantages in units of what they have been."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from relax_rl.agents import A2C, LAX, RELAX, ActorCritic, Reinforce
from relax_rl.agents.gradients import Objective, gradients
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


@pytest.mark.parametrize("unit", ["scale_advantage", "normalize_advantage"])
@pytest.mark.parametrize("settings", [{}, PASSES])
@pytest.mark.parametrize("kind", [RELAX, LAX])
def test_the_variance_and_that_without_a_surrogate_have_one_unit(
    kind: type[ActorCritic], settings: dict[str, Any], unit: str
) -> None:
    """Where nothing is to learn, a surrogate begins at 0 and stays there, and the two are the same."""
    still = {"policy_lr": 1e-12, "value_lr": 1e-12, "surrogate_lr": 1e-12}
    agent = kind(OBS, BOX if kind is LAX else DISCRETE, seed=0, hidden=(8,), **{**settings, **still, unit: True})
    metrics = agent.update(rollout_for(agent))
    variance = float(metrics["estimate/variance"])
    assert variance > 0.0
    assert float(metrics["estimate/variance_a2c"]) == pytest.approx(variance, rel=1e-4)


def test_one_unit_at_a_time() -> None:
    with pytest.raises(SettingsError, match="scale_advantage is True, expected False beside normalize_advantage"):
        AgentConfig(scale_advantage=True, normalize_advantage=True)
