"""The state value V(s)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from relax_rl.critics.bins import Bins
from relax_rl.networks.layers import orthogonal
from relax_rl.networks.torsos import Torso

__all__ = ["ValueFunction", "explained_variance"]


class ValueFunction(nn.Module):
    """A torso, its own or shared with the policy, and a linear layer: `[B, ...]` observations to `[B]` values.

    Args:
        torso: `[B, ...]` to `[B, num_features]`.
        num_outputs: of the layer; one of them is V itself.

    Attributes:
        bins: of the distribution that V is the mean of; None where the layer's output is V.
    """

    bins: Bins | None = None

    def __init__(self, torso: Torso, num_outputs: int = 1) -> None:
        super().__init__()
        self.torso = torso
        self.head = orthogonal(nn.Linear(torso.num_features, num_outputs), 1.0)

    def forward(self, obs: Tensor) -> Tensor:
        """`[B]` values of `[B, ...]` observations."""
        return self.value(self.torso(obs))

    def value(self, features: Tensor) -> Tensor:
        """`[B]` values from the torso's `[B, F]` features."""
        return self.from_outputs(self.outputs(features))

    def outputs(self, features: Tensor) -> Tensor:
        """`[B, num_outputs]` of the linear layer."""
        return F.linear(features, self.head.weight, self.head.bias)

    def from_outputs(self, outputs: Tensor) -> Tensor:
        """`[B]` values from the layer's outputs."""
        return outputs.squeeze(-1)

    def regressed(self, obs: Tensor) -> Tensor:
        """What the loss is taken at: `[B]` V, or `[B, num]` logits where it is the mean of a distribution."""
        value: Tensor = self(obs)
        return value

    def regress(self, said: Tensor, return_: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The squared error of each row, and its gradient.

        Args:
            said: `[B]`, or `[B, num]`, as `regressed` gives it.
            return_, weight: `[B]` what V is to be, and how much it counts.

        Returns:
            The gradient, of the shape of `said`, and `[B]` losses, both without graph.
        """
        error = (said.detach() - return_) * weight
        return 2.0 * error, error.square()

    def metrics(self, return_: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Scalars for the log about the `[B]` returns of a batch."""
        return {}


def explained_variance(target: Tensor, residual: Tensor) -> Tensor:
    """1 - Var(residual) / Var(target) from the two variances: 1 is perfect, 0 no better than a constant.

    Args:
        target, residual: variances, over the same rows, of what is predicted and of what the prediction leaves.

    Returns:
        As many values; 0 where the target does not vary.
    """
    return (1.0 - residual / target.clamp(min=1e-12)) * (target > 1e-12)
