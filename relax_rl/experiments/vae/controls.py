"""Control variates made of f itself at relaxed bits, y = sigma(z / lambda), and what their training needs.

As published, one control serves every bit of a layer: c = f(y), with all bits relaxed. It is far from f(b) where many bits
are in doubt, unless lambda is small, and then its slope is steep. A control may be another one for every bit, as each
bit's gradient is an estimate of its own. The control of bit j here relaxes bit j alone, as nearly as one pass can tell:

    c_j(z) = f(y) + sum_{i != j} df/dy_i (b_i - y_i),    b_i = 1[z_i > 0]

f with the other bits taken back, to first order, to what they were. It is smooth in z_j, where alone it is differentiated,

    dc_j/dz_j = y_j (1 - y_j) / lambda [df/dy_j + (H e)_j - H_jj e_j],    e = b - y,

with H the second derivative of f at y. Where the diagonal of H has no closed form, an estimate that is right in expectation
stands for it (see `relaxed_loss.py`), so that the estimate stays unbiased.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from relax_rl.experiments.vae.relaxed_loss import relaxed_loss
from relax_rl.experiments.vae.sbn import Chain, SigmoidBeliefNetwork

__all__ = ["Control", "relaxed_terms"]


@dataclass(frozen=True)
class Control:
    """A control variate of one layer of bits at its z, with the graph to what it learns.

    To an estimator it is a surrogate that is known at the sample's own z, which coupled noise alone asks for. Each bit
    is a row of its own: z is `[B, P, 1]`.

    Attributes:
        value: `[B, P]`, or `[B, 1]` if all bits have the same.
        slope: `[B, P]` derivative of each bit's control at that bit's z.
    """

    value: Tensor
    slope: Tensor

    def __add__(self, other: Control) -> Control:
        return Control(self.value + other.value, self.slope + other.slope)

    def __call__(self, z: Tensor) -> Tensor:
        """`[B, P]`."""
        return self.value.expand_as(self.slope)

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, P]` and `[B, P, 1]`."""
        return self(z), self.slope.unsqueeze(-1)


@torch.no_grad()
def relaxed_terms(
    model: SigmoidBeliefNetwork,
    target: Tensor,
    chain: Chain,
    layer: int,
    before: Tensor,
    temperature: Tensor,
    scales: Tensor,
    signs: Tensor | None = None,
    decoded: Tensor | None = None,
) -> Tensor:
    """f with the bits of a layer relaxed; with signs its correction for each bit too, of which c_j is the sum.

    Args:
        model: whose f it is.
        target: `[B, D]` predicted pixels.
        chain: the bits before the layer, its z, and the noise of the deeper ones.
        layer: from 0.
        before: `[B]` the terms of f before the layer.
        temperature: lambda, a scalar.
        scales: `[k]` by which the k = 1 or 2 terms are to be multiplied.
        signs: `[B, P]` +-1, drawn independently of everything else.
        decoded: `model.decoded` at the layer's bits, which saves work where there are signs.

    Returns:
        `[k + 1, 2, B, P]` value and slope of each term, and last of how their sum, so scaled, moves with log lambda.
    """
    parts = _parts(model, target, chain, layer, before, temperature, signs, decoded)
    like, each = parts[0].slope, scales.unbind()
    moved = [
        reduce(torch.add, [eta * x for eta, x in zip(each, tangents, strict=True)])
        for tangents in ([x.value_tangent for x in parts], [x.slope_tangent for x in parts])
    ]
    terms = [*(x for part in parts for x in part[:2]), *moved]
    return torch.stack([x.expand_as(like) for x in terms]).view(-1, 2, *like.shape)


class _Part(NamedTuple):
    """Value and slope of a part of a control, and how the two move with log lambda, without graph.

    Each is `[B, P]`, or `[B, 1]` if it is the same for all bits.
    """

    value: Tensor
    slope: Tensor
    value_tangent: Tensor
    slope_tangent: Tensor


def _parts(
    model: SigmoidBeliefNetwork,
    target: Tensor,
    chain: Chain,
    layer: int,
    before: Tensor,
    temperature: Tensor,
    signs: Tensor | None = None,
    decoded: Tensor | None = None,
) -> list[_Part]:
    """f(y), and with signs the sum over i != j.

    How H moves with lambda would take a third derivative of f; it is left out of `slope_tangent`, which trains lambda and
    nothing else.
    """
    plain = relaxed_loss(model, target, chain, layer, temperature, signs, decoded)
    value, value_tangent = (before + plain.value).unsqueeze(-1), plain.value_tangent.unsqueeze(-1)
    parts = [_Part(value, plain.slope[0], value_tangent, plain.slope[1])]
    if plain.own is None:
        return parts
    gradient, gradient_tangent, along_error = plain.at_bits
    scaled, y = chain.z[layer] / temperature, plain.soft
    error, spread = chain.bits[layer] - y, y * (1 - y)
    steepness, y_tangent = spread / temperature, -scaled * spread
    steepness_tangent = (1 - 2 * y) * y_tangent / temperature - steepness
    own_tangent = plain.own * scaled.abs() * torch.maximum(y, 1 - y)  # e moves by this factor of itself
    each, each_tangent = gradient * error, gradient_tangent * error - gradient * y_tangent
    without_own = along_error - plain.own
    correction = _Part(
        each.sum(-1, keepdim=True) - each,
        steepness * without_own,
        each_tangent.sum(-1, keepdim=True) - each_tangent,
        steepness_tangent * without_own - steepness * (gradient_tangent + own_tangent),
    )
    return [*parts, correction]
