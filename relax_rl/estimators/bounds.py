"""Multi-sample bounds through samples that move: the doubly reparameterised gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from relax_rl.distributions import Distribution
from relax_rl.estimators.draws import check_wrapped, detached, require_moving, values_for
from relax_rl.estimators.estimate import Estimate
from relax_rl.estimators.gradients import value_and_gradient
from relax_rl.estimators.score import check_num_samples

__all__ = ["dreg"]


def dreg(
    log_joint: Callable[[Tensor], Tensor],
    dist: Distribution,
    *,
    num_samples: int = 5,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Doubly reparameterised gradient (Tucker et al. 2019, eq. 8) of the bound of Burda et al. (2016).

        L = log 1/K sum_k w_k,    w_k = p(x, b_k) / q(b_k),    b_k = T(params, noise_k)
        g = sum_k (w_k / sum_j w_j)^2 dlog w_k / db dT(params, noise_k)

    The score of q, which the pathwise gradient of L holds as well, has been reparameterised once more and is gone: the
    variance falls as K grows, relative to the gradient. With K = 1 this is the estimate without the score of Roeder et al.
    (2017). Unbiased.

    Args:
        log_joint: log p(x, b), a differentiable function of samples `[K, *, ...]`; the rest of log w is `dist`'s own.
        dist: q, of continuous outcomes, with `[*, P]` parameters.
        num_samples: K, at least 1.
        generator: of the draws; torch's global one by default.

    Returns:
        the estimate; its `value` is the bound L, with the graph of log_joint's own parameters.

    Raises:
        ValueError: when the outcomes are discrete, num_samples is below 1, or log_joint does not give one number a row.
    """
    check_wrapped(dist)
    if hasattr(dist, "relax_given"):
        raise ValueError(f"dreg needs samples that move with the parameters: use vimco for {type(dist).__name__}")
    require_moving(dist, "dreg")
    check_num_samples(num_samples, 1)
    here = detached(dist, num_samples)
    noise = here.sample_noise(generator)
    sample = here.threshold(here.relax(noise)).detach()

    joint, slope = value_and_gradient(log_joint, sample)
    log_q, slope_of_q = value_and_gradient(here.log_prob, sample)
    log_w, slope = values_for(here, joint) - log_q, slope - slope_of_q
    share = torch.softmax(log_w.detach(), 0).square()
    weighted = share.reshape(*share.shape, *[1] * (slope.dim() - share.dim())) * slope

    def along(params: Tensor) -> Tensor:
        at = here.with_params(params.expand(num_samples, *params.shape))
        return (at.relax(noise) * weighted).flatten(share.dim()).sum(-1).sum(0)

    _, grad = value_and_gradient(along, dist.params.detach())
    return Estimate(sample, torch.logsumexp(log_w, 0) - math.log(num_samples), grad, dist.params)
