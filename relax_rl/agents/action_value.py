"""What a critic of actions learns from: the rows of an update, and those of earlier rollouts where these are kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relax_rl.agents.batch import Batch
from relax_rl.agents.networks import Networks
from relax_rl.compute.derivatives import pull_back
from relax_rl.critics import OverBins, explained_variance
from relax_rl.distributions import Distribution
from relax_rl.estimators import weighted_moments

__all__ = ["of_action_value", "with_past_advantage"]


def of_action_value(
    networks: Networks, batch: Batch, dist: Distribution, features: Tensor
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The gradient of the mean loss of an action-value critic, with metrics of the batch's own rows.

    That of the squared error of c(s, a) for the advantage, so that q(s, a) = V(s) + c(s, a); or where q is a distribution
    over bins, the cross entropy against the return. The mean is over the rows of the batch and of the earlier rollouts in
    it, each rollout counting alike, as for V.

    Args:
        networks: at the parameters in question.
        batch: B rows.
        dist: whose outcomes actions are.
        features: `[B, F]` what the critic is told of the batch's observations.
    """
    critic: Any = networks.surrogate
    bins = isinstance(critic, OverBins)
    target, past = (batch.return_, batch.past_worth) if bins else (batch.advantage, batch.past_advantage)
    said, slope, losses = _regressed(critic, features, dist.embed(batch.action), target, batch.weight)
    left = target - (critic.from_outputs(said.detach()) if bins else said.detach())
    metrics = critic.metrics(target, batch.weight) if bins else {}
    outputs, slopes, rollouts = [said], [slope], 1
    if batch.past_action is not None:
        assert batch.past_obs is not None and batch.past_weight is not None and past is not None
        obs, action, weight = (x.flatten(0, 1) for x in (batch.past_obs, batch.past_action, batch.past_weight))
        before, of_before, _ = _regressed(critic, networks.told(obs), dist.embed(action), past.flatten(), weight)
        outputs, slopes, rollouts = [said, before], [slope, of_before], 1 + len(past)
    share = batch.shard.divisor * rollouts
    found = pull_back(outputs, [x / share for x in slopes], networks.parameters_of("surrogate"))
    _, variance = weighted_moments(torch.stack([batch.advantage, left], 1), batch.weight)
    return found, {
        **metrics,
        "losses/action_value": losses.sum() / batch.shard.divisor,
        "surrogate/explained_variance": explained_variance(variance[0], variance[1]),
    }


def _regressed(
    critic: Any, features: Tensor, embedded: Tensor, target: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What a critic says of `[B]` rows, with its graph, the slope of its loss there, and the loss of each row."""
    if isinstance(critic, OverBins):
        logits: Tensor = critic.regressed(features, embedded)  # type: ignore[attr-defined]
        return logits, *critic.regress(logits, target, weight)
    said: Tensor = critic(features, embedded)
    error = (said.detach() - target) * weight
    return said, 2.0 * error, error.square()


def with_past_advantage(networks: Networks, batch: Batch) -> Batch:
    """The batch with what V, as it stands, leaves of what actions of earlier rollouts were worth; itself where no critic learns from that."""
    if batch.past_worth is None or batch.past_obs is None or isinstance(networks.surrogate, OverBins):
        return batch
    with torch.no_grad():
        value: Tensor = networks.value(batch.past_obs.flatten(0, 1))
    return replace(batch, past_advantage=batch.past_worth - value.view_as(batch.past_worth))
