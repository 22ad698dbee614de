"""Search for the presets: one setting for a family of tasks, each contestant with as many steps of trials as the other.

    python -m benchmarks.search --searches landers
    python -m benchmarks.search --report

A search is one `train_agent.py compare --tune` command that runs no seed of a comparison. It can be stopped at any time and
is gone on with where it is there, or else from the tables that were kept of it: trials are a function of those before them,
and a run of which nothing is left is made again from its seed. Trials train from seed 1,000 on, which no contest uses, and are
paused at shares of their steps, where the best third goes on. What is searched stands in `benchmarks/spaces/`, with the points
that a search begins with: presets, published settings of PPO, and a recipe with a bounded divergence. The table of all trials,
their settings and the space are kept in `results/search/<name>/`, and summed up in `results/search.md`; settings that are taken
from it into a preset are committed before they meet a seed of a contest. Discrete and continuous tasks are searched apart, so that
each has the estimator that takes the whole gradient of a critic of actions, whatever weight its residual has.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.matches import RUNS, check_same_plan, run_command
from benchmarks.tasks import RESULTS, write_text

__all__ = ["ANCHORS", "SEARCHES", "Search", "best_settings", "main", "settings_of", "trials_of"]

GROUP = "search"
FIRST_SEED = 1_000
SPACES = Path(__file__).parent / "spaces"
PEER_BATCH = 3
STUDY = "together-"
"""Before the name of a contestant in that of the folder of its trials."""
KEPT = ("trials.json", "trials.csv")
PLAN = ("settings.json", "tuning/search_space.json", "tuning/budget.json")


@dataclass(frozen=True, kw_only=True)
class Search:
    """One setting for several tasks.

    Attributes:
        anchors: of each task: the returns that count as 0, what a random policy has, and as 1, what one would be content with.
        steps: of a trial on each task.
        contestants: ours, as `compare` takes them; what each sets is not searched.
        space: file of what is searched.
        trials: of each contestant.
        peers: of `compare`; their runs are never paused, so that 9 trials take the steps of 36 of ours.
        rungs: the shares of their steps at which trials are paused.
        score: what counts of a trial: the mean of its curve, or the end of that, as the contests of the family count.
        settings: of all of ours, over nothing: no preset stands under them.
    """

    anchors: Mapping[str, tuple[float, float]]
    steps: int
    contestants: tuple[str, ...]
    space: str
    trials: int = 36
    peers: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    rungs: tuple[str, ...] = ("0.1", "0.3", "1")
    score: str = "curve"

    def command(self, folder: Path, *, jobs: int) -> list[str]:
        """What is started; a search that is there already is gone on with."""
        start = [sys.executable, "train_agent.py", "compare", "--num-workers", str(jobs)]
        settings = [f"{name}={value}" for name, value in {**self.settings, "preset": "none"}.items()]
        anchors = [f"{env}={low:g}:{high:g}" for env, (low, high) in self.anchors.items()]
        if (folder / "settings.json").exists():
            plan = {"estimators": self.contestants, "peers": self.peers, "set": settings, "total_steps": self.steps}
            rungs = [float(rung) for rung in self.rungs]
            check_same_plan(folder, {**plan, "tune_anchors": anchors, "tune_rungs": rungs, "tune_score": self.score})
            return [*start, "--resume", str(folder), "--env", *self.anchors]
        options = ["--env", *self.anchors, "--estimators", *self.contestants, "--seeds", "0", "--run-dir", str(folder)]
        options += ["--peers", *self.peers] if self.peers else []
        options += ["--set", *settings, "--total-steps", str(self.steps)]
        options += ["--tune", str(self.trials), "--tune-together", "--tune-anchors", *anchors]
        options += ["--tune-rungs", *self.rungs, "--tune-score", self.score]
        options += ["--tune-first-seed", str(FIRST_SEED), "--tune-space", str(SPACES / self.space)]
        # Of runs that are never paused a batch of the usual size would be all of them, proposed before any has ended.
        options += ["--tune-batch", str(PEER_BATCH)] if self.peers else []
        return [*start, *options]


ACTION_CRITIC = "surrogate_loss=critic,surrogate_activation=silu,surrogate_layer_norm=true"
"""Of q: a critic with the networks that critics have elsewhere."""


def _critics(estimator: str) -> tuple[str, ...]:
    """A baseline of states, and a critic of actions, by an estimator that takes the latter's whole gradient at any weight."""
    return "V=a2c", f"q={estimator}:{ACTION_CRITIC}"


