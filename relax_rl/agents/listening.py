"""Who hears of a training as it goes on: of rollouts, updates, episodes and evaluations, each with plain numbers.

A listener is a function, called after every update, or an object with any of `HOOKS` as methods. All are called with the
agent and an `UpdateInfo`; an answer of False ends the training with the update at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from relax_rl.agents.rollouts import Rollout
from relax_rl.agents.statistics import UpdateInfo, stops
from relax_rl.envs import Step
from relax_rl.errors import SettingsError, shown

__all__ = [
    "HOOKS",
    "Counts",
    "HearsEpisodes",
    "HearsEvaluations",
    "HearsRollouts",
    "HearsUpdates",
    "Listener",
    "Listeners",
    "as_listeners",
    "hook_of",
    "listening",
]

_COUNT = "on_count"
HOOKS = ("on_rollout", "on_update", "on_episode", "on_evaluation")
"""What a listener may have; each is called with `(agent, info)`."""


class Learning(Protocol):
    """An agent, as far as it is listened to."""

    steps: int
    updates: int
    listeners: Listeners | None


class HearsRollouts(Protocol):
    """Is called with every rollout, before the update on it."""

    def on_rollout(self, agent: Any, info: UpdateInfo) -> bool | None:
        """`info`: steps and updates before it, the episodes that ended in it, `rollout/steps`, `rollout/reward_mean`."""


class HearsUpdates(Protocol):
    """Is called after every update, as a function is."""

    def on_update(self, agent: Any, info: UpdateInfo) -> bool | None:
        """`info`: of the update."""


class HearsEpisodes(Protocol):
    """Is called for every finished episode, after the update that learned from its end."""

    def on_episode(self, agent: Any, info: UpdateInfo) -> bool | None:
        """`info`: of that update, `episodes` this one alone, `episode/return` (raw) and `episode/length` (steps)."""


class Counts(Protocol):
    """Keeps count of a run: is called after every update before anybody else, whose errors end the run."""

    def on_count(self, agent: Any, info: UpdateInfo) -> bool | None:
        """`info`: of the update."""


class HearsEvaluations(Protocol):
    """Is called after every evaluation: of a run, or of `relax_rl.runs.listeners.evaluating`."""

    def on_evaluation(self, agent: Any, info: UpdateInfo) -> bool | None:
        """`info`: no episodes, and `evaluation/return_mean`, `evaluation/return_std`, `evaluation/length_mean`."""


Listener = Callable[..., Any] | HearsRollouts | HearsUpdates | HearsEpisodes | HearsEvaluations | Counts
"""A function of (agent, info), or an object with one of the hooks at least."""


def as_listeners(given: Iterable[Listener] | Listener | None) -> list[Listener]:
    """Several listeners, a single one, or none, as a list.

    Raises:
        SettingsError: one that cannot hear anything.
    """
    if given is None:
        return []
    single = callable(given) or _has_hook(given) or not isinstance(given, Iterable)
    found: list[Any] = [given] if single else list(given)  # type: ignore[arg-type]
    for listener in found:
        if not (callable(listener) or _has_hook(listener)):
            raise SettingsError(
                f"callback {shown(listener)} hears nothing, expected a function of (agent, info), or an object with one of "
                f"{', '.join(HOOKS)}"
            )
    return found


def hook_of(listener: Listener, name: str) -> Callable[..., Any] | None:
    """What of a listener is called at one of `HOOKS`; a function, or an object that is called, hears updates."""
    hook: Callable[..., Any] | None = getattr(listener, name, None)
    return listener if hook is None and name == "on_update" and callable(listener) else hook


def _has_hook(thing: object) -> bool:
    return any(hasattr(thing, name) for name in (_COUNT, *HOOKS))


class Listeners:
    """The listeners of one training, and whether one of them has ended it.

    Args:
        given: as in `as_listeners`.
        on_step: called with the `Step` of all environments after each.

    Attributes:
        step: hears every step; None where nobody does.
        stopped: whether an answer was False.
        begun: environment steps that the agent had taken before.
    """

    def __init__(
        self,
        given: Iterable[Listener] | Listener | None,
        on_step: Callable[[Step], object] | None = None,
        *,
        begun: int = 0,
    ) -> None:
        listeners = as_listeners(given)
        self._hooks = {name: [hook for x in listeners if (hook := hook_of(x, name))] for name in (_COUNT, *HOOKS)}
        self._on_step, self.step = on_step, None if on_step is None else self._hear_step
        self.stopped, self.begun = False, begun

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Nobody listens to a copy of the agent."""

    def rollout(self, agent: Learning, rollout: Rollout) -> None:
        """Tell of a rollout of this process, of which the agent has not learned yet."""
        if self._hooks["on_rollout"]:
            reward = rollout.reward[rollout.valid]
            mean = float(reward.mean()) if len(reward) else math.nan
            numbers = {"rollout/steps": float(len(reward)), "rollout/reward_mean": mean}
            self._tell("on_rollout", agent, UpdateInfo(agent.steps, agent.updates, rollout.episodes, numbers))

    def update(self, agent: Learning, info: UpdateInfo) -> None:
        """Tell of an update, and before that of each episode that ended in its rollout."""
        self._tell(_COUNT, agent, info)
        if self._hooks["on_episode"]:
            for episode in info.episodes:
                numbers = {"episode/return": float(episode.return_), "episode/length": float(episode.length)}
                self._tell("on_episode", agent, UpdateInfo(info.steps, info.updates, (episode,), numbers))
        self._tell("on_update", agent, info)

    def evaluation(self, agent: Learning, numbers: Mapping[str, float]) -> None:
        """Tell of an evaluation, with its numbers by name."""
        told = {f"evaluation/{name}": float(value) for name, value in numbers.items()}
        self._tell("on_evaluation", agent, UpdateInfo(agent.steps, agent.updates, (), told))

    def _tell(self, name: str, agent: Learning, info: UpdateInfo) -> None:
        answers = [hook(agent, info) for hook in self._hooks[name]]
        self.stopped = any(map(stops, answers)) or self.stopped

    def _hear_step(self, step: Step) -> None:
        assert self._on_step is not None
        self.stopped = stops(self._on_step(step)) or self.stopped


@contextmanager
def listening(
    agent: Learning,
    given: Iterable[Listener] | Listener | None,
    on_step: Callable[[Step], object] | None,
) -> Iterator[Listeners]:
    """Have these listen to the agent within the block; who evaluates it tells `agent.listeners`.

    Raises:
        SettingsError: as in `as_listeners`.
    """
    agent.listeners = listeners = Listeners(given, on_step, begun=agent.steps)
    try:
        yield listeners
    finally:
        agent.listeners = None
