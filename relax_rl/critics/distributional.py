"""Critics as means of distributions over bins, learned by cross entropy against a Gaussian around each return (HL-Gauss)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relax_rl.critics.bins import Bins, hl_gauss
from relax_rl.critics.value import ValueFunction
from relax_rl.networks.torsos import Torso

__all__ = ["DistributionalValue", "OverBins"]


class OverBins:
    """What a critic says by the softmax p of `[*, num]` logits: unit * sum_k p_k centre_k; a part of a module.

    The histogram loss of Imani and White (2018), as Farebrother et al. (2024) learn values by it.

    It begins at 0, with the same symmetric distribution everywhere, about as wide as returns are.

    Attributes:
        bins: in units.
        unit: scalar, what is measured in them: the spread of the returns so far.
        called: how its metrics begin.
    """

    bins: Bins
    unit: Tensor
    called = "value"

    def _begin(self, head: nn.Linear, bins: Bins) -> None:
        """Let the module speak by the outputs of a layer, one set of bins after the other."""
        self.bins = bins
        self.register_buffer("unit", torch.ones(()), persistent=False)  # type: ignore[attr-defined]
        with torch.no_grad():
            head.weight.zero_()
            head.bias.view(-1, bins.num).copy_(-bins.centres(head.bias).abs())

    def extra_repr(self) -> str:
        """The bins, as `print` shows the module."""
        return f"bins={self.bins}"

    def from_outputs(self, outputs: Tensor) -> Tensor:
        """`[*]` means from logits."""
        return self.unit * (torch.softmax(outputs, -1) @ self.bins.centres(outputs))

    def regress(self, said: Tensor, return_: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The cross entropy of each row against `hl_gauss` of its return in units, and its gradient at the logits.

        Args:
            said: `[B, num]` logits.
            return_, weight: `[B]` what the mean is to be, and how much it counts.

        Returns:
            The gradient `[B, num]`, and `[B]` losses, both without graph.
        """
        wanted = hl_gauss(return_ / self.unit, self.bins)
        log_p = torch.log_softmax(said.detach(), -1)
        return (log_p.exp() - wanted) * weight.unsqueeze(-1), -(wanted * log_p).sum(-1) * weight

    def metrics(self, return_: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """The share of rows whose return lies beyond the bins."""
        beyond = (return_ / self.unit).abs() > self.bins.limit
        return {f"{self.called}/clipped": beyond.to(weight.dtype) @ weight / weight.sum().clamp(min=1.0)}


class DistributionalValue(OverBins, ValueFunction):  # type: ignore[misc]
    """V(s) as the mean of a distribution over bins (Farebrother et al. 2024).

    Args:
        torso: its own, or shared with the policy.
        bins: in units.
    """

    def __init__(self, torso: Torso, bins: Bins) -> None:
        super().__init__(torso, bins.num)
        self._begin(self.head, bins)

    def regressed(self, obs: Tensor) -> Tensor:
        """`[B, num]` logits, which the loss is taken at."""
        return self.outputs(self.torso(obs))
