"""Observations and actions as tensors inside a graph: what `ObservationEncoder` and `ActionEncoder` do with arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from relax_rl.errors import SettingsError
from relax_rl.networks.actions import StructuredActions
from relax_rl.networks.leaves import Leaf
from relax_rl.networks.spaces import ActionEncoder, leaf_spaces

__all__ = ["ActionPart", "action_parts", "leaf_in_torch", "torch_dtype"]


def torch_dtype(name: str, space: spaces.Space[Any]) -> torch.dtype:
    """The dtype of a space's arrays.

    Raises:
        SettingsError: torch has none of that kind.
    """
    try:
        return torch.from_numpy(np.zeros(1, space.dtype)).dtype
    except TypeError:
        raise SettingsError(
            f"{name!r} is of {space.dtype}, which torch does not have; wrap the environment so that it gives another dtype"
        ) from None


def leaf_in_torch(
    leaf: Leaf, space: spaces.Space[Any], encode: Callable[[np.ndarray], np.ndarray]
) -> Callable[[Tensor], Tensor]:
    """The same as `encode`, on tensors `[N, *space.shape]`, to be traced.

    Args:
        leaf: what the arrays are encoded as.
        space: of the arrays.
        encode: from `[N, *space.shape]` to `[N, C, H, W]` of an image, or `[N, size]`.
    """
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return _choices(leaf, space)
    shape, size = space.shape or (), leaf.size
    # Where each number of an encoding comes from.
    order = np.reshape(encode(np.arange(size).reshape(1, *shape)), -1)
    columns = None if (order == np.arange(size)).all() else torch.from_numpy(order.copy())

    def written(x: Tensor) -> Tensor:
        flat = x.reshape(x.shape[0], size)
        flat = flat if columns is None else flat[:, columns]
        flat = flat.to(torch.uint8) if flat.dtype == torch.bool else flat
        return flat.reshape(x.shape[0], *leaf.shape)

    return written


def _choices(leaf: Leaf, space: spaces.Discrete | spaces.MultiDiscrete) -> Callable[[Tensor], Tensor]:
    counts = np.reshape(space.n if isinstance(space, spaces.Discrete) else space.nvec, -1).astype(np.int64)
    start = np.broadcast_to(np.reshape(space.start, -1).astype(np.int64), counts.shape)
    moved = torch.from_numpy(np.concatenate(([0], np.cumsum(counts)[:-1])) - start)
    embedded, size = leaf.kind == "discrete", int(counts.sum())

    def written(x: Tensor) -> Tensor:
        index = x.reshape(x.shape[0], len(counts)).to(torch.int64) + moved
        if embedded:
            return index.to(torch.float32)
        return torch.zeros((x.shape[0], size)).scatter(1, index, 1.0)

    return written


@dataclass(frozen=True)
class ActionPart:
    """One array of an action.

    Attributes:
        name: `action`, or `action.` and the keys on the way to it.
        continuous: whether it is made of the outcome's numbers, or of a whole outcome.
        make: from these `[N, ...]` to `[N, *space.shape]` in the space's dtype.
    """

    name: str
    continuous: bool
    make: Callable[[Tensor], Tensor]


def action_parts(actions: ActionEncoder, *, stretched: bool) -> list[ActionPart]:
    """Every array of an action, as `ActionEncoder.to_env` makes it.

    Args:
        actions: of the space.
        stretched: numbers lie between -1 and 1 and are stretched onto the bounds; otherwise they are clipped to them.

    Raises:
        SettingsError: torch does not have numbers of that kind.
    """
    leaves: list[tuple[ActionEncoder, Any]] = [(actions, None)]
    if isinstance(actions, StructuredActions):
        leaves = list(zip(actions.leaves, actions._columns, strict=True))
    found = []
    for (path, space), (leaf, columns) in zip(leaf_spaces(actions.space), leaves, strict=True):
        name = ".".join(map(str, ("action", *path)))
        make = _numbers(leaf, stretched) if leaf.kind == "gaussian" else _whole(leaf)
        shape, dtype = space.shape or (), torch_dtype(name, space)
        found.append(ActionPart(name, leaf.kind == "gaussian", _shaped(make, columns, shape, dtype)))
    return found


def _shaped(
    make: Callable[[Tensor, torch.dtype], Tensor], columns: Any, shape: tuple[int, ...], dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    def shaped(outcome: Tensor) -> Tensor:
        own = outcome if columns is None else outcome[:, columns]
        return make(own, dtype).reshape(outcome.shape[0], *shape)

    return shaped


def _numbers(leaf: ActionEncoder, stretched: bool) -> Callable[[Tensor, torch.dtype], Tensor]:
    low, high = (torch.from_numpy(np.array(bound, np.float64)) for bound in (leaf._low, leaf._high))

    def make(numbers: Tensor, dtype: torch.dtype) -> Tensor:
        if stretched:
            numbers = low + 0.5 * (numbers.to(torch.float64) + 1.0) * (high - low)
        return numbers.to(dtype).clamp(low.to(dtype), high.to(dtype))

    return make


def _whole(leaf: ActionEncoder) -> Callable[[Tensor, torch.dtype], Tensor]:
    start = torch.as_tensor(leaf._start)

    def make(outcome: Tensor, dtype: torch.dtype) -> Tensor:
        return (outcome.to(torch.int64) + start).to(dtype)

    return make
