"""The log variance of a gradient while its model learns, from moving averages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["EVERY", "GradientVariance"]

EVERY = 4
"""Steps from one gradient that is looked at to the next."""


class GradientVariance:
    """Variance of each component of a gradient, over an exponential window of the gradients it was shown.

        m = sum_i w_i g_i,   v = (sum_i w_i g_i^2 - m^2) / (1 - sum_i w_i^2),   w_i ~ decay^age, sum_i w_i = 1

    which is unbiased while the model stands still. What is reported is log mean v, the natural logarithm of the mean
    over all components.

    Args:
        like: tensors shaped as the gradient's parts.
        decay: weight of the past from one gradient to the next.
    """

    def __init__(self, like: Sequence[Tensor], *, decay: float = 0.99) -> None:
        self.decay, self.count = decay, 0
        self._means = [torch.zeros_like(x, requires_grad=False) for x in like]
        self._squares = [torch.zeros_like(x, requires_grad=False) for x in like]

    @torch.no_grad()
    def update(self, gradient: Sequence[Tensor]) -> None:
        """Take in one gradient."""
        share = 1.0 - self.decay
        gradients = list(gradient)
        torch._foreach_lerp_(self._means, gradients, share)
        torch._foreach_mul_(self._squares, self.decay)
        torch._foreach_addcmul_(self._squares, gradients, gradients, share)
        self.count += 1

    @property
    def log_variance(self) -> float:
        """NaN before the second gradient."""
        if self.count < 2:
            return math.nan
        total = 1.0 - self.decay**self.count
        squared_weights = (1.0 - self.decay) ** 2 * (1.0 - self.decay ** (2 * self.count)) / (1.0 - self.decay**2)
        variance = size = 0.0
        for mean, square in zip(self._means, self._squares, strict=True):
            variance += float((square / total - (mean / total).square()).sum())
            size += square.numel()
        unbiased = variance / size / (1.0 - squared_weights / total**2)
        return math.log(unbiased) if unbiased > 0.0 else -math.inf if unbiased == 0.0 else math.nan

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, and how many gradients they are of."""
        state = {f"mean.{i}": x for i, x in enumerate(self._means)}
        state |= {f"square.{i}": x for i, x in enumerate(self._squares)}
        return {**state, "count": torch.tensor(self.count)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            ValueError: it belongs to another gradient.
        """
        own = self.state_dict()
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise ValueError("the moving averages belong to another gradient")
        for name, value in own.items():
            value.copy_(state[name])
        self.count = int(state["count"])
