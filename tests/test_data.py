"""The data sets: what is read from which file, how it is split and binarised, and one line for whatever goes wrong."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import re
import struct
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from relax_rl.compute.installation import install_line
from relax_rl.errors import RelaxRLError, SettingsError
from relax_rl.experiments import data, data_files, data_formats
from relax_rl.experiments.batches import Batches
from relax_rl.experiments.data import load_data

REAL = Path(os.environ.get("RELAX_RL_DATA", Path(__file__).parents[2] / "shared" / "data"))
real_data = pytest.mark.skipif(not REAL.is_dir(), reason=f"no data in {REAL}: set RELAX_RL_DATA to a folder with it")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Every test has a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return data_files.cache_dir()


def bits(count: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 2, (count, 784)).astype(np.uint8)


def amat(images: np.ndarray) -> bytes:
    return b"\n".join(b" ".join(b"%d" % pixel for pixel in row) for row in images) + b"\n"


def idx(images: np.ndarray) -> bytes:
    return gzip.compress(struct.pack(">4i", 2051, len(images), 28, 28) + images.tobytes())


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(folder: Path, name: str, content: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


@pytest.fixture
def binarized(monkeypatch):
    """Three small parts that stand for the published binarisation: images and text files by part."""
    parts = {part: bits(count, seed) for seed, (part, count) in enumerate((("train", 7), ("valid", 3), ("test", 4)))}
    texts = {part: amat(images) for part, images in parts.items()}
    files = {
        part: replace(file, algorithm="md5", checksum=hashlib.md5(texts[part]).hexdigest())
        for part, file in data.BINARIZED_MNIST.items()
    }
    packed = b"".join(np.packbits(images, axis=1).tobytes() for images in parts.values())
    monkeypatch.setattr(data, "BINARIZED_MNIST", files)
    monkeypatch.setattr(data, "PACKED_MNIST", replace(data.PACKED_MNIST, checksum=sha256(packed)))
    return parts, texts


@pytest.fixture
def server(tmp_path):
    """A folder that an HTTP server of this machine serves, and its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_address[1]}/"
        running.shutdown()
        thread.join()


def test_digits_need_no_file():
    digits = load_data("digits")
    assert digits.name == "digits 8x8, fixed binarisation" and digits.shape == (8, 8) and not digits.dynamic
    assert [len(part) for part in (digits.train, digits.valid, digits.test)] == [1297, 250, 250]
    assert set(np.unique(digits.train)) == {0, 1} and digits.train.dtype == np.uint8
    assert (digits.train == load_data("digits").train).all()  # fixed, not drawn anew
    np.testing.assert_allclose(digits.mean_image, digits.train.mean(0), atol=1e-6)


def test_dynamic_digits_keep_their_grey():
    digits = load_data("digits", binarization="dynamic")
    assert digits.dynamic and digits.name == "digits 8x8, dynamic binarisation"
    assert digits.train.max() == 255 and len(np.unique(digits.train)) == 17
    assert digits.mean_image.max() <= 1
    np.testing.assert_allclose(digits.mean_image, digits.train.mean(0) / 255, atol=1e-6)
    # The same images as the fixed ones, in the same order: pixels that are 0 or 255 agree.
    fixed = load_data("digits").train
    assert (fixed[digits.train == 255] == 1).all() and (fixed[digits.train == 0] == 0).all()


@pytest.mark.parametrize("folder", [".", "binarized_mnist"])
def test_the_fixed_binarisation_from_text_files(tmp_path, binarized, folder):
    parts, texts = binarized
    for part, text in texts.items():
        put(tmp_path / "here" / folder, f"binarized_mnist_{part}.amat", text)
    found = load_data("mnist", data_dir=str(tmp_path / "here"))
    assert found.name == "MNIST, fixed binarisation" and found.shape == (28, 28)
    for part, images in parts.items():
        assert (getattr(found, part) == images).all()
    assert sorted(file.name for file in (tmp_path / "here").rglob("*.npz")) == []  # nothing is written into it


