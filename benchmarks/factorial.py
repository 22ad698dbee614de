"""Critics of states and of actions within trust regions of three sizes: does a lower noise pay where larger steps may be taken?

    python -m benchmarks.factorial                          # every task; runs that are there are kept
    python -m benchmarks.factorial --tasks LunarLander-v3 --seeds 2
    python -m benchmarks.factorial --tasks LunarLander-v3-finalists

V is an agent without surrogate; q learns what an action is worth, and what it leaves of the advantage counts with a weight w
from 0 to 1, or one that is learned, by the estimator that takes the whole gradient of q: over all actions (marginal) or through the
sample (LAX); c is the surrogate as it ships, that learns to lower the variance. Each is trained at three bounds of the KL
divergence, all else equal: the recipe of `RECIPE`, chosen beforehand and searched for none of them. Seeds begin at 2,000, which
neither searches nor contests use; weights other than 1 have fewer of them, by a plan of their own. The best V and the best q of a
task by the curve go on as its finalists: as long as contests are, ten fresh seeds, from 0 on. Named beforehand: whether q with
w = 1 is ahead of V by the mean of the curve, all bounds and tasks together, and more so at the widest bound. Beside the curves,
gradients are measured at frozen agents of q: variance and squared bias under every estimator. `results/factorial.md` sums up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from benchmarks.matches import Match, curve_mean, final, main_of, read_result, write_summary
from benchmarks.search import ACTION_CRITIC
from relax_rl.comparison.statistics import Interval, bootstrap, improvement, iqm

__all__ = ["BOUNDS", "MATCHES", "main"]

GROUP = "factorial"
DISCRETE = ("LunarLander-v3",)
BOUNDS = (0.02, 0.05, 0.1)
WEIGHTS = ("0", "0.3", "1", "adaptive")
RIVALS = ("q, w 1", "q, w adaptive", "q, w 0.3", "q, w 0", "c")

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
    "lr_schedule": "constant",
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
"""Of all contestants on all tasks. A rate that falls would leave the bounds nothing to hold; none was tried on a seed of these runs."""
OF_TASK: dict[str, dict[str, str]] = {
    "HalfCheetah-v5": {"squash": "true", "log_std_init": "-0.5", "entropy_target": "-0.5"},
    "Hopper-v5": {"squash": "true", "log_std_init": "-0.5", "entropy_target": "-0.5"},
    "LunarLander-v3": {"gamma": "0.999", "gae_lambda": "0.98"},
}
FULL_STEPS = {"HalfCheetah-v5": 1_000_000, "Hopper-v5": 1_000_000, "LunarLander-v3": 500_000}
FINALISTS, OTHER = "finalists", "weights"
"""Behind a task's name, that of the plan for the best V and the best q, and of that for weights other than 1."""


def _contestants(env: str) -> dict[str, str]:
    """As `compare` takes them, by label."""
    kinds = ("marginal", "relax") if env in DISCRETE else ("lax", "lax")
    found = {}
    for bound in BOUNDS:
        within = f"kl_bound={bound:g}"
        found[f"V, {bound:g}"] = f"a2c:{within}"
        for w in WEIGHTS:
            found[f"q, w {w}, {bound:g}"] = f"{kinds[0]}:{within},{ACTION_CRITIC},residual_weight={w}"
        found[f"c, {bound:g}"] = f"{kinds[1]}:{within},surrogate_scale=fitted"
    return {label: f"{label}={text}" for label, text in found.items()}


Runs = Mapping[str, Sequence[Mapping[str, Any]]]


def _runs(found: Mapping[str, Any]) -> Runs:
    ((_, task),) = found["environments"].items()
    return {label: entry["runs"] for label, entry in task["contestants"].items()}


def _runs_on(env: str) -> Runs:
    """Those of both plans of a task that are there."""
    plans = (read_result(GROUP, name) for name in (env, f"{env}-{OTHER}"))
    return {label: runs for found in plans if found is not None for label, runs in _runs(found).items()}


def _finalists(env: str) -> tuple[str, ...]:
    """The best V and the best q, as `compare` takes them; none as long as either has not been trained."""
    means = {label: iqm(np.array([curve_mean(run) for run in runs])) for label, runs in _runs_on(env).items()}
    ours = [[label for label in means if label.startswith(who)] for who in ("V,", "q,")]
    return tuple(_contestants(env)[max(labels, key=means.__getitem__)] for labels in ours) if all(ours) else ()


def _matches() -> dict[str, Match]:
    """Of every task, of the other weights on it, and of its finalists once there are any."""
    matches = {}
    for env, settings in OF_TASK.items():
        every = _contestants(env)
        others = tuple(every[f"q, w {w}, {bound:g}"] for bound in BOUNDS for w in WEIGHTS if w != "1")
        match = matches[env] = Match(
            env=env,
            steps=300_000,
            contestants=tuple(text for text in every.values() if text not in others),
            settings={**RECIPE, **settings},
            seeds=5,
            first_seed=2_000,
            variance_of=f"q, w 1, {BOUNDS[1]:g}",
        )
        matches[f"{env}-{OTHER}"] = replace(match, contestants=others, seeds=3, variance_of=None)
        if last := _finalists(env):
            longest = replace(match, contestants=last, steps=FULL_STEPS[env], variance_of=None)
            matches[f"{env}-{FINALISTS}"] = replace(longest, seeds=10, first_seed=0)
    return matches


