"""Action spaces of several parts, and how the outcomes of a policy become actions of the environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from relax_rl.errors import SettingsError
from relax_rl.networks.spaces import ActionEncoder, leaf_spaces

__all__ = [
    "StructuredActions",
    "UnitScale",
    "action_encoder",
    "action_rows",
    "first_action",
    "num_continuous",
    "ordered_choices",
    "outcomes_to_env",
    "require_bounds",
    "unit_scale",
]

SMALLEST, LARGEST, UNBOUNDED = 0.1, 10.0, 1e9
"""Half-widths between which a range of actions that holds 0 is left as it is, and from which on it counts as no bound."""


def action_encoder(space: spaces.Space[Any]) -> ActionEncoder:
    """What names the distribution of an action space, and makes actions of its outcomes.

    Raises:
        SettingsError: for a space, or a part of one, that is none of Discrete, MultiDiscrete, MultiBinary and Box of floats.
    """
    return StructuredActions(space) if isinstance(space, spaces.Dict | spaces.Tuple) else ActionEncoder(space)


class StructuredActions(ActionEncoder):
    """The same for a Dict or Tuple space of parts, nested at will.

    An outcome is one row: the numbers of all Boxes in the order of the space, then its choices. Beside a number or a choice, a
    bit is a choice of two. Parts of one kind are a single distribution of that kind: numbers "gaussian", choices
    "multi_categorical", bits "bernoulli"; numbers and choices together are "hybrid".

    Args:
        space: Dict or Tuple.

    Attributes:
        sizes: of a hybrid, the numbers and then the alternatives of each choice; else as for a space of that kind.
        leaves: the parts, in the order of the space.
        ordered: for each choice whether it is one of a MultiDiscrete.

    Raises:
        SettingsError: for a part that is not supported, or no part at all.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.space, self._shape = space, ()
        self.leaves = tuple(ActionEncoder(part) for _, part in leaf_spaces(space))
        if not self.leaves:
            raise SettingsError(f"the action space {space} offers no action; expected at least one")
        numbers = sum(leaf.sizes[0] for leaf in self.leaves if leaf.kind == "gaussian")
        kinds = {leaf.kind for leaf in self.leaves}
        choices: list[int] = []
        ordered: list[bool] = []
        for leaf in self.leaves:
            own = () if leaf.kind == "gaussian" else leaf.sizes
            own = (2,) * own[0] if leaf.kind == "bernoulli" else own
            choices += own
            ordered += [leaf.kind == "multi_categorical"] * len(own)
        self.ordered = tuple(ordered)
        if kinds == {"gaussian"}:
            self.kind, self.sizes = "gaussian", (numbers,)
        elif kinds == {"bernoulli"}:
            self.kind, self.sizes = "bernoulli", (len(choices),)
        elif numbers:
            self.kind, self.sizes = "hybrid", (numbers, *choices)
        else:
            self.kind, self.sizes = "multi_categorical", tuple(choices)
        self._width = numbers + len(choices)
        self._columns = list(self._places(numbers))

    def _places(self, choice: int) -> Iterator[slice | int]:
        """Where each leaf's outcome stands in a row, the first choice behind the numbers."""
        number = 0
        for leaf in self.leaves:
            width = 1 if leaf.kind == "categorical" else leaf._width
            begin = number if leaf.kind == "gaussian" else choice
            number += width * (leaf.kind == "gaussian")
            choice += width * (leaf.kind != "gaussian")
            yield begin if leaf.kind == "categorical" else slice(begin, begin + width)

    def require_bounded(self) -> None:
        numbers = [leaf for leaf in self.leaves if leaf.kind == "gaussian"]
        if not numbers:
            raise SettingsError(f"squash needs a Box action space, not {self.space}; leave it off")
        for leaf in numbers:
            leaf.require_bounded()

    def to_env(self, action: np.ndarray, *, squashed: bool = False) -> Any:
        """What `env.step` takes, from what the policy sampled.

        Args:
            action: `[N, ...]` rows as the class says.
            squashed: as for a Box.

        Returns:
            Arrays `[N, ...]`, nested like the space, inside it.

        Raises:
            TrainingDiverged: if an action is not finite.
            SettingsError: if it has the wrong shape or lies outside the choices.
        """
        action = np.asarray(action)
        if action.ndim != 2 or action.shape[1] != self._width:
            raise SettingsError(f"actions have shape {action.shape}, expected {('N', self._width)}")
        every = zip(self.leaves, self._columns, strict=True)
        taken = iter([leaf.to_env(action[:, columns], squashed=squashed) for leaf, columns in every])
        return _nested(self.space, taken)


def _nested(space: spaces.Space[Any], leaves: Iterator[np.ndarray]) -> Any:
    """Arrays in the order of the leaves, nested like the space."""
    if isinstance(space, spaces.Dict):
        return {key: _nested(part, leaves) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_nested(part, leaves) for part in space.spaces)
    return next(leaves)


def first_action(actions: Any) -> Any:
    """The action of a batch of one, nested like it."""
    if isinstance(actions, Mapping):
        return {key: first_action(part) for key, part in actions.items()}
    if isinstance(actions, tuple):
        return tuple(first_action(part) for part in actions)
    return actions.squeeze(0)


