"""V as the mean of a distribution over bins: the targets, the loss, the unit, and agents that learn so."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy.integrate import quad
from torch import Tensor

from relax_rl.agents import A2C, RELAX, ActorCritic
from relax_rl.agents.compiled import identity_of
from relax_rl.agents.return_spread import Spread
from relax_rl.agents.rollouts import Rollout
from relax_rl.compute.distributed import ALONE
from relax_rl.critics import Bins, DistributionalValue, hl_gauss
from relax_rl.errors import CheckpointError
from relax_rl.networks.torsos import MLP
from tests.steps import (
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

BINS = Bins(21, 3.0)
TARGETS = (-2.31, -0.4, 0.0, 1.27, 2.95, 3.0, 7.0, -400.0)
HL: dict[str, Any] = {"critic_loss": "hl_gauss", "critic_bins": 31, "hidden": (8,), "surrogate_hidden": (8,)}


def agent_for(kind: type[ActorCritic] = A2C, space: spaces.Space[Any] = OBS, **settings: Any) -> ActorCritic:
    return kind(space, DISCRETE, seed=0, **{**HL, **settings})


def rollout(agent: ActorCritic, seed: int, scale: float = 1.0) -> Rollout:
    """One with rows that autoreset made up, and rewards of some size."""
    valid = torch.rand((6, 4), generator=torch.Generator().manual_seed(seed)) > 0.2
    made = rollout_for(agent, seed=seed, valid=valid)
    return replace(made, reward=made.reward * scale)


# Targets and loss


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_the_gaussian_integrated_over_the_bins(target: float) -> None:
    sigma, y = 0.75 * 6.0 / 21, min(max(target, -3.0), 3.0)
    edges = [-3.0 + 6.0 * k / 21 for k in range(22)]
    masses = [
        quad(lambda x: math.exp(-0.5 * ((x - y) / sigma) ** 2), low, high, epsabs=1e-14)[0]
        for low, high in pairwise(edges)
    ]
    found = hl_gauss(torch.tensor([target], dtype=torch.float64), BINS)
    np.testing.assert_allclose(found[0].numpy(), np.array(masses) / sum(masses), atol=1e-12)
    assert torch.isfinite(hl_gauss(torch.tensor([target]), BINS)).all()


def test_the_mean_of_a_target_is_the_return_inside_the_range() -> None:
    limit = 3.0 - 4 * BINS.width
    y = torch.linspace(-limit, limit, 1001, dtype=torch.float64)
    mean = hl_gauss(y, BINS) @ BINS.centres(y)
    torch.testing.assert_close(mean, y, rtol=0, atol=1e-5 * BINS.width)


def values_for(unit: float = 1.0, bins: Bins = BINS) -> DistributionalValue:
    torch.manual_seed(0)
    value = DistributionalValue(MLP(3, (4,), "tanh"), bins).double()
    value.unit.fill_(unit)
    return value


def test_the_loss_is_the_cross_entropy_of_each_row_times_its_weight() -> None:
    value = values_for(unit=5.0)
    logits = torch.randn(8, 21, dtype=torch.float64, requires_grad=True)
    return_, weight = 5.0 * torch.tensor(TARGETS, dtype=torch.float64), torch.rand(8, dtype=torch.float64)
    slope, loss = value.regress(logits, return_, weight)
    wanted = hl_gauss(torch.tensor(TARGETS, dtype=torch.float64), BINS)
    expected = weight * torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(slope, torch.autograd.grad(expected.sum(), logits)[0])
    mean = (torch.softmax(logits, -1) * BINS.centres(logits)).sum(-1)
    torch.testing.assert_close(value.from_outputs(logits), 5.0 * mean)
    clipped = (weight[-2:].sum() / weight.sum().clamp(min=1.0)).item()  # the end of the range is within
    assert value.metrics(return_, weight)["value/clipped"].item() == pytest.approx(clipped)


def test_learning_finds_the_mean_of_random_returns() -> None:
    value, obs = values_for(), torch.randn(4000, 3, dtype=torch.float64)
    shake_module(value, torch.Generator().manual_seed(1))
    return_ = torch.where(torch.rand(4000) < 0.25, 2.0, -0.4).double()
    logits = torch.zeros(1, 21, dtype=torch.float64)
    for _ in range(300):
        slope, _ = value.regress(logits.expand(4000, -1), return_, torch.ones(4000, dtype=torch.float64))
        logits = logits - 5.0 * slope.mean(0)
    assert value.from_outputs(logits).item() == pytest.approx(return_.mean().item(), abs=1e-2)
    assert value(obs).shape == (4000,)


# The unit


def test_the_spread_is_the_root_mean_square_of_raw_returns_with_old_ones_fading() -> None:
    spread, rows = Spread(), [torch.tensor([3.0, 4.0, 9.0]), torch.tensor([1.0, 1.0, 1.0])]
    assert spread.value == 1.0
    weight = torch.tensor([1.0, 1.0, 0.0])
    spread.look_at(rows[0], weight, ALONE)
    assert spread.value == pytest.approx(math.sqrt(12.5)) and spread.count == 0.0
    spread.merge(np.stack([spread.summary(), spread.summary()]))
    assert spread.value == pytest.approx(math.sqrt(12.5)) and spread.count == 4.0
    spread.look_at(rows[1], weight, ALONE)
    assert spread.value == pytest.approx(math.sqrt(12.5)), "a rollout is taken in after its update"
    spread.merge(spread.summary()[None])
    assert spread.value == pytest.approx(math.sqrt((0.999 * 50 + 2) / (0.999 * 4 + 2)))
    again = Spread()
    again.load_state_dict(spread.state_dict())
    assert again.value == spread.value


@pytest.mark.parametrize("reward", [0.0, math.nan])
def test_no_returns_have_a_spread_of_one(reward: float) -> None:
    spread = Spread()
    spread.look_at(torch.full((3,), reward), torch.ones(3), ALONE)
    assert spread.value == 1.0


@pytest.mark.parametrize("space", [OBS, spaces.Box(0, 255, (7, 7, 3), np.uint8)])
def test_an_untrained_v_is_zero(space: spaces.Space[Any]) -> None:
    agent = agent_for(space=space, normalize_reward=True)
    obs = np.stack([space.sample() for _ in range(5)])
    np.testing.assert_allclose(agent.predict_values(obs), 0.0, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"normalize_reward": True}, {"value_replay": 1, **PASSES}])
def test_rewards_of_any_size_teach_v_the_same(settings: dict[str, Any]) -> None:
    agents = [agent_for(max_grad_norm=math.inf, value_lr=0.1, **settings) for _ in range(2)]
    for agent, scale in zip(agents, (1.0, 1024.0), strict=True):
        for seed in range(3):
            found = agent.update(rollout(agent, seed, scale))
            assert found["value/clipped"] == 0.0
    obs = rollout(agents[0], 5).obs.flatten(0, 1).numpy()
    small, large = (agent.predict_values(obs) for agent in agents)
    assert np.abs(small).max() > 0.1
    np.testing.assert_allclose(1024.0 * small, large, rtol=1e-3, atol=1.0)


def test_raw_values_stay_when_the_unit_of_rewards_moves() -> None:
    agent = agent_for(normalize_reward=True)
    shake_module(agent.value, torch.Generator().manual_seed(0))
    obs = rollout(agent, 1).obs[0].numpy()
    agent.update(rollout(agent, 0))
    before, spread = agent.predict_values(obs), agent.return_spread
    assert agent.reward_scaler is not None and spread is not None
    agent.reward_scaler.moments.var = agent.reward_scaler.moments.var * 9.0
    agent._set_value_unit()
    np.testing.assert_allclose(agent.predict_values(obs), before, rtol=1e-5)
    assert agent.value.unit.item() == pytest.approx(spread.value * agent.reward_unit)


# Agents


def test_the_gradient_of_v_is_that_of_the_mean_cross_entropy_over_rollouts() -> None:
    agent = agent_for(value_replay=2, normalize_reward=True, max_grad_norm=math.inf)
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    steps, spread = watch_steps(agent), agent.return_spread
    assert spread is not None
    for number in range(4):
        made = rollout(agent, number, scale=10.0**number)
        batch = agent.batch(made)[0]
        rows.append((made.obs[:-1].flatten(0, 1), batch.return_ / agent.reward_unit, batch.weight))
        raw, weight = rows[-1][1:]
        unit = spread.value if number else math.sqrt(float((raw.square() * weight).sum() / weight.sum()))
        loss = torch.zeros(())
        for obs, return_, weight in rows[-3:] + [rows[-1]] * (3 - len(rows)):
            edges = torch.linspace(-10, 10, 32)
            y = (return_ / unit).clamp(-10, 10)
            cdf = torch.distributions.Normal(y, 0.75 * 20 / 31).cdf(edges.unsqueeze(-1)).T
            wanted = cdf.diff(dim=-1) / (cdf[:, -1:] - cdf[:, :1])
            log_p = torch.log_softmax(agent.value.head(agent.value.torso(obs)), -1)
            loss = loss - ((wanted * log_p).sum(-1) * weight).sum() * agent.config.value_coef / (3 * len(weight))
        expected = agent.learner.flat["value"].flatten(torch.autograd.grad(loss, list(agent.value.parameters())))
        agent.update(made)
        torch.testing.assert_close(steps[-1].gradients["value"], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("estimator", "settings"),
    [
        ("a2c", {"normalize_reward": True, "normalize_obs": True, "value_replay": 1, **PASSES, "minibatch_size": 10}),
        ("a2c", {"share_torso": "on", "entropy_coef": 0.01}),
    ],
)
def test_compiled_steps_are_those_of_eager_code(
    estimator: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[Any] = []
    monkeypatch.setattr(
        "relax_rl.compute.compilation._compile", lambda graph, inputs, key: traced.append(graph) or graph
    )
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    told: tuple[list[Any], list[Any]] = ([], [])
    compiled, eager = (
        trained(estimator, updates=3, compile=how, told=rows, **{**HL, **settings})
        for how, rows in zip(("on", "off"), told, strict=True)
    )
    assert compiled.learner.compiled is not None and compiled.value.unit != 1.0
    assert_alike(compiled, eager)
    constants = [node for graph in traced for node in graph.graph.nodes if node.op == "get_attr"]
    assert traced and not constants, "machine code would keep the unit of its first update"
    for ours, theirs in zip(*told, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4, nan_ok=True)


def test_values_without_graph_are_those_with_it() -> None:
    agent = agent_for(RELAX)
    shake_module(agent.value, torch.Generator().manual_seed(0))
    agent.value.unit.fill_(3.0)
    obs = torch.randn(7, 3)
    assert agent.networks.on_host("value") is not None
    torch.testing.assert_close(agent.networks.without_graph(obs, 5).value, agent.networks(obs, 5).value)


@pytest.mark.parametrize(
    "settings",
    [
        {"normalize_reward": True, "value_replay": 1},
        {"share_torso": "on", **PASSES},
        {"critic_hidden": (12,), "critic_layer_norm": "on", "surrogate_steps": 2},
    ],
)
def test_an_agent_is_gone_on_with_bit_for_bit(settings: dict[str, Any], tmp_path: Any) -> None:
    agent = agent_for(RELAX, **settings)
    shake(agent)
    agent.update(rollout(agent, 0, 50.0))
    made = rollout(agent, 1, 20.0)
    agent.save(tmp_path / "agent")
    again = ActorCritic.load(tmp_path / "agent")
    assert torch.equal(again.value.unit, agent.value.unit) and agent.value.unit != 1.0
    if agent.reward_scaler is not None:
        agent.reward_scaler.returns = np.zeros(0)  # of episodes, which begin anew where environments do
    agent.update(made), again.update(made)
    assert_same(again.state_dict()[0], agent.state_dict()[0])
    other = agent_for(RELAX, **{**settings, "critic_range": 5.0})
    with pytest.raises(CheckpointError, match="critic_range"):
        other.load_state_dict(*agent.state_dict())


@pytest.mark.parametrize("settings", [{}, {"share_torso": "on"}])
def test_v_is_learned(settings: dict[str, Any]) -> None:
    agent = agent_for(gamma=0.0, policy_lr=0.01, value_lr=0.05, max_grad_norm=math.inf, **settings)
    made = rollout_for(agent)
    made = replace(made, reward=100.0 * made.obs[:-1, :, 0])
    for _ in range(60):
        found = agent.update(made)
    assert found["value/explained_variance"] > 0.9
    error = agent.predict_values(made.obs[:-1].flatten(0, 1).numpy()) - made.reward.flatten().numpy()
    assert np.sqrt(np.mean(error**2)) < 25.0


def test_a_memory_goes_with_it() -> None:
    told: list[Any] = []
    agent = trained("relax", updates=2, told=told, memory="gru", **HL)
    assert agent.networks.recurrent and agent.value.unit != 1.0 and told[-1]["losses/value"] > 0.0


def test_code_for_other_bins_is_other_code() -> None:
    made = [agent_for(**more) for more in ({}, {"critic_range": 5.0}, {"critic_bins": 33}, {"critic_loss": "mse"})]
    assert len({identity_of(each.networks, each.estimator, each.config) for each in made}) == 4


def test_what_is_off_leaves_no_trace() -> None:
    tensors, _ = A2C(OBS, DISCRETE).state_dict()
    assert not [name for name in tensors if "spread" in name or "unit" in name]
