"""The result of an estimator: the same record everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Estimate", "variance_loss", "weighted_moments"]


def variance_loss(grad: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over examples of the squared norm of their gradient estimate.

    The estimate's mean does not depend on phi, so the gradient of this second moment is that of the variance.

    Args:
        grad: `[B, P]` estimates, differentiable in phi.
        weight: `[B]` weight of each example, not negative (0 leaves it out); all equal by default. Only their ratios
            matter.

    Returns:
        A scalar; 0 when no example has any weight.
    """
    squared_norm = grad.square().sum(-1)
    if weight is None:
        return squared_norm.mean()
    return weight @ squared_norm / weight.sum().clamp(min=torch.finfo(grad.dtype).tiny)


def weighted_moments(columns: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each column over rows.

    Args:
        columns: `[B, C]`.
        weight: `[B]` weight of each row, not negative; only their ratios matter.

    Returns:
        `[C]` means and `[C]` variances; 0 when no row has any weight.
    """
    share = weight / weight.sum().clamp(min=torch.finfo(columns.dtype).tiny)
    mean = share @ columns
    return mean, share @ (columns - mean).square()


@dataclass(frozen=True)
class Estimate:
    """A gradient estimate of E[f(b)] for each row of a distribution.

    Attributes:
        sample: the outcome b that was drawn, one a row.
        value: `[B]` f(b).
        grad: `[B, P]` the estimate at the parameters, differentiable in phi (and in nothing else a user holds).
        params: `[B, P]` the distribution's own parameters, with the graph that leads back to theta.
    """

    sample: Tensor
    value: Tensor
    grad: Tensor
    params: Tensor

    def backward(self, weight: Tensor | float | None = None) -> None:
        """Pull the estimate back through `params` and add it to the gradients of theta, and of nothing else.

        Args:
            weight: factor of each row, a number or `[B]`; 1 / B by default, the gradient of the mean over rows.
        """
        if weight is None:
            weight = 1.0 / self.grad.shape[0]
        factor = weight[:, None] if isinstance(weight, Tensor) and weight.dim() else weight
        self.params.backward(self.grad.detach() * factor)

    def variance_loss(self) -> Tensor:
        """Scalar to minimise in phi; its `backward()` reaches phi and never theta."""
        return variance_loss(self.grad)
