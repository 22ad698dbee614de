"""Recent rollouts, kept for a surrogate to learn from after policy and value function have taken their steps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relax_rl.agents.batch import Batch
from relax_rl.agents.compiled import with_graph
from relax_rl.agents.minibatches import noise_for
from relax_rl.agents.shares import Share, minibatches
from relax_rl.rollouts import Rollout

if TYPE_CHECKING:
    from relax_rl.agents.base import ActorCritic

__all__ = ["Replay"]

MOST_RATIO = 2.0
"""Where the ratio of new to old probability is cut: rows of an old policy count as the present one would meet them, as
far as a few of them do not drown the rest."""


@dataclass(frozen=True)
class _Kept:
    """A rollout, and what its rows were when the policy learned from them.

    Attributes:
        rollout: of `B` steps.
        log_prob: `[B]` of the actions.
        advantage: `[B]`.
    """

    rollout: Rollout
    log_prob: Tensor
    advantage: Tensor


class Replay:
    """The last few rollouts, seen as the agent would see them now.

    What a surrogate takes away is mostly V's error. So its advantages are those under V as it is after its steps, by
    default: an error that V has just corrected would be corrected twice.

    It is no part of a checkpoint: a run that goes on after a stop fills it anew.

    Args:
        size: rollouts that are kept.
        anew: whether advantages are those under the present V, or those that the policy learned from, in their unit.
    """

    def __init__(self, size: int, *, anew: bool = True) -> None:
        self._rollouts: deque[_Kept] = deque(maxlen=size)
        self.anew = anew

    def __len__(self) -> int:
        return len(self._rollouts)

    def add(self, rollout: Rollout, batch: Batch) -> None:
        """Keep a rollout, and forget the oldest beyond those that are kept.

        Args:
            rollout: of `B` steps.
            batch: all its rows, under the policy that acted.
        """
        self._rollouts.append(_Kept(rollout, batch.dist.log_prob(batch.action).detach(), batch.advantage))

    def batches(self, agent: ActorCritic, count: int) -> Iterator[Batch]:
        """Shuffled minibatches of all rows under the present policy and V, each with fresh noise behind its actions.

        Args:
            agent: says how large minibatches are: `minibatch_size`, or a rollout.
            count: how many; rows come again once all have been there.
        """
        with torch.no_grad():
            seen = [_at_present(agent, kept.rollout) for kept in self._rollouts]
            ratios = [
                torch.exp(batch.dist.log_prob(batch.action) - kept.log_prob)
                for batch, kept in zip(seen, self._rollouts, strict=True)
            ]
            if not self.anew:
                seen = [
                    replace(batch, advantage=kept.advantage) for batch, kept in zip(seen, self._rollouts, strict=True)
                ]
        params = torch.cat([batch.dist.params.detach() for batch in seen])
        features, action, advantage = (
            torch.cat([getattr(batch, name) for batch in seen]) for name in ("features", "action", "advantage")
        )
        weight = torch.cat(
            [batch.weight * ratio.clamp(max=MOST_RATIO) for batch, ratio in zip(seen, ratios, strict=True)]
        )
        last, together = seen[-1], _together([batch.share for batch in seen])
        size = agent.config.minibatch_size or last.num_rows
        while True:
            for index, share in minibatches(len(weight), size, together, agent.generator):
                if not count:
                    return
                count -= 1
                dist = last.dist.with_params(params[index].requires_grad_())
                yield replace(
                    last,
                    features=features[index],
                    action=action[index],
                    noise=noise_for(dist, action[index], agent.generator, share),
                    advantage=advantage[index],
                    return_=torch.full_like(advantage[index], math.nan),  # V learns elsewhere
                    weight=weight[index],
                    dist=dist,
                    share=share,
                )


def _at_present(agent: ActorCritic, rollout: Rollout) -> Batch:
    """A rollout as an update by eager code would see it now."""
    batch = agent.batch(rollout)[0]
    return with_graph(agent, batch)[0] if agent.compiled is not None and agent.shared_torso else batch


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
