"""Noise for a batch of images that several processes share out among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from relax_rl.distributed import Workers

__all__ = ["SharedGenerator", "draw_shared", "own_generator", "own_rows"]


class SharedGenerator(torch.Generator):
    """A generator in the same state on every worker, from which the noise of all rows of a batch is drawn.

    A worker keeps that of its own rows, so that every row gets the noise that it would get in a single process.

    Attributes:
        workers: who share the batch.
    """

    workers: Workers


def draw_shared(
    draw: Callable[[Sequence[int]], Tensor], shape: Sequence[int], generator: torch.Generator | None
) -> Tensor:
    """`[*, B, P]` noise for a worker's own rows.

    Args:
        draw: from a shape to noise of this shape, by `generator`.
        shape: `[*, B, P]`, B rows.
        generator: where it is shared, the noise is drawn for all workers' rows.
    """
    if not isinstance(generator, SharedGenerator):
        return draw(shape)
    *more, rows, width = shape
    everyone = draw((*more, rows * generator.workers.count, width))
    return own_rows(everyone.transpose(0, -2), generator.workers).transpose(0, -2).contiguous()


def own_rows(batch: Tensor, workers: Workers) -> Tensor:
    """`[B, ...]` of all workers -> `[B / W, ...]`, the part of one of them."""
    rows = len(batch) // workers.count
    return batch[workers.rank * rows : (workers.rank + 1) * rows]


def own_generator(generator: torch.Generator | None, device: torch.device) -> torch.Generator | None:
    """For code that draws for itself: where the generator is shared, one for each worker, seeded from it."""
    if not isinstance(generator, SharedGenerator):
        return generator
    seeds = torch.randint(2**62, (generator.workers.count,), generator=generator, device=generator.device)
    return torch.Generator(device).manual_seed(int(seeds[generator.workers.rank]))
