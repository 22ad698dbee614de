"""Control variates through a relaxation: LAX, DLAX, REBAR and RELAX."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from relax_rl.distributions import Distribution, RelaxedDistribution
from relax_rl.estimators.draws import (
    Draw,
    Objective,
    as_phi,
    check_noise,
    draw,
    require,
    require_moving,
    require_temperature,
    require_vectors,
)
from relax_rl.estimators.estimate import Estimate
from relax_rl.estimators.gradients import (
    Weight,
    check_rows,
    control_variate_gradient,
    dlax_gradient,
    lax_gradient,
    relax_gradient,
    score_function,
    value_and_gradient,
    weighted,
)
from relax_rl.estimators.slopes import (
    Surrogate,
    control_through_both,
    control_through_coupled,
    control_through_z,
    is_sloped,
    is_sloped_relaxation,
)

__all__ = ["dlax", "lax", "rebar", "relax", "relaxed_objective"]

Coupling = Literal["independent", "coupled"]


def lax(
    f: Objective,
    dist: Distribution,
    surrogate: Surrogate,
    *,
    noise: Tensor | None = None,
    sample: Tensor | None = None,
    score: Tensor | None = None,
    residual_weight: Weight = 1.0,
    phi: Tensor | Iterable[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """LAX estimate for a reparameterised distribution (Grathwohl et al. 2018, section 3).

        g = w (f(b) - c(b)) dlog p(b) + dc(b)

    Unbiased for every c at w = 1. Where c is a critic that has learned E[f | b], a smaller w trades the noise of the score for
    the critic's bias.

    Args:
        f: a function of the samples (need not be differentiable), or its `[*]` values (`noise` is needed then).
        dist: distribution with `[*, P]` parameters whose outcome is its relaxed sample, such as `DiagGaussian`.
        surrogate: c, from samples to `[*]`.
        noise: the base noise of the sample; drawn from `generator` by default.
        sample: the sample that `noise` gives, where it is at hand.
        score: `[*, P]` its dlog p(b) / dparams, where it is at hand.
        residual_weight: w, a number or `[*]`; at 0 the estimate is the pathwise gradient of E[c].
        phi: what the variance loss trains.
        generator: of the noise; torch's global one by default.

    Returns:
        the estimate, from one sample a row, differentiable in phi; its `value` is f(b).

    Raises:
        ValueError: when f is given by its values but the noise of the sample is not; when the outcomes are discrete
            (their score is not that of z, and the estimate would be biased: `relax` is for them); when f or the
            surrogate does not give one number a row.
    """
    if hasattr(dist, "relax_given"):
        raise ValueError(f"lax needs an outcome that is its own relaxed sample: use relax for {type(dist).__name__}")
    require_moving(dist, "lax")
    drawn = draw(f, dist, noise=noise, generator=generator, sample=sample, score=score)
    if is_sloped(drawn.dist):
        grad = _estimate(drawn, *control_through_z(surrogate, drawn.dist, drawn.z), residual_weight)
    else:
        through_z, params, score = drawn.through_z(surrogate), drawn.dist.params, drawn.score
        grad = lax_gradient(drawn.value, None, through_z, params, score=score, residual_weight=residual_weight)
    return Estimate(drawn.sample, drawn.value, grad, dist.params, as_phi(phi))


def dlax(
    f: Objective,
    dist: RelaxedDistribution,
    surrogate: Surrogate,
    *,
    noise: Tensor | None = None,
    phi: Tensor | Iterable[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """DLAX estimate for a discrete distribution (Grathwohl et al. 2018, section 3.2).

        g = f(b) dlog p(b) - c(z) dlog p(z) + dc(z)

    Args:
        f, dist, surrogate, noise, phi, generator: as in `relax`.

    Returns:
        the estimate, as from `relax`.

    Raises:
        ValueError: when f is given by its values but the noise of the sample is not; when z has no density in closed form;
            when f or the surrogate does not give one number a row.
    """
    require(dist, "relaxed_log_prob", "dlax", "use lax")
    drawn = draw(f, dist, noise=noise, generator=generator)
    params = drawn.dist.params

    def relaxed_log_prob(params: Tensor) -> Tensor:
        return drawn.dist.with_params(params).relaxed_log_prob(drawn.z)

    if is_sloped(drawn.dist):
        control, pathwise = control_through_z(surrogate, drawn.dist, drawn.z)
        relaxed_score = score_function(relaxed_log_prob, params)
        grad = drawn.value.detach().unsqueeze(-1) * drawn.score - control.unsqueeze(-1) * relaxed_score + pathwise
    else:
        through_z = drawn.through_z(surrogate)
        grad = dlax_gradient(drawn.value, None, relaxed_log_prob, through_z, params, score=drawn.score)
    return Estimate(drawn.sample, drawn.value, grad, dist.params, as_phi(phi))


def relax(
    f: Objective,
    dist: RelaxedDistribution,
    surrogate: Surrogate,
    *,
    noise: Tensor | None = None,
    sample: Tensor | None = None,
    score: Tensor | None = None,
    conditional_noise: Tensor | None = None,
    coupling: Coupling = "independent",
    num_conditional: int | None = None,
    residual_weight: Weight = 1.0,
    phi: Tensor | Iterable[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """RELAX estimate for a discrete distribution (Grathwohl et al. 2018, section 3.2).

        g = w (f(b) - c(z~)) dlog p(b) + dc(z) - w dc(z~)

    Unbiased for every c at w = 1.

    Args:
        f: a function of the samples (need not be differentiable), or its `[*]` values (`noise` is needed then).
        dist: discrete distribution with `[*, P]` parameters.
        surrogate: c, from relaxed samples to `[*]`. `relaxed_objective` makes the paper's f(sigma(z / lambda)) + r(z).
        noise: the base noise of the sample; drawn from `generator` by default.
        sample: the sample that `noise` gives, where it is at hand.
        score: `[*, P]` its dlog p(b) / dparams, where it is at hand.
        conditional_noise: the noise of z~, independent of `noise`; made as `coupling` says by default.
        coupling: "independent" draws the noise of z~ from `generator`; "coupled" takes the noise that gives z back, so
            that z~ equals z and moves otherwise with the parameters (Tucker et al. 2017, appendix): the surrogate is
            asked once then instead of twice.
        num_conditional: this many independent z~ for each outcome, whose c are averaged: the surrogate sees
            `[num_conditional, *, P]` then.
        residual_weight: w, a number or `[*]`; at 0 the estimate is the gradient of E[c] by the relaxation, biased by what
            c at relaxed samples is from f.
        phi: what the variance loss trains.
        generator: of both noises; torch's global one by default.

    Returns:
        the estimate, from one sample a row, differentiable in phi; its `value` is f(b).

    Raises:
        ValueError: when f is given by its values but the noise of the sample is not; when z cannot be sampled given b
            (`lax` is for those outcomes); when f or the surrogate does not give one number a row; when the options
            contradict each other.
    """
    require(dist, "relax_given", "relax", "use lax")
    drawn = draw(f, dist, noise=noise, generator=generator, sample=sample, score=score)
    if coupling == "coupled":
        if conditional_noise is not None or num_conditional is not None:
            raise ValueError("coupled noise is made from z: give no conditional_noise and no num_conditional with it")
        grad = _coupled_gradient(drawn, surrogate, residual_weight)
    elif coupling == "independent":
        noise = conditional_noise
        grad = _independent_gradient(drawn, surrogate, noise, num_conditional, generator, residual_weight)
    else:
        raise ValueError(f"coupling is {coupling!r}, expected 'independent' or 'coupled'")
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
        dist: `Bernoulli`, or another discrete family with `one_hot`.
        eta: scale of the control variate, a number or what broadcasts to `[*]`.
        temperature: lambda, above 0.
        noise, conditional_noise, coupling, num_conditional, generator: as in `relax`.

    Returns:
        the estimate, as from `relax`.

    Raises:
        ValueError: as `relax`; or when the samples are indices, between which f is not defined.
    """
    require_vectors(dist)
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
    """The surrogate c(z) = f(sigma(z / lambda)) + r(z) (Grathwohl et al. 2018, section 3.3).

    Args:
        f: a differentiable function of relaxed samples.
        dist: any member of the family whose z will come; its parameters play no part.
        temperature: lambda; a tensor can be trained with phi.
        residual: r, a free function of z; none leaves REBAR's control variate.

    Returns:
        c, from relaxed samples `[*, ...]` to `[*]`.

    Raises:
        ValueError: when the samples are indices, between which f is not defined, or a temperature is not above 0.
    """
    require_vectors(dist)
    require_temperature(temperature)

    def surrogate(z: Tensor) -> Tensor:
        control = f(dist.soften(z, temperature))
        return control if residual is None else control + residual(z)

    return surrogate


