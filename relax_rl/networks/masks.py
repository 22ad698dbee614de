"""Masks of actions, in every form that environments give them, as rows of booleans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from relax_rl.errors import SettingsError
from relax_rl.networks.spaces import leaf_spaces

__all__ = ["ActionMasks", "StructuredMasks", "action_masks_for"]


class ActionMasks:
    """What may be chosen among the actions of a space: True, or 1, is allowed.

    A row has an entry for every choice: `[n]` of Discrete; `[sum(nvec)]` of MultiDiscrete, dimension after dimension;
    `[2 bits]` of MultiBinary, for each bit whether it may be 0, and then whether it may be 1.

    Args:
        space: Discrete, MultiDiscrete or MultiBinary, of a single environment.

    Attributes:
        width: W, entries of a row.
    """

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary) -> None:
        self._space, self._bits = space, 0
        if isinstance(space, spaces.Discrete):
            self._sizes: tuple[int, ...] = (int(space.n),)
        elif isinstance(space, spaces.MultiDiscrete):
            self._sizes = tuple(int(n) for n in space.nvec.reshape(-1))
        else:
            self._bits = int(np.prod(space.shape))
            self._sizes = (2,) * self._bits
        self.width = sum(self._sizes)
        self._starts = np.cumsum((0, *self._sizes[:-1]))
        widest = max(self._sizes)
        self._padded = len(self._sizes) * widest
        self._columns = np.concatenate([k * widest + np.arange(n) for k, n in enumerate(self._sizes)])

    def row(self, mask: Any) -> np.ndarray:
        """`[W]` one mask, a new array.

        Args:
            mask: flat `[W]`; of MultiDiscrete also a mask for each dimension, in a tuple or padded to the longest
                `[K, max(nvec)]`; of MultiBinary also `[bits, 2]`, or `[bits]`, which bits may be 1.

        Raises:
            SettingsError: it is something else, or holds other numbers than 0 and 1.
        """
        array = _array(mask)
        if array is None:
            array = self._joined(mask)
        found: np.ndarray = self._checked(array[None], np.shape(array))[0]
        return found

    def rows(self, masks: Any, count: int) -> np.ndarray:
        """`[N, W]` a batch of masks, a new array.

        Args:
            masks: `[N, ...]`, each as for `row`; a single one will do for a batch of one.
            count: N.

        Raises:
            SettingsError: as `row`, or there are more or fewer.
        """
        array = _array(masks)
        if array is not None and count == 1 and array.shape[:1] != (1,):
            return self.row(array)[None]
        found = len(masks) if hasattr(masks, "__len__") else 0
        if found != count:
            raise SettingsError(f"there are {found} action masks, expected {count}: one for each observation")
        if array is None:
            return np.stack([self.row(mask) for mask in masks])
        return self._checked(array, array.shape[1:])

    def of_infos(self, infos: Mapping[str, Any], count: int) -> np.ndarray:
        """`[N, W]` the masks in the infos of a vector environment; where an environment gave none, all is allowed.

        Raises:
            SettingsError: as `rows`.
        """
        masks: Any = infos.get("action_mask")
        given: Any = infos.get("_action_mask")
        if masks is not None and (given is None or given.all()):
            return self.rows(masks, count)
        found = np.ones((count, self.width), dtype=bool)
        if masks is not None and given.any():
            found[given] = self.rows(masks[given], int(np.count_nonzero(given)))
        return found

    def stuck(self, rows: np.ndarray) -> np.ndarray:
        """`[N]` bool, which of the rows `[N, W]` leave nothing to choose, in some dimension at least."""
        left: np.ndarray = np.asarray(rows.any(1)) if len(self._sizes) == 1 else self._left(rows).all(1)
        return ~left

    def sample(self, row: np.ndarray, rng: np.random.Generator) -> Any:
        """An action of the space that a row `[W]` allows."""
        picks = [int(rng.choice(np.flatnonzero(part))) for part in np.split(row, self._starts[1:])]
        if isinstance(self._space, spaces.Discrete):
            return self._space.start + picks[0]
        return np.asarray(picks, self._space.dtype).reshape(self._space.shape)

    def _left(self, rows: np.ndarray) -> Any:
        """`[N, K]` where a dimension has something left."""
        return np.logical_or.reduceat(rows, self._starts, axis=1)

    def _joined(self, mask: Any) -> np.ndarray:
        """A mask for each dimension, one after the other."""
        parts = list(_parts(mask))
        if tuple(map(len, parts)) != self._sizes:
            raise self._misfit(f"is for {', '.join(str(len(part)) for part in parts)} choices")
        return np.concatenate(parts)

    def _checked(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        flat = array.reshape(len(array), -1)
        if array.dtype.kind not in "biuf":
            raise self._misfit(f"is {array.dtype}")
        if array.dtype.kind != "b" and not ((flat == 0) | (flat == 1)).all():
            raise self._misfit(f"holds {flat[(flat != 0) & (flat != 1)][0]:g}")
        if self._bits and flat.shape[1] == self._bits:
            ones = flat.astype(bool)
            return np.stack([np.ones_like(ones), ones], -1).reshape(len(ones), -1)
        if flat.shape[1] == self._padded != self.width:
            flat = flat[:, self._columns]
        if flat.shape[1] != self.width:
            raise self._misfit(f"has shape {shape}")
        return flat.astype(bool)

    def _misfit(self, what: str) -> SettingsError:
        forms = f"({self._bits}, 2) or ({self._bits},)" if self._bits else f"({self.width},)"
        return SettingsError(
            f"an action mask {what}, expected {forms} of {self._space}, True or 1 for what is allowed and False or 0 for "
            "what is not; mend the mask"
        )


class StructuredMasks(ActionMasks):
    """The same for a Dict or Tuple space, nested at will: the rows of its choices one after the other, in the order of the space.

    A mask is nested like the space, as for its `sample(mask=...)` in Gymnasium: None, or nothing under a key, allows everything
    there. A Box has none.

    Args:
        space: Dict or Tuple with a choice in it, of a single environment.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self._nest, self._bits, self._padded = space, 0, -1
        self._parts = [(_named(path), leaf, action_masks_for(leaf)) for path, leaf in leaf_spaces(space)]
        self._sizes = tuple(size for *_, masks in self._parts if masks is not None for size in masks._sizes)
        self.width = sum(self._sizes)
        self._starts = np.cumsum((0, *self._sizes[:-1]))

    def row(self, mask: Any) -> np.ndarray:
        """`[W]` one mask, a new array: nested, or flat `[W]`.

        Raises:
            SettingsError: it is something else, or holds other numbers than 0 and 1.
        """
        array = None if isinstance(mask, Mapping | tuple) else _array(mask)
        if array is not None:
            found: np.ndarray = self._checked(array[None], array.shape)[0]
            return found
        row: np.ndarray = self._of_leaves(mask, None)[0]
        return row

    def rows(self, masks: Any, count: int) -> np.ndarray:
        """`[N, W]` a batch of masks, a new array: `[N, W]`, a list of nested ones, or one that is nested with a batch in each leaf."""
        if not isinstance(masks, Mapping | tuple):
            return super().rows(masks, count)
        return self._of_leaves(masks, count)

    def of_infos(self, infos: Mapping[str, Any], count: int) -> np.ndarray:
        masks, given = infos.get("action_mask"), infos.get("_action_mask")
        if not isinstance(masks, Mapping):
            return super().of_infos(infos, count)
        found = self.rows(masks, count)
        if given is not None:
            found[~given] = True
        return found

    def sample(self, row: np.ndarray, rng: np.random.Generator) -> Any:
        own = iter(np.split(row, np.cumsum([masks.width for *_, masks in self._parts if masks is not None])[:-1]))
        made = iter([leaf.sample() if m is None else m.sample(next(own), rng) for _, leaf, m in self._parts])
        return _like(self._nest, made)

    def _of_leaves(self, mask: Any, count: int | None) -> np.ndarray:
        """`[N, W]` from the mask of each leaf, or `[1, W]` of a single mask, its count being None; True where there is none."""
        found, rows = [], 1 if count is None else count
        for (name, leaf, masks), own in zip(self._parts, self._leaves(self._nest, mask, count), strict=True):
            if masks is None and own is not None:
                raise SettingsError(
                    f"an action mask is given for {name!r}, which is no choice but {leaf}; leave it None"
                )
            if masks is None:
                continue
            try:
                if own is None:
                    found.append(np.ones((rows, masks.width), np.bool_))
                else:
                    found.append(masks.row(own)[None] if count is None else _rows(masks, own, count))
            except SettingsError as error:
                raise SettingsError(f"at {name!r} {error}") from None
        return np.concatenate(found, 1)

    def _leaves(self, space: spaces.Space[Any], mask: Any, count: int | None) -> Iterator[Any]:
        """The masks of the leaves of a space, in its order."""
        if isinstance(space, spaces.Dict):
            known = {
                *space.spaces,
                *(f"_{key}" for key in space.spaces),
            }  # of vectors the second say where there is one
            strange = isinstance(mask, Mapping) and [key for key in mask if key not in known]
            if strange or not (mask is None or isinstance(mask, Mapping)):
                raise self._misfit(f"has {strange[0]!r}" if strange else f"is {type(mask).__name__}")
            if mask is not None and count is not None:
                mask = {key: _where_given(space, mask, key, count) for key in space.spaces}
            for key, part in space.spaces.items():
                yield from self._leaves(part, None if mask is None else mask.get(key), count)
        elif isinstance(space, spaces.Tuple):
            size = len(space.spaces)
            if count is not None and isinstance(
                mask, list | np.ndarray
            ):  # in the infos of a vector: each environment's
                columns = [[None if each is None else each[k] for each in mask] for k in range(size)]
                mask = tuple(None if all(own is None for own in column) else column for column in columns)
            if mask is not None and not (hasattr(mask, "__len__") and len(mask) == size):
                raise self._misfit(f"is not of {size} parts")
            for k, part in enumerate(space.spaces):
                yield from self._leaves(part, None if mask is None else mask[k], count)
        else:
            yield mask

    def _misfit(self, what: str) -> SettingsError:
        return SettingsError(
            f"an action mask {what}, expected one nested like {self._nest}, with None where everything is allowed, or "
            f"({self.width},) of its choices one after the other; mend the mask"
        )


