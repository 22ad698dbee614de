"""What an update sees of a rollout: flat rows, normalised, with the distribution's parameters as a leaf."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from relax_rl.agents.shares import Share
from relax_rl.critics import explained_variance
from relax_rl.distributions import Distribution
from relax_rl.estimators import reinforce_gradient, unclipped, weighted_moments
from relax_rl.rollouts import Rollout, gae, successor_values
from relax_rl.settings.config import AgentConfig

__all__ = ["Batch", "batch_statistics", "make_batch"]

_PAST = ("past_obs", "past_return", "past_weight")


@dataclass(frozen=True)
class Batch:
    """`B = T * N` rows of experience.

    Attributes:
        features: `[B, F]` description of the state for the surrogate, without graph; for a compiled step `[B, ...]`
            normalised observations, of which it makes that.
        action: `[B, ...]` outcomes.
        noise: `[B, ...]` the base noise each was made from.
        advantage: `[B]` generalised advantage estimates with V from before the update, times `scale`.
        return_: `[B]` advantage + value, what V is regressed on.
        weight: `[B]` 1 for a transition, 0 for a row made up by autoreset.
        dist: the action distribution at a leaf: `dist.params` `[B, P]` has no graph behind it.
        scale: what advantages were multiplied by, the same for every term of an estimate.
        old_log_prob: `[B]` log-probability of each action under the policy that took it, where `dist` is another one.
        clip_range: PPO's, of the ratio of the two.
        share: which rows these are among those of all workers; None if they are all there are.
        control_scale: how much of the surrogate enters the estimate, between 0 and 1; None for all of it.
        past_obs, past_return, past_weight: `[K, B, ...]`, `[K, B]`, `[K, B]` of earlier rollouts, from which V learns as
            from this one; None if it learns from this one alone.
    """

    features: Tensor
    action: Tensor
    noise: Tensor
    advantage: Tensor
    return_: Tensor
    weight: Tensor
    dist: Distribution
    scale: float = 1.0
    old_log_prob: Tensor | None = None
    clip_range: float = math.inf
    share: Share | None = None
    control_scale: Tensor | None = None
    past_obs: Tensor | None = None
    past_return: Tensor | None = None
    past_weight: Tensor | None = None

    @property
    def num_rows(self) -> int:
        """Rows of all workers."""
        return len(self.weight) if self.share is None else self.share.rows

    @property
    def divisor(self) -> float:
        """What makes a sum over these rows a mean over all workers' rows, once it is averaged over the workers."""
        return len(self.weight) if self.share is None else self.share.rows / self.share.workers

    def select(
        self,
        index: Tensor,
        *,
        dist: Distribution,
        features: Tensor,
        noise: Tensor,
        old_log_prob: Tensor,
        clip_range: float,
        share: Share | None = None,
    ) -> Batch:
        """Some rows under a later policy.

        Args:
            index: `[b]` which; the same of each earlier rollout.
            dist: `[b, P]` their action distribution at a leaf.
            features: `[b, F]` their states.
            noise: `[b, ...]` from which `dist` makes their actions.
            old_log_prob: `[B]` of all rows.
            clip_range: PPO's.
            share: which rows of all workers' minibatch these are.
        """
        past = {name: x[:, index] for name in _PAST if (x := getattr(self, name)) is not None}
        return replace(
            self,
            **past,
            features=features,
            action=self.action[index],
            noise=noise,
            advantage=self.advantage[index],
            return_=self.return_[index],
            weight=self.weight[index],
            dist=dist,
            old_log_prob=old_log_prob[index],
            clip_range=clip_range,
            share=share,
        )

    @cached_property
    def ratio(self) -> Tensor | None:
        """`[B]` pi(a | s) / pi_old(a | s); None where the policy is the one that acted."""
        if self.old_log_prob is None:
            return None
        with torch.no_grad():
            return torch.exp(self.dist.log_prob(self.action) - self.old_log_prob)

    @cached_property
    def kept(self) -> Tensor | None:
        """`[B]` 0 where PPO clips (Schulman et al. 2017, eq. 7), else 1; None where nothing is clipped."""
        if self.ratio is None or not math.isfinite(self.clip_range):
            return None
        return unclipped(self.advantage, self.ratio, self.clip_range).to(self.advantage.dtype)

    def signal(self, value: Tensor) -> Tensor:
        """`[B]` values without those of clipped rows."""
        return value if self.kept is None else value * self.kept

    def reweighted(self, gradient: Tensor) -> Tensor:
        """`[B, P]` gradients from actions of the old policy as gradients of the present one."""
        return gradient if self.ratio is None else gradient * self.ratio.unsqueeze(-1)

    @cached_property
    def score(self) -> Tensor:
        """`[B, P]` dlog pi(a | s) at `dist.params`, a constant."""
        return self.dist.score(self.action)

    @cached_property
    def entropy(self) -> Tensor:
        """`[B]` entropy of the policy, differentiable in `dist.params`."""
        return self.dist.entropy()

    @cached_property
    def a2c_gradient(self) -> Tensor:
        """`[B, P]` A dlog pi(a | s), what A2C (or PPO) estimates from these rows."""
        signal = self.signal(self.advantage)
        return self.reweighted(reinforce_gradient(signal, None, self.dist.params, score=self.score))


