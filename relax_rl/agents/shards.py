"""One worker's rows of a batch that several have together, and noise that does not depend on how it is split up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from relax_rl.compute.distributed import Workers
from relax_rl.distributions import Distribution

__all__ = ["Shard", "columns", "minibatches", "sample_noise", "shard_of_rollout"]


@dataclass(frozen=True)
class Shard:
    """Which rows of a batch a worker has.

    Attributes:
        rows: of all workers together.
        own: `[B]` where its own stand among them; None if they are all there are.
        workers: how many there are.
    """

    rows: int
    own: Tensor | None = None
    workers: int = 1

    @property
    def divisor(self) -> float:
        """What makes a sum over a worker's rows a mean over all rows, once it is averaged over the workers."""
        return self.rows / self.workers

    def every_other(self, num_steps: int, device: torch.device) -> Tensor:
        """`[B]` bool, rows of every other environment of all workers', if these are the rows of a rollout."""
        place = torch.arange(self.rows, device=device) if self.own is None else self.own
        return place % (self.rows // num_steps) % 2 == 0


def columns(workers: Workers, num_envs: int) -> slice:
    """The columns of a worker's environments among those of all, when each has `num_envs`."""
    return slice(workers.rank * num_envs, (workers.rank + 1) * num_envs)


def shard_of_rollout(workers: Workers, num_steps: int, num_envs: int, device: torch.device) -> Shard:
    """One worker's `T * N` rows in a rollout of `T` steps of all workers' environments."""
    rows = num_steps * workers.count * num_envs
    if workers.count == 1:
        return Shard(rows)
    place = torch.arange(rows, device=device).view(num_steps, -1)
    return Shard(rows, place[:, columns(workers, num_envs)].flatten(), workers.count)


def minibatches(shard: Shard, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Shard]]:
    """One epoch of shuffled minibatches: all workers' rows are shuffled as one, and each takes its own out.

    Args:
        shard: the rows that are passed over.
        size: of a minibatch over all workers, 0 for all rows at once.
        generator: in the same state on every worker.

    Yields:
        `[b]` which of the worker's own rows, and what shard of the minibatch they are.
    """
    order = torch.randperm(shard.rows, generator=generator, device=generator.device)
    for index in order.split(size or shard.rows):
        if shard.own is None:
            yield index, Shard(len(index))
            continue
        local = torch.full((shard.rows,), -1, device=order.device)
        local[shard.own] = torch.arange(len(shard.own), device=order.device)
        mine = (local[index] >= 0).nonzero().flatten()
        yield local[index[mine]], Shard(len(index), mine, shard.workers)


def sample_noise(dist: Distribution, shard: Shard, generator: torch.Generator) -> Tensor:
    """`[B, ...]` base noise for the rows of a shard: drawn for all workers' rows, then a worker's own are taken out.

    Every worker's generator so goes on alike, and each row gets the noise that it would get on a single worker.

    Args:
        dist: one of the family, at parameters `[*, P]` that do not matter.
        shard: of the rows.
        generator: in the same state on every worker.
    """
    everyone = dist.with_params(dist.params.new_zeros((shard.rows, dist.params.shape[-1])))
    noise = everyone.sample_noise(generator)
    return noise if shard.own is None else noise[shard.own]
