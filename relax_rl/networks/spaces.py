"""Observation and action spaces as the networks see them: one array in, one distribution out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from gymnasium import spaces

from relax_rl.errors import SettingsError, TrainingDiverged
from relax_rl.networks.images import SMALLEST_IMAGE_SIDE, looks_like_image
from relax_rl.networks.leaves import Leaf, is_no_choice, leaf_of, named_leaves, part_of

__all__ = ["ActionEncoder", "Leaf", "ObservationEncoder", "leaf_spaces"]

_FAR = 2.0**16
"""Size of a number from which float32 may cut digits that matter: its steps are 1/128 there."""

ActionKind = Literal["categorical", "multi_categorical", "bernoulli", "gaussian", "hybrid"]


@dataclass(frozen=True)
class _LeafEncoder:
    """How one leaf is found in a batch and written down: images to `[N, C, H, W]`, the rest to `[N, size]`."""

    leaf: Leaf
    path: tuple[str | int, ...]
    space: spaces.Space[Any]
    encode: Callable[[np.ndarray], np.ndarray]

    def find(self, observation: Any) -> np.ndarray:
        for key in self.path:
            observation = observation[int(key) if isinstance(observation, tuple) else key]
        return np.asarray(observation)


class ObservationEncoder:
    """Turns a batch of observations of any supported space into one array.

    A single image leaf of bytes or bits stays an image, `uint8 [N, C, H, W]`. Everything else becomes `float32 [N, D]`:
    the leaves in the order of the space, Box flattened, Discrete and MultiDiscrete one-hot, MultiBinary 0/1, images among
    other leaves, and those of floats, as their numbers in CHW order.

    By default an image is a uint8 Box whose spatial sides are at least 36: rank 2 (one channel), rank 3 (channels first
    or last, the shorter of the two ends) or rank 4 (a stack of rank-3 frames, stacked along the channels).

    Args:
        space: Box, Discrete, MultiDiscrete or MultiBinary, or a Dict or Tuple of these, nested at will.
        cnn: what counts as an image, see `relax_rl.networks.images.image_of`; that of an agent is its setting.
        embed: write choices as whole numbers, which a torso embeds, instead of one-hot.

    Attributes:
        shape: of one encoded observation, `(C, H, W)` or `(D,)`.
        dtype: uint8 if `is_image`, else float32.
        leaves: in encoding order.
        is_image: True if the only leaf is an image.

    Raises:
        SettingsError: for any other space, or one without a single number in it.
    """

    def __init__(self, space: spaces.Space[Any], *, cnn: str = "legacy", embed: bool = False) -> None:
        self.space, self._cnn, self._embed = space, cnn, embed
        # A Tuple of which parts are left out is a Dict by their places.
        left = space.spaces if isinstance(space, spaces.Dict) else ()
        self._by_place = isinstance(space, spaces.Tuple) or (bool(left) and all(str(key).isdecimal() for key in left))
        self._encoders = tuple(self._encoder(path, part) for path, part in leaf_spaces(space))
        self.leaves: tuple[Leaf, ...] = tuple(encoder.leaf for encoder in self._encoders)
        size = sum(leaf.size for leaf in self.leaves)
        if size == 0:
            raise SettingsError(f"the observation space {space} holds no numbers; give the agent something to see")
        compact = self._encoders[0].space.dtype in (np.uint8, np.bool_)
        self.is_image: bool = compact and len(self.leaves) == 1 and self.leaves[0].kind == "image"
        self.shape: tuple[int, ...] = self.leaves[0].shape if self.is_image else (size,)
        self.dtype: np.dtype[Any] = np.dtype(np.uint8 if self.is_image else np.float32)

    def _encoder(self, path: tuple[str | int, ...], space: spaces.Space[Any]) -> _LeafEncoder:
        name = ".".join(str(key) for key in path) or "obs"
        leaf, encode = leaf_of(name, space, cnn=self._cnn, embed=self._embed)
        return _LeafEncoder(leaf, path, space, encode or _as_it_is)

    def only(self, keys: Sequence[str], what: str = "keys") -> ObservationEncoder:
        """The same for some leaves alone; this very encoder if these are all, or none is named.

        Args:
            keys: names of leaves, or of what they stand beneath.
            what: the setting that names them, for messages.

        Raises:
            SettingsError: there is no such leaf.
        """
        names = named_leaves(self.leaves, keys, what)
        if len(names) in (0, len(self.leaves)):
            return self
        part = part_of(self.space, names)
        assert part is not None
        return ObservationEncoder(part, cnn=self._cnn, embed=self._embed)

    def spans(self, part: ObservationEncoder) -> tuple[tuple[int, int], ...]:
        """Where the leaves of `only` stand in a flat encoding, from and up to which column; neighbours as one."""
        found: list[tuple[int, int]] = []
        begin, names = 0, {leaf.name for leaf in part.leaves}
        for leaf in self.leaves:
            end = begin + leaf.size
            if leaf.name in names:
                joined = bool(found) and found[-1][1] == begin
                found[-1:] = [(found[-1][0], end)] if joined else [*found[-1:], (begin, end)]
            begin = end
        return tuple(found)

    def parts(self) -> Iterator[tuple[Leaf, spaces.Space[Any], Callable[[np.ndarray], np.ndarray]]]:
        """Every leaf with its space, and how `[N, *space.shape]` of it becomes `[N, C, H, W]` or `[N, ...]` of its size."""
        for each in self._encoders:
            yield each.leaf, each.space, each.encode

    def encode(self, batch: Any, *, shift: np.ndarray | None = None) -> np.ndarray:
        """A batch of observations as one array `[N, *shape]` of `dtype`.

        Args:
            batch: arrays `[N, ...]`, nested like the space, as a vector environment returns them.
            shift: `[D]` float64, taken off flat encodings before their digits are cut to float32.

        Returns:
            A new array, or a view of the batch where nothing had to change.
        """
        if len(self._encoders) == 1:
            only = self._encoders[0]
            encoded = only.encode(only.find(batch))
            if self.is_image:
                return encoded
            encoded = encoded.reshape(len(encoded), *self.shape)
            return (encoded if shift is None else encoded - shift).astype(np.float32, copy=False)
        arrays = [encoder.find(batch) for encoder in self._encoders]
        out = np.empty((len(arrays[0]), *self.shape), dtype=np.float32)
        begin = 0
        for encoder, array in zip(self._encoders, arrays, strict=True):
            end = begin + encoder.leaf.size
            part = encoder.encode(array).reshape(len(array), encoder.leaf.size)
            out[:, begin:end] = part if shift is None else part - shift[begin:end]
            begin = end
        return out

    def shift_for(self, batch: Any) -> np.ndarray | None:
        """What to take off observations of which float32 would lose digits, such as the seconds since 1970.

        Args:
            batch: `[N, ...]` the first ones.

        Returns:
            `[D]` float64, 0 where float32 will do; None where it does everywhere.
        """
        if self.is_image:
            return None
        shift, begin = np.zeros(self.shape), 0
        for encoder in self._encoders:
            array, end = encoder.find(batch), begin + encoder.leaf.size
            if encoder.encode is _as_it_is and array.dtype.itemsize >= 4 and array.dtype != np.float32:
                first = array[0].reshape(-1).astype(np.float64)
                shift[begin:end] = np.where(np.isfinite(first) & (np.abs(first) >= _FAR), first, 0.0)
            begin = end
        return shift if shift.any() else None

    def vector_columns(self) -> np.ndarray:
        """`[K]` the entries of an encoding that are none of an image."""
        kinds = np.repeat([leaf.kind for leaf in self.leaves], [leaf.size for leaf in self.leaves])
        return np.flatnonzero(kinds == "vector")

    def small_images(self) -> list[str]:
        """Names and shapes of leaves that may be meant as images, and go to an MLP as plain numbers."""
        return [
            f"{each.leaf.name!r} ({each.space.dtype}, {'x'.join(map(str, each.space.shape or ()))})"
            for each in self._encoders
            if each.leaf.kind == "vector" and looks_like_image(each.space)
        ]

    def image_warning(self) -> str:
        """What is said of such leaves, and what to do about them; nothing where there are none, or no CNN is wanted."""
        small = ", ".join(self.small_images())
        if not small or self._cnn == "none":
            return ""
        told = f"{small} of the observations goes to an MLP as plain numbers; "
        if self._cnn == "legacy":
            return f"{told}the CNN is for uint8 images of at least {SMALLEST_IMAGE_SIDE} pixels a side"
        return f"{told}if that is an image, name a CNN for it, such as cnn='small', and cnn='none' if it is none"

    def leaf_at(self, column: int) -> Leaf:
        """The leaf that an entry of a flat encoding belongs to."""
        ends = np.cumsum([leaf.size for leaf in self.leaves])
        return self.leaves[int(np.searchsorted(ends, column, side="right"))]

    def as_batch(self, observation: Any) -> tuple[Any, bool]:
        """A batch from a single observation or a batch, and whether it was a single one.

        Raises:
            SettingsError: if the observation fits neither.
        """
        if isinstance(observation, tuple) and not self._by_place:
            raise self._misfit("an observation is a tuple", "; give the first part of what env.reset() returns")
        lengths: dict[int, str] = {}  # -1: a single one
        for encoder in self._encoders:
            name, shape = encoder.leaf.name, encoder.space.shape or ()
            try:
                array = encoder.find(observation)
            except (KeyError, IndexError, TypeError, ValueError):
                raise self._misfit(f"an observation has no leaf {name!r}, or one that is no array") from None
            if array.shape != shape and array.shape[1:] != shape:
                raise self._misfit(f"the observation {name!r} has shape {array.shape}, not {shape}")
            if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and not _is_finite(array)):
                raise self._misfit(f"the observation {name!r} holds what is not a finite number in float32")
            if is_no_choice(encoder.space, array):
                raise self._misfit(f"the observation {name!r} holds what is no choice of {encoder.space}")
            lengths.setdefault(-1 if array.shape == shape else len(array), name)
        if len(lengths) > 1:
            told = ", ".join(f"{name!r} {'a single one' if n < 0 else n}" for n, name in lengths.items())
            raise self._misfit(f"leaves of an observation are batches of unequal lengths ({told})")
        if -1 in lengths:
            return _map_leaves(lambda leaf: np.asarray(leaf)[None], self.space, observation), True
        return observation, False

    def _misfit(self, what: str, advice: str = "") -> SettingsError:
        return SettingsError(f"{what}; expected one of {self.space}, or a batch of them{advice}")


class ActionEncoder:
    """Names the distribution an action space asks for and turns its samples into environment actions.

    Args:
        space: Discrete, MultiDiscrete, MultiBinary or a Box of floats.

    Attributes:
        kind: "categorical", "multi_categorical", "bernoulli" or "gaussian".
        sizes: `(n,)`, the `nvec` flattened, `(bits,)`, `(dims,)`.

    Raises:
        SettingsError: for any other space.
    """

    kind: ActionKind
    sizes: tuple[int, ...]

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.space = space
        self._shape: tuple[int, ...] = space.shape or ()
        self._start: Any = 0
        if isinstance(space, spaces.Discrete):
            self.kind, self.sizes, self._start = "categorical", (int(space.n),), int(space.start)
            self._limits: Any = int(space.n)
        elif isinstance(space, spaces.MultiDiscrete):
            self.kind, self.sizes = "multi_categorical", tuple(int(n) for n in space.nvec.reshape(-1))
            self._start, self._limits = (x.reshape(-1).astype(np.int64) for x in (space.start, space.nvec))
        elif isinstance(space, spaces.MultiBinary):
            self.kind, self.sizes, self._limits = "bernoulli", (int(np.prod(self._shape)),), 2
        elif isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            self.kind, self.sizes = "gaussian", (int(np.prod(self._shape)),)
            self._low, self._high = space.low.reshape(-1), space.high.reshape(-1)
        else:
            raise SettingsError(
                f"the action space {space} is not supported; expected Discrete, MultiDiscrete, MultiBinary or a Box of floats"
            )
        self._width = len(self.sizes) if self.kind == "multi_categorical" else sum(self.sizes)
        if self._width == 0:
            raise SettingsError(f"the action space {space} offers no action; expected at least one")

    def require_bounded(self) -> None:
        """Raises SettingsError unless every action dimension has finite bounds, as squashing needs."""
        if self.kind != "gaussian":
            raise SettingsError(f"squash needs a Box action space, not {self.space}; leave it off")
        if not (np.isfinite(self._low).all() and np.isfinite(self._high).all()):
            raise SettingsError(f"squash needs finite action bounds, not {self.space}; leave it off")

    def to_env(self, action: np.ndarray, *, squashed: bool = False) -> np.ndarray:
        """What `env.step` takes, from what the policy sampled.

        Args:
            action: whole numbers from 0, `[N]` (categorical), `[N, K]` (multi_categorical), `[N, D]` of 0 and 1
                (bernoulli), or floats `[N, D]` (gaussian).
            squashed: a gaussian action lies in (-1, 1) and is stretched linearly onto the bounds; otherwise it is
                clipped to them.

        Returns:
            `[N, *space.shape]` in the space's dtype, inside the space.

        Raises:
            TrainingDiverged: if an action is not finite.
            SettingsError: if it has the wrong shape or lies outside the choices.
        """
        action = np.asarray(action)
        if action.dtype.kind == "f" and not np.isfinite(action).all():
            raise TrainingDiverged("an action is not a finite number; lower the learning rates")
        expected = () if self.kind == "categorical" else (self._width,)
        if action.shape[1:] != expected or action.ndim == 0:
            raise SettingsError(f"actions have shape {action.shape}, expected {('N', *expected)}")
        if self.kind == "gaussian":
            moved = self._stretch(action) if squashed else action
            moved = np.clip(moved.astype(self.space.dtype, copy=False), self._low, self._high)
        else:
            moved = self._choices(action)
        return moved.reshape(len(action), *self._shape)

    def _stretch(self, action: np.ndarray) -> np.ndarray:
        # double precision, since high - low may overflow the space's own
        low, high = self._low.astype(np.float64), self._high.astype(np.float64)
        return low + 0.5 * (action.astype(np.float64) + 1.0) * (high - low)

    def _choices(self, action: np.ndarray) -> np.ndarray:
        whole: np.ndarray = action.astype(np.int64, copy=False)
        if (action.dtype.kind == "f" and (whole != action).any()) or ((whole < 0) | (whole >= self._limits)).any():
            raise SettingsError(f"an action lies outside the choices of {self.space}; they are counted from 0")
        whole = whole + self._start
        return whole.astype(self.space.dtype, copy=False)


def leaf_spaces(
    space: spaces.Space[Any], path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every leaf space with the keys that lead to it, in the order of the space."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from leaf_spaces(part, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, part in enumerate(space.spaces):
            yield from leaf_spaces(part, (*path, index))
    else:
        yield path, space


def _map_leaves(function: Callable[[Any], np.ndarray], space: spaces.Space[Any], observation: Any) -> Any:
    if isinstance(space, spaces.Dict) and isinstance(observation, Mapping | tuple):
        by_place, held = isinstance(observation, tuple), cast(Any, observation)
        return {
            key: _map_leaves(function, part, held[int(key) if by_place else key]) for key, part in space.spaces.items()
        }
    if isinstance(space, spaces.Tuple):
        return tuple(_map_leaves(function, part, observation[i]) for i, part in enumerate(space.spaces))
    return function(observation)


def _as_it_is(batch: np.ndarray) -> np.ndarray:
    return batch


def _is_finite(array: np.ndarray) -> bool:
    """Whether numbers are finite as networks take them."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(array.astype(np.float32, copy=False)).all())
