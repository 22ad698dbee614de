"""Sigmoid belief networks: layers of bits between an image and its code, and the bound that they are trained on.

f is what an estimator minimises in expectation, a loss in nats for every image, a sum over the layers of bits:

    f(b) = sum_l f_l(b_{l-1}, b_l),    f_l = log q(b_l | b_{l-1}) - log p(b_{l-1} | b_l)  (- log p(b_L) in the last)

with b_0 the image: E_q[f] is the negative evidence lower bound. Bits are read by the next layer as 2 b - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relax_rl.distributions import Bernoulli
from relax_rl.experiments.vae.noise import Noise

__all__ = ["Chain", "ConditionalNetwork", "Outcome", "SigmoidBeliefNetwork", "bernoulli_log_prob", "threshold"]

Outcome = Callable[[int, Tensor], Tensor]
"""From the number of a layer and its logits to what the next layer reads: its bits, relaxed bits or their mean."""


class ConditionalNetwork(nn.Module):
    """`[*, size]` -> `[*, outputs]` logits: a linear layer, behind tanh layers if there are any.

    Weights are uniform with Glorot's variance, biases zero.
    """

    def __init__(self, size: int, hidden: Sequence[int], outputs: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for inputs, width in pairwise([size, *hidden, outputs]):
            bound = math.sqrt(6.0 / (inputs + width))
            weight = torch.empty(width, inputs).uniform_(-bound, bound, generator=generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(width)))

    @property
    def linear(self) -> bool:
        """Whether there is no tanh layer."""
        return len(self.weights) == 1

    @property
    def steps(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each layer, the linear one last."""
        return list(zip(self.weights, self.biases, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, (weight, bias) = self.steps
        for inner_weight, inner_bias in hidden:
            x = torch.tanh(F.linear(x, inner_weight, inner_bias))
        return F.linear(x, weight, bias)


@dataclass(frozen=True)
class Chain:
    """Samples of every layer, each drawn given the one before.

    Attributes:
        logits: `[*, B, P]` for each layer, with the graph to the encoder's own parameters and to nothing else.
        noise: logistic noise of each layer.
        bits: 1[logits + noise > 0], without graph.
    """

    logits: Sequence[Tensor]
    noise: Sequence[Tensor]
    bits: Sequence[Tensor]

    @cached_property
    def dists(self) -> list[Bernoulli]:
        """q(b_l | b_{l-1}) of each layer, `[*, B, P]`, without graph."""
        each = zip(self.logits, self.bits, strict=True)
        return [Bernoulli(logits.detach().expand_as(bits)) for logits, bits in each]

    @cached_property
    def z(self) -> list[Tensor]:
        """`[*, B, P]` logits + noise of each layer, without graph."""
        return [dist.relax(noise) for dist, noise in zip(self.dists, self.noise, strict=True)]

    @cached_property
    def scores(self) -> list[Tensor]:
        """`[*, B, P]` dlog q(b_l | b_{l-1}) at the logits of each layer."""
        return [dist.score(bits) for dist, bits in zip(self.dists, self.bits, strict=True)]


class SigmoidBeliefNetwork(nn.Module):
    """Bits in layers, inferred from an image upwards and, in the generative task, generating it downwards.

    Generative: q(b_1 | x) q(b_2 | b_1) ... infers, p(b_L) ... p(b_1 | b_2) p(x | b_1) generates; f is the negative
    log-weight log q - log p. Structured prediction: the upper half x of the image predicts the lower half y through
    bits drawn upwards, q(b_1 | x) ... q(b_L | b_{L-1}), and f = -log p(y | b_L).

    Args:
        mean: `[D]` mean of the training images, subtracted from the encoder's input; the bias of the pixels starts at
            its logit.
        layers: widths of the layers of bits.
        hidden: widths of the tanh layers before each layer of logits; none makes every conditional linear.
        wide_decoder: the hidden layers of a decoder are as wide as what it predicts, as in the published nonlinear
            results of RELAX (784 units before the pixels).
        task: what is modelled.
        generator: of the initial weights.
    """

    mean: Tensor

    def __init__(
        self,
        mean: Tensor,
        *,
        layers: Sequence[int] = (200,),
        hidden: Sequence[int] = (),
        wide_decoder: bool = False,
        task: Literal["generative", "structured"] = "generative",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.layers, self.task = tuple(layers), task
        self.num_pixels = mean.numel()
        self.split = self.num_pixels // 2 if task == "structured" else self.num_pixels
        self.register_buffer("mean", mean.detach().clone())
        widths = [self.split, *layers]
        encoders = [ConditionalNetwork(below, hidden, above, generator) for below, above in pairwise(widths)]
        self.encoders: Sequence[ConditionalNetwork] = nn.ModuleList(encoders)  # type: ignore[assignment]
        self.prior: nn.Parameter | None = None
        if task == "generative":
            pairs = list(zip(widths[1:], widths[:-1], strict=True))
            self.prior = nn.Parameter(torch.zeros(layers[-1]))
        else:
            pairs = [(layers[-1], self.num_pixels - self.split)]
        decoders = [
            ConditionalNetwork(above, [below] * len(hidden) if wide_decoder else hidden, below, generator)
            for above, below in pairs
        ]
        self.decoders: Sequence[ConditionalNetwork] = nn.ModuleList(decoders)  # type: ignore[assignment]
        with torch.no_grad():
            self.decoders[0].biases[-1].copy_(torch.logit(self.target(self.mean).clamp(0.001, 0.999)))

    @property
    def encoder_parameters(self) -> list[nn.Parameter]:
        """Parameters of q, whose gradient is the estimator's business."""
        return [parameter for encoder in self.encoders for parameter in encoder.parameters()]

    @property
    def generative_parameters(self) -> list[nn.Parameter]:
        """Parameters of p, in which f can be differentiated."""
        prior = [] if self.prior is None else [self.prior]
        return [*prior, *(parameter for decoder in self.decoders for parameter in decoder.parameters())]

    def input(self, x: Tensor) -> Tensor:
        """`[B, D]` images -> what the first encoder reads, centred."""
        return (x - self.mean)[..., : self.split]

    def target(self, x: Tensor) -> Tensor:
        """`[B, D]` images -> the pixels that are predicted."""
        return x[..., self.split :] if self.task == "structured" else x

    def encode(self, layer: int, below: Tensor) -> Tensor:
        """Logits of layer `layer` given `input(x)` for the first, or the (relaxed) bits of the layer before."""
        logits: Tensor = self.encoders[layer](below if layer == 0 else 2 * below - 1)
        return logits

    def decoder(self, layer: int) -> ConditionalNetwork | None:
        """What predicts pixels, or the layer below, from the bits of a layer; None if nothing does."""
        if self.task == "structured" and layer < len(self.layers) - 1:
            return None
        return self.decoders[layer if self.task == "generative" else 0]

    def decoded(self, layer: int, bits: Tensor) -> Tensor | None:
        """Logits of what the (relaxed) bits of a layer predict; None if they predict nothing."""
        decoder = self.decoder(layer)
        return None if decoder is None else decoder(2 * bits - 1)

    def term(
        self,
        layer: int,
        target: Tensor,
        below: Tensor | None,
        bits: Tensor,
        logits: Tensor,
        decoded: Tensor | None = None,
    ) -> Tensor:
        """f_l `[*, B]`: the part of f that a layer adds, at bits or relaxed bits.

        Args:
            layer: l, from 0.
            target: `[B, D]` predicted pixels.
            below: `[*, B, P]` bits of the layer before; None for the first.
            bits: `[*, B, P]` of this layer.
            logits: of q for these bits.
            decoded: what `decoded` gives for them, if it is known already.
        """
        if decoded is None:
            decoded = self.decoded(layer, bits)
        if self.task == "structured":
            return bits.new_zeros(bits.shape[:-1]) if decoded is None else -bernoulli_log_prob(target, decoded)
        assert decoded is not None
        predicted = target if below is None else below
        log_ratio = bernoulli_log_prob(bits, logits) - bernoulli_log_prob(predicted, decoded)
        if layer == len(self.layers) - 1:
            assert self.prior is not None
            log_ratio = log_ratio - bernoulli_log_prob(bits, self.prior)
        return log_ratio

    def terms(
        self,
        target: Tensor,
        bits: Sequence[Tensor],
        logits: Sequence[Tensor],
        decoded: Sequence[Tensor | None] | None = None,
    ) -> list[Tensor]:
        """All f_l, each `[*, B]`."""
        below = [None, *bits[:-1]]
        known = [None] * len(bits) if decoded is None else decoded
        layers = enumerate(zip(below, bits, logits, known, strict=True))
        return [self.term(layer, target, *at) for layer, at in layers]

    def loss(self, target: Tensor, chain: Chain) -> Tensor:
        """f(b) `[*, B]`, with the graph to the generative parameters; that to q's own log-probability is left out.

        The expectation of q's score is zero, so that nothing is lost.
        """
        return torch.stack(self.terms(target, chain.bits, [logits.detach() for logits in chain.logits])).sum(0)

    def rest_of_loss(
        self, layer: int, target: Tensor, below: Tensor | None, bits: Tensor, logits: Tensor, outcome: Outcome
    ) -> Tensor:
        """f_l + f_{l+1} + ... `[*, B]` at (relaxed) bits of one layer, the deeper ones continued by `outcome`.

        Args:
            layer, target, below, bits, logits: as in `term`.
            outcome: of each deeper layer, given its logits.
        """
        value = self.term(layer, target, below, bits, logits)
        for deeper in range(layer + 1, len(self.layers)):
            below, logits = bits, self.encode(deeper, bits)
            bits = outcome(deeper, logits)
            value = value + self.term(deeper, target, below, bits, logits)
        return value

    def upwards(self, x: Tensor, outcome: Outcome) -> tuple[list[Tensor], list[Tensor]]:
        """Logits and outcomes of all layers from images `[B, D]`, each layer given the outcome of the one before."""
        below, logits, outcomes = self.input(x), [], []
        for layer in range(len(self.layers)):
            logits.append(self.encode(layer, below))
            below = outcome(layer, logits[-1])
            outcomes.append(below)
        return logits, outcomes

    def draw(self, x: Tensor, noise: Sequence[Tensor]) -> Chain:
        """Sample every layer from its noise `[*, B, P]`, upwards from images `[B, D]`."""
        logits, bits = self.upwards(x, lambda layer, at: threshold(at, noise[layer]))
        return Chain(logits, noise, bits)

    def sample(self, x: Tensor, noise: Noise, *, count: int | None = None) -> Chain:
        """Sample every layer for images `[B, D]`: `[B, P]`, or `[count, B, P]` if there is a count."""
        shape = (len(x),) if count is None else (count, len(x))
        return self.draw(x, noise.logistic(shape, self.layers))

    def decode(self, bits: Tensor) -> Tensor:
        """Probabilities `[*, B, D]` of the predicted pixels, from the layer of bits that predicts them."""
        return torch.sigmoid(self.decoders[0](2 * bits - 1))

    def generate(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """`[count, D]` probabilities of pixels of images drawn from the model (generative task)."""
        assert self.prior is not None
        bits = torch.bernoulli(torch.sigmoid(self.prior).expand(count, -1), generator=generator)
        for decoder in reversed(self.decoders[1:]):
            bits = torch.bernoulli(torch.sigmoid(decoder(2 * bits - 1)), generator=generator)
        return self.decode(bits)


def bernoulli_log_prob(bits: Tensor, logits: Tensor) -> Tensor:
    """`[*]` log-probability of bits `[*, P]`; at relaxed bits the expression that is linear in them."""
    return (bits * logits - F.softplus(logits)).sum(-1)


def threshold(logits: Tensor, noise: Tensor) -> Tensor:
    """Bits of logistic noise, without graph."""
    dist = Bernoulli(logits.detach())
    return dist.threshold(dist.relax(noise))
