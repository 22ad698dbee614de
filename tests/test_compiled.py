"""Compiled gradients are those of eager code, it is said why where there are none, and they pay where `auto` takes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from relax_rl.agents import A2C, LAX, ActorCritic
from relax_rl.agents import compiled as compiled_module
from relax_rl.agents.compiled import CompiledGradients, why_not_compiled
from relax_rl.compute import compilation
from relax_rl.compute.distributed import ALONE
from relax_rl.errors import SettingsError, TrainingDiverged
from relax_rl.runs.training import train
from relax_rl.settings.presets import preset_config
from tests.steps import BOX, DISCRETE, OBS, assert_alike, assert_same, rollout_for, target_envs, trained

PASSES: dict[str, Any] = {"epochs": 2, "minibatch_size": 10, "clip_range": 0.2}
"""With minibatches of one size, and so one graph."""


@pytest.fixture(autouse=True)
def _compiler_is_looked_for_anew() -> Iterator[None]:
    yield
    compilation.has_compiler.cache_clear()


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the traced graph as it is: what is traced is what counts here, and inductor takes half a minute."""
    monkeypatch.setattr("relax_rl.compute.compilation._compile", lambda graph, inputs, key: graph)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")


@pytest.mark.parametrize(
    ("estimator", "settings"),
    [
        ("a2c", {}),
        ("reinforce", {"entropy_coef": 0.01}),
        ("lax", {**PASSES, "normalize_advantage": True}),
        ("relax", {"surrogate_loss": "critic", "residual_weight": 0.5}),
        ("lax", {"surrogate_loss": "critic", "residual_weight": 0.5, **PASSES}),
        ("relax", {"entropy_coef": 0.05, "entropy_schedule": "linear", "lr_schedule": "linear", "soft_returns": True}),
        ("relax", {"normalize_obs": True, "normalize_reward": True, "optimizer": "rmsprop", "surrogate_steps": 2}),
        ("relax", {"epochs": 3, "minibatch_size": 8, "clip_range": 0.2, "surrogate_steps": 2}),
        ("lax", {"epochs": 2, "target_kl": 0.01, "max_grad_norm": 0.01}),
        ("marginal", {"max_grad_norm": math.inf}),
        ("relax", {"surrogate_scale": "fitted"}),
        ("a2c", {"value_replay": 2, "normalize_obs": True}),
        (
            "relax",
            {
                **PASSES,
                "scale_advantage": True,
                "normalize_reward": True,
                "entropy_coef": 0.05,
            },
        ),
        ("relax", {"value_replay": 1, **PASSES}),
        ("relax", {**PASSES, "kl_bound": 0.001, "entropy_target": 0.5}),
        ("lax", {"epochs": 3, "kl_bound": 0.001, "kl_form": "penalty", "kl_schedule": "linear", "multiplier_lr": 0.3}),
        ("lax", {"entropy_target": -0.5, "squash": True, "kl_bound": 0.1}),
    ],
)
def test_compiled_steps_are_those_of_eager_code(estimator: str, settings: dict[str, Any], traced_only: None) -> None:
    told: list[Any] = []
    expected: list[Any] = []
    compiled = trained(estimator, compile="on", told=told, **settings)
    eager = trained(estimator, compile="off", told=expected, **settings)
    assert compiled.learner.compiled is not None
    assert eager.learner.compiled is None
    assert_alike(compiled, eager)
    assert len(told) == len(expected)
    for ours, theirs in zip(told, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert float(ours[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-4, nan_ok=True), name


def test_code_of_inductor_takes_the_steps_of_eager_code_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compilation.has_compiler():
        pytest.skip("there is no C++ compiler")
    monkeypatch.setenv("RELAX_RL_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled_module, "_LOADING", 0.0)
    settings: dict[str, Any] = {"hidden": (4,), "activation": "relu", "updates": 3}
    compiled = trained("a2c", compile="on", **settings)
    eager = trained("a2c", compile="off", **settings)
    assert_alike(compiled, eager)
    monkeypatch.setattr(compilation, "_compile", lambda *_: pytest.fail("it is kept"))
    again = trained("a2c", compile="auto", **settings)
    assert again.compiled_from == compiled.compiled_from == 0 and eager.compiled_from is None
    assert_same(compiled.state_dict()[0], again.state_dict()[0])
    other = trained("a2c", compile="auto", **{**settings, "activation": "tanh"})
    assert other.compiled_from is None and other.learner.compiled is None


def test_an_agent_that_is_gone_on_with_takes_compiled_code_again(
    tmp_path: Path, traced_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_module, "_COST", 0.0)
    agent = trained("a2c", compile="auto")
    agent.save(tmp_path / "agent.safetensors")
    monkeypatch.setattr(compiled_module, "_COST", 1e9)
    monkeypatch.setattr(compiled_module, "_LOADING", 0.0)
    for again, expected in ((A2C.load(tmp_path / "agent.safetensors"), 0), (trained("a2c", compile="auto"), None)):
        assert again.compiled_from == expected
        with target_envs(DISCRETE, n=4) as envs:
            again.learn(envs, 20)
        assert again.compiled_from == expected


def test_nothing_moves_when_a_gradient_is_not_finite(traced_only: None) -> None:
    agent = trained("relax", compile="on")
    rollout = rollout_for(agent, steps=5, reward=torch.full((5, 4), float("nan")))
    before = {name: x.clone() for name, x in agent.state_dict()[0].items()}
    with pytest.raises(TrainingDiverged):
        agent.update(rollout)
    assert_same(before, agent.state_dict()[0])


def test_a_graph_is_kept_for_every_shape_of_batch(traced_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[Any] = []
    compile = compilation.compile_function
    monkeypatch.setattr(
        compilation,
        "compile_function",
        lambda f, examples, key: shapes.append(len(examples[-1])) or compile(f, examples),
    )
    trained("a2c", compile="on", epochs=2, minibatch_size=8, clip_range=0.2)
    assert sorted(shapes) == [4, 8]  # 8 rows, and the 4 that are left of 20


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
    agent.learner.workers = FakeWorkers()


def nothing(agent: ActorCritic, monkeypatch: pytest.MonkeyPatch) -> None:
    pass


@pytest.mark.parametrize(
    ("obs", "settings", "change", "word"),
    [
        (spaces.Box(0, 255, (4, 84, 84), np.uint8), {"cnn_features": 8}, nothing, "images"),
        (OBS, {}, no_compiler, r"install g\+\+"),
        (OBS, {}, two_workers, "single process"),
    ],
)
def test_what_cannot_be_compiled_is_said_in_one_line(
    obs: Any, settings: dict[str, Any], change: Change, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = A2C(obs, spaces.Discrete(2), compile="on", **settings)
    change(agent, monkeypatch)
    with pytest.raises(SettingsError, match=word) as caught:
        agent.learner.choose_compiled(1_000, 8)
    assert "\n" not in str(caught.value)
    automatic = A2C(obs, spaces.Discrete(2), compile="auto", **settings)
    change(automatic, monkeypatch)
    automatic.learner.choose_compiled(10**9, 8)
    assert automatic.learner.compiled is None


def test_auto_compiles_long_runs_only(traced_only: None) -> None:
    agent, off = (LAX(OBS, BOX, num_steps=5, **more) for more in ({}, {"compile": "off"}))
    assert agent.config.compile == "auto" and why_not_compiled(agent.networks, 1) is None
    agent.learner.choose_compiled(100_000, 8)
    assert agent.learner.compiled is None
    for each in (agent, off):
        each.learner.choose_compiled(10_000_000, 8)
    assert isinstance(agent.learner.compiled, CompiledGradients) and off.learner.compiled is None


def test_a_run_that_cannot_be_compiled_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_module, "has_compiler", lambda: False)
    config = preset_config("CartPole-v1", "relax", compile="on", run_dir=str(tmp_path / "run"))
    with pytest.raises(SettingsError, match=r"install g\+\+"):
        train(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings", [{}, PASSES])
def test_where_the_compiler_fails_a_run_goes_on_without_unless_it_was_asked_for(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("C++ compile error\n\nOutput:\nx.cpp:1: fatal error: omp.h: No such file")

    monkeypatch.setattr("torch._inductor.aot_compile", fail)
    monkeypatch.setattr(compiled_module, "has_compiler", lambda: True)
    with pytest.raises(SettingsError, match=r"omp\.h: No such file.*--compile off"):
        trained("relax", compile="on", **settings)
    monkeypatch.setattr(compiled_module, "_COST", 0.0)
    with pytest.warns(UserWarning, match="eager code"):
        found = trained("relax", compile="auto", **settings)
    assert found.learner.compiled is None
    assert_alike(found, trained("relax", compile="off", **settings))
