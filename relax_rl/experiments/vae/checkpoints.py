"""The parts of a VAE run's state under one name each."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["flatten", "part"]


def flatten(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of several parts under `part/name`."""
    return {f"{name}/{key}": tensor for name, tensors in parts.items() for key, tensor in tensors.items()}


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one part, under their own names."""
    prefix = f"{name}/"
    return {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
