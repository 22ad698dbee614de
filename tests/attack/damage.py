"""Ways to damage a file: its bytes, its kind, the values in it. All are drawn from a random stream and say what they did."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load

from relax_rl.compute.serialization import load_state, save_state

__all__ = [
    "damage_bytes",
    "damage_json",
    "damage_kind",
    "damage_repaired",
    "damage_state",
    "damage_table",
    "damage_tensors",
    "mutated",
]

Random = np.random.Generator

_DEEP = "<deep>"
_DIGITS = "<digits>"
VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "x", "nan", "a" * 20_000, "\0", "\ud800", "é∞", "os:system", "../../etc/passwd"),
    *(
        -1,
        0,
        1,
        2**14,
        2**24,
        2**31,
        2**53,
        2**63,
        -(2**63),
        10**400,
        0.5,
        -0.0,
        1e308,
        5e-324,
        math.nan,
        math.inf,
        -math.inf,
    ),
    *([], {}, [[]], [None], {"": None}, [1e308] * 3, [2**14] * 3, [-1], "[]", _DEEP, _DIGITS),
)
"""What takes the place of a value."""


def damage_bytes(path: Path, random: Random) -> str:
    """Flip bits, cut, fill, repeat or append."""
    data = bytearray(path.read_bytes())
    if not data:
        data = bytearray(1)
    at, length = int(random.integers(len(data))), int(random.integers(1, 65))
    match int(random.integers(7)):
        case 0 | 1:
            places = [int(random.integers(len(data) * 8)) for _ in range(random.integers(1, 9))]
            for place in places:
                data[place // 8] ^= 1 << place % 8
            told = f"bits {places[:3]} flipped"
        case 2:
            del data[at:]
            told = f"cut at byte {at}"
        case 3:
            data[at : at + length] = bytes(len(data[at : at + length]))
            told = f"{length} zeros from byte {at}"
        case 4:
            data[at:at] = data[at : at + length]
            told = f"{length} bytes repeated at {at}"
        case 5:
            data[at:at] = random.bytes(length)
            told = f"{length} random bytes at {at}"
        case _:
            data[:8] = int(random.integers(2**63)).to_bytes(8, "little")
            told = "another first word"
    path.write_bytes(data)
    return told


def damage_kind(path: Path, random: Random) -> str:
    """Put something else where a file or folder is, or nothing."""
    kept = path.with_name(f"kept-{path.name}")
    path.rename(kept)
    kind = str(
        random.choice(["missing", "link", "dangling", "loop", "pipe", "folder", "hole", "device", "socket", "empty"])
    )
    match kind:
        case "link":
            path.symlink_to(kept)
        case "dangling":
            path.symlink_to(path.with_name("nowhere") / "at all")
        case "loop":
            path.symlink_to(path.name)
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "hole":
            with open(path, "wb") as file:
                file.truncate(2 ** int(random.integers(20, 38)))
        case "device":
            path.symlink_to("/dev/zero")
        case "socket":
            with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
                made.bind(path.name)
        case "empty":
            path.touch()
    return f"made {kind}"


def damage_json(path: Path, random: Random) -> str:
    """Change the JSON object in a file."""
    record = json.loads(path.read_text())
    told = mutated(record, random)
    path.write_text(_text(record), encoding="utf-8", errors="surrogatepass")
    return told


def mutated(record: Any, random: Random) -> str:
    """Change something in nested dictionaries and lists; returns what."""
    places = [place for place in _places(record) if place[1] != ()]
    holder, path = places[int(random.integers(len(places)))]
    key, name = path[-1], ".".join(map(str, path))
    match int(random.integers(6)):
        case 0:
            del holder[key]
            return f"{name} removed"
        case 1 if isinstance(holder, dict):
            holder[str(random.choice(["", "extra", "x" * 3000, "__class__", f"{key} "]))] = VALUES[0]
            return f"an entry beside {name}"
        case 2:
            other, (*_, there) = places[int(random.integers(len(places)))]
            holder[key], other[there] = other[there], holder[key]
            return f"{name} and {there} swapped"
        case _:
            value = deepcopy(VALUES[int(random.integers(len(VALUES)))])
            holder[key] = value
            return f"{name} is {str(value)[:30]!r}"


def damage_state(path: Path, random: Random) -> str:
    """Change the JSON in a checkpoint; its checksum is right again."""
    tensors, state = load_state(path)
    told = mutated(state, random)
    with contextlib.suppress(ValueError, UnicodeError):  # a swap may have made it endless
        save_state(path, tensors, json.loads(_text(state)) if _plain(state) else state)
    return told


def damage_tensors(path: Path, random: Random) -> str:
    """Change the tensors in a checkpoint; its checksum is right again."""
    tensors, state = load_state(path)
    names = sorted(tensors)
    name, other = (str(random.choice(names)) for _ in range(2))
    x = tensors[name]
    changes: dict[str, Callable[[], Any]] = {
        "not finite": lambda: _set(tensors, name, float(random.choice([math.nan, math.inf, -math.inf]))),
        "beyond squares": lambda: _set(tensors, name, float(random.choice([3e38, -3e38, 1e-45]))),
        "removed": lambda: tensors.pop(name),
        "renamed": lambda: tensors.update({f"{name}.x": tensors.pop(name)}),
        "doubled": lambda: tensors.update({name: torch.cat([x.reshape(-1), x.reshape(-1)])}),
        "flat": lambda: tensors.update({name: x.reshape(-1, 1)}),
        "empty": lambda: tensors.update({name: x.reshape(-1)[:0]}),
        "one number": lambda: tensors.update({name: x.reshape(-1)[:1].reshape(())}),
        "of doubles": lambda: tensors.update({name: x.double()}),
        "of halves": lambda: tensors.update({name: x.bfloat16()}),
        "of bytes": lambda: tensors.update({name: x.to(torch.uint8)}),
        "of complex numbers": lambda: tensors.update({name: x.to(torch.complex64)}),
        "added": lambda: tensors.update({f"{name}.more": torch.zeros(3)}),
        "swapped": lambda: tensors.update({name: tensors[other], other: x}),
        "negative": lambda: tensors.update({name: -x.abs() if x.dtype.is_floating_point else x}),
    }
    how = str(random.choice(sorted(changes)))
    changes[how]()
    save_state(path, tensors, state)
    return f"{name} {how}"


def damage_repaired(path: Path, random: Random) -> str:
    """Damage the bytes of a checkpoint, and make its checksum right again where it is still one."""
    told = damage_bytes(path, random)
    data = path.read_bytes()
    with contextlib.suppress(Exception):
        size = int.from_bytes(data[:8], "little")
        state = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["state"])
        save_state(path, load(data), state)
        told += ", with its checksum"
    return told


def damage_table(path: Path, random: Random) -> str:
    """Change rows, cells or the header of a CSV file."""
    lines = path.read_text().splitlines()
    row = int(random.integers(len(lines)))
    cells = lines[row].split(",")
    column = int(random.integers(len(cells)))
    odd = [
        "",
        "x",
        "nan",
        "inf",
        "1e999",
        "-1",
        "9" * 5000,
        '"',
        '"a',
        "1\r2",
        "\0",
        "é",
        "1,2",
        "a" * 200_000,
        " 1 ",
        "1_0",
        "٣",
    ]
    match int(random.integers(9)):
        case 0 | 1 | 2 | 3:
            cells[column] = odd[int(random.integers(len(odd)))]
            lines[row] = ",".join(cells)
            told = f"cell {column} of line {row + 1} is {cells[column][:20]!r}"
        case 4:
            lines.insert(row, lines[row])
            told = f"line {row + 1} doubled"
        case 5:
            del lines[row]
            told = f"line {row + 1} removed"
        case 6:
            random.shuffle(lines)
            told = "lines shuffled"
        case 7:
            path.write_bytes("\r\n".join(lines).encode())
            return "line ends of another system, the last one missing"
        case _:
            lines[row] = lines[row][: int(random.integers(len(lines[row]) + 1))]
            told = f"line {row + 1} cut"
    path.write_text("\n".join(lines) + "\n")
    return told


def _set(tensors: dict[str, torch.Tensor], name: str, value: float) -> None:
    x = tensors[name].clone()
    if x.numel() and x.dtype.is_floating_point:
        x.reshape(-1)[0] = value
    tensors[name] = x


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Every entry of nested dictionaries and lists: what holds it, and its path."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, (*at, key)
        yield from _places(value[key], (*at, key))


def _plain(value: Any) -> bool:
    return _DEEP not in str(value) and _DIGITS not in str(value)


def _text(record: Any) -> str:
    """JSON, with what Python does not write itself."""
    deep = "[" * 100_000 + "]" * 100_000
    return json.dumps(record).replace(f'"{_DEEP}"', deep).replace(f'"{_DIGITS}"', "9" * 5000)