def make_batch(
    rollout: Rollout,
    dist: Distribution,
    value: Tensor,
    features: Tensor,
    *,
    config: AgentConfig,
    reward_scale: float = 1.0,
    scale: float = 1.0,
    share: Share | None = None,
) -> Batch:
    """The rows of a rollout, with their advantages and returns, on the device of `value`.

    Args:
        rollout: `T` steps of `N` environments, on the host, where advantages are summed up.
        dist: the action distribution of its `B = T * N` rows at a leaf.
        value: `[(T + 1) N + K]` V of all observations, then of the final ones, without graph.
        features: `[B, F]`.
        config: says gamma, lambda and where rewards are clipped.
        reward_scale: factor of the clipped rewards.
        scale: factor of the advantages.
        share: which rows these are among those of all workers.
    """
    steps, num_envs, device = rollout.num_steps, rollout.num_envs, value.device
    body = (steps + 1) * num_envs
    on_host = value.cpu()
    all_values = on_host[:body].unflatten(0, (steps + 1, num_envs))
    reward = rollout.reward
    if math.isfinite(config.reward_clip):
        reward = reward.clamp(-config.reward_clip, config.reward_clip)
    advantage = gae(
        reward * reward_scale,
        all_values[:-1],
        successor_values(all_values, on_host[body:], rollout.final_index),
        rollout.terminated,
        rollout.truncated,
        rollout.valid,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
    )
    advantage = advantage.flatten().to(device)
    return Batch(
        features=features,
        action=rollout.action.flatten(0, 1).to(device),
        noise=rollout.noise.flatten(0, 1).to(device),
        advantage=advantage * scale,
        return_=advantage + value[: steps * num_envs],
        weight=rollout.valid.flatten().to(device, advantage.dtype),
        dist=dist,
        scale=scale,
        share=share,
    )


def batch_statistics(batch: Batch, value: Tensor, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Moments over the rows of a batch, all taken at once.

    Args:
        batch: as the update saw it.
        value: `[B]` V from before the update.
        gradients: `[B, P]` gradients, by the name under which their variance is reported.
    """
    columns = torch.stack([batch.entropy.detach(), batch.return_, batch.return_ - value], 1)
    mean, variance = weighted_moments(torch.cat([columns, *gradients.values()], 1), batch.weight)
    of_scalars, of_gradients = variance[:3], variance[3:].unflatten(0, (len(gradients), -1)).sum(1)
    return {
        "policy/entropy": mean[0],
        "value/explained_variance": explained_variance(of_scalars[1], of_scalars[2]),
        **{f"estimate/{name}": x for name, x in zip(gradients, of_gradients.unbind(), strict=True)},
    }
