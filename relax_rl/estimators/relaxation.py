"""Control variates through a relaxation: LAX, DLAX, REBAR and RELAX."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

from relax_rl.distributions import Distribution, RelaxedDistribution
from relax_rl.estimators.draws import Draw, Objective, as_phi, draw, relaxed_sample, require
from relax_rl.estimators.estimate import Estimate
from relax_rl.estimators.gradients import dlax_gradient, lax_gradient, relax_gradient

__all__ = ["Surrogate", "conditional_samples", "dlax", "lax", "rebar", "relax", "relaxed_objective"]

Surrogate = Callable[[Tensor], Tensor]
"""c: relaxed samples z `[*, P]` to `[*]` values, differentiable twice."""

Coupling = Literal["independent", "coupled"]


def lax(
    f: Objective,
    dist: Distribution,
    surrogate: Surrogate,
    *,
    noise: Tensor | None = None,
    phi: Tensor | Iterable[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """LAX estimate for a reparameterised distribution (Grathwohl et al. 2018, section 3).

        g = (f(b) - c(b)) dlog p(b) + dc(b)

    Args:
        f: a function of the samples (need not be differentiable), or its `[*]` values (`noise` is needed then).
        dist: distribution with `[*, P]` parameters whose outcome is its relaxed sample, such as `DiagGaussian`.
        surrogate: c, from samples to `[*]`.
        noise: the base noise of the sample; drawn from `generator` by default.
        phi: what the variance loss trains.

    Raises:
        ValueError: when f is given by its values but the noise of the sample is not; when the outcomes are discrete
            (their score is not that of z, and the estimate would be biased: `relax` is for them); when f or the
            surrogate does not give one number a row.
    """
    if hasattr(dist, "relax_given"):
        raise ValueError(f"lax needs an outcome that is its own relaxed sample: use relax for {type(dist).__name__}")
    drawn = draw(f, dist, noise=noise, generator=generator)
    here, sample = drawn.dist, drawn.sample
    grad = lax_gradient(drawn.value, here.log_prob(sample), surrogate(drawn.z), here.params)
    return Estimate(sample, drawn.value, grad, dist.params, as_phi(phi))


def dlax(
    f: Objective,
    dist: RelaxedDistribution,
    surrogate: Surrogate,
    *,
    noise: Tensor | None = None,
    phi: Tensor | Iterable[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """DLAX estimate for a discrete distribution (Grathwohl et al. 2018, section 3.1).

        g = f(b) dlog p(b) - c(z) dlog p(z) + dc(z)

    Args and raises as `relax`.
    """
    require(dist, "relaxed_log_prob", "dlax", "use lax")
    drawn = draw(f, dist, noise=noise, generator=generator)
    here, sample, z = drawn.dist, drawn.sample, drawn.z
    log_probs = here.log_prob(sample), here.relaxed_log_prob(z.detach())
    grad = dlax_gradient(drawn.value, *log_probs, surrogate(z), here.params)
    return Estimate(sample, drawn.value, grad, dist.params, as_phi(phi))


def relax(
    f: Objective,
    dist: RelaxedDistribution,
    surrogate: Surrogate,
    *,
    noise: Tensor | None = None,
    conditional_noise: Tensor | None = None,
    coupling: Coupling = "independent",
    num_conditional: int | None = None,
    phi: Tensor | Iterable[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """RELAX estimate for a discrete distribution (Grathwohl et al. 2018, eq. 9).

        g = (f(b) - c(z~)) dlog p(b) + dc(z) - dc(z~)

    Args:
        f: a function of the samples (need not be differentiable), or its `[*]` values (`noise` is needed then).
        dist: discrete distribution with `[*, P]` parameters.
        surrogate: c, from relaxed samples to `[*]`. `relaxed_objective` makes the paper's f(sigma(z / lambda)) + r(z).
        noise: the base noise of the sample; drawn from `generator` by default.
        conditional_noise: the noise of z~, independent of `noise`; made as `coupling` says by default.
        coupling: "independent" draws the noise of z~ from `generator`; "coupled" takes the noise that gives z back, so
            that z~ equals z and moves otherwise with the parameters (Tucker et al. 2017, appendix).
        num_conditional: this many independent z~ for each outcome, whose c are averaged: the surrogate sees
            `[num_conditional, *, P]` then.
        phi: what the variance loss trains.

    Raises:
        ValueError: when f is given by its values but the noise of the sample is not; when z cannot be sampled given b
            (`lax` is for those outcomes); when f or the surrogate does not give one number a row; when the options
            contradict each other.
    """
    require(dist, "relax_given", "relax", "use lax")
    drawn = draw(f, dist, noise=noise, generator=generator)
    z_tilde = conditional_samples(drawn, conditional_noise, coupling, num_conditional, generator)
    control, conditional_control = surrogate(drawn.z), surrogate(z_tilde)
    if num_conditional is not None:
        conditional_control = conditional_control.mean(0)
    here = drawn.dist
    log_prob = here.log_prob(drawn.sample)
    grad = relax_gradient(drawn.value, log_prob, control, conditional_control, here.params)
    return Estimate(drawn.sample, drawn.value, grad, dist.params, as_phi(phi))


def rebar(
    f: Callable[[Tensor], Tensor],
    dist: RelaxedDistribution,
    *,
    eta: Tensor | float = 1.0,
    temperature: Tensor | float = 0.5,
    noise: Tensor | None = None,
    conditional_noise: Tensor | None = None,
    coupling: Coupling = "independent",
    num_conditional: int | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """REBAR estimate (Tucker et al. 2017, eq. 8): RELAX with c(z) = eta f(sigma(z / lambda)).

    Dynamic REBAR is `eta` and `temperature` as tensors that require a gradient: the variance loss trains them.

    Args:
        f: a function of the samples and of relaxed ones, differentiable.
        dist: `Bernoulli`, or a categorical with `one_hot`.
        eta: scale of the control variate, a number or what broadcasts to `[*]`.
        temperature: lambda, above 0.
        noise, conditional_noise, coupling, num_conditional, generator: as in `relax`.

    Raises:
        ValueError: as `relax`; or when the samples are indices, between which f is not defined.
    """
    relaxed_sample(dist)
    surrogate = relaxed_objective(f, dist, temperature)
    phi = [x for x in (eta, temperature) if isinstance(x, Tensor) and x.requires_grad]
    return relax(
        f,
        dist,
        lambda z: eta * surrogate(z),
        noise=noise,
        conditional_noise=conditional_noise,
        coupling=coupling,
        num_conditional=num_conditional,
        phi=phi,
        generator=generator,
    )


def relaxed_objective(
    f: Callable[[Tensor], Tensor],
    dist: Distribution,
    temperature: Tensor | float,
    residual: Surrogate | None = None,
) -> Surrogate:
    """The surrogate c(z) = f(sigma(z / lambda)) + r(z) (Grathwohl et al. 2018, section 3.2).

    Args:
        f: a differentiable function of relaxed samples.
        dist: any member of the family whose z will come; its parameters play no part.
        temperature: lambda; a tensor can be trained with phi.
        residual: r, a free function of z; none leaves REBAR's control variate.
    """
    relaxed_sample(dist)

    def surrogate(z: Tensor) -> Tensor:
        control = f(dist.soften(z, temperature))
        return control if residual is None else control + residual(z)

    return surrogate


def conditional_samples(
    drawn: Draw[RelaxedDistribution],
    noise: Tensor | None,
    coupling: Coupling,
    num_conditional: int | None,
    generator: torch.Generator | None,
) -> Tensor:
    """z~ `[*, P]`, or `[num_conditional, *, P]`, for the outcomes that were drawn."""
    here, sample = drawn.dist, drawn.sample
    if coupling not in ("independent", "coupled"):
        raise ValueError(f"coupling is {coupling!r}, expected 'independent' or 'coupled'")
    if coupling == "coupled":
        if noise is not None or num_conditional is not None:
            raise ValueError("coupled noise is made from z: give no conditional_noise and no num_conditional with it")
        noise = here.noise_given(sample, drawn.z)
    if num_conditional is not None:
        if num_conditional < 1:
            raise ValueError(f"num_conditional is {num_conditional}, expected at least 1")
        here = here.with_params(here.params.expand(num_conditional, *here.params.shape))
        sample = sample.expand(num_conditional, *sample.shape)
    if noise is None:
        noise = here.sample_noise(generator)
    return here.relax_given(sample, noise)
