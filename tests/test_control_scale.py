"""How much of the surrogate enters an estimate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from relax_rl.agents import LAX, RELAX, ActorCritic, Marginal
from relax_rl.agents.batch import Batch
from relax_rl.agents.control_scale import ControlScale
from tests.steps import BOX, DISCRETE, OBS, PASSES, applied, rollout_for, shake, watch_steps

kinds = pytest.mark.parametrize("kind", [RELAX, LAX, Marginal])


def agent_for(kind: type[ActorCritic], **settings: Any) -> ActorCritic:
    settings = {"surrogate_scale": "fitted", **settings}
    agent = kind(OBS, BOX if kind is LAX else DISCRETE, seed=0, hidden=(8,), surrogate_hidden=(8,), **settings)
    shake(agent)
    return agent


def set_scale(agent: ActorCritic, value: float) -> None:
    assert agent.control_scale is not None
    agent.control_scale.shared, agent.control_scale.own = value, 1.0


def take_in(scale: ControlScale, plain: Any, control: Any) -> None:
    """A rollout of `[B, P]` gradients without surrogate, and of what one brings in."""
    scale.update(shared=-float((plain * control).sum()), own=float((control**2).sum()), plain=float((plain**2).sum()))


def with_scale(agent: ActorCritic, batch: Batch, scale: float) -> Tensor:
    return applied(agent, replace(batch, control_scale=torch.tensor(scale)))


def test_the_scale_is_that_of_least_variance() -> None:
    generator = np.random.default_rng(0)
    plain = generator.normal(size=(500, 3))
    control = -0.6 * plain + generator.normal(size=(500, 3))
    scale = ControlScale()
    take_in(scale, plain, control)
    tried = np.linspace(0, 1, 1001)
    best = tried[np.argmin([(plain + eta * control).var(0).sum() for eta in tried])]
    assert 0.2 < best < 0.8
    assert scale.value == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize(("slope", "expected"), [(0.7, 0.0), (-3.0, 0.33), (-0.5, 1.0)])
def test_the_scale_stays_between_none_and_all(slope: float, expected: float) -> None:
    plain, scale = np.random.default_rng(0).normal(size=(500, 3)), ControlScale()
    take_in(scale, plain, slope * plain)
    assert scale.value == pytest.approx(expected, abs=0.01)


def test_a_surrogate_that_makes_no_difference_gets_none() -> None:
    scale = ControlScale()
    assert scale.value == 0.0
    scale.update(shared=0.0, own=0.0, plain=5.0)
    assert scale.value == 0.0


def test_one_rollout_of_large_numbers_does_not_decide_for_all_others() -> None:
    generator, scale = np.random.default_rng(0), ControlScale()
    take_in(scale, *(1e3 * generator.normal(size=(2, 500, 3))))
    for _ in range(20):
        plain = generator.normal(size=(500, 3))
        take_in(scale, plain, -0.9 * plain)
    assert scale.value > 0.9
    take_in(scale, 1e-2 * plain, generator.normal(size=(500, 3)))  # astray once
    assert scale.value > 0.8


@pytest.mark.parametrize("settings", [{}, {**PASSES, "epochs": 2, "minibatch_size": 12}])
@kinds
def test_a_useless_surrogate_is_left_out_of_later_rollouts(kind: type[ActorCritic], settings: dict[str, Any]) -> None:
    """Rewards are drawn apart from everything, so that arbitrary weights of a surrogate only add noise."""
    agent = agent_for(kind, surrogate_lr=1e-12, **settings)
    with torch.no_grad():
        agent.surrogate.head.weight.mul_(20.0)  # type: ignore[union-attr, operator]
    told = [agent.update(rollout_for(agent, seed=seed)) for seed in range(20)]
    assert float(told[-1]["surrogate/scale"]) < 0.3
    batch = agent.batch(rollout_for(agent, seed=99))[0]
    plain, whole = (with_scale(agent, batch, scale).square().sum() for scale in (0.0, 1.0))
    assert whole > 2.0 * plain
    assert applied(agent, batch).square().sum() < 1.3 * plain


@kinds
def test_a_rollout_is_met_with_the_scale_from_before_it_and_then_taken_in(kind: type[ActorCritic]) -> None:
    """Otherwise the estimate would be biased."""
    agent = agent_for(kind)
    set_scale(agent, 0.25)
    rollout, steps = rollout_for(agent, valid=torch.arange(24).view(6, 4) % 5 > 0), watch_steps(agent)
    batch = agent.batch(rollout)[0]
    none, whole = (with_scale(agent, batch, scale) for scale in (0.0, 1.0))
    expected = ControlScale()
    expected.shared, expected.own = 0.25, 1.0
    take_in(expected, none, whole - none)
    agent.update(rollout)
    assert agent.control_scale is not None
    assert [float(step.batch.control_scale) for step in steps] == [0.25]  # type: ignore[arg-type]
    assert agent.control_scale.shared == pytest.approx(expected.shared, rel=1e-4)
    assert agent.control_scale.own == pytest.approx(expected.own, rel=1e-4)
