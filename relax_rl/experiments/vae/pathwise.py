"""Biased estimators that differentiate f through the bits of all layers at once: Concrete and the straight-through family."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from relax_rl.distributions import Bernoulli
from relax_rl.experiments.vae.gradient import Gradient
from relax_rl.experiments.vae.noise import Noise
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork

__all__ = ["Move", "concrete", "straight_through"]

Move = Callable[[Bernoulli, Tensor, Tensor, Noise], Callable[[Bernoulli], Tensor]]
"""From a layer's distribution without graph, its bits, the logistic noise behind them, and more noise to the bits as a
function of the distribution, such as `relax_rl.estimators.pathwise.moving_mean` makes."""


def concrete(model: SigmoidBeliefNetwork, x: Tensor, noise: Noise, *, temperature: float) -> Gradient:
    """df(sigma(z / lambda)) through all layers at once: the gradient of the relaxed problem (Maddison et al. 2017).

    The generative parameters learn from relaxed bits too. Its `loss` is that of the bits themselves, for which one more
    forward pass is made: f at relaxed bits bounds nothing.
    """
    drawn, target = noise.logistic(x.shape[:1], model.layers), model.target(x)

    def relaxed(layer: int, logits: Tensor) -> Tensor:
        dist = Bernoulli(logits)
        return dist.soften(dist.relax(drawn[layer]), temperature)

    logits, soft = model.upwards(x, relaxed)
    objective = torch.stack(model.terms(target, soft, logits)).sum(0).mean()
    with torch.no_grad():
        loss = model.loss(target, model.draw(x, drawn))
    return Gradient(loss, objective)


def straight_through(model: SigmoidBeliefNetwork, x: Tensor, noise: Noise, *, move: Move) -> Gradient:
    """f at the bits, differentiated as if each bit moved with its logit as `move` says."""
    drawn = noise.logistic(x.shape[:1], model.layers)

    def moving(layer: int, logits: Tensor) -> Tensor:
        here = Bernoulli(logits.detach())
        bits = here.threshold(here.relax(drawn[layer]))
        return move(here, bits, drawn[layer], noise)(Bernoulli(logits))

    logits, bits = model.upwards(x, moving)
    value = torch.stack(model.terms(model.target(x), bits, logits)).sum(0)
    return Gradient(value.detach(), value.mean())
