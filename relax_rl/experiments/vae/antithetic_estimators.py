"""ARM, DisARM and ARMS in a stack of layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from relax_rl.distributions import Bernoulli
from relax_rl.estimators import Estimate
from relax_rl.experiments.vae.gradient import Gradient, LayeredEstimator
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork, draw_noise
from relax_rl.experiments.vae.shared_noise import own_generator

__all__ = ["Antithetic"]


class Antithetic(LayeredEstimator):
    """Each layer's gradient from samples of its bits that repel each other, given one sample of the layers before.

    Every one of them is continued by samples of its own through the deeper layers. K samples a layer are K evaluations
    of f for the first layer, and K of the terms of f that are left for each deeper one.

    Args:
        estimate: `estimate(f, dist, noise=, generator=)`, an estimator of `relax_rl.estimators` for bits.
        groups: independent groups of antithetic samples, whose estimates are averaged.
        given_noise: whether the estimator is given the noise of its bits, as `noise=`; otherwise it draws for itself.
    """

    def __init__(self, estimate: Callable[..., Estimate], *, groups: int = 1, given_noise: bool = True) -> None:
        super().__init__()
        self.estimate, self.groups, self.given_noise = estimate, groups, given_noise

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, generator: torch.Generator | None = None) -> Gradient:
        target = model.target(x)
        logits, cotangents, values = [], [], []
        below: Tensor | None = None
        for layer in range(len(model.layers)):
            at = model.encode(layer, model.input(x) if below is None else below)
            dist = Bernoulli(at.detach().expand(self.groups, *at.shape))
            rest = _RestOfLoss(model, target, layer, below, at.detach(), generator)
            source: dict[str, Any]
            if self.given_noise:
                source = {"noise": draw_noise(dist.params.shape[:-1], at.shape[-1:], generator, x.device)[0]}
            else:
                source = {"generator": own_generator(generator, x.device)}
            with torch.set_grad_enabled(layer == 0):
                found = self.estimate(rest, dist, **source)
            logits.append(at)
            cotangents.append(found.grad.detach().mean(0) / len(x))
            values.append(found.value)
            below = found.sample[0, 0]
        loss = values[0].mean(0)
        return Gradient(loss.detach(), loss.mean(), logits, cotangents)


class _RestOfLoss:
    """f, but for the terms before `layer`, as a function of the layer's bits; the deeper layers are sampled."""

    def __init__(
        self,
        model: SigmoidBeliefNetwork,
        target: Tensor,
        layer: int,
        below: Tensor | None,
        logits: Tensor,
        generator: torch.Generator | None,
    ) -> None:
        self.model, self.target, self.layer = model, target, layer
        self.below, self.logits, self.generator = below, logits, generator

    def __call__(self, bits: Tensor) -> Tensor:
        model, below, logits = self.model, self.below, self.logits
        value = model.term(self.layer, self.target, below, bits, logits)
        for layer in range(self.layer + 1, len(model.layers)):
            below = bits
            logits = model.encode(layer, below).detach()
            (noise,) = draw_noise(logits.shape[:-1], logits.shape[-1:], self.generator, logits.device)
            bits = (logits + noise > 0).to(logits.dtype)
            value = value + model.term(layer, self.target, below, bits, logits)
        return value
