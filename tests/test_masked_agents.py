"""Agents under masks: what is not allowed is never chosen, and has no part in any gradient; what is left is learned as exactly."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor

from relax_rl import make_envs
from relax_rl.agents import A2C, AGENTS, RELAX, ActorCritic
from relax_rl.agents.acting import host_sampler
from relax_rl.agents.batch import Batch
from relax_rl.agents.compiled import CompiledGradients
from relax_rl.agents.gradients import Objective
from relax_rl.agents.shards import Shard
from relax_rl.critics import surrogate_at
from relax_rl.envs import VectorEnvs
from relax_rl.errors import SettingsError
from relax_rl.runs.evaluation import evaluate
from relax_rl.variance.contenders import contenders
from relax_rl.variance.gradient import applied_gradients
from tests.fakes import GoldenEnv, vector_of
from tests.masked import SPACES, MaskedEnv, allowed
from tests.oracles import assert_unbiased, collect
from tests.steps import OBS, PASSES, applied, assert_alike, off_policy, shake, watch_steps, whole_gradients

SMALL: dict[str, Any] = {"hidden": (8,), "surrogate_hidden": (8,), "num_steps": 6, "compile": "off"}
DISCRETE = ("relax", "marginal", "a2c", "reinforce")
KINDS = pytest.mark.parametrize("kind", SPACES)
ESTIMATORS = pytest.mark.parametrize("estimator", DISCRETE)


def masked_envs(kind: str, mode: AutoresetMode = AutoresetMode.NEXT_STEP, n: int = 3) -> VectorEnvs:
    return VectorEnvs(vector_of([lambda i=i: MaskedEnv(i, kind) for i in range(n)], mode))


def learned(estimator: str, kind: str, steps: int = 120, **settings: Any) -> ActorCritic:
    """A small agent after some updates; its environments refuse what they do not allow."""
    with masked_envs(kind, settings.pop("mode", AutoresetMode.NEXT_STEP)) as envs:
        made = envs.single_observation_space, envs.single_action_space
        agent = AGENTS[estimator](*made, **{**SMALL, **settings})
        shake(agent)
        return agent.learn(envs, steps)


@pytest.mark.parametrize(
    ("estimator", "settings"),
    [
        ("relax", {"surrogate_steps": 3, "surrogate_scale": "fitted"}),
        ("relax", {**PASSES, "entropy_coef": 0.01, "normalize_obs": True}),
        ("marginal", {"value_replay": 1}),
        ("relax", {**PASSES, "kl_bound": 0.01, "entropy_target": 0.7}),
        ("a2c", {**PASSES, "mode": AutoresetMode.SAME_STEP}),
        ("reinforce", {"entropy_coef": 0.1, "mode": AutoresetMode.DISABLED}),
    ],
)
@KINDS
def test_only_what_is_allowed_is_ever_chosen(estimator: str, settings: dict[str, Any], kind: str) -> None:
    agent = learned(estimator, kind, policy_lr=0.3, **settings)
    assert all(torch.isfinite(x).all() for x in agent.state_dict()[0].values())
    with masked_envs(kind) as envs:
        for deterministic in (True, False):
            assert evaluate(agent, envs, episodes=6, seed=0, deterministic=deterministic) is not None
        envs.reset()
        rollout = agent.collect(agent.collector(envs))
        assert rollout.mask is not None and rollout.mask.shape[:2] == (6, 3) and not rollout.mask.all()
        batch, acted = agent.batch(rollout)
        probs = agent.policy.distribution(acted.params, batch.mask).mean  # type: ignore[attr-defined]
        assert batch.mask is not None
        if kind == "multi_binary":
            assert torch.equal(batch.mask.unflatten(-1, (-1, 2))[..., 1], probs > 0)
        else:
            assert torch.equal(batch.mask, probs > 0)


def test_where_nothing_is_masked_nothing_is_carried() -> None:
    with VectorEnvs(vector_of([GoldenEnv], AutoresetMode.NEXT_STEP)) as envs:
        agent = A2C(envs.single_observation_space, envs.single_action_space, **SMALL)
        rollout = agent.collect(agent.collector(envs))
        assert rollout.mask is None and "mask" not in agent.batch(rollout)[0].tensors()


class SeenEnv(MaskedEnv):
    """A masked environment that shows an image of its place."""

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self.observation_space = spaces.Box(0, 255, (1, 36, 36), np.uint8)

    def see(self) -> np.ndarray:
        return np.full((1, 36, 36), int(self.place @ [1, 20, 50]) % 256, np.uint8)


@pytest.mark.parametrize("settings", [{}, PASSES])
def test_images_are_acted_on_under_masks(settings: dict[str, Any]) -> None:
    with VectorEnvs(vector_of([lambda i=i: SeenEnv(i) for i in range(2)], AutoresetMode.NEXT_STEP)) as envs:
        agent = RELAX(envs.single_observation_space, envs.single_action_space, cnn_features=8, **{**SMALL, **settings})
        assert agent.learn(envs, 30).updates >= 3


# Gradients


def agent_for(estimator: str, kind: str) -> ActorCritic:
    agent = AGENTS[estimator](OBS, SPACES[kind], **SMALL)
    shake(agent)
    return agent


MASKS: dict[str, list[int]] = {
    "discrete": [1, 0, 1, 1, 0],
    "multi_discrete": [1, 0, 1, 0, 1, 1, 0],
    "multi_binary": [1, 1, 1, 0, 0, 1],
}
PARAMS: dict[str, list[float]] = {
    "discrete": [0.4, 0.9, -0.3, 0.2, -1.0],
    "multi_discrete": [0.4, 0.9, -0.3, 0.2, -1.0, 0.5, 0.1],
    "multi_binary": [0.4, 0.9, -0.3],
}


def masked_params(kind: str, mask: Tensor) -> Tensor:
    """`[P]` which parameters nothing depends on."""
    return ~mask if kind != "multi_binary" else ~mask.unflatten(-1, (-1, 2)).all(-1)


def batch_of(agent: ActorCritic, kind: str, params: Tensor, mask: Tensor, **given: Any) -> Batch:
    """Rows in one state, with the policy's own actions, and an advantage that depends on them."""
    rows = len(params)
    noise = agent.sample_noise(rows)
    dist = agent.policy.distribution(params, mask)
    action = given.get("action", dist.threshold(dist.relax(noise)))
    advantage = f(dist.embed(action))
    return Batch(
        obs=torch.full((rows, 3), 0.3),
        action=action,
        noise=noise,
        advantage=advantage,
        return_=advantage,
        weight=torch.ones(rows),
        shard=Shard(rows),
        mask=mask,
    )


