"""The checkpoints of a run as files of its folder: named by their step, the newest few kept, damaged ones passed over."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from relax_rl.errors import CheckpointError
from relax_rl.serialization import writing

__all__ = ["newest_first", "newest_readable", "path_at", "remove_all_but"]

T = TypeVar("T")

_NAME = re.compile(r"step_(\d+)\.safetensors")


def path_at(folder: Path, step: int) -> Path:
    """`step_000050000.safetensors` and so on."""
    return folder / f"step_{step:09d}.safetensors"


def newest_first(folder: Path) -> list[Path]:
    """Checkpoints by step, whether they can be read or not; none where there is no such folder."""
    try:
        entries = list(folder.iterdir())
    except OSError:
        return []
    named = [(match, entry) for entry in entries if (match := _NAME.fullmatch(entry.name))]
    return [entry for _, entry in sorted(named, key=lambda pair: int(pair[0][1]), reverse=True)]


def remove_all_but(folder: Path, keep: int) -> None:
    """Remove checkpoints that are no longer needed; the newest `keep` stay.

    Raises:
        RelaxRLError: a file cannot be removed.
    """
    with writing(folder):
        for old in newest_first(folder)[keep:]:
            old.unlink(missing_ok=True)


def newest_readable(
    folder: Path, read: Callable[[Path], T], *, warn: Callable[[str], None], set_aside: bool = False
) -> tuple[T, Path]:
    """What the newest checkpoint holds that can be read, and its path.

    Args:
        folder: of the checkpoints.
        read: raises CheckpointError if a file is damaged.
        warn: takes a line for each damaged checkpoint that is passed over.
        set_aside: rename damaged ones, so that they no longer count among those to keep.

    Raises:
        CheckpointError: there is none, or none can be read.
    """
    found = newest_first(folder)
    if not found:
        raise CheckpointError(f"{folder} holds no checkpoint; start a new run, or choose another")
    for path in found:
        try:
            return read(path), path
        except CheckpointError as error:
            warn(f"{error}; trying the one before it")
            if set_aside:
                with writing(path):
                    path.rename(path.with_name(f"{path.name}.damaged"))
    raise CheckpointError(f"none of the {len(found)} checkpoints in {folder} can be read; start a new run")
