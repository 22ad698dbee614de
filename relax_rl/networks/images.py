"""Which observations are images, and how they become channels, rows and columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

__all__ = ["SMALLEST_IMAGE_SIDE", "image_encoder", "looks_like_image"]

SMALLEST_IMAGE_SIDE = 36
"""Shortest side that the three convolutions of the Nature CNN (8/4, 4/2, 3/1) leave a pixel of."""
_SMALLEST_GRID = 5
"""Shortest side of what may be meant as an image."""


def looks_like_image(space: spaces.Space[Any]) -> bool:
    """Whether somebody may take this for an image: a grid with channels, or of bytes or bits, or a large one."""
    if not isinstance(space, spaces.Box):
        return False
    sides, rank = sorted(space.shape)[-2:], len(space.shape)
    flat = rank == 2 and (space.dtype in (np.uint8, np.bool_) or sides[0] >= SMALLEST_IMAGE_SIDE)
    return (flat or rank in (3, 4)) and sides[0] >= _SMALLEST_GRID


def image_encoder(space: spaces.Box) -> tuple[tuple[int, int, int], Callable[[np.ndarray], np.ndarray]] | None:
    """Shape `(C, H, W)` and the way `[N, *space.shape]` becomes `[N, C, H, W]`, or None if it is no image."""
    shape = space.shape
    if space.dtype != np.uint8 or len(shape) not in (2, 3, 4):
        return None
    if len(shape) == 2:
        height, width = shape
        frames, channels, last = 1, 1, False
    else:
        frames = shape[0] if len(shape) == 4 else 1
        last = shape[-1] <= shape[-3]
        height, width = shape[-3:-1] if last else shape[-2:]
        channels = shape[-1] if last else shape[-3]
    if min(height, width) < SMALLEST_IMAGE_SIDE or frames * channels == 0:
        return None
    chw = (frames * channels, height, width)

    def encode(batch: np.ndarray) -> np.ndarray:
        if last:
            batch = np.moveaxis(batch, -1, -3)
        return batch.reshape(len(batch), *chw)

    return chw, encode
