"""An order of items, or the first few of one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import permutations

import torch
from torch import Tensor
from torch.nn import functional as F

from relax_rl.distributions.checks import on_host, require_alike, require_params
from relax_rl.distributions.discrete import FAR, HIDDEN, divergence, log_probability, one_hot
from relax_rl.distributions.gumbel_perturbed import GumbelPerturbed, widened
from relax_rl.distributions.orders import (
    MOST_OUTCOMES,
    first_sets,
    gumbels_given_order,
    noise_given_order,
    require_count,
    require_few,
    suffix_logsumexp,
)

__all__ = ["PlackettLuce"]


@dataclass(frozen=True, eq=False)
class PlackettLuce(GumbelPerturbed):
    """The first `k` of `n` items drawn one after the other without replacement, each with probability softmax(logits) of
    those that are left; an order of all items without `k`.

    `params` (the logits), z and noise are `[*, n]`, z = log_softmax(logits) + Gumbel noise, and H lists the items by falling z. Samples are int64
    `[*, k]`, the first item first, or with `one_hot` their matrix `[*, k n]`, row after row: row j is the one-hot vector of
    the item in place j. `embed` is that matrix, and `soften` its SoftSort (Prillo and Eisenschlos 2020),
    softmax over i of -|z_(j) - z_i| / temperature. z given b is in closed form (Gadetsky et al. 2020).

    A logit of -inf masks an item: it comes after all others, masked ones by index, and adds nothing to probabilities,
    entropy or derivatives. Time and memory of a row grow with k n.
    """

    params: Tensor
    k: int | None = None
    one_hot: bool = False

    def __post_init__(self) -> None:
        require_params(self)
        require_count("PlackettLuce", self._count, self.params.shape[-1])

    def with_params(self, params: Tensor) -> PlackettLuce:
        return replace(self, params=params)

    @property
    def _count(self) -> int:
        return self.params.shape[-1] if self.k is None else self.k

    def threshold(self, z: Tensor) -> Tensor:
        z = z.detach()
        level = torch.where(z > -HIDDEN, z, torch.full_like(z, -FAR))  # masked items tie, and so come by index
        return self._sample(level.sort(dim=-1, descending=True, stable=True).indices[..., : self._count])

    def relax_given(self, sample: Tensor, noise: Tensor) -> Tensor:
        order, locations, masked, noise = self._in_order(sample, self._locations, self._masked, noise)
        z = gumbels_given_order(locations, noise, self._count)
        return _by_item(torch.where(masked, noise - FAR, z), order)

    def noise_given(self, sample: Tensor, z: Tensor) -> Tensor:
        order, locations, masked, z = self._in_order(sample, self._locations.detach(), self._masked, z.detach())
        noise = noise_given_order(locations, z, self._count)
        return _by_item(torch.where(masked, z + FAR, noise), order)

    def log_prob(self, sample: Tensor) -> Tensor:
        order, locations, masked = self._in_order(sample, self._locations, self._masked)
        k = self._count
        terms = locations[..., :k] - suffix_logsumexp(locations, k)
        # Masked items follow in the one order that is possible.
        expected = self._masked.to(torch.uint8).sort(dim=-1, stable=True).indices
        wrong = (masked & (order != expected))[..., :k].any(-1)
        return terms.masked_fill(masked[..., :k], 0.0).sum(-1).masked_fill(wrong, -math.inf)

    def score(self, sample: Tensor) -> Tensor:
        order, locations, masked = self._in_order(sample, self._locations.detach(), self._masked)
        k, n = self._count, locations.shape[-1]
        location, drawn = widened(locations), ~masked[..., :k]
        # An item that is left at place j is next with probability exp(location - left_j): summed over places up to its own.
        left = location.flip(-1).logcumsumexp(-1).flip(-1)[..., :k]
        times = (-left).masked_fill(~drawn, -math.inf).logcumsumexp(-1)
        place = torch.arange(n, device=times.device).clamp(max=k - 1)
        expected = torch.exp(location + times[..., place])
        score = F.pad(drawn.to(location.dtype), (0, n - k)) - expected
        return _by_item(score.masked_fill(masked, 0.0).to(locations.dtype), order)

    def entropy(self) -> Tensor:
        """`[*]` entropy in nats, a sum over the sets that may come first; there is no closed form.

        Raises:
            ValueError: for more sets than `first_sets` runs through: -log_prob of a sample is an unbiased estimate.
        """
        total = torch.zeros_like(self.params[..., 0])
        for _, at, following in first_sets(self._probs, self._count - 1):
            choice = -(following * following.clamp(min=torch.finfo(following.dtype).tiny).log()).sum(-1)
            total = total + (at * choice).sum(-1).to(total.dtype)
        return total

    def kl_divergence(self, other: PlackettLuce) -> Tensor:
        """`[*]` KL(self || other) in nats; as `entropy` a sum over sets, of the divergences of what is drawn next.

        Raises:
            ValueError: when the other is of another family, width or k; for more sets than `first_sets` runs through:
                log_prob - other.log_prob of a sample is an unbiased estimate.
        """
        require_alike(self, other, ("_count",))
        ours, theirs = (first_sets(dist._probs, self._count - 1, by_index=True) for dist in (self, other))
        total = torch.zeros((), dtype=self.params.dtype, device=self.params.device)
        for (_, at, following), (_, _, expected) in zip(ours, theirs, strict=True):
            apart = divergence(log_probability(following), log_probability(expected)).sum(-1)
            beyond = apart == math.inf
            reached = (at * apart.masked_fill(beyond, 0.0)).masked_fill(beyond & (at > 0.0), math.inf)
            total = total + reached.sum(-1).to(self.params.dtype)
        return total

    def mode(self) -> Tensor:
        return self.threshold(self._locations)

    @property
    def mean(self) -> Tensor:
        """`[*, k n]` E[embed(b)], for each place the probability of each item; as `entropy` a sum over sets.

        Raises:
            ValueError: for more sets than `first_sets` runs through.
        """
        sets = first_sets(self._probs, self._count - 1, by_index=True)
        places = [(at.unsqueeze(-1) * following).sum(-2) for _, at, following in sets]
        return torch.cat(places, -1).to(self.params.dtype)

    def soften(self, z: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        falling = z.sort(dim=-1, descending=True, stable=True).values[..., : self._count]
        return F.softmax(-(falling.unsqueeze(-1) - z.unsqueeze(-2)).abs() / temperature, dim=-1).flatten(-2)

    def embed(self, sample: Tensor) -> Tensor:
        return sample if self.one_hot else self._one_hot(sample)

    def support(self) -> Tensor:
        """`[M, k]` every order, M = n! / (n - k)!; with `one_hot` `[M, k n]`.

        Raises:
            ValueError: for more than 40,320 of them, those of 8 items.
        """
        n, k = self.params.shape[-1], self._count
        require_few(
            math.perm(n, k), MOST_OUTCOMES, f"a list of orders of {k} of {n} items", "take an estimator that samples"
        )
        return self._sample(torch.tensor(list(permutations(range(n), k)), device=self.params.device))

    @property
    def _probs(self) -> Tensor:
        """`[*, n]` in float64, where there is one, 0 where masked."""
        return F.softmax(widened(self.params), dim=-1)

    def _in_order(self, sample: Tensor, *by_item: Tensor) -> tuple[Tensor, ...]:
        """All n items, those of the sample first and the others by index, `[*, n]`; and tensors `[*, n]` in this order."""
        n = self.params.shape[-1]
        rows = self._one_hot(sample) if not self.one_hot else sample
        matrix = rows.unflatten(-1, (self._count, n)).long()
        if on_host(matrix) and (matrix.sum(-2) > 1).any():
            raise ValueError("a sample is an order of different items, but one has an item twice")
        place = torch.arange(self._count, device=sample.device).unsqueeze(-1)
        key = (matrix * place).sum(-2) + (1 - matrix.sum(-2)) * self._count
        order = key.sort(dim=-1, stable=True).indices
        order, *by_item_ = torch.broadcast_tensors(order, *by_item)
        return (order, *(x.gather(-1, order) for x in by_item_))

    def _one_hot(self, order: Tensor) -> Tensor:
        return one_hot(order, self.params.shape[-1], self.params.dtype).flatten(-2)

    def _sample(self, order: Tensor) -> Tensor:
        return self._one_hot(order) if self.one_hot else order


def _by_item(x: Tensor, order: Tensor) -> Tensor:
    """Entries in the order of places, by item again."""
    return x.gather(-1, order.argsort(dim=-1))
