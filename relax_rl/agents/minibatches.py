"""Several steps on one rollout: epochs of minibatches within a trust region around the policy that acted (PPO)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from relax_rl.agents.batch import Batch
from relax_rl.agents.forward import Networks
from relax_rl.agents.shares import Share, minibatches, sample_noise
from relax_rl.distributions import Distribution

if TYPE_CHECKING:
    from relax_rl.agents.base import ActorCritic

__all__ = ["minibatch_steps", "noise_for"]


def minibatch_steps(
    agent: ActorCritic, batch: Batch, obs: Tensor, networks: Networks
) -> tuple[dict[str, Tensor | float], int]:
    """Pass over a rollout in shuffled minibatches, each one step of policy and value function.

    Advantages and returns stay those from before the first step. Every gradient is that of the present policy, by the
    ratio of its probabilities to those of the policy that acted (Schulman et al. 2017), and the noise behind an action
    is drawn anew from its law given that action: what made the action at first need not lead to it any more.

    Args:
        agent: takes the steps; its settings say how many epochs, how large minibatches, and how far the policy may go.
        batch: the rollout, under the policy that acted.
        obs: `[B, ...]` normalised observations.
        networks: the agent's.

    Returns:
        The metrics of the first step, whose estimates are of the policy that acted, with the loss of the last, and
        the policy's KL divergence from the one that acted; and how many steps were taken.
    """
    config, rows = agent.config, len(batch.weight)
    old_log_prob = batch.dist.log_prob(batch.action).detach()
    first: dict[str, Any] = {}
    taken = 0
    for epochs in range(1, config.epochs + 1):  # noqa: B007
        divergence, clipped = [], []
        for index, share in minibatches(rows, config.minibatch_size, batch.share, agent.generator):
            agent.watch("advantage")
            params, value, features = networks(obs[index], len(index))
            dist = batch.dist.with_params(params.detach().requires_grad_())
            part = batch.select(
                index,
                dist=dist,
                features=features if agent.compiled is None else obs[index],
                noise=noise_for(dist, batch.action[index], agent.generator, share),
                old_log_prob=old_log_prob,
                clip_range=config.clip_range,
                share=share,
            )
            metrics = agent.step(part, params, value)
            first = first or metrics
            taken += 1
            divergence.append(_divergence(part))
            clipped.append(1.0 - part.kept.mean() if part.kept is not None else torch.zeros(()))
        total, weight = (torch.stack(column) for column in zip(*divergence, strict=True))
        agent.average(total, weight)
        kl = (total / weight.clamp(min=1.0 / agent.workers.count)).mean()
        if math.isfinite(config.target_kl) and float(kl) > config.target_kl:
            break
    last = {name: x for name, x in metrics.items() if name.startswith("losses/")}
    of_passes = {"policy/kl": kl, "policy/clipped": torch.stack(clipped).mean(), "policy/epochs": float(epochs)}
    return first | last | of_passes, taken


def noise_for(dist: Distribution, action: Tensor, generator: torch.Generator, share: Share | None = None) -> Tensor:
    """`[B, ...]` base noise from which the distribution makes these actions, drawn from its law given them.

    Args:
        dist: `[B, P]`.
        action: `[B, ...]`.
        generator: of the draw.
        share: which rows of all workers' batch these are.
    """
    with torch.no_grad():
        relax_given = getattr(dist, "relax_given", None)
        if relax_given is None:
            return dist.noise_of(action)
        return dist.noise_of(relax_given(action, sample_noise(dist, generator, share)))


def _divergence(batch: Batch) -> tuple[Tensor, Tensor]:
    """KL(pi_old || pi) from the actions taken, as mean(ratio - 1 - log ratio), which is never negative: sum, rows."""
    assert batch.ratio is not None and batch.old_log_prob is not None
    each = batch.ratio - 1.0 - batch.ratio.clamp(min=1e-30).log()
    return (each * batch.weight).sum(), batch.weight.sum()
