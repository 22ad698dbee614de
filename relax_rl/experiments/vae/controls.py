"""Control variates of a layer: f itself at relaxed bits, y = sigma(z / lambda), and a free network r; with what trains them.

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

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from relax_rl.critics import closed_form
from relax_rl.critics.activations import DERIVATIVES
from relax_rl.experiments.vae.relaxed_loss import Place, RelaxedLoss, relaxed_loss
from relax_rl.networks.layers import ACTIVATIONS

__all__ = ["Control", "ResidualNetwork", "relaxed_terms"]


@dataclass(frozen=True)
class Control:
    """A control variate of one layer of bits at its z.

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
def relaxed_terms(place: Place, before: Tensor, temperature: Tensor, scales: Tensor) -> Tensor:
    """f with the bits of a layer relaxed; with signs its correction for each bit too, of which c_j is the sum.

    How H moves with lambda would take a third derivative of f; it is left out of how the slope does, which trains lambda
    and nothing else.

    Args:
        place: the layer.
        before: `[B]` the terms of f before it.
        temperature: lambda, a scalar.
        scales: `[k]` by which the k = 1 or 2 terms are to be multiplied.

    Returns:
        `[k + 1, 2, B, P]` value and slope of each term, and last of how their sum, so scaled, moves with log lambda.
    """
    plain, (eta, *kappa) = relaxed_loss(place, temperature), scales.unbind()
    like = plain.slope[0]
    terms = [(before + plain.value).unsqueeze(-1).expand_as(like), like]
    moved = [(eta * plain.value_tangent).unsqueeze(-1).expand_as(like), eta * plain.slope[1]]
    if plain.own is not None:
        values, slopes = _correction(place, plain, plain.own, temperature)
        terms += [values[0], slopes[0]]
        moved = [torch.addcmul(moved[0], kappa[0], values[1]), torch.addcmul(moved[1], kappa[0], slopes[1])]
    return torch.stack([*terms, *moved]).view(-1, 2, *like.shape)


def _correction(
    place: Place, plain: RelaxedLoss, own: Tensor, temperature: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """The sum over i != j, and its slope: each `[B, P]` itself, and how it moves with log lambda."""
    gradient, gradient_tangent, along_error = plain.at_bits
    scaled, y = place.chain.z[place.layer] / temperature, plain.soft
    error, spread = place.chain.bits[place.layer] - y, y * (1 - y)
    steepness, y_tangent = spread / temperature, -scaled * spread
    steepness_tangent = (1 - 2 * y) * y_tangent / temperature - steepness
    own_tangent = own * scaled.abs() * torch.maximum(y, 1 - y)  # e moves by this factor of itself
    each, without_own = [gradient * error, gradient_tangent * error - gradient * y_tangent], along_error - own
    slope_tangent = steepness_tangent * without_own - steepness * (gradient_tangent + own_tangent)
    return [x.sum(-1, keepdim=True) - x for x in each], [steepness * without_own, slope_tangent]


class ResidualNetwork(nn.Module):
    """r(context, z): `[B, C]`, `[B, P]` -> `[B]`. Its last layer starts at zero, and so does r.

    Args:
        context: C, what is given beside z.
        size: P.
        depth: hidden layers.
        width: of each.
        activation: relu as published, or a smooth one.
        generator: of the initial weights.
    """

    def __init__(
        self,
        context: int,
        size: int,
        *,
        depth: int = 4,
        width: int = 200,
        activation: Literal["relu", "tanh", "silu"] = "relu",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.kind = activation
        gain = math.sqrt(2.0) if activation != "tanh" else 1.0

        def matrix(rows: int, columns: int, inputs: int) -> nn.Parameter:
            bound = gain * math.sqrt(3.0 / inputs)
            return nn.Parameter(torch.empty(rows, columns).uniform_(-bound, bound, generator=generator))

        self.of_context = matrix(width, context, context + size)
        self.of_z = matrix(width, size, context + size)
        self.inner = nn.ParameterList(matrix(width, width, width) for _ in range(depth - 1))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(depth))
        self.out = nn.Parameter(torch.zeros(width))

    @torch.no_grad()
    def evaluate(self, context: Tensor, z: Tensor) -> tuple[Control, Callable[[Tensor, Tensor], list[Tensor]]]:
        """r at rows of a context and of relaxed bits, without graph.

        Returns:
            r, the same for all bits of a row, with its slope; and a function of a weight `[B]` and a direction `[B, P]`,
            the gradient of sum(weight r + direction . dr/dz) at the parameters of the network, in their order.
        """
        weights, features = [torch.cat([self.of_context, self.of_z], 1), *self.inner], context.shape[-1]
        activation, derivatives = ACTIVATIONS[self.kind], DERIVATIVES[self.kind]
        out_weight, out_bias = self.out.unsqueeze(0), self.out.new_zeros(1)
        layers = closed_form.Layers(weights, list(self.biases), out_weight, out_bias, activation, derivatives)
        at = closed_form.evaluate(layers, torch.cat([context, z], -1), features)

        @torch.no_grad()
        def pull_back(weight: Tensor, direction: Tensor) -> list[Tensor]:
            found = closed_form.gradient(layers, at, weight, direction)
            first, *inner = found.weights
            return [first[:, :features], first[:, features:], found.out_weight[0], *inner, *found.biases]

        return Control(at.value.unsqueeze(-1), at.slope), pull_back
