"""Ordered outcomes: which interval between cut points a logistic variable falls into."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from relax_rl.distributions.checks import on_host, require_numbers, require_params
from relax_rl.distributions.noise import logistic_noise

__all__ = ["Ordinal"]

_WIDEST, _LEAST = 60.0, 1e-30
"""Of the logarithm of a gap, and of a gap."""


@dataclass(frozen=True, eq=False)
class Ordinal:
    """The ordered logit, K ranks 0..K-1 (McCullagh 1980): b counts the cut points that location + logistic noise exceeds.

    `params` is `[*, K - 1]`: the location above the first cut point, and then the logarithms of the gaps from each cut
    point to the next, so that any numbers are in order; `Ordinal.of` makes them of a location and of cut points. Samples
    are `[*, 1]` in the type of `params`.

    The relaxed sample is how far the latent variable stands above every cut point, `[*, K - 1]`, all moved by one noise
    `[*, 1]`: H(z) counts the entries above 0, and z given b is made of a logistic variable truncated to the interval of b.
    z has no density, for it moves along a line: no `dlax`.
    """

    params: Tensor

    def __post_init__(self) -> None:
        require_params(self)

    @classmethod
    def of(cls, location: Tensor, cuts: Tensor) -> Ordinal:
        """The distribution with a location `[*]` for each row and increasing cut points `[K - 1]` or `[*, K - 1]`.

        Raises:
            ValueError: when the cut points do not increase; looks at a CPU's numbers alone.
        """
        gaps = cuts.diff(dim=-1)
        if on_host(gaps) and bool((gaps <= 0).any()):
            raise ValueError("cut points do not increase: give them in order, such as torch.cumsum of positive numbers")
        first = (location - cuts[..., 0]).unsqueeze(-1)
        return cls(torch.cat([first, gaps.log().expand(*first.shape[:-1], -1)], -1))

    def with_params(self, params: Tensor) -> Ordinal:
        return replace(self, params=params)

    @property
    def _above(self) -> Tensor:
        """`[*, K - 1]` the location above each cut point: logits of P(b > j)."""
        first, gaps = self.params[..., :1], self._log_gaps.exp()
        return torch.cat([first, first - gaps.cumsum(-1)], -1)

    @property
    def _log_gaps(self) -> Tensor:
        """`[*, K - 2]`; nothing that is counted in floating point lies in a gap of e^60 or more."""
        return self.params[..., 1:].clamp(max=_WIDEST)

    def sample_noise(self, generator: torch.Generator | None = None) -> Tensor:
        require_numbers(self)
        return logistic_noise((*self.params.shape[:-1], 1), generator, self.params.device)

    def relax(self, noise: Tensor) -> Tensor:
        return self._above + noise

    def noise_of(self, z: Tensor) -> Tensor:
        return (z - self._above).detach()[..., :1]

    def threshold(self, z: Tensor) -> Tensor:
        return (z.detach() > 0).sum(-1, keepdim=True).to(self.params.dtype)

    def _edges(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """`[*, 1]` the noise between which the outcome lies, half the largest number for a bound that there is none."""
        above = self._above
        far = torch.full_like(above[..., :1], torch.finfo(above.dtype).max / 2)
        edges = torch.cat([-far, -above, far], -1)
        index = sample.long()
        rows = torch.broadcast_shapes(index.shape[:-1], edges.shape[:-1])
        edges, index = edges.expand(*rows, -1), index.expand(*rows, 1)
        return edges.gather(-1, index), edges.gather(-1, index + 1)

    def relax_given(self, sample: Tensor, noise: Tensor) -> Tensor:
        # With v = sigmoid(noise): the logit of (1 - v) sigmoid(low) + v sigmoid(high), and of 1 minus it, term by term.
        low, high = self._edges(sample)
        log_v, log_rest = F.logsigmoid(noise), F.logsigmoid(-noise)
        below = torch.logaddexp(log_rest + F.logsigmoid(low), log_v + F.logsigmoid(high))
        above = torch.logaddexp(log_rest + F.logsigmoid(-low), log_v + F.logsigmoid(-high))
        z = self._above + (below - above)
        tiny = torch.finfo(z.dtype).tiny
        exceeded = sample > torch.arange(z.shape[-1], device=z.device)  # rounding must not move z over a cut point
        inside = torch.where(exceeded, z.clamp(min=tiny), z.clamp(max=0.0))
        return z + (inside - z).detach()

    def noise_given(self, sample: Tensor, z: Tensor) -> Tensor:
        low, high = (x.detach().double() for x in self._edges(sample))
        at = self.noise_of(z).double()
        tiny = torch.finfo(torch.float64).tiny
        before, after = (_between(low, at), _between(at, high))
        return (before.clamp(min=tiny).log() - after.clamp(min=tiny).log()).to(z.dtype)

    def log_prob(self, sample: Tensor) -> Tensor:
        """`[*]` log p(b).

        Raises:
            ValueError: when a number is no rank; looks at a CPU's numbers alone.
        """
        self._check_ranks(sample)
        low, high = self._edges(sample)
        # sigmoid(high) - sigmoid(low) = sigmoid(high) sigmoid(-low) (1 - exp(low - high)), whose last factor is of the gap alone.
        both = F.logsigmoid(high) + F.logsigmoid(-low)
        return (both + self._of_interval(_log_one_minus_exp(self._log_gaps), sample)).squeeze(-1)

    def score(self, sample: Tensor) -> Tensor:
        here = self.with_params(self.params.detach())
        low, high = here._edges(sample)
        # The lower bound is cut point b - 1 and the upper one b: both move against the location, and with the gaps before.
        at_low = -torch.sigmoid(low) * (sample > 0)
        at_high = torch.sigmoid(-high) * (sample < here.params.shape[-1])
        ranks, gaps = torch.arange(1, here.params.shape[-1], device=low.device), here._log_gaps.exp()
        steep = torch.where(gaps < 80.0, gaps / torch.expm1(gaps.clamp(_LEAST, 80.0)), torch.zeros_like(gaps))
        steep = torch.where(gaps < _LEAST, torch.ones_like(gaps), steep)  # the limit
        gaps = gaps * (here.params[..., 1:] < _WIDEST)
        of_gaps = gaps * (at_low * (ranks < sample) + at_high * (ranks <= sample)) + steep * (ranks == sample)
        return torch.cat([-(at_low + at_high), of_gaps], -1)

    def _of_interval(self, of_gaps: Tensor, sample: Tensor) -> Tensor:
        """`[*, 1]` of numbers `[*, K - 2]` the one of the gap in which the outcome lies, 0 for the outermost ranks."""
        ends = torch.zeros_like(self.params[..., :1])
        every, index = torch.cat([ends, of_gaps, ends], -1), sample.long()
        rows = torch.broadcast_shapes(index.shape[:-1], every.shape[:-1])
        return every.expand(*rows, -1).gather(-1, index.expand(*rows, 1))

    @property
    def probs(self) -> Tensor:
        """`[*, K]` of the ranks."""
        above = torch.sigmoid(self._above)
        ends = torch.ones_like(above[..., :1])
        return -torch.cat([ends, above, torch.zeros_like(ends)], -1).diff(dim=-1)

    def entropy(self) -> Tensor:
        ranks = self.support().reshape(-1, *[1] * self.params.dim())
        every = self.with_params(self.params.expand(len(ranks), *self.params.shape))
        log_p = every.log_prob(ranks.expand(-1, *self.params.shape[:-1], 1))
        return -(log_p.exp() * log_p).sum(0)

    def kl_divergence(self, other: Ordinal) -> Tensor:
        """`[*]` KL(self || other) in nats.

        Raises:
            ValueError: when the other has another number of ranks.
        """
        if not isinstance(other, Ordinal) or other.params.shape[-1] != self.params.shape[-1]:
            raise ValueError("two distributions are compared that are not both Ordinal and of one number of ranks")
        rows = torch.broadcast_shapes(self.params.shape, other.params.shape)
        ranks = self.support().reshape(-1, *[1] * len(rows)).expand(-1, *rows[:-1], 1)
        log_p, log_q = (d.with_params(d.params.expand(len(ranks), *rows)).log_prob(ranks) for d in (self, other))
        return (log_p.exp() * (log_p - log_q)).sum(0)

    def cdf(self, sample: Tensor) -> Tensor:
        """`[*, 1]` the probability of this rank or one below it."""
        return torch.sigmoid(self._edges(sample)[1])

    def mode(self) -> Tensor:
        return self.probs.argmax(-1, keepdim=True).to(self.params.dtype)

    @property
    def mean(self) -> Tensor:
        """`[*, 1]` E[b]."""
        return torch.sigmoid(self._above).sum(-1, keepdim=True)

    def soften(self, z: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """`[*, 1]` a rank between the ranks: a sigmoid for every cut point, added up."""
        return torch.sigmoid(z / temperature).sum(-1, keepdim=True)

    def embed(self, sample: Tensor) -> Tensor:
        return sample

    def support(self) -> Tensor:
        """`[K, 1]`"""
        return torch.arange(self.params.shape[-1] + 1, device=self.params.device).to(self.params.dtype).unsqueeze(-1)

    def _check_ranks(self, sample: Tensor) -> None:
        if not on_host(sample) or not sample.numel():
            return
        b, top = sample.detach(), self.params.shape[-1]
        wrong = (b < 0) | (b > top) | (b != b.round())
        if wrong.any():
            raise ValueError(f"ranks are whole numbers from 0 to {top}, but the sample has {float(b[wrong][0]):g}")


def _log_one_minus_exp(log_gap: Tensor) -> Tensor:
    """log(1 - exp(-gap)), to its own digits and with derivatives for any gap: of small ones the first terms of its series."""
    gap, small = log_gap.exp(), log_gap < -8.0
    large = torch.where(small, torch.ones_like(gap), gap)
    return torch.where(small, log_gap - gap / 2 + gap.square() / 24, torch.log(-torch.expm1(-large)))


def _between(low: Tensor, high: Tensor) -> Tensor:
    """sigmoid(high) - sigmoid(low), to its own digits."""
    return torch.sigmoid(high) * torch.sigmoid(-low) * -torch.expm1(low - high)
