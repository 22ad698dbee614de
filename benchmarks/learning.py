"""Learning curves of RELAX or LAX and of A2C with their presets, beside Stable-Baselines3's A2C and PPO.

    python -m benchmarks.learning                             # every task; what is done already is kept
    python -m benchmarks.learning --tasks CartPole-v1 --seeds 3 --jobs 2

Each task of `tasks.py` is one `train_agent.py compare` command, in which a run ends once it has reached the task's
threshold where the task says so, and leaves its report, numbers and figures in `results/learning/<task>/`;
`results/learning_curves.md` sums them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.matches import Match, main_of, write_summary
from benchmarks.tasks import TASKS, Task

__all__ = ["MATCHES", "main"]

GROUP = "learning"
SURROGATE = {"InvertedPendulum-v5": "lax"}
"""The estimator beside A2C, where that is not RELAX."""


def _match(task: Task) -> Match:
    return Match(
        env=task.env,
        steps=task.budget,
        contestants=(SURROGATE.get(task.env, "relax"), "a2c"),
        peers=("sb3-a2c", "sb3-ppo"),
        threshold=task.threshold,
        stop_when_solved=task.stop_when_reached,
    )


MATCHES = {env.replace("/", "-"): _match(task) for env, task in TASKS.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and sum up all that is there."""
    main_of(MATCHES, GROUP, _write_summary, __doc__, argv)


def _write_summary() -> None:
    """`results/learning_curves.md` from the comparisons that are there."""
    write_summary(
        "Learning curves",
        GROUP,
        MATCHES,
        after=lambda name, found: [*_asked(TASKS[MATCHES[name].env], found), ""],
        file="learning_curves",
    )


def _asked(task: Task, found: dict[str, Any]) -> list[str]:
    """How many runs of each contestant have done what is asked."""
    ((_, summary),) = found["environments"].items()
    lines = [
        f"Asked: a mean return of 100 training episodes of at least {task.threshold:g} within {task.within:,} steps."
    ]
    for label, entry in summary["contestants"].items():
        if task.stop_when_reached:
            done = sum(float(run["solved"]["steps"]) <= task.within for run in entry["runs"])
        else:
            done = sum(run["final"] >= task.threshold for run in entry["runs"])
        lines.append(f"- {label}: {done} of {len(entry['runs'])}")
    return lines


if __name__ == "__main__":
    main()
