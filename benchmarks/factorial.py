"""Critics of states and of actions within trust regions of three sizes: does a lower noise pay where larger steps may be taken?

    python -m benchmarks.factorial                          # every task; runs that are there are kept
    python -m benchmarks.factorial --tasks LunarLander-v3 --seeds 2

V is an agent without surrogate; q learns what an action is worth, and what it leaves of the advantage counts with a weight w
from 0 to 1, or one that is learned; c is the surrogate that learns to lower the variance. Each is trained at three bounds of the
KL divergence, all else equal: the recipe of `RECIPE`, chosen beforehand and searched for none of them. Beside the curves, gradients
are measured at frozen agents of q: variance and squared bias under every estimator. `results/factorial.md` sums up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.matches import Match, curve_mean, final, main_of, write_summary
from relax_rl.comparison.statistics import improvement

__all__ = ["BOUNDS", "MATCHES", "main"]

GROUP = "factorial"
BOUNDS = (0.02, 0.05, 0.1)
WEIGHTS = ("0", "0.3", "1", "adaptive")

RECIPE = {
    "preset": "none",
    "num_envs": "8",
    "num_steps": "128",
    "epochs": "8",
    "minibatch_size": "128",
    "clip_range": "inf",
    "policy_lr": "0.0003",
    "value_lr": "0.0003",
    "surrogate_lr": "0.0003",
    "lr_schedule": "linear",
    "gamma": "0.99",
    "gae_lambda": "0.95",
    "hidden": "256x256",
    "surrogate_hidden": "256x256",
    "activation": "silu",
    "layer_norm": "true",
    "critic_loss": "hl_gauss",
    "normalize_obs": "true",
    "normalize_reward": "true",
}
"""Of all contestants on all tasks."""
OF_TASK: dict[str, dict[str, str]] = {
    "HalfCheetah-v5": {"squash": "true", "log_std_init": "-0.5", "entropy_target": "-0.5"},
    "Hopper-v5": {"squash": "true", "log_std_init": "-0.5", "entropy_target": "-0.5"},
    "LunarLander-v3": {"gamma": "0.999", "gae_lambda": "0.98"},
}


def _contestants() -> tuple[str, ...]:
    found = []
    for bound in BOUNDS:
        found.append(f"V, {bound:g}=a2c:kl_bound={bound:g}")
        found += [
            f"q, w {w}, {bound:g}=auto:kl_bound={bound:g},surrogate_loss=critic,residual_weight={w}" for w in WEIGHTS
        ]
        found.append(f"c, {bound:g}=auto:kl_bound={bound:g}")
    return tuple(found)


MATCHES = {
    env: Match(
        env=env,
        steps=300_000,
        contestants=_contestants(),
        settings={**RECIPE, **settings},
        seeds=5,
        variance_of=f"q, w 1, {BOUNDS[1]:g}",
    )
    for env, settings in OF_TASK.items()
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and sum up all that is there."""
    main_of(MATCHES, GROUP, _write_summary, __doc__, argv)


def _write_summary() -> None:
    """`results/factorial.md` from the comparisons that are there."""
    intro = (
        "All contestants have the settings of `benchmarks/factorial.py`; the number behind each is the bound of the KL divergence.",
        "P is the probability that a run of the first ends higher than one of the second, by the mean over its whole curve, and by",
        "the mean of its last 100 episodes, runs at each bound against those at the same.",
        "",
    )
    write_summary("Critics and trust regions", GROUP, MATCHES, intro=intro, after=_pairs)


def _pairs(_: str, found: Mapping[str, Any]) -> list[str]:
    """Rivals over all bounds together."""
    ((_, task),) = found["environments"].items()
    runs = {label: entry["runs"] for label, entry in task["contestants"].items()}
    lines = ["| | P by the curve | P by the end |", "|---|---:|---:|"]
    for first in (*(f"q, w {w}" for w in WEIGHTS), "c"):
        pairs = [
            (runs[f"{first}, {bound:g}"], runs[f"V, {bound:g}"])
            for bound in BOUNDS
            if f"{first}, {bound:g}" in runs and f"V, {bound:g}" in runs
        ]
        cells = []
        for score in (curve_mean, final):
            scores = [(list(map(score, x)), list(map(score, y))) for x, y in pairs]
            cells.append("{:.2f} [{:.2f}, {:.2f}]".format(*_interval(scores)) if scores else "")
        lines.append(f"| {first} over V | {' | '.join(cells)} |")
    return [*lines, ""]


def _interval(scores: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[float, float, float]:
    found = improvement(scores)
    return float(found.value), float(found.low), float(found.high)


if __name__ == "__main__":
    main()
