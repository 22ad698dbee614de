"""Sums over every outcome, for models small enough: the exact gradient, and an exact marginal as control variate."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from relax_rl.distributions import Bernoulli
from relax_rl.estimators import marginal
from relax_rl.experiments.vae.gradient import Gradient, LayeredEstimator, at_logits
from relax_rl.experiments.vae.sbn import Chain, SigmoidBeliefNetwork, bernoulli_log_prob

__all__ = ["MAX_BITS", "Enumerated", "Marginal", "expected_loss"]

MAX_BITS = 12
"""Bits that are summed over at most."""


class Enumerated(LayeredEstimator):
    """The gradient of sum_b q(b) f(b) over all bits of all layers. Its `loss` is that sum."""

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, generator: torch.Generator | None = None) -> Gradient:
        expected = expected_loss(model, x)
        return Gradient(expected.detach(), expected.mean())


class Marginal(LayeredEstimator):
    """g_l = (f(b) - c_l(b_l)) s_l + d sum_b' q(b' | b_{l-1}) c_l(b').

    c_l is f with the deeper layers at their mean field, so that the last layer's own noise leaves no variance at all.
    """

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, generator: torch.Generator | None = None) -> Gradient:
        chain = model.sample(x, generator)
        target = model.target(x)
        terms = model.terms(target, chain.bits, [logits.detach() for logits in chain.logits])
        rest = torch.stack(terms).detach().flip(0).cumsum(0).flip(0)  # f_l + f_{l+1} + ...
        estimates = []
        for layer, (logits, noise) in enumerate(zip(chain.logits, chain.noise, strict=True)):
            control = _mean_field_rest(model, target, chain, layer)
            found = marginal(rest[layer], Bernoulli(logits.detach()), control, noise=noise)
            estimates.append(found.grad.detach())
        value = torch.stack(terms).sum(0)
        return Gradient(value.detach(), value.mean(), chain.logits, at_logits(chain.logits, estimates, len(x)))


def expected_loss(model: SigmoidBeliefNetwork, x: Tensor) -> Tensor:
    """`[B]` E_q[f], the exact negative bound, differentiable in all parameters."""
    total = sum(model.layers)
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=total)), dtype=x.dtype, device=x.device)
    bits = every.unsqueeze(1).expand(len(every), len(x), total).split(list(model.layers), -1)
    logits, below = [], model.input(x)
    for layer, here in enumerate(bits):
        logits.append(model.encode(layer, below))
        below = here
    log_q = torch.stack([bernoulli_log_prob(b, a) for b, a in zip(bits, logits, strict=True)]).sum(0)
    return (log_q.exp() * torch.stack(model.terms(model.target(x), bits, logits)).sum(0)).sum(0)


def _mean_field_rest(
    model: SigmoidBeliefNetwork, target: Tensor, chain: Chain, layer: int
) -> Callable[[Tensor], Tensor]:
    """The terms of f from `layer` on at bits `[M, B, P]` of that layer, every deeper layer at its mean."""

    def rest(bits: Tensor) -> Tensor:
        below = None if layer == 0 else chain.bits[layer - 1]
        value = model.term(layer, target, below, bits, chain.logits[layer].detach())
        for deeper in range(layer + 1, len(model.layers)):
            logits = model.encode(deeper, bits)
            below, bits = bits, torch.sigmoid(logits)
            value = value + model.term(deeper, target, below, bits, logits)
        return value.detach()

    return rest
