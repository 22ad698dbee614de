"""The formats that the data sets come in: from bytes to uint8 arrays, with one line for whatever is not as it should be."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from relax_rl.errors import RelaxRLError
from relax_rl.experiments.data_files import needs_extra

__all__ = ["pack_splits", "read_amat", "read_chardata", "read_idx_images", "read_npz", "unpack_bits"]

Images = NDArray[np.uint8]

_IDX_IMAGES = 2051
"""Magic number of an idx file of unsigned bytes in three dimensions."""


def read_idx_images(data: bytes, name: str) -> Images:
    """`[n, rows * columns]` from a gzipped idx file of images.

    Raises:
        RelaxRLError: it is truncated, or not such a file.
    """
    try:
        raw = gzip.decompress(data)
        magic, count, rows, columns = struct.unpack_from(">4i", raw)
    except (OSError, EOFError, zlib.error, struct.error):
        raise _damaged(name, "a gzipped idx file") from None
    if magic != _IDX_IMAGES or min(count, rows, columns) < 1 or len(raw) != 16 + count * rows * columns:
        raise _damaged(name, "an idx file of images")
    return np.frombuffer(raw, np.uint8, offset=16).reshape(count, rows * columns)


def read_amat(data: bytes, name: str, pixels: int) -> Images:
    """`[n, pixels]` from text of zeros and ones between blanks, one image a line.

    Raises:
        RelaxRLError: something else stands in it, or it ends within a line.
    """
    text = np.frombuffer(data, np.uint8)
    bits = text - np.uint8(ord("0"))  # everything else, blanks and line ends too, is far above 1
    is_bit = bits <= 1
    images: Images = bits[is_bit]
    if not images.size or images.size % pixels or not np.isin(np.unique(text[~is_bit]), list(b" \t\r\n")).all():
        raise _damaged(name, f"text of 0 and 1 with {pixels} of them a line")
    return images.reshape(-1, pixels)


def read_npz(data: bytes, name: str, keys: Sequence[str]) -> list[Images]:
    """The uint8 matrices `keys` of an npz file; nothing in it can execute code.

    Raises:
        RelaxRLError: it is damaged, or lacks one of them.
    """
    expected = f"an npz file with the uint8 matrices {', '.join(keys)}"
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = [archive[key] for key in keys]
    except (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile, zlib.error):
        raise _damaged(name, expected) from None
    if any(array.dtype != np.uint8 or array.ndim != 2 for array in arrays):
        raise _damaged(name, expected)
    return arrays


def read_chardata(data: bytes, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Train and test images of Omniglot's `chardata.mat`, `[n, 784]` float32 in [0, 1].

    The file holds each image column by column; they come out row by row, upright.

    Raises:
        RelaxRLError: it is damaged, or lacks the images.
        SettingsError: scipy is missing.
    """
    with needs_extra("reading chardata.mat"):
        from scipy.io import loadmat
    try:
        content = loadmat(io.BytesIO(data), variable_names=("data", "testdata"))
        train, test = (np.asarray(content[key], np.float32) for key in ("data", "testdata"))
    except Exception:  # the reader raises whatever its parts raise on a damaged file
        raise _damaged(name, "a MATLAB file with data and testdata") from None
    if any(
        images.ndim != 2 or len(images) != 784 or not ((images >= 0) & (images <= 1)).all() for images in (train, test)
    ):
        raise _damaged(name, "a MATLAB file whose data and testdata are 784 x n with values in [0, 1]")
    return _upright(train.T), _upright(test.T)


def unpack_bits(packed: Images, pixels: int) -> Images:
    """`[n, ceil(pixels / 8)]` bytes, first pixel in the highest bit -> `[n, pixels]` of 0 and 1."""
    return np.unpackbits(packed, axis=1, count=pixels)


def pack_splits(splits: dict[str, Images]) -> bytes:
    """An npz file of images `[n, pixels]` of 0 and 1, with eight pixels a byte."""
    buffer = io.BytesIO()
    packed = {name: np.packbits(images, axis=1) for name, images in splits.items()}
    np.savez_compressed(buffer, **packed)  # type: ignore[arg-type]  # the stub takes the names for options
    return buffer.getvalue()


def _upright(images: NDArray[np.float32]) -> NDArray[np.float32]:
    side = 28
    return np.ascontiguousarray(images.reshape(-1, side, side).transpose(0, 2, 1)).reshape(-1, side * side)


def _damaged(name: str, expected: str) -> RelaxRLError:
    return RelaxRLError(f"{name} is damaged: it is not {expected}; replace it")
