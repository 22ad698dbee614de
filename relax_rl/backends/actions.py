"""Continuous actions cut into bins: a choice per dimension in place of a number."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from relax_rl.errors import SettingsError
from relax_rl.settings.config import EnvConfig
from relax_rl.settings.fields import allowed, settings_of

__all__ = ["ActionBins", "BinnedActions"]


class ActionBins:
    """The choices that stand for the actions of a Box: in each dimension equally spaced values, both bounds included.

        value = low + (high - low) choice / (bins - 1)

    Args:
        space: a Box of floats with finite bounds.
        bins: values per dimension, at least 2.

    Attributes:
        space: MultiDiscrete, `bins` choices in each dimension, in the shape of the Box.
        values: `[bins, *shape]` what each choice means, in the dtype of the Box.

    Raises:
        SettingsError: for any other space, infinite bounds, or too few bins.
    """

    def __init__(self, space: spaces.Space[Any], bins: int) -> None:
        known = settings_of(EnvConfig)["bins"]
        if not (bins := allowed(known, bins)):
            raise SettingsError(f"bins is {bins}, expected {known.rule}")
        if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
            raise SettingsError(f"bins cuts a Box of floats, not {space}; leave it at 0")
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise SettingsError(f"bins needs finite action bounds, not {space}; leave it at 0")
        if not space.shape:
            raise SettingsError(f"bins needs at least one dimension of actions, not {space}; leave it at 0")
        self.space = spaces.MultiDiscrete(np.full(space.shape, bins))
        exact = np.linspace(space.low.astype(np.float64), space.high.astype(np.float64), bins)
        self.values: np.ndarray = exact.astype(space.dtype)

    def to_box(self, choice: np.ndarray) -> np.ndarray:
        """The actions that choices stand for.

        Args:
            choice: whole numbers below `bins`, `[*shape]` or `[N, *shape]`.

        Returns:
            Values of the same shape in the dtype of the Box, inside its bounds.
        """
        index = (choice, *np.indices(self.space.shape, sparse=True))
        taken: np.ndarray = self.values[index]
        return taken


class BinnedActions(gym.ActionWrapper[Any, Any, Any]):
    """A single environment whose continuous actions are cut into bins; see `ActionBins`."""

    def __init__(self, env: gym.Env[Any, Any], bins: int) -> None:
        super().__init__(env)
        self._bins = ActionBins(env.action_space, bins)
        self.action_space = self._bins.space

    def action(self, action: Any) -> np.ndarray:
        """The action of the environment within for a choice `[*shape]`."""
        return self._bins.to_box(np.asarray(action))
