"""What families of items share whose relaxed sample is the items' log-probabilities, perturbed by Gumbel noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from relax_rl.distributions.discrete import FAR, check_possible, visible
from relax_rl.distributions.noise import gumbel_log_density, gumbel_noise

__all__ = ["GumbelPerturbed", "widened"]


def widened(x: Tensor) -> Tensor:
    """In float64, where there is one."""
    return x.float() if x.device.type == "mps" else x.double()


class GumbelPerturbed:
    """z = log_softmax(logits) + Gumbel noise, one for each item; which outcome z stands for is the family's own.

    Attributes:
        params: `[*, n]` logits, -inf for a masked item, whose z stands near -1000.
    """

    params: Tensor

    @property
    def _masked(self) -> Tensor:
        return self.params.detach() == -math.inf

    @property
    def log_probs(self) -> Tensor:
        """`[*, n]` log-probability of each item to have the largest z, -inf where masked."""
        return F.log_softmax(self.params, dim=-1)

    @property
    def _locations(self) -> Tensor:
        """`[*, n]` of z: the log-probabilities, finite and constant where they are -inf."""
        return self.log_probs.clamp(min=-FAR)

    def require_possible(self) -> None:
        """Raises ValueError where every item of a row is masked, as sampling does; on a CPU, in eager code."""
        check_possible(self.params)

    def sample_noise(self, generator: torch.Generator | None = None) -> Tensor:
        self.require_possible()
        return gumbel_noise(tuple(self.params.shape), generator, self.params.device)

    def relax(self, noise: Tensor) -> Tensor:
        return self._locations + noise

    def noise_of(self, z: Tensor) -> Tensor:
        return (z - self._locations).detach()

    def relaxed_log_prob(self, z: Tensor) -> Tensor:
        return gumbel_log_density(z - self._locations).sum(-1)

    def pull_back(self, slope: Tensor, z: Tensor) -> Tensor:
        slope = visible(slope, z)
        return slope - F.softmax(self.params.detach(), dim=-1) * slope.sum(-1, keepdim=True)
