"""Steps recorded as CUDA graphs: on a stand-in for the device's graphs, and on a GPU where there is one."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from relax_rl.compilation import CompilationError, record
from relax_rl.cuda_graphs import Recording, same_numbers
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from relax_rl import compilation
from relax_rl.agents import AGENTS, ActorCritic
from relax_rl.agents import compiled as compiled_module
from relax_rl.agents.compiled import CompiledStep, choose_step, why_not_compiled
from relax_rl.envs import VectorEnvs
from relax_rl.errors import SettingsError
from tests.fakes import TargetEnv, vector_of
from tests.steps import assert_alike, shake

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
SMALL: dict[str, Any] = {"hidden": (8,), "surrogate_hidden": (8,), "num_steps": 5, "cnn_features": 8}


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

    assert same_numbers(function, function, [x, factor])
    with pytest.raises(CompilationError, match=r"other numbers.*--compile off"):
        record(told, [x, factor])


def test_waiting_for_the_device_cannot_be_recorded(cuda: None) -> None:
    with pytest.raises(CompilationError, match=r"not permitted when stream is capturing.*--compile off"):
        record(lambda x: (x * float(x.sum()),), [torch.randn(3)])


@pytest.mark.parametrize(
    ("found", "expected"), [([1.0, np.nan], [1.0, np.nan]), ([1.0, np.inf], [1.001, np.inf]), ([0.0], [0.0])]
)
def test_numbers_are_alike_to_rounding(found: list[float], expected: list[float]) -> None:
    assert same_numbers(lambda x: (torch.tensor(found),), lambda x: (torch.tensor(expected),), [torch.ones(1)])


@pytest.mark.parametrize(
    ("found", "expected"), [([1.0, np.nan], [1.0, 2.0]), ([1.0, 2.0], [1.0, np.nan]), ([1.0, 1.1], [1.0, 1.0])]
)
def test_other_numbers_are_other_numbers(found: list[float], expected: list[float]) -> None:
    assert not same_numbers(lambda x: (torch.tensor(found),), lambda x: (torch.tensor(expected),), [torch.ones(1)])


class ImageEnv(TargetEnv):
    """TargetEnv seen as images."""

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        super().__init__(action_space)
        self.observation_space = spaces.Box(0, 255, (1, 36, 36), np.uint8)

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        return self._image(obs), info

    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return self._image(obs), *rest

    def _image(self, obs: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(obs.tobytes()))
        return rng.integers(0, 256, self.observation_space.shape, dtype=np.uint8)


def trained(estimator: str, images: bool, compile: str, device: str = "cpu", **settings: Any) -> ActorCritic:
    space: Any = spaces.Box(-1, 1, (2,), np.float32) if estimator == "lax" else spaces.Discrete(3)
    env = ImageEnv if images else TargetEnv
    with VectorEnvs(vector_of([lambda: env(space)] * 4, AutoresetMode.SAME_STEP), seed=0) as envs:
        options = {**SMALL, **settings, "compile": compile, "device": device}
        agent = AGENTS[estimator](envs.single_observation_space, space, seed=0, **options)
        shake(agent)
        agent.learn(envs, 100)
    return agent


CASES: list[tuple[str, bool, dict[str, Any]]] = [
    ("a2c", False, {"normalize_obs": True, "value_replay": 1}),
    ("relax", False, {"entropy_coef": 0.05, "entropy_schedule": "linear", "surrogate_scale": "fitted"}),
    ("lax", False, {"epochs": 2, "minibatch_size": 8, "clip_range": 0.2}),
    ("a2c", True, {"entropy_coef": 0.01, "optimizer": "rmsprop"}),
    ("relax", True, {"entropy_coef": 0.01, "entropy_schedule": "linear"}),
    ("relax", True, {"epochs": 2, "minibatch_size": 8, "clip_range": 0.2}),
    ("relax", True, {"surrogate_replay": 2}),
]


@pytest.fixture
def recorded_on_the_cpu(cuda: None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Agents on the CPU take recorded steps; one number for every recording."""
    lengths: list[int] = []

    def stand_in(function: Any, examples: Any) -> Any:
        inputs = [x.detach().clone() for x in examples]
        recording = record(make_fx(function)(*inputs), inputs)
        assert isinstance(recording, Recording)
        lengths.append(len(recording._graph.operations))  # type: ignore[attr-defined]
        return recording

    monkeypatch.setattr(compiled_module, "compile_function", stand_in)
    monkeypatch.setattr(compiled_module, "why_not_compiled", lambda agent: None)
    return lengths


