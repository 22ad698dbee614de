"""Steps recorded as CUDA graphs: on a stand-in for the device's graphs, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from relax_rl.agents import compiled as compiled_module
from relax_rl.agents.batch import Batch
from relax_rl.agents.compiled import Choice, CompiledGradients, choose, why_not_compiled
from relax_rl.agents.gradients import Objective
from relax_rl.compute import compilation
from relax_rl.compute.compilation import CompilationError, agree, record
from relax_rl.compute.cuda_graphs import Recording
from relax_rl.compute.optimizers import FlatParameters
from relax_rl.errors import SettingsError
from relax_rl.settings.config import AgentConfig
from tests.fakes import ImageEnv, TargetEnv
from tests.steps import assert_alike, off_policy, target_envs, trained

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


class FakeGraph:
    """What a CUDA graph does, on the CPU: the same operations on the same memory, and no number comes to the host."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        for function, args, kwargs, outputs in self.operations:
            found = function(*args, **kwargs)
            for place, x in zip(_tensors(outputs), _tensors(found), strict=True):
                place.copy_(x)


class Recorder(TorchDispatchMode):
    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        given = tree_map(_alias, args), tree_map(_alias, kwargs)
        outputs = func(*args, **kwargs)
        self.graph.operations.append((func, *given, tree_map(_alias, outputs)))
        return outputs


def _alias(x: Any) -> Any:
    """The same memory, seen as it is now: a later operation may give a tensor another shape in place."""
    return x.detach() if isinstance(x, Tensor) else x


