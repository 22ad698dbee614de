"""Bounds on the policy's divergence and a target for its entropy: directions against losses written out, multipliers by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch import distributions as td
from torch.nn import functional as F

from relax_rl.agents import A2C, AGENTS, LAX, RELAX, ActorCritic
from relax_rl.agents.batch import Batch
from relax_rl.agents.gradients import Objective
from relax_rl.agents.shards import Shard
from relax_rl.agents.trust_region import METRICS, Multiplier, entropy_and_unit
from relax_rl.distributions import Bernoulli, Beta, Categorical, DiagGaussian, MultiCategorical, Product, TanhGaussian
from relax_rl.errors import CheckpointError, SettingsError
from tests.steps import ACTIONS, BOX, DISCRETE, OBS, applied, off_policy, rollout_for, trained, whole_gradients

HYBRID = spaces.Tuple((BOX, spaces.MultiDiscrete([3, 2])))
FAMILIES: dict[str, tuple[spaces.Space[Any], dict[str, Any]]] = {
    "discrete": (DISCRETE, {}),
    "multi_discrete": (ACTIONS["multi_discrete"], {}),
    "multi_binary": (ACTIONS["multi_binary"], {}),
    "box": (BOX, {}),
    "box, state-dependent": (BOX, {"state_dependent_std": True}),
    "box, squashed": (BOX, {"squash": True}),
    "box, beta": (BOX, {"action_distribution": "beta"}),
    "hybrid": (HYBRID, {}),
    "hybrid, squashed": (HYBRID, {"squash": True}),
}
CASES = [(family, False) for family in FAMILIES] + [(f, True) for f in ("discrete", "multi_discrete", "multi_binary")]
ROWS, BETA, COEF = 12, 0.7, 0.3


@pytest.fixture
def in_double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def mask_for(family: str) -> Tensor:
    """`[B, W]` with something left to choose in each row; of the bits, one that has to be 1 in every other row."""
    width = {"discrete": 3, "multi_discrete": 5, "multi_binary": 6}[family]
    mask = torch.ones(ROWS, width, dtype=torch.bool)
    mask[::2, 0] = False
    mask[::3, -1] = False
    return mask


def written(family: str, params: Tensor, mask: Tensor | None) -> list[td.Distribution]:
    """torch's own distributions at these parameters; what is masked is as good as impossible."""
    if family == "multi_binary":
        if mask is not None:
            params = params.masked_fill(~mask[:, 1::2], -1e3).masked_fill(~mask[:, ::2], 1e3)
        return [td.Bernoulli(logits=params)]
    params = params if mask is None else params.masked_fill(~mask, -1e9)
    if family == "discrete":
        return [td.Categorical(logits=params)]
    if family == "multi_discrete":
        return [td.Categorical(logits=x) for x in params.split([3, 2], -1)]
    if family == "box, beta":
        return [td.Beta(*(1.0 + F.softplus(params)).chunk(2, -1))]
    normal = td.Normal(params[:, :2], params[:, 2:4].exp())
    return (
        [normal, *(td.Categorical(logits=x) for x in params[:, 4:].split([3, 2], -1))]
        if "hybrid" in family
        else [normal]
    )


def rows_of(x: Tensor) -> Tensor:
    return x if x.dim() == 1 else x.sum(-1)


def loss_written_out(family: str, form: str, batch: Batch, params: Tensor) -> Tensor:
    """Of what is maximised: ratio A + c H, with the divergence from the policy that acted, in torch's own formulas."""
    assert batch.old_params is not None and batch.kl_bound is not None
    new, old = written(family, params, batch.mask), written(family, batch.old_params, batch.mask)
    numbers = [batch.action] if len(new) == 1 else list(batch.action.split([2, 1, 1] if len(new) == 3 else 1, -1))
    action = [x if x.shape[-1] == 2 or len(new) == 1 else x.squeeze(-1) for x in numbers]
    # Tanh squashes both alike, and its slope drops out of their ratio.
    log_prob, before = (
        torch.stack([rows_of(p.log_prob(a)) for p, a in zip(each, action, strict=True)]).sum(0) for each in (new, old)
    )
    entropy = torch.stack([rows_of(p.entropy()) for p in new]).sum(0)
    divergence = torch.stack([rows_of(td.kl_divergence(p, q)) for p, q in zip(old, new, strict=True)]).sum(0)
    objective = torch.exp(log_prob - before) * batch.advantage + COEF * entropy
    if form == "penalty":
        objective = objective - BETA * divergence
    else:
        within = (divergence < batch.kl_bound).detach()
        assert 0 < int(within.sum()) < ROWS
        objective = torch.where(within, objective, -BETA * divergence)
    return (objective * batch.weight).sum()


