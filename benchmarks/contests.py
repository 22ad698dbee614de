"""Our presets beside Stable-Baselines3's PPO with rl-baselines3-zoo's settings, and beside what was asked of them.

    python -m benchmarks.contests                            # everything; runs that are there are kept
    python -m benchmarks.contests --tasks Ant-v5 Ant-v5-ppo

Ours is `a2c`, which the documents name where only the return counts. Ours and PPO's are a `train_agent.py compare` command each,
so that PPO need not be trained again for another preset; where it has been trained with as many steps for
`benchmarks.against_ppo`, those runs are taken. On four cheap tasks there is PPO with the settings of `benchmarks.search` too.
On Atari PPO is not trained: its published scores stand beside ours. Seeds begin
at 0, which no search has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.contest_curves import Panel, draw
from benchmarks.matches import Match, curve_mean, final, main_of, read_result, spread, write_summary
from benchmarks.search import best_settings
from benchmarks.tasks import RESULTS
from relax_rl.comparison.statistics import bootstrap, iqm

__all__ = ["ATARI", "CONTESTS", "MATCHES", "OURS", "Contest", "main"]

GROUP = "contests"
OURS = "ours"
PPO = "sb3-ppo"
TUNED = "tuned-ppo"
"""PPO with the best settings of its search, where that has trials."""


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What is asked of a preset.

    Attributes:
        env: the task.
        steps: of a run.
        asked: of the measure: the value, or how many times PPO's with `times_ppo`; None: not below PPO, intervals apart.
        measure: "final", the interquartile mean of the runs' last 100 episodes; "curve", that of the whole curve; "steps", the median
            of the steps to the registered threshold; "reached", how many runs end at `least` or above.
        least: see there.
        times_ppo: whether what is asked is a multiple of PPO's.
        seeds: runs.
        known: the comparison of `benchmarks.against_ppo` that has PPO's runs.
        published: PPO's score where it is not trained here.
        searched: the search of `benchmarks.search` for PPO's settings.
    """

    env: str
    steps: int
    asked: float | None
    measure: str = "final"
    least: float = 0.0
    times_ppo: bool = False
    seeds: int = 10
    known: str | None = None
    published: float | None = None
    searched: str | None = None


def _classic(env: str, steps: int, *, known: bool = True, searched: str | None = None) -> Contest:
    return Contest(env=env, steps=steps, asked=None, measure="curve", known=env if known else None, searched=searched)


CONTESTS = {
    contest.env: contest
    for contest in (
        _classic("CartPole-v1", 100_000, searched="ppo-discrete"),
        _classic("Acrobot-v1", 100_000, searched="ppo-discrete"),
        _classic("InvertedPendulum-v5", 150_000),
        _classic("Pendulum-v1", 100_000, known=False, searched="ppo-continuous"),
        _classic("MountainCarContinuous-v0", 100_000, known=False, searched="ppo-continuous"),
        Contest(env="LunarLander-v3", steps=500_000, asked=100_000, measure="steps", known="LunarLander-v3"),
        Contest(
            env="LunarLanderContinuous-v3",
            steps=500_000,
            asked=100_000,
            measure="steps",
            known="LunarLanderContinuous-v3",
        ),
        Contest(env="InvertedDoublePendulum-v5", steps=1_000_000, asked=10, measure="reached", least=9_100.0),
        Contest(env="HalfCheetah-v5", steps=1_000_000, asked=6_000, known="HalfCheetah-v5"),
        Contest(env="Hopper-v5", steps=1_000_000, asked=2_600, known="Hopper-v5"),
        Contest(env="Walker2d-v5", steps=1_000_000, asked=1.3, times_ppo=True),
        Contest(env="Ant-v5", steps=1_000_000, asked=1.3, times_ppo=True),
        Contest(env="BipedalWalker-v3", steps=2_000_000, asked=270, seeds=5),
    )
}
ATARI = {
    "Pong": Contest(env="ALE/Pong-v5", steps=4_000_000, asked=18, seeds=3, published=20.7),
    "Breakout": Contest(env="ALE/Breakout-v5", steps=4_000_000, asked=100, seeds=3, published=274.8),
}
"""Published: Schulman et al. (2017), table 6, after 10,000,000 steps and without sticky actions."""


def _matches() -> dict[str, Match]:
    found = {}
    for name, contest in {**CONTESTS, **ATARI}.items():
        ours = Match(env=contest.env, steps=contest.steps, seeds=contest.seeds, contestants=(f"{OURS}=a2c",))
        found[name] = replace(ours, stop_when_solved=contest.measure == "steps")
        if contest.known is None and contest.published is None:
            found[f"{name}-ppo"] = replace(ours, contestants=(), peers=(PPO,))
        if contest.searched is not None and (settings := best_settings(contest.searched, PPO)):
            given = ",".join(f"{name}={value}" for name, value in settings.items())
            found[f"{name}-{TUNED}"] = replace(ours, contestants=(), peers=(f"{TUNED}={PPO}:{given}",))
    return found


