"""Antithetic estimators: pairs and groups of outcomes that repel each other, from f alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from relax_rl.distributions import Bernoulli, Categorical, logistic_noise
from relax_rl.distributions.checks import require_numbers
from relax_rl.distributions.discrete import FAR, HIDDEN, one_hot
from relax_rl.estimators.draws import ask, check_wrapped, detached
from relax_rl.estimators.estimate import Estimate
from relax_rl.estimators.gradients import value_and_gradient
from relax_rl.estimators.score import check_num_samples

__all__ = ["arm", "arms", "disarm", "stick_breaking_logits"]


def arm(
    f: Callable[[Tensor], Tensor],
    dist: Bernoulli,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """ARM estimate (Yin and Zhou 2019) for bits at logits.

        g = (f(b) - f(b~)) (u - 1/2),    b = 1[u > 1 - p],  b~ = 1[u < p]

    Args:
        f: a function of samples `[2, *, P]`.
        dist: `Bernoulli` with `[*, P]` logits.
        noise: logistic noise, the logit of u; drawn from `generator` by default.
        generator: of the noise; torch's global one by default.

    Returns:
        the estimate, from the pair b and b~, `[2, *, P]`; its `value` is the mean of f over it.

    Raises:
        ValueError: when the outcomes are not bits, or f does not give one number a row.
    """
    here, logit = _bits(dist, "arm", noise, generator)
    sample, value = _antithetic(f, here, logit)
    difference = (value[0] - value[1]).detach().unsqueeze(-1)
    grad = difference * (torch.sigmoid(logit) - 0.5) * (here.params.abs() < HIDDEN)  # a fixed bit would add noise alone
    return Estimate(sample, value.mean(0), grad, dist.params)


def disarm(
    f: Callable[[Tensor], Tensor],
    dist: Bernoulli | Categorical,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """DisARM or U2G estimate (Dong, Mnih and Tucker 2020; Yin et al. 2020): ARM with u integrated out given both bits.

        g = 1/2 (f(b) - f(b~)) (-1)^b~ 1[b != b~] sigmoid(|logit|)

    A categorical outcome is drawn by breaking a stick: bit i says whether it is i, given that it is none of the
    first i - 1; the estimate is that of the bits, pulled back to the logits (Dong, Mnih and Tucker 2021).

    Args:
        f: a function of samples `[2, *, ...]`.
        dist: `Bernoulli`, or `Categorical` (with or without `one_hot`).
        noise: logistic noise of the bits; drawn from `generator` by default.
        generator: of the noise; torch's global one by default.

    Returns:
        the estimate, from the pair b and b~, `[2, *, ...]`; its `value` is the mean of f over it.

    Raises:
        ValueError: when the outcomes are neither, or f does not give one number a row.
    """
    if isinstance(dist, Categorical):
        return _disarm_stick_breaking(f, dist, noise, generator)
    here, logit = _bits(dist, "disarm", noise, generator)
    sample, value = _antithetic(f, here, logit)
    grad = _disarm_gradient(value, sample, here.params)
    return Estimate(sample, value.mean(0), grad, dist.params)


def arms(
    f: Callable[[Tensor], Tensor],
    dist: Bernoulli,
    *,
    num_samples: int = 4,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """ARMS estimate (Dimitriev and Zhou 2021): n bits, every two of them negatively correlated by a Dirichlet copula.

        g = n / (n - 1) mean_i[(f_i - mean f)(b_i - p)] p (1 - p) / (p - P(b_i = b_j = 1))

    Of the two forms of the copula the one for the rarer value, of probability q = min(p, 1 - p), whose bits then repel
    each other as far as they can: two have it at once with probability max(0, 2 q^(1 / (n - 1)) - 1)^(n - 1).

    Args:
        f: a function of samples `[n, *, P]`.
        dist: `Bernoulli` with `[*, P]` logits.
        num_samples: n, at least 2; with 2 this is DisARM.
        noise: `[n, *, P]` uniform numbers in [0, 1), in double precision; drawn from `generator` by default.
        generator: of the noise; torch's global one by default.

    Returns:
        the estimate, from samples `[n, *, P]`; its `value` is the mean of f over n.

    Raises:
        ValueError: when the outcomes are not bits, num_samples is below 2, f does not give one number a row, or the
            noise has another shape.
    """
    check_num_samples(num_samples)
    _require_bits(dist, "arms")
    params = dist.params.detach().double()
    if noise is None:
        noise = torch.rand((num_samples, *params.shape), generator=generator, dtype=params.dtype, device=params.device)
    elif noise.shape != (num_samples, *params.shape):
        raise ValueError(f"noise has shape {list(noise.shape)}, expected {[num_samples, *params.shape]}")
    # U_i = (1 - share_i)^(n - 1) with shares of the simplex: uniform, and P(U_i < q, U_j < q) below.
    rare = torch.sigmoid(-params.abs())
    exponential = -torch.log1p(-noise)
    share = exponential / exponential.sum(0)
    is_rare = torch.exp((num_samples - 1) * torch.log1p(-share)) < rare
    sample = torch.where(params >= 0, ~is_rare, is_rare).to(dist.params.dtype)
    value = ask(f, dist, sample, num_samples)
    # (1 - q) / (1 - P(both) / q), with P(both) / q = max(0, 2 - q^(-1 / (n - 1)))^(n - 1) even for q = 0: q - P(both),
    # the variance less the covariance over 1 - q, is the same for the rare and for the common value.
    both = (2.0 - rare.pow(-1.0 / (num_samples - 1))).clamp(min=0.0).pow(num_samples - 1)
    scale = ((1.0 - rare) / (1.0 - both)).to(dist.params.dtype)
    centred = (value - value.mean(0)).detach().unsqueeze(-1)
    inside = (centred * (sample - torch.sigmoid(dist.params.detach()))).mean(0)
    grad = num_samples / (num_samples - 1) * inside * scale
    return Estimate(sample, value.mean(0), grad, dist.params)


def stick_breaking_logits(logits: Tensor) -> Tensor:
    """`[*, P]` logits of a categorical -> `[*, P - 1]` logits of "it is i, given that it is none before".

    Finite for masked choices, and without a gradient at their logits.
    """
    at = F.log_softmax(logits, -1).clamp(min=-FAR)
    tail = torch.logcumsumexp(at.flip(-1), -1).flip(-1)
    return at[..., :-1] - tail[..., 1:]


def _disarm_stick_breaking(
    f: Callable[[Tensor], Tensor], dist: Categorical, noise: Tensor | None, generator: torch.Generator | None
) -> Estimate:
    here = detached(dist)
    stick = stick_breaking_logits(here.params)
    bits = Bernoulli(stick)
    if noise is None:
        here.require_possible()
        noise = bits.sample_noise(generator)
    pair = torch.stack([bits.threshold(bits.relax(noise)), bits.threshold(bits.relax(-noise))])
    # The outcome is the place of the first 1; the last one if there is none.
    padded = F.pad(pair, (0, 1), value=1.0)
    index = padded.argmax(-1)
    sample = one_hot(index, dist.params.shape[-1], dist.params.dtype) if dist.one_hot else index
    value = ask(f, dist, sample, 2)
    # Beyond the first 1 of both, no bit matters: their terms have mean 0 and are left out.
    place = torch.arange(stick.shape[-1], device=stick.device)
    matters = place <= index.amax(0).unsqueeze(-1)
    at_stick = _disarm_gradient(value, pair, stick) * matters
    _, grad = value_and_gradient(lambda logits: (stick_breaking_logits(logits) * at_stick).sum(-1), here.params)
    return Estimate(sample, value.mean(0), grad, dist.params)


def _disarm_gradient(value: Tensor, pair: Tensor, logits: Tensor) -> Tensor:
    difference = 0.5 * (value[0] - value[1]).detach().unsqueeze(-1)
    return difference * (pair[0] - pair[1]) * torch.sigmoid(logits.abs())


def _bits(
    dist: Bernoulli, name: str, noise: Tensor | None, generator: torch.Generator | None
) -> tuple[Bernoulli, Tensor]:
    """The distribution without graph, and logit u of one uniform u a bit."""
    _require_bits(dist, name)
    here = detached(dist)
    if noise is None:
        noise = logistic_noise(tuple(here.params.shape), generator, here.params.device).to(here.params.dtype)
    return here, noise


def _require_bits(dist: object, name: str) -> None:
    check_wrapped(dist)
    if not isinstance(dist, Bernoulli):
        also = " or a Categorical" if name == "disarm" else ""
        raise ValueError(f"{name} is for Bernoulli outcomes{also}, not for {type(dist).__name__}")
    require_numbers(dist, finite=False)


def _antithetic(f: Callable[[Tensor], Tensor], here: Bernoulli, logit: Tensor) -> tuple[Tensor, Tensor]:
    """b from u and b~ from 1 - u, `[2, *, P]`, and f at both, `[2, *]`."""
    sample = torch.stack([here.threshold(here.relax(logit)), here.threshold(here.relax(-logit))])
    return sample, ask(f, here, sample, 2)
