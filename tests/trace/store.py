"""The numbers of a case on disk, the machine that they are of, and how near others have to be."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.trace.cases import Case
from tests.trace.experience import Arrays

__all__ = ["DATA", "differences", "load", "machine", "path_of", "save"]

DATA = Path(__file__).parent / "data"


def machine() -> dict[str, str]:
    """What decides how numbers are rounded."""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def path_of(case: Case) -> Path:
    return DATA / f"{case.name}.npz"


def save(case: Case, inputs: Arrays, outcomes: Arrays) -> None:
    """Write a case: all numbers of one type as one array, as every array of its own costs some 250 bytes."""
    index: list[tuple[str, str, str, tuple[int, ...]]] = []
    parts: dict[str, list[np.ndarray]] = {}
    for kind, arrays in (("inputs", inputs), ("outcomes", outcomes)):
        for name, x in arrays.items():
            x = np.asarray(x)
            index.append((kind, name, x.dtype.name, x.shape))
            parts.setdefault(x.dtype.name, []).append(np.ascontiguousarray(x).ravel())
    header = json.dumps({"machine": machine(), "index": index}, separators=(",", ":"))
    path = path_of(case)
    path.parent.mkdir(parents=True, exist_ok=True)
    flat: dict[str, Any] = {name: np.concatenate(each) for name, each in parts.items()}
    np.savez_compressed(path, header=np.frombuffer(header.encode(), np.uint8), **flat)


def load(case: Case) -> tuple[dict[str, str], Arrays, Arrays]:
    """The machine, the inputs and the outcomes of a case."""
    with np.load(path_of(case)) as file:
        flat = {name: file[name] for name in file.files}
    header = json.loads(flat.pop("header").tobytes())
    found: dict[str, Arrays] = {"inputs": {}, "outcomes": {}}
    places = dict.fromkeys(flat, 0)
    for kind, name, dtype, shape in header["index"]:
        begin = places[dtype]
        places[dtype] = end = begin + int(np.prod(shape))
        found[kind][name] = flat[dtype][begin:end].reshape(shape)
    return header["machine"], found["inputs"], found["outcomes"]


def differences(case: Case, found: Arrays, expected: Arrays) -> list[str]:
    """A line for everything that is missing, unexpected, or too far from what was recorded, the first step first.

    New metrics are nobody's business. Numbers may differ by 1e-9 of the largest in their tensor at the same step, and
    metrics by 1e-9 of 1 as well, as some are small differences of large numbers; by 1e-5 in single precision.
    """
    tolerance = 1e-5 if case.single else 1e-9
    lines = [f"{name} is missing" for name in expected.keys() - found.keys()]
    lines += [f"{name} is new" for name in found.keys() - expected.keys() if not name.startswith("metrics/")]
    far = []
    for name in expected.keys() & found.keys():
        theirs, ours = expected[name], found[name]
        if theirs.shape != ours.shape:
            lines.append(f"{name} has shape {ours.shape}, recorded {theirs.shape}")
            continue
        for step, (x, y) in enumerate(zip(theirs, ours, strict=True)):
            largest = np.abs(x, where=np.isfinite(x), out=np.zeros(np.shape(x))).max(initial=0.0)
            least = tolerance * (1.0 + largest if name.startswith("metrics/") else largest)
            if not np.allclose(y, x, rtol=0.0, atol=least, equal_nan=True):
                off = np.abs(np.asarray(y, np.float64) - x).max()
                far.append((step, f"{name} at step {step}: off by {off:.3g}, allowed {least:.3g}"))
    return sorted(lines) + [line for _, line in sorted(far)]
