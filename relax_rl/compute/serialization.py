"""State on disk: one safetensors file per state, JSON for what is not a tensor, nothing that can execute code.

A file written here is a plain safetensors file. Its metadata carries the JSON of the rest of the state, a format
version and a SHA-256 over both, so that damage is told from data. The digest is no signature: it guards against
truncated and corrupted files, not against someone who rewrites it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from relax_rl.errors import CheckpointError, DamagedCheckpoint, RelaxRLError

if TYPE_CHECKING:
    import torch

__all__ = [
    "FORMAT_VERSION",
    "digest",
    "load_state",
    "pack",
    "part",
    "read_regular",
    "replacing",
    "save_state",
    "unpack",
    "without_waiting",
    "write_bytes_atomic",
    "write_json",
    "write_text_atomic",
    "writing",
]

FORMAT = "relax_rl"
FORMAT_VERSION = 1
_LARGEST = 2**34
"""Bytes of a checkpoint that is read."""
_SMALL = 2**20


def save_state(
    path: str | os.PathLike[str] | BinaryIO, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]
) -> None:
    """Write tensors and a JSON-able state into one safetensors file, atomically.

    Args:
        path: the file, whose folder is made if need be; or a file open for writing, which is not closed.
        tensors: any dtypes, shapes and devices; they are stored as contiguous copies on the CPU.
        state: nested dicts, lists, strings, numbers, booleans and None. Tuples come back as lists.

    Raises:
        TypeError: `state` holds something JSON has no word for, such as an array.
        RelaxRLError: the file cannot be written.
    """
    from safetensors.torch import save

    text = json.dumps(dict(state), sort_keys=True)
    # A fresh copy each: safetensors refuses tensors that share memory, as tied weights do.
    arrays = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {
        "format": FORMAT,
        "version": str(FORMAT_VERSION),
        "state": text,
        "sha256": digest(arrays, text),
    }
    content = save(arrays, metadata=metadata)
    if not isinstance(path, (str, os.PathLike)):
        path.write(content)
        return
    with writing(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, content)


def load_state(path: str | os.PathLike[str] | BinaryIO) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save_state` wrote, from a path or a file open for reading: `(tensors on the CPU, state)`.

    Raises:
        CheckpointError: the file is missing, unreadable, or of a newer format.
        DamagedCheckpoint: it is truncated or altered.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        is_path = isinstance(path, (str, os.PathLike))
        data = read_regular(path, most=_LARGEST) if is_path else path.read()  # type: ignore[arg-type, union-attr]
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path} does not exist") from None
    except (OSError, MemoryError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    metadata = _metadata(path, data)
    try:
        tensors = load(data)
        state = json.loads(metadata["state"])
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        raise DamagedCheckpoint(f"checkpoint {path} is damaged: its content does not fit its header") from None
    if digest(tensors, metadata["state"]) != metadata.get("sha256"):
        raise DamagedCheckpoint(f"checkpoint {path} is damaged: its checksum does not match its content")
    if not isinstance(state, dict):
        raise DamagedCheckpoint(f"checkpoint {path} is damaged: its state is not a JSON object")
    return tensors, state


def read_regular(path: str | os.PathLike[str], *, most: int) -> bytes:
    """The content of a regular file of at most so many bytes: no link, and nothing that could be read for ever.

    Raises:
        OSError: it is another kind of file, or larger, or cannot be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = without_waiting(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link") from None
        raise
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        if found.st_size > most:
            raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes, expected at most {most:,}")
        if found.st_size > _SMALL and _is_mostly_hole(descriptor, found):
            raise OSError(errno.EINVAL, "most of it is a hole")
        return file.read()


def _is_mostly_hole(descriptor: int, found: os.stat_result) -> bool:
    """Whether a file takes far less room than it has bytes, and that because nothing was written: others are compressed."""
    if getattr(found, "st_blocks", 1) * 512 >= found.st_size // 2 or not hasattr(os, "SEEK_HOLE"):
        return False
    first = os.lseek(descriptor, 0, os.SEEK_HOLE)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return first < found.st_size


def without_waiting(path: str | os.PathLike[str], flags: int) -> int:
    """An opener, as `open` takes one, that no pipe keeps waiting for its other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)


def pack(components: Mapping[str, Any], separator: str = ".") -> dict[str, torch.Tensor]:
    """The tensors of all components, each under the component's name and its own."""
    return {f"{name}{separator}{key}": x for name, each in components.items() for key, x in each.state_dict().items()}


def unpack(components: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], separator: str = ".") -> None:
    """Give each component back what `pack` took; all of it or nothing.

    Raises:
        KeyError, RuntimeError, ValueError, TypeError: if anything is missing, of another shape, not finite, or left over.
    """
    for name, x in tensors.items():
        if name.partition(separator)[0] not in components:
            raise ValueError(f"there is no place for {name}")
        if not x.isfinite().all():
            raise ValueError(f"{name} is not finite")
    before = {name: x.detach().clone() for name, x in pack(components, separator).items()}
    try:
        for name, each in components.items():
            each.load_state_dict(part(tensors, f"{name}{separator}"))
    except (KeyError, RuntimeError, ValueError, TypeError):
        for name, each in components.items():
            each.load_state_dict(part(before, f"{name}{separator}"))
        raise