def test_the_packed_file_is_taken_unless_it_holds_other_images(tmp_path, binarized):
    parts, _ = binarized
    put(tmp_path / "here", "binarized_mnist_packed.npz", data_formats.pack_splits(parts))
    found = load_data("mnist", data_dir=str(tmp_path / "here"))
    assert all((getattr(found, part) == images).all() for part, images in parts.items())
    parts["valid"][0, 0] ^= 1
    put(tmp_path / "here", "binarized_mnist_packed.npz", data_formats.pack_splits(parts))
    with pytest.raises(RelaxRLError, match="are not those of the fixed binarisation; replace it"):
        load_data("mnist", data_dir=str(tmp_path / "here"))


def test_downloads_are_packed_and_used_again(cache, binarized, server, monkeypatch):
    parts, texts = binarized
    folder, url = server
    files = {part: replace(file, urls=(url + file.name,)) for part, file in data.BINARIZED_MNIST.items()}
    monkeypatch.setattr(data, "BINARIZED_MNIST", files)
    for part, text in texts.items():
        put(folder, f"binarized_mnist_{part}.amat", text)
    lines: list[str] = []
    first = load_data("mnist", show=lines.append)
    assert lines == [f"downloading {url}binarized_mnist_{part}.amat" for part in parts]
    for file in folder.iterdir():
        file.unlink()
    again = load_data("mnist", show=lines.append)
    assert len(lines) == 3  # no more downloads
    for part, images in parts.items():
        assert (getattr(first, part) == images).all() and (getattr(again, part) == images).all()
    assert not list(cache.rglob("*.tmp"))
    # A damaged packed file is made again from the texts in the cache.
    (cache / "binarized_mnist" / "binarized_mnist_packed.npz").write_bytes(b"PK damaged")
    assert (load_data("mnist", show=lines.append).train == parts["train"]).all()
    assert len(lines) == 4 and "making it again" in lines[-1]


def test_dynamic_mnist_from_the_second_mirror(server, monkeypatch, tmp_path):
    folder, url = server
    grey = np.random.RandomState(1).randint(0, 256, (12, 784)).astype(np.uint8)
    contents = {"train": idx(grey), "test": idx(grey[:5])}
    files = {}
    for part, file in data.MNIST_IMAGES.items():
        put(folder / "good", file.name, contents[part])
        put(folder / "bad", file.name, contents[part][:-1])
        urls = (url + "absent/" + file.name, url + "bad/" + file.name, url + "good/" + file.name)
        files[part] = replace(file, checksum=sha256(contents[part]), urls=urls)
    monkeypatch.setattr(data, "MNIST_IMAGES", files)
    found = load_data("mnist", binarization="dynamic")
    assert found.name == "MNIST, dynamic binarisation" and found.dynamic
    assert (found.train == grey[:10]).all() and (found.valid == grey[10:]).all() and (found.test == grey[:5]).all()


def test_without_a_network_one_line_says_what_to_do(monkeypatch):
    gone = {part: replace(file, urls=("http://127.0.0.1:9/x",)) for part, file in data.BINARIZED_MNIST.items()}
    monkeypatch.setattr(data, "BINARIZED_MNIST", gone)
    with pytest.raises(RelaxRLError) as caught:
        load_data("mnist")
    line = str(caught.value)
    assert "\n" not in line and "binarized_mnist_train.amat could not be downloaded" in line
    assert "refused" in line.lower() and "--data-dir" in line and "--data digits" in line


def chardata(train: np.ndarray, test: np.ndarray) -> bytes:
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, {"data": train.T, "testdata": test.T})
    return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


@pytest.fixture
def drawings(monkeypatch):
    """Small Omniglot: grey images `[n, 28, 28]`, and both files that hold them."""
    random = np.random.RandomState(2)
    train, test = (random.randint(0, 256, (count, 28, 28)).astype(np.uint8) for count in (20, 6))
    # Column by column, as the published file has them.
    content = chardata(*(images.transpose(0, 2, 1).reshape(-1, 784) / 255 for images in (train, test)))
    reconstructed = npz(train=train.reshape(-1, 784), test=test.reshape(-1, 784))
    monkeypatch.setattr(data, "_OMNIGLOT_VALID", 5)
    git_blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    monkeypatch.setattr(data, "OMNIGLOT_MAT", replace(data.OMNIGLOT_MAT, checksum=git_blob))
    own = replace(data.OMNIGLOT_RECONSTRUCTED, checksum=sha256(reconstructed))
    monkeypatch.setattr(data, "OMNIGLOT_RECONSTRUCTED", own)
    return train, test, content, reconstructed


