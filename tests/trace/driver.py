"""All that a trace knows of the package: how agents, belief networks and contestants are made, filled and moved.

Everything else here deals in plain arrays and names, so that another inside of the package changes these lines alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from gymnasium import spaces

from relax_rl.agents import AGENTS
from relax_rl.agents.compiled import CompiledGradients
from relax_rl.agents.rollouts import Rollout
from relax_rl.backends.actions import ActionBins
from relax_rl.compute import compilation, distributed
from relax_rl.envs import Episode
from relax_rl.experiments.toy.config import ToyConfig
from relax_rl.experiments.toy.problem import Problem
from relax_rl.experiments.toy.training import train
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.experiments.vae.trainer import Trainer
from tests.trace.cases import AgentCase, Case, ToyCase, VaeCase
from tests.trace.experience import SIDE, Arrays

__all__ = ["ALONE", "AgentDriver", "VaeDriver", "compilable", "joined", "precision", "toy_run", "toy_takes"]

ALONE = distributed.ALONE
LEARNED = ("policy.", "value.", "surrogate.")
"""Beginnings of the names, in an agent's state, of what its gradients move."""
STATISTICS = ("obs_normalizer.", "reward_scaler.", "control_scale.")
"""Likewise of what runs along."""
MOMENTS = [(f"{part}_optimizer", kind) for part in ("policy", "value", "surrogate") for kind in ("mean", "square")]
"""Names of what an optimiser remembers, part and kind."""
SCHEDULE_END = 200
"""Environment steps at which schedules reach zero."""


@contextmanager
def precision(case: Case) -> Iterator[None]:
    """New tensors have the case's precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if case.single else torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def compilable() -> Iterator[None]:
    """Compiled steps run the traced graph as it is: what is traced is what counts, and inductor takes half a minute."""
    from torch._inductor import cpp_builder

    compilation.has_compiler.cache_clear()
    try:
        with (
            mock.patch.object(compilation, "_compile", lambda graph, inputs, key: graph),
            mock.patch.object(cpp_builder, "get_cpp_compiler", lambda: "g++"),
        ):
            yield
    finally:
        compilation.has_compiler.cache_clear()


def joined() -> Any:
    """A context in which this process is one of several workers."""
    return distributed.joined(timeout=60.0)


def _spaces(case: AgentCase) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    box = spaces.Box(-1.0, 1.0, (2,), np.float32)
    actions: dict[str, spaces.Space[Any]] = {
        "discrete": spaces.Discrete(3),
        "multi-discrete": spaces.MultiDiscrete([3, 2]),
        "bins": ActionBins(box, 5).space,
        "bits": spaces.MultiBinary(3),
        "box": box,
    }
    if case.images:
        return spaces.Box(0, 255, (1, SIDE, SIDE), np.uint8), actions[case.actions]
    return spaces.Box(-10.0, 10.0, (3,), np.float32), actions[case.actions]


class AgentDriver:
    """One agent.

    Args:
        case: which.
        compiled: whether it takes compiled steps.
        workers: those it learns with.
    """

    def __init__(self, case: AgentCase, *, compiled: bool = False, workers: distributed.Workers = ALONE) -> None:
        self.case = case
        settings = {**case.settings, "num_steps": case.num_steps}
        self.agent = AGENTS[case.estimator](*_spaces(case), seed=0, **settings)
        if workers.count > 1:
            self.agent.join(workers)
        if compiled:
            learner = self.agent.learner
            learner.compiled = CompiledGradients(learner.networks, learner.flat)

    def parameters(self) -> Arrays:
        """What the gradients move, by name."""
        return {name: x for name, x in self._state()[0].items() if name.startswith(LEARNED)}

    def statistics(self) -> Arrays:
        """What runs along, and how long the optimisers' moments are: Adam's steps hide the size of a gradient."""
        state = self._state()[0]
        moments = {f"{name}/norm": x for name, x in state.items() if name.partition(".")[::2] in MOMENTS}
        found = {name: np.asarray(np.linalg.norm(x)) for name, x in moments.items()}
        return found | {name: x for name, x in state.items() if name.startswith(STATISTICS)}

    def kept(self) -> set[str]:
        """Names in `parameters` of what starts as it does in a run."""
        return set()

    def start_from(self, parameters: Mapping[str, np.ndarray]) -> None:
        """Set the parameters, and begin schedules."""
        tensors, state = self.agent.state_dict()
        own = {name for name in tensors if name.startswith(LEARNED)}
        assert own == set(parameters), f"parameters have other names: {sorted(own ^ set(parameters))}"
        given = {name: torch.from_numpy(np.array(x)) for name, x in parameters.items()}
        self.agent.load_state_dict({**tensors, **given}, {**state, "schedule_start": 0, "schedule_end": SCHEDULE_END})

    def act(self, obs: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Noise and actions `[T, N, ...]` of the present policy on encoded observations `[T, N, ...]`."""
        self.agent.generator.manual_seed(seed)
        noise = self.agent.sample_noise(*obs.shape[:2])
        seen = self._tensor(obs)
        actions = torch.stack([self.agent.sample(*row) for row in zip(seen, self._tensor(noise.numpy()), strict=True)])
        return noise.numpy(), actions.numpy()

    def update(self, arrays: Arrays, seed: int) -> dict[str, float]:
        """Learn from a rollout, with a generator that starts from the seed; returns metrics."""
        self.agent.generator.manual_seed(seed)
        metrics = self.agent.update(self._rollout(arrays))
        return {name: float(value) for name, value in metrics.items()}

    def _state(self) -> tuple[Arrays, Mapping[str, Any]]:
        tensors, state = self.agent.state_dict()
        return {name: x.detach().numpy().copy() for name, x in tensors.items()}, state

    def _tensor(self, x: np.ndarray) -> torch.Tensor:
        """Real numbers in the case's precision, everything else as it is."""
        tensor = torch.from_numpy(np.ascontiguousarray(x))
        return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor

    def _rollout(self, arrays: Arrays) -> Rollout:
        episodes = tuple(Episode(float(each[-2]), int(each[-1])) for each in arrays["episodes"])
        tensors = {name: self._tensor(x) for name, x in arrays.items() if name != "episodes"}
        return Rollout(**tensors, episodes=episodes)