def batch_for(agent: ActorCritic, old_params: Tensor, mask: Tensor | None, bound: float) -> Batch:
    """Rows of actions of the policy at `old_params`."""
    acting = agent.policy.distribution(old_params, mask)
    noise = acting.sample_noise(torch.Generator().manual_seed(3))
    action = acting.threshold(acting.relax(noise))
    advantage = torch.randn(ROWS, generator=torch.Generator().manual_seed(4))
    batch = Batch(
        obs=torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(5)),
        action=action,
        noise=noise,
        advantage=advantage,
        return_=advantage,
        weight=(torch.arange(ROWS) % 5 > 0).to(advantage.dtype),
        shard=Shard(ROWS),
        entropy_coef=torch.tensor(COEF),
        mask=mask,
        old_params=old_params,
        kl_bound=torch.tensor(bound),
        kl_multiplier=torch.tensor(BETA),
    )
    return off_policy(agent, batch, acting.log_prob(action))


def params_for(agent: ActorCritic) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    old = 0.7 * torch.randn(ROWS, agent.policy.num_params, generator=generator)
    return old, old + 0.4 * torch.randn(old.shape, generator=generator)


@pytest.mark.parametrize("form", ["switch", "penalty"])
@pytest.mark.parametrize(("family", "masked"), CASES)
def test_the_direction_is_that_of_the_loss_written_out(family: str, masked: bool, form: str, in_double: None) -> None:
    space, settings = FAMILIES[family]
    agent = A2C(OBS, space, hidden=(4,), **settings)
    old, new = params_for(agent)
    mask = mask_for(family) if masked else None
    dist: Any = agent.policy.distribution(new, mask)
    bound = 1.1 * float(agent.policy.distribution(old, mask).kl_divergence(dist).median())  # type: ignore[attr-defined]
    batch = batch_for(agent, old, mask, bound)
    leaf = new.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss_written_out(family, form, batch, leaf), leaf)
    found = applied(agent, batch, new, off_policy=True, kl_form=form, entropy_target=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("estimator", ["relax", "lax", "marginal", "a2c", "reinforce"])
def test_the_estimate_and_what_the_surrogate_learns_stay_what_they_are(estimator: str, in_double: None) -> None:
    agent = AGENTS[estimator](OBS, BOX if estimator == "lax" else DISCRETE, hidden=(4,), surrogate_hidden=(4,))
    torch.nn.init.normal_(agent.policy.head.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    params = agent.policy(torch.zeros(ROWS, 3)).detach()
    batch = batch_for(agent, params + 0.2 * torch.randn(params.shape), None, 0.02)
    objective = Objective(agent.estimator, tuple(agent.networks.parts()), off_policy=True)
    free = replace(batch, old_params=None)
    with_bound, without = (whole_gradients(agent, each, objective) for each in (batch, free))
    assert not torch.equal(with_bound.of["policy"], without.of["policy"])
    for name in without.of.keys() - {"policy"}:
        assert torch.equal(with_bound.of[name], without.of[name]), name
    for name in ("losses/variance", "estimate/variance", "estimate/variance_a2c", "policy/entropy"):
        assert name not in without.metrics or torch.equal(with_bound.metrics[name], without.metrics[name]), name
    far = replace(batch, kl_bound=torch.tensor(1e9))
    assert torch.equal(whole_gradients(agent, far, objective).of["policy"], without.of["policy"])


# Multipliers


def test_a_multiplier_rises_above_its_bound_and_falls_below() -> None:
    weight = Multiplier(2.0, 0.1)
    weight.update(0.5)
    assert weight.value == pytest.approx(2.0 * math.exp(0.05))
    weight.update(-0.25)
    assert weight.value == pytest.approx(2.0 * math.exp(0.025))
    for gap, expected in ((7.0, 0.125), (math.inf, 0.225), (-1e9, 0.125)):  # no step is larger than the rate
        weight.update(gap)
        assert weight.log - math.log(2.0) == pytest.approx(expected)
    for _ in range(1_000):
        weight.update(-1.0)
    assert weight.value == pytest.approx(1e-4)
    weight.update(1.0)
    assert weight.value == pytest.approx(1e-4 * math.exp(0.1))
    kept = Multiplier(2.0, 0.1)
    kept.load_state_dict(weight.state_dict())
    assert kept.log == weight.log
    with pytest.raises(ValueError, match=r"a multiplier is 99, expected -9\.2"):
        kept.load_state_dict({"log": torch.tensor(99.0)})
    assert Multiplier(1e-6, 0.1).value == pytest.approx(1e-6)


def sums_of(**sums: float) -> dict[str, Tensor]:
    return {name: torch.tensor(x) for name, x in sums.items()}


def test_multipliers_go_by_the_mean_divergence_and_entropy() -> None:
    settings: dict[str, Any] = {"kl_bound": 0.2, "entropy_target": 0.6, "entropy_coef": 0.05, "multiplier_lr": 0.1}
    learned, bound = A2C(OBS, DISCRETE, **settings).learner.multipliers, torch.tensor(0.2)
    above, below = sums_of(rows=8.0, kl=2.0, outside=4.0), sums_of(rows=4.0, kl=0.4, outside=1.0)
    beta = math.exp(0.1 * (2.0 / 8.0 / 0.2 - 1.0))
    found = learned.learn_bound([above], bound, moved=True)
    assert list(found) == list(METRICS[:3]) and [*found.values()] == pytest.approx([0.25, 0.5, beta], rel=1e-6)
    found = learned.learn_bound([above, below, below], bound, moved=False)  # the first tells nothing
    beta *= math.exp(2 * 0.1 * (0.4 / 4.0 / 0.2 - 1.0))
    assert [*found.values()] == pytest.approx([2.8 / 16.0, 6.0 / 16.0, beta], rel=1e-6)
    coef = 0.05
    for entropy, gap in ((4.0, 0.1), (7.2, -0.3)):
        coef *= math.exp(0.1 * gap)
        found = learned.learn_entropy(sums_of(entropy=entropy, entropy_unit=8.0))
        assert list(found) == list(METRICS[3:]) and [*found.values()] == pytest.approx([entropy / 8.0, coef], rel=1e-6)
    assert learned.kl is not None and learned.entropy is not None
    before = learned.kl.log, learned.entropy.log
    nothing = learned.learn_bound([sums_of(rows=0.0, kl=0.0, outside=0.0)], bound, moved=True)
    nothing |= learned.learn_entropy(sums_of(entropy=0.0, entropy_unit=0.0))
    assert (learned.kl.log, learned.entropy.log) == before
    assert [*nothing.values()] == pytest.approx([0.0, 0.0, beta, 0.6, coef], rel=1e-6)
    plain = A2C(OBS, DISCRETE, entropy_target=0.5).learner.multipliers
    assert plain.kl is None and plain.entropy is not None and plain.entropy.value == pytest.approx(0.01)
    assert plain.learn_bound([above], None, moved=True) == {}


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("form", ["switch", "penalty"])
def test_the_steps_of_the_last_pass_move_the_multiplier_of_the_divergence(form: str, epochs: int) -> None:
    settings: dict[str, Any] = {"epochs": epochs, "minibatch_size": 7, "kl_bound": 0.04, "kl_form": form}
    agent = LAX(OBS, BOX, seed=0, policy_lr=0.02, multiplier_lr=0.1, **settings)
    learner: Any = agent.learner
    exact: list[float] = []
    plain = learner.step

    def step(batch: Batch, objective: Objective, factor: float, known: Any = None) -> Any:
        if "policy" not in objective.trains:
            assert batch.old_params is None
            return plain(batch, objective, factor, known)
        assert objective.kl_form == form and float(batch.kl_bound) == pytest.approx(0.04)  # type: ignore[arg-type]
        assert float(batch.kl_multiplier) == pytest.approx(multiplier)  # type: ignore[arg-type]
        old, new = (agent.policy.distribution(x) for x in (batch.old_params, agent.policy(batch.obs).detach()))
        divergence = old.kl_divergence(new)  # type: ignore[attr-defined, type-var]
        exact.append(float((divergence * batch.weight).sum() / batch.weight.sum()))
        return plain(batch, objective, factor, known)

    learner.step = step
    log, multiplier = 0.0, 1.0
    for seed in range(2):
        exact.clear()
        rollout = rollout_for(agent, seed=seed)
        valid = torch.rand((6, 4), generator=torch.Generator().manual_seed(seed)) > 0.2
        metrics = agent.update(replace(rollout, valid=valid))
        assert len(exact) == 4 * epochs and exact[0] == pytest.approx(0.0, abs=1e-6)
        for each in exact[-4:] if epochs > 1 else exact[1:]:
            log += 0.1 * min(max(each / 0.04 - 1.0, -1.0), 1.0)
        assert learner.multipliers.kl.log == pytest.approx(log, abs=1e-5)
        multiplier = math.exp(log)
        assert metrics["policy/kl_multiplier"] == pytest.approx(multiplier, rel=1e-5)
        assert (
            min(exact[-4:]) < metrics["policy/kl_exact"] < max(exact[-4:]) and 0.0 <= metrics["policy/outside"] <= 1.0
        )


def divergences(kl_bound: float, **more: Any) -> tuple[float, float]:
    """The mean over updates on a small task, in closed form and by the actions."""
    told: list[Any] = []
    steps: dict[str, Any] = {"epochs": 6, "minibatch_size": 20, "num_steps": 20, "policy_lr": 0.005}
    trained("lax", updates=32, told=told, kl_bound=kl_bound, **steps, **more)
    exact, by_actions = ([float(each[name]) for each in told] for name in ("policy/kl_exact", "policy/kl"))
    return float(np.mean(exact)), float(np.mean(by_actions))


@pytest.fixture(scope="module")
def free() -> tuple[float, float]:
    return divergences(1e6)


@pytest.mark.parametrize(("form", "rate"), [("switch", 0.01), ("penalty", 0.1)])
def test_the_bound_is_kept(form: str, rate: float, free: tuple[float, float]) -> None:
    exact, by_actions = divergences(0.03, kl_form=form, multiplier_lr=rate)
    assert exact < 0.06 and by_actions < 0.08 and min(free) > 0.09


# Entropy


def test_entropies_and_their_units() -> None:
    params = torch.tensor([[0.4, 0.9, -0.3], [0.1, -0.2, -math.inf]])
    entropy, unit = entropy_and_unit(Categorical(params))
    torch.testing.assert_close(
        entropy, torch.stack([td.Categorical(logits=x).entropy() for x in (params[0], params[1, :2])])
    )
    torch.testing.assert_close(unit, torch.tensor([3.0, 2.0]).log())
    row = torch.tensor([[0.4, 0.9, -math.inf, 0.2, -math.inf]])
    assert float(entropy_and_unit(MultiCategorical(row, (3, 2)))[1]) == pytest.approx(math.log(2))
    bits = Bernoulli(torch.tensor([[0.3, math.inf, -0.6]]))
    assert float(entropy_and_unit(bits)[1]) == pytest.approx(2 * math.log(2))
    numbers = torch.tensor([[0.3, -0.5, 0.2, 1.7]])
    expected = td.Normal(numbers[:, :2], numbers[:, 2:].exp()).entropy().sum(-1)
    for kind in (DiagGaussian, TanhGaussian):
        entropy, unit = entropy_and_unit(kind(numbers))
        torch.testing.assert_close(entropy, expected)
        assert unit.tolist() == [2.0]
    beta = Beta(numbers)
    assert torch.equal(entropy_and_unit(beta)[0], beta.entropy()) and float(entropy_and_unit(beta)[1]) == 2.0
    entropy, unit = entropy_and_unit(Product.of(TanhGaussian(numbers), Categorical(params[:1])))
    torch.testing.assert_close(entropy, expected + td.Categorical(logits=params[:1]).entropy())
    assert float(unit) == pytest.approx(2.0 + math.log(3))


@pytest.mark.parametrize(
    ("estimator", "target", "settings"),
    [("relax", 0.8, {}), ("lax", 1.2, {"squash": True})],
)
def test_the_entropy_tends_to_its_target(estimator: str, target: float, settings: dict[str, Any]) -> None:
    told: list[Any] = []
    trained(
        estimator,
        updates=150,
        told=told,
        entropy_target=target,
        entropy_coef=0.5,
        multiplier_lr=0.1,
        policy_lr=0.02,
        max_grad_norm=math.inf,
        **settings,
    )
    reached = [each["policy/entropy_reached"] for each in told]
    assert np.mean(reached[75:]) == pytest.approx(target, abs=0.3) and max(abs(x - target) for x in reached) > 0.2
    coef = 0.5
    for each in told:
        coef *= math.exp(0.1 * min(max(target - each["policy/entropy_reached"], -1.0), 1.0))
        assert each["policy/entropy_coef"] == pytest.approx(coef, rel=1e-4)
        if settings:  # that of the outcome is lower
            assert each["policy/entropy"] / 2.0 < each["policy/entropy_reached"] - 0.2
        else:
            assert each["policy/entropy"] / math.log(3) == pytest.approx(each["policy/entropy_reached"], rel=1e-4)


# Schedules, settings, files


def test_the_bound_falls_to_a_tenth() -> None:
    agent = A2C(OBS, DISCRETE, kl_bound=0.5, kl_schedule="linear")
    agent.schedule_start, agent.schedule_end = 0, 100
    for steps, expected in ((0, 0.5), (50, 0.275), (100, 0.05), (150, 0.05)):
        agent.steps = steps
        batch, _ = agent.batch(rollout_for(agent))
        assert float(batch.kl_bound) == pytest.approx(expected)  # type: ignore[arg-type]
    constant = A2C(OBS, DISCRETE, kl_bound=0.5)
    constant.schedule_end, constant.steps = 100, 90
    assert float(constant.batch(rollout_for(constant))[0].kl_bound) == 0.5  # type: ignore[arg-type]


def test_nothing_is_learned_or_saved_by_default() -> None:
    agent = RELAX(OBS, DISCRETE, epochs=2, clip_range=0.2)
    assert not agent.learner.multipliers.on and agent.learner.multipliers.parts() == {}
    batch, _ = agent.batch(rollout_for(agent))
    assert batch.kl_bound is None and batch.old_params is None
    metrics = agent.update(rollout_for(agent))
    assert not metrics.keys() & set(METRICS) and not any("multiplier" in name for name in agent.state_dict()[0])


@pytest.mark.parametrize(
    ("space", "settings", "expected"),
    [
        (DISCRETE, {"kl_bound": 0.0}, "kl_bound is 0.0, expected at least 1e-08"),
        (DISCRETE, {"kl_form": "penalty"}, "kl_form is 'penalty', expected a finite kl_bound beside it"),
        (DISCRETE, {"kl_schedule": "linear"}, "kl_schedule is 'linear', expected a finite kl_bound beside it"),
        (DISCRETE, {"multiplier_lr": 0.0}, "multiplier_lr is 0.0, expected above 0"),
        (
            DISCRETE,
            {"entropy_target": 1.0},
            "entropy_target is 1, expected at least 0 and below 1 for discrete actions",
        ),
        (DISCRETE, {"entropy_target": -0.5}, "entropy_target is -0.5, expected at least 0 and below 1"),
        (
            BOX,
            {"entropy_target": 0.5, "action_distribution": "beta"},
            "entropy_target is 0.5, expected below 0 with beta",
        ),
        (  # log 3 nats of choices to two numbers: log 3 / (log 3 + 2)
            spaces.Dict(gear=spaces.Discrete(3), thrust=spaces.Box(-1, 1, (2,))),
            {"entropy_target": 0.5, "action_distribution": "beta"},
            "entropy_target is 0.5, expected below 0.355 with beta",
        ),
        (BOX, {"entropy_target": math.nan}, "entropy_target is nan, expected a number"),
        (
            BOX,
            {"entropy_target": -0.5, "entropy_schedule": "linear"},
            "entropy_schedule is 'linear', expected 'constant' beside entropy_target",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(space: Any, settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError, match=expected) as caught:
        A2C(OBS, space, **settings)
    assert "\n" not in str(caught.value)


def test_choices_among_one_have_a_target_all_the_same() -> None:
    space = spaces.Dict(a=spaces.Discrete(1), b=spaces.Discrete(1))
    agent = A2C(OBS, space, entropy_target=0.5)
    assert np.isfinite(agent.update(rollout_for(agent))["policy/entropy_coef"])


def test_multipliers_are_for_learning_alone(tmp_path: Path) -> None:
    agent = A2C(OBS, DISCRETE, kl_bound=0.01, epochs=3, policy_lr=0.02, entropy_target=0.5)
    agent.update(rollout_for(agent))
    assert agent.learner.multipliers.kl is not None and agent.learner.multipliers.kl.log != 0.0
    agent.save(tmp_path / "small.safetensors", optimizer=False)
    with pytest.raises(CheckpointError, match="without entropy_multiplier, kl_multiplier, policy_optimizer"):
        A2C.load(tmp_path / "small.safetensors")
    fresh = A2C.load(tmp_path / "small.safetensors", optimizer=False)
    assert fresh.learner.multipliers.kl is not None and fresh.learner.multipliers.kl.log == 0.0
