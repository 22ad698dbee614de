"""Trials of searches that are asked again, variants of them, and recipes that no search has proposed: who can meet in a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.factorial import OF_TASK, RECIPE
from benchmarks.search import SEARCHES, settings_of, trials_of

__all__ = [
    "BOUNDED",
    "CENTRED",
    "FAR",
    "FAST",
    "FIRST_SEED",
    "FORMER",
    "PASSES",
    "SMALL",
    "SURROGATE",
    "UNBOUNDED",
    "Finalist",
    "Round",
    "ant",
    "double",
    "early",
    "former",
    "lander",
    "recipe",
    "untold",
    "walker",
]

FIRST_SEED = 1_001


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A trial that is asked again, or a recipe that no search has proposed.

    Attributes:
        search: of `benchmarks.search`.
        contestant: whose trial it is.
        trial: its number in the table; None: no trial, all settings are `changed`.
        changed: what the finalist has otherwise, where it is a variant.
        estimator: in place of the contestant's, if it is to be another.
    """

    search: str
    contestant: str
    trial: int | None
    changed: Mapping[str, str] = field(default_factory=dict)
    estimator: str = ""

    def settings(self) -> dict[str, str]:
        """All that the search has set for the trial, and what is changed.

        Raises:
            ValueError: if the search has no such trial.
        """
        search = SEARCHES[self.search]
        if self.trial is None:
            return {**search.settings, **self.changed}
        row = next((row for row in trials_of(self.search, self.contestant) if row["number"] == str(self.trial)), None)
        if row is None:
            raise ValueError(f"the search {self.search} has no trial {self.trial} of {self.contestant}")
        return {**search.settings, **settings_of(row, search), **self.changed}


@dataclass(frozen=True, kw_only=True)
class Round:
    """Finalists of one search that meet.

    Attributes:
        finalists: by label.
        tasks: on which; None: all of the search.
        steps: of a run; None: of the search.
        seeds: runs of each on each task.
        peers: of `compare`, that meet them.
        commit: the last one that has their settings, if that is not the present one: such a round is reported only.
        preset: whether the one that a winner would replace meets them, where the tasks have one.
        until_solved: whether runs end at the task's threshold; what counts are the steps to there.
    """

    finalists: Mapping[str, Finalist]
    tasks: tuple[str, ...] | None = None
    steps: int | None = None
    seeds: int = 2
    peers: tuple[str, ...] = ()
    preset: bool = True
    until_solved: bool = False
    commit: str | None = None

    @property
    def search(self) -> str:
        """Whose finalists they are."""
        return next(iter(self.finalists.values())).search

    @property
    def length(self) -> int:
        """Steps of a run."""
        return self.steps or SEARCHES[self.search].steps


def untold(trial: int, **changed: str) -> Finalist:
    return Finalist(search="untold", contestant="auto", trial=trial, changed=changed)


def recipe(search: str, settings: Mapping[str, str], *, estimator: str = "", **changed: str) -> Finalist:
    """No trial of the search, but these settings over what all of it has."""
    contestant = SEARCHES[search].contestants[0].partition("=")[0]
    every = {**settings, **changed}
    return Finalist(search=search, contestant=contestant, trial=None, changed=every, estimator=estimator)


def lander(trial: int, contestant: str = "V", *, estimator: str = "", **changed: str) -> Finalist:
    return Finalist(search="lander", contestant=contestant, trial=trial, changed=changed, estimator=estimator)


def early(*, estimator: str = "", **changed: str) -> Finalist:
    """Trial 5 by squared error and with normalised advantages."""
    return lander(5, estimator=estimator, critic_loss="mse", normalize_advantage="true", **changed)


def former(*, estimator: str = "relax", **changed: str) -> Finalist:
    """The lander's preset before its search."""
    return recipe("lander", FORMER, estimator=estimator, **changed)


def ant(**changed: str) -> Finalist:
    """PPO's passes, as the preset of locomotion had them before the bounded recipe, with networks of 64-64."""
    of_bodies = {"num_envs": "8", "num_steps": "64", "log_std_init": "-1", "gamma": "0.99"}
    return recipe("locomotion", {**PASSES, **of_bodies, **SLOW}, **changed)


def double(**changed: str) -> Finalist:
    """The preset of InvertedDoublePendulum."""
    of_task = {"num_envs": "8", "num_steps": "128", "minibatch_size": "256", "gamma": "0.99"}
    return recipe("locomotion", {**PASSES, **of_task, **SLOW}, **changed)


def walker(contestant: str = "V", *, squash: bool = True, **changed: str) -> Finalist:
    """The recipe of `benchmarks.factorial` at its middle bound, with rate and bound falling to 0; or without its bounded actions."""
    falling = {"kl_bound": "0.05", "lr_schedule": "linear", "kl_schedule": "linear", "entropy_schedule": "constant"}
    settings = {**RECIPE, **(OF_TASK["HalfCheetah-v5"] if squash else {"log_std_init": "-0.5"}), **falling, **changed}
    return Finalist(search="locomotion", contestant=contestant, trial=None, changed=settings)


BOUNDED = {**OF_TASK["HalfCheetah-v5"], "entropy_schedule": "constant"}
"""Actions squashed to their bounds, with a target for their entropy."""
SMALL = {
    **{name: value for name, value in RECIPE.items() if name not in ("hidden", "surrogate_hidden")},
    **BOUNDED,
    "kl_bound": "0.05",
    "policy_lr": "0.001",
    "value_lr": "0.001",
}
"""The recipe of `benchmarks.factorial` at its middle bound, with networks and rates of small tasks."""
UNBOUNDED = {name: value for name, value in SMALL.items() if name not in BOUNDED} | {"log_std_init": "-0.5"}
PASSES = {
    "num_envs": "4",
    "num_steps": "256",
    "minibatch_size": "64",
    "epochs": "10",
    "clip_range": "0.2",
    "policy_lr": "0.001",
    "value_lr": "0.001",
    "lr_schedule": "linear",
}
"""Rollouts and passes as PPO has them."""
SURROGATE = {"surrogate_scale": "fitted", "surrogate_lr": "0.001"}
"""Of LAX with the settings of an A2C."""
FAR = {"gamma": "0.999", "log_std_init": "0", "entropy_target": "0"}
CENTRED = {"center_advantage": "true", "scale_advantage": "true"}
SLOW = {"policy_lr": "0.0003", "value_lr": "0.0003"}
FAST = {"policy_lr": "0.001", "value_lr": "0.001"}
FORMER = {
    "num_envs": "16",
    "num_steps": "128",
    "minibatch_size": "128",
    "epochs": "8",
    "clip_range": "0.2",
    "gamma": "0.999",
    "gae_lambda": "0.98",
    "policy_lr": "0.0005",
    "value_lr": "0.0005",
    "surrogate_lr": "0.001",
    "surrogate_scale": "fitted",
    "lr_schedule": "linear",
    "normalize_obs": "true",
    "normalize_reward": "true",
}