class _StoredBatches:
    """Hands out the images that it is given."""

    images: torch.Tensor

    def next(self, batch_size: int) -> torch.Tensor:
        assert len(self.images) == batch_size
        return self.images

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}


class VaeDriver:
    """A belief network and the estimator that moves it; arguments as for `AgentDriver`."""

    def __init__(self, case: VaeCase, *, compiled: bool = False, workers: distributed.Workers = ALONE) -> None:
        config = VaeConfig(
            estimator=case.estimator,
            batch_size=case.batch_size,
            compile="on" if compiled else "off",
            **case.settings,
        )
        mean = torch.linspace(0.2, 0.8, 12)
        self._batches = _StoredBatches()
        self.trainer = Trainer(config, mean, cast(Any, self._batches), "cpu", workers)

    def parameters(self) -> Arrays:
        """Of the model and of all estimators, buffers included."""
        return {
            f"{prefix}.{name}": x.detach().numpy().copy()
            for prefix, module in self._modules().items()
            for name, x in module.state_dict().items()
        }

    def statistics(self) -> Arrays:
        """How long the optimisers' first moments are: Adam's steps hide the size of a gradient."""
        states = {"model": self.trainer.optimizer.state_dict(), "estimator": self.trainer.main.optimizer.state_dict()}
        return {
            f"{name}_optimizer/norm": np.asarray(
                np.linalg.norm([float(x.norm()) for key, x in state.items() if ".mean." in key])
            )
            for name, state in states.items()
        }

    def kept(self) -> set[str]:
        """Names in `parameters` of what no gradient moves, and that starts as it does in a run."""
        return {f"{prefix}.{name}" for prefix, module in self._modules().items() for name, _ in module.named_buffers()}

    def start_from(self, parameters: Mapping[str, np.ndarray]) -> None:
        """Set the parameters."""
        for prefix, module in self._modules().items():
            begin = prefix + "."
            own = {name.removeprefix(begin): x for name, x in parameters.items() if name.startswith(begin)}
            module.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in own.items()})

    def update(self, images: np.ndarray, seed: int) -> dict[str, float]:
        """Take a step on a batch, with generators that start from the seed; returns metrics."""
        self._batches.images = torch.from_numpy(images).to(torch.get_default_dtype())
        for i, watched in enumerate([self.trainer.main, *self.trainer.others]):
            watched.generator.manual_seed(seed + 100 * i)
        self.trainer.take_step()
        return {"bound": self.trainer.take_train_bound(), **self.trainer.metrics()}

    def _modules(self) -> dict[str, torch.nn.Module]:
        others = {f"other{i}": other.estimator for i, other in enumerate(self.trainer.others)}
        return {"model": self.trainer.model, "estimator": self.trainer.main.estimator, **others}


def toy_takes(case: ToyCase) -> bool:
    """Whether the estimator is for the case's outcomes."""
    from relax_rl.estimators import describe

    return Problem(0.45, case.outcomes).kind in describe(case.estimator).outcomes


def toy_run(case: ToyCase) -> Arrays:
    """Step by step, what a contestant does and learns, `[steps + 1, seeds]` each, and where it ends."""
    config = ToyConfig(outcomes=case.outcomes, log_interval=1, quiet=True, **case.settings)
    run = train(case.estimator, Problem(config.target, case.outcomes), config)
    found = {"theta": run.theta, "expected_loss": run.expected_loss, "variance": run.variance, "params": run.params}
    found |= {f"learned/{name}": x for name, x in run.learned.items()}
    found |= {f"phi/{i}": x.detach() for i, x in enumerate(run.contestant.phi)}
    if run.exact is not None:
        found["exact_variance"] = run.exact
    return {name: x.numpy().copy() for name, x in found.items()}
