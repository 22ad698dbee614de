"""The gradients of a step as compiled code: the numbers of eager code to rounding, from the same random draws.

The estimate, its way back through the model, and what the estimator learns are traced once for every shape of batch. Random
numbers are drawn outside, in the order in which eager code draws them, and handed in. Optimisers and everything that
watches stay outside too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from relax_rl.compute.compilation import NO_COMPILER, compile_function, has_compiler
from relax_rl.distributed import Workers
from relax_rl.errors import SettingsError
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.experiments.vae.gradient import LayeredEstimator
from relax_rl.experiments.vae.sbn import ConditionalNetwork, SigmoidBeliefNetwork

__all__ = ["CompiledStep", "compiles"]

WORTHWHILE = 30_000
"""Steps from which on `auto` compiles. A step saves 0.7 (REINFORCE) to 3.2 ms (RELAX) on two layers (vae_speed.py)."""


def compiles(config: VaeConfig, device: torch.device, workers: Workers) -> bool:
    """Whether a run's steps are compiled.

    Raises:
        SettingsError: compiled code is asked for and impossible.
    """
    if config.compile == "off" or (config.compile == "auto" and config.steps < WORTHWHILE):
        return False
    reason = None
    if device.type != "cpu":
        reason = f"it is for the CPU, not for {device}"
    elif workers.count > 1:
        reason = "it is for a single process"
    elif not has_compiler():
        reason = NO_COMPILER
    if reason is not None and config.compile == "on":
        raise SettingsError(f"compile is 'on', and that is not possible: {reason}, or leave it at auto")
    return reason is None


class CompiledStep:
    """Adds the gradients of model and estimator to `.grad`, as the estimator and `Gradient.backward` do.

    Args:
        model: whose parameters are read anew at every call.
        estimator: likewise, with its buffers, which move as in eager code.
    """

    def __init__(self, model: SigmoidBeliefNetwork, estimator: LayeredEstimator) -> None:
        self._both = _Both(model, estimator)
        self._parameters, self._buffers = list(self._both.parameters()), list(self._both.buffers())
        self._graphs: dict[tuple[int, ...], _Graph] = {}

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """`[B]` f at sampled bits of images `[B, D]`, without graph."""
        graph = self._graphs.get(tuple(x.shape))
        if graph is None:
            graph = self._graphs[tuple(x.shape)] = _compiled(self._both, x)
        drawn = [draw(generator) for draw in graph.draws]
        with torch.no_grad():
            loss, *found = graph.run(*self._parameters, *self._buffers, x, *drawn)
            for buffer, moved in zip(self._buffers, found, strict=False):
                buffer.copy_(moved)
        for place, gradient in zip(graph.learning, found[len(self._buffers) :], strict=True):
            parameter = self._parameters[place]
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return loss


class _Both(nn.Module):
    """Model and estimator as one module, so that all their tensors can be exchanged at once."""

    def __init__(self, model: SigmoidBeliefNetwork, estimator: LayeredEstimator) -> None:
        super().__init__()
        self.model, self.estimator = model, estimator

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        with _exchanged_steps(self.model):
            gradient = self.estimator(self.model, x, generator)
            gradient.backward(self.model)
        loss: Tensor = gradient.loss
        return loss


@dataclass(frozen=True)
class _Graph:
    """Compiled code.

    Attributes:
        run: parameters, buffers, images and random draws -> the loss, buffers and gradients.
        draws: one function of a generator for each draw.
        learning: places of the parameters that have a gradient.
    """

    run: Callable[..., tuple[Tensor, ...]]
    draws: Sequence[Callable[[torch.Generator], Tensor]]
    learning: Sequence[int]


class _Draws(TorchFunctionMode):
    """Takes the place of everything that a generator draws.

    Args:
        generator: whose draws are meant.
        given: handed out in order; if None, draws are made, and noted.
    """

    def __init__(self, generator: torch.Generator, given: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.generator, self.given = generator, None if given is None else list(given)
        self.draws: list[Callable[[torch.Generator], Tensor]] = []
        self.drawn: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is not self.generator:
            return func(*args, **kwargs)
        if self.given is not None:
            return self.given.pop(0)
        assert not any(isinstance(x, Tensor) for x in (*args, *kwargs.values())), f"{func} draws from what is computed"
        self.draws.append(lambda generator: func(*args, **{**kwargs, "generator": generator}))
        self.drawn.append(func(*args, **kwargs))
        return self.drawn[-1]


def _compiled(both: _Both, x: Tensor) -> _Graph:
    """Trace and compile the gradients for images of this shape."""
    both, generator = copy.deepcopy(both), torch.Generator().manual_seed(0)
    names = [name for name, _ in both.named_parameters()]
    buffers = [name for name, _ in both.named_buffers()]
    with _Draws(generator) as noted:
        trial = copy.deepcopy(both)
        trial(x, generator)
    learning = [place for place, parameter in enumerate(trial.parameters()) if parameter.grad is not None]

    def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors[: len(names)]]
        moving = [tensor.clone() for tensor in tensors[len(names) : len(names) + len(buffers)]]
        images, *drawn = tensors[len(names) + len(buffers) :]
        exchanged = dict(zip([*names, *buffers], [*leaves, *moving], strict=True))
        with _Draws(generator, drawn):
            loss = torch.func.functional_call(both, exchanged, (images, generator))
        found = [leaves[place].grad for place in learning]
        return (loss.detach(), *moving, *(gradient.detach() for gradient in found if gradient is not None))

    run = compile_function(gradients, [*both.parameters(), *both.buffers(), x, *noted.drawn])
    return _Graph(run, noted.draws, learning)


@contextmanager
def _exchanged_steps(model: SigmoidBeliefNetwork) -> Iterator[None]:
    """Networks keep their weights and biases in a list of steps as well, which is to hold those that are there now."""
    networks = [module for module in model.modules() if isinstance(module, ConditionalNetwork)]
    kept = [network.steps for network in networks]
    try:
        for network in networks:
            network.steps = list(zip(network.weights, network.biases, strict=True))
        yield
    finally:
        for network, steps in zip(networks, kept, strict=True):
            network.steps = steps
