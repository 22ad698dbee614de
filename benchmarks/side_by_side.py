"""Our agents beside one of sb3-contrib's: what `benchmarks.masks` and `benchmarks.memory` share.

Learning and speed are measured apart: seeds may be played by several processes, while rounds of short runs in turns, on a
machine that does nothing else, say how fast each contestant is.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.tasks import RESULTS, commit, write_json, write_text
from relax_rl.compute.serialization import write_bytes_atomic
from relax_rl.runs.plotting import png

__all__ = ["NUM_ENVS", "Curve", "Learn", "SideBySide", "Task", "learn_of_agent", "learn_of_peer", "steps_to"]

NUM_ENVS, WINDOW, POINTS = 8, 100, 200
ROUNDS, ROUND_STEPS = 3, 20_480
Learn = Callable[[int], int]
"""(steps) -> the steps that were taken; everything is made before it is called."""


@dataclass(frozen=True)
class Task:
    """An environment, the steps of a run, and the mean return of 100 episodes that is asked for."""

    env: str
    budget: int
    threshold: float


class Curve:
    """Mean returns of the last 100 episodes, at some 200 points of a run."""

    def __init__(self, budget: int) -> None:
        self._interval, self._returns = max(1, budget // POINTS), deque[float](maxlen=WINDOW)
        self.points: list[tuple[int, float]] = []

    def __call__(self, step: int, returns: Iterable[float]) -> None:
        """Take in the episodes that have finished up to a step."""
        self._returns.extend(returns)
        last = self.points[-1][0] if self.points else 0
        if len(self._returns) == WINDOW and step - last >= self._interval:
            self.points.append((step, round(math.fsum(self._returns) / WINDOW, 4)))


def learn_of_agent(agent: Any, envs: Any, curve: Curve) -> Learn:
    """One of our agents on environments, which are closed afterwards."""

    def learn(budget: int) -> int:
        with envs:
            agent.learn(envs, budget, lambda _, info: curve(info.steps, (e.return_ for e in info.episodes)))
        return int(agent.steps)

    return learn


def learn_of_peer(model: Any, curve: Curve) -> Learn:
    """An agent of Stable-Baselines3 or sb3-contrib."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Listener(BaseCallback):
        def _on_step(self) -> bool:
            ended = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
            curve(self.num_timesteps, map(float, ended))
            return True

    def learn(budget: int) -> int:
        model.learn(budget, Listener())
        return int(model.num_timesteps)

    return learn


