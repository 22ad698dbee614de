"""How much of the surrogate enters an estimate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from relax_rl.agents.surrogate import SurrogateActorCritic

from relax_rl.agents import LAX, RELAX, ActorCritic, Marginal
from relax_rl.agents.control_scale import ControlScale
from relax_rl.estimators import variance_loss
from tests.steps import shake
from tests.test_agents import BOX, OBS, rollout_for

DISCRETE = spaces.Discrete(3)
KINDS = [RELAX, LAX, Marginal]


def agent_for(kind: type[ActorCritic], **settings: Any) -> SurrogateActorCritic:
    settings = {"surrogate_scale": "fitted", **settings}
    agent = kind(OBS, BOX if kind is LAX else DISCRETE, seed=0, hidden=(8,), surrogate_hidden=(8,), **settings)
    assert isinstance(agent, SurrogateActorCritic)
    shake(agent)
    return agent


def set_scale(agent: SurrogateActorCritic, value: float) -> None:
    assert agent.control_scale is not None
    agent.control_scale.shared, agent.control_scale.own = value, 1.0


def summary(plain: np.ndarray, control: np.ndarray) -> np.ndarray:
    return ControlScale.summary(torch.tensor(plain), torch.tensor(control), torch.ones(len(plain)).double()).numpy()


def test_the_scale_is_that_of_least_variance() -> None:
    generator = np.random.default_rng(0)
    plain = generator.normal(size=(500, 3))
    control = -0.6 * plain + generator.normal(size=(500, 3))
    scale = ControlScale()
    scale.merge(summary(plain, control)[None])
    tried = np.linspace(0, 1, 1001)
    best = tried[np.argmin([(plain + eta * control).var(0).sum() for eta in tried])]
    assert 0.2 < best < 0.8
    assert scale.value == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize(("slope", "expected"), [(0.7, 0.0), (-3.0, 0.33), (-0.5, 1.0)])
def test_the_scale_stays_between_none_and_all(slope: float, expected: float) -> None:
    plain = np.random.default_rng(0).normal(size=(500, 3))
    scale = ControlScale()
    scale.merge(summary(plain, slope * plain)[None])
    assert scale.value == pytest.approx(expected, abs=0.01)


def test_a_surrogate_that_makes_no_difference_gets_none() -> None:
    scale = ControlScale()
    assert scale.value == 0.0
    scale.merge(np.array([[0.0, 0.0, 5.0]]))
    assert scale.value == 0.0


def test_one_rollout_of_large_numbers_does_not_decide_for_all_others() -> None:
    generator = np.random.default_rng(0)
    scale = ControlScale()
    scale.merge(summary(*(1e3 * generator.normal(size=(2, 500, 3))))[None])
    for _ in range(20):
        plain = generator.normal(size=(500, 3))
        scale.merge(summary(plain, -0.9 * plain)[None])
    assert scale.value > 0.9
    scale.merge(summary(1e-2 * plain, generator.normal(size=(500, 3)))[None])  # astray once
    assert scale.value > 0.8


def test_parts_of_a_batch_count_as_the_whole() -> None:
    generator = np.random.default_rng(0)
    plain, control = generator.normal(size=(2, 50, 3))
    whole, parts = ControlScale(), ControlScale()
    whole.merge(summary(plain, control)[None])
    parts.merge(np.stack([summary(plain[:13], control[:13]), summary(plain[13:], control[13:])]))
    assert (parts.shared, parts.own) == pytest.approx((whole.shared, whole.own))


@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_is_as_far_from_a2c_as_the_scale_says(kind: type[ActorCritic]) -> None:
    agent = agent_for(kind)
    rollout = rollout_for(agent)
    full = agent.estimate(agent.batch(rollout)[0]).trained_by
    for scale in (0.0, 0.3, 1.0):
        set_scale(agent, scale)
        batch, _, _ = agent.batch(rollout)
        torch.testing.assert_close(
            agent.estimate(batch).grad, batch.a2c_gradient + scale * (full - batch.a2c_gradient), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_surrogate_that_is_left_out_learns_as_one_that_is_not(kind: type[ActorCritic]) -> None:
    out, whole = agent_for(kind), agent_for(kind, surrogate_scale="one")
    set_scale(out, 0.0)
    for agent in (out, whole):
        batch, _, _ = agent.batch(rollout_for(agent))
        agent.train_surrogate(batch, agent.estimate(batch))
    for ours, theirs in zip(out.surrogate.parameters(), whole.surrogate.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{}, {"epochs": 2, "minibatch_size": 12, "clip_range": 0.2}])
@pytest.mark.parametrize("kind", KINDS)
def test_a_useless_surrogate_is_left_out_of_later_rollouts(kind: type[ActorCritic], settings: dict[str, Any]) -> None:
    """Rewards are drawn apart from everything, so that arbitrary weights of a surrogate only add noise."""
    agent = agent_for(kind, surrogate_lr=1e-12, **settings)
    with torch.no_grad():
        agent.surrogate.head.weight.mul_(20.0)
    told = [agent.update(rollout_for(agent, seed=seed)) for seed in range(20)]
    assert float(told[-1]["surrogate/scale"]) < 0.3
    batch, _, _ = agent.batch(rollout_for(agent, seed=99))
    found, plain = agent.estimate(batch), batch.a2c_gradient
    assert variance_loss(found.trained_by, batch.weight) > 2.0 * variance_loss(plain, batch.weight)
    assert variance_loss(found.grad, batch.weight) < 1.3 * variance_loss(plain, batch.weight)


def test_a_rollout_is_met_with_the_scale_from_before_it() -> None:
    """Otherwise the estimate would be biased."""
    agent = agent_for(RELAX)
    set_scale(agent, 0.25)
    taken = []
    estimate = agent.estimate

    def watched(batch: Any) -> Any:
        taken.append(float(batch.control_scale))
        return estimate(batch)

    agent.estimate = watched  # type: ignore[method-assign]
    agent.update(rollout_for(agent))
    assert agent.control_scale is not None
    assert taken == [0.25]
    assert agent.control_scale.value != 0.25


def test_the_scale_is_part_of_a_checkpoint(tmp_path: Path) -> None:
    agent = agent_for(RELAX)
    agent.update(rollout_for(agent))
    agent.save(tmp_path / "agent.safetensors")
    loaded = RELAX.load(tmp_path / "agent.safetensors")
    assert loaded.control_scale is not None
    assert agent.control_scale is not None
    assert loaded.control_scale.state_dict() == agent.control_scale.state_dict()