def _tensors(outputs: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(lambda x: found.append(x) if isinstance(x, Tensor) else None, outputs)
    return found


class FakeStream:
    def wait_stream(self, other: Any) -> None:
        pass


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda as far as recordings use it."""

    @contextmanager
    def capturing(graph: FakeGraph) -> Iterator[None]:
        with Recorder(graph):
            yield

    for name, stand_in in {
        "device": lambda device: nullcontext(),
        "current_stream": FakeStream,
        "Stream": FakeStream,
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": FakeGraph,
        "graph": capturing,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)


def test_a_recording_computes_anew_what_it_recorded(cuda: None) -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        total = torch.zeros_like(x)
        total += x
        return total.t() @ y, (total * 2).sum()

    x, y = torch.randn(3, 4), torch.randn(3, 2)
    recording = Recording(function, [x, y])
    for _ in range(3):
        inputs = torch.randn(3, 4), torch.randn(3, 2)
        torch.testing.assert_close(recording(*inputs), function(*inputs))
    first = recording(x, y)
    recording(y.new_ones(3, 4), y)
    torch.testing.assert_close(first, function(x, y))  # what came back stays as it is


def test_a_number_of_the_host_that_stays_as_it_was_is_found(cuda: None) -> None:
    def function(x: Tensor, factor: Tensor) -> tuple[Tensor, ...]:
        return (x * factor_on_host[0],)

    factor_on_host = [2.0]
    x, factor = torch.randn(5), torch.tensor(2.0)

    def told(x: Tensor, factor: Tensor) -> tuple[Tensor, ...]:
        factor_on_host[0] = factor.numpy().item()  # a way to the host that no recording sees
        return function(x, factor)

    with pytest.raises(CompilationError, match=r"other numbers.*--compile off"):
        record(told, [x, factor])


def test_waiting_for_the_device_cannot_be_recorded(cuda: None) -> None:
    with pytest.raises(CompilationError, match=r"not permitted when stream is capturing.*--compile off"):
        record(lambda x: (x * float(x.sum()),), [torch.randn(3)])


@pytest.mark.parametrize(
    ("found", "expected"), [([1.0, np.nan], [1.0, np.nan]), ([1.0, np.inf], [1.001, np.inf]), ([0.0], [0.0])]
)
def test_numbers_are_alike_to_rounding(found: list[float], expected: list[float]) -> None:
    assert agree([torch.tensor(found)], [torch.tensor(expected)])


@pytest.mark.parametrize(
    ("found", "expected"), [([1.0, np.nan], [1.0, 2.0]), ([1.0, 2.0], [1.0, np.nan]), ([1.0, 1.1], [1.0, 1.0])]
)
def test_other_numbers_are_other_numbers(found: list[float], expected: list[float]) -> None:
    assert not agree([torch.tensor(found)], [torch.tensor(expected)])


CASES: list[tuple[str, type[TargetEnv], dict[str, Any]]] = [
    ("a2c", TargetEnv, {"normalize_obs": True, "value_replay": 1}),
    ("relax", TargetEnv, {"entropy_coef": 0.05, "entropy_schedule": "linear", "surrogate_scale": "fitted"}),
    ("lax", TargetEnv, {"epochs": 2, "minibatch_size": 8, "clip_range": 0.2}),
    ("a2c", ImageEnv, {"entropy_coef": 0.01, "optimizer": "rmsprop"}),
    ("relax", ImageEnv, {"entropy_coef": 0.01, "entropy_schedule": "linear"}),
    ("relax", ImageEnv, {"epochs": 2, "minibatch_size": 10, "clip_range": 0.2}),
    ("relax", ImageEnv, {"surrogate_steps": 2}),
    ("lax", TargetEnv, {"epochs": 2, "minibatch_size": 10, "kl_bound": 0.01, "entropy_target": 0.5, "squash": True}),
    ("lax", TargetEnv, {"surrogate_loss": "critic", "critic_loss": "hl_gauss", "residual_weight": "adaptive"}),
    ("relax", TargetEnv, {"surrogate_loss": "critic", "critic_loss": "hl_gauss", "value_replay": 1}),
]


@pytest.fixture
def recorded_on_the_cpu(cuda: None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Agents on the CPU take recorded steps; one number for every recording."""
    lengths: list[int] = []

    def stand_in(function: Any, examples: Any, *, key: str | None) -> Any:
        inputs = [x.detach().clone() for x in examples]
        recording = record(make_fx(function)(*inputs), inputs)
        assert isinstance(recording, Recording)
        lengths.append(len(recording._graph.operations))  # type: ignore[attr-defined]
        return recording

    monkeypatch.setattr(compilation, "compile_function", stand_in)
    monkeypatch.setattr(compiled_module, "why_not_compiled", lambda networks, workers: None)
    return lengths


@pytest.mark.parametrize(("estimator", "env", "settings"), CASES)
def test_recorded_steps_are_those_of_eager_code(
    estimator: str, env: type[TargetEnv], settings: dict[str, Any], recorded_on_the_cpu: list[int]
) -> None:
    recorded = trained(estimator, env=env, compile="on", **settings)
    assert isinstance(recorded.learner.compiled, CompiledGradients)
    assert recorded_on_the_cpu and min(recorded_on_the_cpu) > 20
    assert_alike(recorded, trained(estimator, env=env, compile="off", **settings))


def test_a_recording_that_fails_leaves_an_agent_on_images_to_eager_code(
    recorded_on_the_cpu: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(function: Any, examples: Any, *, key: str | None) -> Any:
        raise CompilationError("no memory")

    monkeypatch.setattr(compilation, "compile_function", fail)
    monkeypatch.setattr(compiled_module, "_COST", 0.0)
    passes = {"epochs": 2, "minibatch_size": 8, "clip_range": 0.2}
    for settings in ({}, passes):
        with pytest.warns(UserWarning, match=r"no memory.*eager code"):
            found = trained("relax", env=ImageEnv, compile="auto", **settings)
        assert found.learner.compiled is None
        assert_alike(found, trained("relax", env=ImageEnv, compile="off", **settings))
    with pytest.raises(SettingsError, match="no memory"):
        trained("relax", env=ImageEnv, compile="on")


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(("estimator", "env", "settings"), CASES[:5])
def test_no_gradient_leaves_its_device_or_waits_for_it(
    estimator: str, env: type[TargetEnv], settings: dict[str, Any], later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the device "meta" there are no numbers: whoever asks for one fails, and so does who mixes it with the CPU."""

    def as_it_is(function: Any, examples: Any, *, key: str | None) -> Any:
        def run(*inputs: Tensor) -> Any:
            with torch.inference_mode(False):
                return function(*(x.clone() for x in inputs))

        return run

    monkeypatch.setattr(compilation, "compile_function", as_it_is)
    monkeypatch.setattr(compilation, "agree", lambda found, expected: True)
    agent = trained(estimator, env=env, compile="off", **settings)
    with target_envs(agent.action_space, n=4, env=env) as envs:
        batch, _ = agent.batch(agent.collect(agent.collector(envs)))
    if agent.value_replay is not None:
        batch = agent.value_replay.join(batch, agent.reward_unit)
    if later:
        params, one = agent.policy(batch.obs).detach(), torch.tensor(1.0)
        batch = replace(batch, old_params=params, kl_bound=one, kl_multiplier=one, entropy_coef=one)
        batch = off_policy(agent, batch, batch.weight)
    batch = Batch(shard=batch.shard, **{name: x.to("meta") for name, x in batch.tensors().items()})
    networks = agent.networks.to("meta")
    flat = {name: FlatParameters(part.parameters()) for name, part in networks.parts().items()}
    objective = Objective(
        agent.estimator, tuple(flat), off_policy=later, clip_range=0.2, max_grad_norm=0.5, entropy_target=later
    )
    found = CompiledGradients(networks, flat)(batch, objective)
    tensors = [x for kind in (found.of, found.sums, found.metrics) for x in kind.values()]
    assert len(tensors) > 6 and all(x.is_meta for x in tensors)


class On:
    """Networks on images, on some device."""

    reads_large_images, recurrent = True, False

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.is_cuda = self.device.type == "cuda"

    def parameters(self) -> Any:
        return iter([self])


def test_auto_records_on_a_gpu_and_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    networks: Any = On("cuda")
    monkeypatch.setattr(compiled_module, "has_compiler", lambda: False)
    assert why_not_compiled(networks, 1) is None
    for total_steps, expected in ((1_000_000, Choice.COMPILED), (10_000, Choice.EAGER)):
        run = {"workers": 1, "total_steps": total_steps, "num_envs": 16}
        assert choose(AgentConfig(num_steps=5), networks, **run) is expected
    mps: Any = On("mps")
    assert "mps" in str(why_not_compiled(mps, 1))


@on_cuda
@pytest.mark.parametrize(("estimator", "env", "settings"), CASES)
def test_steps_recorded_on_a_gpu_are_those_of_eager_code(
    estimator: str, env: type[TargetEnv], settings: dict[str, Any]
) -> None:
    recorded = trained(estimator, env=env, compile="on", device="cuda", **settings)
    assert isinstance(recorded.learner.compiled, CompiledGradients)
    assert_alike(recorded, trained(estimator, env=env, compile="off", device="cuda", **settings), 1e-3)
