"""A small task with hybrid actions: RELAX, of numbers and choices at once, beside A2C, with Gaussian and beta numbers.

    python -m benchmarks.hybrid                 # five seeds, some minutes; what is done already is kept
    python -m benchmarks.hybrid --seeds 2

The task is `benchmarks.docks`. One `train_agent.py compare` command, which works in `runs/benchmarks/hybrid/`, can be stopped
and gone on with, and leaves its report, numbers and figures in `results/hybrid/Docks-v0/`; `results/hybrid.md` sums them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.docks import DOCKS
from benchmarks.matches import Match, main_of, write_summary
from benchmarks.tasks import RESULTS

__all__ = ["MATCHES", "main"]

GROUP = "hybrid"
MATCHES = {
    "Docks-v0": Match(
        env=DOCKS,
        steps=40_000,
        contestants=(
            "relax",
            "a2c",
            "relax, beta=relax:action_distribution=beta",
            "a2c, beta=a2c:action_distribution=beta",
        ),
        settings={
            "preset": "none",
            "normalize_obs": "true",
            "normalize_reward": "true",
            "num_envs": "16",
            "num_steps": "16",
            "gamma": "0.95",
            "gae_lambda": "0.9",
            "policy_lr": "1e-2",
            "value_lr": "1e-2",
            "surrogate_lr": "3e-3",
            "hidden": "32x32",
        },
        seeds=5,
    )
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and sum up all that is there."""
    main_of(MATCHES, GROUP, _write_summary, __doc__, argv)


def _write_summary() -> None:
    """`results/hybrid.md` from the comparison that is there."""
    intro = ("A gear and a thrust bring a boat to a dock: `benchmarks/docks.py`.", "")
    write_summary("Hybrid actions", GROUP, MATCHES, intro=intro, after=_curves)


def _curves(name: str, found: dict[str, Any]) -> list[str]:
    figures = sorted((RESULTS / GROUP / name / "figures").glob("*-curves.png"))
    return [line for figure in figures for line in (f"![Learning curves]({figure.relative_to(RESULTS)})", "")]


if __name__ == "__main__":
    main()
