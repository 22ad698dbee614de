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
        second: (h, dh/da x) -> d^2h/da^2 x up to a factor, or (h, dh/da x, a, x) where it needs the input; None where it
            is zero.
        second_factor: the factor.
        needs_input: whether `second` needs the input, so that a and x have to be kept for it.
    """

    first: Callable[[Tensor, Tensor], Tensor]
    second: Callable[..., Tensor] | None
    second_factor: float = 1.0
    needs_input: bool = False


def _silu_first(a: Tensor, h: Tensor) -> Tensor:
    s = torch.sigmoid(a)
    return s + h * (1 - s)


def _silu_second(h: Tensor, first_x: Tensor, a: Tensor, x: Tensor) -> Tensor:
    s = torch.sigmoid(a)
    return s * (1 - s) * (2 + a * (1 - 2 * s)) * x


DERIVATIVES: dict[str, Derivatives] = {
    "tanh": Derivatives(lambda a, h: torch.addcmul(_one(h), h, h, value=-1), lambda h, first_x: h * first_x, -2.0),
    "relu": Derivatives(lambda a, h: (a > 0).to(a.dtype), None),
    "elu": Derivatives(lambda a, h: 1 + h.clamp(max=0.0), lambda h, first_x: first_x.masked_fill(h > 0, 0.0)),
    "silu": Derivatives(_silu_first, _silu_second, needs_input=True),
}
"""By the names that networks know."""


def _one(like: Tensor) -> Tensor:
    return like.new_ones(())
