"""Devices by name."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from relax_rl.errors import SettingsError

__all__ = ["resolve_device", "set_generator_state"]

_OF_CPU = 5_056
"""Bytes of the state of the CPU's generator; others have a few words."""
_OF_OTHERS = 64


def resolve_device(name: str) -> torch.device:
    """The torch device called `name`; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        SettingsError: if there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(f"unknown device {name!r}, expected cpu, cuda, cuda:N, mps or auto") from None
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= available.get(device.type, 0):
        raise SettingsError(f"device {name!r} is not available here; use --device cpu, or auto to take what there is")
    return device


def set_generator_state(generator: torch.Generator, state: Tensor) -> None:
    """Let a generator go on from the state of another; where that was of another kind of device, from a seed made of it.

    Args:
        generator: of any device.
        state: bytes, as `get_state` gives them.

    Raises:
        RuntimeError, TypeError: it is no state.
    """
    state = state.cpu()
    sizes = sorted((state.numel(), generator.get_state().numel()))
    if state.dtype == torch.uint8 and sizes[1] == _OF_CPU and 0 < sizes[0] <= _OF_OTHERS:
        digest = hashlib.blake2b(bytes(state.tolist()), digest_size=7).digest()
        generator.manual_seed(int.from_bytes(digest, "big"))
    else:
        generator.set_state(state)
