"""What the surrogate of a run leaves of the gradient's variance as it was trained along, and what a fitted one would.

    python -m benchmarks.trained_along                             # every task; what is done already is kept
    python -m benchmarks.trained_along --tasks Acrobot-v1 --report

A run of RELAX or LAX with the preset of its task, and one whose surrogate learns from the last 8 rollouts in four steps to
each of the policy, at a rate of 3e-3 and mostly by regression, is frozen early, midway and late in learning. There the
agent's own surrogate, as it stands, is measured beside one that is trained on at the frozen policy, on the same rollouts.
Each is one `train_agent.py compare` command and leaves its report in `results/trained_along/<task>/`; the table is
`results/trained_along.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.against_ppo import MATCHES as AGAINST_PPO
from benchmarks.matches import Match, main_of, read_result
from benchmarks.tasks import RESULTS, write_text

__all__ = ["MATCHES", "main"]

GROUP = "trained_along"
REPLAY = "surrogate_replay=8,surrogate_lr=0.003,surrogate_steps=4,surrogate_regression=0.9"
"""A surrogate that was to keep up with the policy: more steps, on more rows, by a simpler objective."""
STAGES = ("early", "midway", "late")


def _match(task: str, kind: str, settings: str = "", commit: str | None = None) -> Match:
    """One run with the surrogate, as long as in the comparison with PPO."""
    known = AGAINST_PPO[task]
    contestant = f"on={kind}" + (f":{settings}" if settings else "")
    return Match(
        env=known.env,
        steps=known.steps,
        contestants=(contestant,),
        seeds=1,
        variance_of="on",
        fit_batches=known.fit_batches,
        commit=commit,
    )


_TASKS = {
    "CartPole-v1": "relax",
    "Acrobot-v1": "relax",
    "InvertedPendulum-v5": "lax",
    "LunarLander-v3": "relax",
    "HalfCheetah-v5": "lax",
    "Hopper-v5": "lax",
}
MATCHES: dict[str, Match] = {
    **{task: _match(task, kind) for task, kind in _TASKS.items()},
    **{f"{task}-replay": _match(task, kind, REPLAY, "807239f") for task, kind in _TASKS.items()},
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and write the table of all that is there."""
    main_of(MATCHES, GROUP, _write_table, __doc__, argv)


def _write_table() -> None:
    """`results/trained_along.md` from the comparisons that are there."""
    lines = [
        "# The surrogate as it was trained along",
        "",
        (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].partition(" Each is one")[0],
        "",
        "Variance of an update's gradient, times A2C's on the same rollouts, with intervals of 95% over rollouts:",
        "",
        "| task | surrogate | " + " | ".join(STAGES) + " |",
        "|---|---|" + "---:|" * len(STAGES),
    ]
    for name in MATCHES:
        found = read_result(GROUP, name)
        if found is None:
            continue
        ((_, stages),) = found["variance"].items()
        kind = next(iter(stages.values()))["estimator"]
        for label, which in (("as trained along", kind), ("fitted", f"{kind}, fitted")):
            cells = [_interval(stages[stage]["applied"][which]["ratio"]) for stage in STAGES if stage in stages]
            lines.append(f"| {name} | {label} | {' | '.join(cells)} |")
    write_text(RESULTS / f"{GROUP}.md", "\n".join(lines) + "\n")


def _interval(ratio: dict[str, Any]) -> str:
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


if __name__ == "__main__":
    main()
