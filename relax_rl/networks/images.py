"""Which observations are images, and how they become channels, rows and columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from relax_rl.errors import SettingsError

__all__ = ["SMALLEST_IMAGE_SIDE", "Image", "image_encoder", "image_of", "is_clearly_image", "looks_like_image"]

SMALLEST_IMAGE_SIDE = 36
"""Shortest side that the three convolutions of the Nature CNN (8/4, 4/2, 3/1) leave a pixel of."""
_SMALLEST_GRID = 5
"""Shortest side of what may be meant as an image."""
_LONGEST = 4
"""How many times its short side the long side of a grid may be that is taken for an image without being called one."""

Encode = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Image:
    """A space that a CNN reads.

    Attributes:
        shape: C, H and W.
        cnn: which one: "nature", "impala" or "small".
        highest: the largest number in it, which becomes 1; 1 where numbers stay as they are.
        encode: from `[N, *space.shape]` to `[N, C, H, W]`.
    """

    shape: tuple[int, int, int]
    cnn: str
    highest: float
    encode: Encode


def image_of(name: str, space: spaces.Space[Any], cnn: str) -> Image | None:
    """What a CNN makes of a leaf of the observations, or None where it goes to an MLP.

    Args:
        name: of the leaf, for messages.
        space: of the leaf.
        cnn: as in `AgentConfig.cnn`. "auto" takes what is clearly an image, a named CNN whatever may be one.

    Raises:
        SettingsError: the Nature CNN is asked for, and leaves no pixel of the image.
    """
    if not isinstance(space, spaces.Box) or cnn == "none":
        return None
    if cnn == "legacy":
        found = image_encoder(space)
        return None if found is None else Image(found[0], "nature", 255.0, found[1])
    if not (is_clearly_image(space) if cnn == "auto" else looks_like_image(space)):
        return None
    shape, encode = _as_channels(space)
    if 0 in shape or min(shape[1:]) < _SMALLEST_GRID:
        return None
    large = min(shape[1:]) >= SMALLEST_IMAGE_SIDE
    if cnn == "nature" and not large:
        raise SettingsError(
            f"cnn is 'nature', which reads images of at least {SMALLEST_IMAGE_SIDE} pixels a side, and {name!r} has "
            f"{shape[1]} x {shape[2]}; take 'small' or 'impala'"
        )
    ends = np.abs([space.low.min(), space.high.max()]).astype(np.float64)
    highest = float(ends.max()) if np.isfinite(ends).all() and ends.max() > 1 else 1.0
    return Image(shape, ("nature" if large else "small") if cnn == "auto" else cnn, highest, encode)


def looks_like_image(space: spaces.Space[Any]) -> bool:
    """Whether somebody may take this for an image: a grid with channels, or of bytes or bits, or a large one."""
    if not isinstance(space, spaces.Box):
        return False
    sides, rank = sorted(space.shape)[-2:], len(space.shape)
    flat = rank == 2 and (space.dtype in (np.uint8, np.bool_) or sides[0] >= SMALLEST_IMAGE_SIDE)
    return (flat or rank in (3, 4)) and sides[0] >= _SMALLEST_GRID


def is_clearly_image(space: spaces.Box) -> bool:
    """Whether nobody would take this for a table of numbers.

    That is a large grid of bytes (see `image_encoder`), or three dimensions, rows and columns of at least 5 and not much
    longer one way than the other, of bytes, bits, or floats that all have the same finite bounds.
    """
    if image_encoder(space) is not None:
        return True
    if len(space.shape) != 3 or 0 in space.shape:
        return False
    sides = space.shape[:2] if _channels_are_last(space.shape) else space.shape[1:]
    if min(sides) < _SMALLEST_GRID or max(sides) > _LONGEST * min(sides):
        return False
    if space.dtype in (np.uint8, np.bool_):
        return True
    low, high = space.low, space.high
    alike = bool((low == low.flat[0]).all() and (high == high.flat[0]).all())
    return space.dtype.kind == "f" and alike and bool(np.isfinite(low.flat[0]) and np.isfinite(high.flat[0]))


def image_encoder(space: spaces.Box) -> tuple[tuple[int, int, int], Encode] | None:
    """Shape `(C, H, W)` and the way `[N, *space.shape]` becomes `[N, C, H, W]`, of a large image of bytes; else None."""
    shape = space.shape
    if space.dtype != np.uint8 or len(shape) not in (2, 3, 4):
        return None
    chw, encode = _as_channels(space, last=len(shape) > 2 and shape[-1] <= shape[-3])
    return None if min(chw[1:]) < SMALLEST_IMAGE_SIDE or chw[0] == 0 else (chw, encode)


def _channels_are_last(shape: tuple[int, ...]) -> bool:
    """Where the channels of rows, columns and channels are: beside a square, else at the shorter end."""
    if shape[-3] == shape[-2] != shape[-1]:
        return True
    if shape[-2] == shape[-1] != shape[-3]:
        return False
    return shape[-1] <= shape[-3]


def _as_channels(space: spaces.Box, last: bool | None = None) -> tuple[tuple[int, int, int], Encode]:
    """Shape `(C, H, W)` and the way there, of rank 2 (one channel), 3 or 4 (frames, stacked along the channels)."""
    shape = space.shape
    if len(shape) == 2:
        last, frames, channels, (height, width) = False, 1, 1, shape
    else:
        last = _channels_are_last(shape) if last is None else last
        frames = shape[0] if len(shape) == 4 else 1
        height, width = shape[-3:-1] if last else shape[-2:]
        channels = shape[-1] if last else shape[-3]
    chw = (frames * channels, height, width)

    def encode(batch: np.ndarray) -> np.ndarray:
        if last:
            batch = np.moveaxis(batch, -1, -3)
        if batch.dtype == np.bool_:
            batch = batch.view(np.uint8)
        return batch.reshape(len(batch), *chw)

    return chw, encode
