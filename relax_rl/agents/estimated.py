"""The gradient an agent has estimated, and the way back from it to its surrogate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Estimated"]


@dataclass(frozen=True)
class Estimated:
    """An estimate for every row of a batch.

    Attributes:
        grad: `[B, P]` of the expected return at the distribution's parameters, without graph.
        to_surrogate: takes the gradient `[B, P]` of a loss at `grad` and adds what it comes to at the surrogate's
            parameters to their `.grad`; None where there is no surrogate. To be called once at most.
    """

    grad: Tensor
    to_surrogate: Callable[[Tensor], None] | None = None
