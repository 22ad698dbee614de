"""The best trials of a search once more, to the end and on seeds that the search did not see: which one becomes the default.

    python -m benchmarks.run_off                            # every task; runs that are there are kept
    python -m benchmarks.run_off --tasks untold-CartPole-v1

Successive halving lets few trials run to the end, and its winner has been lucky on one seed. `FINALISTS` names the trials of
`results/search/<search>/` that are asked again, and variants of them. Seeds begin at 1,001, which no contest uses, and each task
is one `train_agent.py compare` command. `results/run_off.md` has the scores as the search counts them.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from statistics import fmean
from typing import Any

from benchmarks.matches import Match, curve_mean, main_of, read_result, write_summary
from benchmarks.search import GROUP as SEARCH_GROUP
from benchmarks.search import NO_SETTINGS, SEARCHES
from benchmarks.tasks import RESULTS

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
        with (RESULTS / SEARCH_GROUP / self.search / self.contestant / "trials.csv").open(encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["number"] == str(self.trial)]
        if not rows:
            raise ValueError(f"the search {self.search} has no trial {self.trial} of {self.contestant}")
        own = {k: v for k, v in rows[0].items() if v and k not in (*NO_SETTINGS, *search.anchors)}
        return {**search.settings, **own, **self.changed}


def _untold(trial: int, **changed: str) -> Finalist:
    return Finalist(search="untold", contestant="auto", trial=trial, changed=changed)


_FAST = {"policy_lr": "0.001", "value_lr": "0.001"}
FINALISTS: dict[str, dict[str, Finalist]] = {
    "untold": {
        "4": _untold(4),
        "4, four passes of 256": _untold(4, num_steps="128", minibatch_size="256", epochs="4", **_FAST),
        "6": _untold(6),
        "6, advantages as they are": _untold(6, normalize_advantage="false"),
        "20": _untold(20),
    }
}
"""By search and label."""
SEEDS = 2


def _contestant(label: str, finalist: Finalist) -> str:
    """As `compare` takes it: what the search had as contestant, with the trial's settings."""
    known = {text.partition("=")[0]: text for text in SEARCHES[finalist.search].contestants}
    text = known[finalist.contestant].removeprefix(f"{finalist.contestant}=")
    settings = ",".join(f"{name}={value}" for name, value in finalist.settings().items())
    return f"{label}={text}{',' if ':' in text else ':'}{settings}"


MATCHES = {
    f"{name}-{env.rpartition(':')[2].replace('/', '-')}": Match(
        env=env,
        steps=SEARCHES[name].steps,
        contestants=tuple(_contestant(label, finalist) for label, finalist in finalists.items()),
        settings={"preset": "none"},
        seeds=SEEDS,
        first_seed=FIRST_SEED,
    )
    for name, finalists in FINALISTS.items()
    for env in SEARCHES[name].anchors
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and sum up all that is there."""
    main_of(MATCHES, GROUP, _write_summary, __doc__, argv)


def _write_summary() -> None:
    """`results/run_off.md` from the comparisons that are there."""
    intro = [line for name, finalists in FINALISTS.items() for line in _table(name, finalists)]
    write_summary("The best trials once more", GROUP, MATCHES, intro=intro)


def _table(name: str, finalists: Mapping[str, Finalist]) -> list[str]:
    """Means of the curves of a search's finalists, task by task, and their scores over the tasks that have been played."""
    known = {env: found for match, env in _names(name) if (found := read_result(GROUP, match)) is not None}
    if not known:
        return []
    anchors = SEARCHES[name].anchors
    lines = [
        f"Finalists of {name}: means of the learning curves over seeds, and the score as the search counts it.",
        "",
    ]
    lines += ["| finalist | score | " + " | ".join(known) + " |", "|---" + "|---:" * (len(known) + 1) + "|"]
    for label in finalists:
        means = {env: _mean_curve(found, label) for env, found in known.items()}
        score = fmean((mean - anchors[env][0]) / (anchors[env][1] - anchors[env][0]) for env, mean in means.items())
        lines.append(f"| {label} | {score:.3f} | " + " | ".join(f"{mean:.4g}" for mean in means.values()) + " |")
    return [*lines, ""]


def _names(search: str) -> list[tuple[str, str]]:
    """The comparisons of a search's finalists, each with its task."""
    return [(name, match.env) for name, match in MATCHES.items() if name.startswith(f"{search}-")]


def _mean_curve(found: Mapping[str, Any], label: str) -> float:
    """Over the runs of a contestant; NaN where no episode has ended."""
    ((_, task),) = found["environments"].items()
    runs = task["contestants"].get(label, {"runs": []})["runs"]
    return fmean(map(curve_mean, runs)) if runs else nan


if __name__ == "__main__":
    main()
