"""Some of several items, drawn without replacement, as a set."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from relax_rl.distributions.checks import on_host, require_alike, require_params
from relax_rl.distributions.discrete import FAR, check_possible, divergence, log_probability, one_hot
from relax_rl.distributions.gumbel_perturbed import GumbelPerturbed, widened
from relax_rl.distributions.orders import MOST_OUTCOMES, below, first_sets, require_count, require_few
from relax_rl.distributions.set_integral import level_at, log_set_probability, noise_at, set_score

__all__ = ["Subset", "log_odds"]

_FURTHEST = 600.0
"""The furthest that logs of probabilities are taken apart: its exponential is still a number."""


@dataclass(frozen=True, eq=False)
class Subset(GumbelPerturbed):
    """`k` of `n` items drawn one after the other without replacement, each with probability softmax(logits) of those that
    are left, whatever their order: a Gumbel top-k set.

    `params` (the logits), z and noise are `[*, n]`, z = log_softmax(logits) + Gumbel noise, and H is the set of the k largest z. Samples are int64
    `[*, k]`, items by index, or with `one_hot` k-hot vectors `[*, n]`. `embed` is the k-hot vector, and `soften` the sum of
    k softmaxes of z / temperature, each of which leaves out what those before have taken (Xie and Ermon 2019).

    Probabilities are those of Kool et al. (2020), numerically integrated: relative errors are below 1e-7 in float64, and at
    float32's rounding otherwise, for every k. z given b is exact: the set has the k smallest of the exponentials exp(-z)
    of rates p. Given the set, T, the smallest of the rest, has a density of one variable, whose quantile function is
    inverted; the members are exponentials truncated at T; and by the lack of memory the rest exceed T by what they exceed
    their smallest. z~ is continuous in the parameters, and differentiable once.

    A logit of -inf masks an item, which is never drawn. Time and memory of a row grow with k sqrt(k), and with n.
    """

    params: Tensor
    k: int
    one_hot: bool = False

    def __post_init__(self) -> None:
        require_params(self)
        require_count("Subset", self.k, self.params.shape[-1])

    def with_params(self, params: Tensor) -> Subset:
        return replace(self, params=params)

    def require_possible(self) -> None:
        """Raises ValueError where fewer than k items of a row are left; on a CPU, in eager code."""
        check_possible(self.params)
        if on_host(self.params) and self.params.numel():
            left = int((~self._masked).sum(-1).min())
            if left < self.k:
                raise ValueError(f"a row of logits leaves {left} items, expected at least k = {self.k} above -inf")

    def threshold(self, z: Tensor) -> Tensor:
        chosen = z.detach().sort(dim=-1, descending=True, stable=True).indices[..., : self.k].sort(-1).values
        return self._hot(chosen) if self.one_hot else chosen

    def relax_given(self, sample: Tensor, noise: Tensor) -> Tensor:
        order, locations, masked, noise = self._members_first(sample, self._locations, self._masked, noise)
        if self.k == self.params.shape[-1]:
            return self.relax(noise.gather(-1, order.argsort(dim=-1)))
        wide, gumbel = widened(locations), widened(noise)
        of_members, of_rest = wide[..., : self.k], wide[..., self.k :]
        rest_total = of_rest.logsumexp(-1, keepdim=True).clamp(min=-_FURTHEST)
        # Of the rest, in units in which the smallest is a standard exponential.
        waits = (rest_total - of_rest - gumbel[..., self.k :]).clamp(max=_FURTHEST).exp()
        soonest = waits.amin(-1, keepdim=True)
        odds = (of_members - rest_total).clamp(max=_FURTHEST)
        y = level_at(odds, soonest.squeeze(-1)).unsqueeze(-1)
        members = of_members - _log_truncated(gumbel[..., : self.k], (odds + y).clamp(max=_FURTHEST))
        members = members.to(locations.dtype)
        rest = (rest_total - torch.log(y.exp() + (waits - soonest))).to(locations.dtype)
        highest = below(members.amin(-1, keepdim=True))
        rest = rest + (torch.minimum(rest, highest) - rest).detach()
        z = torch.where(masked, noise - FAR, torch.cat([members, rest], -1))
        return z.gather(-1, order.argsort(dim=-1))

    def noise_given(self, sample: Tensor, z: Tensor) -> Tensor:
        order, locations, masked, z = self._members_first(sample, self._locations.detach(), self._masked, z.detach())
        if self.k == self.params.shape[-1]:
            return self.noise_of(z.gather(-1, order.argsort(dim=-1)))
        wide, given = widened(locations), widened(z)
        of_members, of_rest = wide[..., : self.k], wide[..., self.k :]
        rest_total = of_rest.logsumexp(-1, keepdim=True).clamp(min=-_FURTHEST)
        odds = (of_members - rest_total).clamp(max=_FURTHEST)
        y = rest_total - given[..., self.k :].amax(-1, keepdim=True)
        soonest = noise_at(odds, y.squeeze(-1)).unsqueeze(-1)
        passed = (rest_total - given[..., self.k :]).clamp(max=_FURTHEST).exp() - y.exp()
        rest = rest_total - of_rest - torch.log(passed + soonest)
        members = _gumbel_before(of_members - given[..., : self.k], (odds + y).clamp(max=_FURTHEST))
        noise = torch.where(masked, z + FAR, torch.cat([members, rest], -1).to(z.dtype))
        return noise.gather(-1, order.argsort(dim=-1))

    def log_prob(self, sample: Tensor) -> Tensor:
        _, locations, masked = self._members_first(sample, self._locations, self._masked)
        wrong = masked[..., : self.k].any(-1)
        if self.k == self.params.shape[-1]:
            return (0.0 * locations.sum(-1)).masked_fill(wrong, -math.inf)
        found = log_set_probability(log_odds(locations, self.k)).to(locations.dtype)
        return found.masked_fill(wrong, -math.inf)

    def score(self, sample: Tensor) -> Tensor:
        order, locations, masked = self._members_first(sample, self._locations.detach(), self._masked)
        if self.k == self.params.shape[-1]:
            return torch.zeros_like(locations)
        members = set_score(log_odds(locations, self.k)).to(locations.dtype)
        rest = -members.sum(-1, keepdim=True) * F.softmax(locations[..., self.k :], dim=-1)
        return torch.cat([members, rest], -1).masked_fill(masked, 0.0).gather(-1, order.argsort(dim=-1))

    def entropy(self) -> Tensor:
        """`[*]` entropy in nats, a sum over all sets.

        Raises:
            ValueError: for more sets than `first_sets` runs through: -log_prob of a sample is an unbiased estimate.
        """
        _, at, _ = first_sets(self._probs, self.k)[-1]
        return -(at * at.clamp(min=torch.finfo(at.dtype).tiny).log()).sum(-1).to(self.params.dtype)

    def kl_divergence(self, other: Subset) -> Tensor:
        """`[*]` KL(self || other) in nats; as `entropy` a sum over all sets.

        Raises:
            ValueError: when the other is of another family, width or k; for more sets than `first_sets` runs through:
                log_prob - other.log_prob of a sample is an unbiased estimate.
        """
        require_alike(self, other, ("k",))
        log_p, log_q = (log_probability(first_sets(dist._probs, self.k)[-1][1]) for dist in (self, other))
        return divergence(log_p, log_q).sum(-1).to(self.params.dtype)

    def mode(self) -> Tensor:
        return self.threshold(self._locations)

    @property
    def mean(self) -> Tensor:
        """`[*, n]` E[embed(b)], the probability of each item to be in the set; as `entropy` a sum over all sets.

        Raises:
            ValueError: for more sets than `first_sets` runs through.
        """
        sets, at, _ = first_sets(self._probs, self.k)[-1]
        return (at.unsqueeze(-1) * self._hot(sets).to(at.dtype)).sum(-2).to(self.params.dtype)

    def soften(self, z: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        level = z / temperature
        total = share = F.softmax(level, dim=-1)
        for _ in range(self.k - 1):
            largest = one_hot(level.argmax(-1), level.shape[-1], torch.bool)
            others = level.masked_fill(largest, -math.inf).logsumexp(-1, keepdim=True) - level.logsumexp(
                -1, keepdim=True
            )
            # log(1 - share), with the digits of the others where one share rounds to 1.
            left = torch.where(largest, others, torch.log1p(-share.masked_fill(largest, 0.0)))
            level = level + left / temperature
            share = F.softmax(level, dim=-1)
            total = total + share
        return total

    def embed(self, sample: Tensor) -> Tensor:
        return sample if self.one_hot else self._hot(sample)

    def support(self) -> Tensor:
        """`[M, k]` every set, M = n! / (k! (n - k)!); with `one_hot` `[M, n]`.

        Raises:
            ValueError: for more than 40,320 of them.
        """
        n = self.params.shape[-1]
        require_few(
            math.comb(n, self.k),
            MOST_OUTCOMES,
            f"a list of sets of {self.k} of {n} items",
            "take an estimator that samples",
        )
        sets = torch.tensor(list(combinations(range(n), self.k)), device=self.params.device)
        return self._hot(sets) if self.one_hot else sets

    @property
    def _probs(self) -> Tensor:
        """`[*, n]` in float64, where there is one, 0 where masked."""
        return F.softmax(widened(self.params), dim=-1)

    def _hot(self, sets: Tensor) -> Tensor:
        """`[*, k]` items -> `[*, n]`."""
        items = torch.arange(self.params.shape[-1], device=sets.device)
        return (sets.unsqueeze(-1) == items).any(-2).to(self.params.dtype)

    def _members_first(self, sample: Tensor, *by_item: Tensor) -> tuple[Tensor, ...]:
        """All n items, those of the sample first, each part by index, `[*, n]`; and tensors `[*, n]` in this order."""
        members = self.embed(sample)
        if on_host(members) and (members.sum(-1) != self.k).any():
            raise ValueError(f"a sample is a set of {self.k} different items, but one has an item twice")
        order = (members < 0.5).to(torch.uint8).sort(dim=-1, stable=True).indices
        order, *by_item_ = torch.broadcast_tensors(order, *by_item)
        return (order, *(x.gather(-1, order) for x in by_item_))


def log_odds(locations: Tensor, k: int) -> Tensor:
    """`[*, k]` log p_s - log p_rest of the first k of log-probabilities `[*, n]`, in float64 where there is one."""
    wide = widened(locations)
    rest = wide[..., k:].logsumexp(-1, keepdim=True)
    return (wide[..., :k] - rest.clamp(min=-_FURTHEST)).clamp(max=_FURTHEST)


def _log_truncated(gumbel: Tensor, log_bound: Tensor) -> Tensor:
    """Log of exponential noise truncated at exp(log_bound): -log(1 - q (1 - e^-R)) with q = 1 - e^-E the quantile."""
    wait, bound = torch.exp(-gumbel), torch.exp(log_bound)
    quantile = -torch.expm1(-wait)
    near = torch.minimum(wait, bound) < 1.0
    missing = torch.where(near, quantile * torch.expm1(-bound), torch.full_like(bound, -0.5))
    # Where both are large q rounds to 1: e^-E + e^-R q is what is left.
    large = -torch.logaddexp(-wait, quantile.log() - bound)
    return torch.where(near, -torch.log1p(missing), large.clamp(min=1e-3)).log()


def _gumbel_before(log_wait: Tensor, log_bound: Tensor) -> Tensor:
    """The Gumbel noise from which `_log_truncated` makes log_wait."""
    least = torch.finfo(log_wait.dtype).tiny
    wait, bound = log_wait.exp(), log_bound.exp()
    quantile = (torch.expm1(-wait) / torch.expm1(-bound)).clamp(min=least, max=1.0)
    left = (bound - wait).clamp(min=torch.finfo(log_wait.dtype).eps * wait)
    upper = wait - torch.log(-torch.expm1(-left)) + torch.log(-torch.expm1(-bound))
    return -torch.log(torch.where(quantile < 0.5, -torch.log1p(-quantile.clamp(max=0.5)), upper.clamp(min=least)))
