"""Earlier rollouts, from which the value function learns beside the present one."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from relax_rl.agents.batch import Batch

__all__ = ["ValueReplay"]

_NAMES = ("obs", "return", "weight")


class ValueReplay:
    """Observations and returns of the last few rollouts, as they were when they were collected.

    The noise of V's gradient falls with the rows it is taken over. Returns bootstrap from V as it was and belong to
    policies a few updates old; both move slowly against that noise. Nothing of this biases the policy's gradient, which
    may have any function of the state as its baseline.

    Args:
        size: earlier rollouts that are kept.
    """

    def __init__(self, size: int) -> None:
        self._rollouts: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=size)

    def join(self, batch: Batch, unit: float, rollout: object = None, params: object = None) -> Batch:
        """A rollout with those before it; it is kept for those to come.

        As long as there are fewer before it than are kept, it takes their place itself, which changes no mean.

        Args:
            batch: all its rows.
            unit: what raw rewards were multiplied by on their way to the batch's returns.
            rollout, params: what `RolloutReplay` asks for beside them.
        """
        own = (batch.obs, batch.return_ / unit, batch.weight)
        earlier = [rows for rows in self._rollouts if rows[0].shape == own[0].shape]
        size = self._rollouts.maxlen or 0
        earlier += [own] * (size - len(earlier))
        self._rollouts.append(own)
        past_obs, past_return, past_weight = (
            torch.stack([x.to(batch.obs.device) for x in each]) for each in zip(*earlier, strict=True)
        )
        return replace(batch, past_obs=past_obs, past_return=past_return * unit, past_weight=past_weight)

    def forget_last(self) -> None:
        """Keep the rollout that joined last for no later one."""
        self._rollouts.pop()

    def state_dict(self) -> dict[str, Tensor]:
        return {
            f"{number}.{name}": x
            for number, rollout in enumerate(self._rollouts)
            for name, x in zip(_NAMES, rollout, strict=True)
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave; of a state that holds nothing, as older checkpoints do, begin anew."""
        self._rollouts.clear()
        while f"{len(self._rollouts)}.{_NAMES[0]}" in state and len(self._rollouts) < (self._rollouts.maxlen or 0):
            number = len(self._rollouts)
            obs, return_, weight = (state[f"{number}.{name}"] for name in _NAMES)
            self._rollouts.append((obs, return_, weight))
