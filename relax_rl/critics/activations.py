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
        second: (a, h, x, dh/da x) -> d^2h/da^2 x.
    """

    first: Callable[[Tensor, Tensor], Tensor]
    second: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _silu_first(a: Tensor, h: Tensor) -> Tensor:
    s = torch.sigmoid(a)
    return s + h * (1 - s)


def _silu_second(a: Tensor, h: Tensor, x: Tensor, first_x: Tensor) -> Tensor:
    s = torch.sigmoid(a)
    return s * (1 - s) * (2 + a * (1 - 2 * s)) * x


DERIVATIVES: dict[str, Derivatives] = {
    "tanh": Derivatives(lambda a, h: torch.addcmul(_one(h), h, h, value=-1), lambda a, h, x, first_x: -2 * h * first_x),
    "relu": Derivatives(lambda a, h: (a > 0).to(a.dtype), lambda a, h, x, first_x: torch.zeros_like(a)),
    "elu": Derivatives(lambda a, h: 1 + h.clamp(max=0.0), lambda a, h, x, first_x: first_x.masked_fill(a > 0, 0.0)),
    "silu": Derivatives(_silu_first, _silu_second),
}
"""By the names that networks know."""


def _one(like: Tensor) -> Tensor:
    return like.new_ones(())
