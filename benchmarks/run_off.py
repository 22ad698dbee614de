"""The best trials of a search once more, on seeds that the search did not see, and variants of them: which one becomes a preset.

    python -m benchmarks.run_off                            # every task; runs that are there are kept
    python -m benchmarks.run_off --tasks untold-CartPole-v1

Successive halving lets few trials run to the end, and its winner has been lucky on one seed. `FINALISTS` names the trials of
`results/search/<search>/` that are asked again, and variants of them, as long as a trial of the search or as their round says. Seeds
begin at 1,001, which no contest uses, and each task is one `train_agent.py compare` command. `results/run_off.md` has the scores
as the search counts them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from benchmarks.factorial import OF_TASK, RECIPE
from benchmarks.matches import Match, curve_mean, main_of, read_result, write_summary
from benchmarks.search import SEARCHES, settings_of, trials_of

__all__ = ["FINALISTS", "MATCHES", "Finalist", "main"]

GROUP = "run_off"
FIRST_SEED = 1_001


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A trial that is asked again, or a recipe that no search has proposed.

    Attributes:
        search: of `benchmarks.search`.
        contestant: whose trial it is.
        trial: its number in the table; None: no trial, all settings are `changed`.
        changed: what the finalist has otherwise, where it is a variant.
    """

    search: str
    contestant: str
    trial: int | None
    changed: Mapping[str, str] = field(default_factory=dict)

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
    """

    finalists: Mapping[str, Finalist]
    tasks: tuple[str, ...] | None = None
    steps: int | None = None
    seeds: int = 2

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


def _walker(contestant: str = "V", *, squash: bool = True, **changed: str) -> Finalist:
    """The recipe of `benchmarks.factorial` at its middle bound, with rate and bound falling to 0; or without its bounded actions."""
    falling = {"kl_bound": "0.05", "lr_schedule": "linear", "kl_schedule": "linear", "entropy_schedule": "constant"}
    recipe = {**RECIPE, **(OF_TASK["HalfCheetah-v5"] if squash else {"log_std_init": "-0.5"}), **falling, **changed}
    return Finalist(search="locomotion", contestant=contestant, trial=None, changed=recipe)


_FAST = {"policy_lr": "0.001", "value_lr": "0.001"}
PRESET = "preset"
"""A contestant of every round but those of the unnamed tasks, which have none: the preset that a winner would replace."""
UNNAMED = "untold"
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
        seeds=3,
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
}
"""By name; seeds of all rounds begin at `FIRST_SEED`."""


def _contestant(label: str, finalist: Finalist) -> str:
    """As `compare` takes it: what the search had as contestant, with the trial's settings."""
    known = {text.partition("=")[0]: text for text in SEARCHES[finalist.search].contestants}
    text = known[finalist.contestant].removeprefix(f"{finalist.contestant}=")
    settings = ",".join(f"{name}={value}" for name, value in finalist.settings().items())
    return f"{label}={text}{',' if ':' in text else ':'}{settings}"


def _preset(search: str) -> tuple[str, ...]:
    return () if search == UNNAMED else (f"{PRESET}=auto:preset=auto",)


def _name(round_: str, env: str) -> str:
    return f"{round_}-{env.rpartition(':')[2].replace('/', '-')}"


MATCHES = {
    _name(name, env): Match(
        env=env,
        steps=each.length,
        contestants=(
            *_preset(each.search),
            *(_contestant(label, finalist) for label, finalist in each.finalists.items()),
        ),
        settings={"preset": "none"},
        seeds=each.seeds,
        first_seed=FIRST_SEED,
    )
    for name, each in FINALISTS.items()
    for env in each.tasks or SEARCHES[each.search].anchors
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and sum up all that is there."""
    main_of(MATCHES, GROUP, _write_summary, __doc__, argv)


def _write_summary() -> None:
    """`results/run_off.md` from the comparisons that are there."""
    kinds = dict.fromkeys((each.search, each.length) for each in FINALISTS.values())
    intro = [line for kind in kinds for line in _table(*kind)]
    write_summary("The best trials once more", GROUP, MATCHES, intro=intro)


def _table(search: str, steps: int) -> list[str]:
    """Means of the curves of a search's finalists, task by task, and their scores where they have played as many tasks as any."""
    anchors = SEARCHES[search].anchors
    rounds = {name: each for name, each in FINALISTS.items() if (each.search, each.length) == (search, steps)}
    found = {
        label: {env: mean for env in anchors if (mean := _mean_curve(_name(name, env), label)) is not None}
        for name, each in rounds.items()
        for label in (*([PRESET] if _preset(search) else []), *each.finalists)
    }
    tasks = [env for env in anchors if any(env in means for means in found.values())]
    if not tasks:
        return []
    lines = [
        f"Finalists of {search} over {steps:,} steps: means of the learning curves over seeds, and the score as the search counts it.",
        "",
        "| finalist | score | " + " | ".join(tasks) + " |",
        "|---" + "|---:" * (len(tasks) + 1) + "|",
    ]
    for label, means in found.items():
        scores = [(mean - anchors[env][0]) / (anchors[env][1] - anchors[env][0]) for env, mean in means.items()]
        cells = [f"{fmean(scores):.3f}" if len(scores) == len(tasks) else ""]
        cells += [f"{means[env]:.4g}" if env in means else "" for env in tasks]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return [*lines, ""]


def _mean_curve(match: str, label: str) -> float | None:
    """Over the runs of a contestant; None where no run or no episode has ended."""
    found = read_result(GROUP, match)
    ((_, task),) = found["environments"].items() if found is not None else [("", {"contestants": {}})]
    runs = task["contestants"].get(label, {"runs": []})["runs"]
    return fmean(map(curve_mean, runs)) if runs else None


if __name__ == "__main__":
    main()
