"""Optimisers on parameters laid out flat."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from relax_rl.fused_adam import fused_adam_

__all__ = ["Adam", "FlatParameters", "Optimizer", "RMSprop", "clip_norm_"]


class FlatParameters:
    """Parameters as views of one tensor, and their gradients as views of its gradient.

    Clipping, the optimiser's step (and averaging over processes) then cost a few kernels instead of a few per
    parameter, which for small networks is most of their time. The layout in memory of each parameter is kept.

    Attributes:
        data: the tensor that holds them all.
        grad: all their gradients.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        sizes = [parameter.numel() for parameter in self.parameters]
        self.data = self.parameters[0].detach().new_empty(sum(sizes))
        self.grad = torch.zeros_like(self.data)
        for parameter, place, grad in zip(self.parameters, self.data.split(sizes), self.grad.split(sizes), strict=True):
            view = place.as_strided(parameter.shape, parameter.stride())
            view.copy_(parameter.detach())
            parameter.data = view
            parameter.grad = grad.as_strided(parameter.shape, parameter.stride())

    def zero_grad(self) -> None:
        """Set all gradients to zero, in place."""
        self.grad.zero_()


def clip_norm_(parts: Iterable[FlatParameters], max_norm: float) -> float:
    """Scale gradients so that together they have the norm `max_norm` at most; returns the norm before."""
    parts = list(parts)
    norm = math.hypot(*(float(torch.linalg.vector_norm(part.grad)) for part in parts))
    if norm > max_norm:
        for part in parts:
            part.grad.mul_(max_norm / norm)
    return norm


class Optimizer(Protocol):
    """Steps one `FlatParameters` down its gradient."""

    def step(self, factor: float = 1.0) -> None:
        """One step, with the learning rate times `factor`."""

    def state_dict(self) -> dict[str, Tensor]:
        """The state as tensors."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave; ValueError if it belongs to other parameters."""


class Adam:
    """Adam (Kingma and Ba 2015) with the numbers of `torch.optim.Adam`, to rounding, in one kernel on one flat tensor."""

    def __init__(
        self, parameters: FlatParameters, *, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.parameters, self.lr, self.betas, self.eps = parameters, lr, betas, eps
        self.steps = 0
        self.mean, self.square = torch.zeros_like(parameters.data), torch.zeros_like(parameters.data)
        self._count = torch.zeros((), dtype=torch.float32, device=parameters.data.device)

    def step(self, factor: float = 1.0) -> None:
        self.steps += 1
        fused_adam_(
            [self.parameters.data],
            [self.parameters.grad],
            [self.mean],
            [self.square],
            self._count.fill_(self.steps),
            lr=self.lr * factor,
            betas=self.betas,
            eps=self.eps,
        )

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "square": self.square, "steps": torch.tensor(self.steps, dtype=torch.int64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        _restore(self.mean, state["mean"])
        _restore(self.square, state["square"])
        self.steps = int(state["steps"])


class RMSprop:
    """RMSprop (Tieleman and Hinton 2012) with the constants A2C is usually run with; as `torch.optim.RMSprop`."""

    def __init__(self, parameters: FlatParameters, *, lr: float, decay: float = 0.99, eps: float = 1e-5) -> None:
        self.parameters, self.lr, self.decay, self.eps = parameters, lr, decay, eps
        self.square = torch.zeros_like(parameters.data)
        self._denominator = torch.empty_like(parameters.data)

    def step(self, factor: float = 1.0) -> None:
        grad = self.parameters.grad
        self.square.mul_(self.decay).addcmul_(grad, grad, value=1.0 - self.decay)
        denominator = torch.sqrt(self.square, out=self._denominator).add_(self.eps)
        self.parameters.data.addcdiv_(grad, denominator, value=-self.lr * factor)

    def state_dict(self) -> dict[str, Tensor]:
        return {"square": self.square}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        _restore(self.square, state["square"])


def _restore(target: Tensor, source: Tensor) -> None:
    if target.shape != source.shape:
        raise ValueError(f"an optimiser's state is for {source.numel()} parameters, there are {target.numel()}")
    target.copy_(source)
