"""The arrays inside an observation: how each is described and written down, and how some are named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from relax_rl.errors import SettingsError
from relax_rl.networks.images import image_of

__all__ = ["Leaf", "is_no_choice", "leaf_of", "named_leaves", "part_of"]

LeafKind = Literal["vector", "image", "discrete"]


@dataclass(frozen=True)
class Leaf:
    """One array inside an observation.

    Attributes:
        name: keys and indices on the way to it, joined by dots ("camera.left"); "obs" if the observation is one array.
        kind: "image" for what a CNN should see, "discrete" for choices that are embedded, else "vector".
        size: numbers it takes up in a flat encoding.
        shape: `(C, H, W)` of an image, `(size,)` of anything else.
        cnn: of an image: "nature", "impala" or "small".
        highest: of an image: the number that becomes 1.
        choices: of discrete leaves: how many there are, of all its numbers together.
    """

    name: str
    kind: LeafKind
    size: int
    shape: tuple[int, ...]
    cnn: str = "nature"
    highest: float = 255.0
    choices: int = 0


def leaf_of(
    name: str, space: spaces.Space[Any], *, cnn: str, embed: bool
) -> tuple[Leaf, Callable[[np.ndarray], np.ndarray] | None]:
    """What a leaf is, and how `[N, *space.shape]` becomes `[N, C, H, W]` or `[N, ...]` of its size; None for as it is.

    Args:
        name: of the leaf.
        space: Box, Discrete, MultiDiscrete or MultiBinary.
        cnn: as for `image_of`.
        embed: write choices as whole numbers, one for each, instead of one-hot.

    Raises:
        SettingsError: another space, or an image that the CNN cannot read.
    """
    shape: tuple[int, ...] = space.shape or ()
    if isinstance(space, spaces.Box):
        image = image_of(name, space, cnn)
        if image is not None:
            size = int(np.prod(image.shape))
            return Leaf(name, "image", size, image.shape, image.cnn, image.highest), image.encode
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        size = int(np.prod(shape))
        return Leaf(name, "vector", size, (size,)), None
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        start, choices = _choices_of(space)
        size = int(choices.sum())
        place = _places(name, choices, start)
        if embed:
            return Leaf(name, "discrete", len(choices), (len(choices),), choices=size), place
        return Leaf(name, "vector", size, (size,)), _one_hot(place, size)
    raise SettingsError(
        f"the observation {name!r} of space {space} is not supported; "
        "expected Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of them"
    )


def is_no_choice(space: spaces.Space[Any], batch: np.ndarray) -> bool:
    """Whether one of `[*]` numbers is none of the choices of a space of choices."""
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return False
    start, choices = _choices_of(space)
    index = batch.reshape(-1, len(choices)).astype(np.float64) - start
    return bool(((index < 0) | (index >= choices) | (index % 1 != 0)).any())


def _choices_of(space: spaces.Discrete | spaces.MultiDiscrete) -> tuple[np.ndarray, np.ndarray]:
    """`[K]` the first choice of each number, and `[K]` how many it has."""
    count = space.n if isinstance(space, spaces.Discrete) else space.nvec
    choices = np.reshape(count, -1).astype(np.int64)
    return np.broadcast_to(np.reshape(space.start, -1).astype(np.int64), choices.shape), choices


def _places(name: str, choices: np.ndarray, start: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """`[N]` or `[N, ...]` whole numbers to `[N, K]`: which of all choices each is, those of the first number first."""
    offsets = np.concatenate(([0], np.cumsum(choices)[:-1]))

    def encode(batch: np.ndarray) -> np.ndarray:
        index = batch.reshape(len(batch), len(choices)).astype(np.int64) - start
        if ((index < 0) | (index >= choices)).any():
            raise SettingsError(
                f"the environment's observation {name!r} lies outside its own space; mend the environment"
            )
        return np.asarray(index + offsets)

    return encode


def _one_hot(place: Callable[[np.ndarray], np.ndarray], size: int) -> Callable[[np.ndarray], np.ndarray]:
    """`[N]` or `[N, ...]` whole numbers to `[N, size]`, one block of 0/1 per number."""

    def encode(batch: np.ndarray) -> np.ndarray:
        out = np.zeros((len(batch), size), dtype=np.float32)
        np.put_along_axis(out, place(batch), 1.0, axis=1)
        return out

    return encode


def named_leaves(leaves: Sequence[Leaf], keys: Iterable[str], what: str) -> list[str]:
    """The names of the leaves of these names, or beneath them, in the order of the leaves.

    Args:
        leaves: that there are.
        keys: names, or what leaves stand beneath.
        what: the setting, for messages.

    Raises:
        SettingsError: there is no such leaf.
    """
    wanted: set[str] = set()
    for key in keys:
        found = {leaf.name for leaf in leaves if leaf.name == key or leaf.name.startswith(f"{key}.")}
        if not found:
            names = ", ".join(leaf.name for leaf in leaves)
            raise SettingsError(f"{what} names {key!r}, expected leaves of the observation: {names}")
        wanted |= found
    return [leaf.name for leaf in leaves if leaf.name in wanted]


def part_of(space: spaces.Space[Any], names: Sequence[str], name: str = "") -> spaces.Space[Any] | None:
    """The space with the leaves of these names alone, or None; a Tuple that loses a part becomes a Dict by places."""
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return space if name in names or not name else None
    items = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
    inner = [(str(key), part, part_of(part, names, f"{name}.{key}" if name else str(key))) for key, part in items]
    if all(kept is part for _, part, kept in inner):
        return space
    left = [(key, kept) for key, _, kept in inner if kept is not None]
    return spaces.Dict(left) if left else None
