"""ARM, DisARM and ARMS in a stack of layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from relax_rl.distributions import Bernoulli
from relax_rl.estimators import Estimate, arms
from relax_rl.experiments.vae.gradient import Gradient
from relax_rl.experiments.vae.noise import Noise
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork, threshold

__all__ = ["Estimator", "antithetic", "of_arms", "of_pairs"]

Estimator = Callable[[Callable[[Tensor], Tensor], Bernoulli, Noise], Estimate]
"""From f, the distribution `[G, B, P]` of a layer's bits and noise to the estimate of each of G groups of samples."""


def antithetic(
    model: SigmoidBeliefNetwork, x: Tensor, noise: Noise, *, estimator: Estimator, groups: int = 1
) -> Gradient:
    """Each layer's gradient from samples of its bits that repel each other, given one sample of the layers before.

    Every one of them is continued by samples of its own through the deeper layers. K samples a layer are K evaluations
    of f for the first layer, and K of the terms of f that are left for each deeper one.

    Args:
        estimator: `of_pairs(arm)`, `of_pairs(disarm)` or `of_arms(K)`.
        groups: independent groups of antithetic samples, whose estimates are averaged.
    """
    target = model.target(x)
    logits, cotangents, values = [], [], []
    below: Tensor | None = None

    def sampled(layer: int, logits: Tensor) -> Tensor:
        return threshold(logits, *noise.logistic(logits.shape[:-1], logits.shape[-1:]))

    for layer in range(len(model.layers)):
        at = model.encode(layer, model.input(x) if below is None else below)
        here = at.detach()
        rest = partial(model.rest_of_loss, layer, target, below, logits=here, outcome=sampled)
        with torch.set_grad_enabled(layer == 0):
            found = estimator(rest, Bernoulli(here.expand(groups, *here.shape)), noise)
        logits.append(at)
        cotangents.append(found.grad.detach().mean(0) / len(x))
        values.append(found.value)
        below = found.sample[0, 0]
    loss = values[0].mean(0)
    return Gradient(loss.detach(), loss.mean(), logits, cotangents)


def of_pairs(estimate: Callable[..., Estimate]) -> Estimator:
    """`arm` or `disarm`, from logistic noise."""

    def estimator(f: Callable[[Tensor], Tensor], dist: Bernoulli, noise: Noise) -> Estimate:
        return estimate(f, dist, noise=noise.logistic(dist.params.shape[:-1], dist.params.shape[-1:])[0])

    return estimator


def of_arms(num_samples: int) -> Estimator:
    """`arms`, from uniform noise in double precision."""

    def estimator(f: Callable[[Tensor], Tensor], dist: Bernoulli, noise: Noise) -> Estimate:
        drawn = noise.uniform((num_samples, *dist.params.shape), torch.float64)
        return arms(f, dist, num_samples=num_samples, noise=drawn)

    return estimator