def steps_to(threshold: float, curve: Sequence[Sequence[float]]) -> float:
    """The first point at which a curve has reached a threshold; inf if none."""
    return next((float(step) for step, mean in curve if mean >= threshold), math.inf)


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """A benchmark: tasks, contestants, and how one of them is made.

    Attributes:
        name: of the script and of its results, `results/NAME.json`, `.md` and `.png`.
        title: of its table.
        tasks: by name.
        contestants: labels, in the order of the table.
        peers: those that need sb3-contrib; the first one's speed is the unit.
        prepare: (task, contestant, seed, curve) -> what is timed.
        symlog: names of tasks whose returns are drawn on a symmetric logarithmic axis.
        shares: of the steps of a run, by contestant, where one takes fewer than all.
    """

    name: str
    title: str
    tasks: Mapping[str, Task]
    contestants: Sequence[str]
    peers: Sequence[str]
    prepare: Callable[[Task, str, int, Curve], Learn]
    symlog: tuple[str, ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The file of all runs."""
        return RESULTS / f"{self.name}.json"

    def budget(self, task: str, contestant: str) -> int:
        """Steps of a run."""
        return round(self.tasks[task].budget * self.shares.get(contestant, 1.0))

    def play(self, task: str, contestant: str, seed: int, budget: int) -> dict[str, Any]:
        """One run: its curve, the steps that it took, and how many a second."""
        import torch

        torch.set_num_threads(1)
        curve = Curve(budget)
        learn = self.prepare(self.tasks[task], contestant, seed, curve)
        start = time.perf_counter()
        steps = learn(budget)
        return {"steps": steps, "steps_per_second": round(steps / (time.perf_counter() - start)), "curve": curve.points}

    def measure(self, tasks: Iterable[str], labels: Sequence[str]) -> dict[str, dict[str, list[int]]]:
        """Steps per second by task and contestant, of short runs in turns."""
        found: dict[str, dict[str, list[int]]] = {task: {label: [] for label in labels} for task in tasks}
        for number in range(ROUNDS):
            for task, of_task in found.items():
                for label, speeds in of_task.items():
                    speeds.append(self.play(task, label, number, ROUND_STEPS)["steps_per_second"])
                    print(f"{task}, {label}: {speeds[-1]:,} steps/s", flush=True)
        return found

    def report(self, runs: Sequence[Mapping[str, Any]], speeds: Mapping[str, Mapping[str, Sequence[int]]]) -> str:
        """The table."""
        lines = [
            f"# {self.title}",
            "",
            f"Steps until the mean return of {WINDOW} training episodes reaches the threshold, medians over the seeds with the "
            f"lowest and the highest (inf: not within the run); the mean return at the end; steps per second, the median of {ROUNDS} runs of {ROUND_STEPS:,} steps "
            f"in turns with nothing beside them, and in units of {self.peers[0]}'s. {NUM_ENVS} environments in one process, one "
            f"thread. `python -m benchmarks.{self.name}` writes this file.",
        ]
        for name, task in self.tasks.items():
            found = {label: _of(runs, name, label) for label in self.contestants}
            if not any(found.values()):
                continue
            fewer = [f"; {label} {self.budget(name, label):,}" for label in self.shares if found[label]]
            told = f"`{task.env}`, {task.budget:,} steps{''.join(fewer)}. Threshold {task.threshold:g}."
            lines += ["", f"## {name}", "", told, ""]
            lines += [
                f"| contestant | seeds | reached | steps to the threshold | return at the end | steps/s | of {self.peers[0]} |",
                "|---|---:|---:|---:|---:|---:|---:|",
            ]
            known = {label: statistics.median(each) for label, each in speeds.get(name, {}).items() if each}
            lines += [
                _row(label, each, task, known.get(label), known.get(self.peers[0]))
                for label, each in found.items()
                if each
            ]
        return "\n".join([*lines, "", f"![Learning curves]({self.name}.png)", ""])

    def draw(self, runs: Sequence[Mapping[str, Any]]) -> bytes:
        """The curves of every run, a panel a task."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6 * len(self.tasks), 4), dpi=120, layout="constrained")
        for axes, (name, task) in zip(
            figure.subplots(1, len(self.tasks), squeeze=False)[0], self.tasks.items(), strict=True
        ):
            for colour, label in enumerate(self.contestants):
                for number, run in enumerate(_of(runs, name, label)):
                    steps, means = zip(*run["curve"], strict=True) if run["curve"] else ((), ())
                    axes.plot(steps, means, f"C{colour}", linewidth=1, label=label if number == 0 else "")
            axes.axhline(task.threshold, color="0.3", linestyle="--", linewidth=1)
            axes.set_title(name)
            axes.set_xlabel("environment steps")
            axes.set_ylabel(f"mean return of {WINDOW} episodes")
            if name in self.symlog:
                axes.set_yscale("symlog", linthresh=10)
        known = {line.get_label(): line for axes in figure.axes for line in axes.lines}
        shown = [label for label in self.contestants if label in known]
        figure.legend([known[label] for label in shown], shown, loc="outside lower center", ncols=5, frameon=False)
        return png(figure)

    def main(self, description: str | None, argv: Sequence[str] | None = None) -> None:
        """Play what is missing, and write down all that is there after each run."""
        parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
        parser.add_argument("--tasks", nargs="+", choices=list(self.tasks), default=list(self.tasks))
        parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)), help="seeds (default 0 to 4)")
        parser.add_argument(
            "--only", nargs="+", choices=list(self.contestants), default=list(self.contestants), help="contestants"
        )
        parser.add_argument("--budget", type=int, help="steps of a run, for a try that writes nothing")
        parser.add_argument("--speed", action="store_true", help="measure speed and nothing else")
        parser.add_argument("--report", action="store_true", help="sum up and train nothing")
        args = parser.parse_args(argv)
        labels = [label for label in args.only if label not in self.peers or find_spec("sb3_contrib") is not None]
        if labels != args.only:
            print("sb3-contrib is not installed, and left out; the extra benchmarks has it")
        if args.speed:
            self._keep(speeds=self.measure(args.tasks, labels))
        kept = args.budget is None
        for seed in () if args.report or args.speed else args.seeds:
            for name in args.tasks:
                for label in labels:
                    if kept and _of(self._known()["runs"], name, label, seed):
                        continue
                    found = self.play(name, label, seed, args.budget or self.budget(name, label))
                    run = {"task": name, "contestant": label, "seed": seed, "commit": commit(), **found}
                    print(_row(f"{name}, {label}, seed {seed}", [run], self.tasks[name]), flush=True)
                    if kept:
                        self._keep(run=run)
        known = self._known()
        print(self.report(known["runs"], known["speeds"]))
        if known["runs"] and kept:
            write_text(self.path.with_suffix(".md"), self.report(known["runs"], known["speeds"]))
            write_bytes_atomic(self.path.with_suffix(".png"), self.draw(known["runs"]))

    def _known(self) -> dict[str, Any]:
        """What is there; other processes may have added to it."""
        found: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        return {"runs": found.get("runs", []), "speeds": found.get("speeds", {})}

    def _keep(
        self, *, run: Mapping[str, Any] | None = None, speeds: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Add a run, or take speeds in the place of those of the same contestants."""
        known = self._known()
        known["runs"] += [] if run is None else [run]
        for task, found in (speeds or {}).items():
            known["speeds"].setdefault(task, {}).update(found)
        write_json(self.path, known)


def _of(
    runs: Sequence[Mapping[str, Any]], task: str, contestant: str, seed: int | None = None
) -> list[Mapping[str, Any]]:
    found = [run for run in runs if (run["task"], run["contestant"]) == (task, contestant)]
    return [run for run in found if seed is None or run["seed"] == seed]


def _row(
    label: str, runs: Sequence[Mapping[str, Any]], task: Task, speed: float | None = None, of: float | None = None
) -> str:
    needed = [steps_to(task.threshold, run["curve"]) for run in runs]
    ends = [run["curve"][-1][1] for run in runs if run["curve"]]
    cells = [
        label,
        str(len(runs)),
        f"{sum(map(math.isfinite, needed))} of {len(runs)}",
        f"{statistics.median(needed):,.0f} [{min(needed):,.0f}, {max(needed):,.0f}]",
        f"{statistics.median(ends):.2f}" if ends else "",
        f"{speed:,.0f}" if speed else "",
        f"{speed / of:.1f}" if speed and of else "",
    ]
    return f"| {' | '.join(cells)} |"
