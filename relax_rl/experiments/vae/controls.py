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

from relax_rl.experiments.vae.relaxed_loss import relaxed_loss
from relax_rl.experiments.vae.sbn import Chain, SigmoidBeliefNetwork

__all__ = ["Control", "relaxed_controls"]


@dataclass(frozen=True)
class Control:
    """A control variate of one layer of bits; all without graph.

    Attributes:
        value: `[B, 1]` at z, or `[B, P]` if each bit has its own.
        slope: `[B, P]` derivative of each bit's control at that bit's z.
        value_tangent, slope_tangent: how the two move with the logarithm of the temperature.
    """

    value: Tensor
    slope: Tensor
    value_tangent: Tensor
    slope_tangent: Tensor


@torch.no_grad()
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
        log_temperature: log lambda, a scalar.
        signs: `[B, P]` +-1, drawn independently of everything else.
        decoded: `model.decoded` at the layer's bits, which saves work where there are signs.
    """
    plain = relaxed_loss(model, target, chain, layer, log_temperature, signs, decoded)
    value = (before + plain.value).unsqueeze(-1)
    controls = [Control(value, plain.slope, plain.value_tangent.unsqueeze(-1), plain.slope_tangent)]
    if plain.own is not None:
        controls.append(_correction(chain.z[layer], log_temperature, plain.own, *plain.at_bits))
    return controls


def _correction(
    z: Tensor,
    log_temperature: Tensor,
    own: Tensor,
    gradient: Tensor,
    gradient_tangent: Tensor,
    along_error: Tensor,
) -> Control:
    """The sum over i != j, from H_jj e_j, f's gradient at y, and how that moves with log lambda and along e.

    How H itself moves with lambda would take a third derivative of f; it is left out of `slope_tangent`, which trains
    lambda and nothing else.
    """
    temperature = log_temperature.exp()
    scaled = z / temperature
    y = torch.sigmoid(scaled)
    error = (z > 0).to(z.dtype) - y
    spread = y * (1 - y)
    steepness, y_tangent = spread / temperature, -scaled * spread
    steepness_tangent = (1 - 2 * y) * y_tangent / temperature - steepness
    own_tangent = own * scaled.abs() * torch.maximum(y, 1 - y)  # e moves by this factor of itself
    each = gradient * error
    each_tangent = gradient_tangent * error - gradient * y_tangent
    return Control(
        each.sum(-1, keepdim=True) - each,
        steepness * (along_error - own),
        each_tangent.sum(-1, keepdim=True) - each_tangent,
        steepness_tangent * (along_error - own) - steepness * (gradient_tangent + own_tangent),
    )
