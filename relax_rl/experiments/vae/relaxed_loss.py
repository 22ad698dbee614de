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
from torch import Tensor, nn

from relax_rl.experiments.vae.sbn import Chain, ConditionalNetwork, SigmoidBeliefNetwork, bernoulli_log_prob

__all__ = ["RelaxedLoss", "relaxed_loss"]

Pull = Callable[[Tensor], Tensor]
"""From the (dual) derivative of the loss at a network's logits to that at its input."""


@dataclass(frozen=True)
class RelaxedLoss:
    """The terms of f from one layer on, at relaxed bits y = sigma(z / lambda); all without graph.

    Attributes:
        value: `[B]`.
        slope: `[B, P]` its derivative at z.
        value_tangent, slope_tangent: how the two move with the logarithm of the temperature.
        at_bits: `[1 + T, B, P]` its dual derivative at y, which moves with log lambda and, if there were signs, along e.
        own: `[B, P]` H_jj e_j, right in expectation over the signs; None without.
    """

    value: Tensor
    slope: Tensor
    value_tangent: Tensor
    slope_tangent: Tensor
    at_bits: Tensor
    own: Tensor | None


@dataclass(frozen=True)
class _Layer:
    """A layer on the way up: what its bits were made of, and what they say of the layer below.

    Attributes:
        scaled: z / lambda, without tangents.
        soft: sigma of it, dual.
        logits: of q.
        pull_logits: back to the relaxed bits below; None where those are bits.
        error: derivative of -log p(below | soft) at the decoder's logits; None where nothing is decoded from this layer.
        pull_decoded: from there back to the relaxed bits of this layer.
        decoded: the decoder's logits.
    """

    scaled: Tensor
    soft: Tensor
    logits: Tensor
    pull_logits: Pull | None
    error: Tensor | None = None
    pull_decoded: Pull | None = None
    decoded: Tensor | None = None


@torch.no_grad()
def relaxed_loss(
    model: SigmoidBeliefNetwork,
    target: Tensor,
    chain: Chain,
    layer: int,
    log_temperature: Tensor,
    signs: Tensor | None = None,
    decoded: Tensor | None = None,
) -> RelaxedLoss:
    """f_l + f_{l+1} + ... at sigma(z_l / lambda), the deeper layers relaxed likewise from the noise of their bits.

    Args:
        model: whose f it is.
        target: `[B, D]` predicted pixels.
        chain: the bits before layer l, z_l, and the noise after it.
        layer: l, from 0.
        log_temperature: log lambda, a scalar.
        signs: `[B, P]` +-1, drawn independently of everything else; products with H are formed if there are any.
        decoded: `model.decoded` at the layer's bits; it saves work where there are signs.
    """
    temperature = log_temperature.exp()
    decoded_bits = None
    if signs is not None and _decoder_is_linear(model, layer):
        decoded_bits = model.decoded(layer, chain.bits[layer]) if decoded is None else decoded.detach()
    value, layers, diagonal = _upwards(model, target, chain, layer, temperature, signs, decoded_bits)
    tangents = len(layers[0].soft) - 1
    derivative: Tensor | None = None  # of f at the relaxed bits of the layer at hand, as far as deeper layers bring it
    if model.prior is not None:
        derivative = _constant(-model.prior.expand_as(layers[-1].soft[0]), tangents)
    value_tangent = torch.zeros_like(value)
    for at in reversed(layers):
        if at.pull_decoded is not None and at.error is not None:
            through = at.pull_decoded(at.error)
            if derivative is None:
                derivative = through
            else:
                derivative[: len(through)] += through
        assert derivative is not None
        if model.task == "generative":
            derivative += at.logits
        at_bits = derivative
        kept = 2 if at.pull_logits is None else len(at_bits)  # at z only log lambda is asked for
        derivative = _times(at_bits[:kept], _spread(at.soft[:kept]))
        value_tangent -= (derivative[0] * at.scaled).sum(-1)
        derivative[1] -= derivative[0]
        derivative /= temperature
        if at.pull_logits is None:
            break
        if model.task == "generative":
            assert at.decoded is not None
            derivative = at.pull_logits(derivative.add_(at.soft).sub_(_sigmoid(at.logits))).sub_(at.decoded)
        else:
            derivative = at.pull_logits(derivative)
    assert derivative is not None
    own = None
    if signs is not None:
        own = torch.zeros_like(signs) if diagonal is None else diagonal * (chain.bits[layer] - layers[0].soft[0])
        if tangents == 3:
            own += signs * at_bits[3]
    return RelaxedLoss(value, derivative[0], value_tangent, derivative[1], at_bits[:3], own)


