"""The data of the VAE experiments: MNIST, Omniglot 28x28 and scikit-learn's digits, as the papers split and binarise them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from relax_rl.compute.serialization import write_bytes_atomic
from relax_rl.errors import RelaxRLError, SettingsError, did_you_mean
from relax_rl.experiments import data_formats
from relax_rl.experiments.data_files import DataFile, cache_dir, fetch, find, needs_extra, read, read_verified

__all__ = ["DATA", "Binarization", "Dataset", "load_data"]

Binarization = Literal["fixed", "dynamic"]
Show = Callable[[str], None]
Images = NDArray[np.uint8]
_Loaded = tuple[str, tuple[Images, Images, Images], tuple[int, int]]
"""What results are to call the data, training, validation and test images, and the rows and columns of each."""

_MNIST_URLS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_MNIST_CHECKSUMS = {
    "train": ("train-images-idx3-ubyte.gz", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    "test": ("t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
}
MNIST_IMAGES = {
    part: DataFile(name, "mnist", "sha256", checksum, tuple(url + name for url in _MNIST_URLS))
    for part, (name, checksum) in _MNIST_CHECKSUMS.items()
}

_BINARIZED_URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
_BINARIZED_CHECKSUMS = {
    "train": "db28b1a6ae0fe70cbd3da91acf46e477",
    "valid": "bf37822a04e94123630de6a7dfd9c9ef",
    "test": "14e41ae11040adba6ab8cb291eda0dd8",
}
BINARIZED_MNIST = {
    part: DataFile(name := f"binarized_mnist_{part}.amat", "binarized_mnist", "md5", checksum, (_BINARIZED_URL + name,))
    for part, checksum in _BINARIZED_CHECKSUMS.items()
}
PACKED_MNIST = DataFile(
    "binarized_mnist_packed.npz",
    "binarized_mnist",
    "sha256 of the images",
    "c462f82a020638a4d5d8d44e4c83242ee0145ee1d125869d0e030c35011837e6",
)
"""The three text files as one npz file; the checksum is that of its arrays, since compression differs between systems."""

OMNIGLOT_MAT = DataFile(
    "chardata.mat",
    "omniglot",
    "git-blob",
    "016a3536ffe5e1d38e42563a18d7a78bfaf643ec",
    ("https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat",),
)
OMNIGLOT_RECONSTRUCTED = DataFile(
    "omniglot28_recon_u8.npz",
    "omniglot",
    "sha256",
    "4a0f065d8c53d21ddc20add2ddcf92004e0981d5a5e70aef88ae71bdf097a5b6",
)
_OMNIGLOT_VALID = 1345


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images in three parts.

    Attributes:
        name: what results made with it are to be called: the data, the file where there are two, the binarisation.
        train, valid, test: `[n, D]` uint8: 0 and 1, or 0..255 if `dynamic`.
        shape: rows and columns of an image, D in all.
        dynamic: pixels are drawn anew whenever an image is looked at, 1 with probability pixel / 255.
    """

    name: str
    train: Images
    valid: Images
    test: Images
    shape: tuple[int, int]
    dynamic: bool

    @cached_property
    def mean_image(self) -> NDArray[np.float32]:
        """`[D]` mean of each pixel of the training images, in [0, 1]."""
        mean: NDArray[np.float64] = self.train.mean(0, dtype=np.float64)
        return (mean / 255 if self.dynamic else mean).astype(np.float32)


def load_data(
    name: str, *, data_dir: str | None = None, binarization: Binarization = "fixed", show: Show = lambda _: None
) -> Dataset:
    """A data set by name.

    Args:
        name: "mnist", "omniglot" or "digits".
        data_dir: folder with the files, directly or in `mnist/`, `binarized_mnist/` and `omniglot/`; by default they
            come from the user's cache, and are downloaded into it first. Digits need no file.
        binarization: "fixed" as published, once for all; "dynamic" anew each time an image is looked at.
        show: takes lines on what is read and downloaded.

    Raises:
        SettingsError: an unknown name, a folder that does not exist, or the extra `experiments` is missing.
        RelaxRLError: a file is missing, damaged, or cannot be downloaded.
    """
    if name not in DATA:
        raise SettingsError(f"data is {name!r}, expected one of {', '.join(DATA)}{did_you_mean(name, DATA)}")
    if binarization not in ("fixed", "dynamic"):
        raise SettingsError(f"binarization is {binarization!r}, expected fixed or dynamic")
    if name == "digits" and data_dir is not None:
        raise SettingsError(f"data_dir is {data_dir!r}, but the digits come with scikit-learn; leave --data-dir out")
    dynamic = binarization == "dynamic"
    called, parts, shape = DATA[name](data_dir, dynamic, show)
    return Dataset(f"{called}, {binarization} binarisation", *parts, shape, dynamic)


def _mnist(data_dir: str | None, dynamic: bool, show: Show) -> _Loaded:
    if not dynamic:
        return "MNIST", _binarized_mnist(data_dir, show), (28, 28)
    train, test = (
        data_formats.read_idx_images(_content(file, data_dir, show), file.name) for file in MNIST_IMAGES.values()
    )
    held_out = len(train) // 6  # the last 10,000 of 60,000, as in the fixed binarisation
    return "MNIST", (train[:-held_out], train[-held_out:], test), (28, 28)


