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
        to_surrogate: takes the gradient of a loss at `trained_by` `[B, P]`, and at `value` `[B]` if it depends on that
            too, and adds what they come to at the surrogate's parameters to their `.grad`; None where there is no
            surrogate. To be called once at most.
        full: `[B, P]` the estimate with all of the surrogate, where `grad` takes in a fraction of it: what the
            surrogate is trained by. None where that is `grad`.
        value: `[B]` what the surrogate says of the actions taken, without graph; None where there is no
            surrogate, or where it does not learn from that.
    """

    grad: Tensor
    to_surrogate: Callable[[Tensor, Tensor | None], None] | None = None
    full: Tensor | None = None
    value: Tensor | None = None

    @property
    def trained_by(self) -> Tensor:
        """`[B, P]` the estimate whose variance the surrogate is to lower, and where `to_surrogate` starts from."""
        return self.grad if self.full is None else self.full
