"""Random numbers for a batch of images: drawn, shared out among several processes, or handed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from relax_rl.compute.distributed import ALONE, Workers

__all__ = ["GivenNoise", "Noise", "RecordedNoise", "own_rows"]


class Noise:
    """Random numbers by a generator, for the rows of a batch.

    Several workers hold generators in the same state: the numbers of all rows of the batch are drawn, and a worker keeps
    those of its own, so that every row gets the noise that it would get in a single process.

    Args:
        generator: on the device of the batch.
        workers: who share the batch.
    """

    def __init__(self, generator: torch.Generator, workers: Workers = ALONE) -> None:
        self.generator, self.workers = generator, workers

    def uniform(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """`[*, B, P]` uniform in [0, 1) for the B rows of this worker, on the generator's device."""
        *more, rows, width = shape
        every = (*more, rows * self.workers.count, width)
        drawn = torch.rand(every, generator=self.generator, dtype=dtype, device=self.generator.device)
        if self.workers.count == 1:
            return drawn
        return own_rows(drawn.transpose(0, -2), self.workers).transpose(0, -2).contiguous()

    def logistic(self, shape: Sequence[int], widths: Sequence[int]) -> tuple[Tensor, ...]:
        """Logistic noise `[*, B, P]` for each layer of bits, from one draw; `shape` is `[*, B]`.

        The logit of float32 uniforms: the tails end at 17, beyond which lies a probability of 6e-8, and nothing is
        infinite.
        """
        return torch.split(torch.logit(self.uniform((*shape, sum(widths))), eps=2.0**-25), list(widths), -1)

    def signs(self, shape: Sequence[int], widths: Sequence[int]) -> tuple[Tensor, ...]:
        """Random signs `[*, B, P]`, +-1 with equal probability, for each layer, from one draw."""
        return torch.split(torch.where(self.uniform((*shape, sum(widths))) < 0.5, -1.0, 1.0), list(widths), -1)

    def state_dict(self) -> dict[str, Tensor]:
        """Where the generator stands."""
        return {"state": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state_dict()`."""
        self.generator.set_state(state["state"])


class RecordedNoise(Noise):
    """Notes what is drawn.

    Attributes:
        draws: shape and type of each draw.
        drawn: the numbers.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__(generator)
        self.draws: list[tuple[tuple[int, ...], torch.dtype | None]] = []
        self.drawn: list[Tensor] = []

    def uniform(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        self.draws.append((tuple(shape), dtype))
        self.drawn.append(super().uniform(shape, dtype))
        return self.drawn[-1]


class GivenNoise(Noise):
    """Hands out, in order, numbers that were drawn before."""

    def __init__(self, drawn: Sequence[Tensor]) -> None:
        self._drawn = iter(drawn)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        return next(self._drawn)


def own_rows(batch: Tensor, workers: Workers) -> Tensor:
    """`[B, ...]` of all workers -> `[B / W, ...]`, the part of one of them."""
    rows = len(batch) // workers.count
    return batch[workers.rank * rows : (workers.rank + 1) * rows]
