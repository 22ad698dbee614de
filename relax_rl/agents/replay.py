"""Recent rollouts, kept for a surrogate to learn from after the policy has taken its steps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relax_rl.agents.batch import Batch
from relax_rl.agents.forward import Networks
from relax_rl.agents.minibatches import noise_for
from relax_rl.agents.shares import Share, minibatches

if TYPE_CHECKING:
    from relax_rl.agents.base import ActorCritic

__all__ = ["Replay"]

MOST_RATIO = 2.0
"""Where the ratio of new to old probability is cut: rows of an old policy count as the present one would meet them, as
far as a few of them do not drown the rest."""


@dataclass(frozen=True)
class _Rows:
    """A rollout's rows, under the policy that acted.

    Attributes:
        obs: `[B, ...]` as the networks took them.
        action: `[B, ...]`.
        advantage: `[B]` in the unit of raw rewards.
        weight: `[B]`.
        log_prob: `[B]` of the actions.
        share: which of all workers' rows these are.
    """

    obs: Tensor
    action: Tensor
    advantage: Tensor
    weight: Tensor
    log_prob: Tensor
    share: Share | None


class Replay:
    """The rows of the last few rollouts.

    It is no part of a checkpoint: a run that goes on after a stop fills it anew.

    Args:
        size: rollouts that are kept.
    """

    def __init__(self, size: int) -> None:
        self._rollouts: deque[_Rows] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._rollouts)

    def add(self, batch: Batch, obs: Tensor, unit: float) -> None:
        """Keep a rollout, and forget the oldest beyond those that are kept.

        Args:
            batch: all its rows, under the policy that acted.
            obs: `[B, ...]` normalised observations.
            unit: what raw rewards were multiplied by on their way to the batch's advantages.
        """
        log_prob = batch.dist.log_prob(batch.action).detach()
        rows = _Rows(obs, batch.action, batch.advantage / unit, batch.weight, log_prob, batch.share)
        self._rollouts.append(rows)

    def batches(self, agent: ActorCritic, batch: Batch, networks: Networks, unit: float, count: int) -> Iterator[Batch]:
        """Shuffled minibatches of all rows under the present policy, each with fresh noise behind its actions.

        Args:
            agent: says how large minibatches are: `minibatch_size`, or a rollout.
            batch: of the last rollout.
            networks: the agent's.
            unit: of its advantages, in which all are given.
            count: how many; rows come again once all have been there.
        """
        rollouts = list(self._rollouts)
        obs, action, advantage, weight, log_prob = (
            torch.cat([getattr(rows, name) for rows in rollouts])
            for name in ("obs", "action", "advantage", "weight", "log_prob")
        )
        together = _together([rows.share for rows in rollouts])
        size = agent.config.minibatch_size or batch.num_rows
        while True:
            for index, share in minibatches(len(weight), size, together, agent.generator):
                if not count:
                    return
                count -= 1
                with torch.no_grad():
                    params, _, features = networks(obs[index], len(index))
                    dist = batch.dist.with_params(params.requires_grad_())
                    ratio = torch.exp(dist.log_prob(action[index]) - log_prob[index])
                yield replace(
                    batch,
                    features=features,
                    action=action[index],
                    noise=noise_for(dist, action[index], agent.generator, share),
                    advantage=advantage[index] * unit,
                    return_=torch.full_like(weight[index], math.nan),  # V learns elsewhere
                    weight=weight[index] * ratio.clamp(max=MOST_RATIO),
                    dist=dist,
                    share=share,
                )


def _together(shares: list[Share | None]) -> Share | None:
    """The share of several rollouts' rows, one after the other, among those of all workers."""
    if any(share is None for share in shares):
        return None
    known = [share for share in shares if share is not None]
    places, rows = [], 0
    for share in known:
        places.append(share.own + rows)
        rows += share.rows
    return Share(rows, torch.cat(places), known[0].workers)