def part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Those whose names begin so, under the rest of their names."""
    return {name[len(prefix) :]: x for name, x in tensors.items() if name.startswith(prefix)}


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write strict JSON atomically: infinity and NaN, which JSON has no word for, become strings.

    Args:
        path: of the file.
        content: what JSON has words for otherwise.

    Raises:
        RelaxRLError: the file cannot be written.
    """
    write_text_atomic(path, json.dumps(_strict(content), indent=2, allow_nan=False) + "\n")


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file so that a reader sees either the old file or the whole new one.

    Raises:
        RelaxRLError: the file cannot be written.
    """
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that a reader, or a crash in the middle, sees either the old file or the whole new one.

    Raises:
        RelaxRLError: the file cannot be written (no such folder, no permission, disk full).
    """
    with writing(path), replacing(path) as temporary, open(temporary, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # the new name must never point at blocks that are not on disk yet


@contextmanager
def replacing(path: str | os.PathLike[str], *, suffix: str = ".tmp") -> Iterator[Path]:
    """A path beside `path` to write to; at the end of the block the file takes the place of `path`, or goes.

    Args:
        path: the file in the end.
        suffix: of the name in the meantime, for writers that go by it.
    """
    temporary = Path(path).with_name(f".{Path(path).name}.{secrets.token_hex(4)}{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Tell what the system says against writing `path` (disk full, no permission) in one line.

    Raises:
        RelaxRLError: in place of any OSError inside the block.
    """
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).partition("\n")[0]
        raise RelaxRLError(f"cannot write {path}: {reason}") from error


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(entry) for entry in value]
    if isinstance(value, os.PathLike):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _metadata(path: object, data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, read without trusting any number in it."""
    try:
        (size,) = struct.unpack_from("<Q", data)
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
        if metadata.get("format") != FORMAT:
            raise DamagedCheckpoint(f"{path} is not a relax_rl checkpoint")
        version = int(metadata.get("version", ""))
    except (struct.error, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise DamagedCheckpoint(
            f"checkpoint {path} is damaged or not a checkpoint: its header cannot be read"
        ) from None
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {path} has format {version}, this relax_rl reads up to {FORMAT_VERSION}; update relax_rl"
        )
    return {str(key): str(value) for key, value in metadata.items()}


def digest(tensors: Mapping[str, torch.Tensor], text: str = "") -> str:
    """SHA-256 over the JSON text and every tensor's name, dtype, shape and bytes, in the order of the names."""
    import torch

    found = hashlib.sha256()
    _update(found, text.encode("utf-8"))
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        _update(found, f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # Bytes through uint8: numpy knows no bfloat16.
        _update(found, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _update(digest: hashlib._Hash, data: bytes | memoryview) -> None:
    """Feed one field; its length goes first, so that no two sequences of fields read the same."""
    digest.update(struct.pack("<Q", len(data)))
    digest.update(data)
