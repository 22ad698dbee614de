"""The probability of a set drawn without replacement as an integral, and what else that integral holds.

Exponentials X_i = exp(-z_i) of rates p_i: the set of the k smallest is S when all of S come before T, the first of the rest.
In the log of T, measured in units of its own rate, y = log(T p_rest), and with a_s = log p_s - log p_rest,

    P(S) = integral exp(y - e^y) prod_{s in S} (1 - exp(-e^(a_s + y))) dy

(Kool et al. 2020). No term is negative, so that nothing cancels. Numbers are float64 (float32 on MPS), sums those
of Gauss and Legendre in cells whose width falls with sqrt(k): relative errors are below 1e-7, for every k. Ratios of the
probabilities of a small set and of its own subsets come from a recursion, which is exact, and takes fewer numbers while 2^k is small.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import combinations

import torch
from torch import Tensor

__all__ = ["level_at", "log_leave_out_ratios", "log_set_probability", "noise_at", "set_score"]

_LOW = -24.0
"""Below this log T there is less than 4e-11 of any set's probability."""
_POINTS = ((-0.906179845938664, 0.236926885056189), (-0.538469310105683, 0.478628670499366), (0.0, 0.568888888888889))
_HALVINGS, _STEPS = 5, 3
_FAR = 40.0
"""The largest exponential number that noise makes is 37."""
_TINY = -36.0
"""Below this x, 1 - exp(-e^x) is e^x to every digit."""
_MOST_BY_SUBSETS = 10
"""Members of a set up to which all its subsets are fewer numbers than the nodes of the integrals."""


def _rule(like: Tensor) -> tuple[Tensor, Tensor]:
    """Five points in (0, 1) and their weights, which sum to 1."""
    points = [*_POINTS, *((-x, w) for x, w in reversed(_POINTS[:2]))]
    at, weight = (torch.tensor([pair[k] for pair in points], dtype=like.dtype, device=like.device) for k in (0, 1))
    return (at + 1) / 2, weight / 2


def _cells(k: int, like: Tensor) -> tuple[Tensor, float]:
    """Lower ends `[C]` of the cells, and their width."""
    high, most = math.log(k + 41 + 10 * math.sqrt(k + 1)), min(0.7, 1.5 / math.sqrt(k + 1))
    count = math.ceil((high - _LOW) / most)
    width = (high - _LOW) / count
    return _LOW + width * torch.arange(count, dtype=like.dtype, device=like.device), width


def _log_factors(x: Tensor) -> Tensor:
    """log(1 - exp(-e^x)); 0 from where it is below any number's rounding, and x where e^x is."""
    return torch.log(-torch.expm1(-torch.exp(x.clamp(_TINY, 7.0)))) + (x - _TINY).clamp(max=0.0)


def _log_integrand(a: Tensor, y: Tensor) -> Tensor:
    """`[*, Q]` at a `[*, k]` and y `[*, Q]` or `[Q]`."""
    return y - y.exp() + _log_factors(a.unsqueeze(-2) + y.unsqueeze(-1)).sum(-1)


def _slopes(x: Tensor) -> Tensor:
    """d log(1 - exp(-e^x)) / dx."""
    rate = x.clamp(_TINY, 7.0).exp()
    return rate / torch.expm1(rate)