def action_masks_for(space: spaces.Space[Any]) -> ActionMasks | None:
    """The masks of a space's actions; None of one whose actions are no choices."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        choices = any(action_masks_for(leaf) is not None for _, leaf in leaf_spaces(space))
        return StructuredMasks(space) if choices else None
    choices = isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)
    return ActionMasks(space) if choices else None  # type: ignore[arg-type]


def _rows(masks: ActionMasks, own: Any, count: int) -> np.ndarray:
    """`[N, W]` the masks of a leaf, all True for an environment that gave None."""
    if not isinstance(own, list) or all(mask is not None for mask in own):
        return masks.rows(own, count)
    return np.stack([np.ones(masks.width, np.bool_) if mask is None else masks.row(mask) for mask in own])


def _where_given(space: spaces.Dict, masks: Mapping[str, Any], key: str, count: int) -> Any:
    """What stands under a key of the masks of a vector: a list where some environments gave nothing, with None for them."""
    own = masks.get(key)
    given = None if f"_{key}" in space.spaces else masks.get(f"_{key}")
    if own is None or isinstance(own, Mapping | tuple) or not hasattr(own, "__len__") or len(own) != count:
        return own
    each = [None if given is not None and not given[k] else own[k] for k in range(count)]
    nothing = [x is None for x in each]
    return None if all(nothing) else each if any(nothing) else own


def _named(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))


def _like(space: spaces.Space[Any], leaves: Iterator[Any]) -> Any:
    """What there is for the leaves, in their order, nested like the space."""
    if isinstance(space, spaces.Dict):
        return {key: _like(part, leaves) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_like(part, leaves) for part in space.spaces)
    return next(leaves)


def _array(mask: Any) -> np.ndarray | None:
    """As one array, or None for masks of several lengths."""
    try:
        array = np.asarray(mask)
    except ValueError:
        return None
    return array if array.ndim and array.dtype != object else None


def _parts(mask: Any) -> Iterator[np.ndarray]:
    """The arrays of a nested sequence, in order."""
    if not isinstance(mask, list | tuple | np.ndarray):
        yield np.atleast_1d(np.asarray(mask))
    elif (array := _array(mask)) is not None and array.ndim == 1:
        yield array
    else:
        for part in mask:
            yield from _parts(part)
