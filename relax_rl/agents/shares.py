"""One worker's share of a batch that several have together, and noise that does not depend on how it is shared out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from relax_rl.distributed import Workers
from relax_rl.distributions import Distribution

__all__ = ["Share", "columns", "minibatches", "sample_noise", "share_of_rollout"]


@dataclass(frozen=True)
class Share:
    """Which rows of a batch a worker has.

    Attributes:
        rows: of all workers together.
        own: `[B]` where its own stand among them.
        workers: how many there are.
    """

    rows: int
    own: Tensor
    workers: int


def columns(workers: Workers, num_envs: int) -> slice:
    """The columns of a worker's environments among those of all, when each has `num_envs`."""
    return slice(workers.rank * num_envs, (workers.rank + 1) * num_envs)


def share_of_rollout(workers: Workers, num_steps: int, num_envs: int, device: torch.device) -> Share | None:
    """The share of one worker's `T * N` rows in a rollout of `T` steps of all workers' environments; None if alone."""
    if workers.count == 1:
        return None
    rows = num_steps * workers.count * num_envs
    place = torch.arange(rows, device=device).view(num_steps, -1)
    return Share(rows, place[:, columns(workers, num_envs)].flatten(), workers.count)


def minibatches(
    rows: int, size: int, share: Share | None, generator: torch.Generator
) -> Iterator[tuple[Tensor, Share | None]]:
    """One epoch of shuffled minibatches: all workers' rows are shuffled as one, and each takes its own out.

    Args:
        rows: B, a worker's own.
        size: of a minibatch over all workers, 0 for all rows at once.
        share: of the B rows.
        generator: in the same state on every worker.

    Yields:
        `[b]` which of the B rows, and what share of the minibatch they are.
    """
    total = rows if share is None else share.rows
    order = torch.randperm(total, generator=generator, device=generator.device)
    for index in order.split(size or total):
        if share is None:
            yield index, None
            continue
        local = torch.full((total,), -1, device=order.device)
        local[share.own] = torch.arange(rows, device=order.device)
        mine = (local[index] >= 0).nonzero().flatten()
        yield local[index[mine]], Share(len(index), mine, share.workers)


def sample_noise(dist: Distribution, generator: torch.Generator, share: Share | None = None) -> Tensor:
    """`[B, ...]` base noise for the rows of a batch: drawn for all workers' rows, then a worker's own are taken out.

    Every worker's generator so goes on alike, and each row gets the noise that it would get on a single worker.
    """
    if share is None:
        return dist.sample_noise(generator)
    everyone = dist.with_params(dist.params.new_zeros((share.rows, dist.params.shape[-1])))
    return everyone.sample_noise(generator)[share.own]
