"""The residual's weight that is learned: what it tends to, by enumeration, and where it comes from and goes."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from relax_rl.agents import A2C, AGENTS, ActorCritic
from relax_rl.agents.batch import Batch
from relax_rl.agents.estimates import Experience
from relax_rl.agents.residual_weight import METRIC, ResidualWeight
from relax_rl.agents.shards import Shard
from relax_rl.commands.main import main
from relax_rl.critics import relative_to
from relax_rl.errors import SettingsError
from relax_rl.settings.config import AgentConfig
from tests.steps import BOX, DISCRETE, OBS, PASSES, assert_alike, rollout_for, shake, shake_module, trained, watch_steps

ADAPTIVE: dict[str, Any] = {"surrogate_loss": "critic", "residual_weight": "adaptive"}
STEPS, NUM_ENVS = 2, 3
CHANCES = torch.tensor([0.35, 0.3, 0.2, 0.15], dtype=torch.float64)
ALL_DRAWS = list(itertools.product(range(4), repeat=NUM_ENVS))


@dataclass(frozen=True)
class World:
    """Four stories of two steps, one of which befalls each environment, and what each of them adds to the gradient.

    Attributes:
        agent: that stands still.
        rows: `[4 * 2, ...]` of the stories, one after the other.
        residual, critic: `[4, D]` means over a story of S and P at the policy's parameters, by autograd row by row.
    """

    agent: ActorCritic
    rows: Batch
    residual: Tensor
    critic: Tensor

    def batch(self, draw: tuple[int, ...]) -> Batch:
        """Three environments, with these stories: rows by step, then environment."""
        index = torch.tensor([STEPS * story + step for step in range(STEPS) for story in draw])
        made = self.rows.select(index, Shard(len(index)))
        return replace(made, group=made.shard.every_other(STEPS, torch.device("cpu")))


def world_of(estimator: str, **settings: Any) -> World:
    still = {"policy_lr": 1e-12, "value_lr": 1e-12, "surrogate_lr": 1e-12, "hidden": (4,), "surrogate_hidden": (4,)}
    space = BOX if estimator == "lax" else DISCRETE
    agent = AGENTS[estimator](OBS, space, seed=0, **{**still, **ADAPTIVE, **settings})
    shake(agent), shake_module(agent.policy, torch.Generator().manual_seed(3))
    made = agent.batch(rollout_for(agent, steps=STEPS, num_envs=4))[0]
    order = torch.arange(STEPS * 4).view(STEPS, 4).t().flatten()
    made = replace(made, group=None).select(order, Shard(STEPS * 4))
    advantage = torch.tensor([1.4, 1.3, -0.6, -0.5, 0.9, 0.8, 0.4, 0.2])
    weight = torch.ones(8)
    weight[3] = 0.0
    rows = replace(made, advantage=advantage, return_=advantage + 0.7, weight=weight)
    found = agent.networks(rows.obs)
    dist = agent.policy.distribution(found.params.detach())
    seen = Experience(
        found.features, rows.action, rows.noise, advantage, rows.return_, weight, value=torch.full((8,), 0.7)
    )
    parts: list[Tensor] = []
    for w in (1.0, 0.0):
        surrogate = relative_to(agent.surrogate, seen.value)
        estimate = agent.estimator.estimate(replace(seen, residual_weight=w), dist, surrogate).detach()
        gradients = [
            torch.autograd.grad(
                found.params[k] @ (weight[k] * estimate[k]), list(agent.policy.parameters()), retain_graph=True
            )
            for k in range(8)
        ]
        each = torch.stack([torch.cat([x.flatten() for x in of]) for of in gradients]).double()
        parts.append(each.view(4, STEPS, -1).mean(1))
    return World(agent, rows, parts[0] - parts[1], parts[1])


def expected(world: World) -> tuple[float, float]:
    """|b|^2 - C and |b|^2 + V_S of the mean over three environments."""
    b, p = CHANCES @ world.residual, CHANCES @ world.critic
    variance = CHANCES @ (world.residual - b).square().sum(-1) / NUM_ENVS
    covariance = CHANCES @ ((world.residual - b) * (world.critic - p)).sum(-1) / NUM_ENVS
    return float(b @ b - covariance), float(b @ b + variance)


class Recording(ResidualWeight):
    """Keeps what it was given."""

    def update(self, *, agreeing: float, whole: float, unit: float) -> None:
        self.given = (agreeing, whole, unit)


def measured(world: World) -> np.ndarray:
    """`[64, 3]` what the learner takes in of each draw of three stories."""
    learner = world.agent.learner
    found = []
    for draw in ALL_DRAWS:
        weight = learner.residual_weight = Recording()
        batch = world.batch(draw)
        learner.learn(batch, world.agent.networks(batch.obs), 1.0)
        found.append(weight.given)
    return np.array(found)


def chances() -> np.ndarray:
    return np.array([math.prod(float(CHANCES[story]) for story in draw) for draw in ALL_DRAWS])


WORLDS = [
    ("marginal", {}),
    ("marginal", {"critic_loss": "hl_gauss", "share_torso": "on"}),
    ("relax", {"minibatch_size": 4}),
    ("lax", {"squash": True}),
]


@pytest.mark.parametrize(("estimator", "settings"), WORLDS)
def test_what_it_takes_in_is_unbiased_for_both(estimator: str, settings: dict[str, Any]) -> None:
    world = world_of(estimator, **settings)
    np.testing.assert_allclose(chances() @ measured(world)[:, :2], expected(world), rtol=1e-4, atol=1e-6)


def test_it_tends_to_the_weight_of_least_error() -> None:
    world = world_of("marginal")
    agreeing, whole = expected(world)
    target = agreeing / whole
    assert 0.2 < target < 0.8
    # The error of each weight, draw by draw.
    means = [torch.stack([x[list(draw)].mean(0) for draw in ALL_DRAWS]).numpy() for x in (world.residual, world.critic)]
    aim = chances() @ (means[0] + means[1])
    grid = np.linspace(0.0, 1.0, 1001)
    errors = [chances() @ np.square(w * means[0] + means[1] - aim).sum(-1) for w in grid]
    assert grid[np.argmin(errors)] == pytest.approx(target, abs=1e-3)
    table, rng = measured(world), np.random.default_rng(0)
    weight, told = ResidualWeight(), []
    for number in rng.choice(len(ALL_DRAWS), 20_000, p=chances()):
        weight.update(agreeing=table[number, 0], whole=table[number, 1], unit=1.0)
        told.append(weight.value)
    assert np.mean(told[2_000:]) == pytest.approx(target, abs=0.02) and np.std(told[2_000:]) < 0.15


def test_it_stays_between_nothing_and_all() -> None:
    weight = ResidualWeight(decay=0.5)
    assert weight.value == 1.0
    for agreeing, value in ((-3.0, 0.0), (9.0, 1.0), (-0.5, 0.9)):
        weight.update(agreeing=4.0 * agreeing, whole=8.0, unit=4.0)
        assert weight.value == pytest.approx(value) or value == 0.9
    assert weight.agreeing == pytest.approx(0.125 * -3.0 + 0.25 * 9.0 - 0.25) and weight.whole == pytest.approx(1.75)
    kept = ResidualWeight()
    kept.load_state_dict(weight.state_dict())
    assert (kept.agreeing, kept.whole) == (weight.agreeing, weight.whole)
    weight.update(agreeing=math.nan, whole=math.inf, unit=1.0)
    weight.update(agreeing=0.0, whole=0.0, unit=0.0)
    assert (kept.agreeing, kept.whole) == (weight.agreeing, weight.whole)


@pytest.mark.parametrize("settings", [{}, {"normalize_advantage": True}])
def test_large_residuals_do_not_decide_for_small_ones(settings: dict[str, Any]) -> None:
    """A rollout counts in its own unit, the mean squared norm of what the residual brings into a row."""
    found = []
    for factor in (1.0, 1_000.0):
        agent = AGENTS["marginal"](OBS, DISCRETE, seed=0, **ADAPTIVE, **settings)
        shake_module(agent.policy, torch.Generator().manual_seed(3))
        weight = agent.learner.residual_weight = Recording()
        batch = agent.batch(rollout_for(agent))[0]
        advantage = factor * torch.linspace(-1.0, 2.0, len(batch.advantage))
        batch = replace(batch, advantage=advantage, return_=advantage)
        agent.learner.learn(batch, agent.networks(batch.obs), 0.0)
        found.append(weight.given)
    small, large = np.array(found)
    grown = 1.0 if settings else 1e6
    np.testing.assert_allclose(large, grown * small, rtol=2e-3)
    weight = ResidualWeight()
    weight.update(agreeing=0.9 * large[1], whole=large[1], unit=large[2])
    for _ in range(300):
        weight.update(agreeing=0.3 * small[1], whole=small[1], unit=small[2])
    assert weight.value == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("settings", [{}, {**PASSES, "surrogate_steps": 2}])
def test_a_rollout_is_met_with_the_weight_of_those_before_it(settings: dict[str, Any]) -> None:
    agent = AGENTS["relax"](OBS, DISCRETE, seed=0, **ADAPTIVE, **settings)
    shake(agent)
    steps, weight = watch_steps(agent), agent.learner.residual_weight
    assert weight is not None
    seen = []
    for seed in range(4):
        before = weight.value
        steps.clear()
        metrics = agent.update(rollout_for(agent, seed=seed))
        assert metrics[METRIC] == before and steps
        for step in steps:
            assert step.batch.residual_weight is not None and step.batch.group is None
            assert float(step.batch.residual_weight) == pytest.approx(before, rel=1e-6)
        seen.append(before)
    assert seen[0] == 1.0 and len(set(seen)) > 2


def test_it_is_the_weight_of_the_estimate() -> None:
    agents = [AGENTS["lax"](OBS, BOX, seed=0, surrogate_loss="critic", residual_weight=w) for w in ("adaptive", 0.25)]
    for agent in agents:
        shake(agent)
    weight = agents[0].learner.residual_weight
    assert weight is not None
    weight.agreeing, weight.whole = 1.0, 4.0
    made = rollout_for(agents[0])
    for agent in agents:
        agent.update(made)
    tensors = [{k: x for k, x in a.state_dict()[0].items() if not k.startswith("residual_weight.")} for a in agents]
    for name, x in tensors[0].items():
        if name != "generator":
            torch.testing.assert_close(x, tensors[1][name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("estimator", "settings"),
    [("relax", {}), ("lax", {"epochs": 2, "clip_range": 0.2, "normalize_advantage": True})],
)
def test_compiled_steps_are_those_of_eager_code(
    estimator: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relax_rl.compute.compilation._compile", lambda graph, inputs, key: graph)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    told: tuple[list[Any], list[Any]] = ([], [])
    compiled, eager = (
        trained(estimator, updates=4, compile=how, told=rows, **ADAPTIVE, **settings)
        for how, rows in zip(("on", "off"), told, strict=True)
    )
    assert compiled.learner.compiled is not None
    assert_alike(compiled, eager)
    for ours, theirs in zip(*told, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4, nan_ok=True)
    assert len({each[METRIC] for each in told[0]}) > 1


def test_what_cannot_be_is_refused_in_a_line() -> None:
    with pytest.raises(SettingsError, match="residual_weight is 'adaptive', expected 1, or surrogate_loss 'critic'"):
        AgentConfig(residual_weight="adaptive")
    with pytest.raises(SettingsError, match="surrogate_scale is 'fitted', expected 'one' beside residual_weight"):
        AgentConfig(**ADAPTIVE, surrogate_scale="fitted")
    with pytest.raises(SettingsError, match=r"expected 'one' beside residual_weight 0\.5"):
        AgentConfig(surrogate_loss="critic", residual_weight=0.5, surrogate_scale="fitted")
    with pytest.raises(SettingsError, match=r"residual_weight is 1\.5, expected between 0 and 1, or 'adaptive'"):
        AgentConfig(surrogate_loss="critic", residual_weight=1.5)
    agent = AGENTS["relax"](OBS, DISCRETE, **ADAPTIVE)
    with pytest.raises(SettingsError, match="single environment, expected at least 2"):
        agent.learner.check_environments(1)
    agent.learner.check_environments(2)


def test_without_a_surrogate_there_is_nothing_to_weigh() -> None:
    agent = A2C(OBS, DISCRETE, **ADAPTIVE)
    assert METRIC not in agent.update(rollout_for(agent)) and "residual_weight" not in agent.components()


def test_a_run_that_cannot_be_gone_on_with_in_one_environment_stays_as_it_is(tmp_path: Path, capsys: Any) -> None:
    args = "--env Pendulum-v1 --preset none --surrogate-loss critic --residual-weight adaptive --hidden 4 --quiet --no-tensorboard"
    run, shape = tmp_path / "run", ["--num-steps", "5", "--total-steps"]
    assert main([*args.split(), *shape, "20", "--num-envs", "2", "--run-dir", str(run)]) == 0
    before = (run / "config.json").read_bytes()
    for where in (
        ["--resume", str(run), "--total-steps", "40"],
        [*args.split(), *shape, "20", "--run-dir", str(tmp_path / "new")],
    ):
        assert main([*where, "--num-envs", "1"]) == 2
        assert "residual_weight is 'adaptive'" in capsys.readouterr().err
    assert (run / "config.json").read_bytes() == before and not (tmp_path / "new").exists()