def f(embedded: Tensor) -> Tensor:
    """A function of actions, `[*, A]`."""
    x = embedded * torch.linspace(-1.0, 2.0, embedded.shape[-1]).to(embedded.dtype)
    return x.sum(-1) + 0.7 * x.sum(-1).square() - 0.3


def exact(kind: str, entropy_coef: float = 0.0) -> Tensor:
    """`[P]` the gradient of E[f(a)] + entropy over what is allowed, by torch's own softmax over that alone, in float64."""
    params = torch.tensor(PARAMS[kind], dtype=torch.float64, requires_grad=True)
    mask, space = MASKS[kind], SPACES[kind]
    if kind == "multi_binary":
        factors = [torch.stack([torch.zeros(()).double(), x]) for x in params]
    else:
        factors = list(params.split([5] if kind == "discrete" else [3, 4]))
    masks = np.split(np.array(mask, bool), np.cumsum([len(x) for x in factors])[:-1])
    total = torch.zeros((), dtype=torch.float64)
    left = [[int(k) for k in np.flatnonzero(m)] for m in masks]
    log_probs = [x[ks].log_softmax(0) for x, ks in zip(factors, left, strict=True)]
    for picks in itertools.product(*(range(len(ks)) for ks in left)):
        log_prob = torch.stack([x[i] for x, i in zip(log_probs, picks, strict=True)]).sum()
        outcome = torch.tensor([ks[i] for ks, i in zip(left, picks, strict=True)])
        if kind == "multi_binary":
            embedded = outcome.double()
        else:
            embedded = torch.cat([torch.eye(len(x))[i] for x, i in zip(factors, outcome, strict=True)]).double()
        assert allowed(space, np.array(mask, bool), (outcome[0] - 1 if kind == "discrete" else outcome).numpy())
        total = total + log_prob.exp() * (f(embedded) - entropy_coef * log_prob)
    return torch.autograd.grad(total, params)[0]