_COMMON = {"normalize_obs": "true", "normalize_reward": "true", "num_envs": "8", "entropy_schedule": "linear"}

ANCHORS: dict[str, tuple[float, float]] = {
    "CartPole-v1": (22.0, 500.0),
    "Acrobot-v1": (-500.0, -80.0),
    "Pendulum-v1": (-1300.0, -150.0),
    "MountainCarContinuous-v0": (-60.0, 95.0),
    "InvertedPendulum-v5": (6.0, 1000.0),
    "InvertedDoublePendulum-v5": (50.0, 9300.0),
    "LunarLander-v3": (-200.0, 250.0),
    "LunarLanderContinuous-v3": (-200.0, 250.0),
    "HalfCheetah-v5": (-300.0, 6000.0),
    "Hopper-v5": (20.0, 2600.0),
    "Walker2d-v5": (0.0, 4000.0),
    "Ant-v5": (-50.0, 3000.0),
    "Swimmer-v5": (0.0, 350.0),
    "BipedalWalker-v3": (-100.0, 300.0),
    "minigrid:MiniGrid-LavaGapS7-v0": (0.0, 0.95),
    "minigrid:MiniGrid-SimpleCrossingS9N1-v0": (0.0, 0.95),
}
"""What a random policy has on a task, and what one would be content with."""


def _anchors(*tasks: str) -> dict[str, tuple[float, float]]:
    return {task: ANCHORS[task] for task in tasks}


def _of_ours(actions: Literal["discrete", "continuous"], steps: int, *tasks: str) -> Search:
    """V and q on small tasks of a family."""
    return Search(
        anchors=_anchors(*tasks),
        steps=steps,
        contestants=_critics("marginal" if actions == "discrete" else "lax"),
        space=f"{actions}.json",
        settings=_COMMON,
    )


def _of_ppo(*tasks: str) -> Search:
    """PPO on the cheapest tasks of a family."""
    return Search(
        anchors=_anchors(*tasks), steps=150_000, contestants=(), peers=("sb3-ppo",), space="ppo.json", trials=9
    )


SEARCHES: dict[str, Search] = {
    "classic-discrete": _of_ours("discrete", 150_000, "CartPole-v1", "Acrobot-v1"),
    "classic-continuous": _of_ours(
        "continuous", 150_000, "Pendulum-v1", "MountainCarContinuous-v0", "InvertedPendulum-v5"
    ),
    "ppo-discrete": _of_ppo("CartPole-v1", "Acrobot-v1"),
    "ppo-continuous": _of_ppo("Pendulum-v1", "MountainCarContinuous-v0"),
    "lander": _of_ours("discrete", 500_000, "LunarLander-v3"),
    "lander-continuous": _of_ours("continuous", 500_000, "LunarLanderContinuous-v3"),
    "locomotion": Search(
        anchors=_anchors("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5"),
        steps=1_000_000,
        contestants=_critics("lax"),
        space="locomotion.json",
        trials=24,
        settings=_COMMON,
        rungs=("0.2", "1"),
        score="end",
    ),
    "untold": Search(
        anchors=_anchors(
            "CartPole-v1",
            "LunarLander-v3",
            "Pendulum-v1",
            "HalfCheetah-v5",
            "minigrid:MiniGrid-LavaGapS7-v0",
            "minigrid:MiniGrid-SimpleCrossingS9N1-v0",
        )
        | {"HalfCheetah-v5": (-300.0, 3000.0)},
        steps=100_000,
        contestants=("auto",),
        space="untold.json",
        trials=27,
        settings={**_COMMON, "surrogate_scale": "fitted"},
    ),
}
"""The last is for tasks that no preset names: those by which it is judged, of `benchmarks.unknown_tasks`, are none of its own."""


