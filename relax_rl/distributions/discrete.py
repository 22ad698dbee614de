"""What discrete families share: one-hot vectors, lists of outcomes, and outcomes that are impossible.

All but `check_possible` stays on the device of what it belongs to, without a value on the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from relax_rl.distributions.checks import on_host

__all__ = [
    "FAR",
    "HIDDEN",
    "broadcast_rows",
    "check_possible",
    "cumulative",
    "divergence",
    "every_combination",
    "log_probability",
    "one_hot",
    "visible",
]

FAR = 1000.0
"""How far out the relaxed sample of an impossible outcome, whose logit is infinite, stands: its probability, e^-1000, is
0 in every type, yet no surrogate sees an infinity."""
HIDDEN = 900.0
"""Beyond this every relaxed sample belongs to an impossible outcome, for noise moves it by 37 at most."""


def one_hot(index: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """`[*]` indices -> `[*, count]` rows of the identity."""
    return (index.unsqueeze(-1) == torch.arange(count, device=index.device)).to(dtype)


def every_combination(sizes: Sequence[int], device: torch.device) -> Tensor:
    """`[prod(sizes), len(sizes)]` every choice of one index below each size; the last one moves fastest."""
    axes = torch.meshgrid(*(torch.arange(size, device=device) for size in sizes), indexing="ij")
    return torch.stack(axes, -1).reshape(-1, len(sizes))


def visible(slope: Tensor, z: Tensor) -> Tensor:
    """`slope` in z, 0 where z is that of an impossible outcome and so does not move with the parameters."""
    return slope * (z > -HIDDEN)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p (log p - log q), outcome by outcome: 0 where p is 0, infinite where q alone is; both without derivatives."""
    impossible = log_p == -math.inf
    beyond = (log_q == -math.inf) & ~impossible
    left_out = impossible | beyond
    log_p, log_q = log_p.masked_fill(left_out, 0.0), log_q.masked_fill(left_out, 0.0)
    return (log_p.exp() * (log_p - log_q)).masked_fill(beyond, math.inf)


def log_probability(probs: Tensor) -> Tensor:
    """log p, -inf where p is 0, without a derivative there."""
    impossible = probs == 0.0
    return probs.masked_fill(impossible, 1.0).log().masked_fill(impossible, -math.inf)


def cumulative(probs: Tensor, index: Tensor) -> Tensor:
    """`[*]` the sum of probabilities `[*, P]` up to each index `[*]`, which counts."""
    index, sums = broadcast_rows(index, probs.cumsum(-1).clamp(max=1.0))
    return sums.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def broadcast_rows(index: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """`[*]` indices and a table `[*, P]`, rows of one made to fit those of the other."""
    if index.shape != table.shape[:-1]:
        rows = torch.broadcast_shapes(index.shape, table.shape[:-1])
        index, table = index.expand(rows), table.expand(*rows, table.shape[-1])
    return index, table


def check_possible(logits: Tensor) -> None:
    """Raises ValueError where a row of logits `[*, P]` leaves no outcome possible; looks at a CPU's numbers alone."""
    if not on_host(logits) or not logits.numel():
        return
    while logits.dim() > 1 and logits.stride(0) == 0:  # many samples of the same rows
        logits = logits[0]
    top = logits.detach().amax(-1)
    if math.isfinite(float(top.sum())):  # one look instead of four, unless finite numbers add up to none
        return
    possible = top.isfinite()
    if not possible.all():
        raise ValueError(
            f"logits{(~possible).nonzero()[0].tolist() or ''} allow no outcome: all of them are -inf (masked), or one is inf or NaN; leave at least "
            "one of them finite and the others below inf, or leave the row out"
        )
