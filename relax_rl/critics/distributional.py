"""V(s) as the mean of a distribution over bins, learned by cross entropy against a Gaussian around each return (HL-Gauss)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from relax_rl.critics.value import ValueFunction
from relax_rl.networks.torsos import Torso

__all__ = ["Bins", "DistributionalValue", "hl_gauss"]

_SIGMA = 0.75
"""Deviation of the Gaussian in widths of a bin: its mass falls on about six of them (Farebrother et al. 2024, section 3.3)."""


@dataclass(frozen=True)
class Bins:
    """`num` bins of one width, side by side from -limit to limit."""

    num: int
    limit: float

    @property
    def width(self) -> float:
        return 2.0 * self.limit / self.num

    def edges(self, like: Tensor) -> Tensor:
        """`[num + 1]`, in the dtype and on the device of a tensor."""
        return torch.linspace(-self.limit, self.limit, self.num + 1, dtype=like.dtype, device=like.device)

    def centres(self, like: Tensor) -> Tensor:
        """`[num]`, likewise."""
        last = self.limit - 0.5 * self.width
        return torch.linspace(-last, last, self.num, dtype=like.dtype, device=like.device)


def hl_gauss(target: Tensor, bins: Bins) -> Tensor:
    """`[*, num]` probabilities of the bins under a Gaussian around each of `[*]` targets (Imani and White 2018, section 3).

        p_k = (F(e_{k+1}) - F(e_k)) / (F(e_n) - F(e_0)),    F(e) = (1 + erf((e - y) / (sigma sqrt 2))) / 2

    with the bins' edges e and sigma = 0.75 widths. What lies beyond the range goes to all bins in proportion, and a target
    beyond it counts as its end. Further than four widths from an end, the mean over the centres is y to 1e-5 widths.
    """
    y = target.clamp(-bins.limit, bins.limit).unsqueeze(-1)
    below = torch.erf((bins.edges(target) - y) / (math.sqrt(2.0) * _SIGMA * bins.width))
    return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])


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
