"""Try the same settings on every estimator, to choose the presets: equal candidates, equal seeds, equal steps.

    python -m benchmarks.tune --env CartPole-v1 --jobs 2

The candidates of an environment stand in `CANDIDATES`. Each is trained for `Study.steps` with seeds 100, 101, ..., which
no other benchmark uses. Every finished trial is a line of `results/tuning/<env>.jsonl`, so that a study can be stopped
and goes on; `results/tuning/<env>.md` is the table. A preset takes the candidate whose score, averaged over the
estimators, is best. Where a run takes long, A2C alone is asked, and RELAX takes over what suits it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tasks import RESULTS, TASKS, WINDOW, Task, write_text

__all__ = ["CANDIDATES", "Study", "main"]

TUNING = RESULTS / "tuning"
FIRST_SEED = 100
CURVE_POINTS = 10


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is tried on one environment."""

    estimators: tuple[str, ...]
    steps: int
    seeds: int
    base: dict[str, Any]
    """Settings of all candidates."""
    candidates: tuple[dict[str, Any], ...]
    """What each candidate changes in the base."""
    second_round: tuple[dict[str, Any], ...] = ()
    """Candidates that the first round could not tell apart, and that get as many seeds again."""
    task: Task | None = None
    """What is asked, where that is not what `TASKS` says of the environment the study is named after."""


NORMALIZED = {"normalize_obs": True, "normalize_reward": True, "value_lr": 3e-3, "surrogate_lr": 3e-3}
CANDIDATES: dict[str, Study] = {
    "CartPole-v1": Study(
        estimators=("relax", "a2c"),
        steps=150_000,
        seeds=5,
        base={"num_envs": 8, "num_steps": 5, **NORMALIZED},
        candidates=(
            {},
            {"gamma": 0.98, "gae_lambda": 0.9},
            {"gamma": 0.98, "gae_lambda": 0.9, "lr_schedule": "linear"},
            {"gamma": 0.98, "gae_lambda": 0.8},
            {"gamma": 0.98, "gae_lambda": 0.9, "policy_lr": 2e-3},
            {"gamma": 0.98, "gae_lambda": 0.9, "surrogate_steps": 4},
            {"gamma": 0.98, "gae_lambda": 0.9, "normalize_obs": False},
            {"gamma": 0.98, "gae_lambda": 0.9, "normalize_reward": False},
        ),
    ),
    "InvertedPendulum-v5": Study(
        estimators=("lax", "a2c"),
        steps=150_000,
        seeds=5,
        base={"num_envs": 8, **NORMALIZED},
        candidates=(
            {"num_steps": 5},
            {"num_steps": 5, "gamma": 0.98, "gae_lambda": 0.9},
            {"num_steps": 5, "policy_lr": 2e-3},
            {"num_steps": 5, "surrogate_steps": 4},
            {"num_steps": 16, "policy_lr": 2e-3},
        ),
    ),
    "LunarLander-v3": Study(
        estimators=("relax", "a2c"),
        steps=1_000_000,
        seeds=5,
        base={
            **NORMALIZED,
            "num_envs": 16,
            "num_steps": 32,
            "gamma": 0.995,
            "gae_lambda": 0.98,
            "entropy_coef": 0.01,
            "policy_lr": 2e-3,
            "value_lr": 1e-2,
            "lr_schedule": "linear",
        },
        candidates=(
            {},
            {"policy_lr": 4e-3},
            {"gamma": 0.999},
            {"gamma": 0.99},
            {"entropy_coef": 0.02, "entropy_schedule": "linear"},
            {"policy_lr": 4e-3, "entropy_coef": 0.02, "entropy_schedule": "linear"},
            {"gamma": 0.999, "entropy_coef": 0.003, "value_lr": 3e-3},
        ),
        second_round=(
            {"gamma": 0.99},
            {"policy_lr": 4e-3},
            {"entropy_coef": 0.02, "entropy_schedule": "linear"},
        ),
    ),
    "HalfCheetah-v5-7-bins": Study(
        task=Task(env="HalfCheetah-v5", budget=1_000_000, threshold=4800.0, within=1_000_000, stop_when_reached=False),
        estimators=("a2c",),
        steps=1_000_000,
        seeds=2,
        base={
            **NORMALIZED,
            "bins": 7,
            "num_envs": 8,
            "num_steps": 64,
            "minibatch_size": 64,
            "epochs": 10,
            "clip_range": 0.2,
            "gamma": 0.98,
            "gae_lambda": 0.92,
            "policy_lr": 3e-4,
            "value_lr": 3e-4,
            "surrogate_lr": 1e-3,
            "surrogate_scale": "fitted",
            "log_std_init": -1.0,
            "lr_schedule": "linear",
        },
        candidates=(
            {},
            {"entropy_coef": 0.003},
            {"entropy_coef": 0.01},
            {"minibatch_size": 256},
            {"num_steps": 256, "minibatch_size": 256},
            {"policy_lr": 1e-4},
            {"policy_lr": 1e-4, "lr_schedule": "constant"},
            {"ordinal_std_init": 0.4},
        ),
        second_round=({}, {"policy_lr": 1e-4}, {"ordinal_std_init": 0.4}),
    ),
}


def task_of(name: str) -> Task:
    """What is asked in the study of that name."""
    return CANDIDATES[name].task or TASKS[name]


