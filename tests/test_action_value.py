"""The surrogate as an action-value critic: what it learns, what it is between actions, and how much of its residual enters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from relax_rl.agents import LAX, RELAX, ActorCritic, Marginal
from relax_rl.agents.gradients import Objective, gradients
from relax_rl.critics import ActionSurrogate, ActionValues, surrogate_at
from relax_rl.distributions import Categorical
from relax_rl.errors import SettingsError
from tests.steps import ACTIONS, BOX, DISCRETE, OBS, rollout_for, shake

HYBRID = spaces.Tuple((BOX, spaces.MultiDiscrete([3, 2])))
CASES: dict[str, tuple[type[ActorCritic], spaces.Space[Any], dict[str, Any]]] = {
    "discrete": (RELAX, DISCRETE, {}),
    "marginal": (Marginal, DISCRETE, {}),
    "multi_discrete": (RELAX, ACTIONS["multi_discrete"], {}),
    "multi_binary": (RELAX, ACTIONS["multi_binary"], {}),
    "hybrid": (RELAX, HYBRID, {}),
    "box": (LAX, BOX, {}),
    "box, squashed": (LAX, BOX, {"squash": True}),
    "box, beta": (LAX, BOX, {"action_distribution": "beta"}),
}
CRITIC = {"surrogate_loss": "critic", "hidden": (8,), "surrogate_hidden": (8,)}


def agent_of(case: str, **settings: Any) -> ActorCritic:
    kind, space, more = CASES[case]
    agent = kind(OBS, space, seed=0, **CRITIC, **more, **settings)
    shake(agent)
    return agent


@pytest.mark.parametrize("case", CASES)
def test_it_learns_what_the_advantage_is_by_squared_error(case: str) -> None:
    agent = agent_of(case)
    batch, found = agent.batch(rollout_for(agent))
    weight = batch.weight.clone()
    weight[::4] = 0.0
    batch = replace(batch, weight=weight)
    surrogate: Any = agent.surrogate
    dist = agent.policy.distribution(found.params.detach())
    said = surrogate(found.features, dist.embed(batch.action))
    loss = ((said - batch.advantage).square() * weight).sum() / len(weight)
    expected = torch.autograd.grad(loss, list(surrogate.parameters()), allow_unused=True)
    for trains in (("surrogate",), ("policy", "value", "surrogate")):
        objective = Objective(agent.estimator, trains, surrogate_loss="critic")
        of = gradients(agent.networks, batch, objective)
        for x, y in zip(of.of["surrogate"], expected, strict=True):
            torch.testing.assert_close(x, torch.zeros_like(x) if y is None else y)
        assert float(of.metrics["losses/action_value"]) == pytest.approx(loss.item(), rel=1e-5)
        kept = weight > 0
        left = (batch.advantage - said.detach())[kept].var(correction=0) / batch.advantage[kept].var(correction=0)
        assert float(of.metrics["surrogate/explained_variance"]) == pytest.approx(1 - float(left), abs=1e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_the_policys_gradient_lies_between_the_unbiased_one_and_the_critics(case: str, weight: float) -> None:
    agent = agent_of(case)
    batch, _ = agent.batch(rollout_for(agent))
    objective = Objective(agent.estimator, ("policy", "value"), surrogate_loss="critic")

    def of_policy(w: float, **changes: Tensor) -> Tensor:
        found = gradients(agent.networks, replace(batch, **changes), replace(objective, residual_weight=w))
        return torch.cat([x.flatten() for x in found.of["policy"]])

    unbiased, alone = of_policy(1.0), of_policy(0.0)
    torch.testing.assert_close(of_policy(weight), weight * unbiased + (1 - weight) * alone, rtol=1e-4, atol=1e-6)
    # Rewards enter the critic's own gradient by the critic alone.
    torch.testing.assert_close(of_policy(0.0, advantage=batch.advantage + 3.0), alone)
    assert not torch.allclose(unbiased, alone)


def test_heads_are_exact_at_actions_and_linear_between() -> None:
    torch.manual_seed(0)
    heads = ActionValues(3, 4, (5,))
    torch.nn.init.normal_(heads.head.weight)
    features, params = torch.randn(6, 3), torch.randn(6, 4)
    dist = Categorical(params)
    values = heads.values(features)
    action = torch.arange(6) % 4
    torch.testing.assert_close(heads(features, dist.embed(action)), values[torch.arange(6), action])
    z = torch.randn(6, 4, requires_grad=True)
    closed = surrogate_at(heads, features, dist)
    value, slope = closed.value_and_slope(z)  # type: ignore[attr-defined]
    expected = (torch.softmax(z, -1) * values).sum(-1)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(closed(z), expected)
    torch.testing.assert_close(slope, torch.autograd.grad(expected.sum(), z, retain_graph=True)[0])
    embedded = torch.eye(4)[:, None].expand(-1, 6, -1)
    torch.testing.assert_close(surrogate_at(heads, features)(embedded), values.t())
    assert not heads.head.bias.any()


def test_there_is_a_head_for_each_discrete_action_and_an_input_for_all_others() -> None:
    for case in CASES:
        surrogate = agent_of(case).surrogate
        assert isinstance(surrogate, ActionValues if case in ("discrete", "marginal") else ActionSurrogate)
    assert isinstance(RELAX(OBS, DISCRETE).surrogate, ActionSurrogate)


def test_it_finds_what_actions_are_worth() -> None:
    agent = agent_of("discrete", surrogate_lr=0.05, surrogate_steps=300)
    batch, found = agent.batch(rollout_for(agent))
    worth = torch.tensor([1.0, -2.0, 0.5])
    # V has learned since the advantages were taken: what is left of the returns is what it leaves now.
    batch = replace(batch, advantage=worth[batch.action] + 7.0, old_log_prob=torch.zeros_like(batch.weight))
    batch = replace(batch, return_=found.value.detach()[: len(batch.action)] + worth[batch.action])
    agent.learner.train_surrogate(batch, 300, 1.0)
    values = agent.surrogate.values(found.features)  # type: ignore[union-attr, operator]
    told = values.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(told, worth[batch.action], atol=0.1, rtol=0)


def test_what_lowers_the_variance_is_no_critic() -> None:
    with pytest.raises(SettingsError, match=r"residual_weight is 0\.5, expected 1, or surrogate_loss 'critic'"):
        RELAX(OBS, DISCRETE, residual_weight=0.5)