def _independent_gradient(
    drawn: Draw[RelaxedDistribution],
    surrogate: Surrogate,
    noise: Tensor | None,
    num_conditional: int | None,
    generator: torch.Generator | None,
    residual_weight: Weight,
) -> Tensor:
    """The RELAX estimate with a z~ of noise of its own, or the mean over `num_conditional` of them."""
    here, sample = drawn.dist, drawn.sample
    if num_conditional is not None:
        if num_conditional < 1:
            raise ValueError(f"num_conditional is {num_conditional}, expected at least 1")
        here = here.with_params(here.params.expand(num_conditional, *here.params.shape))
        sample = sample.expand(num_conditional, *sample.shape)
    check_noise(here, sample, conditional_noise=noise)
    if noise is None:
        noise = here.sample_noise(generator)
    if is_sloped_relaxation(drawn.dist):
        z_tilde = here.relax_given(sample, noise)
        at = drawn.sample, drawn.z, z_tilde
        found = control_through_both(surrogate, drawn.dist, *at, residual_weight=residual_weight)
        return _estimate(drawn, *found, residual_weight)

    def conditional_control(params: Tensor) -> Tensor:
        if num_conditional is None:
            return surrogate(here.with_params(params).relax_given(sample, noise))
        many = here.with_params(params.expand(num_conditional, *params.shape))
        return surrogate(many.relax_given(sample, noise)).mean(0)

    controls, params = (drawn.through_z(surrogate), conditional_control), drawn.dist.params
    return relax_gradient(drawn.value, None, *controls, params, score=drawn.score, residual_weight=residual_weight)