def _upwards(
    model: SigmoidBeliefNetwork,
    target: Tensor,
    chain: Chain,
    layer: int,
    temperature: Tensor,
    signs: Tensor | None,
    decoded_bits: Tensor | None,
) -> tuple[Tensor, list[_Layer], Tensor | None]:
    """The value, the layers from `layer` on with all that the way back needs, and what of H's diagonal is in closed form.

    Soft bits move along log lambda, with signs along e too, and along signs * e as far as H's diagonal is not known.

    Args:
        decoded_bits: what a linear decoder makes of the bits of the layer; its diagonal is known then.
    """
    scaled = chain.z[layer] / temperature
    soft = torch.sigmoid(scaled)
    error = chain.bits[layer] - soft
    wholly_known = decoded_bits is not None and layer == len(model.layers) - 1
    further = [] if signs is None else [error] if wholly_known else [error, signs * error]
    soft = torch.stack([soft, -scaled * soft * (1 - soft), *further])
    tangents = len(soft) - 1
    below = _constant(target if layer == 0 else chain.bits[layer - 1], tangents)
    logits, pull_logits = _constant(chain.logits[layer].detach(), tangents), None
    value = torch.zeros_like(target[:, 0])
    layers: list[_Layer] = []
    for here in range(layer, len(model.layers)):
        if here > layer:
            below = layers[-1].soft
            logits, pull_logits = _dual_network(model.encoders[here], below)
            moved = logits / temperature
            moved[0] += chain.noise[here] / temperature
            moved[1] -= moved[0]
            scaled, soft = moved[0], _sigmoid(moved)
        at_bits = decoded_bits if here == layer else None
        if model.task == "generative":
            decoded, pull_decoded = _decode(model.decoders[here], soft, at_bits)
            error = _sigmoid(decoded).sub_(below[: len(decoded)])
            layers.append(_Layer(scaled, soft, logits, pull_logits, error, pull_decoded, decoded))
            value = value + bernoulli_log_prob(soft[0], logits[0]) - bernoulli_log_prob(below[0], decoded[0])
        elif here == len(model.layers) - 1:
            decoded, pull_decoded = _decode(model.decoders[0], soft, at_bits)
            error = _sigmoid(decoded)
            error[0] -= target
            layers.append(_Layer(scaled, soft, logits, pull_logits, error, pull_decoded, decoded))
            value = -bernoulli_log_prob(target, decoded[0])
        else:
            layers.append(_Layer(scaled, soft, logits, pull_logits))
    if model.prior is not None:
        value = value - bernoulli_log_prob(layers[-1].soft[0], model.prior)
    return value, layers, None if decoded_bits is None else _diagonal(model, layer, layers[0].decoded)


def _decode(decoder: nn.Module, soft: Tensor, at_bits: Tensor | None) -> tuple[Tensor, Pull]:
    """Dual logits at dual soft bits, and the way back; a linear decoder's along e are the way from these to those at bits."""
    if at_bits is None:
        return _dual_network(decoder, soft)
    logits, pull = _dual_network(decoder, soft[:2])
    return torch.cat([logits, (at_bits - logits[0]).unsqueeze(0)]), pull


def _decoder_is_linear(model: SigmoidBeliefNetwork, layer: int) -> bool:
    """Whether something is decoded from this layer, and linearly."""
    decoder = model.decoder(layer)
    return decoder is not None and len(decoder.steps) == 1


def _diagonal(model: SigmoidBeliefNetwork, layer: int, decoded: Tensor | None) -> Tensor:
    """`[B, P]` diagonal of the second derivative of -log p(below | y), whose logits W (2 y - 1) + a are dual `decoded`."""
    decoder = model.decoder(layer)
    assert decoder is not None and decoded is not None
    ((weight, _),) = decoder.steps
    soft = torch.sigmoid(decoded[0])
    diagonal: Tensor = (soft * (1 - soft)) @ (2 * weight).square()
    return diagonal


def _dual_network(network: nn.Module, soft: Tensor) -> tuple[Tensor, Pull]:
    """Dual logits of a network that reads dual relaxed bits as 2 b - 1, and the way back to the bits."""
    assert isinstance(network, ConditionalNetwork)
    *hidden, (weight, bias) = network.steps
    x = 2 * soft
    x[0] -= 1
    outputs: list[Tensor] = []
    for inner_weight, inner_bias in hidden:
        x = _linear(x, inner_weight, inner_bias)
        x[0].tanh_()
        x[1:] *= 1 - x[0].square()
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
    y[0] += bias
    return y


def _sigmoid(x: Tensor) -> Tensor:
    soft = torch.empty_like(x)
    torch.sigmoid(x[0], out=soft[0])
    torch.mul(soft[0] * (1 - soft[0]), x[1:], out=soft[1:])
    return soft


def _spread(soft: Tensor) -> Tensor:
    """s (1 - s)."""
    spread = (1 - 2 * soft[0]) * soft
    spread[0] = soft[0] * (1 - soft[0])
    return spread


def _times(x: Tensor, y: Tensor) -> Tensor:
    """The product rule."""
    product = x * y[0]
    product[1:].addcmul_(x[0], y[1:])
    return product


def _constant(x: Tensor, tangents: int) -> Tensor:
    """What moves in no direction."""
    constant = x.new_zeros((1 + tangents, *x.shape))
    constant[0] = x
    return constant
