"""The variance of the applied gradient, against the gradients that updates apply."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from relax_rl.agents import A2C, LAX, RELAX, ActorCritic, Marginal, Reinforce
from relax_rl.critics import OverBins
from relax_rl.envs import VectorEnvs, make_envs
from relax_rl.errors import SettingsError
from relax_rl.variance.contenders import STATE_PART, contenders, experience_of, fresh_surrogate
from relax_rl.variance.fitting import MINIBATCH, Fit
from relax_rl.variance.gradient import applied_gradients, applied_variances, policy_gradient
from tests.steps import shake

SETTINGS = {"hidden": (8,), "surrogate_hidden": (8,), "num_steps": 6, "max_grad_norm": math.inf}


def setup(kind: type[ActorCritic], env: str = "CartPole-v1", **settings) -> tuple[ActorCritic, VectorEnvs]:
    envs = make_envs(env, num_envs=4, seed=0)
    agent = kind(envs.single_observation_space, envs.single_action_space, seed=0, **{**SETTINGS, **settings})
    return agent, envs


def names(agent: ActorCritic, *, fit_batches: int) -> list[str]:
    return [entrant.name for entrant in contenders(agent, fit_batches=fit_batches)]


def test_the_estimators_that_fit() -> None:
    def with_state_parts(*kinds: str) -> list[str]:
        return ["reinforce", "a2c", *(name for kind in kinds for name in (kind, f"{kind}, {STATE_PART}"))]

    relax, _ = setup(RELAX)
    assert names(relax, fit_batches=2) == with_state_parts("relax", "relax, fitted", "marginal, fitted")
    assert names(relax, fit_batches=0) == with_state_parts("relax")
    lax, _ = setup(LAX, "Pendulum-v1")
    assert names(lax, fit_batches=2) == with_state_parts("lax", "lax, fitted")
    plain, _ = setup(Reinforce)
    assert names(plain, fit_batches=2) == with_state_parts("relax, fitted", "marginal, fitted")
    many = RELAX(spaces.Box(-1, 1, (3,), np.float32), spaces.MultiDiscrete([7] * 6), **SETTINGS)
    assert names(many, fit_batches=2) == with_state_parts("relax", "relax, fitted")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (A2C, {}),
        (RELAX, {}),
        (RELAX, {"surrogate_scale": "fitted"}),
        (RELAX, {"surrogate_loss": "critic", "residual_weight": 0.3}),
        (Reinforce, {}),
    ],
)
def test_the_gradient_measured_is_the_one_applied(kind: type[ActorCritic], settings: dict[str, Any]) -> None:
    agent, envs = setup(kind, **settings)
    shake(agent)
    if agent.control_scale is not None:
        agent.control_scale.update(shared=0.4, own=1.0, plain=1.0)
    rollout = agent.collect(agent.collector(envs))
    batch, outputs = agent.batch(rollout)
    (entrant,) = (each for each in contenders(agent, fit_batches=0) if each.name == agent.name)
    estimate = entrant.estimate(*experience_of(agent, batch, outputs))
    measured = policy_gradient(estimate, batch.weight, outputs.params, list(agent.policy.parameters()))
    agent.update(rollout)
    assert float(measured.norm()) > 0
    torch.testing.assert_close(agent.learner.optimizers["policy"].mean, -0.1 * measured)  # Adam's first average


def test_nothing_is_learned_and_everything_repeats_itself() -> None:
    results = []
    for _ in range(2):
        agent, envs = setup(RELAX)
        before = {name: tensor.clone() for name, tensor in agent.state_dict()[0].items()}
        entrants = contenders(agent, fit_batches=2)
        results.append(applied_gradients(agent, envs, entrants, num_batches=3, fit_batches=2))
        for name, tensor in agent.state_dict()[0].items():
            assert torch.equal(before[name], tensor) or name == "generator", name
        assert agent.steps == agent.updates == 0
    for name, found in results[0].items():
        assert found.shape == (3, sum(x.numel() for x in agent.policy.parameters()))
        assert torch.equal(found, results[1][name])


@pytest.mark.parametrize("kind", [RELAX, Marginal, LAX])
def test_the_state_part_is_a_surrogate_that_does_not_know_the_action(kind: type[ActorCritic]) -> None:
    agent, envs = setup(kind, "Pendulum-v1" if kind is LAX else "CartPole-v1")
    shake(agent)
    experience = experience_of(agent, *agent.batch(agent.collect(agent.collector(envs))))

    def of_both() -> list[torch.Tensor]:
        return [entrant.estimate(*experience).detach() for entrant in contenders(agent, fit_batches=0)[2:]]

    full, state = of_both()
    assert not torch.allclose(full, state, atol=1e-3)
    assert torch.equal(state, of_both()[1])
    with torch.no_grad():
        agent.surrogate.layers.layers[0].weight[:, -sum(agent.actions.sizes) :] = 0.0
    full, state = of_both()
    torch.testing.assert_close(state, full, atol=1e-5, rtol=1e-5)


def test_a_fresh_surrogate_is_that_of_a_fresh_agent() -> None:
    agent, _ = setup(A2C)
    expected = RELAX(agent.observation_space, agent.action_space, seed=4, config=agent.config).surrogate.state_dict()
    found = fresh_surrogate(agent, 4).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(x, expected[name]) for name, x in found.items())


def test_variances_are_of_the_draws_and_relative_to_a2c() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(500, 4, generator=generator)
    found = applied_variances({"a2c": reference, "half": reference * 0.5**0.5 + 3.0})
    assert found["a2c"].ratio.value == pytest.approx(1.0) and found["a2c"].ratio.low == pytest.approx(1.0)
    assert found["a2c"].variance.value == pytest.approx(float(reference.var(0).sum()), rel=1e-5)
    assert found["half"].ratio.value == pytest.approx(0.5, rel=1e-5)
    assert found["half"].ratio.high - found["half"].ratio.low < 1e-5


def test_a_fresh_surrogate_is_a2c_and_a_fitted_one_lowers_the_variance() -> None:
    agent, envs = setup(RELAX, surrogate_hidden=(32,), num_steps=32)
    # Without a value function there is much for c^(s, a) to take away.
    draws = applied_gradients(agent, envs, contenders(agent, fit_batches=60), num_batches=60, fit_batches=60)
    assert torch.allclose(draws["relax"], draws["a2c"], atol=1e-6)
    found = applied_variances(draws)
    for name in ("relax, fitted", "marginal, fitted"):
        assert found[name].ratio.high < 0.9, (name, found[name].ratio)
    error = (draws["relax, fitted"] - draws["a2c"]).mean(0) / (
        (draws["relax, fitted"] - draws["a2c"]).std(0) / 60**0.5
    ).clamp(min=1e-12)
    assert float(error.abs().max()) < 5


def test_a_critic_over_bins_is_fitted_to_what_is_measured() -> None:
    """q - V is the control, in the agent's unit of returns, in the fit as in the estimate."""
    how: dict[str, Any] = {
        "surrogate_loss": "critic",
        "critic_loss": "hl_gauss",
        "surrogate_hidden": (32,),
        "num_steps": 32,
    }
    agent, envs = setup(RELAX, **how, normalize_reward=True)
    agent.learn(envs, 1_280)
    assert isinstance(agent.value, OverBins) and float(agent.value.unit) != 1.0
    fresh: Any = fresh_surrogate(agent, 1)
    assert torch.equal(fresh.unit, agent.value.unit)
    draws = applied_gradients(agent, envs, contenders(agent, fit_batches=60), num_batches=40, fit_batches=60)
    found = applied_variances(draws)
    assert found["relax, fitted"].ratio.value < 1.05 * found["relax"].ratio.value


