"""The tasks of the RELAX paper under corrected definitions: episodes and steps to solve, beside the published ones.

    python -m benchmarks.papers_tasks                              # every task; what is done already is kept
    python -m benchmarks.papers_tasks --tasks CartPole-v0 --seeds 5
    python -m benchmarks.papers_tasks --report                     # the table alone

A task is solved when the mean return of the last 100 episodes, of which there must be 100, first reaches its threshold;
a time limit does not end an episode's value. Each task is one `train_agent.py compare` command, stopped in each run as
soon as it is solved, and leaves its report in `results/papers_tasks/<task>/`; the table is `results/papers_tasks.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.matches import Match, main_of, read_result, spread
from benchmarks.tasks import RESULTS, write_text

__all__ = ["TASKS", "PaperTask", "main"]

GROUP = "papers_tasks"


@dataclass(frozen=True)
class PaperTask:
    """A task of the paper.

    Attributes:
        match: what is trained.
        threshold: mean return that solves it.
        published: episodes to solve by A2C and by RELAX or LAX (Grathwohl et al. 2018, table 2, last version of its
            source).
    """

    match: Match
    threshold: float
    published: tuple[str, str]


def _discrete(steps: int) -> str:
    """RELAX as published, as near as our agent comes: whole-episode returns, one environment, networks of 10-10."""
    return (
        f"published=relax:num_envs=1,num_steps={steps},gae_lambda=1,gamma=0.99,hidden=10x10,surrogate_hidden=10x10,"
        "activation=relu,policy_lr=3e-3,value_lr=3e-3,surrogate_lr=3e-3,entropy_coef=0.01,normalize_obs=false,"
        "normalize_reward=false,max_grad_norm=inf,value_replay=0"
    )


CONTINUOUS = (
    "published=lax:num_envs=1,num_steps=2500,gae_lambda=1,gamma=0.99,hidden=64x64,surrogate_hidden=64x64,"
    "surrogate_activation=elu,policy_lr=3e-3,value_lr=1e-2,surrogate_lr=1e-3,surrogate_steps=25,normalize_reward=false,"
    "max_grad_norm=inf,value_replay=0"
)
"""LAX as published, as near as our agent comes: returns of batches of 2,500 steps, many steps of the surrogate on each."""


def _task(
    env: str, steps: int, threshold: float, published: tuple[str, str], recipe: str, best: str, seeds: int
) -> PaperTask:
    contestants = (f"best={best}", "a2c", "reinforce", recipe)
    match = Match(env=env, steps=steps, contestants=contestants, seeds=seeds, stop_when_solved=True)
    return PaperTask(match, threshold, published)


TASKS: dict[str, PaperTask] = {
    task.match.env: task
    for task in (
        _task("CartPole-v0", 250_000, 195.0, ("1152", "472"), _discrete(200), "relax", 10),
        _task("InvertedPendulum-v5", 500_000, 950.0, ("6243", "2067"), CONTINUOUS, "lax", 10),
        _task("LunarLander-v3", 1_000_000, 200.0, ("11204", "4244"), _discrete(1000), "relax", 5),
        _task("InvertedDoublePendulum-v5", 1_000_000, 9100.0, ("60186", "60967"), CONTINUOUS, "lax", 5),
    )
}
WHO = {
    "best": "RELAX or LAX, our preset",
    "a2c": "A2C, our preset",
    "reinforce": "REINFORCE, our preset",
    "published": "RELAX or LAX as published",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and write the table of all that is there."""
    main_of({name: task.match for name, task in TASKS.items()}, GROUP, write_table, __doc__, argv)


def write_table() -> None:
    """`results/papers_tasks.md` from the comparisons that are there."""
    lines = [
        "# The tasks of the paper",
        "",
        "Episodes and steps until the mean return of the last 100 episodes reaches the threshold: medians over all runs",
        "with intervals of 95%, runs that did not get there counted as beyond all that did. Published:",
        "means of 5 runs in the paper's last version, under its own definitions.",
        "`python -m benchmarks.papers_tasks` trains and writes this file.",
        "",
        "| task | contestant | solved | episodes to solve | steps to solve | published episodes |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, task in TASKS.items():
        result = read_result(GROUP, name)
        if result is None:
            continue
        found = result["environments"][name]["contestants"]
        published = {"a2c": task.published[0], "published": task.published[1]}
        for label, who in WHO.items():
            solved = found[label]["solved"]
            cells = [f"{name}, {task.threshold:g}", who, f"{solved['solved']} of {solved['runs']}"]
            cells += [spread(solved[what]["median"], ",.0f") for what in ("episodes", "steps")]
            cells.append(published.get(label, ""))
            lines.append("| " + " | ".join(cells) + " |")
    write_text(RESULTS / f"{GROUP}.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
