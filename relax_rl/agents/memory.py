"""Where the sequences of recurrent networks begin, and with what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relax_rl.agents.shards import Shard
from relax_rl.networks.memory import RecurrentTorso, through_time

__all__ = ["Memory", "features_through_time", "sequence_minibatches"]


@dataclass(frozen=True)
class Memory:
    """Where the sequences of a rollout begin, and with what.

    Attributes:
        state: `[N, S]` of the policy, then of a value function with a memory of its own, before the first row.
        starts: `[T, N]` bool, where an episode begins, and the state is forgotten; a rollout's has a row for its last
            observations too.
        final_index: `[K, 2]` (t, n) of the row that each last observation of a truncated episode follows.
    """

    state: Tensor
    starts: Tensor
    final_index: Tensor | None = None

    def first(self, steps: int) -> Memory:
        """Of that many rows, and of nothing that only bootstraps."""
        return Memory(self.state, self.starts[:steps])

    def select(self, index: Tensor) -> Memory:
        """Of some environments `[n]`."""
        return Memory(self.state[index], self.starts[:, index])

    def to(self, device: torch.device) -> Memory:
        final = None if self.final_index is None else self.final_index.to(device)
        return Memory(self.state.to(device), self.starts.to(device), final)


def features_through_time(torso: Any, obs: Tensor, state: Tensor, memory: Memory) -> Tensor:
    """Features of the rows and of the last observations; `state` is that of this torso, see `through_time`."""
    if isinstance(torso, RecurrentTorso):
        return through_time(torso, obs, state, memory.starts, memory.final_index)
    found: Tensor = torso(obs)
    return found


def sequence_minibatches(
    shard: Shard, steps: int, size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Shard]]:
    """One epoch of minibatches of whole environments' sequences, shuffled over all workers; see `minibatches`.

    Args:
        shard: `[T, N]` rows, flat.
        steps: T.
        size: rows of a minibatch over all workers, of which as many environments are taken as fit, one at least; 0 for all.
        generator: in the same state on every worker.

    Yields:
        `[T n]` which of the worker's own rows, step by step, and what shard of the minibatch they are.
    """
    total = shard.rows // steps
    device = generator.device
    order = torch.randperm(total, generator=generator, device=device)
    time = torch.arange(steps, device=device).unsqueeze(-1)
    for envs in order.split(max(1, size // steps) if size else total):
        if shard.own is None:
            yield (time * total + envs).flatten(), Shard(steps * len(envs))
            continue
        num_own = len(shard.own) // steps
        local = torch.full((total,), -1, device=device)
        local[shard.own[:num_own]] = torch.arange(num_own, device=device)
        mine = (local[envs] >= 0).nonzero().flatten()
        index = (time * num_own + local[envs[mine]]).flatten()
        yield index, Shard(steps * len(envs), (time * len(envs) + mine).flatten(), shard.workers)
