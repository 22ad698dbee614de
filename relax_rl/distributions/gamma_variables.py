"""Gamma variables of a fixed number of standard ones: the first proposal that is accepted (Marsaglia and Tsang 2000)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ACCEPTED", "TRIES", "accepted", "proposals", "proposed_for", "transformed"]

TRIES = 6
"""Proposals for each gamma variable, of which the first accepted one counts: less than 5% are refused each time, so that none
is accepted once in 10^8."""
ACCEPTED = 1e30


def proposals(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """`[*shape, 6, 2]` what the proposals are made of: a normal variable, and an exponential one that accepts it."""
    normal = torch.randn((*shape, TRIES), generator=generator, device=like.device, dtype=like.dtype)
    exponential = torch.empty_like(normal).exponential_(generator=generator)
    return torch.stack([normal, exponential], -1)


def accepted(concentration: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Gamma variables `[*]` of these concentrations, at least 1, and the normals `[*]` they are made of.

    Args:
        concentration: `[*]`
        noise: `[*, 6, 2]` as `proposals` makes it.
    """
    normal, exponential = noise.unbind(-1)
    d = concentration.unsqueeze(-1) - 1.0 / 3.0
    v = (1.0 + normal / (3.0 * d.sqrt())).pow(3)
    positive = v.clamp(min=torch.finfo(v.dtype).tiny)
    fits = (v > 0) & (-exponential < 0.5 * normal.square() + d * (1.0 - v + positive.log()))
    first = fits.to(torch.uint8).argmax(-1, keepdim=True)
    return (d * positive).gather(-1, first).squeeze(-1), normal.gather(-1, first).squeeze(-1)


def transformed(concentration: Tensor, normal: Tensor) -> Tensor:
    """h(normal; concentration), the gamma variable that an accepted normal makes; differentiable in both."""
    d = concentration - 1.0 / 3.0
    return d * (1.0 + normal / (3.0 * d.sqrt())).pow(3)


def proposed_for(concentration: Tensor, gamma: Tensor) -> Tensor:
    """`[*, 6, 2]` noise whose first proposal, accepted whatever it is, makes these gamma variables."""
    d = concentration - 1.0 / 3.0
    normal = 3.0 * d.sqrt() * ((gamma / d).pow(1.0 / 3.0) - 1.0)
    surely = min(ACCEPTED, torch.finfo(normal.dtype).max / 2)
    first = torch.stack([normal, torch.full_like(normal, surely)], -1).unsqueeze(-2)
    return F.pad(first, (0, 0, 0, TRIES - 1))
