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

import torch
from torch import Tensor

from relax_rl.experiments.vae.relaxed_loss import RelaxedLoss, relaxed_loss
from relax_rl.experiments.vae.sbn import Chain, SigmoidBeliefNetwork

__all__ = ["Control", "relaxed_controls"]


@dataclass(frozen=True)
class Control:
    """A control variate of one layer of bits at its z, with the graph to what it learns.

    To an estimator it is a surrogate that is known at the sample's own z, which coupled noise alone asks for. Each bit
    is a row of its own: z is `[B, P, 1]`.

    Attributes:
        value: `[B, 1]`, or `[B, P]` if each bit has its own.
        slope: `[B, P]` derivative of each bit's control at that bit's z.
    """

    value: Tensor
    slope: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """`[B, P]`."""
        return self.value.expand_as(self.slope)

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, P]` and `[B, P, 1]`."""
        return self(z), self.slope.unsqueeze(-1)


def relaxed_controls(
    model: SigmoidBeliefNetwork,
    target: Tensor,
    chain: Chain,
    layer: int,
    before: Tensor,
    log_temperature: Tensor,
    signs: Tensor | None = None,
    decoded: Tensor | None = None,
) -> list[Control]:
    """f with the bits of a layer relaxed, and its correction for each bit if there are signs: c_j is their sum.

    Args:
        model: whose f it is.
        target: `[B, D]` predicted pixels.
        chain: the bits before the layer, its z, and the noise of the deeper ones.
        layer: from 0.
        before: `[B]` the terms of f before the layer.
        log_temperature: log lambda, a scalar, to which the controls have a graph.
        signs: `[B, P]` +-1, drawn independently of everything else.
        decoded: `model.decoded` at the layer's bits, which saves work where there are signs.
    """
    moved = log_temperature - log_temperature.detach()
    with torch.no_grad():
        temperature = log_temperature.exp()
        plain = relaxed_loss(model, target, chain, layer, temperature, signs, decoded)
        values, slopes = torch.stack([before + plain.value, plain.value_tangent]).unsqueeze(-1), plain.slope
        correction = None if plain.own is None else _correction(plain, plain.own, chain, layer, temperature)
    found = [(values, slopes)] if correction is None else [(values, slopes), correction]
    return [Control(value[0] + moved * value[1], slope[0] + moved * slope[1]) for value, slope in found]


def _correction(
    plain: RelaxedLoss, own: Tensor, chain: Chain, layer: int, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum over i != j and its slope, both `[2, B, P]`: themselves, and how they move with log lambda.

    How H itself moves with lambda would take a third derivative of f; it is left out of what trains lambda.
    """
    gradient, gradient_tangent, along_error = plain.at_bits
    z, bits = chain.z[layer], chain.bits[layer]
    scaled = z / temperature
    y = torch.sigmoid(scaled)
    error, spread = bits - y, y * (1 - y)
    steepness, y_tangent = spread / temperature, -scaled * spread
    steepness_tangent = (1 - 2 * y) * y_tangent / temperature - steepness
    own_tangent = own * scaled.abs() * torch.maximum(y, 1 - y)  # e moves by this factor of itself
    each = torch.stack([gradient * error, gradient_tangent * error - gradient * y_tangent])
    slope = steepness * (along_error - own)
    slope_tangent = steepness_tangent * (along_error - own) - steepness * (gradient_tangent + own_tangent)
    return each.sum(-1, keepdim=True) - each, torch.stack([slope, slope_tangent])
