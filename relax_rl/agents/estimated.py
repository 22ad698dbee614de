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
        to_surrogate: takes the gradient `[B, P]` of a loss at `trained_by` and adds what it comes to at the surrogate's
            parameters to their `.grad`; None where there is no surrogate. To be called once at most.
        full: `[B, P]` the estimate with all of the surrogate, where `grad` takes in a fraction of it: what the
            surrogate is trained by. None where that is `grad`.
    """

    grad: Tensor
    to_surrogate: Callable[[Tensor], None] | None = None
    full: Tensor | None = None

    @property
    def trained_by(self) -> Tensor:
        """`[B, P]` the estimate whose variance the surrogate is to lower, and where `to_surrogate` starts from."""
        return self.grad if self.full is None else self.full
