"""An environment that allows other actions in every step, says so by any convention, and refuses the others."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from relax_rl.networks.masks import ActionMasks
from tests.fakes import GoldenEnv

__all__ = ["SPACES", "MaskedByMethod", "MaskedEnv", "allowed", "row_of"]

SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(5, start=-1),
    "multi_discrete": spaces.MultiDiscrete([3, 4]),
    "multi_binary": spaces.MultiBinary(3),
}
PLACE = spaces.Box(-1, np.inf, (3,), np.float32)


def row_of(space: Any, place: Any) -> np.ndarray:
    """`[W]` what a masked environment allows at a place `[index, episode, t]`; every fourth place leaves one action."""
    seed = [int(x) + 2 for x in np.ravel(place)]
    rng = np.random.default_rng(seed)
    masks = ActionMasks(space)
    few = 0.0 if sum(seed) % 4 == 0 else 0.5
    row = rng.random(masks.width) < few
    begin = 0
    for size in masks._sizes:
        row[begin + rng.integers(size)] = True
        begin += size
    return row


def allowed(space: Any, row: np.ndarray, action: Any) -> bool:
    """Whether an action of the environment's space is one of those that a row allows."""
    if isinstance(space, spaces.Discrete):
        return bool(row[int(action) - int(space.start)])
    sizes = space.nvec if isinstance(space, spaces.MultiDiscrete) else [2] * int(np.prod(space.shape))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return bool(row[starts + np.ravel(action)].all())


class MaskedEnv(GoldenEnv):
    """A golden environment with masks in its infos, or as the leaf `say.mask` of its observations.

    At the end of an episode nothing is allowed, and nothing has to be.
    """

    def __init__(self, index: int = 0, kind: str = "discrete", how: str = "info", dead_at: int = -1) -> None:
        super().__init__(index)
        self.action_space, self.how, self.dead_at = SPACES[kind], how, dead_at
        if how == "key":
            mask = spaces.MultiBinary(ActionMasks(self.action_space).width)  # type: ignore[arg-type]
            self.observation_space = spaces.Dict({"place": PLACE, "say": spaces.Dict({"mask": mask})})

    @property
    def place(self) -> np.ndarray:
        return np.array([self.index, self.episode, self.t], np.float32)

    @property
    def row(self) -> np.ndarray:
        length, _ = self.cycle[(self.episode + self.index) % len(self.cycle)]
        row = row_of(self.action_space, self.place)
        return row & (self.t not in (length, self.dead_at))

    def see(self) -> Any:
        return {"place": self.place, "say": {"mask": self.row.astype(np.int8)}} if self.how == "key" else self.place

    def info(self) -> dict[str, Any]:
        return {"action_mask": self.row.astype(np.int8)} if self.how == "info" else {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, _ = super().reset(seed=seed)
        return obs, self.info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert allowed(self.action_space, self.row, action), f"{action} is not allowed at {self.place}"
        obs, _, *ends, _ = super().step(0)
        return obs, float(np.sum(action)), *ends, self.info()


class MaskedByMethod(MaskedEnv):
    """The same with a method, which must not be asked at the end of an episode."""

    def __init__(self, index: int = 0, kind: str = "discrete", strict: bool = False) -> None:
        super().__init__(index, kind, "method")
        self.strict = strict

    def action_masks(self) -> Any:
        row = self.row
        assert row.any() or not self.strict
        return np.split(row, [3]) if isinstance(self.action_space, spaces.MultiDiscrete) else row


gym.register("relax_rl_tests/Masked-v0", MaskedEnv)
gym.register("relax_rl_tests/MaskedByMethod-v0", MaskedByMethod, kwargs={"strict": True})
