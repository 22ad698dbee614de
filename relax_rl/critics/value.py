"""The state value V(s)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relax_rl.networks import Torso, orthogonal

__all__ = ["ValueFunction", "explained_variance"]


class ValueFunction(nn.Module):
    """A torso, its own or shared with the policy, and a linear layer: `[B, ...]` observations to `[B]` values."""

    def __init__(self, torso: Torso) -> None:
        super().__init__()
        self.torso = torso
        self.head = orthogonal(nn.Linear(torso.num_features, 1), 1.0)

    def forward(self, obs: Tensor) -> Tensor:
        return self.value(self.torso(obs))

    def value(self, features: Tensor) -> Tensor:
        """`[B]` values from the torso's `[B, F]` features."""
        value: Tensor = self.head(features)
        return value.squeeze(-1)


def explained_variance(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - Var(target - prediction) / Var(target) over rows of weight 1: 1 is perfect, 0 no better than a constant.

    Args:
        prediction, target, weight: `[B]`; rows of weight 0 are left out.

    Returns:
        A scalar, 0 where the target does not vary.
    """
    share = weight / weight.sum().clamp(min=1.0)
    both = torch.stack([target, target - prediction])
    variances: Tensor = (both - (both @ share)[:, None]).square() @ share
    target_variance, residual_variance = variances.unbind()
    ratio = residual_variance / target_variance.clamp(min=1e-12)
    return (1.0 - ratio) * (target_variance > 1e-12)