MATCHES = _matches()


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and sum up all that is there."""
    main_of(MATCHES, GROUP, _write_summary, __doc__, argv)


def _write_summary() -> None:
    """`results/factorial.md` from the comparisons that are there."""
    known = {env: runs for env in OF_TASK if (runs := _runs_on(env))}
    intro = [
        "All contestants have the settings of `benchmarks/factorial.py`; the number behind each is the bound of the KL divergence.",
        "P is the probability that a run of the first ends higher than one of the second, by the mean over its whole curve, and by",
        "the mean of its last 100 episodes, runs at each bound against those at the same. Tables have 95% intervals; the question that",
        "was named beforehand is that of the row of q with w = 1, by the curve, at all bounds.",
        "",
        *(_pairs(list(known.values())) if len(known) > 1 else []),
    ]
    for env, runs in known.items():
        intro += [f"## {env}: curves and rivals", "", *_of_task(runs)]
        if (found := read_result(GROUP, env)) is not None and found["variance"].get(env):
            intro += _errors(found["variance"][env])
    write_summary("Critics and trust regions", GROUP, MATCHES, intro=intro, after=_between_finalists)


def _of_task(runs: Runs) -> list[str]:
    """The curves of all contestants, and rivals on a task."""
    head = "| mean of the curve | " + " | ".join(f"{bound:g}" for bound in BOUNDS) + " |"
    lines = [head, "|---" + "|---:" * len(BOUNDS) + "|"]
    for who in ("V", *RIVALS):
        cells = []
        for bound in BOUNDS:
            scores = np.array([curve_mean(run) for run in runs.get(f"{who}, {bound:g}", [])])
            cells.append(_told(bootstrap(iqm, scores), ".1f") if len(scores) else "")
        lines += [f"| {who} | {' | '.join(cells)} |"] if any(cells) else []
    return [*lines, "", *_pairs([runs])]


def _errors(stages: Mapping[str, Any]) -> list[str]:
    """What the gradient at frozen agents of q is made of, in units of the variance of V alone."""
    names = [name for name in next(iter(stages.values()))["applied"] if "w =" in name]
    lines = [
        "Of a gradient at frozen agents of q, in units of the variance of V alone, `a2c`: its own square, and of an estimate that lets",
        "a share w of the residual in the variance, and the squared bias. A bias as large as the gradient's own square is that of an",
        "estimate that says 0.",
        "",
        f"| agent | square of the gradient | {' | '.join(f'{name}: variance | squared bias' for name in names)} |",
        "|---|---:" + "|---:|---:" * len(names) + "|",
    ]
    for stage, found in stages.items():
        unit, cells = float(found["applied"]["a2c"]["variance"]["value"]), []
        for name in names:
            entry = found["applied"][name]
            cells += [entry["variance"]["value"], (entry.get("squared_bias") or {"value": math.nan})["value"]]
        numbers = [float(x) / unit for x in (found["squared_gradient_norm"], *cells)]
        lines.append(f"| {stage}, {found['step']:,} steps | {' | '.join(f'{x:.3f}' for x in numbers)} |")
    return [*lines, ""]


def _between_finalists(name: str, found: Mapping[str, Any]) -> list[str]:
    """How V and q fare against each other; nothing of other plans."""
    if not name.endswith(FINALISTS):
        return []
    runs = _runs(found)
    state, action = runs
    lines = []
    for what, score in (("curve", curve_mean), ("end", final)):
        ours, theirs = list(map(score, runs[action])), list(map(score, runs[state]))
        means = [_told(bootstrap(iqm, np.array(scores)), ".1f") for scores in (ours, theirs)]
        above = _told(improvement([(ours, theirs)]), ".2f")
        lines.append(f"- by the {what}: {action} {means[0]}, {state} {means[1]}; P({action} over {state}) {above}")
    return [*lines, ""]


def _pairs(every: Sequence[Runs]) -> list[str]:
    """Rivals of V on some tasks, at each bound and over all."""
    lines = []
    for what, score in (("by the curve", curve_mean), ("by the end", final)):
        lines += [f"| P {what} | " + " | ".join(f"{bound:g}" for bound in BOUNDS) + " | all |"]
        lines += ["|---" + "|---:" * (len(BOUNDS) + 1) + "|"]
        for first in RIVALS:
            at = [
                [pair for runs in every if (pair := _pair(runs, first, bound, score)) is not None] for bound in BOUNDS
            ]
            cells = [_told(improvement(pairs), ".2f") if pairs else "" for pairs in (*at, list(chain(*at)))]
            lines += [f"| {first} over V | {' | '.join(cells)} |"] if any(cells) else []
        lines.append("")
    return lines


def _pair(
    runs: Runs, first: str, bound: float, score: Callable[[Mapping[str, Any]], float]
) -> tuple[list[float], list[float]] | None:
    """Scores of a rival and of V at a bound, if both have runs."""
    rivals = runs.get(f"{first}, {bound:g}"), runs.get(f"V, {bound:g}")
    if rivals[0] is None or rivals[1] is None:
        return None
    return list(map(score, rivals[0])), list(map(score, rivals[1]))


def _told(interval: Interval, style: str) -> str:
    value, low, high = (format(float(x), style) for x in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    main()