def action_rows(actions: Any, count: int) -> list[Any]:
    """The single actions of a batch of `count`, each nested like it."""
    if isinstance(actions, Mapping):
        rows = {key: action_rows(part, count) for key, part in actions.items()}
        return [{key: part[n] for key, part in rows.items()} for n in range(count)]
    if isinstance(actions, tuple):
        columns = [action_rows(part, count) for part in actions]
        return [tuple(part[n] for part in columns) for n in range(count)]
    return list(actions)


def num_continuous(actions: ActionEncoder) -> int:
    """How many numbers, from the first entry on, an outcome begins with."""
    return actions.sizes[0] if actions.kind in ("gaussian", "hybrid") else 0


def ordered_choices(actions: ActionEncoder) -> list[tuple[int, bool]]:
    """The alternatives of each choice among several, and whether they may be in an order: those of MultiDiscrete."""
    if actions.kind not in ("multi_categorical", "hybrid"):
        return []
    sizes = actions.sizes[num_continuous(actions) > 0 :]
    ordered = actions.ordered if isinstance(actions, StructuredActions) else (True,) * len(sizes)
    return list(zip(sizes, ordered, strict=True))


def _boxes(actions: ActionEncoder) -> list[ActionEncoder]:
    leaves = actions.leaves if isinstance(actions, StructuredActions) else (actions,)
    return [leaf for leaf in leaves if leaf.kind == "gaussian"]


def require_bounds(actions: ActionEncoder, *, squash: bool, beta: bool) -> None:
    """Raises SettingsError where actions between bounds are asked for, and there are none, or no finite ones."""
    if squash:
        actions.require_bounded()
    if not beta:
        return
    boxes = _boxes(actions)
    if not boxes:
        raise SettingsError(f"action_distribution 'beta' needs a Box action space, not {actions.space}; leave it out")
    for box in boxes:
        if not (np.isfinite(box._low).all() and np.isfinite(box._high).all()):
            raise SettingsError(
                f"action_distribution 'beta' needs finite action bounds, not {box.space}; leave it at 'gaussian'"
            )


@dataclass(frozen=True)
class UnitScale:
    """Where 0 and 1 of each number of an outcome lie in the environment's space.

    Attributes:
        middle, half: `[D]` float64; 0 and 1 for numbers that are left as they are.
    """

    middle: np.ndarray
    half: np.ndarray

    def __call__(self, outcome: np.ndarray) -> np.ndarray:
        """`[N, D]` float64."""
        moved: np.ndarray = self.middle + self.half * outcome
        return moved


def unit_scale(actions: ActionEncoder) -> UnitScale | None:
    """The middle and the half-width of every range of actions that is far from -1 to 1; None if there is none.

    Far is a finite half-width below 0.1 or above 10, or a range that does not hold 0. Of a range with one finite bound, what counts is
    the part of width 2 at that bound.
    """
    boxes = _boxes(actions)
    if not boxes:
        return None
    low, high = (np.concatenate([getattr(box, name).astype(np.float64) for box in boxes]) for name in ("_low", "_high"))
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = (
            np.where((low < -UNBOUNDED) & (high < 0), high - 2.0, low),
            np.where((high > UNBOUNDED) & (low > 0), low + 2.0, high),
        )
        half, middle = 0.5 * high - 0.5 * low, 0.5 * high + 0.5 * low
        far = (half < SMALLEST) | (half > LARGEST) | (low > 0) | (high < 0)
        far &= np.isfinite(half) & (half > 0) & (half < UNBOUNDED)
    return UnitScale(np.where(far, middle, 0.0), np.where(far, half, 1.0)) if far.any() else None


def outcomes_to_env(actions: ActionEncoder, *, squash: bool, beta: bool, rescale: bool) -> Callable[[np.ndarray], Any]:
    """From outcomes `[N, ...]` of a policy to actions of the environment.

    Args:
        actions: of the space.
        squash: numbers are those before tanh, which is stretched onto the bounds.
        beta: numbers lie between 0 and 1, and are stretched onto the bounds.
        rescale: numbers are in the unit of `unit_scale`, and then cut to the bounds.
    """
    scale = unit_scale(actions) if rescale and not squash and not beta else None
    change: Callable[[np.ndarray], np.ndarray] | None = scale
    if squash:
        change = np.tanh
    elif beta:
        change = _to_both_sides
    if change is None:
        return actions.to_env
    numbers, stretched = num_continuous(actions), squash or beta

    def to_env(outcome: np.ndarray) -> Any:
        return actions.to_env(change(outcome), squashed=stretched)

    def hybrid_to_env(outcome: np.ndarray) -> Any:
        moved = np.concatenate([change(outcome[:, :numbers]), outcome[:, numbers:]], 1)
        return actions.to_env(moved, squashed=stretched)

    return hybrid_to_env if actions.kind == "hybrid" else to_env


def _to_both_sides(outcome: np.ndarray) -> np.ndarray:
    return 2.0 * outcome - 1.0
