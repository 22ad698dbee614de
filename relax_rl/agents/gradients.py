"""One update as a pure function: parameters and a batch to gradients and metrics.

Eager code calls it, compiled code traces it, a CUDA graph records it, and several workers average what it returns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from relax_rl.agents.action_value import of_action_value
from relax_rl.agents.batch import MOST_LOG_RATIO, Batch
from relax_rl.agents.estimates import AgentEstimator, Experience, a2c
from relax_rl.agents.networks import Networks, Outputs
from relax_rl.agents.residual_weight import agreement, gradients_of_groups
from relax_rl.agents.trust_region import Region, entropy_and_unit, region_of
from relax_rl.compute.clocks import Watch, unwatched
from relax_rl.compute.derivatives import pull_back
from relax_rl.compute.optimizers import FlatParameters, clip_scale
from relax_rl.critics import OverBins, explained_variance, relative_to
from relax_rl.distributions import Distribution
from relax_rl.estimators import noise_behind, score_of, unclipped, variance_loss, weighted_moments

__all__ = ["SMALLEST_VARIANCE", "Gradients", "Objective", "finished", "flattened", "gradients"]

SMALLEST_VARIANCE = 1e-8
"""Where advantages vanish there is nothing to learn: below this mean squared norm a batch loses its weight."""


@dataclass(frozen=True)
class Objective:
    """What the gradients are of; compiled code is made anew for each.

    Attributes:
        estimator: how the policy's gradient is estimated.
        trains: names of the networks that learn: "policy" and "value" together, "surrogate", or all three; with none of them
            it is measured how far the residual's gradient can be told from noise, see `residual_weight`.
        off_policy: whether an earlier policy may have acted, so that rows count by the ratio of probabilities.
        clip_range: PPO's, of that ratio.
        value_coef: weight of V's loss.
        max_grad_norm: norm to which the gradient of policy and value function is clipped.
        surrogate_loss: what the surrogate learns: to lower the variance of the estimate, or to say what an action is worth.
        residual_weight: how much of what the surrogate leaves of the advantage multiplies the score, where no batch says.
        kl_form: how rows with `old_params` are held to their bound, see `Region.hold`.
        entropy_target: whether the weight of the entropy bonus is learned, and the entropy that of `entropy_and_unit`.
    """

    estimator: AgentEstimator
    trains: tuple[str, ...]
    off_policy: bool = False
    clip_range: float = math.inf
    value_coef: float = 0.5
    max_grad_norm: float = math.inf
    surrogate_loss: Literal["variance", "critic"] = "variance"
    residual_weight: float = 1.0
    kl_form: Literal["switch", "penalty"] = "switch"
    entropy_target: bool = False

    def describe(self) -> str:
        """The same for equal objectives, in any process."""
        numbers = {field.name: getattr(self, field.name) for field in fields(self)}
        return str({**numbers, "estimator": self.estimator.name})


@dataclass(frozen=True)
class Gradients:
    """What a batch says.

    Attributes:
        of: gradients by the name of the network: one tensor for each of its parameters, or all of them flat.
        sums: scalars over the batch's rows, of which workers take the mean like that of gradients: `rows` their weight,
            `plain` the squared norm of A2C's gradient, `control` and `shared` that of what the surrogate brings in and
            minus its product with A2C's, `divergence` KL(acting policy || policy) by the actions at hand, `clipped` rows that were; `kl` the same in closed
            form, `outside` rows beyond its bound, `entropy` and `entropy_unit` what a target is about, where there is one.
        metrics: scalars for the log, of a worker's own rows.
    """

    of: dict[str, Any]
    sums: dict[str, Tensor]
    metrics: dict[str, Tensor]


def gradients(
    networks: Networks, batch: Batch, objective: Objective, *, known: Outputs | None = None, watch: Watch = unwatched
) -> Gradients:
    """The gradients of an objective at the networks' parameters, and of nothing else; nothing is changed.

    Policy and value function get those of their loss, a mean over all workers' rows. The surrogate gets that of the sum
    over rows of the squared norm of the estimate, which `finished` puts in proportion.

    Args:
        networks: at the parameters in question.
        batch: B rows.
        objective: whose gradients.
        known: what the networks say of the batch's observations, with its graph where policy or value function learn.
        watch: told which section begins.
    """
    watch("estimate")
    found = networks(batch.obs, memory=batch.memory) if known is None else known
    dist = networks.policy.distribution(found.params.detach().requires_grad_(), batch.mask)
    if not objective.trains:
        experience, _ = _as_if_on_policy(batch, dist, found.features, objective, networks.surrogate)
        of_groups, told = gradients_of_groups(networks, batch, objective.estimator, found.params, dist, experience)
        return Gradients(of_groups, told, {})
    if objective.trains == ("surrogate",) and objective.surrogate_loss == "critic":
        alone, told = of_action_value(networks, batch, dist, found.features)
        return Gradients({"surrogate": alone}, {"rows": batch.weight.sum()}, told)
    experience, ratio = _as_if_on_policy(batch, dist, found.features, objective, networks.surrogate)
    estimate = objective.estimator.estimate(experience, dist, relative_to(networks.surrogate, experience.value))
    plain = a2c(experience, dist) if objective.estimator.uses_surrogate else estimate
    of: dict[str, Any] = {}
    sums, metrics = {"rows": batch.weight.sum()}, {}
    if ratio is not None:
        if math.isfinite(objective.clip_range):
            kept = _unclipped(batch, ratio, objective, estimate.detach(), experience)
            sums["clipped"] = (1.0 - kept) @ batch.weight
            estimate = estimate if _residual_is_whole(batch, objective) else kept.unsqueeze(-1) * estimate
        estimate, plain = ratio.unsqueeze(-1) * estimate, ratio.unsqueeze(-1) * plain
        sums["divergence"] = ((ratio - 1.0 - ratio.clamp(min=1e-30).log()) * batch.weight).sum()
    if objective.estimator.uses_surrogate:
        sums["plain"] = _squared_norms(plain) @ batch.weight
    if "policy" in objective.trains:
        applied, named, told = _applied(batch, estimate.detach(), plain.detach(), alone=plain is estimate)
        sums |= told
        watch("backward")
        entropy = bonus = dist.entropy()
        if objective.entropy_target:
            bonus, unit = entropy_and_unit(dist)
            sums |= {"entropy": bonus.detach() @ batch.weight, "entropy_unit": unit @ batch.weight}
        region = None if batch.old_params is None else region_of(networks.policy, batch, dist)
        if region is not None:
            sums |= region.sums(batch)
        of["policy"], of["value"], metrics["losses/value"] = _of_policy_and_value(
            networks, batch, found, applied, dist.params, bonus, objective, region
        )
        metrics |= _statistics(batch, entropy.detach(), found.value[: batch.weight.shape[0]].detach(), named)
        metrics |= networks.value.metrics(batch.return_, batch.weight)
    if "surrogate" in objective.trains and networks.surrogate is not None:
        watch("surrogate")
        by_variance = objective.surrogate_loss == "variance"
        of["surrogate"], told = (
            _of_variance(networks, batch, estimate)
            if by_variance
            else of_action_value(networks, batch, dist, found.features)
        )
        metrics |= told
    return Gradients(of, sums, metrics)


def flattened(
    found: Gradients, flat: Mapping[str, FlatParameters], out: Mapping[str, Tensor] | None = None
) -> Gradients:
    """The same with the gradients of each network as one tensor, written to `out` if that is given."""
    of = {
        name: flat[name.split("/")[0]].flatten(x, None if out is None else out.get(name))
        for name, x in found.of.items()
    }
    return Gradients(of, found.sums, found.metrics)


def finished(found: Gradients, objective: Objective) -> Gradients:
    """Flat gradients, averaged over the workers, as optimisers take them: those of policy and value function clipped by their common norm, in place.

    The surrogate's variance counts relative to that of the plain gradient on the same rows, a factor that phi does not
    enter: advantages vary by orders of magnitude from batch to batch, and a single failure would otherwise drown a
    hundred calm batches, on which an untrained surrogate then adds more noise than there was.
    """
    of, metrics = dict(found.of), dict(found.metrics)
    if not objective.trains:
        return Gradients({}, agreement(of, found.sums), metrics)
    if "policy" in of:
        norm = torch.hypot(torch.linalg.vector_norm(of["policy"]), torch.linalg.vector_norm(of["value"]))
        kept = clip_scale(norm, objective.max_grad_norm)
        of |= {"policy": of["policy"].mul_(kept), "value": of["value"].mul_(kept)}
        metrics["policy/grad_norm"] = norm
    if "surrogate" in of and objective.surrogate_loss == "variance":
        unit = found.sums["plain"] + SMALLEST_VARIANCE * found.sums["rows"]
        of["surrogate"] = of["surrogate"] / unit.clamp(min=torch.finfo(unit.dtype).tiny)
    return Gradients(of, found.sums, metrics)


def _as_if_on_policy(
    batch: Batch, dist: Distribution, features: Tensor, objective: Objective, surrogate: Any
) -> tuple[Experience, Tensor | None]:
    """What an estimate sees of the rows, and the ratio `[B]` of the policy's probabilities to those of the one that acted.

    Every gradient of the policy at hand is that of its own actions times this ratio (Schulman et al. 2017). The noise
    behind an action is drawn anew from its law given that action: what made the action at first need not lead to it.
    """
    noise, advantage, return_, ratio = batch.noise, batch.advantage, batch.return_, None
    value = return_ - advantage if isinstance(surrogate, OverBins) else None
    if objective.off_policy:
        with torch.no_grad():
            assert batch.old_log_prob is not None
            ratio = torch.exp((dist.log_prob(batch.action) - batch.old_log_prob).clamp(max=MOST_LOG_RATIO))
            noise = noise_behind(dist, batch.action, batch.conditional_noise)
            if math.isfinite(objective.clip_range) and _residual_is_whole(batch, objective):
                advantage, return_ = (
                    x * unclipped(x, ratio, objective.clip_range).to(x.dtype) for x in (advantage, return_)
                )
    score = score_of(dist, batch.action)
    rest = objective.residual_weight if batch.residual_weight is None else batch.residual_weight
    seen = Experience(features, batch.action, noise, advantage, return_, batch.weight, score, rest, value)
    return seen, ratio


def _applied(
    batch: Batch, estimate: Tensor, plain: Tensor, *, alone: bool
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """What the policy follows of an estimate, what variances are told of, and sums for the surrogate's scale.

    Args:
        batch: B rows.
        estimate, plain: `[B, P]` with and without a surrogate.
        alone: whether there is no surrogate, and the two are one.
    """
    applied, sums = estimate, {}
    if batch.control_scale is not None:
        rest = estimate - plain
        sums = {"control": _squared_norms(rest) @ batch.weight, "shared": -(plain * rest).sum(-1) @ batch.weight}
        applied = torch.lerp(plain, estimate, batch.control_scale)
    if batch.advantage_unit is not None:
        applied, plain = applied / batch.advantage_unit, plain / batch.advantage_unit
    return applied, {"variance": applied} if alone else {"variance": applied, "variance_a2c": plain}, sums


def _residual_is_whole(batch: Batch, objective: Objective) -> bool:
    """Whether what a surrogate brings in has mean zero: with less of the residual it moves the policy as well."""
    return objective.residual_weight == 1.0 and batch.residual_weight is None


def _unclipped(batch: Batch, ratio: Tensor, objective: Objective, estimate: Tensor, x: Experience) -> Tensor:
    """`[B]`, 1 for rows that PPO's objective still moves with, whose ratio is not beyond the range on the side that they push it to, else 0.

    That side is the sign of the advantage where the residual is whole; else of what the estimate does to the action's probability.
    """
    pushed = getattr(batch, objective.estimator.signal)
    if not _residual_is_whole(batch, objective):
        assert x.score is not None
        pushed = (estimate * x.score).sum(-1)
    return unclipped(pushed, ratio, objective.clip_range).to(ratio.dtype)


def _of_variance(networks: Networks, batch: Batch, estimate: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The gradient of the sum of squared norms of the estimate, with metrics; see `finished`."""
    of_squares = 2.0 * batch.weight.unsqueeze(-1) * estimate.detach()
    found = pull_back([estimate], [of_squares], networks.parameters_of("surrogate"))
    gain = getattr(networks.surrogate, "gain", None)
    metrics = {} if gain is None else {"surrogate/gain": gain.detach().clone()}
    return found, {**metrics, "losses/variance": variance_loss(estimate.detach(), batch.weight)}


