"""Optimisers of the agents and their state as plain tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["load_optimizer", "make_adam", "make_optimizer", "optimizer_state"]


def make_adam(params: Iterable[Any], lr: float, device: torch.device) -> torch.optim.Optimizer:
    """Adam over parameters or groups of them, fused where the device has it."""
    return torch.optim.Adam(params, lr=lr, fused=device.type in ("cpu", "cuda"))


def make_optimizer(
    name: str, groups: list[tuple[list[nn.Parameter], float]], device: torch.device
) -> torch.optim.Optimizer:
    """Adam, or RMSprop with the constants A2C is usually run with, over (parameters, learning rate) groups.

    The learning rate of each group is also kept under `base_lr`, for schedules to scale.
    """
    dicts = [{"params": params, "lr": lr, "base_lr": lr} for params, lr in groups]
    if name == "rmsprop":
        return torch.optim.RMSprop(dicts, alpha=0.99, eps=1e-5)
    return make_adam(dicts, groups[0][1], device)


def optimizer_state(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The per-parameter state as `prefix.INDEX.NAME` tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{index}.{name}": x for index, entry in state.items() for name, x in entry.items()}


def load_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take back what `optimizer_state` gave; the learning rates stay those of the optimiser."""
    entries: dict[int, dict[str, Tensor]] = {}
    for key, x in tensors.items():
        if key.startswith(prefix + "."):
            index, name = key[len(prefix) + 1 :].split(".", 1)
            entries.setdefault(int(index), {})[name] = x
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
