"""Optimisers of the agents, on parameters laid out flat, and their state as plain tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FlatParameters", "clip_norm_", "load_optimizer", "make_adam", "make_optimizer", "optimizer_state"]


class FlatParameters:
    """Parameters as views of one tensor, and their gradients as views of its gradient.

    Clipping, the optimiser's step (and averaging over processes) then cost one kernel instead of one per parameter,
    which for small networks is most of their time. The layout in memory of each parameter is kept.

    Attributes:
        data: the tensor that holds them all.
        grad: all their gradients.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        sizes = [parameter.numel() for parameter in self.parameters]
        self.data = nn.Parameter(self.parameters[0].new_empty(sum(sizes)))
        self.grad = self.data.grad = torch.zeros_like(self.data)
        places = zip(self.parameters, self.data.detach().split(sizes), self.grad.split(sizes), strict=True)
        for parameter, place, grad in places:
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


def make_adam(params: Iterable[Any], lr: float, device: torch.device) -> torch.optim.Optimizer:
    """Adam over parameters or groups of them, fused where the device has it."""
    return torch.optim.Adam(params, lr=lr, fused=device.type in ("cpu", "cuda"))


def make_optimizer(
    name: str, groups: list[tuple[FlatParameters, float]], device: torch.device
) -> torch.optim.Optimizer:
    """Adam, or RMSprop with the constants A2C is usually run with, over (parameters, learning rate) groups.

    The learning rate of each group is also kept under `base_lr`, for schedules to scale.
    """
    dicts = [{"params": [flat.data], "lr": lr, "base_lr": lr} for flat, lr in groups]
    if name == "rmsprop":
        return torch.optim.RMSprop(dicts, alpha=0.99, eps=1e-5)
    return make_adam(dicts, groups[0][1], device)


def optimizer_state(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The per-parameter state as `prefix.INDEX.NAME` tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{index}.{name}": x for index, entry in state.items() for name, x in entry.items()}


def load_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take back what `optimizer_state` gave; the learning rates stay those of the optimiser.

    Raises:
        ValueError: if the state belongs to other parameters.
    """
    entries: dict[int, dict[str, Any]] = {}
    for key, x in tensors.items():
        if key.startswith(prefix + "."):
            index, name = key[len(prefix) + 1 :].split(".", 1)
            entries.setdefault(int(index), {})[name] = x
    parameters: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, entry in entries.items():
        if number >= len(parameters) or any(x.dim() and x.shape != parameters[number].shape for x in entry.values()):
            raise ValueError(f"the state of {prefix} belongs to other parameters")
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