def _of_policy_and_value(
    networks: Networks,
    batch: Batch,
    found: Outputs,
    estimate: Tensor,
    leaf: Tensor,
    entropy: Tensor,
    objective: Objective,
    region: Region | None = None,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Pull the estimate back through the policy, and regress V on returns.

    V's loss is the mean over the rows of the batch and of the earlier rollouts in it, each rollout counting alike.

    Args:
        networks, batch, objective: as for `gradients`.
        found: what the networks say, with its graph.
        estimate: `[B, P]` of the gradient at the policy's parameters.
        leaf: `[B, P]` the parameters as they stand in `entropy` `[B]`.
        region: around the policy that acted, within which the policy is held; None for all there is.

    Returns:
        The gradients of the policy and of what is the value function's own, and V's loss on the batch's own rows.
    """
    weight, rows = batch.weight, batch.shard.divisor
    ascent = estimate
    if batch.entropy_coef is not None:
        (of_entropy,) = torch.autograd.grad(entropy.sum(), leaf)
        ascent = ascent + batch.entropy_coef * of_entropy
    if region is not None:
        ascent = region.hold(ascent, batch, objective.kl_form)
    # Rows without weight still count in `rows`: a divisor that depends on the batch would bias the mean.
    pulled = -ascent * (weight / rows).unsqueeze(-1)
    value = found.value[: weight.shape[0]] if found.logits is None else found.logits
    slope, loss = networks.value.regress(value, batch.return_, weight)
    earlier = 0 if batch.past_obs is None else len(batch.past_obs)
    share = objective.value_coef / (rows * (1 + earlier))  # of a row of any rollout in V's loss
    outputs, of_loss = [found.params, value], [pulled, slope * share]
    if batch.past_obs is not None and batch.past_return is not None and batch.past_weight is not None:
        past = networks.value.regressed(batch.past_obs.flatten(0, 1))
        slope, _ = networks.value.regress(past, batch.past_return.flatten(), batch.past_weight.flatten())
        outputs, of_loss = [*outputs, past], [*of_loss, slope * share]
    of_policy = networks.parameters_of("policy")
    both = pull_back(outputs, of_loss, [*of_policy, *networks.parameters_of("value")])
    return both[: len(of_policy)], both[len(of_policy) :], loss.sum() / rows


def _squared_norms(x: Tensor) -> Tensor:
    return x.detach().square().sum(-1)


def _statistics(batch: Batch, entropy: Tensor, value: Tensor, estimates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Moments over the rows of a batch, all taken at once.

    Args:
        batch: as the update saw it.
        entropy, value: `[B]` of the policy, and V from before the update.
        estimates: `[B, P]` gradients, by the name under which their variance is reported.
    """
    columns = torch.stack([entropy, batch.return_, batch.return_ - value], 1)
    mean, variance = weighted_moments(torch.cat([columns, *(x.detach() for x in estimates.values())], 1), batch.weight)
    of_scalars, of_gradients = variance[:3], variance[3:].view(len(estimates), -1).sum(1)
    return {
        "policy/entropy": mean[0],
        "value/explained_variance": explained_variance(of_scalars[1], of_scalars[2]),
        **{f"estimate/{name}": x for name, x in zip(estimates, of_gradients.unbind(), strict=True)},
    }