@pytest.mark.parametrize("later", [False, True], ids=["own", "of an earlier policy"])
@pytest.mark.parametrize(
    ("estimator", "kind"),
    [
        *(("relax", kind) for kind in SPACES),
        ("marginal", "multi_binary"),
        ("a2c", "multi_discrete"),
        ("reinforce", "discrete"),
    ],
)
def test_estimates_are_unbiased_for_what_is_left(estimator: str, kind: str, later: bool) -> None:
    agent, mask = agent_for(estimator, kind), torch.tensor(MASKS[kind], dtype=torch.bool)
    params = torch.tensor(PARAMS[kind])
    generator = torch.Generator().manual_seed(2)
    acting = params + (0.4 * torch.randn(params.shape, generator=generator) if later else 0.0)

    def draw(rows: int) -> Tensor:
        batch = batch_of(agent, kind, acting.expand(rows, -1), mask.expand(rows, -1))
        assert batch.mask is not None
        if later:
            old = agent.policy.distribution(acting.expand(rows, -1), batch.mask).log_prob(batch.action)
            batch = off_policy(agent, batch, old)
        gradient = applied(agent, batch, params.expand(rows, -1), off_policy=later)
        assert not gradient[masked_params(kind, batch.mask)].any()
        return gradient

    assert_unbiased(collect(draw, 62_500), exact(kind), power=0.1)


@pytest.mark.parametrize("estimator", ["marginal", "a2c", "reinforce"])
def test_the_sum_over_actions_is_the_exact_gradient(estimator: str) -> None:
    """Without relaxation nothing but the action is random; with the entropy bonus."""
    agent, mask = agent_for(estimator, "discrete"), torch.tensor([MASKS["discrete"]] * 3, dtype=torch.bool)
    params, action = torch.tensor([PARAMS["discrete"]] * 3), torch.tensor([0, 2, 3])
    batch = replace(batch_of(agent, "discrete", params, mask, action=action), entropy_coef=torch.tensor(0.3))
    probs = agent.policy.distribution(params, mask).log_prob(action).exp()
    assert float(probs.sum()) == pytest.approx(1.0)
    found = (probs.unsqueeze(-1) * applied(agent, batch, params)).sum(0)
    torch.testing.assert_close(found, exact("discrete", 0.3).float())


@ESTIMATORS
@KINDS
@pytest.mark.parametrize("size", [1.0, 80.0, 1e4, 3e38])
def test_nothing_masked_and_nothing_without_a_choice_moves_at_any_logits(
    estimator: str, kind: str, size: float
) -> None:
    agent = agent_for(estimator, kind)
    one = {"discrete": [0, 0, 0, 1, 0], "multi_discrete": [0, 1, 0, 0, 0, 0, 1], "multi_binary": [1, 0, 0, 1, 0, 1]}
    mask = torch.tensor([MASKS[kind], one[kind]] * 50, dtype=torch.bool)
    params = size * torch.tensor([PARAMS[kind], [-x for x in PARAMS[kind]]] * 50)
    params = params.masked_fill(masked_params(kind, mask), -size).roll(1, 0) if size == 1e4 else params
    batch = batch_of(agent, kind, params, mask)
    batch = replace(batch, entropy_coef=torch.tensor(0.5), control_scale=torch.tensor(0.7))
    if agent.surrogate is None:
        batch = replace(batch, control_scale=None)
    dist = agent.policy.distribution(params, mask)
    dead = masked_params(kind, mask)
    assert torch.equal(dist.entropy()[1::2], torch.zeros(50)) and dist.entropy().isfinite().all()
    if kind != "multi_binary":
        assert not dist.mean[dead].any() and not dist.soften(dist.relax(batch.noise))[dead].any()  # type: ignore[attr-defined]
    for later in (False, True):
        seen = off_policy(agent, batch, dist.log_prob(batch.action)) if later else batch
        gradient = applied(agent, seen, params, off_policy=later)
        assert gradient.isfinite().all() and not gradient[dead].any() and not gradient[1::2].any()
    whole = whole_gradients(agent, batch, Objective(agent.estimator, tuple(agent.networks.parts())))
    assert all(x.isfinite().all() for x in [*whole.of.values(), *whole.metrics.values(), *whole.sums.values()])


