"""Earlier rollouts, from which the value function learns beside the present one."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import torch
from torch import Tensor

from relax_rl.agents.batch import Batch

__all__ = ["ValueReplay"]


class ValueReplay:
    """Observations and returns of the last few rollouts, as they were when they were collected.

    The noise of V's gradient falls with the rows it is taken over. Returns bootstrap from V as it was and belong to
    policies a few updates old; both move slowly against that noise. Nothing of this biases the policy's gradient, which
    may have any function of the state as its baseline.

    It is no part of a checkpoint: a run that goes on after a stop fills it anew.

    Args:
        size: earlier rollouts that are kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._rollouts: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=size)

    def join(self, batch: Batch, obs: Tensor, unit: float) -> Batch:
        """A rollout with those before it, and keep it for those to come.

        As long as there are fewer before it than are kept, it takes their place itself, which changes no mean.

        Args:
            batch: all its rows.
            obs: `[B, ...]` normalised observations.
            unit: what raw rewards were multiplied by on their way to the batch's returns.
        """
        own = (obs, batch.return_ / unit, batch.weight)
        earlier = [rows for rows in self._rollouts if rows[0].shape == obs.shape]
        earlier += [own] * (self._size - len(earlier))
        self._rollouts.append(own)
        past_obs, past_return, past_weight = (torch.stack(each) for each in zip(*earlier, strict=True))
        return replace(batch, past_obs=past_obs, past_return=past_return * unit, past_weight=past_weight)