def _nodes(k: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes `[Q]` of the whole integral and the log of their weights."""
    (start, width), (at, weight) = _cells(k, like), _rule(like)
    return (start.unsqueeze(-1) + width * at).flatten(), (weight * width).log().repeat(len(start))


def log_set_probability(a: Tensor) -> Tensor:
    """`[*]` log P(S) of a `[*, k]`, differentiable."""
    y, log_weight = _nodes(a.shape[-1], a)
    return (_log_integrand(a, y) + log_weight).logsumexp(-1)


def set_score(a: Tensor) -> Tensor:
    """`[*, k]` d log P(S) / da."""
    y, log_weight = _nodes(a.shape[-1], a)
    share = (_log_integrand(a, y) + log_weight).softmax(-1)
    return (share.unsqueeze(-1) * _slopes(a.unsqueeze(-2) + y.unsqueeze(-1))).sum(-2)


def log_leave_out_ratios(a: Tensor) -> tuple[Tensor, Tensor]:
    """What leaving out members does to the probability of a set, in logs.

    Returns:
        `[*, k]` the log of R(S, s) = P(S - s, of all but s) / P(S), and `[*, k, k]` the same of S - s where s' is left out as well,
        P(S - s - s', of all but both) / P(S - s, of all but s), 1 for s' = s (Kool et al. 2020).
    """
    small = a.shape[-1] <= _MOST_BY_SUBSETS
    whole, without, pair = _log_left_out_by_subsets(a) if small else _log_left_out(a)
    same = torch.eye(a.shape[-1], dtype=torch.bool, device=a.device)
    second = (pair - without.unsqueeze(-1)).masked_fill(same, 0.0)
    return without - whole.unsqueeze(-1), second


def _log_left_out(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log P(S) `[*]`, P(S - s, of all but s) `[*, k]` and P(S - s - s', of all but both) `[*, k, k]`, by integrals."""
    y, log_weight = _nodes(a.shape[-1], a)
    factors = _log_factors(a.unsqueeze(-2) + y.unsqueeze(-1))
    terms = (y - y.exp() + factors.sum(-1) + log_weight).unsqueeze(-1)
    pair = (terms.unsqueeze(-1) - factors.unsqueeze(-1) - factors.unsqueeze(-2)).logsumexp(-3)
    return terms.squeeze(-1).logsumexp(-1), (terms - factors).logsumexp(-2), pair


def _log_left_out_by_subsets(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `_log_left_out`, by what is drawn first: P(T, of T and the rest) = sum_{s in T} w_s P(T - s) / (1 + sum_T w).

    w = e^a are the rates in units of the rest's. The diagonal of the pairs is that of one left out.
    """
    found, none = a.new_zeros((*a.shape[:-1], 1)), a.new_zeros(())
    levels, left_out = _subsets(a.shape[-1])
    for members, parents in levels:
        rates = a[..., members.to(a.device)]
        drawn = (rates + found[..., parents.to(a.device)]).logsumexp(-1)
        found = torch.cat([found, drawn - torch.logaddexp(rates.logsumexp(-1), none)], -1)
    pair = found[..., left_out.to(a.device)]
    return found[..., -1], pair.diagonal(dim1=-2, dim2=-1), pair


@cache
def _subsets(k: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """The subsets of k members, fewest first: of each size m `[C, m]` members and the places of the subsets without each; and the
    places `[k, k]` of those without two members, or without one on the diagonal."""
    ordered = [chosen for m in range(k + 1) for chosen in combinations(range(k), m)]
    place = {frozenset(chosen): number for number, chosen in enumerate(ordered)}

    def without(chosen: frozenset[int], *members: int) -> int:
        return place[chosen.difference(members)]

    levels = []
    for m in range(1, k + 1):
        of_size = list(combinations(range(k), m))
        parents = [[without(frozenset(chosen), s) for s in chosen] for chosen in of_size]
        levels.append((torch.tensor(of_size), torch.tensor(parents)))
    every = frozenset(range(k))
    return levels, torch.tensor([[without(every, i, j) for j in range(k)] for i in range(k)])


def level_at(a: Tensor, exponential: Tensor) -> Tensor:
    """y given the set: the quantile that leaves exp(-exponential) above it. Differentiable once, by the implicit function.

    Args:
        a: `[*, k]`.
        exponential: `[*]` standard exponential noise.
    """
    given, noise = a.detach(), exponential.detach().clamp(max=_FAR)
    mass, total, start, width, top = _masses(given)
    before = mass.cumsum(-1) - mass
    after = mass.flip(-1).cumsum(-1).flip(-1) - mass
    low, high = total * -torch.expm1(-noise), total * torch.exp(-noise)
    # The smaller of both tails says where: it has the digits.
    lower = noise < math.log(2.0)
    cell = torch.where(lower, (before + mass < low.unsqueeze(-1)).sum(-1), (after >= high.unsqueeze(-1)).sum(-1))
    cell = cell.clamp(max=mass.shape[-1] - 1)
    before, after, here = (x.gather(-1, cell.unsqueeze(-1)).squeeze(-1) for x in (before, after, mass))
    wanted = torch.where(lower, low - before, here - (high - after)).clamp(min=0.0)
    begin = start.expand(mass.shape).gather(-1, cell.unsqueeze(-1)).squeeze(-1)  # which vmap takes
    y = _within(given, begin, width, wanted, top)
    density = torch.exp(_log_integrand(given, y.unsqueeze(-1)) - top).squeeze(-1)
    by_a = _quantile_slopes(given, y, begin, cell, torch.exp(-noise), top) / density.unsqueeze(-1)
    by_noise = total * torch.exp(-noise) / density
    return y + (by_a * (a - given)).sum(-1) + by_noise * (exponential - exponential.detach())


def noise_at(a: Tensor, y: Tensor) -> Tensor:
    """The exponential noise at which `level_at` gives y, without graph."""
    a, y = a.detach(), y.detach()
    mass, total, start, width, top = _masses(a)
    cell = ((y.unsqueeze(-1) - _LOW) / width).long().clamp(0, mass.shape[-1] - 1)
    before = (mass.cumsum(-1) - mass).gather(-1, cell).squeeze(-1)
    after = (mass.flip(-1).cumsum(-1).flip(-1) - mass).gather(-1, cell).squeeze(-1)
    begin = start[cell.squeeze(-1)]
    lower = (before + _partial(a, begin, y, top)) / total
    upper = (after + _partial(a, y, begin + width, top)) / total
    tiny = torch.finfo(a.dtype).tiny
    return torch.where(lower < 0.5, -torch.log1p(-lower.clamp(max=0.5)), -torch.log(upper.clamp(min=tiny)))


def _masses(a: Tensor) -> tuple[Tensor, Tensor, Tensor, float, Tensor]:
    """`[*, C]` integrals over cells, their sum `[*]`, the cells, and the log of what all are divided by, `[*, 1]`."""
    (start, width), (at, weight) = _cells(a.shape[-1], a), _rule(a)
    log_density = _log_integrand(a, (start.unsqueeze(-1) + width * at).flatten())
    top = log_density.amax(-1, keepdim=True)
    mass = width * (torch.exp(log_density - top).unflatten(-1, (len(start), -1)) * weight).sum(-1)
    return mass, mass.sum(-1), start, width, top


def _partial(a: Tensor, low: Tensor, high: Tensor, top: Tensor) -> Tensor:
    """`[*]` the integral between `[*]` bounds within one cell, or as wide."""
    at, weight = _rule(a)
    size = (high - low).unsqueeze(-1)
    return (torch.exp(_log_integrand(a, low.unsqueeze(-1) + size * at) - top) * weight).sum(-1) * size.squeeze(-1)


def _within(a: Tensor, begin: Tensor, width: float, wanted: Tensor, top: Tensor) -> Tensor:
    """`[*]` where the integral from the beginning of a cell is `wanted`: by halving, and then by Newton's method."""
    low, step = begin, width
    for _ in range(_HALVINGS):
        step = step / 2
        low = torch.where(_partial(a, begin, low + step, top) < wanted, low + step, low)
    y = low + step / 2
    for _ in range(_STEPS):
        density = torch.exp(_log_integrand(a, y.unsqueeze(-1)) - top).squeeze(-1)
        y = y - (_partial(a, begin, y, top) - wanted) / density.clamp(min=torch.finfo(a.dtype).tiny)
        y = torch.minimum(torch.maximum(y, low), low + step)
    return y


def _quantile_slopes(a: Tensor, y: Tensor, begin: Tensor, cell: Tensor, above: Tensor, top: Tensor) -> Tensor:
    """`[*, k]` dy / da times the density at y: by which y moves so that the same share `above` stays above it.

    With A and B the integrals below and above y, A / (A + B) is held: dy = (A dB - B dA) / (A + B).
    """
    (start, width), (at, weight) = _cells(a.shape[-1], a), _rule(a)

    def slopes(nodes: Tensor) -> Tensor:
        """`[*, Q, k]` the density's derivatives."""
        density = torch.exp(_log_integrand(a, nodes) - top).unsqueeze(-1)
        return density * _slopes(a.unsqueeze(-2) + nodes.unsqueeze(-1))

    whole = width * (slopes((start.unsqueeze(-1) + width * at).flatten()).unflatten(-2, (len(start), -1)))
    whole = (whole * weight.unsqueeze(-1)).sum(-2)
    size = (y - begin).unsqueeze(-1)
    part = (slopes(begin.unsqueeze(-1) + size * at) * weight.unsqueeze(-1)).sum(-2) * size
    earlier = (torch.arange(len(start), device=a.device) < cell.unsqueeze(-1)).unsqueeze(-1)
    lower = (whole * earlier).sum(-2) + part
    later = (torch.arange(len(start), device=a.device) > cell.unsqueeze(-1)).unsqueeze(-1)
    rest_size = (begin + width - y).unsqueeze(-1)
    rest = (slopes(y.unsqueeze(-1) + rest_size * at) * weight.unsqueeze(-1)).sum(-2) * rest_size
    upper = (whole * later).sum(-2) + rest
    share = above.unsqueeze(-1)
    slope: Tensor = (1 - share) * upper - share * lower
    return slope
