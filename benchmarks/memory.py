"""Agents with a memory beside agents without, and beside sb3-contrib's RecurrentPPO where it is installed.

    python -m benchmarks.memory                                    # every task; runs that are there are kept
    python -m benchmarks.memory --tasks Cue --seeds 0 1 --only "relax, gru"

Cue shows a sign and asks for it 20 steps later; Positions is CartPole without velocities (`benchmarks.memory_tasks`). Ours take
rollouts of 128 steps of eight environments and the passes of PPO; RecurrentPPO the same, and its library's defaults else. Runs are
one after the other, each on one thread, and write `results/memory.json`, `.md` and `.png`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from benchmarks.tasks import RESULTS, commit, write_json, write_text
from relax_rl.compute.serialization import write_bytes_atomic
from relax_rl.runs.plotting import png

__all__ = ["CONTESTANTS", "TASKS", "main", "play", "steps_to"]

NUM_ENVS, WINDOW, POINTS = 8, 100, 200
REPORT = RESULTS / "memory.json"
PEER = "RecurrentPPO"
_PASSES = {"num_steps": 128, "minibatch_size": 256, "epochs": 4, "clip_range": 0.2, "compile": "off"}


@dataclass(frozen=True)
class MemoryTask:
    """An environment, the steps of a run, and the mean return of 100 episodes that is asked for."""

    env: str
    budget: int
    threshold: float


@dataclass(frozen=True)
class Contestant:
    """One of ours: an estimator, and its memory."""

    estimator: str
    memory: str = "none"


TASKS = {
    "Cue": MemoryTask("benchmarks.memory_tasks:Cue-v0", 300_000, 0.9),
    "Positions": MemoryTask("benchmarks.memory_tasks:CartPolePositions-v0", 500_000, 400.0),
}
CONTESTANTS: dict[str, Contestant | None] = {
    **{f"{name}, gru": Contestant(name, "gru") for name in ("relax", "marginal", "a2c", "reinforce")},
    "relax, lstm": Contestant("relax", "lstm"),
    **{name: Contestant(name) for name in ("relax", "marginal", "a2c", "reinforce")},
    PEER: None,
}


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


def play(task: MemoryTask, contestant: Contestant | None, seed: int, budget: int) -> dict[str, Any]:
    """One run: its curve, the steps it took and the seconds that they took."""
    curve = Curve(budget)
    learn = _recurrent_ppo(task, seed, budget, curve) if contestant is None else _ours(task, contestant, seed, curve)
    start = time.perf_counter()
    steps = learn(budget)
    return {"steps": steps, "seconds": round(time.perf_counter() - start, 2), "curve": curve.points}


def _ours(task: MemoryTask, contestant: Contestant, seed: int, curve: Curve) -> Callable[[int], int]:
    from relax_rl import make_envs
    from relax_rl.agents import AGENTS

    envs = make_envs(task.env, num_envs=NUM_ENVS, seed=seed, vectorization="sync")
    settings: dict[str, Any] = {**_PASSES, "memory": contestant.memory}
    if AGENTS[contestant.estimator].estimator.uses_surrogate:
        settings["surrogate_scale"] = "fitted"
    kind = AGENTS[contestant.estimator]
    agent = kind(envs.single_observation_space, envs.single_action_space, seed=seed, **settings)

    def learn(budget: int) -> int:
        with envs:
            agent.learn(envs, budget, lambda _, info: curve(info.steps, (e.return_ for e in info.episodes)))
        return agent.steps

    return learn


def _recurrent_ppo(task: MemoryTask, seed: int, budget: int, curve: Curve) -> Callable[[int], int]:
    import gymnasium as gym
    import torch
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    from relax_rl.backends.registry import find_spec as registered

    class Listener(BaseCallback):
        def _on_step(self) -> bool:
            ended = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
            curve(self.num_timesteps, map(float, ended))
            return True

    torch.set_num_threads(1)
    env = make_vec_env(lambda: gym.make(registered(task.env)), NUM_ENVS, seed=seed)
    how: dict[str, Any] = {"n_steps": 128, "batch_size": 256, "n_epochs": 4, "policy_kwargs": {"lstm_hidden_size": 64}}
    model = RecurrentPPO("MlpLstmPolicy", env, seed=seed, device="cpu", **how)

    def learn(budget: int) -> int:
        model.learn(budget, Listener())
        return int(model.num_timesteps)

    return learn


def steps_to(threshold: float, curve: Sequence[Sequence[float]]) -> float:
    """The first point at which a curve has reached a threshold; inf if none."""
    return next((float(step) for step, mean in curve if mean >= threshold), math.inf)


def report(runs: Sequence[Mapping[str, Any]]) -> str:
    """The table."""
    lines = [
        "# Memory",
        "",
        f"Steps until the mean return of {WINDOW} training episodes reaches the threshold, medians over the seeds (inf: not "
        f"within the run); the mean return at the end; steps per second of one run after the other. {NUM_ENVS} environments "
        "in one process, one thread. `python -m benchmarks.memory` writes this file.",
    ]
    for name, task in TASKS.items():
        found = {label: _of(runs, name, label) for label in CONTESTANTS}
        if not any(found.values()):
            continue
        lines += ["", f"## {name}", "", f"`{task.env}`, {task.budget:,} steps, threshold {task.threshold:g}.", ""]
        lines += [
            "| contestant | seeds | reached | steps to the threshold | return at the end | steps/s |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        lines += [_row(label, each, task) for label, each in found.items() if each]
    return "\n".join([*lines, "", "![Learning curves with and without a memory](memory.png)", ""])


def _of(runs: Sequence[Mapping[str, Any]], task: str, contestant: str) -> list[Mapping[str, Any]]:
    return [run for run in runs if (run["task"], run["contestant"]) == (task, contestant)]


def _row(label: str, runs: Sequence[Mapping[str, Any]], task: MemoryTask) -> str:
    needed = [steps_to(task.threshold, run["curve"]) for run in runs]
    ends = [run["curve"][-1][1] for run in runs if run["curve"]]
    cells = [
        label,
        str(len(runs)),
        f"{sum(map(math.isfinite, needed))} of {len(runs)}",
        f"{statistics.median(needed):,.0f}",
        f"{statistics.median(ends):.2f}" if ends else "",
        f"{statistics.median(run['steps'] / run['seconds'] for run in runs):,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def draw(runs: Sequence[Mapping[str, Any]]) -> bytes:
    """The curves of every run, a panel a task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(TASKS), 4), dpi=120, layout="constrained")
    for axes, (name, task) in zip(figure.subplots(1, len(TASKS), squeeze=False)[0], TASKS.items(), strict=True):
        for colour, label in enumerate(CONTESTANTS):
            for number, run in enumerate(_of(runs, name, label)):
                steps, means = zip(*run["curve"], strict=True) if run["curve"] else ((), ())
                axes.plot(steps, means, f"C{colour}", linewidth=1, label=label if number == 0 else "")
        axes.axhline(task.threshold, color="0.3", linestyle="--", linewidth=1)
        axes.set_title(name)
        axes.set_xlabel("environment steps")
        axes.set_ylabel(f"mean return of {WINDOW} episodes")
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    return png(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Play what is missing, and write down all that is there after each run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)), help="seeds (default 0 to 4)")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS), help="contestants")
    parser.add_argument("--budget", type=int, help="steps of a run, for a try that writes nothing")
    parser.add_argument("--report", action="store_true", help="sum up and train nothing")
    args = parser.parse_args(argv)
    runs: list[dict[str, Any]] = json.loads(REPORT.read_text())["runs"] if REPORT.exists() else []
    labels = [label for label in args.only if label != PEER or find_spec("sb3_contrib") is not None]
    if labels != args.only:
        print("sb3-contrib is not installed, and left out; the extra benchmarks has it")
    known = {(run["task"], run["contestant"], run["seed"]) for run in runs} if args.budget is None else set()
    for seed in () if args.report else args.seeds:
        for name in args.tasks:
            for label in labels:
                if (name, label, seed) in known:
                    continue
                found = play(TASKS[name], CONTESTANTS[label], seed, args.budget or TASKS[name].budget)
                runs.append({"task": name, "contestant": label, "seed": seed, "commit": commit(), **found})
                print(_row(f"{name}, {label}, seed {seed}", [runs[-1]], TASKS[name]), flush=True)
                if args.budget is None:
                    write_json(REPORT, {"runs": runs})
    print(report(runs))
    if runs and args.budget is None:
        write_text(REPORT.with_suffix(".md"), report(runs))
        write_bytes_atomic(REPORT.with_suffix(".png"), draw(runs))


if __name__ == "__main__":
    main()
