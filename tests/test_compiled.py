"""The compiled step takes the same steps as eager code, says why where it cannot, and pays where `auto` takes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from relax_rl import compilation
from relax_rl.agents import A2C, AGENTS, LAX, RELAX, ActorCritic
from relax_rl.agents import compiled as compiled_module
from relax_rl.agents.compiled import CompiledStep, choose_step, why_not_compiled
from relax_rl.distributed import ALONE
from relax_rl.envs import VectorEnvs
from relax_rl.errors import SettingsError, TrainingDiverged
from relax_rl.rollouts import Rollout
from relax_rl.runs.training import train
from relax_rl.settings.presets import preset_config
from tests.fakes import TargetEnv, vector_of
from tests.steps import assert_alike, shake

OBS = spaces.Box(-1, 1, (3,), np.float32)
SMALL: dict[str, Any] = {"hidden": (8,), "surrogate_hidden": (8,), "num_steps": 5}


@pytest.fixture(autouse=True)
def _compiler_is_looked_for_anew() -> Iterator[None]:
    yield
    compilation.has_compiler.cache_clear()


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the traced graph as it is: what is traced is what counts here, and inductor takes half a minute."""
    import torch._inductor

    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs, options: graph)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")


def action_space(estimator: str) -> spaces.Space[Any]:
    return spaces.Box(-1, 1, (2,), np.float32) if estimator == "lax" else spaces.Discrete(3)


def trained(estimator: str, compile: str, *, updates: int = 6, **settings: Any) -> tuple[ActorCritic, list[Any]]:
    space = action_space(estimator)
    with VectorEnvs(vector_of([lambda: TargetEnv(space)] * 4, AutoresetMode.SAME_STEP), seed=0) as envs:
        agent = AGENTS[estimator](
            envs.single_observation_space, space, seed=0, compile=compile, **{**SMALL, **settings}
        )
        shake(agent)
        metrics: list[Any] = []
        agent.learn(envs, updates * 20, [lambda agent, info: metrics.append(dict(info.metrics))])
    return agent, metrics


