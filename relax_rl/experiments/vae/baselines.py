"""What is subtracted from f before it multiplies the score: a moving mean, or a function of the image."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relax_rl.distributed import ALONE, Workers

__all__ = ["Baseline", "Centring", "InputBaseline", "MovingMoments"]

Baseline = Literal["none", "moving-average", "input"]


class MovingMoments(nn.Module):
    """Exponential moving mean and variance of a learning signal, as buffers.

    Args:
        decay: weight of the past; the start is not biased towards zero.

    Attributes:
        workers: who see one batch together, each a part.
    """

    weight: Tensor
    mean_sum: Tensor
    square_sum: Tensor

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        self.decay = decay
        self.workers: Workers = ALONE
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

    def update(self, signal: Tensor) -> None:
        """Take in a batch of signals, after the estimate that used the mean."""
        share = 1.0 - self.decay
        means = torch.stack([signal.mean(), signal.square().mean()])
        self.workers.average_(means)
        self.weight.lerp_(torch.ones_like(self.weight), share)
        self.mean_sum.lerp_(means[0], share)
        self.square_sum.lerp_(means[1], share)


class InputBaseline(nn.Module):
    """`[B, D]` images -> `[B]`: one layer of tanh units (Mnih and Gregor 2014)."""

    def __init__(self, size: int, width: int = 100, generator: torch.Generator | None = None) -> None:
        super().__init__()
        bound = math.sqrt(6.0 / (size + width))
        self.weight = nn.Parameter(torch.empty(width, size).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.zeros(width))
        self.out = nn.Parameter(torch.zeros(width))
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, self.weight, self.bias)) @ self.out + self.shift


class Centring(nn.Module):
    """Turns f into a centred learning signal.

    Args:
        kind: subtract nothing, a moving mean, or a moving mean and a function of the image fitted to the rest.
        size: of the images.
        normalize: divide by max(1, moving standard deviation), as in NVIL.
        generator: of the initial weights.
    """

    def __init__(
        self, kind: Baseline, size: int, *, normalize: bool = False, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.moments = None if kind == "none" else MovingMoments()
        self.network = InputBaseline(size, generator=generator) if kind == "input" else None

    def forward(self, signal: Tensor, x: Tensor) -> Tensor:
        """`[B]` f of images `x` `[B, D]` -> `[B]`, without graph; the fit's gradient is added to the network's.

        The signal enters the moving moments after it was centred, so that the baseline does not know the sample.
        """
        if self.moments is None:
            return signal
        rest = signal
        if self.network is not None:
            predicted = self.network(x)
            error = signal - self.moments.mean - predicted
            torch.autograd.backward(error.square().mean(), inputs=list(self.network.parameters()))
            rest = signal - predicted.detach()
        centred = rest - self.moments.mean
        if self.normalize:
            centred = centred / self.moments.std.clamp(min=1.0)
        self.moments.update(rest)
        return centred
