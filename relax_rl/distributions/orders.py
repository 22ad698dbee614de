"""What orders and sets drawn without replacement share: Gumbels given their order, and probabilities of first sets."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from relax_rl.distributions.discrete import one_hot

__all__ = [
    "MOST_OUTCOMES",
    "MOST_SETS",
    "below",
    "first_sets",
    "gumbels_given_order",
    "noise_given_order",
    "prefix_logsumexp",
    "require_count",
    "require_few",
    "strictly_falling",
    "suffix_logsumexp",
]

MOST_SETS = 4096
"""Sets that sums over first choices run through at most: all those of 12 items."""
MOST_OUTCOMES = 40_320
"""Outcomes that are listed at most: the orders of 8 items."""


def require_count(family: str, count: int, size: int) -> None:
    """Raises ValueError where `count` of `size` items cannot be chosen."""
    if not 1 <= count <= size:
        raise ValueError(f"k of {family} is {count}, expected 1 to {size}, the number of items in its params")


def require_few(count: int, most: int, what: str, instead: str) -> None:
    """Raises ValueError where a sum runs through too many cases."""
    if count > most:
        raise ValueError(f"{what} runs through {count} cases, {most} at most: {instead}")


def prefix_logsumexp(x: Tensor) -> Tensor:
    """`[*, k]` log of the sums of exp(x) up to each entry, which counts; O(k^2), differentiable twice."""
    k = x.shape[-1]
    later = torch.ones(k, k, dtype=torch.bool, device=x.device).triu(1)
    return x.unsqueeze(-2).masked_fill(later, -math.inf).logsumexp(-1)


def suffix_logsumexp(x: Tensor, count: int) -> Tensor:
    """`[*, count]` log of the sums of exp(x) from each of the first entries of `[*, n]` on."""
    earlier = torch.ones(count, x.shape[-1], dtype=torch.bool, device=x.device).tril(-1)
    return x.unsqueeze(-2).masked_fill(earlier, -math.inf).logsumexp(-1)


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def strictly_falling(x: Tensor) -> Tensor:
    """x `[*, k]`, each entry at least one floating-point number below the one before; its gradient is that of x.

    Floating-point numbers of one type are ordered as the integers in their bits are, so that this is a running minimum.
    """
    kind = _INTEGERS[x.element_size()]
    bits = x.detach().contiguous().view(kind).long()
    least = torch.iinfo(kind).min
    rank = torch.where(bits < 0, least - bits, bits)
    step = torch.arange(x.shape[-1], device=x.device)
    rank = torch.cummin(rank + step, -1).values - step
    fixed = torch.where(rank < 0, least - rank, rank).to(kind).view(x.dtype)
    return x + (fixed - x).detach()


def below(x: Tensor) -> Tensor:
    """The floating-point number below x, with its gradient."""
    here = x.detach()
    return x + (torch.nextafter(here, torch.full_like(here, -math.inf)) - here)


def gumbels_given_order(locations: Tensor, gumbel: Tensor, count: int) -> Tensor:
    """Gumbels at locations `[*, n]`, given that the first `count` are the largest and stand in falling order.

    With L_j the logsumexp of the locations from j on and E = exp(-gumbel) standard exponentials,

        exp(-z_j) = sum_{i <= j} E_i exp(-L_i),        exp(-z_i) = exp(-z_k) + E_i exp(-l_i) for i behind the first k = count

    (Gadetsky et al. 2020): the largest is a Gumbel at L_1, each other one truncated at the one before.
    """
    totals = suffix_logsumexp(locations, count)
    first = strictly_falling(-prefix_logsumexp(-gumbel[..., :count] - totals))
    if count == locations.shape[-1]:
        return first
    last = first[..., -1:]
    rest = below(last) - F.softplus(last - gumbel[..., count:] - locations[..., count:])
    return torch.cat([first, rest], -1)


def noise_given_order(locations: Tensor, z: Tensor, count: int) -> Tensor:
    """The noise from which `gumbels_given_order` makes z."""
    totals = suffix_logsumexp(locations, count)
    first, last = z[..., :count], z[..., count - 1 : count]
    before = torch.cat([first[..., :-1], last.expand_as(z[..., count:])], -1)
    after = torch.cat([first[..., 1:], z[..., count:]], -1)
    at = torch.cat([totals[..., 1:], locations[..., count:]], -1)
    gap = (before - after).clamp(min=torch.finfo(z.dtype).tiny)
    return torch.cat([z[..., :1] - totals[..., :1], after - torch.log(-torch.expm1(-gap)) - at], -1)


@lru_cache(maxsize=64)
def _levels(n: int, count: int) -> list[tuple[list[tuple[int, ...]], list[list[int]]]]:
    """For each size j = 0..count, the sets of j of n items, and where each without its m-th item stands among the smaller."""
    levels = []
    where: dict[tuple[int, ...], int] = {}
    for size in range(count + 1):
        sets = list(combinations(range(n), size))
        levels.append((sets, [[where[chosen[:m] + chosen[m + 1 :]] for m in range(size)] for chosen in sets]))
        where = {chosen: index for index, chosen in enumerate(sets)}
    return levels


def first_sets(probs: Tensor, count: int, *, by_index: bool = False) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The law of the set of the first j items drawn without replacement, j = 0..count, exactly.

    A sum over sets instead of orders, all of whose terms are positive: P(A) = sum_{i in A} P(A - i) p_i / p(not A - i).

    Args:
        probs: `[*, n]`.
        count: of items drawn.
        by_index: whether items of probability 0 follow by index once no others are left, instead of none.

    Returns:
        for each j the sets `[C, j]`, their probabilities `[*, C]` and `[*, C, n]` the probability of each item to be next.

    Raises:
        ValueError: where the sets are more than `MOST_SETS`.
    """
    n = probs.shape[-1]
    sets = sum(math.comb(n, size) for size in range(count + 1))
    require_few(sets, MOST_SETS, f"a sum over sets of up to {count} of {n} items", "estimate it from samples")
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    at, following = probs.new_ones((*probs.shape[:-1], 1)), probs.unsqueeze(-2)
    for size, tables in enumerate(_levels(n, count)):
        members, without = (
            torch.tensor(table, dtype=torch.int64, device=probs.device).reshape(len(table), size) for table in tables
        )
        if found:
            step = following[..., without, members]
            at = (at[..., without] * step).sum(-1)
        taken = (members.unsqueeze(-1) == torch.arange(n, device=probs.device)).any(-2)
        left = probs.unsqueeze(-2).masked_fill(taken, 0.0)
        total = left.sum(-1, keepdim=True)
        following = left / total.masked_fill(total == 0.0, 1.0)
        if by_index:
            following = torch.where(total == 0.0, one_hot((~taken).long().argmax(-1), n, left.dtype), following)
        found.append((members, at, following))
    return found
