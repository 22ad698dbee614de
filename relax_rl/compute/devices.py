"""Devices by name."""

from __future__ import annotations

import torch

from relax_rl.errors import SettingsError

__all__ = ["resolve_device"]


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
