"""The gradients of a step as one compiled graph: the same numbers to rounding, without Python between the kernels.

What an agent does in eager code is traced once for every shape of batch, autograd, closed forms and clipping alike.
Optimisers and all decisions stay outside.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from relax_rl.agents.ascent import entropy_weight, move, pull_back
from relax_rl.agents.batch import Batch, batch_statistics
from relax_rl.agents.optimizers import Adam, FlatParameters, RMSprop
from relax_rl.compilation import NO_COMPILER, compile_function, has_compiler
from relax_rl.errors import SettingsError

if TYPE_CHECKING:
    from relax_rl.agents.base import ActorCritic

__all__ = ["CompiledStep", "choose_step", "why_not_compiled", "with_graph"]

_COST = 40.0
"""Seconds that compiling takes where nothing is cached, roughly."""
_SAVED, _SAVED_PER_ROW = 0.8e-3, 1.5e-6
"""Seconds that a compiled step saves, roughly: whatever the batch, and for each of its rows."""
_RECORDED = 1_000
"""Steps from which on a CUDA graph is recorded, which itself runs the step seven times, once under a tracer."""
_INPUTS = (
    *("features", "action", "noise", "advantage", "return_", "weight", "old_log_prob", "control_scale"),
    *("past_obs", "past_return", "past_weight"),
)


def why_not_compiled(agent: ActorCritic) -> str | None:
    """The reason why an agent's step cannot be compiled, or None if it can."""
    if agent.device.type not in ("cpu", "cuda"):
        return f"it is for the CPU and for CUDA, not for {agent.device}"
    config = agent.config
    if config.surrogate_steps > 1 and config.epochs == 1 and not config.surrogate_replay:
        return "within a step of the policy it is for a single step of the surrogate"
    if agent.workers.count > 1:
        return "it is for a single process"
    if agent.device.type == "cuda":
        return None
    if agent.shared_torso:
        return "on a CPU it is for vector observations: the convolutions on images gain nothing"
    return None if has_compiler() else NO_COMPILER


def choose_step(agent: ActorCritic, total_steps: int, num_envs: int) -> CompiledStep | None:
    """What takes an agent's steps over that many environment steps: None for eager code.

    Raises:
        SettingsError: if compiled code is asked for and impossible.
    """
    config = agent.config
    if config.compile == "off":
        return None
    if config.compile == "auto" and not _pays(agent, total_steps, num_envs):
        return None
    reason = why_not_compiled(agent)
    if reason is None:
        return CompiledStep()
    if config.compile == "on":
        raise SettingsError(f"compile is 'on', and that is not possible: {reason}, or leave it at auto")
    return None


def _pays(agent: ActorCritic, total_steps: int, num_envs: int) -> bool:
    """Whether compiled steps save more over a whole run than it takes to make them."""
    config, rows = agent.config, num_envs * agent.config.num_steps
    size = min(config.minibatch_size or rows, rows)
    steps = total_steps / rows * config.epochs * math.ceil(rows / size)
    if agent.device.type == "cuda":
        return steps >= _RECORDED
    return steps * (_SAVED + _SAVED_PER_ROW * size) >= _COST


def with_graph(agent: ActorCritic, batch: Batch) -> tuple[Batch, Tensor, Tensor]:
    """What eager code needs of a batch that was made for compiled code: the policy's parameters and V with their graphs."""
    params, value, features = agent._networks(batch.features, len(batch.features))
    dist = batch.dist.with_params(params.detach().requires_grad_())
    return replace(batch, features=features, dist=dist), params, value


class CompiledStep:
    """Takes the place of the eager step; keeps a graph for every shape of batch that it meets."""

    def __init__(self) -> None:
        self._graphs: dict[tuple[Any, ...], _Graph] = {}

    def __call__(self, agent: ActorCritic, batch: Batch) -> dict[str, Tensor | float]:
        """One step of policy, value function and surrogate; returns metrics.

        Raises:
            TrainingDiverged: if the gradient is not finite; nothing has moved then.
        """
        agent.watch("update")
        inputs = {name: x.contiguous() for name in _INPUTS if (x := getattr(batch, name)) is not None}
        # The number of rows is that of all inputs, and their widths are the agent's.
        key = (torch.get_num_threads(), batch.clip_range, len(batch.weight), *inputs)
        inputs["entropy_coef"] = torch.full((), entropy_weight(agent), device=agent.device)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = _compiled(agent, batch, inputs)
        with torch.inference_mode():
            *gradients, metrics = graph.run(*(flat.data for flat in graph.flats), *inputs.values())
            for flat, gradient in zip(graph.flats, gradients, strict=True):
                flat.grad.copy_(gradient)
        found: dict[str, Tensor | float] = dict(zip(graph.metrics, metrics.unbind(), strict=True))
        found |= move(agent, float(found["policy/grad_norm"]))
        factor = agent.schedule_factor(agent.config.lr_schedule)
        for name in graph.stepped:
            getattr(agent, name).step(factor)
        return found


@dataclass(frozen=True)
class _Graph:
    """Compiled code.

    Attributes:
        run: flat parameters and inputs -> flat gradients, clipped, then all metrics as one vector.
        flats: the agent's.
        metrics: their names.
        stepped: the agent's further optimisers, which take a step once the gradients are known.
    """

    run: Callable[..., tuple[Tensor, ...]]
    flats: tuple[FlatParameters, ...]
    metrics: tuple[str, ...]
    stepped: tuple[str, ...]