@KINDS
def test_a_surrogate_sees_nothing_of_what_is_masked(kind: str) -> None:
    agent, mask = agent_for("relax", kind), torch.tensor([MASKS[kind]] * 40, dtype=torch.bool)
    params = torch.tensor([PARAMS[kind]] * 40)
    dist: Any = agent.policy.distribution(params, mask)
    z = dist.relax(agent.sample_noise(40))
    given = dist.relax_given(dist.threshold(z), agent.sample_noise(40))
    for relaxed in (dist.soften(z), dist.soften(given)):
        bits = torch.tensor([float("nan"), 0.0, 1.0]) if kind == "multi_binary" else None
        expected = torch.where(mask[0], math.nan, 0.0) if bits is None else bits
        assert torch.equal(relaxed[:, ~expected.isnan()], expected[~expected.isnan()].expand(40, -1))
    assert agent.surrogate is not None
    assert surrogate_at(agent.surrogate, torch.zeros(40, 3), dist)(z).isfinite().all()


@KINDS
@pytest.mark.parametrize("settings", [{"epochs": 2, "minibatch_size": 7, "clip_range": 0.2}, {"surrogate_steps": 2}])
def test_a_policy_that_has_not_moved_takes_its_rows_for_its_own(kind: str, settings: dict[str, Any]) -> None:
    """Every ratio of probabilities is 1, in passes and in later steps of the surrogate."""
    with masked_envs(kind) as envs:
        made = envs.single_observation_space, envs.single_action_space
        agent = RELAX(*made, policy_lr=1e-12, **{**SMALL, **settings})
        steps, told = watch_steps(agent), []
        agent.learn(envs, 18, lambda _, info: told.append(info.metrics))
    rows = sum(float(step.batch.weight.sum()) for step in steps)
    assert len(steps) > len(told) and rows == pytest.approx(sum(x.batch.weight.gt(0).sum().item() for x in steps))
    assert all(abs(metrics.get("policy/kl", 0.0)) < 1e-6 for metrics in told)
    for step in steps:
        batch = step.batch
        assert batch.mask is not None and len(batch.mask) == len(batch.weight)
        dist = agent.policy.distribution(agent.policy(batch.obs).detach(), batch.mask)
        if batch.old_log_prob is not None:
            torch.testing.assert_close(dist.log_prob(batch.action), batch.old_log_prob)


# On other ways


@pytest.mark.parametrize(("kind", "later"), [("discrete", True), ("multi_discrete", False), ("multi_binary", True)])
def test_traced_code_gives_the_gradients_of_eager_code(kind: str, later: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relax_rl.compute.compilation._compile", lambda graph, inputs, key: graph)
    agent = agent_for("relax", kind)
    objective = Objective(agent.estimator, tuple(agent.networks.parts()), off_policy=later)
    compiled = CompiledGradients(agent.networks, agent.learner.flat)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):  # the second mask is another than that which was traced
        mask = torch.rand((20, len(MASKS[kind])), generator=generator) < 0.5
        mask = mask | torch.tensor(MASKS[kind], dtype=torch.bool)
        params = agent.policy(torch.full((20, 3), 0.3)).detach()
        batch = batch_of(agent, kind, params, mask)
        if later:
            batch = off_policy(agent, batch, agent.policy.distribution(params, mask).log_prob(batch.action))
        found, expected = compiled(batch, objective), whole_gradients(agent, batch, objective)
        for name, x in expected.of.items():
            torch.testing.assert_close(found.of[name], x, rtol=1e-4, atol=1e-6)


