"""The state value V(s)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from relax_rl.networks.torsos import Torso, orthogonal

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
        return F.linear(features, self.head.weight, self.head.bias).squeeze(-1)


def explained_variance(target: Tensor, residual: Tensor) -> Tensor:
    """1 - Var(residual) / Var(target) from the two variances: 1 is perfect, 0 no better than a constant.

    Args:
        target, residual: variances, over the same rows, of what is predicted and of what the prediction leaves.

    Returns:
        As many values; 0 where the target does not vary.
    """
    return (1.0 - residual / target.clamp(min=1e-12)) * (target > 1e-12)
