"""First and second derivatives of the activations, from the input and the output of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["DERIVATIVES", "Derivatives"]


@dataclass(frozen=True)
class Derivatives:
    """Of h = activation(a).

    Attributes:
        first: (a, h) -> dh/da.
        second: (a, h, first) -> d^2h/da^2.
    """

    first: Callable[[Tensor, Tensor], Tensor]
    second: Callable[[Tensor, Tensor, Tensor], Tensor]


def _silu_second(a: Tensor, h: Tensor, first: Tensor) -> Tensor:
    s = torch.sigmoid(a)
    return s * (1 - s) * (2 + a * (1 - 2 * s))


def _silu_first(a: Tensor, h: Tensor) -> Tensor:
    s = torch.sigmoid(a)
    return s + h * (1 - s)


DERIVATIVES: dict[str, Derivatives] = {
    "tanh": Derivatives(lambda a, h: 1 - h * h, lambda a, h, first: -2 * h * first),
    "relu": Derivatives(lambda a, h: (a > 0).to(a.dtype), lambda a, h, first: torch.zeros_like(a)),
    "elu": Derivatives(
        lambda a, h: 1 + h.clamp(max=0.0), lambda a, h, first: torch.where(a > 0, torch.zeros_like(first), first)
    ),
    "silu": Derivatives(_silu_first, _silu_second),
}
"""By the names that networks know."""