@KINDS
def test_the_gradients_of_two_workers_are_those_of_one(kind: str) -> None:
    """A row keeps its mask in the shard of a worker, and the mean of two shards is the whole."""
    agent = agent_for("relax", kind)
    mask = torch.tensor([MASKS[kind]] * 8, dtype=torch.bool)
    mask[::3] = True
    params = agent.policy(torch.full((8, 3), 0.3)).detach()
    batch = batch_of(agent, kind, params, mask)
    objective = Objective(agent.estimator, ("policy", "value"), max_grad_norm=math.inf)
    whole = whole_gradients(agent, batch, objective).of["policy"]
    halves = []
    for rank in range(2):
        own = torch.arange(rank, 8, 2)
        part = batch.select(own, Shard(8, own, 2))
        assert part.mask is not None and torch.equal(part.mask, mask[own])
        halves.append(whole_gradients(agent, part, objective).of["policy"])
    torch.testing.assert_close((halves[0] + halves[1]) / 2, whole, rtol=1e-4, atol=1e-6)


def test_acting_on_the_host_is_acting_with_torch() -> None:
    agent = agent_for("relax", "discrete")
    mask = torch.rand((64, 5), generator=torch.Generator().manual_seed(0)) < 0.4
    mask[:, 2] |= ~mask.any(1)
    obs, noise = torch.randn((64, 3), generator=torch.Generator().manual_seed(1)), agent.sample_noise(64)
    sampler = host_sampler(agent.policy, agent.networks.on_host("policy"), None)
    assert sampler is not None
    found = torch.from_numpy(sampler(obs.numpy(), noise.numpy(), mask.numpy()))
    assert torch.equal(found, agent.sample(obs, noise, mask)) and mask.gather(1, found.unsqueeze(1)).all()
    assert not torch.equal(found, agent.sample(obs, noise))


@KINDS
def test_predict_takes_masks_as_sb3_contrib_does(kind: str) -> None:
    agent, mask = agent_for("relax", kind), np.array(MASKS[kind], np.int8)
    obs = np.zeros((30, 3), np.float32)
    for deterministic in (True, False):
        batch, _ = agent.predict(obs, deterministic=deterministic, action_masks=np.tile(mask, (30, 1)))
        assert all(allowed(SPACES[kind], mask > 0, action) for action in batch)
        single, state = agent.predict(obs[0], None, None, deterministic, mask)
        assert allowed(SPACES[kind], mask > 0, single) and state is None
        assert agent.predict(obs[0], action_masks=mask[None])[0].shape == SPACES[kind].shape
    with pytest.raises(SettingsError, match="there are 29 action masks, expected 30"):
        agent.predict(obs, action_masks=np.tile(mask, (29, 1)))
    with pytest.raises(SettingsError, match=r"action_masks\[1\] allows no action"):
        agent.predict(obs[:2], action_masks=np.stack([mask, 0 * mask]))
    with pytest.raises(SettingsError, match="for choices, not for actions of Box"):
        AGENTS["lax"](OBS, OBS, **SMALL).predict(obs, action_masks=mask)


def test_the_variance_of_a_masked_agent_is_measured() -> None:
    agent = learned("relax", "discrete", steps=20)
    with masked_envs("discrete") as envs:
        entrants = contenders(agent, fit_batches=2)
        draws = applied_gradients(agent, envs, entrants, num_batches=3, fit_batches=2)
    assert len(draws) >= 6 and all(x.isfinite().all() for x in draws.values())


def test_learning_goes_on_alike_after_a_load(tmp_path: Any) -> None:
    agent = learned("relax", "discrete", steps=40, **PASSES)
    agent.save(tmp_path / "agent.safetensors")
    twin = ActorCritic.load(tmp_path / "agent.safetensors")
    for each in (agent, twin):
        with masked_envs("discrete") as envs:
            each.learn(envs, 30)
    assert_alike(agent, twin, tolerance=0.0)


def test_taxi_is_learned_without_a_step_in_vain() -> None:
    with make_envs("Taxi", num_envs=4, seed=0) as envs:
        agent = A2C(envs.single_observation_space, envs.single_action_space, **SMALL)
        seen: list[Any] = []
        agent.learn(envs, 400, on_step=seen.append)
    moved = [(step.obs != step.next_obs)[step.valid & ~step.terminated] for step in seen]
    assert np.concatenate(moved).all()
