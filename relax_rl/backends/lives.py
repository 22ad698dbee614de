"""Lives that are lost in games that go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

__all__ = ["Lives"]


class Lives:
    """The lives of N games, by `lives` of the infos.

    Args:
        heeded: whether anybody asks; if not, none is ever lost.
        mode: how the environments reset.
    """

    def __init__(self, heeded: bool, mode: AutoresetMode) -> None:
        self._heeded, self._same_step = heeded, mode is AutoresetMode.SAME_STEP
        self._lives: np.ndarray | None = None

    def at_reset(self, infos: Mapping[str, Any], rows: np.ndarray | None = None) -> None:
        """New games, in all environments or in some.

        Args:
            infos: of the reset.
            rows: `[N]` bool, where; None for everywhere.
        """
        found = self._in(infos)
        if rows is None:
            self._lives = found
        elif found is not None and self._lives is not None:
            self._lives = np.where(rows, found, self._lives)

    def lost(self, infos: Mapping[str, Any], valid: np.ndarray, done: np.ndarray) -> np.ndarray | None:
        """`[N]` bool, where a life was lost in a step; None where nobody tells.

        Args:
            infos: of the step.
            valid: `[N]` whose step it was.
            done: `[N]` whose last.
        """
        before, self._lives = self._lives, self._in(infos)
        if before is None or self._lives is None:
            return None
        # Under SAME_STEP, the lives that follow the end of a game are those of the next one.
        found: np.ndarray = (self._lives < before) & (valid & ~done if self._same_step else valid)
        return found

    def _in(self, infos: Mapping[str, Any]) -> np.ndarray | None:
        return np.array(infos["lives"]) if self._heeded and "lives" in infos else None