MATCHES = _matches()


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and sum up all that is there."""
    main_of(MATCHES, GROUP, _write_summary, __doc__, argv)


def _write_summary() -> None:
    """`results/contests.md` from the comparisons that are there."""
    every = {**CONTESTS, **ATARI}
    entries = {name: _entries(name, contest) for name, contest in every.items()}
    rows = [_row(contest, entries[name]) for name, contest in every.items()]
    intro = [
        "Final scores and curves are interquartile means over runs, steps to the threshold medians, with 95% intervals.",
        "`python -m benchmarks.contests` writes this file.",
        "",
        "| task | steps | measure | ours | PPO | PPO, searched | asked | |",
        "|---|---:|---|---:|---:|---:|---:|---|",
        *filter(None, rows),
        "",
    ]
    write_summary("Presets and PPO", GROUP, MATCHES, intro=intro)
    if panels := [_panel(contest, entries[name]) for name, contest in CONTESTS.items() if any(entries[name].values())]:
        draw(panels, RESULTS / f"{GROUP}.png")


Entries = Mapping[str, Mapping[str, Any] | None]
"""What `comparison.json` has of ours and of PPO, by label; None where none has been trained, or no episode of any run has ended."""


def _entries(task: str, contest: Contest) -> Entries:
    group, name = (GROUP, f"{task}-ppo") if contest.known is None else ("against_ppo", contest.known)
    places = {OURS: (GROUP, task), PPO: (group, name), TUNED: (GROUP, f"{task}-{TUNED}")}
    found: dict[str, Mapping[str, Any] | None] = dict.fromkeys(places)
    for label, place in places.items():
        if (result := read_result(*place)) is not None:
            ((_, summary),) = result["environments"].items()
            found[label] = summary["contestants"].get(label)
    unasked = found[OURS] is None and contest.known is not None
    return dict.fromkeys(places) if unasked else found


def _panel(contest: Contest, entries: Entries) -> Panel:
    names = {OURS: "relax_rl, A2C", PPO: "SB3 PPO, zoo's settings", TUNED: "SB3 PPO, searched"}
    known = {names[label]: entry for label, entry in entries.items() if entry is not None}
    asked = contest.asked if contest.measure == "final" and not contest.times_ppo else None
    return Panel(title=contest.env, steps=contest.steps, curves=known, asked=asked)


def _row(contest: Contest, entries: Entries) -> str:
    if not any(entries.values()):
        return ""
    measured = [None if entry is None else _measured(contest, entry) for entry in entries.values()]
    held = "" if measured[0] is None else _held(contest, measured[0], measured[1])
    style = ",.0f" if contest.measure == "steps" else ",.1f"
    cells = ["" if value is None else spread(value, style) for value in measured]
    if contest.measure == "reached":  # a count, which has no interval
        counts = zip(measured, entries.values(), strict=True)
        cells = ["" if x is None or not entry else f"{x['value']:.0f} of {len(entry['runs'])}" for x, entry in counts]
    if contest.published is not None:
        cells[1] = f"{contest.published:,.1f} (published)"
    what = f"runs that end at {contest.least:,.0f}" if contest.measure == "reached" else contest.measure
    return f"| {contest.env} | {contest.steps:,} | {what} | {' | '.join(cells)} | {_asked(contest)} | {held} |"


def _asked(contest: Contest) -> str:
    if contest.asked is None:
        return "not below PPO"
    return f"{contest.asked:g} times PPO" if contest.times_ppo else f"{contest.asked:,.0f}"


def _measured(contest: Contest, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """The measure of a contestant, with its interval."""
    runs = entry["runs"]
    if contest.measure == "steps":
        steps: Mapping[str, Any] = entry["solved"]["steps"]["median"]
        return steps
    of_run: Callable[[Mapping[str, Any]], float] = curve_mean if contest.measure == "curve" else final
    scores = np.array([of_run(run) for run in runs])
    if contest.measure == "reached":
        count = float((scores >= contest.least).sum())
        return {"value": count, "low": count, "high": count}
    interval = bootstrap(iqm, scores)
    return {name: float(getattr(interval, name)) for name in ("value", "low", "high")}


def _held(contest: Contest, ours: Mapping[str, Any], theirs: Mapping[str, Any] | None) -> str:
    value = float(ours["value"])
    if contest.asked is None or contest.times_ppo:
        if theirs is None:
            return ""
        if contest.asked is None:
            return "no" if float(ours["high"]) < float(theirs["low"]) else "yes"
        peer = float(theirs["value"])  # below zero as well, 1.3 times asks for three tenths of its size more
        return "yes" if value >= peer + (contest.asked - 1.0) * abs(peer) else "no"
    return "yes" if (value <= contest.asked if contest.measure == "steps" else value >= contest.asked) else "no"


if __name__ == "__main__":
    main()
