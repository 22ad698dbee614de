"""Estimators from several different outcomes of one categorical variable, drawn without replacement, with a baseline
among themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from relax_rl.distributions import Categorical
from relax_rl.distributions.discrete import FAR, one_hot
from relax_rl.distributions.set_integral import log_leave_out_ratios
from relax_rl.distributions.subset import log_odds
from relax_rl.estimators.draws import ask, check_wrapped, detached, score_of
from relax_rl.estimators.estimate import Estimate
from relax_rl.estimators.score import check_num_samples

__all__ = ["unordered_set", "without_replacement"]


def unordered_set(
    f: Callable[[Tensor], Tensor],
    dist: Categorical,
    *,
    num_samples: int = 2,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The unordered set estimate with its built-in baseline (Kool et al. 2020): of a set S without replacement,

        g = sum_{s in S} p_s R(S, s) (f_s - sum_{s' in S} p_s' R(S - s, s') f_s') dlog p_s

    where R(S, s) = P(S - s, of all but s) / P(S) is the leave-one-out ratio, and R(S - s, s') that of all but s, 1 for
    s' = s. It is what averaging over the orders of S leaves of estimates that look at the order, and the exact gradient
    once S holds all that is possible.

    Args:
        f: a function of samples `[K, *, ...]`, K different ones for each row.
        dist: `Categorical` with `[*, P]` logits.
        num_samples: K, from 2 to P. Time and memory of a row grow with 2^K up to 10 samples, with K^2 sqrt(K) above.
        generator: of the draws; torch's global one by default.

    Returns:
        the estimate; its `value` sum_{s in S} p_s R(S, s) f_s is unbiased for E[f(b)].

    Raises:
        ValueError: when the outcomes are not those of a `Categorical`, num_samples is below 2 or above P, or f does not
            give one number a row.
    """
    sample, log_probs, _ = _draw(dist, "unordered_set", num_samples, generator)
    here = detached(dist)
    value = ask(f, here, sample, num_samples)
    ratios, second = (
        x.to(log_probs.dtype) for x in log_leave_out_ratios(log_odds(log_probs.clamp(min=-FAR), num_samples))
    )
    log_probs, value = log_probs[..., :num_samples], _of_possible(value, log_probs)
    known = value.detach().movedim(0, -1)
    # Ratios grow as probabilities vanish: their product is what stays a number.
    baseline = (torch.exp(second + log_probs.unsqueeze(-2)) * known.unsqueeze(-2)).sum(-1)
    weight = torch.exp(ratios + log_probs)
    grad = _weighted_scores(dist, sample, weight * (known - baseline))
    return Estimate(sample, (weight.movedim(-1, 0) * value).sum(0), grad, dist.params)


def without_replacement(
    f: Callable[[Tensor], Tensor],
    dist: Categorical,
    *,
    num_samples: int = 2,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The importance-weighted estimate without replacement, with a baseline (Kool et al. 2019).

        g = sum_{s in S} w_s (f_s - p_s f_s - sum_{s' != s} w_s' f_s') dlog p_s,    w_s = p_s / (1 - exp(-exp(log p_s - kappa)))

    with S the K largest of the Gumbels z, and kappa the next one, which asks f for nothing. In closed form, at a larger
    variance than `unordered_set`.

    Args:
        f, dist, generator: as in `unordered_set`.
        num_samples: K, from 2 to P.

    Returns:
        the estimate; its `value` is sum_{s in S} w_s f_s.

    Raises:
        ValueError: as `unordered_set`.
    """
    sample, log_probs, kappa = _draw(dist, "without_replacement", num_samples, generator)
    here = detached(dist)
    value = ask(f, here, sample, num_samples)
    log_probs, value = log_probs[..., :num_samples], _of_possible(value, log_probs)
    weight = probs = log_probs.exp()
    if kappa is not None:
        weight = weight / -torch.expm1(-torch.exp(log_probs.clamp(min=-FAR) - kappa))
    known = value.detach().movedim(0, -1)
    baseline = (weight * known).sum(-1, keepdim=True) - (weight - probs) * known
    grad = _weighted_scores(dist, sample, weight * (known - baseline))
    return Estimate(sample, (weight.movedim(-1, 0) * value).sum(0), grad, dist.params)


def _draw(
    dist: Categorical, name: str, num_samples: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Samples `[K, *, ...]`, `[*, P]` log-probabilities by falling z, and `[*, 1]` the next z, if there is one."""
    check_wrapped(dist)
    if not isinstance(dist, Categorical):
        raise ValueError(f"{name} is for Categorical outcomes, not for {type(dist).__name__}")
    check_num_samples(num_samples)
    count = dist.params.shape[-1]
    if num_samples > count:
        raise ValueError(
            f"num_samples is {num_samples}, expected at most {count}, the number of outcomes: take enumerated"
        )
    here = detached(dist)
    z = here.relax(here.sample_noise(generator))
    falling, order = z.sort(dim=-1, descending=True)
    index = order[..., :num_samples].movedim(-1, 0)
    sample = one_hot(index, count, here.params.dtype) if here.one_hot else index
    log_probs = here.log_probs.gather(-1, order)
    kappa = falling[..., num_samples : num_samples + 1] if num_samples < count else None
    return sample, log_probs, kappa


def _of_possible(value: Tensor, log_probs: Tensor) -> Tensor:
    """f's values `[K, *]`, 0 for outcomes that are impossible, of which f may say anything; `[*, P]` log-probabilities by falling z."""
    possible = log_probs[..., : len(value)].movedim(-1, 0) > -FAR
    return torch.where(possible, value, torch.zeros_like(value))


def _weighted_scores(dist: Categorical, sample: Tensor, weight: Tensor) -> Tensor:
    """`[*, P]` sum over samples `[K, *, ...]` of the score times `[*, K]`."""
    return (weight.movedim(-1, 0).unsqueeze(-1) * score_of(detached(dist, len(sample)), sample)).sum(0)