class _Leaves:
    """Stands in for `FlatParameters` while a graph is traced."""

    def __init__(self, flat: FlatParameters, data: Tensor) -> None:
        sizes = [parameter.numel() for parameter in flat.parameters]
        self._orders = [_order_in_memory(parameter) for parameter in flat.parameters]
        self.parameters = []
        for parameter, order, piece in zip(flat.parameters, self._orders, data.split(sizes), strict=True):
            laid_out = piece.detach().view([parameter.shape[dim] for dim in order])
            back = [order.index(dim) for dim in range(len(order))]
            self.parameters.append(laid_out.permute(back).requires_grad_())
        self.zero_grad()

    @property
    def grad(self) -> Tensor:
        """All gradients, flat."""
        grads = [parameter.grad for parameter in self.parameters]
        return torch.cat(
            [grad.permute(order).flatten() for grad, order in zip(grads, self._orders, strict=True) if grad is not None]
        )

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)


def _order_in_memory(parameter: Tensor) -> list[int]:
    """Its dimensions as they lie in memory, outermost first: channels last for convolutions."""
    return sorted(range(parameter.dim()), key=parameter.stride, reverse=True)


class _Idle:
    """Stands in for an optimiser while a graph is traced; notes that a step was asked for."""

    def __init__(self) -> None:
        self.steps = 0

    def step(self, factor: float = 1.0) -> None:
        self.steps += 1


class _Everything(nn.Module):
    """All of an agent's modules, so that their parameters can be exchanged while a function runs."""

    def __init__(self, modules: Mapping[str, nn.Module], function: Callable[[], Any]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(modules)
        self.function = function

    def forward(self) -> Any:
        return self.function()


def _flat_parameters(agent: ActorCritic) -> dict[str, FlatParameters]:
    """Everything that is trained, by the attribute that holds it."""
    others = {name: x for name, x in vars(agent).items() if isinstance(x, FlatParameters)}
    return {"policy": agent.theta[0], "value": agent.theta[1], **others}


def _compiled(agent: ActorCritic, batch: Batch, inputs: Mapping[str, Tensor]) -> _Graph:
    """Trace the eager step on these inputs and compile it."""
    flats = _flat_parameters(agent)
    noted: dict[str, Any] = {}

    def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        data = dict(zip(flats, tensors[: len(flats)], strict=True))
        given: dict[str, Any] = dict(zip(inputs, tensors[len(flats) :], strict=True))
        grads, metrics, stepped = _gradients(agent, batch, data, given)
        noted.update(metrics=tuple(metrics), stepped=stepped)
        vector = torch.stack([torch.as_tensor(x, device=agent.device).detach().reshape(()) for x in metrics.values()])
        return (*(grad.detach() for grad in grads), vector)

    run = compile_function(gradients, [*(flat.data for flat in flats.values()), *inputs.values()])
    return _Graph(run, tuple(flats.values()), noted["metrics"], noted["stepped"])


def _gradients(
    agent: ActorCritic, batch: Batch, data: Mapping[str, Tensor], given: dict[str, Any]
) -> tuple[list[Tensor], dict[str, Tensor | float], tuple[str, ...]]:
    """What the eager step computes, at parameters and inputs that are not the agent's own.

    Args:
        agent: is left as it was.
        batch: what does not stand in `given` is taken from it.
        data: flat parameters.
        given: tensors of the batch, and `entropy_coef`.

    Returns:
        The flat gradients, those of policy and value function clipped, metrics, and which further optimisers took a step.
    """
    flats, agent = _flat_parameters(agent), copy.copy(agent)
    leaves = {name: _Leaves(flat, data[name]) for name, flat in flats.items()}
    idle = {name: _Idle() for name, x in vars(agent).items() if isinstance(x, Adam | RMSprop)}
    own = {name: x for name, x in leaves.items() if name not in ("policy", "value")}
    vars(agent).update({"theta": (leaves["policy"], leaves["value"]), **own, **idle})
    entropy_coef = given.pop("entropy_coef")
    metrics: dict[str, Tensor | float] = {}

    def step() -> None:
        obs = given["features"]
        params, value, features = agent._networks(obs, len(obs))
        dist = batch.dist.with_params(params.detach().requires_grad_())
        rows = replace(batch, **{**given, "features": features, "dist": dist})
        estimated = agent.estimate(rows)
        loss = pull_back(agent, rows, params, value, estimated.grad, entropy_coef)
        metrics["losses/value"] = loss
        if agent.learns_along(rows):
            metrics.update(agent.train_surrogate(rows, estimated))
        metrics.update(batch_statistics(rows, value.detach(), agent._gradients(rows, estimated)))
        metrics.update(agent._sums(rows, estimated))

    modules = {name: x for name, x in agent.components().items() if isinstance(x, nn.Module)}
    everything = _Everything(modules, step)
    places = {id(parameter): name for name, parameter in everything.named_parameters()}
    exchanged = {
        places[id(parameter)]: leaf
        for name, flat in flats.items()
        for parameter, leaf in zip(flat.parameters, leaves[name].parameters, strict=True)
    }
    torch.func.functional_call(everything, exchanged)
    of_policy, of_value, *others = (x.grad for x in leaves.values())
    norm = torch.hypot(torch.linalg.vector_norm(of_policy), torch.linalg.vector_norm(of_value))
    kept = (agent.config.max_grad_norm / norm).clamp(max=1.0)
    metrics["policy/grad_norm"] = norm
    stepped = tuple(name for name, x in idle.items() if x.steps)
    return [of_policy * kept, of_value * kept, *others], metrics, stepped
