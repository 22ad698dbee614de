"""Nested batches of observations, and batches of actions, as vector environments take and give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from relax_rl.errors import SettingsError

__all__ = [
    "CheckedActions",
    "action_checker",
    "copied",
    "put_row",
    "share_memory",
    "with_last_observations",
    "without_broken",
]


class CheckedActions(spaces.MultiDiscrete):
    """The same space for a vector environment whose actions have been checked before it gets them, and cheaper."""

    def __init__(self, space: spaces.MultiDiscrete) -> None:
        super().__init__(space.nvec, dtype=space.dtype, start=space.start)

    def contains(self, x: Any) -> bool:
        return True


def action_checker(space: spaces.Space[Any], num_envs: int) -> Callable[[Any], Any]:
    """A function that returns a batch of actions in the space's dtype, or raises SettingsError.

    Those of a Dict or Tuple space are arrays `[N, ...]` nested like it.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return _structure_checker(space, num_envs)
    low: Any
    high: Any
    if isinstance(space, spaces.Discrete):
        low, high = space.start, space.start + space.n - 1
    elif isinstance(space, spaces.MultiDiscrete):
        low, high = space.start, space.start + space.nvec - 1
    elif isinstance(space, spaces.MultiBinary):
        low, high = 0, 1
    elif isinstance(space, spaces.Box):
        low, high = space.low, space.high
    else:
        return lambda action: action
    shape, dtype = (num_envs, *(space.shape or ())), space.dtype
    kinds = "iub" if np.issubdtype(dtype, np.integer) else "iubf"

    def check(action: Any) -> np.ndarray:
        array = np.asarray(action)
        if array.shape != shape or array.dtype.kind not in kinds:
            raise SettingsError(f"actions are {array.dtype} of shape {array.shape}, expected {dtype} of shape {shape}")
        inside = (array >= low) & (array <= high)
        if not inside.all() or (array.dtype.kind == "f" and not np.isfinite(array).all()):
            raise SettingsError(f"an action lies outside {space}; expected every action inside")
        return array.astype(dtype)

    return check


def _structure_checker(space: spaces.Dict | spaces.Tuple, num_envs: int) -> Callable[[Any], Any]:
    if isinstance(space, spaces.Dict):
        named = {key: action_checker(part, num_envs) for key, part in space.spaces.items()}

        def check_dict(action: Any) -> dict[str, Any]:
            if not isinstance(action, Mapping) or action.keys() != named.keys():
                found = list(action) if isinstance(action, Mapping) else type(action).__name__
                raise SettingsError(
                    f"actions are {found}, expected a dictionary of arrays by {', '.join(map(str, named))}"
                )
            return {key: check(action[key]) for key, check in named.items()}

        return check_dict
    placed = [action_checker(part, num_envs) for part in space.spaces]

    def check_tuple(action: Any) -> tuple[Any, ...]:
        if not isinstance(action, tuple | list) or len(action) != len(placed):
            found = f"{len(action)} parts" if isinstance(action, tuple | list) else type(action).__name__
            raise SettingsError(f"actions are {found}, expected a tuple of {len(placed)} arrays")
        return tuple(check(part) for check, part in zip(placed, action, strict=True))

    return check_tuple


def copied(obs: Any) -> Any:
    """The same dictionaries and tuples with a new NumPy array in place of every array."""
    if isinstance(obs, Mapping):
        return {key: copied(part) for key, part in obs.items()}
    if isinstance(obs, tuple):
        return tuple(copied(part) for part in obs)
    return np.array(obs)


def put_row(batch: Any, row: int, obs: Any) -> None:
    """Writes one observation into one row of a batch."""
    if isinstance(batch, Mapping):
        for key, part in batch.items():
            put_row(part, row, obs[key])
    elif isinstance(batch, tuple):
        for part, value in zip(batch, obs, strict=True):
            put_row(part, row, value)
    else:
        batch[row] = obs


def _each(batch: Any) -> Any:
    """The observations of a batch one by one: it is a sequence of them already, or nested as they are."""
    if isinstance(batch, Mapping):
        parts = [_each(part) for part in batch.values()]
        return [dict(zip(batch, row, strict=True)) for row in zip(*parts, strict=True)]
    return list(zip(*map(_each, batch), strict=True)) if isinstance(batch, tuple) else batch


def share_memory(left: Any, right: Any) -> bool:
    """Whether writing to one observation may change the other."""
    if isinstance(left, Mapping):
        return any(share_memory(part, right[key]) for key, part in left.items())
    if isinstance(left, tuple):
        return any(share_memory(one, other) for one, other in zip(left, right, strict=True))
    return isinstance(left, np.ndarray) and isinstance(right, np.ndarray) and np.may_share_memory(left, right)


def with_last_observations(obs: Any, last: Any, first: Any, done: np.ndarray, env_id: str) -> Any:
    """The observations, where an episode ended within a step its last one instead of the first of the next.

    Args:
        obs: `[N, ...]` after the step.
        last: `[N]` the last ones, of those that ended.
        first: `[N]` the first ones in the arrays of the environments themselves; None where nobody knows them.
        done: `[N]` bool, which ended.
        env_id: the environment, for messages.

    Raises:
        SettingsError: there are none, or they have been overwritten.
    """
    if last is None:
        raise SettingsError(f"{env_id} autoresets by SAME_STEP but hands out no final_obs; use NEXT_STEP")
    last = _each(last)
    if len(last) != len(done):
        raise SettingsError(
            f"{env_id} hands out {len(last)} rows of final_obs, expected one for each of {len(done)} environments"
        )
    successors = copied(obs)
    for row in map(int, np.flatnonzero(done)):
        if first is not None and share_memory(last[row], first[row]):
            raise SettingsError(
                f"{env_id} reuses its observation array, so that under SAME_STEP the reset overwrote an "
                "episode's last observation; use NEXT_STEP"
            )
        put_row(successors, row, last[row])
    return successors


def without_broken(obs: Any, rows: np.ndarray) -> Any:
    """The observations, with 0 for what is not finite in some rows.

    Args:
        obs: arrays `[N, ...]`, nested; none of them is written to.
        rows: `[N]` bool, which rows to look at.
    """
    if isinstance(obs, Mapping):
        return {key: without_broken(part, rows) for key, part in obs.items()}
    if isinstance(obs, tuple):
        return tuple(without_broken(part, rows) for part in obs)
    if obs.dtype.kind != "f" or np.isfinite(obs[rows]).all():
        return obs
    broken = ~np.isfinite(obs)
    broken[~rows] = False
    return np.where(broken, np.zeros((), obs.dtype), obs)
