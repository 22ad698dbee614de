"""Numbers among the infos of environments: which are followed, and what becomes of them over an episode."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from relax_rl.errors import SettingsError

__all__ = ["ALL", "SUCCESS", "InfoTerms", "followed", "info_means", "number", "require_names"]

ALL = "all"
"""Stands for every number among the infos."""

SUCCESS = ("is_success", "success")
"""Infos that say whether what was to be done is done; the first that there is counts."""

_BOOKKEEPING = {
    "TimeLimit.truncated",
    "action_mask",
    "elapsed_step",
    "env_id",
    "episode",
    "episode_frame_number",
    "episode_number",
    "final_info",
    "final_obs",
    "frame_number",
    "lives",
    "num_steps",
    "relax_rl_complaint",
    "relax_rl_refusal",
    "seeds",
    *SUCCESS,
}
"""Infos of vector environments and emulators themselves, and those that have a way of their own."""

_NAME = re.compile(r"[\w .:/+-]{1,80}")
_MOST = 64
"""Terms that are followed at most."""


def require_names(keys: Sequence[str]) -> tuple[str, ...]:
    """The names of infos, if they can head a column.

    Raises:
        SettingsError: one cannot.
    """
    for key in keys:
        if not (isinstance(key, str) and _NAME.fullmatch(key)):
            raise SettingsError(f"info_keys names {str(key)[:80]!r}, expected letters, digits and any of _ . : / + -")
    return tuple(keys)


def followed(keys: Sequence[str], infos: Mapping[str, Any]) -> list[str]:
    """The names among infos, of a single environment or of a vector, that are followed beside success."""
    if ALL in keys:
        texts = [name for name in infos if isinstance(name, str)]  # Gymnasium lets infos have keys of any kind
        return [x for x in texts if x not in _BOOKKEEPING and x[:1] != "_" and _NAME.fullmatch(x) is not None]
    return [name for name in keys if name in infos and name not in SUCCESS]


def number(value: Any) -> float | None:
    """A scalar of Python or NumPy, or an array without axes, as a float; None for anything else."""
    if isinstance(value, np.ndarray):
        return float(value.item()) if not value.ndim and value.dtype.kind in "biuf" else None
    try:
        return float(value) if isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating) else None
    except OverflowError:
        return None


class InfoTerms:
    """What the infos of N environments come to over their present episodes.

    Success is as the last step that told it has it, 0 or 1; any other term is the mean over the steps of the episode that had
    it. Numbers that are not finite are left out.

    Args:
        num_envs: N.
        keys: names of infos that are followed beside success; "all" for every number.
        env_id: of the environments, for messages.

    Raises:
        SettingsError: a name that cannot head a column.
    """

    def __init__(self, num_envs: int, keys: Sequence[str] = (), env_id: str = "the environment") -> None:
        self._num_envs, self._keys, self._id = num_envs, require_names(keys), env_id
        self._missing = {key for key in self._keys if key != ALL and key not in SUCCESS}
        self._success: np.ndarray | None = None
        self._sums: dict[str, np.ndarray] = {}
        self._counts: dict[str, np.ndarray] = {}

    def add(self, infos: Mapping[str, Any], valid: np.ndarray, done: np.ndarray) -> None:
        """Take in the infos of a step.

        Args:
            infos: as vector environments give them; under SAME_STEP those of the last step stand in `final_info`.
            valid: `[N]` whose step it was.
            done: `[N]` whose last.
        """
        last = infos.get("final_info")
        if isinstance(last, Mapping):
            self._add(last, valid & done)
            valid = valid & ~done
        self._add(infos, valid)

    def clear(self) -> None:
        """Forget the present episodes."""
        self._success = None
        self._sums.clear()
        self._counts.clear()

    def of(self, row: int) -> dict[str, float]:
        """The terms of an episode that has ended, which are then forgotten; `success` among them if any step told it."""
        found: dict[str, float] = {}
        if self._success is not None and not math.isnan(self._success[row]):
            found["success"] = float(self._success[row])
            self._success[row] = math.nan
        for name, counts in self._counts.items():
            if counts[row]:
                found[name] = float(self._sums[name][row] / counts[row])
                self._sums[name][row] = counts[row] = 0
        if self._missing:
            for name in sorted(self._missing - found.keys()):
                told = f"info_keys names {name!r}, which no info of the first episode of {self._id} has as a number"
                warnings.warn(told, UserWarning, stacklevel=4)
            self._missing.clear()
        return found

    def _add(self, infos: Mapping[str, Any], rows: np.ndarray) -> None:
        name = next((name for name in SUCCESS if name in infos), None)
        if name is not None and (values := self._numbers(infos[name])) is not None:
            told = rows & infos.get(f"_{name}", True) & np.isfinite(values)
            if self._success is None:
                self._success = np.full(self._num_envs, math.nan)
            self._success[told] = values[told] != 0
        for name in followed(self._keys, infos) if self._keys else ():
            if (values := self._numbers(infos[name])) is not None:
                told = rows & infos.get(f"_{name}", True) & np.isfinite(values)
                if name not in self._sums:
                    if len(self._sums) == _MOST:
                        continue
                    self._sums[name], self._counts[name] = np.zeros(self._num_envs), np.zeros(self._num_envs, np.int64)
                self._sums[name][told] += values[told]
                self._counts[name] += told

    def _numbers(self, values: Any) -> np.ndarray | None:
        """`[N]` floats, or None of what is something else."""
        if isinstance(values, Mapping):
            return None
        array = np.asarray(values)
        if array.dtype == object and array.shape == (self._num_envs,):  # of environments some of which say None
            plain = [number(value) for value in array]
            return np.array([math.nan if value is None else value for value in plain])
        if array.dtype.kind not in "biuf" or array.size != self._num_envs:
            return None
        return array.reshape(self._num_envs).astype(np.float64)


def info_means(infos: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Means over episodes by column: `info/success_rate`, and `info/NAME` of every other term, of those that have it."""
    found: dict[str, list[float]] = {}
    for terms in infos:
        for name, value in terms.items():
            found.setdefault("info/success_rate" if name == "success" else f"info/{name}", []).append(value)
    return {name: math.fsum(values) / len(values) for name, values in found.items()}
