"""Sums over all outcomes: the exact gradient, and the exact marginal of a surrogate as a control variate."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from relax_rl.distributions import FiniteDistribution
from relax_rl.estimators.draws import Objective, as_phi, ask, detached, draw, require, score_of
from relax_rl.estimators.estimate import Estimate
from relax_rl.estimators.gradients import Weight, check_rows, control_variate_gradient, value_and_gradient

__all__ = ["enumerated", "every_outcome", "marginal"]


def enumerated(
    f: Callable[[Tensor], Tensor], dist: FiniteDistribution, *, generator: torch.Generator | None = None
) -> Estimate:
    """The exact gradient of E[f(b)] = sum_b p(b) f(b), where the outcomes can be listed.

    Args:
        f: a function of samples `[M, *, ...]`, one for each of the M outcomes.
        dist: a discrete distribution with few outcomes; what f says of impossible ones does not count.
        generator: accepted as by all estimators; nothing is drawn.

    Returns:
        the gradient itself as `grad`, E[f(b)] as `value` and the support as `sample`.

    Raises:
        ValueError: when the outcomes cannot be listed, or f does not give one number a row.
    """
    require(dist, "support", "enumerated", "use an estimator that samples")
    here = detached(dist)
    if hasattr(here, "require_possible"):
        here.require_possible()
    sample, probs = every_outcome(here)
    value = ask(f, here, sample, len(sample))
    value = torch.where(probs > 0, value, torch.zeros_like(value))

    def expectation(params: Tensor) -> Tensor:
        return (every_outcome(here.with_params(params))[1] * value.detach()).sum(0)

    _, grad = value_and_gradient(expectation, here.params)
    return Estimate(sample, (probs * value).sum(0), grad, dist.params)


def marginal(
    f: Objective,
    dist: FiniteDistribution,
    surrogate: Callable[[Tensor], Tensor],
    *,
    noise: Tensor | None = None,
    sample: Tensor | None = None,
    score: Tensor | None = None,
    residual_weight: Weight = 1.0,
    phi: Tensor | Iterable[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """An action-dependent control variate whose expectation is summed exactly: no relaxation, no noise of its own.

        g = w (f(b) - c(b)) dlog p(b) + d sum_b' p(b') c(b')

    Unbiased for every c at w = 1; the variance vanishes where c(b) is f(b) up to a constant. In reinforcement learning this is
    the all-action gradient of c plus a correction (Liu et al. 2018; Gu et al. 2017, Q-Prop).

    Args:
        f: a function of the samples, or its `[*]` values (`noise` is needed then).
        dist: a discrete distribution with few outcomes.
        surrogate: c, from embedded outcomes `[M, *, F]` (see `Distribution.embed`) to `[M, *]`; asked once, for all of
            them.
        noise: the base noise of the sample; drawn from `generator` by default.
        sample: the sample that `noise` gives, where it is at hand.
        score: `[*, P]` its dlog p(b) / dparams, where it is at hand.
        residual_weight: w, a number or `[*]`; at 0 the estimate is the all-action gradient of c.
        phi: what the variance loss trains.
        generator: of the noise; torch's global one by default.

    Returns:
        the estimate, from one sample a row, differentiable in phi; its `value` is f(b).

    Raises:
        ValueError: when the outcomes cannot be listed, or f or the surrogate does not give one number a row.
    """
    require(dist, "support", "marginal", "use relax or lax")
    drawn = draw(f, dist, noise=noise, generator=generator, sample=sample, score=score)
    here = drawn.dist
    outcomes, probs = every_outcome(here)
    control = surrogate(here.embed(outcomes))
    check_rows((len(outcomes), *here.params.shape[:-1]), surrogate=control)
    found = (here.embed(drawn.sample) == here.embed(outcomes)).all(-1)
    at_sample = (control * found).sum(0)
    # d sum_b' p(b') c(b') = sum_b' c(b') p(b') dlog p(b'), which holds the graph of c.
    score = score_of(detached(dist, len(outcomes)), outcomes)
    expected = ((control * probs).unsqueeze(-1) * score).sum(0)
    grad = control_variate_gradient(drawn.value, at_sample, expected, drawn.score, residual_weight=residual_weight)
    return Estimate(drawn.sample, drawn.value, grad, dist.params, as_phi(phi))


def every_outcome(dist: FiniteDistribution) -> tuple[Tensor, Tensor]:
    """All outcomes `[M, *, ...]` and their probabilities `[M, *]`, differentiable in the parameters."""
    support, rows = dist.support(), dist.params.shape[:-1]
    count = len(support)
    outcomes = support.reshape(count, *[1] * len(rows), *support.shape[1:]).expand(count, *rows, *support.shape[1:])
    many = dist.with_params(dist.params.expand(count, *dist.params.shape))
    return outcomes, many.log_prob(outcomes).exp()
