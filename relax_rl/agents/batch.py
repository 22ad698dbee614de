"""What an update sees of a rollout: flat rows, normalised, with their advantages and returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from relax_rl.agents.memory import Memory
from relax_rl.agents.return_spread import Spread
from relax_rl.agents.returns import gae, values_in_time
from relax_rl.agents.rollouts import Rollout
from relax_rl.agents.shards import Shard
from relax_rl.compute.distributed import Workers
from relax_rl.settings.config import AgentConfig

__all__ = ["MOST_LOG_RATIO", "Batch", "in_unit_of", "make_batch", "standardized"]

MOST_LOG_RATIO = 30.0
"""Of the probabilities of an action under two policies: the exponential of more may overflow, and infinity times a weight of 0 is NaN."""
_NO_VARIANCE = 1e-6
"""Variance of advantages relative to their mean square, below which they are all the same up to rounding."""
_PAST = ("past_obs", "past_return", "past_weight", "past_action", "past_worth", "past_advantage")
_SCALARS = ("advantage_unit", "entropy_coef", "control_scale", "kl_bound", "kl_multiplier", "residual_weight")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`B` rows of experience, and what an update does with them that changes from one to the next.

    Attributes:
        obs: `[B, ...]` observations as the networks take them.
        action: `[B, ...]` outcomes.
        noise: `[B, ...]` the base noise from which the policy that acted made each.
        advantage: `[B]` generalised advantage estimates with V from before the update.
        return_: `[B]` advantage + value, what V is regressed on.
        weight: `[B]` 1 for a transition, 0 for a row made up by autoreset; less than 1 where an old row counts less.
        shard: which rows these are among those of all workers.
        advantage_unit: scalar, what the estimates are divided by, surrogate and all; None for nothing.
        entropy_coef: scalar, the weight of the entropy bonus; None for no bonus.
        control_scale: scalar, how much of the surrogate enters the estimate, between 0 and 1; None for all of it.
        residual_weight: scalar, how much of what the surrogate leaves of the advantage multiplies the score; None for what the
            objective says.
        group: `[B]` bool, rows of every other environment of all workers'; None where nobody tells them apart.
        old_log_prob: `[B]` log-probability of each action under the policy that acted; None where nobody asks for it.
        old_params: `[B, P]` parameters of the distributions of the policy that acted, before any mask; None unless the
            divergence from them is bounded.
        kl_bound: scalar, the bound, in nats; None for none.
        kl_multiplier: scalar, the weight of that divergence; None for none.
        conditional_noise: `[B, ...]` standard noise from which z is drawn given the action, where the policy at hand is
            not the one that acted; None where it is, and for continuous actions.
        mask: `[B, W]` bool, what could be chosen, as rows of `ActionMasks`; None where all could.
        past_obs, past_return, past_weight: `[K, B, ...]`, `[K, B]`, `[K, B]` of earlier rollouts, from which V learns as
            from this one; None if it learns from this one alone.
        past_action, past_worth, past_advantage: `[K, B, ...]`, `[K, B]`, `[K, B]` of these, what was done, what a critic of actions says
            that it is worth, and what V leaves of that; None unless there is such a critic.
        memory: of the `T * N` rows of recurrent networks; None without.
    """

    obs: Tensor
    action: Tensor
    noise: Tensor
    advantage: Tensor
    return_: Tensor
    weight: Tensor
    shard: Shard
    advantage_unit: Tensor | None = None
    entropy_coef: Tensor | None = None
    control_scale: Tensor | None = None
    residual_weight: Tensor | None = None
    group: Tensor | None = None
    old_log_prob: Tensor | None = None
    old_params: Tensor | None = None
    kl_bound: Tensor | None = None
    kl_multiplier: Tensor | None = None
    conditional_noise: Tensor | None = None
    mask: Tensor | None = None
    past_obs: Tensor | None = None
    past_return: Tensor | None = None
    past_weight: Tensor | None = None
    past_action: Tensor | None = None
    past_worth: Tensor | None = None
    past_advantage: Tensor | None = None
    memory: Memory | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        return {name: x for name in _TENSORS if (x := getattr(self, name)) is not None}

    def select(self, index: Tensor, shard: Shard) -> Batch:
        """Some rows.

        Args:
            index: `[b]` which; the same of each earlier rollout. With a memory, whole environments' `[T n]`, step by step.
            shard: which rows of all workers' minibatch these are.
        """
        rows = {
            name: x[:, index] if name in _PAST else x[index]
            for name, x in self.tensors().items()
            if name not in _SCALARS
        }
        memory = self.memory
        if memory is not None:
            memory = memory.select(index[: len(index) // len(memory.starts)])
        return replace(self, shard=shard, memory=memory, **rows)


_TENSORS = tuple(field.name for field in fields(Batch) if field.name not in ("shard", "memory"))


def make_batch(
    rollout: Rollout,
    obs: Tensor,
    value: Tensor,
    *,
    config: AgentConfig,
    shard: Shard,
    reward_scale: float = 1.0,
    bonus: Tensor | None = None,
) -> Batch:
    """The rows of a rollout, with their advantages and returns, on the device of `value`.

    Args:
        rollout: `T` steps of `N` environments, on the host, where advantages are summed up.
        obs: `[B, ...]` its `B = T * N` observations as the networks take them.
        value: `[(T + 1) N + K]` V of all observations, then of the final ones, without graph.
        config: says gamma, lambda and where rewards are clipped.
        shard: which rows these are among those of all workers.
        reward_scale: factor of the clipped rewards.
        bonus: `[B]` what is added to the scaled rewards.
    """
    steps, num_envs, device = rollout.num_steps, rollout.num_envs, value.device
    values, successors = values_in_time(value.cpu(), num_envs, rollout.final_index)
    reward = rollout.reward
    if math.isfinite(config.reward_clip):
        reward = reward.clamp(-config.reward_clip, config.reward_clip)
    reward = reward * reward_scale
    if bonus is not None:
        reward = reward + bonus.view(reward.shape).cpu()
    advantage = gae(
        reward,
        values[:-1],
        successors,
        rollout.terminated,
        rollout.truncated,
        rollout.valid,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
    )
    advantage = advantage.flatten().to(device)
    return Batch(
        obs=obs,
        action=rollout.action.flatten(0, 1).to(device),
        noise=rollout.noise.flatten(0, 1).to(device),
        advantage=advantage,
        return_=advantage + value[: steps * num_envs],
        weight=rollout.valid.flatten().to(device, advantage.dtype),
        shard=shard,
        group=shard.every_other(steps, device) if config.residual_weight == "adaptive" else None,
        mask=None if rollout.mask is None else rollout.mask.flatten(0, 1).to(device),
        memory=None if rollout.memory is None else rollout.memory.first(steps).to(device),
    )


def in_unit_of(spread: Spread, batch: Batch, signal: str, reward_unit: float, workers: Workers) -> Batch:
    """The rows with the spread of earlier rollouts' signals as the unit of the estimates; the first rollout has its own.

    Args:
        spread: of raw signals, which is told of these.
        batch: the rows of a rollout.
        signal: name of what multiplies the score, advantage or return_.
        reward_unit: what raw rewards were multiplied by.
        workers: all of them.
    """
    spread.look_at(getattr(batch, signal) / reward_unit, batch.weight, workers)
    return replace(batch, advantage_unit=batch.weight.new_tensor(spread.value * reward_unit))


def standardized(batch: Batch, workers: Workers) -> Batch:
    """The rows with advantages of mean 0, and their deviation as the unit of the estimates, over the rows of all workers.

    A single row keeps its advantage, and advantages that are all the same their unit: a surrogate's part of the estimates
    would otherwise be divided by nothing.
    """
    advantage, weight = batch.advantage, batch.weight
    moments = torch.stack([weight.sum(), advantage @ weight, advantage.square() @ weight])
    if workers.count > 1:
        workers.average_(moments)
    rows = moments[0].clamp(min=1.0 / workers.count)
    mean, square = moments[1] / rows, moments[2] / rows
    variance = square - mean.square()
    unit = torch.where(variance > _NO_VARIANCE * square, variance.clamp(min=0.0).sqrt() + 1e-8, 1.0)
    mean = torch.where(moments[0] * workers.count > 1.5, mean, 0.0)
    if batch.past_advantage is not None:
        batch = replace(batch, past_advantage=batch.past_advantage - mean)
    return replace(batch, advantage=(advantage - mean) * (weight > 0), advantage_unit=unit)
