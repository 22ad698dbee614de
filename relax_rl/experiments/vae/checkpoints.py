"""Checkpoints of a VAE run: all that goes on from there, as one safetensors file with JSON beside the tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from relax_rl import checkpoint_files
from relax_rl.serialization import load_state, save_state

__all__ = ["VaeCheckpoints", "flatten", "part"]


def flatten(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of several parts under `part/name`."""
    return {f"{name}/{key}": tensor for name, tensors in parts.items() for key, tensor in tensors.items()}


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one part, under their own names."""
    prefix = f"{name}/"
    return {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}


class VaeCheckpoints:
    """`step_000050000.safetensors` and so on; the last `keep` are kept, and the best by the validation bound.

    Args:
        path: the folder.
        keep: two, so that a damaged last one does not cost the run.
    """

    def __init__(self, path: Path, *, keep: int = 2) -> None:
        self.path, self.keep = path, keep

    @property
    def best(self) -> Path:
        """The state with the best validation bound, where training may stop early."""
        return self.path / "best.safetensors"

    def newest_first(self) -> list[Path]:
        """Checkpoints by step, whether they can be read or not."""
        return checkpoint_files.newest_first(self.path)

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then remove those that are no longer needed.

        Raises:
            RelaxRLError: the file cannot be written; the checkpoints before it stay.
        """
        path = checkpoint_files.path_at(self.path, max(0, step))
        save_state(path, tensors, state)
        checkpoint_files.remove_all_but(self.path, self.keep)
        return path

    def load_newest(self, warn: Callable[[str], None]) -> tuple[dict[str, Tensor], dict[str, Any], Path]:
        """Tensors, state and path of the newest checkpoint that can be read; damaged ones are renamed.

        Raises:
            CheckpointError: there is none, or none can be read.
        """
        (tensors, state), path = checkpoint_files.newest_readable(self.path, load_state, warn=warn, set_aside=True)
        return tensors, state, path
