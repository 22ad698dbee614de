"""The best trials of a search once more, to the end and on seeds that the search did not see: which one becomes the default.

    python -m benchmarks.run_off                            # every task; runs that are there are kept
    python -m benchmarks.run_off --tasks untold-CartPole-v1

Successive halving lets few trials run to the end, and its winner has been lucky on one seed. `FINALISTS` names the trials of
`results/search/<search>/` that are asked again, and variants of them. Seeds begin at 1,001, which no contest uses, and each task
is one `train_agent.py compare` command. `results/run_off.md` has the scores as the search counts them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from benchmarks.matches import Match, curve_mean, main_of, read_result, write_summary
from benchmarks.search import SEARCHES, settings_of, trials_of

__all__ = ["FINALISTS", "MATCHES", "Finalist", "main"]

GROUP = "run_off"
FIRST_SEED = 1_001


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A trial that is asked again.

    Attributes:
        search: of `benchmarks.search`.
        contestant: whose trial it is.
        trial: its number in the table.
        changed: what the finalist has otherwise, where it is a variant.
    """

    search: str
    contestant: str
    trial: int
    changed: Mapping[str, str] = field(default_factory=dict)

    def settings(self) -> dict[str, str]:
        """All that the search has set for the trial, and what is changed.

        Raises:
            ValueError: if the search has no such trial.
        """
        search = SEARCHES[self.search]
        row = next((row for row in trials_of(self.search, self.contestant) if row["number"] == str(self.trial)), None)
        if row is None:
            raise ValueError(f"the search {self.search} has no trial {self.trial} of {self.contestant}")
        return {**search.settings, **settings_of(row, search), **self.changed}


def _untold(trial: int, **changed: str) -> Finalist:
    return Finalist(search="untold", contestant="auto", trial=trial, changed=changed)


_FAST = {"policy_lr": "0.001", "value_lr": "0.001"}
PRESET = "preset"
"""A contestant of every round but those of the unnamed tasks, which have none: the preset that a winner would replace."""
UNNAMED = "untold"
FINALISTS: dict[str, dict[str, Finalist]] = {
    "untold": {
        "4": _untold(4),
        "4, four passes of 256": _untold(4, num_steps="128", minibatch_size="256", epochs="4", **_FAST),
        "6": _untold(6),
        "6, advantages as they are": _untold(6, normalize_advantage="false"),
        "20": _untold(20),
    },
    # 6 is ahead of 4 on the pendulum alone, where rewards far ahead tell little.
    "untold-second": {"4, gamma 0.98": _untold(4, gamma="0.98")},
}
"""By round and label; the finalists of a round belong to one search, and all rounds have the same seeds."""
SEEDS = 2


def _contestant(label: str, finalist: Finalist) -> str:
    """As `compare` takes it: what the search had as contestant, with the trial's settings."""
    known = {text.partition("=")[0]: text for text in SEARCHES[finalist.search].contestants}
    text = known[finalist.contestant].removeprefix(f"{finalist.contestant}=")
    settings = ",".join(f"{name}={value}" for name, value in finalist.settings().items())
    return f"{label}={text}{',' if ':' in text else ':'}{settings}"


def _preset(search: str) -> tuple[str, ...]:
    return () if search == UNNAMED else (f"{PRESET}=auto:preset=auto",)


def _search(finalists: Mapping[str, Finalist]) -> str:
    return next(iter(finalists.values())).search


def _name(round_: str, env: str) -> str:
    return f"{round_}-{env.rpartition(':')[2].replace('/', '-')}"


MATCHES = {
    _name(round_, env): Match(
        env=env,
        steps=SEARCHES[_search(finalists)].steps,
        contestants=(
            *_preset(_search(finalists)),
            *(_contestant(label, finalist) for label, finalist in finalists.items()),
        ),
        settings={"preset": "none"},
        seeds=SEEDS,
        first_seed=FIRST_SEED,
    )
    for round_, finalists in FINALISTS.items()
    for env in SEARCHES[_search(finalists)].anchors
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and sum up all that is there."""
    main_of(MATCHES, GROUP, _write_summary, __doc__, argv)


def _write_summary() -> None:
    """`results/run_off.md` from the comparisons that are there."""
    intro = [line for search in SEARCHES for line in _table(search)]
    write_summary("The best trials once more", GROUP, MATCHES, intro=intro)


def _table(search: str) -> list[str]:
    """Means of the curves of a search's finalists, task by task, and their scores where they have played as many tasks as any."""
    anchors = SEARCHES[search].anchors
    rounds = [(name, finalists) for name, finalists in FINALISTS.items() if _search(finalists) == search]
    found = {
        label: {env: mean for env in anchors if (mean := _mean_curve(_name(name, env), label)) is not None}
        for name, finalists in rounds
        for label in (*([PRESET] if _preset(search) else []), *finalists)
    }
    tasks = [env for env in anchors if any(env in means for means in found.values())]
    if not tasks:
        return []
    lines = [
        f"Finalists of {search}: means of the learning curves over seeds, and the score as the search counts it.",
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
