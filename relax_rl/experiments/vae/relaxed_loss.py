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
from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class _Layer:
    """A layer on the way up: what its bits were made of, and what they say of the layer below.

    Attributes:
        scaled: z / lambda, without tangents.
        soft: sigma of it, dual.
        logits: of q, dual.
        pull_logits: back to the relaxed bits below; None where those are bits.
        decoded: dual logits of what the relaxed bits predict; None where nothing is decoded from this layer.
        error: dual derivative of -log p(below | soft) at them.
        pull_decoded: from there back to the relaxed bits of this layer.
    """

    scaled: Tensor
    soft: Tensor
    logits: Tensor
    pull_logits: Pull | None
    decoded: Tensor | None = None
    error: Tensor | None = None
    pull_decoded: Pull | None = None


@torch.no_grad()
def relaxed_loss(place: Place, temperature: Tensor) -> RelaxedLoss:
    """f_l + f_{l+1} + ... at sigma(z_l / lambda), the deeper layers relaxed likewise from the noise of their bits.

    Args:
        place: layer l.
        temperature: lambda, a scalar.
    """
    model, chain, layer, signs = place.model, place.chain, place.layer, place.signs
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
    first = _Layer(scaled, torch.stack([soft, *directions]), chain.logits[layer].detach().unsqueeze(0), None)
    value, layers = _upwards(place, temperature, first, at_bits)
    derivative, value_tangent, slope = _downwards(model, layers, temperature)
    own = None
    if signs is not None:
        own = signs * derivative[3] if len(directions) == 3 else torch.zeros_like(signs)
        if at_bits is not None and decoder is not None and layers[0].decoded is not None:
            p = torch.sigmoid(layers[0].decoded[0])
            own += (p * (1 - p)) @ (2 * decoder.weights[0]).square() * error
    return RelaxedLoss(value, value_tangent, soft, slope, derivative[:3], own)


def _upwards(place: Place, temperature: Tensor, first: _Layer, at_bits: Tensor | None) -> tuple[Tensor, list[_Layer]]:
    """The value, and the layers from the first on with all that the way back needs.

    Args:
        at_bits: what a linear decoder makes of the bits of the first layer, if it is known.
    """
    model, target, chain, layer = place.model, place.target, place.chain, place.layer
    generative = model.task == "generative"
    below = (target if layer == 0 or not generative else chain.bits[layer - 1]).unsqueeze(0)
    value, layers = torch.zeros_like(target[:, 0]), [first]
    for here in range(layer, len(model.layers)):
        if here > layer:
            encoder = model.encoders[here]
            assert isinstance(encoder, ConditionalNetwork)
            logits, pull_logits = _network(encoder, layers[-1].soft)
            scaled = logits / temperature
            scaled[0].add_(chain.noise[here] / temperature)
            scaled[1].sub_(scaled[0])
            layers.append(_Layer(scaled[0], _sigmoid(scaled), logits, pull_logits))
        decoder, soft = model.decoder(here), layers[-1].soft
        if generative:
            value = value + bernoulli_log_prob(soft[0], layers[-1].logits[0])
        if decoder is not None:
            if here > layer or at_bits is None:
                decoded, pull_decoded = _network(decoder, soft)
            else:  # along e a linear decoder moves from these logits to those at the bits
                decoded, pull_decoded = _network(decoder, soft[:2])
                decoded = torch.cat([decoded, (at_bits - decoded[0]).unsqueeze(0)])
            error, rows = _sigmoid(decoded), min(len(decoded), len(below))
            error[:rows].sub_(below[:rows])
            layers[-1] = replace(layers[-1], decoded=decoded, error=error, pull_decoded=pull_decoded)
            value = value - bernoulli_log_prob(below[0], decoded[0])
        below = soft if generative else below
    if model.prior is not None:
        value = value - bernoulli_log_prob(layers[-1].soft[0], model.prior)
    return value, layers


def _downwards(model: SigmoidBeliefNetwork, layers: list[_Layer], temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Dual derivative at the relaxed bits of the first layer; how the value moves with log lambda; `[2]` that at its z."""
    derivative = torch.zeros_like(layers[-1].soft)
    if model.prior is not None:
        derivative[0].sub_(model.prior)
    value_tangent = torch.zeros_like(derivative[0, :, 0])
    for at in reversed(layers):
        if at.pull_decoded is not None and at.error is not None:
            through = at.pull_decoded(at.error)
            derivative[: len(through)].add_(through)
        if model.task == "generative":
            derivative[: len(at.logits)].add_(at.logits)
        rows = 2 if at.pull_logits is None else len(derivative)  # at z only log lambda is asked for
        at_z = _times(derivative[:rows], _spread(at.soft[:rows]))
        value_tangent -= (at_z[0] * at.scaled).sum(-1)
        at_z[1].sub_(at_z[0])
        at_z.div_(temperature)
        if at.pull_logits is None:
            break
        if at.decoded is not None and model.task == "generative":
            derivative = at.pull_logits(at_z.add_(at.soft).sub_(_sigmoid(at.logits))).sub_(at.decoded)
        else:
            derivative = at.pull_logits(at_z)
    return derivative, value_tangent, at_z


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
