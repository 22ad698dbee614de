"""Checkpoints of a VAE run: all that goes on from there, as one safetensors file with JSON beside the tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from relax_rl.errors import CheckpointError
from relax_rl.serialization import load_state, save_state, writing

__all__ = ["VaeCheckpoints", "flatten", "part"]

_NAME = re.compile(r"step_(\d+)\.safetensors")


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
        try:
            entries = list(self.path.iterdir())
        except OSError:
            return []
        named = [(match, entry) for entry in entries if (match := _NAME.fullmatch(entry.name))]
        return [entry for _, entry in sorted(named, key=lambda pair: int(pair[0][1]), reverse=True)]

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then remove those that are no longer needed.

        Raises:
            RelaxRLError: the file cannot be written; the checkpoints before it stay.
        """
        path = self.path / f"step_{max(0, step):09d}.safetensors"
        save_state(path, tensors, state)
        with writing(self.path):
            for old in self.newest_first()[self.keep :]:
                old.unlink(missing_ok=True)
        return path

    def load_newest(self, warn: Callable[[str], None]) -> tuple[dict[str, Tensor], dict[str, Any], Path]:
        """Tensors, state and path of the newest checkpoint that can be read; damaged ones are renamed.

        Raises:
            CheckpointError: there is none, or none can be read.
        """
        found = self.newest_first()
        if not found:
            raise CheckpointError(f"{self.path} holds no checkpoint; start a new run")
        for path in found:
            try:
                tensors, state = load_state(path)
            except CheckpointError as error:
                warn(f"{error}; trying the one before it")
                with writing(path):
                    path.rename(path.with_name(f"{path.name}.damaged"))
            else:
                return tensors, state, path
        raise CheckpointError(f"none of the {len(found)} checkpoints in {self.path} can be read; start a new run")
