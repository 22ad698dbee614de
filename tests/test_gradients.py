"""An update as a pure function: its gradients are slopes of scalars, it changes nothing, and compiled it is the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from relax_rl.agents import A2C, LAX, RELAX, ActorCritic, Marginal, Reinforce
from relax_rl.agents.batch import Batch
from relax_rl.agents.compiled import CompiledGradients
from relax_rl.agents.gradients import Gradients, Objective, flattened, gradients
from relax_rl.compute.derivatives import pull_back
from relax_rl.critics import surrogate_at
from relax_rl.estimators import noise_behind
from tests.oracles import central_differences
from tests.steps import ACTIONS, OBS, applied, assert_same, off_policy, rollout_for, shake, whole_gradients

CASES: dict[str, tuple[type[ActorCritic], str, dict[str, Any]]] = {
    "reinforce": (Reinforce, "discrete", {}),
    "a2c": (A2C, "box", {"state_dependent_std": True}),
    "relax": (RELAX, "discrete", {"surrogate_activation": "silu"}),
    "relax, factors": (RELAX, "multi_discrete", {}),
    "relax, bits": (RELAX, "multi_binary", {"surrogate_hidden": (5, 4)}),
    "relax, normalised": (RELAX, "discrete", {"surrogate_layer_norm": True, "surrogate_activation": "silu"}),
    "lax": (LAX, "box", {}),
    "lax, squashed": (LAX, "box", {"squash": True}),
    "marginal": (Marginal, "discrete", {}),
    "marginal, bits": (Marginal, "multi_binary", {}),
    "relax, images": (RELAX, "discrete", {"cnn_features": 8}),
}
IMAGES = spaces.Box(0, 255, (1, 36, 36), np.uint8)


def agent_for(case: str, **more: Any) -> ActorCritic:
    """A lively agent."""
    kind, actions, settings = CASES[case]
    obs = IMAGES if "images" in case else OBS
    agent = kind(obs, ACTIONS[actions], seed=0, **{"hidden": (4,), "surrogate_hidden": (5,), **settings, **more})
    shake(agent)
    torch.nn.init.normal_(agent.policy.head.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    return agent


def full_batch(agent: ActorCritic, *, later: bool = False) -> Batch:
    """A batch in which every field is there that can be; the rows of an earlier policy if `later`."""
    rollout = rollout_for(agent, valid=torch.rand((6, 4), generator=torch.Generator().manual_seed(0)) > 0.2)
    batch = agent.batch(rollout)[0]
    generator = torch.Generator().manual_seed(2)
    past_return = torch.randn((2, len(batch.weight)), generator=generator)
    batch = replace(
        batch,
        advantage_unit=torch.tensor(1.3),
        entropy_coef=torch.tensor(0.3),
        control_scale=torch.tensor(0.7) if agent.surrogate is not None else None,
        past_obs=torch.stack([batch.obs.flip(0), batch.obs.roll(1, 0)]),
        past_return=past_return,
        past_weight=(past_return > -1.0).float(),
    )
    if not later:
        return batch
    dist = agent.policy.distribution(agent.policy(batch.obs).detach())
    ratio = torch.exp(0.3 * torch.randn(batch.weight.shape, generator=generator))
    old_params = dist.params + 0.3 * torch.randn(dist.params.shape, generator=generator)
    divergence: Tensor = dist.with_params(old_params).kl_divergence(dist)  # type: ignore[attr-defined]
    bounded = replace(batch, old_params=old_params, kl_bound=1.2 * divergence.median(), kl_multiplier=torch.tensor(0.8))
    return off_policy(agent, bounded, dist.log_prob(batch.action) - ratio.log())


def objective_for(agent: ActorCritic, *, later: bool = False) -> Objective:
    clip_range, form = (0.2 if later else math.inf), ("switch" if agent.name == "relax" else "penalty")
    parts = tuple(agent.networks.parts())
    return Objective(agent.estimator, parts, off_policy=later, clip_range=clip_range, kl_form=form)  # type: ignore[arg-type]


def in_double(agent: ActorCritic, batch: Batch) -> Batch:
    """The batch in float64, and so the agent from here on; finite differences need it."""
    agent.networks.double()
    doubled = {name: x.double() if x.is_floating_point() else x for name, x in batch.tensors().items()}
    return Batch(shard=batch.shard, **doubled)


def policy_objective(agent: ActorCritic, batch: Batch, objective: Objective) -> Callable[[], Tensor]:
    """A scalar whose slope in the policy is what an update applies: nothing in it is a gradient.

        mean of (A - c) log pi(a) + c(z) - c(z~), or of R log pi(a), or with sum_a pi(a) c(a), and the entropy

    z and z~ move by their noise, which stays; A - c is a constant; of another policy's actions each row counts by its
    ratio, and the divergence from it is added, or takes the place of a row beyond the bound.
    """
    policy, name, weight = agent.policy, agent.name, batch.weight / batch.shard.rows
    with torch.no_grad():
        start = policy.distribution(policy(batch.obs))
        noise, signal, ratio = batch.noise, batch.advantage, torch.ones_like(weight)
        if name == "reinforce":
            signal = batch.return_
        if objective.off_policy:
            assert batch.old_log_prob is not None
            ratio = torch.exp(start.log_prob(batch.action) - batch.old_log_prob)
            noise = noise_behind(start, batch.action, batch.conditional_noise)
            far = torch.where(signal > 0, ratio > 1 + objective.clip_range, ratio < 1 - objective.clip_range)
            assert 0 < int(far.sum()) < len(far) // 2
            signal = signal * ~far
        z = start.relax(noise)
        conditional = start.noise_given(batch.action, z) if hasattr(start, "noise_given") else None
    scale = 0.0 if batch.control_scale is None else batch.control_scale

    def control(dist: Any) -> tuple[Any, Any]:
        """c at the action taken or at the z that goes with it, and what is put back."""
        if agent.surrogate is None:
            return 0.0, 0.0
        if name == "marginal":
            c = surrogate_at(agent.surrogate, batch.obs)
            every = dist.support()
            every = every.unsqueeze(1).expand(len(every), len(weight), *every.shape[1:])
            many = dist.with_params(dist.params.expand(len(every), *dist.params.shape))
            return c(dist.embed(batch.action)), (many.log_prob(every).exp() * c(dist.embed(every))).sum(0)
        c = surrogate_at(agent.surrogate, batch.obs, dist)
        at_z = c(dist.relax(noise))
        return at_z, at_z if conditional is None else at_z - c(dist.relax_given(batch.action, conditional))

    old: Any = None if batch.old_params is None else policy.distribution(batch.old_params)
    with torch.no_grad():
        taken, _ = control(start)
        beyond = None if old is None else old.kl_divergence(start) >= batch.kl_bound
    assert beyond is None or 0 < int(beyond.sum()) < len(beyond)

    @torch.no_grad()
    def value() -> Tensor:
        dist = policy.distribution(policy(batch.obs))
        rows = (signal - scale * taken) * dist.log_prob(batch.action) + scale * control(dist)[1]
        rows = ratio * rows / batch.advantage_unit + batch.entropy_coef * dist.entropy()
        if beyond is not None:
            held = batch.kl_multiplier * old.kl_divergence(dist)
            rows = rows - held if objective.kl_form == "penalty" else torch.where(beyond, -held, rows)
        return -(rows * weight).sum()

    return value


def value_objective(agent: ActorCritic, batch: Batch, objective: Objective) -> Callable[[], Tensor]:
    """The mean over the batch and the two rollouts before it of the squared errors of V."""

    @torch.no_grad()
    def value() -> Tensor:
        total = ((agent.value(batch.obs) - batch.return_).square() * batch.weight).sum()
        for obs, return_, weight in zip(batch.past_obs, batch.past_return, batch.past_weight, strict=True):  # type: ignore[arg-type]
            total = total + ((agent.value(obs) - return_).square() * weight).sum()
        return objective.value_coef * total / (3 * batch.shard.rows)

    return value


def variance_objective(agent: ActorCritic, batch: Batch, objective: Objective) -> Callable[[], Tensor]:
    """The sum of the squared norms of the estimates with all of the surrogate, in units of those with none of it."""
    options: dict[str, Any] = {"off_policy": objective.off_policy, "clip_range": objective.clip_range}
    unused: dict[str, Any] = {"entropy_coef": None, "old_params": None, "advantage_unit": None}
    whole, none = (
        replace(batch, control_scale=torch.full_like(batch.weight[0], scale), **unused) for scale in (1.0, 0.0)
    )

    def value() -> Tensor:
        own, plain = (applied(agent, each, **options).square().sum() for each in (whole, none))
        return own / (plain + 1e-8 * batch.weight.sum())

    return value


OBJECTIVES = {"policy": policy_objective, "value": value_objective, "surrogate": variance_objective}


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("case", [case for case in CASES if "images" not in case])
def test_gradients_are_slopes_of_scalars(case: str, later: bool) -> None:
    agent = agent_for(case)
    batch = in_double(agent, full_batch(agent, later=later))
    objective = objective_for(agent, later=later)
    found = whole_gradients(agent, batch, objective)
    for name, module in agent.networks.parts().items():
        value = OBJECTIVES[name](agent, batch, objective)
        exact = torch.cat([central_differences(value, p) for p in module.parameters()])
        torch.testing.assert_close(
            found.of[name], exact, rtol=1e-4, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert exact.abs().max() > 1e-3


@pytest.mark.parametrize("max_grad_norm", [0.1, 1e3])
def test_policy_and_value_are_clipped_by_their_common_norm(max_grad_norm: float) -> None:
    agent = agent_for("relax")
    objective, batch = objective_for(agent), full_batch(agent)
    plain = flattened(gradients(agent.networks, batch, objective), agent.learner.flat)
    found = whole_gradients(agent, batch, replace(objective, max_grad_norm=max_grad_norm))
    whole, kept = (torch.cat([each.of["policy"], each.of["value"]]) for each in (plain, found))
    assert float(found.metrics["policy/grad_norm"]) == pytest.approx(float(whole.norm()))
    torch.testing.assert_close(kept, whole * min(1.0, max_grad_norm / float(whole.norm())))
    assert torch.equal(found.of["surrogate"], whole_gradients(agent, batch, objective).of["surrogate"])


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_changed(case: str, later: bool) -> None:
    agent = agent_for(case, normalize_obs=True)
    batch = full_batch(agent, later=later)
    before, rng = copy.deepcopy((agent.state_dict()[0], batch.tensors())), torch.get_rng_state()
    gradients(agent.networks, batch, objective_for(agent, later=later))
    assert_same(before[0], agent.state_dict()[0])
    assert_same(before[1], batch.tensors())
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad is None for p in agent.networks.parameters())


def numbers(found: Gradients) -> dict[str, Tensor]:
    return {f"{kind} {name}": x for kind in ("of", "sums", "metrics") for name, x in getattr(found, kind).items()}


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("case", ["relax", "lax", "marginal, bits", "relax, images"])
def test_every_field_of_a_batch_means_the_same_in_compiled_code(
    case: str, later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each field is changed in turn: compiled code, made once, follows it as eager code does."""
    monkeypatch.setattr("relax_rl.compute.compilation._compile", lambda graph, inputs, key: graph)
    agent = agent_for(case)
    batch = replace(full_batch(agent, later=later), residual_weight=torch.tensor(1.0))
    objective = objective_for(agent, later=later)
    compiled = CompiledGradients(agent.networks, agent.learner.flat)

    def check(batch: Batch) -> dict[str, Tensor]:
        found = numbers(compiled(batch, objective))
        expected = numbers(whole_gradients(agent, batch, objective))
        assert found.keys() == expected.keys()
        for key, exact in expected.items():
            torch.testing.assert_close(found[key], exact, rtol=1e-4, atol=1e-6, msg=lambda t, k=key: f"{k}: {t}")
        return found

    before = copy.deepcopy(agent.state_dict()[0])
    first = check(batch)
    assert_same(before, agent.state_dict()[0])
    bounds = {"old_params", "kl_bound", "kl_multiplier"}
    idle = {"old_log_prob", "conditional_noise", *bounds} if not later else {"noise"}
    elsewhere = {
        "mask",
        "group",
        "past_action",
        "past_worth",
        "past_advantage",
    }  # see test_masked_agents, test_critics_replay
    for name in (field.name for field in fields(Batch) if field.name not in ("shard", "memory")):
        x = getattr(batch, name)
        if x is None:
            assert name in idle | elsewhere or (case == "lax" and name == "conditional_noise")
            continue
        found = check(replace(batch, **{name: x.flip(0) if name == "action" or not x.is_floating_point() else 0.6 * x}))
        same = all(torch.allclose(found[key], y, rtol=1e-3) for key, y in first.items())
        # Marginal sums over actions, whatever noise has led to the one that was taken.
        assert same == (name in idle or (case.startswith("marginal") and "noise" in name)), name
    for each in agent.learner.flat.values():  # parameters are read where they stand
        each.data.mul_(1.1)
    check(batch)


