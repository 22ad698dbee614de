"""What is subtracted from f before it multiplies the score: a moving mean, or a function of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relax_rl.estimators.score import nvil_signal

__all__ = ["Baseline", "Centred", "Centring", "InputBaseline", "MovingMoments", "moments_of"]

DECAY = 0.9
"""Weight of the past in moving moments, from one batch to the next."""

Baseline = Literal["none", "moving-average", "input"]


class MovingMoments(nn.Module):
    """Exponential moving mean and variance of a learning signal, as buffers; the start is not biased towards zero."""

    weight: Tensor
    mean_sum: Tensor
    square_sum: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "mean_sum", "square_sum"):
            self.register_buffer(name, torch.zeros(()))

    @property
    def mean(self) -> Tensor:
        """0 until a batch was seen."""
        return self.mean_sum / self.weight.clamp(min=torch.finfo(self.weight.dtype).tiny)

    @property
    def std(self) -> Tensor:
        """0 until a batch was seen."""
        square = self.square_sum / self.weight.clamp(min=torch.finfo(self.weight.dtype).tiny)
        return (square - self.mean.square()).clamp(min=0.0).sqrt()

    @torch.no_grad()
    def update(self, moments: Tensor) -> None:
        """Take in the mean and the mean square `[2]` of a batch, after the estimate that used the mean."""
        share = 1.0 - DECAY
        self.weight.lerp_(torch.ones_like(self.weight), share)
        self.mean_sum.lerp_(moments[0], share)
        self.square_sum.lerp_(moments[1], share)


def moments_of(signal: Tensor) -> Tensor:
    """`[2]` mean and mean square."""
    return torch.stack([signal.mean(), signal.square().mean()])


class InputBaseline(nn.Module):
    """`[B, D]` images -> `[B]`: one layer of 100 tanh units (Mnih and Gregor 2014)."""

    def __init__(self, size: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        width = 100
        bound = math.sqrt(6.0 / (size + width))
        self.weight = nn.Parameter(torch.empty(width, size).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.zeros(width))
        self.out = nn.Parameter(torch.zeros(width))
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, self.weight, self.bias)) @ self.out + self.shift


class Centred(NamedTuple):
    """A learning signal `[B]` without graph, what fits the function of the image, and what the moving moments take in."""

    signal: Tensor
    fit_loss: Tensor | None = None
    moments: Sequence[Tensor] = ()


class Centring(nn.Module):
    """Turns f into a centred learning signal.

    Args:
        kind: subtract nothing, a moving mean, or a moving mean and a function of the image fitted to the rest.
        size: of the images.
        normalize: with such a function, divide by max(1, moving standard deviation), as in NVIL.
        generator: of the initial weights.
    """

    def __init__(
        self, kind: Baseline, size: int, *, normalize: bool = False, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.moments = None if kind == "none" else MovingMoments()
        self.network = InputBaseline(size, generator=generator) if kind == "input" else None

    def forward(self, signal: Tensor, x: Tensor) -> Centred:
        """`[B]` f of images `x` `[B, D]`. The moving moments are those before this batch: they do not know the sample."""
        if self.moments is None:
            return Centred(signal)
        if self.network is None:
            return Centred(signal - self.moments.mean, moments=[moments_of(signal)])
        predicted = self.network(x)
        std = self.moments.std if self.normalize else None
        centred, fit_loss = nvil_signal(signal, predicted, self.moments.mean, std)
        return Centred(centred, fit_loss, [moments_of(signal - predicted.detach())])
