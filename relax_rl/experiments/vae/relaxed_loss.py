"""f at relaxed bits with its derivatives at z and at the temperature, written out.

A surrogate needs f(sigma(z / lambda)), its gradient at z, and how both move with lambda. Here the gradient is the chain
rule by hand, and every number carries its derivatives along a few directions with it, of which log lambda is the first,
so that one pass gives all of it: no graph is built, and nothing is differentiated twice. A number with T such tangents
is a tensor `[1 + T, B, P]`, called dual.

The second derivative H of f at y is asked for by its product with the error e = b - y, and by its diagonal. A linear decoder
has a diagonal in closed form; that of everything else is s * H (s * e) / e with random signs s, right in expectation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from relax_rl.experiments.vae.sbn import Chain, ConditionalNetwork, SigmoidBeliefNetwork, bernoulli_log_prob

__all__ = ["Place", "RelaxedLoss", "relaxed_loss"]

Pull = Callable[[Tensor], Tensor]
"""From the dual derivative of the loss at a network's logits to that at its input."""


@dataclass(frozen=True)
class Place:
    """A layer of a chain, and what is known of f there.

    Attributes:
        model: whose f it is.
        target: `[B, D]` predicted pixels.
        chain: the bits before the layer, its z, and the noise of the deeper ones.
        layer: l, from 0.
        signs: `[B, P]` +-1, drawn independently of everything else; products with H are formed if there are any.
        decoded: `model.decoded` at the layer's bits, which saves work where there are signs.
    """

    model: SigmoidBeliefNetwork
    target: Tensor
    chain: Chain
    layer: int
    signs: Tensor | None = None
    decoded: Tensor | None = None


@dataclass(frozen=True)
class RelaxedLoss:
    """The terms of f from one layer on, at relaxed bits y = sigma(z / lambda); all without graph.

    Attributes:
        value, value_tangent: `[B]`, and how it moves with log lambda.
        soft: `[B, P]` y.
        slope: `[2, B, P]` dual derivative at z, which moves with log lambda.
        at_bits: `[1 + T, B, P]` dual derivative at y, which moves with log lambda and, if there were signs, along e.
        own: `[B, P]` H_jj e_j, right in expectation over the signs; None without.
    """

    value: Tensor
    value_tangent: Tensor
    soft: Tensor
    slope: Tensor
    at_bits: Tensor
    own: Tensor | None


@torch.no_grad()
def relaxed_loss(place: Place, temperature: Tensor) -> RelaxedLoss:
    """f_l + f_{l+1} + ... at sigma(z_l / lambda), the deeper layers relaxed likewise from the noise of their bits.

    Args:
        place: layer l.
        temperature: lambda, a scalar.
    """
    model, target, chain, layer, signs = place.model, place.target, place.chain, place.layer, place.signs
    scaled, decoder = chain.z[layer] / temperature, model.decoder(layer)
    soft = torch.sigmoid(scaled)
    error = chain.bits[layer] - soft
    directions, at_bits = [-scaled * soft * (1 - soft)], None
    if signs is not None:
        directions.append(error)
        if decoder is not None and decoder.linear:  # its part in the diagonal of H is known
            at_bits = decoder(2 * chain.bits[layer] - 1) if place.decoded is None else place.decoded.detach()
        if at_bits is None or layer < len(model.layers) - 1:
            directions.append(signs * error)
    dual, logits = torch.stack([soft, *directions]), chain.logits[layer].detach().unsqueeze(0)
    below = (target if layer == 0 or model.task != "generative" else chain.bits[layer - 1]).unsqueeze(0)
    value, moved, derivative, decoded = _from_layer(place, temperature, layer, dual, logits, below, at_bits)
    slope, moved_here = _at_z(derivative[:2], dual[:2], scaled, temperature)  # of the tangents log lambda's alone
    own = None
    if signs is not None:
        own = signs * derivative[3] if len(directions) == 3 else torch.zeros_like(signs)
        if at_bits is not None and decoder is not None and decoded is not None:
            p = torch.sigmoid(decoded[0])
            own += (p * (1 - p)) @ (2 * decoder.weights[0]).square() * error
    return RelaxedLoss(value, moved + moved_here, soft, slope, derivative[:3], own)


