"""Bins of a distribution over returns, and the Gaussian around a return spread over them (HL-Gauss)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Bins", "hl_gauss"]

_SIGMA = 0.75
"""Deviation of the Gaussian in widths of a bin: its mass falls on about six of them (Farebrother et al. 2024, section 3.3)."""


@dataclass(frozen=True)
class Bins:
    """Bins of one width, side by side from -limit to limit.

    Attributes:
        num: how many there are.
        limit: the outermost edge, in what targets are measured in: for critics `OverBins.unit`.
    """

    num: int
    limit: float

    @property
    def width(self) -> float:
        """Of each bin, in the unit of `limit`."""
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

    Args:
        target: `[*]`, in the unit of `bins.limit`.
        bins: that the Gaussian is spread over.
    """
    y = target.clamp(-bins.limit, bins.limit).unsqueeze(-1)
    below = torch.erf((bins.edges(target) - y) / (math.sqrt(2.0) * _SIGMA * bins.width))
    return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])