def _coupled_gradient(drawn: Draw[RelaxedDistribution], surrogate: Surrogate, residual_weight: Weight) -> Tensor:
    """The RELAX estimate where z~ = z, so that c and its slope at z serve both:

    g = w (f(b) - c(z)) dlog p(b) + c'(z) (dz - w dz~)
    """
    here = drawn.dist
    if is_sloped_relaxation(here):
        found = control_through_coupled(surrogate, here, drawn.sample, drawn.z, residual_weight=residual_weight)
        return _estimate(drawn, *found, residual_weight)
    z = drawn.z
    noise = here.noise_given(drawn.sample, z)
    control, slope = value_and_gradient(surrogate, z, create_graph=True)
    check_rows(here.params.shape[:-1], surrogate=control)

    def along_slope(params: Tensor) -> Tensor:
        at = here.with_params(params)
        z_tilde = weighted(residual_weight, at.relax_given(drawn.sample, noise))
        return ((at.relax(drawn.noise) - z_tilde) * slope).sum(-1)

    _, pathwise = value_and_gradient(along_slope, here.params, create_graph=True)
    return _estimate(drawn, control, pathwise, residual_weight)


def _estimate(drawn: Draw[Any], control: Tensor, pathwise: Tensor, residual_weight: Weight) -> Tensor:
    return control_variate_gradient(drawn.value, control, pathwise, drawn.score, residual_weight=residual_weight)
