"""The best trials of a search once more, on seeds that the search did not see, and variants of them: which one becomes a preset.

    python -m benchmarks.run_off                            # every task; runs that are there are kept
    python -m benchmarks.run_off --tasks untold-CartPole-v1

Successive halving lets few trials run to the end, and its winner has been lucky on one seed. `benchmarks/rounds.py` names the trials of
`results/search/<search>/` that are asked again, and variants of them, as long as a trial of the search or as their round says. Seeds
begin at 1,001, which no contest uses, and each task is one `train_agent.py compare` command. `results/run_off.md` has the scores
as the search counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from benchmarks.finalists import FIRST_SEED, Finalist, Round
from benchmarks.matches import Match, curve_mean, main_of, read_result, spread, write_summary
from benchmarks.rounds import ROUNDS
from benchmarks.search import ANCHORS, SEARCHES

__all__ = ["MATCHES", "main"]

GROUP = "run_off"
PRESET = "preset"
"""The preset that a winner would replace; tasks that are not named have none."""
UNNAMED = "untold"


def _contestant(label: str, finalist: Finalist) -> str:
    """As `compare` takes it: what the search had as contestant, with the trial's settings."""
    known = {text.partition("=")[0]: text for text in SEARCHES[finalist.search].contestants}
    text = finalist.estimator or known[finalist.contestant].removeprefix(f"{finalist.contestant}=")
    settings = ",".join(f"{name}={value}" for name, value in finalist.settings().items())
    return f"{label}={text}{',' if ':' in text else ':'}{settings}"


def _preset(each: Round) -> tuple[str, ...]:
    return (f"{PRESET}=auto:preset=auto",) if each.preset and each.search != UNNAMED else ()


def _name(round_: str, env: str) -> str:
    return f"{round_}-{env.rpartition(':')[2].replace('/', '-')}"


MATCHES = {
    _name(name, env): Match(
        env=env,
        steps=each.length,
        contestants=(
            *_preset(each),
            *(_contestant(label, finalist) for label, finalist in each.finalists.items()),
        ),
        settings={"preset": "none"},
        peers=each.peers,
        seeds=each.seeds,
        first_seed=FIRST_SEED,
        stop_when_solved=each.until_solved,
        commit=each.commit,
    )
    for name, each in ROUNDS.items()
    for env in each.tasks or SEARCHES[each.search].anchors
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and sum up all that is there."""
    main_of(MATCHES, GROUP, _write_summary, __doc__, argv)


def _write_summary() -> None:
    """`results/run_off.md` from the comparisons that are there."""
    kinds = dict.fromkeys(_kind(each) for each in ROUNDS.values())
    intro = [
        "Finalists that are called by a number are trials of [the searches](search.md), `V 5` is trial 5 of V, and what follows the number is",
        "changed; the others are recipes. `preset` is the preset that stood when a round was played, which its winner may have replaced;",
        "`untold` is for tasks that no preset names. All settings are in `benchmarks/rounds.py` and in each round's report.",
        "",
    ]
    intro += [line for kind in kinds for line in (_steps_table(kind) if kind.until_solved else _table(kind))]
    write_summary("The best trials once more", GROUP, MATCHES, intro=intro)


class _Kind(NamedTuple):
    """What rounds have to have in common to stand in one table."""

    search: str
    steps: int
    tasks: tuple[str, ...] | None
    until_solved: bool

    @property
    def rounds(self) -> dict[str, Round]:
        """Those of this kind, by name."""
        return {name: each for name, each in ROUNDS.items() if _kind(each) == self}


def _kind(each: Round) -> _Kind:
    return _Kind(each.search, each.length, each.tasks, each.until_solved)


def _table(kind: _Kind) -> list[str]:
    """Means of the curves of a search's finalists, task by task, and their scores where they have played as many tasks as any."""
    anchors = {**ANCHORS, **SEARCHES[kind.search].anchors}
    found: dict[str, dict[str, float]] = {}
    counts: dict[str, int] = {}
    for name, each in kind.rounds.items():
        for label in (*([PRESET] if _preset(each) else []), *each.finalists, *each.peers):
            curves = {env: values for env in anchors if (values := _curve_means(_name(name, env), label))}
            if curves:
                found[label] = found.get(label, {}) | {env: fmean(values) for env, values in curves.items()}
                counts[label] = min(map(len, curves.values()))
    tasks = [
        env for env in kind.tasks or SEARCHES[kind.search].anchors if any(env in means for means in found.values())
    ]
    if not tasks:
        return []
    lines = [
        f"Finalists of {kind.search} over {kind.steps:,} steps: means of the learning curves over seeds, and the score as the search counts it.",
        "",
        "| finalist | runs | score | " + " | ".join(tasks) + " |",
        "|---" + "|---:" * (len(tasks) + 2) + "|",
    ]
    for label, means in found.items():
        scores = [(mean - anchors[env][0]) / (anchors[env][1] - anchors[env][0]) for env, mean in means.items()]
        cells = [f"{fmean(scores):.3f}" if len(scores) == len(tasks) else ""]
        cells += [f"{means[env]:.4g}" if env in means else "" for env in tasks]
        lines.append(f"| {label} | {counts[label]} | {' | '.join(cells)} |")
    return [*lines, ""]


def _steps_table(kind: _Kind) -> list[str]:
    """How soon the finalists of rounds that end there are at the threshold of each task."""
    lines: list[str] = []
    for env in kind.tasks or SEARCHES[kind.search].anchors:
        known = [found for name in kind.rounds if (found := read_result(GROUP, _name(name, env))) is not None]
        tasks = [task for found in known for task in found["environments"].values()]
        rows = []
        for label, entry in (pair for task in tasks for pair in task["contestants"].items()):
            solved = entry["solved"]
            median = spread(solved["steps"]["median"], ",.0f")
            rows.append(f"| {label} | {solved['runs']} | {solved['solved']} | {median} |")
        if rows:
            lines += [
                f"Steps of {env} until 100 episodes have a mean of {tasks[0]['threshold']:g}, of {kind.steps:,} at most.",
                "",
                "| finalist | runs | there | median steps |",
                "|---|---:|---:|---:|",
                *rows,
                "",
            ]
    return lines


def _curve_means(match: str, label: str) -> list[float]:
    """Of the runs of a contestant that have ended."""
    found = read_result(GROUP, match)
    ((_, task),) = found["environments"].items() if found is not None else [("", {"contestants": {}})]
    return [curve_mean(run) for run in task["contestants"].get(label, {"runs": []})["runs"]]


if __name__ == "__main__":
    main()
