"""q(s, a) as the mean of a distribution over bins: what it learns, its mean and slope, and what estimates make of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from relax_rl.agents import RELAX, ActorCritic
from relax_rl.agents.gradients import Objective, gradients
from relax_rl.critics import (
    Bins,
    DistributionalActionValue,
    DistributionalActionValues,
    hl_gauss,
    relative_to,
    surrogate_at,
)
from relax_rl.distributions import Categorical, DiagGaussian
from relax_rl.estimators import lax
from tests.steps import DISCRETE, OBS, PASSES, applied, assert_alike, assert_same, rollout_for, shake, trained
from tests.test_action_value import CASES, CRITIC

HL: dict[str, Any] = {**CRITIC, "critic_loss": "hl_gauss", "critic_bins": 21, "critic_range": 3.0}
BINS = Bins(21, 3.0)
FEW = ("discrete", "marginal")


def agent_of(case: str, **settings: Any) -> ActorCritic:
    kind, space, more = CASES[case]
    agent = kind(OBS, space, seed=0, **HL, **more, **settings)
    shake(agent)
    for critic in (agent.value, agent.surrogate):
        critic.unit.fill_(0.8)  # type: ignore[union-attr, operator]
    return agent


def written_out(agent: ActorCritic, features: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
    """`[B, 21]` log-probabilities of the bins at some actions, and `[B]` q."""
    critic: Any = agent.surrogate
    few = isinstance(critic, DistributionalActionValues)
    out = critic.head(critic.layers(features if few else torch.cat([features, embedded], -1)))
    if few:
        out = out.view(len(out), -1, 21)[torch.arange(len(out)), embedded.argmax(-1)]
    log_p = out - out.logsumexp(-1, keepdim=True)
    centres = torch.tensor([-3.0 + 6.0 / 21 * (k + 0.5) for k in range(21)])
    return log_p, 0.8 * (log_p.exp() * centres).sum(-1)


@pytest.mark.parametrize("case", CASES)
def test_it_learns_the_return_by_the_cross_entropy_of_the_action_taken(case: str) -> None:
    agent = agent_of(case)
    batch, found = agent.batch(rollout_for(agent))
    weight = batch.weight.clone()
    weight[::4] = 0.0
    batch = replace(batch, weight=weight, return_=2.0 * batch.return_)
    assert (batch.return_.abs() > 2.4).any()
    dist: Any = agent.policy.distribution(found.params.detach())
    log_p, q = written_out(agent, found.features, dist.embed(batch.action))
    loss = -((hl_gauss(batch.return_ / 0.8, BINS) * log_p).sum(-1) * weight).sum() / len(weight)
    surrogate: Any = agent.surrogate
    expected = torch.autograd.grad(loss, list(surrogate.parameters()))
    for trains in (("surrogate",), ("policy", "value", "surrogate")):
        of = gradients(agent.networks, batch, Objective(agent.estimator, trains, surrogate_loss="critic"))
        for x, y in zip(of.of["surrogate"], expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)
        assert float(of.metrics["losses/action_value"]) == pytest.approx(loss.item(), rel=1e-5)
        clipped = ((batch.return_.abs() > 2.4) * weight).sum() / weight.sum()
        assert float(of.metrics["surrogate/clipped"]) == pytest.approx(clipped.item())
        kept = weight > 0
        left = (batch.return_ - q.detach())[kept].var(correction=0) / batch.advantage[kept].var(correction=0)
        assert float(of.metrics["surrogate/explained_variance"]) == pytest.approx(1 - float(left), abs=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_the_residual_is_the_return_less_q(case: str) -> None:
    """V enters estimates by the return alone: another baseline beside the same returns changes nothing."""
    agent = agent_of(case)
    batch, found = agent.batch(rollout_for(agent))
    other = replace(batch, advantage=batch.advantage + torch.linspace(-2, 2, len(batch.weight)))
    for objective in ({}, {"residual_weight": 0.4}, {"off_policy": True}):
        how = batch, other
        if "off_policy" in objective:
            noise = None if agent.policy.kind in ("gaussian", "beta") else batch.noise
            log_prob = agent.policy.distribution(found.params.detach()).log_prob(batch.action)
            how = tuple(replace(x, old_log_prob=log_prob, conditional_noise=noise) for x in how)  # type: ignore[assignment]
        at = [applied(agent, x, found.params.detach(), surrogate_loss="critic", **objective) for x in how]
        torch.testing.assert_close(at[0], at[1], rtol=1e-4, atol=1e-5)
        more = replace(how[0], return_=how[0].return_ + 1)
        assert not torch.allclose(
            at[0], applied(agent, more, found.params.detach(), surrogate_loss="critic", **objective)
        )


@pytest.mark.parametrize("masked", [False, True])
def test_without_the_residual_it_is_the_gradient_of_expected_q_by_enumeration(masked: bool) -> None:
    agent = agent_of("marginal")
    batch, found = agent.batch(rollout_for(agent))
    if masked:
        mask = torch.ones(len(batch.weight), 3, dtype=torch.bool)
        mask[::2, 0], mask[1::2, 2] = False, False
        mask.scatter_(1, batch.action.unsqueeze(-1), True)
        batch = replace(batch, mask=mask)
    params = found.params.detach().requires_grad_()
    q = torch.stack([written_out(agent, found.features, torch.eye(3)[[a] * len(params)])[1] for a in range(3)], -1)
    logits = params if batch.mask is None else params.masked_fill(~batch.mask, -torch.inf)
    expected = torch.autograd.grad((logits.softmax(-1) * q.detach()).sum(), params)[0]
    at = applied(agent, batch, params.detach(), surrogate_loss="critic", residual_weight=0.0)
    torch.testing.assert_close(at, expected, rtol=1e-4, atol=1e-6)


def test_the_slope_in_the_action_is_that_of_the_mean_of_the_bins() -> None:
    torch.manual_seed(0)
    critic = DistributionalActionValue(3, 2, (5,), bins=BINS).double()
    torch.nn.init.normal_(critic.head.weight)
    critic.unit.fill_(0.8)
    features, action = torch.randn(6, 3).double(), torch.randn(6, 2).double().requires_grad_()
    p = critic.regressed(features, action).softmax(-1)
    centres = BINS.centres(p)
    value = critic(features, action)
    torch.testing.assert_close(value, 0.8 * p @ centres)
    # d sum_k p_k c_k = sum_k p_k (c_k - mean) dlogit_k, with the logits' slopes one by one
    slopes = torch.stack(
        [torch.autograd.grad(critic.regressed(features, action)[:, k].sum(), action)[0] for k in range(21)], 1
    )
    expected = 0.8 * ((p * (centres - (p @ centres).unsqueeze(-1))).unsqueeze(-1) * slopes).sum(1)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), action)[0], expected)
    # LAX's own part is that slope, through a = mu + sigma noise.
    dist = DiagGaussian(torch.randn(6, 4).double())
    noise = torch.randn(6, 2).double()
    control = surrogate_at(relative_to(critic, torch.ones(6).double()), features)
    found = lax(torch.zeros(6).double(), dist, control, noise=noise, residual_weight=0.0).grad
    leaf = dist.params.clone().requires_grad_()
    at = critic(features, leaf[:, :2] + leaf[:, 2:].exp() * noise)
    torch.testing.assert_close(found, torch.autograd.grad(at.sum(), leaf)[0])


def test_heads_are_exact_at_actions_and_linear_between() -> None:
    torch.manual_seed(0)
    heads = DistributionalActionValues(3, 4, (5,), bins=BINS)
    torch.nn.init.normal_(heads.head.weight)
    features, params = torch.randn(6, 3), torch.randn(6, 4)
    dist, values, v = Categorical(params), heads.values(features), torch.randn(6)
    action = torch.arange(6) % 4
    chosen = values[torch.arange(6), action]
    torch.testing.assert_close(heads(features, dist.embed(action)), chosen)
    torch.testing.assert_close(heads.from_outputs(heads.regressed(features, dist.embed(action))), chosen)
    z = torch.randn(6, 4, requires_grad=True)
    value, slope = surrogate_at(relative_to(heads, v), features, dist).value_and_slope(z)  # type: ignore[attr-defined]
    expected = (torch.softmax(z, -1) * values).sum(-1)
    torch.testing.assert_close(value, expected - v)
    torch.testing.assert_close(slope, torch.autograd.grad(expected.sum(), z)[0])


def test_there_are_heads_for_discrete_actions_and_an_input_for_all_others() -> None:
    for case in CASES:
        agent = agent_of(case)
        kind = DistributionalActionValues if case in FEW else DistributionalActionValue
        assert type(agent.surrogate) is kind and agent.value.bins == agent.surrogate.bins == BINS
        fresh = CASES[case][0](OBS, CASES[case][1], **HL).surrogate
        said = fresh(torch.randn(5, 3), torch.randn(5, sum(agent.actions.sizes)))  # type: ignore[misc]
        torch.testing.assert_close(said, torch.zeros(5), rtol=0, atol=1e-5)
    plain = RELAX(OBS, DISCRETE, critic_loss="hl_gauss").surrogate
    assert not isinstance(plain, DistributionalActionValues) and relative_to(plain, torch.ones(3)) is plain


def test_it_finds_what_actions_are_worth() -> None:
    agent = agent_of("discrete", surrogate_lr=0.05, surrogate_steps=300)
    batch, found = agent.batch(rollout_for(agent))
    worth = torch.tensor([1.0, -1.5, 0.5])
    batch = replace(batch, return_=worth[batch.action], old_log_prob=torch.zeros_like(batch.weight))
    agent.learner.train_surrogate(batch, 300, 1.0)
    values = agent.surrogate.values(found.features)  # type: ignore[union-attr, operator]
    told = values.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(told, worth[batch.action], atol=0.1, rtol=0)


def test_compiled_steps_are_those_of_eager_code(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[Any] = []
    monkeypatch.setattr(
        "relax_rl.compute.compilation._compile", lambda graph, inputs, key: traced.append(graph) or graph
    )
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    told: tuple[list[Any], list[Any]] = ([], [])
    compiled, eager = (
        trained("relax", updates=3, compile=how, told=rows, normalize_reward=True, **HL)
        for how, rows in zip(("on", "off"), told, strict=True)
    )
    assert compiled.learner.compiled is not None and compiled.surrogate.unit == compiled.value.unit != 1.0  # type: ignore[union-attr]
    assert_alike(compiled, eager)
    constants = [node for graph in traced for node in graph.graph.nodes if node.op == "get_attr"]
    assert traced and not constants, "machine code would keep the unit of its first update"
    for ours, theirs in zip(*told, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize(
    ("case", "settings"),
    [
        ("discrete", {"normalize_reward": True, "residual_weight": "adaptive"}),
        ("box", {**PASSES, "residual_weight": 0.5}),
        ("multi_discrete", {"share_torso": "on", "surrogate_steps": 2}),
    ],
)
def test_an_agent_is_gone_on_with_bit_for_bit(case: str, settings: dict[str, Any], tmp_path: Any) -> None:
    agent = agent_of(case, **settings)
    for seed in range(2):
        agent.update(rollout_for(agent, seed=seed))
    made = rollout_for(agent, seed=2)
    agent.save(tmp_path / "agent")
    again = ActorCritic.load(tmp_path / "agent")
    assert torch.equal(again.surrogate.unit, agent.value.unit) and agent.value.unit != 1.0  # type: ignore[union-attr, arg-type]
    if agent.reward_scaler is not None:
        agent.reward_scaler.returns = again.reward_scaler.returns  # type: ignore[union-attr]
    agent.update(made), again.update(made)
    assert_same(again.state_dict()[0], agent.state_dict()[0])
