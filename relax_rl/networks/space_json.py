"""Spaces as JSON, so that a saved agent knows what it saw and did without pickling anything."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces

from relax_rl.errors import CheckpointError

__all__ = ["space_from_json", "space_to_json"]

_LARGEST = 2**24
"""Numbers in a space that is read: a network on more would not fit into memory."""


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """A JSON-able description of a Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple space."""
    if isinstance(space, spaces.Box):
        bounds = {"low": _bounds(space.low), "high": _bounds(space.high)}
        return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiDiscrete):
        start = space.start.tolist()
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": start, "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiBinary):
        # MultiBinary(3) and MultiBinary((3,)) are not equal: n keeps the form it was given in.
        return {"type": "MultiBinary", "n": space.n if isinstance(space.n, int) else [int(n) for n in space.n]}
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": [[key, space_to_json(part)] for key, part in space.spaces.items()]}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "spaces": [space_to_json(part) for part in space.spaces]}
    raise TypeError(f"no JSON form for {space}")


def space_from_json(data: Any) -> spaces.Space[Any]:
    """The space that `space_to_json` described.

    Raises:
        CheckpointError: if the description makes no sense.
    """
    try:
        kind = data["type"]
        if kind == "Box":
            shape, dtype = tuple(int(n) for n in data["shape"]), np.dtype(data["dtype"])
            if math.prod(shape) > _LARGEST or min(shape, default=0) < 0:
                raise ValueError(f"its shape is {shape}")
            low, high = (np.broadcast_to(np.asarray(data[k], dtype), shape) for k in ("low", "high"))
            return spaces.Box(low, high, shape, dtype.type)
        if kind == "Discrete":
            dtype = np.dtype(data.get("dtype", "int64")).type
            if not 0 < data["n"] <= _LARGEST:
                raise ValueError(f"n is {data['n']}")
            other: dict[str, Any] = {} if dtype is np.int64 else {"dtype": dtype}  # Gymnasium 1.2 has none other
            return spaces.Discrete(dtype(data["n"]), start=dtype(data["start"]), **other)
        if kind == "MultiDiscrete":
            dtype = np.dtype(data.get("dtype", "int64")).type
            if np.sum(np.asarray(data["nvec"], np.float64)) > _LARGEST:
                raise ValueError("it has too many choices")
            return spaces.MultiDiscrete(np.asarray(data["nvec"]), dtype, start=np.asarray(data["start"]))
        if kind == "MultiBinary":
            if math.prod(np.atleast_1d(data["n"]).tolist()) > _LARGEST:
                raise ValueError(f"n is {data['n']}")
            return spaces.MultiBinary(data["n"])
        if kind == "Dict":
            return spaces.Dict([(key, space_from_json(part)) for key, part in data["spaces"]])
        if kind == "Tuple":
            return spaces.Tuple([space_from_json(part) for part in data["spaces"]])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, AssertionError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"the saved description of a space makes no sense ({reason})") from None
    raise CheckpointError(f"the saved description of a space has the unknown type {kind!r}")


def _bounds(array: np.ndarray) -> Any:
    """All bounds, or the one they share."""
    first = array.reshape(-1)[0].item() if array.size else 0
    return first if (array == first).all() else array.tolist()
