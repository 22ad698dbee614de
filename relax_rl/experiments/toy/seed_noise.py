"""Several seeds side by side, each with a stream of noise of its own: what a seed draws does not depend on the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from relax_rl.distributions import Bernoulli, Categorical
from relax_rl.distributions.noise import gumbel_noise, logistic_noise

__all__ = ["SeedNoise", "SeededBernoulli", "SeededCategorical", "generators"]

BLOCK = 4096
"""Numbers that a stream draws at a time."""


def generators(seeds: Sequence[int], stream: int) -> list[torch.Generator]:
    """A generator for every seed; those of different streams of one seed are independent."""
    mixed = (np.random.SeedSequence((seed, stream)).generate_state(1, np.uint64).item() for seed in seeds)
    return [torch.Generator().manual_seed(state >> 1) for state in mixed]


class SeedNoise:
    """Streams of standard noise, one a seed: logistic for bits, Gumbel for categories.

    Args:
        seeds: S of them.
        kind: "bits" or "categories".
        stream: which of the seeds' independent streams.
    """

    def __init__(self, seeds: Sequence[int], kind: str, stream: int = 0) -> None:
        self.generators = generators(seeds, stream)
        self._standard = logistic_noise if kind == "bits" else gumbel_noise
        self._drawn = torch.empty(len(seeds), 0)

    def draw(self, shape: Sequence[int]) -> Tensor:
        """`[*, S, P]` noise; each seed takes the next numbers of its stream, in the order of the other dimensions.

        Raises:
            ValueError: the last dimension but one does not count the seeds.
        """
        *lead, seeds, width = shape
        if seeds != len(self.generators):
            raise ValueError(f"noise of shape {list(shape)} is asked for, but there are {len(self.generators)} seeds")
        wanted = math.prod(lead) * width
        if self._drawn.shape[1] < wanted:
            size = BLOCK * math.ceil((wanted - self._drawn.shape[1]) / BLOCK)
            more = torch.stack([self._standard((size,), generator) for generator in self.generators])
            self._drawn = torch.cat([self._drawn, more], 1)
        taken, self._drawn = self._drawn[:, :wanted], self._drawn[:, wanted:]
        return taken.reshape(seeds, *lead, width).movedim(0, -2)


@dataclass(frozen=True)
class SeededBernoulli(Bernoulli):
    """`[*, S, P]` bits whose noise comes from the streams of S seeds, whatever generator is passed."""

    noise: SeedNoise = field(kw_only=True)

    def sample_noise(self, generator: torch.Generator | None = None) -> Tensor:
        return self.noise.draw(self.params.shape)


@dataclass(frozen=True)
class SeededCategorical(Categorical):
    """`[*, S, P]` parameters of categories whose noise comes from the streams of S seeds, whatever generator is passed."""

    noise: SeedNoise = field(kw_only=True)

    def sample_noise(self, generator: torch.Generator | None = None) -> Tensor:
        return self.noise.draw(self.params.shape)