@pytest.mark.parametrize(
    ("estimator", "settings"),
    [
        ("a2c", {}),
        ("reinforce", {"entropy_coef": 0.01}),
        ("relax", {"entropy_coef": 0.05, "entropy_schedule": "linear", "lr_schedule": "linear"}),
        (
            "relax",
            {"normalize_obs": True, "normalize_reward": True, "advantage_scale": "running", "optimizer": "rmsprop"},
        ),
        ("relax", {"epochs": 3, "minibatch_size": 8, "clip_range": 0.2}),
        ("lax", {"epochs": 2, "target_kl": 0.01, "max_grad_norm": 0.01}),
        ("marginal", {"max_grad_norm": math.inf}),
        ("relax", {"surrogate_scale": "fitted"}),
        ("lax", {"surrogate_regression": 0.5}),
        ("relax", {"surrogate_replay": 2, "surrogate_steps": 3, "surrogate_regression": 0.5}),
        ("relax", {"surrogate_steps": 2, "epochs": 2, "minibatch_size": 8, "clip_range": 0.2}),
        ("a2c", {"value_replay": 2, "normalize_obs": True}),
        ("relax", {"value_replay": 1, "epochs": 2, "minibatch_size": 8, "clip_range": 0.2}),
    ],
)
def test_compiled_steps_are_those_of_eager_code(estimator: str, settings: dict[str, Any], traced_only: None) -> None:
    compiled, told = trained(estimator, "on", **settings)
    eager, expected = trained(estimator, "off", **settings)
    assert compiled.compiled is not None
    assert eager.compiled is None
    assert_alike(compiled, eager)
    assert len(told) == len(expected)
    for ours, theirs in zip(told, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert float(ours[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-4), name


def test_code_of_inductor_takes_the_steps_of_eager_code() -> None:
    if not compilation.has_compiler():
        pytest.skip("there is no C++ compiler")
    settings = {"hidden": (4,), "activation": "relu"}
    compiled, _ = trained("a2c", "on", **settings)
    again, _ = trained("a2c", "on", **settings)
    eager, _ = trained("a2c", "off", **settings)
    assert_alike(compiled, eager)
    for name, x in compiled.state_dict()[0].items():
        assert torch.equal(x, again.state_dict()[0][name]), name


def test_tracing_leaves_the_agent_as_it_was(traced_only: None) -> None:
    agent, _ = trained("relax", "off")
    rollout = rollout_for(agent)
    before = {name: x.clone() for name, x in agent.state_dict()[0].items()}
    grads = [part.grad.clone() for part in (*agent.theta, agent._phi)]  # type: ignore[attr-defined]
    batch, _, _ = agent.batch(rollout)
    inputs = {name: getattr(batch, name) for name in compiled_module._INPUTS if getattr(batch, name) is not None}
    compiled_module._compiled(agent, batch, {**inputs, "entropy_coef": torch.tensor(0.0)})
    for name, x in agent.state_dict()[0].items():
        assert torch.equal(x, before[name]), name
    for part, grad in zip((*agent.theta, agent._phi), grads, strict=True):  # type: ignore[attr-defined]
        assert torch.equal(part.grad, grad)


def rollout_for(agent: ActorCritic, *, reward: float = 1.0) -> Rollout:
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn((6, 4, *agent.observations.shape), generator=generator)
    noise = agent.sample_noise(5, 4)
    flags = torch.zeros((5, 4), dtype=torch.bool)
    return Rollout(
        obs=obs,
        action=torch.stack([agent.sample(obs[t], noise[t]) for t in range(5)]),
        noise=noise,
        reward=torch.full((5, 4), reward),
        terminated=flags,
        truncated=flags,
        valid=~flags,
        final_obs=obs[:0, 0],
        final_index=torch.empty((0, 2), dtype=torch.long),
    )


def test_nothing_moves_when_a_gradient_is_not_finite(traced_only: None) -> None:
    agent, _ = trained("relax", "on")
    rollout = rollout_for(agent, reward=float("nan"))
    before = {name: x.clone() for name, x in agent.state_dict()[0].items()}
    with pytest.raises(TrainingDiverged):
        agent.update(rollout)
    after = agent.state_dict()[0]
    for name, x in before.items():
        assert torch.equal(x, after[name]), name


def test_a_graph_is_kept_for_every_shape_of_batch(traced_only: None) -> None:
    agent, _ = trained("a2c", "on", epochs=2, minibatch_size=8, clip_range=0.2)
    assert agent.compiled is not None
    assert len(agent.compiled._graphs) == 2  # 8 rows, and the 4 that are left of 20


Change = Callable[[ActorCritic, pytest.MonkeyPatch], None]


def no_compiler(agent: ActorCritic, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    def search() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", search)
    compilation.has_compiler.cache_clear()


class FakeWorkers(type(ALONE)):  # type: ignore[misc]
    count = 2


def two_workers(agent: ActorCritic, monkeypatch: pytest.MonkeyPatch) -> None:
    agent.workers = FakeWorkers()


def nothing(agent: ActorCritic, monkeypatch: pytest.MonkeyPatch) -> None:
    pass


@pytest.mark.parametrize(
    ("kind", "obs", "settings", "change", "word"),
    [
        (A2C, spaces.Box(0, 255, (4, 84, 84), np.uint8), {"cnn_features": 8}, nothing, "images"),
        (RELAX, OBS, {"surrogate_steps": 2}, nothing, "surrogate"),
        (A2C, OBS, {}, no_compiler, r"install g\+\+"),
        (A2C, OBS, {}, two_workers, "single process"),
    ],
)
def test_what_cannot_be_compiled_is_said_in_one_line(
    kind: type[ActorCritic], obs: Any, settings: Any, change: Change, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = kind(obs, spaces.Discrete(2), compile="on", **settings)
    change(agent, monkeypatch)
    with pytest.raises(SettingsError, match=word) as caught:
        choose_step(agent, 1_000, 8)
    assert "\n" not in str(caught.value)
    automatic = kind(obs, spaces.Discrete(2), compile="auto", **settings)
    change(automatic, monkeypatch)
    assert choose_step(automatic, 10**9, 8) is None


def test_auto_compiles_long_runs_only(traced_only: None) -> None:
    agent = LAX(OBS, spaces.Box(-1, 1, (1,), np.float32), **SMALL)
    assert agent.config.compile == "auto"
    assert choose_step(agent, 100_000, 8) is None
    assert isinstance(choose_step(agent, 10_000_000, 8), CompiledStep)
    assert why_not_compiled(agent) is None
    off = LAX(OBS, spaces.Box(-1, 1, (1,), np.float32), compile="off", **SMALL)
    assert choose_step(off, 10_000_000, 8) is None


def test_a_run_that_cannot_be_compiled_leaves_nothing_behind(tmp_path: Path) -> None:
    config = preset_config("CartPole-v1", "relax", compile="on", surrogate_steps=2, run_dir=str(tmp_path / "run"))
    with pytest.raises(SettingsError, match="surrogate"):
        train(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings", [{}, {"epochs": 2, "minibatch_size": 8, "clip_range": 0.2}])
def test_where_the_compiler_fails_a_run_goes_on_without_unless_it_was_asked_for(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("C++ compile error\n\nOutput:\nx.cpp:1: fatal error: omp.h: No such file")

    monkeypatch.setattr(torch._inductor, "compile", fail)
    monkeypatch.setattr(compiled_module, "has_compiler", lambda: True)
    with pytest.raises(SettingsError, match=r"omp\.h: No such file.*--compile off"):
        trained("relax", "on", **settings)
    monkeypatch.setattr(compiled_module, "_COST", 0.0)
    with pytest.warns(UserWarning, match="eager code"):
        found, _ = trained("relax", "auto", **settings)
    assert found.compiled is None
    assert_alike(found, trained("relax", "off", **settings)[0])