def _from_layer(
    place: Place,
    temperature: Tensor,
    layer: int,
    soft: Tensor,
    logits: Tensor,
    below: Tensor,
    at_bits: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The terms of f from a layer on.

    Args:
        place, temperature: as in `relaxed_loss`.
        layer: from which on.
        soft: dual relaxed bits of the layer.
        logits: of q, dual.
        below: dual relaxed bits of the layer before, or what is predicted.
        at_bits: what a linear decoder makes of the bits of the layer, if it is known.

    Returns:
        `[B]` their value and how it moves with log lambda at this `soft`; the dual derivative at `soft`; and the dual
        logits of what `soft` predicts, None where it predicts nothing.
    """
    model, decoder, decoded = place.model, place.model.decoder(layer), None
    generative = model.task == "generative"
    if layer < len(model.layers) - 1:
        deeper, pull_logits = _network(model.encoders[layer + 1], soft)
        scaled = deeper / temperature
        scaled[0].add_(place.chain.noise[layer + 1] / temperature)
        scaled[1].sub_(scaled[0])
        relaxed = _sigmoid(scaled)
        known = soft if generative else below
        value, moved, at_relaxed, predicted = _from_layer(place, temperature, layer + 1, relaxed, deeper, known)
        at_logits, moved_here = _at_z(at_relaxed, relaxed, scaled[0], temperature)
        moved = moved + moved_here
        if generative and predicted is not None:
            derivative = pull_logits(at_logits.add_(relaxed).sub_(_sigmoid(deeper))).sub_(predicted)
        else:
            derivative = pull_logits(at_logits)
    else:
        value = moved = torch.zeros_like(soft[0, :, 0])
        derivative = torch.zeros_like(soft)
        if model.prior is not None:
            value = value - bernoulli_log_prob(soft[0], model.prior)
            derivative[0].sub_(model.prior)
    if decoder is not None:
        if at_bits is None:
            decoded, pull_decoded = _network(decoder, soft)
        else:  # along e a linear decoder moves from these logits to those at the bits
            decoded, pull_decoded = _network(decoder, soft[:2])
            decoded = torch.cat([decoded, (at_bits - decoded[0]).unsqueeze(0)])
        error, rows = _sigmoid(decoded), min(len(decoded), len(below))
        error[:rows].sub_(below[:rows])
        value = value - bernoulli_log_prob(below[0], decoded[0])
        derivative[: len(decoded)].add_(pull_decoded(error))
    if generative:
        value = value + bernoulli_log_prob(soft[0], logits[0])
        derivative[: len(logits)].add_(logits)
    return value, moved, derivative, decoded


def _at_z(derivative: Tensor, soft: Tensor, scaled: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """From the dual derivative at `soft` = sigma(scaled) to that at z, and how the value moves with log lambda by it."""
    at_z = _times(derivative, _spread(soft))
    moved = -(at_z[0] * scaled).sum(-1)
    at_z[1].sub_(at_z[0])
    return at_z.div_(temperature), moved


def _network(network: ConditionalNetwork, soft: Tensor) -> tuple[Tensor, Pull]:
    """Dual logits of a network that reads dual relaxed bits as 2 b - 1, and the way back to the bits."""
    *hidden, (weight, bias) = network.steps
    x = 2 * soft
    x[0].sub_(1)
    outputs: list[Tensor] = []
    for inner_weight, inner_bias in hidden:
        x = _linear(x, inner_weight, inner_bias)
        x[0].tanh_()
        x[1:].mul_(1 - x[0].square())
        outputs.append(x)

    def pull(derivative: Tensor) -> Tensor:
        derivative = derivative @ weight
        for (inner_weight, _), output in zip(reversed(hidden), reversed(outputs), strict=True):
            slope = -2 * output[0] * output
            slope[0] = 1 - output[0].square()
            derivative = _times(derivative, slope) @ inner_weight
        return derivative.mul_(2)

    return _linear(x, weight, bias), pull


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = x @ weight.t()
    y[0].add_(bias)
    return y


def _sigmoid(x: Tensor) -> Tensor:
    soft = torch.empty_like(x)
    value = torch.sigmoid(x[0], out=soft[0])
    torch.mul(value * (1 - value), x[1:], out=soft[1:])
    return soft


def _spread(soft: Tensor) -> Tensor:
    """s (1 - s)."""
    value = soft[0]
    spread = (1 - 2 * value) * soft
    torch.mul(value, 1 - value, out=spread[0])
    return spread


def _times(x: Tensor, y: Tensor) -> Tensor:
    """The product rule."""
    product = x * y[0]
    product[1:].addcmul_(x[0], y[1:])
    return product
