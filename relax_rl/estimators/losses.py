"""A loss for other people's training loops: its gradient is the estimate for theta and the variance's for phi."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from relax_rl.distributions import Distribution
from relax_rl.estimators.draws import as_phi, check_wrapped, detached
from relax_rl.estimators.estimate import nothing_but, only_to, variance_loss
from relax_rl.estimators.gradients import check_rows
from relax_rl.estimators.relaxation import lax, relax
from relax_rl.estimators.slopes import Surrogate

__all__ = ["noise_behind", "policy_gradient_loss", "unclipped"]


def policy_gradient_loss(
    advantage: Tensor,
    dist: Distribution,
    action: Tensor,
    surrogate: Surrogate,
    *,
    old_log_prob: Tensor | None = None,
    clip: float | None = None,
    weight: Tensor | None = None,
    phi: Tensor | Iterable[Tensor] | None = None,
    variance_coef: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The policy loss of an actor-critic, with an action-dependent control variate.

    In place of `-(advantage * dist.log_prob(action)).mean()`, with a variance that the surrogate learns to lower with the
    same `backward()`. Discrete actions take RELAX, continuous ones LAX; no noise need be stored, since z is drawn given
    the action (or, for a normal, is the action itself).

        g = (A - c(z~)) dlog pi(a) + dc(z) - dc(z~)        (discrete; for a normal, c(a) and dc(a))

    As long as neither policy nor surrogate has learned from these actions, as on the first step after a rollout, the
    terms with c have mean 0: unbiased relative to the advantages given. In further passes over them, as PPO's, they have
    a mean of their own, which counts where rows are few and steps large. With `old_log_prob` every term is weighted by
    the ratio of the probabilities, and PPO's clipping leaves out the advantage's term alone.

    Args:
        advantage: `[*]` of the actions taken; no gradient flows into it. Scale it before, not after: the surrogate must
            see the scale it is to cancel.
        dist: the policy's present distribution, its `params` `[*, P]` with the graph that leads to theta.
        action: `[*, ...]` the actions taken.
        surrogate: c, from z `[*, ...]` to `[*]`; a closure over the observations. Discrete z are unbounded:
            `dist.soften(z)` makes vectors of probabilities of them.
        old_log_prob: `[*]` log-probability of each action under the policy that took it; the present one by default.
        clip: PPO's clipping range of the ratio; none by default.
        weight: `[*]` of each row, 0 for a row that is none; the loss is divided by the number of rows all the same.
        phi: what the variance trains. Needed if the surrogate shares parameters with the policy.
        variance_coef: weight of the variance's gradient, against which an optimiser like Adam is indifferent.
        generator: of z and z~.

    Returns:
        A scalar: minus the mean (weighted) advantage, for the log. Its gradient is what matters.

    Raises:
        ValueError: when a tensor does not give one number a row, or the actions are not such as the distribution draws.
    """
    check_wrapped(dist)
    given = {"advantage": advantage, "old_log_prob": old_log_prob, "weight": weight}
    check_rows(dist.params.shape[:-1], **{name: each for name, each in given.items() if each is not None})
    here = detached(dist)
    advantage, action = advantage.detach(), action.detach()
    noise = _noise(here, action, generator)
    ratio = _ratio(here, action, advantage, old_log_prob)
    kept = unclipped(advantage, ratio, clip).to(advantage.dtype)
    estimate = ratio.unsqueeze(-1) * _estimate(kept * advantage, here, action, surrogate, noise, generator)
    rows = max(1, advantage.numel())
    each = torch.full_like(advantage, 1.0 / rows) if weight is None else weight.detach() / rows
    policy_part = -nothing_but(estimate.detach() * each.unsqueeze(-1), dist.params)
    loss, trained = variance_loss(estimate, weight), as_phi(phi)
    variance_part = loss if trained is None else only_to(trained, loss)
    return policy_part + variance_coef * (variance_part - variance_part.detach()) - (ratio * advantage * each).sum()


def _noise(here: Any, action: Tensor, generator: torch.Generator | None) -> Tensor:
    """`[*, ...]` noise that leads to these actions, which are checked."""
    if hasattr(here, "relax_given"):
        standard = here.sample_noise(generator)
        _check_action(action, here.threshold(here.relax(standard)))
        return noise_behind(here, action, standard)
    shapes = f"action has shape {list(action.shape)}, which parameters {list(here.params.shape)}"
    try:
        noise = noise_behind(here, action, None)
        broadcast = here.relax(noise).shape
    except RuntimeError:  # torch's, of widths that do not go together
        raise ValueError(f"{shapes} do not fit; expected that of a sample") from None
    if action.shape != broadcast:
        raise ValueError(f"{shapes} broadcast to {list(broadcast)}; expected that of a sample")
    return noise


def _estimate(
    signal: Tensor, here: Any, action: Tensor, surrogate: Surrogate, noise: Tensor, generator: torch.Generator | None
) -> Tensor:
    """The estimate for these actions, whatever noise has led to them."""
    if hasattr(here, "relax_given"):
        return relax(signal, here, surrogate, noise=noise, sample=action, generator=generator).grad
    return lax(signal, here, surrogate, noise=noise, sample=action).grad


def _check_action(action: Tensor, sample: Tensor) -> None:
    """Raises ValueError unless actions have the form of a sample."""
    if action.shape != sample.shape:
        raise ValueError(f"action has shape {list(action.shape)}, but the distribution draws {list(sample.shape)}")
    if action.is_floating_point() and not sample.is_floating_point():
        raise ValueError(f"action is of {action.dtype}, but the distribution draws {sample.dtype}")


def noise_behind(dist: Any, action: Tensor, conditional_noise: Tensor | None) -> Tensor:
    """`[*, ...]` base noise from which the distribution makes these actions, drawn from its law given them.

    Args:
        dist: with `[*, P]` parameters.
        action: `[*, ...]` outcomes.
        conditional_noise: `[*, ...]` standard noise that the draw is made from; None for continuous outcomes, behind
            which there is one noise only.
    """
    with torch.no_grad():
        z = action if conditional_noise is None else dist.relax_given(action, conditional_noise)
        noise: Tensor = dist.noise_of(z)
        return noise


def _ratio(here: Distribution, action: Tensor, like: Tensor, old_log_prob: Tensor | None) -> Tensor:
    """`[*]` probability of each action to that under the policy that took it; 1 if that is the present one."""
    if old_log_prob is None:
        return torch.ones_like(like)
    return torch.exp(here.log_prob(action) - old_log_prob.detach())


def unclipped(advantage: Tensor, ratio: Tensor, clip: float | None) -> Tensor:
    """Where PPO's objective min(ratio A, clamp(ratio, 1 - clip, 1 + clip) A) still moves with the ratio.

    Schulman et al. 2017, eq. 7.

    Args:
        advantage: `[*]` A.
        ratio: `[*]` of the present policy's probability to the old one's.
        clip: None for no clipping.

    Returns:
        `[*]` booleans.
    """
    if clip is None:
        return torch.ones_like(advantage, dtype=torch.bool)
    too_far = torch.where(advantage > 0, ratio > 1.0 + clip, ratio < 1.0 - clip)
    return ~too_far
