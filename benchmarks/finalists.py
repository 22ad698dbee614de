"""Who meets in `benchmarks.run_off`: the best trials of searches, variants of them, and recipes that no search has proposed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.factorial import OF_TASK, RECIPE
from benchmarks.search import SEARCHES, settings_of, trials_of

__all__ = ["FINALISTS", "FIRST_SEED", "Finalist", "Round"]

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
    """

    finalists: Mapping[str, Finalist]
    tasks: tuple[str, ...] | None = None
    steps: int | None = None
    seeds: int = 2
    peers: tuple[str, ...] = ()
    preset: bool = True
    commit: str | None = None

    @property
    def search(self) -> str:
        """Whose finalists they are."""
        return next(iter(self.finalists.values())).search

    @property
    def length(self) -> int:
        """Steps of a run."""
        return self.steps or SEARCHES[self.search].steps


def _untold(trial: int, **changed: str) -> Finalist:
    return Finalist(search="untold", contestant="auto", trial=trial, changed=changed)


def _lander(trial: int, contestant: str = "V", **changed: str) -> Finalist:
    return Finalist(search="lander", contestant=contestant, trial=trial, changed=changed)


def _early(**changed: str) -> Finalist:
    return _lander(5, critic_loss="mse", normalize_advantage="true", **changed)


def _lander_continuous(**changed: str) -> Finalist:
    settings = {**_lander(5).settings(), **changed}
    return Finalist(search="lander-continuous", contestant="V", trial=None, changed=settings)


def _walker(contestant: str = "V", *, squash: bool = True, **changed: str) -> Finalist:
    """The recipe of `benchmarks.factorial` at its middle bound, with rate and bound falling to 0; or without its bounded actions."""
    falling = {"kl_bound": "0.05", "lr_schedule": "linear", "kl_schedule": "linear", "entropy_schedule": "constant"}
    recipe = {**RECIPE, **(OF_TASK["HalfCheetah-v5"] if squash else {"log_std_init": "-0.5"}), **falling, **changed}
    return Finalist(search="locomotion", contestant=contestant, trial=None, changed=recipe)


def _classic(recipe: Mapping[str, str], *, estimator: str = "", **changed: str) -> Finalist:
    settings = {**recipe, **changed}
    return Finalist(search="classic-continuous", contestant="V", trial=None, changed=settings, estimator=estimator)


