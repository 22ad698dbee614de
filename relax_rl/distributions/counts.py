"""Counts: Poisson, geometric, binomial and negative binomial variables."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from relax_rl.distributions.checks import require_alike
from relax_rl.distributions.discrete import every_combination
from relax_rl.distributions.relaxed_counts import Counts
from relax_rl.distributions.tails import beta_tails, gamma_tails

__all__ = ["Binomial", "Geometric", "NegativeBinomial", "Poisson"]


@dataclass(frozen=True, eq=False)
class Poisson(Counts):
    """Independent Poisson variables; `params` are log rates `[*, P]`, of rates from 1e-6 to 1e6.

    Samples, z and its derivative are those of `Counts`: dz / dlog rate = (1 - v) b + v rate.
    """

    @property
    def mean(self) -> Tensor:
        """`[*, P]` the rates."""
        return self.params.exp()

    def kl_divergence(self, other: Poisson) -> Tensor:
        """`[*]` KL(self || other) in nats.

        Raises:
            ValueError: when the other is of another family or width.
        """
        require_alike(self, other)
        shift = other.params - self.params
        return (self.mean * (torch.expm1(shift) - shift)).sum(-1)

    def mode(self) -> Tensor:
        return self.mean.floor()

    def _flows(self, b: Tensor) -> tuple[Tensor, Tensor]:
        return b, self.mean

    def _log_probs(self, b: Tensor) -> Tensor:
        log_rate = self.params.double()
        return b * log_rate - log_rate.exp() - torch.lgamma(b + 1.0)

    def _tails_within(self, b: Tensor) -> tuple[Tensor, Tensor]:
        above, below = gamma_tails(b + 1.0, self.params.detach().double().exp().expand_as(b))
        return below, above

    def _spread(self) -> tuple[Tensor, Tensor]:
        return (0.5 * self.params).exp(), torch.ones_like(self.params)


@dataclass(frozen=True, eq=False)
class NegativeBinomial(Counts):
    """How many trials succeed before the `total_count`-th failure; `params` are logits of success `[*, P]`.

    As in `torch.distributions`: p(b) is in proportion to C(b + r - 1, b) p^b, with mean r p / (1 - p) and variance
    r p / (1 - p)^2. Samples, z and its derivative are those of `Counts`: dz / dlogit = (1 - v) b + v (b + r) p.

    Args:
        params: `[*, P]` logits of p.
        total_count: r, above 0 and not learned; a learned one is a Poisson variable at a `Gamma` rate.
    """

    total_count: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.total_count < math.inf:
            raise ValueError(f"total_count is {self.total_count}, expected a number above 0")

    @property
    def mean(self) -> Tensor:
        """`[*, P]`"""
        return self.total_count * self.params.exp()

    def kl_divergence(self, other: NegativeBinomial) -> Tensor:
        """`[*]` KL(self || other) in nats.

        Raises:
            ValueError: when the other is of another family, width or `total_count`.
        """
        require_alike(self, other, ("total_count",))
        ends = F.logsigmoid(-self.params) - F.logsigmoid(-other.params)
        goes_on = F.logsigmoid(self.params) - F.logsigmoid(other.params)
        return (self.total_count * ends + self.mean * goes_on).sum(-1)

    def mode(self) -> Tensor:
        return (max(self.total_count - 1.0, 0.0) * self.params.exp()).floor()

    def score(self, sample: Tensor) -> Tensor:
        logits = self.params.detach()
        return sample * torch.sigmoid(-logits) - self.total_count * torch.sigmoid(logits)

    def _flows(self, b: Tensor) -> tuple[Tensor, Tensor]:
        return b, (b + self.total_count) * torch.sigmoid(self.params)

    def _log_probs(self, b: Tensor) -> Tensor:
        logits, r = self.params.double(), self.total_count
        ways = torch.lgamma(b + r) - torch.lgamma(b + 1.0) - math.lgamma(r)
        return ways + b * F.logsigmoid(logits) + r * F.logsigmoid(-logits)

    def _tails_within(self, b: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.params.detach().double().expand_as(b)
        r = torch.full_like(b, self.total_count)
        return beta_tails(r, b + 1.0, F.logsigmoid(-logits), F.logsigmoid(logits))

    def _spread(self) -> tuple[Tensor, Tensor]:
        scale = 1.0 + self.params.exp()
        return (self.mean * scale).sqrt(), scale


@dataclass(frozen=True, eq=False)
class Geometric(Counts):
    """How many trials fail before the first success; `params` are logits of success `[*, P]`, as in `torch.distributions`.

    The mean is (1 - p) / p, exp(-logit). Samples, z and its derivative are those of `Counts`:
    dz / dlogit = -(1 - v) b - v (b + 1) (1 - p).
    """

    @property
    def mean(self) -> Tensor:
        """`[*, P]`"""
        return torch.exp(-self.params)

    def entropy(self) -> Tensor:
        """`[*]` in nats, in closed form."""
        return (F.softplus(-self.params) + self.mean * F.softplus(self.params)).sum(-1)

    def kl_divergence(self, other: Geometric) -> Tensor:
        """`[*]` KL(self || other) in nats.

        Raises:
            ValueError: when the other is of another family or width.
        """
        require_alike(self, other)
        ends = F.logsigmoid(self.params) - F.logsigmoid(other.params)
        goes_on = F.logsigmoid(-self.params) - F.logsigmoid(-other.params)
        return (ends + self.mean * goes_on).sum(-1)

    def mode(self) -> Tensor:
        return torch.zeros_like(self.params)

    def score(self, sample: Tensor) -> Tensor:
        logits = self.params.detach()
        return torch.sigmoid(-logits) - sample * torch.sigmoid(logits)

    def _flows(self, b: Tensor) -> tuple[Tensor, Tensor]:
        return -b, -(b + 1.0) * torch.sigmoid(-self.params)

    def _log_probs(self, b: Tensor) -> Tensor:
        logits = self.params.double()
        return b * F.logsigmoid(-logits) + F.logsigmoid(logits)

    def _quantile(self, u: Tensor, rest: Tensor) -> Tensor:
        log_fail = F.logsigmoid(-self.params.detach().double())
        log_rest = torch.where(u < 0.5, torch.log1p(-u), rest.log())
        return (log_rest / log_fail).floor()

    def _tails_within(self, b: Tensor) -> tuple[Tensor, Tensor]:
        log_rest = (b + 1.0) * F.logsigmoid(-self.params.detach().double())
        return -torch.expm1(log_rest), log_rest.exp()

    def _spread(self) -> tuple[Tensor, Tensor]:
        scale = 1.0 + self.mean
        return (self.mean * scale).sqrt(), scale


@dataclass(frozen=True, eq=False)
class Binomial(Counts):
    """How many of `total_count` trials succeed; `params` are logits of success `[*, P]`.

    Samples, z and its derivative are those of `Counts`: dz / dlogit = (1 - v) b (1 - p) + v (n - b) p.

    Args:
        params: `[*, P]` logits.
        total_count: n, at least 1.
    """

    total_count: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if int(self.total_count) != self.total_count or self.total_count < 1:
            raise ValueError(f"total_count is {self.total_count}, expected a whole number of at least 1")

    @property
    def most(self) -> int:
        return int(self.total_count)

    @property
    def mean(self) -> Tensor:
        """`[*, P]`"""
        return self.total_count * torch.sigmoid(self.params)

    def kl_divergence(self, other: Binomial) -> Tensor:
        """`[*]` KL(self || other) in nats.

        Raises:
            ValueError: when the other is of another family, width or `total_count`.
        """
        require_alike(self, other, ("total_count",))
        gains = F.logsigmoid(self.params) - F.logsigmoid(other.params)
        losses = F.logsigmoid(-self.params) - F.logsigmoid(-other.params)
        return (self.mean * gains + self.total_count * torch.sigmoid(-self.params) * losses).sum(-1)

    def mode(self) -> Tensor:
        return ((self.total_count + 1) * torch.sigmoid(self.params)).floor().clamp(max=self.total_count)

    def score(self, sample: Tensor) -> Tensor:
        return sample - self.mean.detach()

    def support(self) -> Tensor:
        """`[(n + 1)^P, P]`: for few trials and few counts."""
        sizes = [self.most + 1] * self.params.shape[-1]
        return every_combination(sizes, self.params.device).to(self.params.dtype)

    def _flows(self, b: Tensor) -> tuple[Tensor, Tensor]:
        return b * torch.sigmoid(-self.params), (self.total_count - b) * torch.sigmoid(self.params)

    def _log_probs(self, b: Tensor) -> Tensor:
        logits, n = self.params.double(), self.total_count
        ways = math.lgamma(n + 1.0) - torch.lgamma(b + 1.0) - torch.lgamma(n - b + 1.0)
        return ways + b * F.logsigmoid(logits) + (n - b) * F.logsigmoid(-logits)

    def _tails_within(self, b: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.params.detach().double().expand_as(b)
        return beta_tails(self.total_count - b, b + 1.0, F.logsigmoid(-logits), F.logsigmoid(logits))

    def _spread(self) -> tuple[Tensor, Tensor]:
        return (self.mean * torch.sigmoid(-self.params)).sqrt(), torch.ones_like(self.params)
