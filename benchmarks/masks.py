"""Agents with action masks beside agents without, and beside sb3-contrib's MaskablePPO where it is installed.

    python -m benchmarks.masks                                     # every task; runs that are there are kept
    python -m benchmarks.masks --tasks Dispatch --seeds 0 1 --only relax

Taxi says which actions move something; in Dispatch (`benchmarks.masks_task`) nine of ten choices are impossible. Ours take the
default preset on eight environments, with their masks and with `action_masks="off"`; `passes` takes the passes of PPO over a
rollout. MaskablePPO has the library's defaults on eight environments, as no settings are published. Runs are one after the other,
each on one thread, and write `results/masks.json`, `.md` and `.png`.
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
from typing import Any

from benchmarks.masks_task import BEST
from benchmarks.tasks import RESULTS, commit, write_json, write_text
from relax_rl.compute.serialization import write_bytes_atomic
from relax_rl.runs.plotting import png

__all__ = ["CONTESTANTS", "TASKS", "main", "play", "steps_to"]

NUM_ENVS, WINDOW, POINTS = 8, 100, 200
REPORT = RESULTS / "masks.json"
PEER = "MaskablePPO"
_PASSES = {"num_steps": 128, "minibatch_size": 256, "epochs": 4, "clip_range": 0.2, "surrogate_scale": "fitted"}


@dataclass(frozen=True)
class MaskedTask:
    """An environment, the steps of a run, and the mean return of 100 episodes that is asked for."""

    env: str
    budget: int
    threshold: float


@dataclass(frozen=True)
class Contestant:
    """One of ours: an estimator, whether it has masks, and settings over the preset."""

    estimator: str
    masks: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)


TASKS = {
    "Taxi": MaskedTask("Taxi-v4", 300_000, 7.0),
    "Dispatch": MaskedTask("benchmarks.masks_task:Dispatch-v0", 300_000, round(0.95 * BEST, 1)),
}
CONTESTANTS: dict[str, Contestant | None] = {
    "relax": Contestant("relax"),
    "relax, no masks": Contestant("relax", masks=False),
    "relax, passes": Contestant("relax", settings=_PASSES),
    "relax, passes, no masks": Contestant("relax", masks=False, settings=_PASSES),
    "a2c": Contestant("a2c"),
    "a2c, no masks": Contestant("a2c", masks=False),
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


def play(task: MaskedTask, contestant: Contestant | None, seed: int, budget: int) -> dict[str, Any]:
    """One run: its curve, the steps it took and the seconds that they took."""
    curve = Curve(budget)
    learn = _maskable_ppo(task, seed, budget, curve) if contestant is None else _ours(task, contestant, seed, curve)
    start = time.perf_counter()
    steps = learn(budget)
    return {"steps": steps, "seconds": round(time.perf_counter() - start, 2), "curve": curve.points}


def _ours(task: MaskedTask, contestant: Contestant, seed: int, curve: Curve) -> Callable[[int], int]:
    from relax_rl import make_envs, settings_for
    from relax_rl.agents import AGENTS

    how: Any = "auto" if contestant.masks else "off"
    envs = make_envs(task.env, num_envs=NUM_ENVS, seed=seed, vectorization="sync", action_masks=how)
    assert (envs.action_mask is not None) == contestant.masks
    settings = {**settings_for(task.env, contestant.estimator), **contestant.settings}
    kind = AGENTS[contestant.estimator]
    agent = kind(envs.single_observation_space, envs.single_action_space, seed=seed, **settings)

    def learn(budget: int) -> int:
        with envs:
            agent.learn(envs, budget, lambda _, info: curve(info.steps, (e.return_ for e in info.episodes)))
        return agent.steps

    return learn


def _maskable_ppo(task: MaskedTask, seed: int, budget: int, curve: Curve) -> Callable[[int], int]:
    import gymnasium as gym
    import torch
    from sb3_contrib import MaskablePPO
    from sb3_contrib.common.wrappers import ActionMasker
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    from relax_rl.backends.registry import find_spec as registered

    def make() -> Any:
        env = gym.make(registered(task.env))
        return env if env.has_wrapper_attr("action_masks") else ActionMasker(env, _mask_of_taxi)

    class Listener(BaseCallback):
        def _on_step(self) -> bool:
            ended = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
            curve(self.num_timesteps, map(float, ended))
            return True

    torch.set_num_threads(1)
    model = MaskablePPO("MlpPolicy", make_vec_env(make, NUM_ENVS, seed=seed), seed=seed, device="cpu")

    def learn(budget: int) -> int:
        model.learn(budget, Listener())
        return int(model.num_timesteps)

    return learn


def _mask_of_taxi(env: Any) -> Any:
    return env.unwrapped.action_mask(env.unwrapped.s)


def steps_to(threshold: float, curve: Sequence[Sequence[float]]) -> float:
    """The first point at which a curve has reached a threshold; inf if none."""
    return next((float(step) for step, mean in curve if mean >= threshold), math.inf)


def report(runs: Sequence[Mapping[str, Any]]) -> str:
    """The table."""
    lines = [
        "# Action masks",
        "",
        f"Steps until the mean return of {WINDOW} training episodes reaches the threshold, medians over the seeds (inf: not "
        f"within the run); the mean return at the end; steps per second of one run after the other. {NUM_ENVS} environments "
        "in one process, one thread. `python -m benchmarks.masks` writes this file.",
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
    return "\n".join([*lines, "", "![Learning curves with and without masks](masks.png)", ""])


def _of(runs: Sequence[Mapping[str, Any]], task: str, contestant: str) -> list[Mapping[str, Any]]:
    return [run for run in runs if (run["task"], run["contestant"]) == (task, contestant)]


def _row(label: str, runs: Sequence[Mapping[str, Any]], task: MaskedTask) -> str:
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
        if name == "Taxi":
            axes.set_yscale("symlog", linthresh=10)
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