def test_a_critic_is_measured_at_other_weights_of_its_residual() -> None:
    agent, envs = setup(RELAX, surrogate_loss="critic", residual_weight=0.5)
    shake(agent)
    entrants = contenders(agent, fit_batches=0)
    weights = {each.name: each.weight for each in entrants}
    expected = {
        "reinforce": 1.0,
        "a2c": 1.0,
        "relax": 0.5,
        "relax, w = 0": 0.0,
        "relax, w = 0.3": 0.3,
        "relax, w = 1": 1.0,
        f"relax, {STATE_PART}": 1.0,
    }
    assert list(weights) == list(expected) and weights == pytest.approx(expected)
    draws = applied_gradients(agent, envs, entrants, num_batches=8, fit_batches=0)
    whole, nothing = draws["relax, w = 1"], draws["relax, w = 0"]
    torch.testing.assert_close(draws["relax, w = 0.3"], torch.lerp(nothing, whole, 0.3), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(draws["relax"], torch.lerp(nothing, whole, 0.5), atol=1e-6, rtol=1e-4)
    assert not torch.allclose(whole, nothing, atol=1e-3)
    biased = [name for name, weight in weights.items() if weight != 1.0]
    found = applied_variances(draws, biased=biased)
    assert {name for name, it in found.items() if it.squared_bias is not None} == set(biased)
    # The slope by which each enters the parts of the variance.
    x, dist = experience_of(agent, *agent.batch(agent.collect(agent.collector(envs))))
    score = entrants[1].estimate(replace(x, advantage=torch.ones_like(x.advantage)), dist)
    for each in entrants[1:]:
        here, there = (each.estimate(replace(x, advantage=x.advantage + shift), dist) for shift in (0.0, 1.0))
        torch.testing.assert_close(there - here, each.weight * score, atol=1e-5, rtol=1e-4)


def test_what_would_not_fit_into_memory_is_refused() -> None:
    agent, envs = setup(A2C)
    with pytest.raises(SettingsError, match=r"\d+ gradients of this policy by 2 estimators take .* use at most \d+"):
        applied_gradients(agent, envs, contenders(agent, fit_batches=0), num_batches=10**8, fit_batches=0)


def steps_of_a_fit(rows: int, rollouts: int, seen: int) -> list[tuple[int, float, float]]:
    """Steps, move of the weight and oldest row of each of `seen` rollouts, whose rows are their numbers."""
    net, sizes, found = torch.nn.Linear(1, 1, bias=False), [], []

    def loss(x: torch.Tensor) -> torch.Tensor:
        sizes.append(x)
        return net(x).square().mean()

    fit = Fit(net, loss, rollouts=rollouts, generator=torch.Generator().manual_seed(0))
    for number in range(seen):
        before = net.weight.item()
        sizes.clear()
        fit(torch.full((rows, 1), 1.0 + number))
        assert all(len(x) == MINIBATCH for x in sizes)
        found.append((len(sizes), abs(net.weight.item() - before), min(float(x.min()) for x in sizes)))
    return found


def test_the_fit_takes_as_many_steps_however_many_rollouts_there_are() -> None:
    rollouts = [(2_048, 1), (2_048, 300), (2_048, 2_500), (2_048, 10**6), (40, 10)]
    assert [steps_of_a_fit(*each, seen=1)[0][0] for each in rollouts] == [160, 34, 4, 1, 4]


def test_the_fit_comes_to_rest_and_learns_from_the_latest_rows() -> None:
    found = steps_of_a_fit(rows=4_000, rollouts=12, seen=13)
    moves = [move for _, move, _ in found]
    assert moves[0] > moves[6] > 0.0 and moves[-1] == 0.0
    assert [oldest for _, _, oldest in found] == [1.0] * 5 + [float(k) for k in range(2, 10)]
