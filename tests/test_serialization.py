"""Files of state: exact round trips, atomic writes, and every kind of damage told in one line."""

from __future__ import annotations

import json
import math
import os
import stat
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from relax_rl.compute import serialization
from relax_rl.compute.serialization import load_state, read_regular, save_state, write_text_atomic
from relax_rl.errors import CheckpointError, RelaxRLError


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(3)
    return {
        "policy.weight": torch.randn(5, 3, generator=generator),
        "double": torch.randn(4, generator=generator, dtype=torch.float64),
        "half": torch.randn(3, generator=generator).bfloat16(),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False]),
    }


def test_round_trip_is_bit_exact(tmp_path, tensors):
    rng = np.random.default_rng(5)
    state = {"rng": rng.bit_generator.state, "inf": math.inf, "text": "é", "list": [1, 2.5, None, True]}
    save_state(tmp_path / "a.safetensors", tensors, state)
    loaded, loaded_state = load_state(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert loaded_state == state
    other = np.random.default_rng(0)
    other.bit_generator.state = loaded_state["rng"]
    assert other.random() == rng.random()


def test_shared_transposed_and_grad_tensors_are_stored(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3).requires_grad_()
    save_state(tmp_path / "a.safetensors", {"a": weight, "tied": weight, "turned": weight.T}, {})
    loaded, _ = load_state(tmp_path / "a.safetensors")
    assert torch.equal(loaded["a"], loaded["tied"])
    assert torch.equal(loaded["turned"], weight.detach().T)
    assert not loaded["a"].requires_grad


def test_the_file_is_plain_safetensors(tmp_path, tensors):
    save_state(tmp_path / "a.safetensors", tensors, {})
    assert load_file(tmp_path / "a.safetensors").keys() == tensors.keys()


def test_a_state_that_json_cannot_say_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(TypeError):
        save_state(tmp_path / "a.safetensors", {}, {"array": np.zeros(2)})
    assert list(tmp_path.iterdir()) == []


def one_line(error: pytest.ExceptionInfo[RelaxRLError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_what_is_no_file(tmp_path):
    for path, expected in ((tmp_path / "none.safetensors", "does not exist"), (tmp_path, "cannot be read")):
        with pytest.raises(CheckpointError) as error:
            load_state(path)
        assert expected in one_line(error)


def test_every_truncation_is_noticed(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    save_state(path, tensors, {"steps": 3})
    data = path.read_bytes()
    for length in [*range(0, len(data), 37), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError) as error:
            load_state(path)
        assert str(path) in one_line(error)


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    save_state(path, tensors, {"steps": 3})
    data = path.read_bytes()
    good, good_state = load_state(path)
    refused = 0
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x01
        path.write_bytes(bytes(damaged))
        try:
            loaded, state = load_state(path)
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
        else:  # white space between two fields of the header, say: the content must still be what was saved
            assert state == good_state
            assert all(torch.equal(loaded[name], tensor) for name, tensor in good.items())
    (header,) = struct.unpack_from("<Q", data)
    assert refused >= len(data) - 8 - header


def test_changed_state_with_valid_safetensors_is_noticed(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    save_state(path, tensors, {"steps": 3})
    data = path.read_bytes()
    assert data.count(b'\\"steps\\": 3') == 1
    path.write_bytes(data.replace(b'\\"steps\\": 3', b'\\"steps\\": 4'))
    with pytest.raises(CheckpointError, match="checksum"):
        load_state(path)


def test_swapped_tensors_are_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    save_state(path, {"a": torch.zeros(2), "b": torch.zeros(2)}, {})
    (size,) = struct.unpack_from("<Q", path.read_bytes())
    header = json.loads(path.read_bytes()[8 : 8 + size])
    swapped = {"a": torch.zeros(1, 2), "b": torch.zeros(2)}
    save_file(swapped, path, metadata=header["__metadata__"])
    with pytest.raises(CheckpointError, match="checksum"):
        load_state(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"\xff" * 64, b"\x08" + b"\0" * 7 + b"[[[[[[[["])
def test_foreign_bytes(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        load_state(path)
    one_line(error)


def test_foreign_safetensors(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="not a relax_rl checkpoint"):
        load_state(tmp_path / "a.safetensors")


def test_newer_format(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "FORMAT_VERSION", serialization.FORMAT_VERSION + 1)
    save_state(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="update relax_rl"):
        load_state(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("error", "told", "message"),
    [(KeyboardInterrupt(), KeyboardInterrupt, ""), (OSError(28, "No space left"), RelaxRLError, "No space left")],
    ids=["killed", "a full disk"],
)
def test_a_write_that_ends_in_the_middle_leaves_the_old_file(tmp_path, monkeypatch, error, told, message):
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")

    def end(_: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", end)
    with pytest.raises(told) as caught:
        write_text_atomic(path, "new")
    assert message in one_line(caught)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_files_get_the_usual_permissions(tmp_path):
    write_text_atomic(tmp_path / "a.txt", "text")
    (tmp_path / "b.txt").write_text("text")
    mode = stat.S_IMODE((tmp_path / "a.txt").stat().st_mode)
    assert mode == stat.S_IMODE((tmp_path / "b.txt").stat().st_mode)


def test_a_missing_folder_is_told_in_one_line(tmp_path):
    with pytest.raises(RelaxRLError, match="cannot write"):
        write_text_atomic(tmp_path / "none" / "a.txt", "text")


def test_only_what_was_never_written_is_a_hole(tmp_path, monkeypatch):
    path, size = tmp_path / "table", 2**21
    path.write_bytes(b"1" * size)
    real = os.fstat
    fields = [*real(os.open(path, os.O_RDONLY))][:10]
    few = os.stat_result([*fields, 0.0, 0.0, 0.0, 0, 0, 0, 4096, 8, 0])
    assert few.st_blocks == 8, "as a file system tells that compresses"
    monkeypatch.setattr(os, "fstat", lambda descriptor: few)
    assert read_regular(path, most=2**22) == b"1" * size
    monkeypatch.undo()
    with path.open("wb") as file:
        file.truncate(size)
    with pytest.raises(OSError, match="most of it is a hole"):
        read_regular(path, most=2**22)