class Hidden(nn.Module):
    """A surrogate of somebody else's: a function of features and relaxed actions, with no slope of its own."""

    def __init__(self, surrogate: nn.Module) -> None:
        super().__init__()
        self.surrogate = surrogate

    def forward(self, features: Tensor, relaxed_action: Tensor) -> Tensor:
        value: Tensor = self.surrogate(features, relaxed_action)
        return value


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("case", [name for name, (kind, _, _) in CASES.items() if kind.estimator.uses_surrogate])
def test_any_module_serves_as_a_surrogate_and_gives_the_numbers_of_the_closed_form(case: str, later: bool) -> None:
    agent = agent_for(case)
    batch = full_batch(agent, later=later)
    objective = objective_for(agent, later=later)
    general = copy.copy(agent.networks)
    general._modules = {**general._modules, "surrogate": Hidden(agent.surrogate)}  # type: ignore[arg-type]
    assert not hasattr(general.surrogate, "at") and hasattr(agent.surrogate, "at")
    found, exact = (gradients(networks, batch, objective) for networks in (agent.networks, general))
    for name, each in exact.of.items():
        torch.testing.assert_close(
            found.of[name], each, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    told = {name: x for name, x in found.metrics.items() if name != "surrogate/gain"}
    for ours, theirs in ((found.sums, exact.sums), (told, exact.metrics)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_gradients_known_at_several_outputs_are_pulled_back() -> None:
    x, unused = torch.randn(3, requires_grad=True), torch.randn(2, requires_grad=True)
    outputs = [x.square(), x.sum().exp()]
    given = [torch.randn(3), torch.randn(())]
    expected = torch.autograd.grad(outputs, x, given, retain_graph=True)[0]
    found, nothing = pull_back(outputs, given, [x, unused])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(nothing, torch.zeros(2))
    with pytest.raises(ValueError, match=r"the gradient has shape \[1\], the output \[3\]"):
        pull_back([x.square()], [torch.ones(1)], [x])


@pytest.mark.parametrize("case", ["relax", "relax, images"])
def test_parameters_are_found_as_they_stand(case: str) -> None:
    networks = agent_for(case).networks
    for name, part in networks.parts().items():
        assert [id(x) for x in networks.parameters_of(name)] == [id(x) for x in part.parameters()]
    weight = networks.policy.head.weight
    other = torch.zeros_like(weight)
    named = next(name for name, x in networks.named_parameters() if x is weight)
    seen = torch.func.functional_call(_Seen(networks), {f"networks.{named}": other}, ())
    assert any(x is other for x in seen)


class _Seen(nn.Module):
    def __init__(self, networks: nn.Module) -> None:
        super().__init__()
        self.networks = networks

    def forward(self) -> list[Tensor]:
        return list(self.networks.parameters_of("policy"))