_BOUNDED = {**OF_TASK["HalfCheetah-v5"], "entropy_schedule": "constant"}
"""Actions squashed to their bounds, with a target for their entropy."""
_SMALL = {
    **{name: value for name, value in RECIPE.items() if name not in ("hidden", "surrogate_hidden")},
    **_BOUNDED,
    "kl_bound": "0.05",
    "policy_lr": "0.001",
    "value_lr": "0.001",
}
"""The recipe of `benchmarks.factorial` at its middle bound, with networks and rates of small tasks."""
_UNBOUNDED = {name: value for name, value in _SMALL.items() if name not in _BOUNDED} | {"log_std_init": "-0.5"}
_PASSES = {
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
_SURROGATE = {"surrogate_scale": "fitted", "surrogate_lr": "0.001"}
"""Of LAX with the settings of an A2C."""
_FAR = {"gamma": "0.999", "log_std_init": "0", "entropy_target": "0"}
_CENTRED = {"center_advantage": "true", "scale_advantage": "true"}
_FAST = {"policy_lr": "0.001", "value_lr": "0.001"}
FINALISTS: dict[str, Round] = {
    "untold": Round(
        finalists={
            "4": _untold(4),
            "4, four passes of 256": _untold(4, num_steps="128", minibatch_size="256", epochs="4", **_FAST),
            "6": _untold(6),
            "6, advantages as they are": _untold(6, normalize_advantage="false"),
            "20": _untold(20),
        }
    ),
    # 6 is ahead of 4 on the pendulum alone, where rewards far ahead tell little.
    "untold-second": Round(finalists={"4, gamma 0.98": _untold(4, gamma="0.98")}),
    # Its deviation is a fifth of what the pendulum's motor can do.
    "untold-third": Round(
        finalists={
            "4, deviation 0.7": _untold(4, log_std_init="-0.35"),
            "4, deviation 1": _untold(4, log_std_init="0"),
        },
        tasks=("Pendulum-v1", "HalfCheetah-v5"),
    ),
    "lander-halves": Round(
        finalists={
            "V 5": _lander(5),
            "V 5, bound 0.01": _lander(5, kl_bound="0.01"),
            "V 5, rollouts of 64": _lander(5, num_steps="64"),
            "V 5, rollouts of 64, replay": _lander(5, num_steps="64", value_replay="2"),
            "V 5, rates 0.001": _lander(5, **_FAST),
            "V 5, 64-64, rates 0.001": _lander(5, hidden="64x64", **_FAST),
            "V 5, policy normalised too": _lander(5, layer_norm="true"),
            "V 5, advantages normalised": _lander(5, normalize_advantage="true"),
            "V 5, entropy 0.01": _lander(5, entropy_coef="0.01"),
            "V 5, gamma 0.995, lambda 0.95": _lander(5, gamma="0.995", gae_lambda="0.95"),
            "V 5, squared error": _lander(5, critic_loss="mse"),
            "q 19": _lander(19, "q"),
            "q 5, w 0.3": _lander(5, "q", residual_weight="0.3"),
        },
        steps=250_000,
    ),
    # By squared error V 5 was ahead, and from normalised advantages it learned most early on.
    "lander-second": Round(
        finalists={
            "squared error, advantages normalised": _lander(5, critic_loss="mse", normalize_advantage="true"),
            "squared error, advantages scaled": _lander(5, critic_loss="mse", scale_advantage="true"),
            "advantages scaled": _lander(5, scale_advantage="true"),
            "squared error, critic not normalised": _lander(5, critic_loss="mse", critic_layer_norm="off"),
            "squared error, 16 passes": _lander(5, critic_loss="mse", epochs="16"),
            "squared error, minibatches of 64": _lander(5, critic_loss="mse", minibatch_size="64"),
            "squared error, 64-64, rates 0.001": _lander(5, critic_loss="mse", hidden="64x64", **_FAST),
        },
        steps=250_000,
        preset=False,
    ),
    # Advantages of mean 0 taught most in the first 50,000 steps.
    "lander-third": Round(
        finalists={
            "advantages centred, scaled": _lander(5, **_CENTRED),
            "squared error, advantages centred, scaled": _lander(5, critic_loss="mse", **_CENTRED),
            "squared error, advantages centred": _lander(5, critic_loss="mse", center_advantage="true"),
        },
        steps=250_000,
        commit="9860a59",
        preset=False,
    ),
    # What `auto` would take with these settings.
    "lander-relax": Round(
        finalists={
            "V 5 as RELAX": Finalist(
                search="lander",
                contestant="V",
                trial=5,
                changed={"surrogate_scale": "fitted", "surrogate_lr": "0.0003"},
                estimator="relax",
            )
        },
        steps=250_000,
        preset=False,
    ),
    # In the unit of what advantages have been, a bonus that was too much.
    "lander-entropy": Round(
        finalists={"V 5, entropy 0.01, advantages scaled": _lander(5, entropy_coef="0.01", scale_advantage="true")},
        steps=250_000,
        preset=False,
    ),
    # The three that were ahead, on more seeds.
    "lander-last": Round(
        finalists={
            "V 5": _lander(5),
            "V 5, squared error": _lander(5, critic_loss="mse"),
            "squared error, advantages normalised": _lander(5, critic_loss="mse", normalize_advantage="true"),
        },
        steps=250_000,
        seeds=6,
        preset=False,
    ),
    # It reached 200 first in the median, still beyond 100,000 steps: what might make more of the first ones.
    "lander-early": Round(
        finalists={
            "4 environments": _early(num_envs="4"),
            "4 environments, rollouts of 256": _early(num_envs="4", num_steps="256"),
            "bound 0.03": _early(kl_bound="0.03"),
            "lambda 0.95": _early(gae_lambda="0.95"),
        },
        steps=150_000,
        seeds=4,
        preset=False,
    ),
    # What was ahead on the lander of four actions, on that of two numbers.
    "lander-continuous": Round(
        finalists={
            "V 5": _lander_continuous(log_std_init="-0.5"),
            "V 5, bounded actions": _lander_continuous(**_BOUNDED),
            "V 5, bounded actions, bound 0.05": _lander_continuous(kl_bound="0.05", **_BOUNDED),
            "V 5, squared error, advantages normalised": _lander_continuous(
                critic_loss="mse", normalize_advantage="true", log_std_init="-0.5"
            ),
        },
        steps=250_000,
    ),
    "locomotion-halves": Round(
        finalists={
            "V": _walker(),
            "V, rate and bound constant": _walker(lr_schedule="constant", kl_schedule="constant"),
            "V, bound 0.02": _walker(kl_bound="0.02"),
            "V, bound 0.1": _walker(kl_bound="0.1"),
            "V, rollouts of 64": _walker(num_steps="64"),
            "V, replay": _walker(value_replay="2", replay_targets="anew"),
            "V, advantages normalised": _walker(normalize_advantage="true"),
            "V, unbounded actions": _walker(squash=False),
            "q": _walker("q"),
        },
        tasks=("HalfCheetah-v5", "Hopper-v5"),
        steps=500_000,
    ),
    "double-pendulum": Round(
        finalists={
            "V": _walker(),
            "V, small networks": _walker(hidden="64x64", policy_lr="0.001", value_lr="0.001"),
            "V, gamma 0.98": _walker(gamma="0.98"),
            "V, unbounded actions": _walker(squash=False),
        },
        tasks=("InvertedDoublePendulum-v5",),
        steps=500_000,
    ),
    "pendulum": Round(
        finalists={
            "passes": _classic(_PASSES, gamma="0.9"),
            "passes, rollouts of 64": _classic(_PASSES, gamma="0.9", num_steps="64"),
            "bound 0.05": _classic(_SMALL, gamma="0.9"),
            "bound 0.1": _classic(_SMALL, gamma="0.9", kl_bound="0.1"),
            "bound 0.05, gamma 0.97": _classic(_SMALL, gamma="0.97"),
            "bound 0.05, rollouts of 32": _classic(_SMALL, gamma="0.9", num_steps="32"),
            "bound 0.05, 256-256": _classic(
                _SMALL, gamma="0.9", hidden="256x256", policy_lr="0.0003", value_lr="0.0003"
            ),
        },
        tasks=("Pendulum-v1",),
        steps=100_000,
        peers=("sb3-ppo",),
    ),
    # The one that was ahead, and what `auto` would take with its settings.
    "pendulum-second": Round(
        finalists={
            "bound 0.05": _classic(_SMALL, gamma="0.9"),
            "bound 0.05 as LAX": _classic(_SMALL, gamma="0.9", estimator="lax", **_SURROGATE),
        },
        tasks=("Pendulum-v1",),
        steps=100_000,
        seeds=6,
        preset=False,
    ),
    "inverted-pendulum": Round(
        finalists={
            "bound 0.05": _classic(_SMALL, gamma="0.98"),
            "bound 0.1": _classic(_SMALL, gamma="0.98", kl_bound="0.1"),
            "bound 0.1, rollouts of 32": _classic(_SMALL, gamma="0.98", kl_bound="0.1", num_steps="32"),
            "bound 0.1, unbounded actions": _classic(_UNBOUNDED, gamma="0.98", kl_bound="0.1"),
            "passes": _classic(_PASSES, gamma="0.98"),
            "passes, rollouts of 64": _classic(_PASSES, gamma="0.98", num_steps="64"),
        },
        tasks=("InvertedPendulum-v5",),
        steps=150_000,
        peers=("sb3-ppo",),
    ),
    "mountain-car": Round(
        finalists={
            "passes": _classic(_PASSES, gamma="0.999"),
            "bound 0.05": _classic(_SMALL, **_FAR),
            "bound 0.1": _classic(_SMALL, kl_bound="0.1", **_FAR),
            "bound 0.05, rollouts of 32": _classic(_SMALL, num_steps="32", **_FAR),
            "bound 0.05, gamma 0.9999": _classic(_SMALL, **{**_FAR, "gamma": "0.9999"}),
        },
        tasks=("MountainCarContinuous-v0",),
        steps=100_000,
        peers=("sb3-ppo",),
    ),
    # PPO is at the goal in its first episodes: its one environment wastes none, and its noise has memory.
    "mountain-car-second": Round(
        finalists={
            "passes, 1 environment": _classic(_PASSES, gamma="0.999", num_envs="1"),
            "passes, 1 environment, deviation e": _classic(_PASSES, gamma="0.999", num_envs="1", log_std_init="1"),
            "passes, deviation e": _classic(_PASSES, gamma="0.999", log_std_init="1"),
            "passes, rollouts of 64": _classic(_PASSES, gamma="0.999", num_steps="64"),
            "bound 0.1, 1 environment": _classic(_SMALL, kl_bound="0.1", num_envs="1", num_steps="256", **_FAR),
            "passes as LAX": _classic(_PASSES, gamma="0.999", estimator="lax", **_SURROGATE),
        },
        tasks=("MountainCarContinuous-v0",),
        steps=100_000,
        preset=False,
    ),
}
"""By name; seeds of all rounds begin at `FIRST_SEED`."""
