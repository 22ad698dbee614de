"""V(s) as the mean of a distribution over bins, learned by cross entropy against a Gaussian around each return (HL-Gauss)."""

from __future__ import annotations

import torch
from torch import Tensor

from relax_rl.critics.bins import Bins, hl_gauss
from relax_rl.critics.value import ValueFunction
from relax_rl.networks.torsos import Torso

__all__ = ["DistributionalValue"]


class DistributionalValue(ValueFunction):
    """V(s) = unit * sum_k p_k(s) centre_k, with p the softmax of the head's outputs.

    It begins at V = 0, with the same symmetric distribution in every state, about as wide as returns are.

    Args:
        torso: its own, or shared with the policy.
        bins: in units.

    Attributes:
        unit: scalar, what V is measured in: the spread of the returns so far.
    """

    bins: Bins
    unit: Tensor

    def __init__(self, torso: Torso, bins: Bins) -> None:
        super().__init__(torso, bins.num)
        self.bins = bins
        self.register_buffer("unit", torch.ones(()), persistent=False)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.copy_(-bins.centres(self.head.bias).abs())

    def extra_repr(self) -> str:
        return f"bins={self.bins}"

    def from_outputs(self, outputs: Tensor) -> Tensor:
        return self.unit * (torch.softmax(outputs, -1) @ self.bins.centres(outputs))

    def regressed(self, obs: Tensor) -> Tensor:
        return self.outputs(self.torso(obs))

    def regress(self, said: Tensor, return_: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The cross entropy of each row against `hl_gauss` of its return in units, and its gradient at the logits."""
        wanted = hl_gauss(return_ / self.unit, self.bins)
        log_p = torch.log_softmax(said.detach(), -1)
        return (log_p.exp() - wanted) * weight.unsqueeze(-1), -(wanted * log_p).sum(-1) * weight

    def metrics(self, return_: Tensor, weight: Tensor) -> dict[str, Tensor]:
        beyond = (return_ / self.unit).abs() > self.bins.limit
        return {"value/clipped": beyond.to(weight.dtype) @ weight / weight.sum().clamp(min=1.0)}
