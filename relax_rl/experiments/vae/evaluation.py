"""Bounds on log p, each by its number of importance samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relax_rl.experiments.vae.noise import Noise
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork

__all__ = ["EVALUATION_SEED", "binary_images", "bound"]

EVALUATION_SEED = 20_180_430
"""Of the noise behind every bound: the same for all runs and rows, so that they differ by their models alone."""

_ROWS = 2_000
"""Chains evaluated at once."""


@torch.no_grad()
def bound(model: SigmoidBeliefNetwork, images: Tensor, *, samples: int = 1) -> float:
    """Mean over images of E[log 1/K sum_k w_k], w = p(x, b) / q(b | x), in nats (Burda et al. 2016).

    With one sample this is the evidence lower bound; with more it is tighter.

    Args:
        model: f of whose chains is -log w.
        images: `[n, D]` of 0 and 1.
        samples: K.
    """
    generator = torch.Generator(images.device).manual_seed(EVALUATION_SEED)
    total = 0.0
    for batch in images.split(max(1, _ROWS // samples)):
        noise, found = Noise(generator), []
        for first in range(0, samples, _ROWS):
            chain = model.sample(batch, noise, count=min(_ROWS, samples - first))
            found.append(torch.logsumexp(-model.loss(model.target(batch), chain), 0))
        total += float((torch.stack(found).logsumexp(0) - math.log(samples)).double().sum())
    return total / len(images)


def binary_images(images: Tensor, *, dynamic: bool, count: int = 0) -> Tensor:
    """`[n, D]` uint8 images as 0 and 1 in float32; grey ones are binarised once, by `EVALUATION_SEED`.

    Args:
        images: 0 and 1, or 0..255 if `dynamic`.
        count: take this many, chosen by the seed; 0 takes all.
    """
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    if 0 < count < len(images):
        images = images[torch.randperm(len(images), generator=generator)[:count]]
    if not dynamic:
        return images.float()
    return (torch.rand(images.shape, generator=generator) * 255 < images).float()
