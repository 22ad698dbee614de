"""Gradients through the sample: reparameterisation, and the biased estimators that treat discrete outcomes so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from relax_rl.distributions import Distribution, FiniteDistribution, RelaxedDistribution
from relax_rl.estimators.draws import (
    check_noise,
    detached,
    require,
    require_moving,
    require_temperature,
    require_vectors,
    values_for,
)
from relax_rl.estimators.estimate import Estimate
from relax_rl.estimators.gradients import value_and_gradient

__all__ = [
    "concrete",
    "gumbel_rao",
    "moving_gumbel_rao",
    "moving_mean",
    "moving_reinmax",
    "moving_softened",
    "reinmax",
    "reparameterized",
    "straight_through",
]

D = TypeVar("D", bound=Distribution)
R = TypeVar("R", bound=RelaxedDistribution)

Moving = Callable[[D], Tensor]
"""b as a function of a distribution: one and the same value, which moves with the distribution's parameters."""


def reparameterized(
    f: Callable[[Tensor], Tensor],
    dist: Distribution,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Pathwise estimate df(T(params, noise)) for continuous outcomes (Kingma and Welling 2014). Unbiased.

    Args:
        f: a differentiable function of the samples.
        dist: distribution whose outcome is its relaxed sample, such as `DiagGaussian`.
        noise: the base noise of the sample; drawn from `generator` by default.
        generator: of the noise; torch's global one by default.

    Returns:
        the estimate, from one sample a row; its `value` is f(b).

    Raises:
        ValueError: when the outcomes are discrete, or f does not give one number a row.
    """
    if hasattr(dist, "relax_given"):
        raise ValueError(
            f"the outcomes of {type(dist).__name__} are discrete and do not move with the parameters: use concrete, "
            "or an unbiased estimator such as relax"
        )
    require_moving(dist, "reparameterized")
    here = detached(dist)
    given = noise
    if noise is None:
        noise = here.sample_noise(generator)
    z = here.relax(noise)
    check_noise(here, z, noise=given)
    return _through(f, lambda at: at.relax(noise), z, here, dist)


def concrete(
    f: Callable[[Tensor], Tensor],
    dist: RelaxedDistribution,
    *,
    temperature: Tensor | float = 0.5,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Concrete or Gumbel-softmax estimate (Maddison et al. 2017; Jang et al. 2017): df(sigma(z / temperature)).

    The gradient of the relaxed problem: biased for the discrete one, less so as the temperature falls and the variance
    rises.

    Args:
        f: a differentiable function of relaxed samples.
        dist: `Bernoulli`, or another discrete family with `one_hot`.
        temperature: lambda, above 0.
        noise: the base noise of the sample; drawn from `generator` by default.
        generator: of the noise; torch's global one by default.

    Returns:
        the estimate; its `sample` is the relaxed one, `[*, F]`, and its `value` f there.

    Raises:
        ValueError: when the samples are indices or continuous, or f does not give one number a row.
    """
    require_temperature(temperature)
    here, noise = _relaxed(dist, "concrete", noise, generator)

    def soft(at: RelaxedDistribution) -> Tensor:
        return at.soften(at.relax(noise), temperature)

    return _through(f, soft, soft(here).detach(), here, dist)


def straight_through(
    f: Callable[[Tensor], Tensor],
    dist: FiniteDistribution,
    *,
    temperature: Tensor | float | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Straight-through estimate: f at b, differentiated as if b were a smooth function of the parameters. Biased.

    Without a temperature b stands for the mean (Bengio et al. 2013); with one for sigma(z / temperature), the
    straight-through Gumbel-softmax (Jang et al. 2017).

    Args:
        f, dist, noise, generator: as in `concrete`; f is asked at outcomes.
        temperature: lambda, above 0; None for the mean.

    Returns:
        the estimate, from one sample a row; its `value` is f(b).

    Raises:
        ValueError: as `concrete`, or when there is neither a temperature nor a mean.
    """
    here, noise = _relaxed(dist, "straight_through", noise, generator)
    if temperature is None:
        require(dist, "mean", "straight_through", "give it a temperature")
    else:
        require_temperature(temperature)
    sample = here.threshold(here.relax(noise))
    moving = moving_mean(sample) if temperature is None else moving_softened(sample, noise, temperature)
    return _through(f, moving, sample, here, dist)


def gumbel_rao(
    f: Callable[[Tensor], Tensor],
    dist: FiniteDistribution,
    *,
    temperature: Tensor | float = 0.5,
    num_conditional: int = 10,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Gumbel-Rao estimate (Paulus et al. 2021): straight-through Gumbel-softmax, averaged over z given b.

    The bias of straight-through Gumbel-softmax and less of its variance, for one evaluation of f.

    Args:
        f, dist, temperature, noise, generator: as in `concrete`.
        num_conditional: number of z~ ~ p(z | b) to average over.

    Returns:
        the estimate, from one sample a row; its `value` is f(b).

    Raises:
        ValueError: as `concrete`, or when num_conditional is below 1.
    """
    if num_conditional < 1:
        raise ValueError(f"num_conditional is {num_conditional}, expected at least 1")
    require_temperature(temperature)
    here, noise = _relaxed(dist, "gumbel_rao", noise, generator)
    sample = here.threshold(here.relax(noise))
    fresh = _many(here, num_conditional).sample_noise(generator)
    return _through(f, moving_gumbel_rao(here, sample, fresh, temperature), sample, here, dist)


def reinmax(
    f: Callable[[Tensor], Tensor],
    dist: FiniteDistribution,
    *,
    temperature: float = 1.0,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """ReinMax estimate (Liu et al. 2023, algorithm 2): straight-through of second order, by Heun's method.

        g = 2 J((p_t + b) / 2) f'(b) - 1/2 J(p) f'(b),    J(q) = diag(q) - q q^T

    with p_t the probabilities at the temperature. Biased; exact at temperature 1 for a quadratic f of one variable.

    Args:
        f: a differentiable function of one-hot samples or bits.
        dist: `Bernoulli`, or a categorical with `one_hot`.
        temperature: at least 1; lowers the variance and brings back some bias.
        noise: the base noise of the sample; drawn from `generator` by default.
        generator: of the noise; torch's global one by default.

    Returns:
        the estimate, from one sample a row; its `value` is f(b).

    Raises:
        ValueError: when the temperature is below 1, the samples are indices or continuous, or f does not give one
            number a row.
    """
    if temperature < 1.0:
        raise ValueError(f"temperature is {temperature:g}, expected at least 1: for one below take straight_through")
    here, noise = _relaxed(dist, "reinmax", noise, generator)
    require(dist, "with_mean", "reinmax", "use straight_through")
    sample = here.threshold(here.relax(noise))
    return _through(f, moving_reinmax(here, sample, temperature), sample, here, dist)


def moving_mean(sample: Tensor) -> Moving[FiniteDistribution]:
    """b that moves as the mean does (Bengio et al. 2013)."""
    return lambda at: _swap(sample, at.mean)


def moving_softened(sample: Tensor, noise: Tensor, temperature: Tensor | float) -> Moving[RelaxedDistribution]:
    """b that moves as its relaxed sample, softened at the temperature, does (Jang et al. 2017)."""
    return lambda at: _swap(sample, at.soften(at.relax(noise), temperature))


def moving_gumbel_rao(
    here: FiniteDistribution, sample: Tensor, noise: Tensor, temperature: Tensor | float
) -> Moving[FiniteDistribution]:
    """b that moves as the mean of several softened z ~ p(z | b) does (Paulus et al. 2021).

    Args:
        here: the distribution of b, without graph.
        sample: `[*, P]` b.
        noise: `[m, *, P]` of the z.
        temperature: of the softening.
    """
    count = len(noise)
    # The noise behind z is held as that of an ordinary z: it is z that moves with the parameters, not z given b.
    held = _many(here, count).noise_of(_many(here, count).relax_given(sample.expand(count, *sample.shape), noise))

    def moving(at: FiniteDistribution) -> Tensor:
        return _swap(sample, at.soften(_many(at, count).relax(held), temperature).mean(0))

    return moving


def moving_reinmax(here: FiniteDistribution, sample: Tensor, temperature: float = 1.0) -> Moving[FiniteDistribution]:
    """b that moves at ReinMax's slope (Liu et al. 2023), with the arguments of `moving_gumbel_rao`."""
    probs = (here if temperature == 1.0 else here.with_params(here.params / temperature)).mean
    halfway = here.with_mean(0.5 * (probs + sample)).params

    def moving(at: FiniteDistribution) -> Tensor:
        # A distribution that is halfway, and whose logits move as those of `at` do.
        shift = (at.params - at.params.detach()).nan_to_num(nan=0.0)  # infinite logits stay where they are
        return _swap(sample, 2.0 * at.with_params(halfway + shift).mean - 0.5 * at.mean)

    return moving


def _many(dist: FiniteDistribution, count: int) -> FiniteDistribution:
    """`[count, *]` rows."""
    return dist.with_params(dist.params.expand(count, *dist.params.shape))


def _relaxed(dist: R, name: str, noise: Tensor | None, generator: torch.Generator | None) -> tuple[R, Tensor]:
    """The distribution without graph, and the noise of the sample."""
    require_vectors(dist)
    require(dist, "relax_given", name, "use reparameterized")
    here = detached(dist)
    if noise is None:
        return here, here.sample_noise(generator)
    check_noise(here, here.relax(noise), noise=noise)
    return here, noise


def _swap(forward: Tensor, backward: Tensor) -> Tensor:
    """The value of one and the gradient of the other."""
    return forward + (backward - backward.detach())


def _through(
    f: Callable[[Tensor], Tensor], argument: Callable[[Any], Tensor], sample: Tensor, here: D, dist: D
) -> Estimate:
    """The gradient of f at the sample, through an argument of this value that moves with the distribution."""
    value, slope = value_and_gradient(f, sample)
    value = values_for(here, value)
    _, grad = value_and_gradient(lambda params: (argument(here.with_params(params)) * slope).sum(-1), here.params)
    return Estimate(sample, value, grad, dist.params)