def test_omniglot_comes_out_upright_and_shuffled_as_published(tmp_path, drawings):
    train, test, content, _ = drawings
    put(tmp_path / "here", "chardata.mat", content)
    found = load_data("omniglot", data_dir=str(tmp_path / "here"), binarization="dynamic")
    assert found.name == "Omniglot 28x28 (chardata.mat), dynamic binarisation"
    order = np.random.RandomState(123).permutation(20)
    assert (np.concatenate([found.train, found.valid]).reshape(-1, 28, 28) == train[order]).all()
    assert len(found.valid) == 5 and (found.test.reshape(-1, 28, 28) == test).all()


def test_omniglot_is_binarised_by_the_published_stream(tmp_path, drawings):
    train, test, content, _ = drawings
    put(tmp_path / "here" / "omniglot", "chardata.mat", content)
    found = load_data("omniglot", data_dir=str(tmp_path / "here"))
    np.random.seed(5)  # the published code draws from the global stream, train first
    grey = [images.reshape(-1, 784).astype(np.float32) / 255 for images in (train, test)]
    drawn = [np.random.rand(*images.shape) < images for images in grey]
    order = np.random.RandomState(123).permutation(20)
    assert (np.concatenate([found.train, found.valid]) == drawn[0][order]).all()
    assert (found.test == drawn[1]).all() and set(np.unique(found.train)) == {0, 1}


def test_the_reconstruction_is_named_as_such(tmp_path, drawings):
    *_, content, reconstructed = drawings
    put(tmp_path / "here" / "omniglot", "omniglot28_recon_u8.npz", reconstructed)
    lines: list[str] = []
    found = load_data("omniglot", data_dir=str(tmp_path / "here"), show=lines.append)
    assert found.name == "Omniglot 28x28, reconstructed, fixed binarisation" and "reconstruct" in lines[0]
    # Both files hold the same drawings here; where both lie, the original is taken.
    put(tmp_path / "here" / "omniglot", "chardata.mat", content)
    original = load_data("omniglot", data_dir=str(tmp_path / "here"))
    assert original.name == "Omniglot 28x28 (chardata.mat), fixed binarisation"
    assert (original.train == found.train).all() and (original.test == found.test).all()


def test_reading_draws_nothing_from_the_global_streams(tmp_path, drawings):
    put(tmp_path / "here", "chardata.mat", drawings[2])
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    load_data("omniglot", data_dir=str(tmp_path / "here"))
    Batches(load_data("digits").train, seed=1).next(10)
    assert (np.random.get_state()[1] == before[0]).all() and (torch.get_rng_state() == before[1]).all()


@pytest.mark.parametrize(
    ("name", "binarization", "expected"),
    [
        ("mnist", "fixed", "no binarized_mnist_packed.npz or binarized_mnist_train.amat in "),
        ("mnist", "dynamic", "no train-images-idx3-ubyte.gz in "),
        ("omniglot", "fixed", "no omniglot28_recon_u8.npz or chardata.mat in "),
    ],
)
def test_a_missing_file_is_named(tmp_path, name, binarization, expected):
    with pytest.raises(RelaxRLError) as caught:
        load_data(name, data_dir=str(tmp_path), binarization=binarization)
    assert str(caught.value).startswith(expected) and "leave out --data-dir" in str(caught.value)


def test_wrong_settings_are_told(tmp_path):
    with pytest.raises(SettingsError, match="data is 'minst', expected one of mnist, omniglot, digits; did you mean"):
        load_data("minst")
    with pytest.raises(SettingsError, match="expected fixed or dynamic"):
        load_data("digits", binarization="static")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="which is no folder"):
        load_data("mnist", data_dir=str(tmp_path / "absent"))
    with pytest.raises(
        SettingsError, match="data_dir is '/absent', but the digits come with scikit-learn; leave --data"
    ):
        load_data("digits", data_dir="/absent")


