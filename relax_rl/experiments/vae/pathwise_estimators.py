"""Biased estimators that differentiate f through the bits: Concrete, straight-through, Gumbel-Rao and ReinMax."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from relax_rl.distributions import Bernoulli
from relax_rl.experiments.vae.gradient import Gradient, LayeredEstimator
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork, draw_noise

__all__ = ["Concrete", "Slope", "StraightThrough", "gumbel_rao_slope", "gumbel_slope", "mean_slope", "reinmax_slope"]

Slope = Callable[[Tensor, Tensor, Tensor, torch.Generator | None], Tensor]
"""From logits, z and bits `[B, P]`: what stands for db/dlogits."""


class Concrete(LayeredEstimator):
    """df(sigma(z / lambda)) through all layers at once: the gradient of the relaxed problem (Maddison et al. 2017).

    The generative parameters learn from relaxed bits too. Its `loss` is that of the bits themselves, for which one more
    forward pass is made: f at relaxed bits bounds nothing.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, generator: torch.Generator | None = None) -> Gradient:
        noise = draw_noise(x.shape[:1], model.layers, generator, x.device)
        relaxed, logits = [], []
        below = model.input(x)
        for layer, epsilon in enumerate(noise):
            at = model.encode(layer, below)
            below = torch.sigmoid((at + epsilon) / self.temperature)
            relaxed.append(below)
            logits.append(at)
        target = model.target(x)
        objective = torch.stack(model.terms(target, relaxed, logits)).sum(0).mean()
        with torch.no_grad():
            loss = model.loss(target, model.draw(x, noise))
        return Gradient(loss, objective)


class StraightThrough(LayeredEstimator):
    """f at the bits, differentiated as if each bit moved with its logit at some slope."""

    def __init__(self, slope: Slope) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, generator: torch.Generator | None = None) -> Gradient:
        noise = draw_noise(x.shape[:1], model.layers, generator, x.device)
        moving, logits = [], []
        below = model.input(x)
        for layer, epsilon in enumerate(noise):
            at = model.encode(layer, below)
            here = at.detach()
            z = here + epsilon
            bits = (z > 0).to(z.dtype)
            below = bits + self.slope(here, z, bits, generator) * (at - here)
            moving.append(below)
            logits.append(at)
        value = torch.stack(model.terms(model.target(x), moving, logits)).sum(0)
        return Gradient(value.detach(), value.mean())


def mean_slope(logits: Tensor, z: Tensor, bits: Tensor, generator: torch.Generator | None) -> Tensor:
    """The bit stands for its mean (Bengio et al. 2013)."""
    probs = torch.sigmoid(logits)
    return probs * (1 - probs)


def gumbel_slope(temperature: float) -> Slope:
    """The bit stands for sigma(z / temperature) (Jang et al. 2017)."""

    def slope(logits: Tensor, z: Tensor, bits: Tensor, generator: torch.Generator | None) -> Tensor:
        soft = torch.sigmoid(z / temperature)
        return soft * (1 - soft) / temperature

    return slope


def gumbel_rao_slope(temperature: float, num_conditional: int) -> Slope:
    """The mean of `gumbel_slope` over several z given the bit (Paulus et al. 2021)."""
    gumbel = gumbel_slope(temperature)

    def slope(logits: Tensor, z: Tensor, bits: Tensor, generator: torch.Generator | None) -> Tensor:
        many = Bernoulli(logits.expand(num_conditional, *logits.shape))
        (noise,) = draw_noise(many.params.shape[:-1], logits.shape[-1:], generator, logits.device)
        return gumbel(logits, many.relax_given(bits, noise), bits, generator).mean(0)

    return slope


def reinmax_slope(temperature: float = 1.0) -> Slope:
    """Second order, by Heun's method (Liu et al. 2023): 2 h (1 - h) - p (1 - p) / 2, h halfway from p to the bit."""

    def slope(logits: Tensor, z: Tensor, bits: Tensor, generator: torch.Generator | None) -> Tensor:
        half = 0.5 * (torch.sigmoid(logits / temperature) + bits)
        probs = torch.sigmoid(logits)
        return 2 * half * (1 - half) - 0.5 * probs * (1 - probs)

    return slope