@pytest.mark.parametrize(("estimator", "images", "settings"), CASES)
def test_recorded_steps_are_those_of_eager_code(
    estimator: str, images: bool, settings: dict[str, Any], recorded_on_the_cpu: list[int]
) -> None:
    recorded = trained(estimator, images, "on", **settings)
    assert isinstance(recorded.compiled, CompiledStep)
    assert recorded_on_the_cpu and min(recorded_on_the_cpu) > 20
    assert_alike(recorded, trained(estimator, images, "off", **settings))


def test_a_recording_that_fails_leaves_an_agent_on_images_to_eager_code(
    recorded_on_the_cpu: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(function: Any, examples: Any) -> Any:
        raise CompilationError("no memory")

    monkeypatch.setattr(compiled_module, "compile_function", fail)
    monkeypatch.setattr(compiled_module, "_pays", lambda agent, steps, envs: True)
    passes = {"epochs": 2, "minibatch_size": 8, "clip_range": 0.2}
    for settings in ({}, passes):
        with pytest.warns(UserWarning, match=r"no memory.*eager code"):
            found = trained("relax", True, "auto", **settings)
        assert found.compiled is None
        assert_alike(found, trained("relax", True, "off", **settings))
    with pytest.raises(SettingsError, match="no memory"):
        trained("relax", True, "on")


@pytest.mark.parametrize(("estimator", "images", "settings"), CASES)
def test_no_step_leaves_its_device_or_waits_for_it(estimator: str, images: bool, settings: dict[str, Any]) -> None:
    """On the device "meta" there are no numbers: whoever asks for one fails, and so does who mixes it with the CPU."""
    agent = trained(estimator, images, "off", **settings)
    inputs, batch = batch_for(agent)
    data = {name: flat.data.to("meta") for name, flat in compiled_module._flat_parameters(agent).items()}
    agent.device = torch.device("meta")
    grads, metrics, _ = compiled_module._gradients(
        agent, batch, data, {name: x.to("meta") for name, x in inputs.items()}
    )
    assert all(grad.is_meta for grad in grads)
    assert all(torch.as_tensor(x, device="meta").is_meta for x in metrics.values())


def batch_for(agent: ActorCritic) -> tuple[dict[str, Tensor], Any]:
    """A batch as a compiled step gets it, and its inputs by name."""
    space = agent.action_space
    env = ImageEnv if agent.shared_torso else TargetEnv
    agent.compiled = CompiledStep()
    with VectorEnvs(vector_of([lambda: env(space)] * 4, AutoresetMode.SAME_STEP), seed=0) as envs:
        rollout = agent.collect(agent.collector(envs))
        batch, _, _ = agent.batch(rollout)
        if agent.value_replay is not None:
            batch = agent.value_replay.join(batch, batch.features, agent.reward_unit)
    inputs = {name: x for name in compiled_module._INPUTS if (x := getattr(batch, name)) is not None}
    return {**inputs, "entropy_coef": torch.tensor(0.01)}, batch


def test_auto_records_on_a_gpu_and_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    image = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    agent = AGENTS["relax"](image, spaces.Discrete(2), cnn_features=8, num_steps=5)
    agent.device = torch.device("cuda")
    monkeypatch.setattr(compilation, "has_compiler", lambda: False)
    assert why_not_compiled(agent) is None
    assert isinstance(choose_step(agent, 1_000_000, 16), CompiledStep)
    assert choose_step(agent, 10_000, 16) is None
    agent.device = torch.device("mps")
    assert "mps" in str(why_not_compiled(agent))


@on_cuda
@pytest.mark.parametrize(("estimator", "images", "settings"), CASES)
def test_steps_recorded_on_a_gpu_are_those_of_eager_code(
    estimator: str, images: bool, settings: dict[str, Any]
) -> None:
    recorded = trained(estimator, images, "on", "cuda", **settings)
    assert isinstance(recorded.compiled, CompiledStep)
    assert_alike(recorded, trained(estimator, images, "off", "cuda", **settings), 1e-3)