def train(trial: dict[str, Any]) -> dict[str, Any]:
    """Run one trial; returns it with the step at which the threshold was reached, the final mean and a coarse curve."""
    import torch

    from relax_rl import make_envs
    from relax_rl.agents import AGENTS

    torch.set_num_threads(1)
    task, steps = task_of(trial["env"]), trial["steps"]
    settings = dict(trial["settings"])
    num_envs, bins = settings.pop("num_envs"), settings.pop("bins", 0)
    envs = make_envs(task.env, num_envs=num_envs, bins=bins, seed=trial["seed"])
    spaces = envs.single_observation_space, envs.single_action_space
    agent = AGENTS[trial["estimator"]](*spaces, seed=trial["seed"], **settings)
    returns: deque[float] = deque(maxlen=WINDOW)
    outcome: dict[str, Any] = {"reached": None, "curve": []}

    def watch(agent: Any, info: Any) -> bool:
        returns.extend(episode.return_ for episode in info.episodes)
        mean = statistics.fmean(returns) if returns else None
        if len(outcome["curve"]) < info.steps * CURVE_POINTS // steps and mean is not None:
            outcome["curve"].append(round(mean, 2))
        if outcome["reached"] is None and len(returns) == WINDOW and mean is not None and mean >= task.threshold:
            outcome["reached"] = info.steps
        return not (task.stop_when_reached and outcome["reached"])

    agent.learn(envs, steps, [watch])
    envs.close()
    return {**trial, **outcome, "final": round(statistics.fmean(returns), 2)}


def settings_of(study: Study, candidate: dict[str, Any], estimator: str) -> dict[str, Any]:
    """Effective settings of a trial: what only a surrogate reads makes no difference to A2C, and is left out."""
    settings = {**study.base, **candidate}
    return {k: v for k, v in settings.items() if estimator != "a2c" or not k.startswith("surrogate")}


def trials(env: str, study: Study) -> Iterable[dict[str, Any]]:
    """All trials of a study, candidate by candidate; A2C's are not repeated where they would be the same."""
    seen = set()
    first, second = (range(FIRST_SEED + k * study.seeds, FIRST_SEED + (k + 1) * study.seeds) for k in (0, 1))
    rounds = [(candidate, first) for candidate in study.candidates]
    rounds += [(candidate, second) for candidate in study.second_round]
    for candidate, seeds in rounds:
        for seed in seeds:
            for estimator in study.estimators:
                settings = settings_of(study, candidate, estimator)
                trial = {"env": env, "estimator": estimator, "settings": settings, "seed": seed, "steps": study.steps}
                if key(trial) not in seen:
                    seen.add(key(trial))
                    yield trial


def key(trial: dict[str, Any]) -> str:
    """What makes two trials the same."""
    return json.dumps({name: trial[name] for name in ("estimator", "settings", "seed", "steps")}, sort_keys=True)


def read(path: Path) -> list[dict[str, Any]]:
    """Finished trials; a last line that was cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def score(results: list[dict[str, Any]], task: Task) -> tuple[float, float]:
    """The lower, the better.

    Where a run stops at the threshold, the median of the steps to it (the budget's end counts double). Where it does not,
    the share of runs that end below what is asked, and of equal ones the mean final return.
    """
    if task.stop_when_reached:
        return float(statistics.median(r["reached"] or 2 * r["steps"] for r in results)), 0.0
    final = [r["final"] for r in results]
    return statistics.fmean(value < task.threshold for value in final), -statistics.fmean(final)


def cell(results: list[dict[str, Any]], task: Task) -> str:
    """One candidate with one estimator: how many runs reached the threshold and when, or the final returns."""
    if task.stop_when_reached:
        steps = [r["reached"] for r in results if r["reached"]]
        return f"{len(steps)} of {len(results)}" + (f", median {statistics.median(steps):,.0f}" if steps else "")
    return " ".join(f"{r['final']:.0f}" for r in sorted(results, key=lambda r: int(r["seed"])))


def table(env: str, study: Study, results: list[dict[str, Any]]) -> str:
    """Markdown: one row a candidate, best first, those of the second round before the others."""
    task = task_of(env)
    rows = []
    for candidate in study.candidates:
        groups = []
        for estimator in study.estimators:
            wanted = settings_of(study, candidate, estimator)
            groups.append([r for r in results if r["estimator"] == estimator and r["settings"] == wanted])
        if all(groups):
            scores = [score(group, task) for group in groups]
            name = ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in candidate.items())
            cells = [name or "nothing changed", *(cell(group, task) for group in groups)]
            whole = tuple(statistics.fmean(part) for part in zip(*scores, strict=True))
            rows.append(((candidate not in study.second_round, *whole), f"| {' | '.join(cells)} |"))
    what = (
        f"runs that reached {task.threshold:g}, and the median of their steps"
        if task.stop_when_reached
        else f"mean return of the last {WINDOW} episodes, one number a seed"
    )
    base = ", ".join(f"{k} {v}" for k, v in study.base.items())
    lines = [
        f"# Candidates for {env}",
        "",
        f"All with {base}; {study.steps:,} steps; seeds from {FIRST_SEED} on. Cells: {what}.",
        "",
        f"| changed | {' | '.join(study.estimators)} |",
        f"|---|{'---|' * len(study.estimators)}",
        *(row for _, row in sorted(rows)),
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Work through the study of one environment."""
    parser = argparse.ArgumentParser(description="Try the same settings on every estimator.")
    parser.add_argument("--env", choices=list(CANDIDATES), required=True)
    parser.add_argument("--jobs", type=int, default=1, help="trials side by side")
    arguments = parser.parse_args()
    study = CANDIDATES[arguments.env]
    path = TUNING / f"{arguments.env.replace('/', '-')}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = read(path)
    done = {key(result) for result in results}
    todo = [t for t in trials(arguments.env, study) if key(t) not in done]
    write_text(path, "".join(json.dumps(result) + "\n" for result in results))
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool, path.open("a", encoding="utf-8") as file:
        for result in pool.imap(train, todo):
            results.append(result)
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(result["estimator"], result["settings"], result["reached"], result["curve"], flush=True)
    text = table(arguments.env, study, results)
    write_text(path.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