def main(argv: Sequence[str] | None = None) -> None:
    """Search for what is asked for, and keep the tables of all trials."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--searches", nargs="+", choices=list(SEARCHES), default=list(SEARCHES))
    parser.add_argument("--jobs", type=int, default=0, help="runs side by side (default: one per core)")
    parser.add_argument("--report", action="store_true", help="sum up and train nothing")
    args = parser.parse_args(argv)
    for name in args.searches:
        folder, kept = RUNS / GROUP / name, RESULTS / GROUP / name
        if not args.report:
            _restore(kept, folder)
            try:
                run_command(SEARCHES[name].command(folder, jobs=args.jobs))
            except BaseException:
                _keep(folder, kept)
                raise
        _keep(folder, kept)
    write_text(RESULTS / f"{GROUP}.md", _report())


def _keep(folder: Path, kept: Path) -> None:
    """The trials of every contestant so far, with the settings of the search and its space."""
    for study in folder.glob(f"tuning/{STUDY}*"):
        for path in (study / name for name in KEPT if (study / name).exists()):
            _copy(path, kept / study.name.removeprefix(STUDY) / path.name)
    for path in (folder / name for name in PLAN if (folder / name).exists()):
        _copy(path, kept / path.name)


def _restore(kept: Path, folder: Path) -> None:
    """A folder from which a search goes on that was kept elsewhere."""
    if folder.exists():
        return
    for name in PLAN:
        if (kept / Path(name).name).exists():
            _copy(kept / Path(name).name, folder / name)
    for path in kept.glob(f"*/{KEPT[0]}"):
        _copy(path, folder / "tuning" / f"{STUDY}{path.parent.name}" / path.name)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _report() -> str:
    """Every search that has trials: how many, the best of each contestant, and what it is set to."""
    lines = [
        "# Searches for the presets",
        "",
        "One setting for all tasks of a family. A trial's score is the mean over its tasks of the mean of the learning curve, or "
        "of its last fifth, 0 at a random policy's return and 1 at the one named below. `python -m benchmarks.search` writes this file; "
        "`trials.csv` beside it holds every trial.",
    ]
    for name, search in SEARCHES.items():
        labels = [text.partition("=")[0] for text in (*search.contestants, *search.peers)]
        found = {label: trials_of(name, label) for label in labels}
        if not any(found.values()):
            continue
        tasks = ", ".join(f"{env} ({low:g} to {high:g})" for env, (low, high) in search.anchors.items())
        what = "the curve" if search.score == "curve" else "its last fifth"
        lines += [
            "",
            f"## {name}",
            "",
            f"{search.steps:,} steps of {tasks}, by {what}; `benchmarks/spaces/{search.space}`.",
            "",
        ]
        lines += ["| contestant | trials | to the end | best score | its settings |", "|---|---:|---:|---:|---|"]
        lines += [_row(label, trials, search) for label, trials in found.items() if trials]
    return "\n".join([*lines, ""])


def trials_of(name: str, label: str) -> list[dict[str, str]]:
    """The rows of the table of a contestant's trials in a search; none where there is no table."""
    path = RESULTS / GROUP / name / label / "trials.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _row(label: str, trials: Sequence[Mapping[str, str]], search: Search) -> str:
    whole, best = _whole(label, trials, search), _best(label, trials, search)
    score = f"{float(best['score']):.3f}" if best else ""
    told = ", ".join(f"{name} {_short(value)}" for name, value in settings_of(best, search).items())
    return f"| {label} | {len(trials)} | {len(whole)} | {score} | {told} |"


def best_settings(name: str, label: str) -> dict[str, str]:
    """What the best trial of a contestant was set to, as its table has it; empty where none has been trained to the end.

    Args:
        name: of the search.
        label: of the contestant, or the peer.
    """
    return settings_of(_best(label, trials_of(name, label), SEARCHES[name]), SEARCHES[name])


def _whole(label: str, trials: Sequence[Mapping[str, str]], search: Search) -> list[Mapping[str, str]]:
    """Trials that were trained to the end."""
    rungs = "1" if label in search.peers else str(len(search.rungs))
    return [trial for trial in trials if trial["rung"] == rungs and trial["score"]]


def _best(label: str, trials: Sequence[Mapping[str, str]], search: Search) -> Mapping[str, str]:
    return max(_whole(label, trials, search), key=lambda trial: float(trial["score"]), default={})


def settings_of(trial: Mapping[str, str], search: Search) -> dict[str, str]:
    """What a row of a table of trials was set to; settings that its contestant does not have are left out."""
    return {name: value for name, value in trial.items() if value and name not in (*NO_SETTINGS, *search.anchors)}


NO_SETTINGS = ("number", "rung", "score", "seconds")


def _short(value: str) -> str:
    try:
        found = json.loads(value)
    except ValueError:
        return value
    return f"{found:.3g}" if isinstance(found, float) else value


if __name__ == "__main__":
    main()