def _binarized_mnist(data_dir: str | None, show: Show) -> tuple[Images, Images, Images]:
    """The binarisation of Salakhutdinov and Larochelle, from the packed file if there is one, else from the texts."""
    packed = cache_dir() / PACKED_MNIST.folder / PACKED_MNIST.name if data_dir is None else find(PACKED_MNIST, data_dir)
    if packed is not None and packed.is_file():
        try:
            return _unpack_mnist(read(packed), str(packed))
        except RelaxRLError as error:
            if data_dir is not None:
                raise
            show(f"{str(error).partition('; ')[0]}; making it again")
    texts = {part: _content(file, data_dir, show, PACKED_MNIST) for part, file in BINARIZED_MNIST.items()}
    parts = {part: data_formats.read_amat(text, BINARIZED_MNIST[part].name, 784) for part, text in texts.items()}
    content = data_formats.pack_splits(parts)
    # The texts travel unencrypted with checksums that can be forged: the images have one that cannot.
    images = _unpack_mnist(content, " and ".join(file.name for file in BINARIZED_MNIST.values()))
    if data_dir is None and packed is not None:
        write_bytes_atomic(packed, content)
    return images


def _unpack_mnist(content: bytes, source: str) -> tuple[Images, Images, Images]:
    arrays = data_formats.read_npz(content, source, tuple(BINARIZED_MNIST))
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    if digest.hexdigest() != PACKED_MNIST.checksum:
        raise RelaxRLError(f"{source} is damaged: its images are not those of the fixed binarisation; replace it")
    train, valid, test = (data_formats.unpack_bits(array, 784) for array in arrays)
    return train, valid, test


def _omniglot(data_dir: str | None, dynamic: bool, show: Show) -> _Loaded:
    train, test, source = _omniglot_images(data_dir, show)
    # Published order: both parts are binarised from one stream, and only then is the train part shuffled.
    uniform = np.random.RandomState(5)
    pixels, test_pixels = (_pixels(images, dynamic, uniform) for images in (train, test))
    pixels = pixels[np.random.RandomState(123).permutation(len(pixels))]
    return f"Omniglot 28x28{source}", (pixels[:-_OMNIGLOT_VALID], pixels[-_OMNIGLOT_VALID:], test_pixels), (28, 28)


def _omniglot_images(data_dir: str | None, show: Show) -> tuple[NDArray[np.float32], NDArray[np.float32], str]:
    """Train and test images in [0, 1], and how the file is named in results."""
    reconstructed = None if data_dir is None else find(OMNIGLOT_RECONSTRUCTED, data_dir)
    if reconstructed is None or (data_dir is not None and find(OMNIGLOT_MAT, data_dir) is not None):
        data = _content(OMNIGLOT_MAT, data_dir, show, OMNIGLOT_RECONSTRUCTED)
        return *data_formats.read_chardata(data, OMNIGLOT_MAT.name), " (chardata.mat)"
    show(f"using the reconstruction {reconstructed}: results are called Omniglot 28x28, reconstructed")
    data = read_verified(reconstructed, OMNIGLOT_RECONSTRUCTED)
    train, test = data_formats.read_npz(data, str(reconstructed), ("train", "test"))
    train, test = (images.astype(np.float32) / np.float32(255) for images in (train, test))
    return train, test, ", reconstructed"


def _digits(data_dir: str | None, dynamic: bool, show: Show) -> _Loaded:
    """scikit-learn's 1,797 digits of 8x8 pixels from 0 to 16: 1,297 to train, 250 to validate, 250 to test."""
    with needs_extra("the data set digits"):
        from sklearn.datasets import load_digits
    images = load_digits().data[np.random.RandomState(123).permutation(1797)] / 16
    pixels = _pixels(images, dynamic, np.random.RandomState(5))
    return "digits 8x8", (pixels[:1297], pixels[1297:1547], pixels[1547:]), (8, 8)


def _pixels(images: NDArray[Any], dynamic: bool, uniform: np.random.RandomState) -> Images:
    """Images in [0, 1] as bytes: 0..255, or drawn once as 0 and 1."""
    pixels: NDArray[Any] = np.rint(images * 255) if dynamic else uniform.random_sample(images.shape) < images
    return pixels.astype(np.uint8)


def _content(file: DataFile, data_dir: str | None, show: Show, *instead: DataFile) -> bytes:
    """The bytes of a file, from the folder if one is given, else from the cache or a mirror."""
    if data_dir is None:
        return fetch(file, show)
    path = find(file, data_dir)
    if path is None:
        names = " or ".join(other.name for other in (*instead, file))
        places = " or ".join(str(Path(data_dir) / part) for part in (".", file.folder))
        raise RelaxRLError(f"no {names} in {places}: put it there, or leave out --data-dir to download {file.name}")
    return read_verified(path, file)


DATA: Mapping[str, Callable[[str | None, bool, Show], _Loaded]] = {
    "mnist": _mnist,
    "omniglot": _omniglot,
    "digits": _digits,
}
"""The data sets by name."""
