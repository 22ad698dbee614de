"""ARM, DisARM and ARMS in a stack of layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from relax_rl.distributions import Bernoulli
from relax_rl.estimators import Estimate
from relax_rl.experiments.vae.gradient import Gradient
from relax_rl.experiments.vae.noise import Noise
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork, threshold

__all__ = ["antithetic"]


def antithetic(
    model: SigmoidBeliefNetwork,
    x: Tensor,
    noise: Noise,
    *,
    estimate: Callable[..., Estimate],
    groups: int = 1,
    uniforms: int = 0,
) -> Gradient:
    """Each layer's gradient from samples of its bits that repel each other, given one sample of the layers before.

    Every one of them is continued by samples of its own through the deeper layers. K samples a layer are K evaluations
    of f for the first layer, and K of the terms of f that are left for each deeper one.

    Args:
        estimate: `estimate(f, dist, noise=)`, an estimator of `relax_rl.estimators` for bits.
        groups: independent groups of antithetic samples, whose estimates are averaged.
        uniforms: uniform numbers in double precision that `estimate` takes for each bit; 0 for one of logistic noise.
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
        dist = Bernoulli(here.expand(groups, *here.shape))
        if uniforms:
            drawn = noise.uniform((uniforms, *dist.params.shape), torch.float64)
        else:
            (drawn,) = noise.logistic(dist.params.shape[:-1], here.shape[-1:])
        with torch.set_grad_enabled(layer == 0):
            found = estimate(rest, dist, noise=drawn)
        logits.append(at)
        cotangents.append(found.grad.detach().mean(0) / len(x))
        values.append(found.value)
        below = found.sample[0, 0]
    loss = values[0].mean(0)
    return Gradient(loss.detach(), loss.mean(), logits, cotangents)
