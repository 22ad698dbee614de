"""Sums over every outcome, for models small enough: the exact gradient, and an exact marginal as control variate."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from relax_rl.distributions import Bernoulli
from relax_rl.estimators import marginal as marginal_of_one
from relax_rl.experiments.vae.gradient import Gradient
from relax_rl.experiments.vae.noise import Noise
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork, bernoulli_log_prob

__all__ = ["MAX_BITS", "enumerated", "expected_loss", "marginal"]

MAX_BITS = 12
"""Bits that are summed over at most."""


def enumerated(model: SigmoidBeliefNetwork, x: Tensor, noise: Noise) -> Gradient:
    """The gradient of sum_b q(b) f(b) over all bits of all layers. Its `loss` is that sum."""
    expected = expected_loss(model, x)
    return Gradient(expected.detach(), expected.mean())


def marginal(model: SigmoidBeliefNetwork, x: Tensor, noise: Noise) -> Gradient:
    """g_l = (f(b) - c_l(b_l)) s_l + d sum_b' q(b' | b_{l-1}) c_l(b').

    c_l is f with the deeper layers at their mean field, so that the last layer's own noise leaves no variance at all.
    """
    chain, target = model.sample(x, noise), model.target(x)
    terms = torch.stack(model.terms(target, chain.bits, [dist.params for dist in chain.dists]))
    rest = terms.detach().flip(0).cumsum(0).flip(0)  # f_l + f_{l+1} + ...
    estimates = []
    for layer, (dist, drawn) in enumerate(zip(chain.dists, chain.noise, strict=True)):
        below = None if layer == 0 else chain.bits[layer - 1]
        control = partial(
            model.rest_of_loss, layer, target, below, logits=dist.params, outcome=lambda _, at: torch.sigmoid(at)
        )
        with torch.no_grad():
            estimates.append(marginal_of_one(rest[layer], dist, control, noise=drawn).grad)
    return Gradient.of_layers(terms.sum(0), chain.logits, estimates)


def expected_loss(model: SigmoidBeliefNetwork, x: Tensor) -> Tensor:
    """`[B]` E_q[f], the exact negative bound, differentiable in all parameters."""
    total = sum(model.layers)
    every = Bernoulli(torch.zeros(total, dtype=x.dtype, device=x.device)).support()
    parts = every.unsqueeze(1).expand(len(every), len(x), total).split(list(model.layers), -1)
    logits, bits = model.upwards(x, lambda layer, _: parts[layer])
    log_q = torch.stack([bernoulli_log_prob(b, a) for b, a in zip(bits, logits, strict=True)]).sum(0)
    return (log_q.exp() * torch.stack(model.terms(model.target(x), bits, logits)).sum(0)).sum(0)
