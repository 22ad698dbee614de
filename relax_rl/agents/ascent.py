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

__all__ = ["clip", "entropy_weight", "move", "pull_back"]


def entropy_weight(agent: ActorCritic) -> float:
    """Weight of the entropy bonus at the present step."""
    return agent.config.entropy_coef * agent.schedule_factor(agent.config.entropy_schedule)


def pull_back(
    agent: ActorCritic, batch: Batch, params: Tensor, value: Tensor, estimate: Tensor, entropy_coef: Tensor | float
) -> Tensor:
    """Pull the estimate back through the policy and regress V on returns, into the gradients of `agent.theta`.

    V's loss is the mean over the rows of the batch and of the earlier rollouts in it, each rollout counting alike.

    Args:
        agent: whose gradients are set.
        batch: rows of a rollout.
        params, value: `[B, P]` and `[B]` of these rows, with their graphs.
        estimate: `[B, P]` of the gradient at `params`, without graph.
        entropy_coef: weight of the entropy bonus.

    Returns:
        The value function's loss on the batch's own rows.
    """
    config, weight = agent.config, batch.weight
    rows = batch.divisor
    ascent = estimate
    if config.entropy_coef:
        ascent = ascent + entropy_coef * torch.autograd.grad(batch.entropy.sum(), batch.dist.params)[0]
    # Rows without weight still count in `rows`: a divisor that depends on the batch would bias the mean.
    pulled = -ascent * (weight / rows)[:, None]
    weighted_error = (value.detach() - batch.return_) * weight
    earlier = 0 if batch.past_obs is None else len(batch.past_obs)
    share = 2.0 * config.value_coef / (rows * (1 + earlier))  # of a row of any rollout in the gradient of V's loss
    for part in agent.theta:
        part.zero_grad()
    torch.autograd.backward([params, value], [pulled, weighted_error * share])
    if batch.past_obs is not None and batch.past_return is not None and batch.past_weight is not None:
        past = agent.value(batch.past_obs.flatten(0, 1))
        error = (past.detach() - batch.past_return.flatten()) * batch.past_weight.flatten()
        torch.autograd.backward([past], [error * share])
    return weighted_error.square().sum() / rows


def clip(agent: ActorCritic) -> float:
    """Average the gradients of `agent.theta` over workers and clip them by their common norm; returns the norm before."""
    agent.average(*(part.grad for part in agent.theta))
    return clip_norm_(agent.theta, agent.config.max_grad_norm)


def move(agent: ActorCritic, norm: float) -> dict[str, Tensor | float]:
    """Step along the clipped gradients of `agent.theta`.

    Args:
        agent: whose policy and value function take a step.
        norm: of the gradients before they were clipped.

    Returns:
        Metrics.

    Raises:
        TrainingDiverged: if a gradient is not finite; nothing has moved then.
    """
    agent.watch("optimiser")
    if not math.isfinite(norm):
        raise TrainingDiverged(
            f"the gradient is not finite after {agent.steps} steps; lower the learning rates or normalise"
        )
    factor = agent.schedule_factor(agent.config.lr_schedule)
    agent.policy_optimizer.step(factor)
    agent.value_optimizer.step(factor)
    return {"policy/grad_norm": norm, "policy/learning_rate": agent.config.policy_lr * factor}
