"""The step of policy and value function, once the gradient at the action distributions is known."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relax_rl.agents.batch import Batch
from relax_rl.agents.optimizers import clip_norm_
from relax_rl.errors import TrainingDiverged

if TYPE_CHECKING:
    from relax_rl.agents.base import ActorCritic

__all__ = ["train_actor_critic"]


def train_actor_critic(
    agent: ActorCritic, batch: Batch, params: Tensor, value: Tensor, estimate: Tensor
) -> dict[str, Tensor | float]:
    """Pull the estimate back through the policy, regress V on returns, average over workers, clip, step.

    Args:
        agent: whose policy and value function move.
        batch: rows of a rollout.
        params, value: `[B, P]` and `[B]` of these rows, with their graphs.
        estimate: `[B, P]` of the gradient at `params`, without graph.

    Returns:
        Metrics.

    Raises:
        TrainingDiverged: if the gradient is not finite; nothing has moved then.
    """
    config, weight = agent.config, batch.weight
    rows = batch.divisor
    ascent = estimate
    entropy_coef = config.entropy_coef * agent.schedule_factor(config.entropy_schedule)
    if entropy_coef:
        ascent = ascent + entropy_coef * torch.autograd.grad(batch.entropy.sum(), batch.dist.params)[0]
    # Rows without weight still count in `rows`: a divisor that depends on the batch would bias the mean.
    pulled = -ascent * (weight / rows)[:, None]
    weighted_error = (value.detach() - batch.return_) * weight
    value_loss = weighted_error.square().sum() / rows
    for part in agent.theta:
        part.zero_grad()
    torch.autograd.backward([params, value], [pulled, weighted_error * (2.0 * config.value_coef / rows)])
    agent.average(*(part.grad for part in agent.theta))
    agent.watch("optimiser")
    norm = clip_norm_(agent.theta, config.max_grad_norm)
    if not math.isfinite(norm):
        raise TrainingDiverged(
            f"the gradient is not finite after {agent.steps} steps; lower the learning rates or normalise"
        )
    factor = agent.schedule_factor(config.lr_schedule)
    agent.policy_optimizer.step(factor)
    agent.value_optimizer.step(factor)
    return {
        "losses/value": value_loss,
        "policy/grad_norm": norm,
        "policy/learning_rate": config.policy_lr * factor,
    }
