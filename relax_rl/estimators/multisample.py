"""Control variates made of several samples of the same bits and of f's derivative: double CV and RODEO."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from relax_rl.distributions import Bernoulli
from relax_rl.estimators.draws import as_phi, check_wrapped, detached, values_for
from relax_rl.estimators.estimate import Estimate
from relax_rl.estimators.gradients import value_and_gradient
from relax_rl.estimators.score import check_num_samples, leave_one_out, mean_gradient, others_mean

__all__ = ["double_cv", "linear_control", "rodeo", "stein"]


def double_cv(
    f: Callable[[Tensor], Tensor],
    dist: Bernoulli,
    *,
    num_samples: int = 2,
    alpha: Tensor | float = -1.0,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Double control variates (Titsias and Shi 2022): RLOO on f and a linear control variate for each sample.

        v_k = mean_{j != k} f'(b_j) . (b_k - p)
        g   = mean_k [f_k + alpha v_k - mean_{j != k}(f_j + alpha v_j)] (b_k - p) - alpha mean f' p (1 - p)

    Args:
        f: a differentiable function of samples `[K, *, P]`.
        dist: `Bernoulli` with `[*, P]` logits.
        num_samples: K, at least 2.
        alpha: scale of v, best near -1 where f is close to linear; trained by the variance loss if it requires a
            gradient.
        generator: of the draws; torch's global one by default.

    Returns:
        the estimate, from samples `[K, *, P]`; its `value` is the mean of f over K.

    Raises:
        ValueError: when the outcomes are not bits, num_samples is below 2, or f does not give one number a row.
    """
    sample, value, slope = _draw_with_slope(f, dist, "double_cv", num_samples, generator)
    here = detached(dist)
    score = here.score(sample)
    signal = leave_one_out(value.detach() + alpha * linear_control(slope, score))
    grad = (signal.unsqueeze(-1) * score).mean(0) - alpha * mean_gradient(here, slope.mean(0))
    return Estimate(sample, value.mean(0), grad, dist.params, as_phi(_trained(alpha)))


def linear_control(slope: Tensor, score: Tensor) -> Tensor:
    """`[K, *]` v_k = mean_{j != k} f'(b_j) . s(b_k), double control variates' own, from slopes and scores `[K, *, P]`.

    It is a baseline for the score of any other variable than b_k; for that of b_k E[v s] = mean f' dmu is put back.
    """
    return (others_mean(slope) * score).sum(-1)


def rodeo(
    f: Callable[[Tensor], Tensor],
    dist: Bernoulli,
    *,
    num_samples: int = 2,
    h: Callable[[Tensor, Tensor], Tensor] | None = None,
    alpha: Tensor | float = 0.5,
    beta: Tensor | float = 0.2,
    phi: Tensor | Iterable[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """RODEO (Shi et al. 2022): RLOO with control variates from a discrete Stein operator.

        h_k(x) = mean_{j != k} h(f(b_j), f'(b_j) . (x - b_j))
        (A h)(x) = sum_i P(1 - x_i) (h(x with bit i flipped) - h(x)),    E[(A h)(b)] = 0 for every h
        g = mean_k { [f_k - mean_{j != k}(f_j + alpha (A h_j)(b_j))] s(b_k) + beta (A h_k s)(b_k) },    s(b) = b - p

    The flips reach h through two numbers alone, so that f and its derivative are asked for K samples only. (The paper
    takes the mean over bits in A, which the scales absorb.)

    Args:
        f: a differentiable function of samples `[K, *, P]`.
        dist: `Bernoulli` with `[*, P]` logits.
        num_samples: K, at least 2.
        h: from f(b_j) and the linear change, two tensors of one shape, to their control; their sum by default.
        alpha, beta: scales of the two control variates; trained by the variance loss if they require a gradient.
        phi: parameters of h, which the variance loss trains too.
        generator: of the draws; torch's global one by default.

    Returns:
        the estimate, from samples `[K, *, P]`; its `value` is the mean of f over K.

    Raises:
        ValueError: when the outcomes are not bits, num_samples is below 2, or f does not give one number a row.
    """
    sample, value, slope = _draw_with_slope(f, dist, "rodeo", num_samples, generator)
    control = h or torch.add
    values, score, flip = value.detach(), detached(dist).score(sample), 1 - 2 * sample
    at_sample, flipped = [], []
    for k in range(num_samples):
        known, along = _but(values, k), _but(slope, k)
        linear = (along * (sample[k] - _but(sample, k))).sum(-1)
        at_sample.append(control(known, linear).mean(0))
        moved = linear.unsqueeze(-1) + along * flip[k]
        flipped.append(control(known.unsqueeze(-1).expand_as(moved), moved).mean(0))
    control_part, score_part = stein(torch.stack(at_sample), torch.stack(flipped), sample, score)
    centred = values - others_mean(values + alpha * control_part)
    grad = (centred.unsqueeze(-1) * score + beta * score_part).mean(0)
    trained = (*_trained(alpha, beta), *(as_phi(phi) or ()))
    return Estimate(sample, value.mean(0), grad, dist.params, trained)


def stein(here: Tensor, flipped: Tensor, sample: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """The Stein operator (A h)(b) = sum_i P(1 - b_i) (h(b with bit i flipped) - h(b)), for h and for h times the score.

    Both have mean zero for every h.

    Args:
        here: `[*]` h(b).
        flipped: `[*, P]` h with each of the bits flipped.
        sample: `[*, P]` b.
        score: `[*, P]` b - p, dlog p(b) at the logits.

    Returns:
        `[*]` (A h)(b) and `[*, P]` (A h s)(b).
    """
    flip_prob = score.abs()
    of_h = (flip_prob * (flipped - here.unsqueeze(-1))).sum(-1)
    return of_h, of_h.unsqueeze(-1) * score + flip_prob * flipped * (1 - 2 * sample)


def _draw_with_slope(
    f: Callable[[Tensor], Tensor], dist: Bernoulli, name: str, num_samples: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """K samples `[K, *, P]`, f at them `[K, *]` (with the graph of its own theta) and its derivative `[K, *, P]`."""
    check_wrapped(dist)
    if not isinstance(dist, Bernoulli):
        raise ValueError(f"{name} is for Bernoulli outcomes, not for {type(dist).__name__}")
    check_num_samples(num_samples)
    here = detached(dist, num_samples)
    sample = here.threshold(here.relax(here.sample_noise(generator)))
    value, slope = value_and_gradient(f, sample)
    return sample, values_for(here, value), slope


def _but(x: Tensor, k: int) -> Tensor:
    """`[K, ...]` -> `[K - 1, ...]`: the entries but the k-th."""
    return torch.cat([x[:k], x[k + 1 :]])


def _trained(*scales: Tensor | float) -> tuple[Tensor, ...]:
    return tuple(x for x in scales if isinstance(x, Tensor) and x.requires_grad)
