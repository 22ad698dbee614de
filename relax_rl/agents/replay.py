"""Earlier rollouts, from which the critics learn beside the present one."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relax_rl.agents.batch import Batch

__all__ = ["ValueReplay"]

_NAMES = ("obs", "return", "weight", "action")


class ValueReplay:
    """Observations and returns of the last few rollouts, as they were when they were collected.

    The noise of V's gradient falls with the rows it is taken over. Returns bootstrap from V as it was and belong to
    policies a few updates old; both move slowly against that noise. Nothing of this biases the policy's gradient, which
    may have any function of the state as its baseline.

    Args:
        size: earlier rollouts that are kept.
        actions: whether what was done is kept too, for a critic of actions, whose targets are the same returns.
    """

    def __init__(self, size: int, *, actions: bool = False) -> None:
        self._rollouts: deque[tuple[Tensor, ...]] = deque(maxlen=size)
        self._oldest: tuple[Tensor, ...] | None = None
        self._names = _NAMES if actions else _NAMES[:-1]

    def join(self, batch: Batch, unit: float, rollout: object = None, params: object = None) -> Batch:
        """A rollout with those before it; it is kept for those to come.

        As long as there are fewer before it than are kept, it takes their place itself, which changes no mean.

        Args:
            batch: all its rows.
            unit: what raw rewards were multiplied by on their way to the batch's returns.
            rollout, params: what `RolloutReplay` asks for beside them.
        """
        own: tuple[Tensor, ...] = (batch.obs, batch.return_ / unit, batch.weight, batch.action)[: len(self._names)]
        earlier = [rows for rows in self._rollouts if rows[0].shape == own[0].shape]
        size = self._rollouts.maxlen or 0
        earlier += [own] * (size - len(earlier))
        self._oldest = self._rollouts[0] if len(self._rollouts) == size else None
        self._rollouts.append(own)
        past = [torch.stack([x.to(batch.obs.device) for x in each]) for each in zip(*earlier, strict=True)]
        found: dict[str, Any] = {f"past_{name}": x for name, x in zip(self._names, past, strict=True)}
        found["past_return"] = found["past_return"] * unit
        if "past_action" in found:
            found["past_worth"] = found["past_return"]
        return replace(batch, **found)

    def forget_last(self) -> None:
        """Keep the rollout that joined last for no later one, and in its place the one that it has put out."""
        self._rollouts.pop()
        if self._oldest is not None:
            self._rollouts.appendleft(self._oldest)

    def state_dict(self) -> dict[str, Tensor]:
        return {
            f"{number}.{name}": x
            for number, rollout in enumerate(self._rollouts)
            for name, x in zip(self._names, rollout, strict=True)
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave, the latest of it that have a place; of a state that holds nothing, as older
        checkpoints do, begin anew.
        """
        self._rollouts.clear()
        for number in itertools.takewhile(lambda k: f"{k}.{self._names[-1]}" in state, itertools.count()):
            self._rollouts.append(tuple(state[f"{number}.{name}"] for name in self._names))
