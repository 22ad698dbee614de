"""The log variance of a gradient while its model learns, from moving averages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from relax_rl.experiments.vae.optimizer import pieces

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
        self.decay, self.count, self._like = decay, 0, list(like)
        self._mean, self._square = (like[0].new_zeros(sum(x.numel() for x in like)) for _ in range(2))

    @torch.no_grad()
    def update(self, gradient: Tensor) -> None:
        """Take in one gradient, all its parts in one vector."""
        share = 1.0 - self.decay
        self._mean.lerp_(gradient, share)
        self._square.mul_(self.decay).addcmul_(gradient, gradient, value=share)
        self.count += 1

    @property
    def log_variance(self) -> float:
        """NaN before the second gradient."""
        if self.count < 2:
            return math.nan
        total = 1.0 - self.decay**self.count
        squared_weights = (1.0 - self.decay) ** 2 * (1.0 - self.decay ** (2 * self.count)) / (1.0 - self.decay**2)
        variance = float((self._square / total - (self._mean / total).square()).mean())
        unbiased = variance / (1.0 - squared_weights / total**2)
        return math.log(unbiased) if unbiased > 0.0 else -math.inf if unbiased == 0.0 else math.nan

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, part by part, and how many gradients they are of."""
        state = {f"mean.{i}": x for i, x in enumerate(pieces(self._mean, self._like))}
        state |= {f"square.{i}": x for i, x in enumerate(pieces(self._square, self._like))}
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