def test_a_missing_extra_is_told(tmp_path, monkeypatch, drawings):
    put(tmp_path / "here", "chardata.mat", drawings[2])
    for module in ("sklearn", "sklearn.datasets", "pooch", "scipy.io"):
        monkeypatch.setitem(sys.modules, module, None)
    for call in (partial(load_data, "digits"), partial(load_data, "mnist"), partial(load_data, "omniglot")):
        with pytest.raises(SettingsError, match=re.escape(install_line("experiments"))):
            call()
    with pytest.raises(SettingsError, match=r"reading chardata\.mat needs scipy"):
        load_data("omniglot", data_dir=str(tmp_path / "here"))


def test_a_damaged_local_file_is_told_from_its_checksum(tmp_path, drawings):
    put(tmp_path / "here", "chardata.mat", drawings[2][:-1])
    with pytest.raises(RelaxRLError, match=r"chardata\.mat is damaged or another file: its git-blob is \w+, expected"):
        load_data("omniglot", data_dir=str(tmp_path / "here"))


GREY = np.zeros((3, 784), np.uint8)


@pytest.mark.parametrize(
    ("read", "content"),
    [
        (partial(data_formats.read_idx_images, name="x"), idx(GREY)[:-9]),
        (partial(data_formats.read_idx_images, name="x"), b"not gzip"),
        (partial(data_formats.read_idx_images, name="x"), gzip.compress(b"short")),
        (partial(data_formats.read_idx_images, name="x"), gzip.compress(struct.pack(">4i", 2051, 9, 28, 28))),
        (partial(data_formats.read_idx_images, name="x"), gzip.compress(struct.pack(">4i", 2049, 1, 1, 1) + b"\0")),
        (partial(data_formats.read_idx_images, name="x"), gzip.compress(struct.pack(">4i", 2051, -1, -1, 0))),
        (partial(data_formats.read_amat, name="x", pixels=784), amat(GREY)[:-3]),
        (partial(data_formats.read_amat, name="x", pixels=784), amat(GREY).replace(b"0", b"7", 1)),
        (partial(data_formats.read_amat, name="x", pixels=784), b""),
        (partial(data_formats.read_npz, name="x", keys=("train",)), b"PK\x03\x04 not a zip"),
        (partial(data_formats.read_npz, name="x", keys=("absent",)), data_formats.pack_splits({"train": GREY})),
        (partial(data_formats.read_npz, name="x", keys=("train",)), data_formats.pack_splits({"train": GREY})[:-30]),
        (partial(data_formats.read_npz, name="x", keys=("train",)), npz(train=np.array([print], dtype=object))),
        (partial(data_formats.read_chardata, name="x"), b"MATLAB 5.0 MAT-file, cut"),
        (partial(data_formats.read_chardata, name="x"), chardata(GREY[:, :9], GREY[:, :9])),
        (partial(data_formats.read_chardata, name="x"), chardata(GREY + 2, GREY)),
    ],
)
def test_whatever_is_damaged_is_one_line_and_runs_no_code(read, content):
    with pytest.raises(RelaxRLError, match=r"^x is damaged: it is not .+; replace it$"):
        read(content)


@real_data
def test_the_real_fixed_binarisation():
    mnist = load_data("mnist", data_dir=str(REAL))
    assert [part.shape for part in (mnist.train, mnist.valid, mnist.test)] == [(50000, 784), (10000, 784), (10000, 784)]
    assert mnist.train.mean() == pytest.approx(0.130562, abs=5e-7)


@real_data
def test_the_real_images():
    mnist = load_data("mnist", data_dir=str(REAL), binarization="dynamic")
    assert [len(part) for part in (mnist.train, mnist.valid, mnist.test)] == [50000, 10000, 10000]
    assert np.concatenate([mnist.train, mnist.valid]).mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert mnist.test.mean() / 255 == pytest.approx(0.1325, abs=5e-5)
    # The fixed binarisation was drawn from these very images, though not in this order.
    fixed = load_data("mnist", data_dir=str(REAL))
    assert np.abs(fixed.mean_image - mnist.mean_image).max() < 0.03


@real_data
def test_the_real_omniglot():
    omniglot = load_data("omniglot", data_dir=str(REAL))
    assert [len(part) for part in (omniglot.train, omniglot.valid, omniglot.test)] == [23000, 1345, 8070]
    assert omniglot.train.mean() == pytest.approx(0.0830, abs=2e-4)
    assert omniglot.test.mean() == pytest.approx(0.0820, abs=2e-4)
