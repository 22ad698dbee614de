"""Which agent is best after two minutes and after five, from the start of its process: ours, or Stable-Baselines3's PPO, A2C or SAC.

    python -m benchmarks.five_minutes                            # three seeds of every task; the machine must be otherwise idle
    python -m benchmarks.five_minutes --tasks Hopper-v5 --seeds 0 --jobs 2

Whole processes on one thread and one core each, imports counted, and compiling, for which nothing is cached. Ours is what `train`
starts with the preset as A2C, which the documents name where only the return counts, for as many steps as fit into the five minutes at
the speed that a run of one minute had by its end. Peers are what `compare` starts, with rl-baselines3-zoo's settings; with linear
schedules until their published steps are done. With `--jobs` as many run side by side, each on a core of its own. What counts at a
time are the last 20
training episodes that had been written by then, noted every five seconds. Beside the scores stands when ours first had PPO's final
score (`benchmarks.contests`), and how long PPO takes for its steps at the speed it had here. Writes `results/five_minutes.json` and
`.md`; runs that are there are kept, each with its commit.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from benchmarks.contests import CONTESTS, GROUP
from benchmarks.matches import final, read_result
from benchmarks.tasks import RESULTS, at_least_one, commit, write_text
from relax_rl.comparison.peers import ALGORITHMS
from relax_rl.comparison.statistics import bootstrap, iqm, median

__all__ = ["main"]

OURS = "ours"
TIMES = (120.0, 300.0)
TRIAL = 60.0
"""Seconds of the run that tells how many steps fit."""
TRIAL_SEED = 1_000
STARTING = 20.0
"""Seconds until ours is at its speed, imports and compiling."""
ENOUGH = 100_000_000
"""Steps that no run comes to."""
EVERY = 5.0
"""Seconds between two notes of the episodes so far."""
WINDOW = 20
"""Episodes that count."""
DISCRETE = ("CartPole-v1", "Acrobot-v1", "LunarLander-v3")
REPORT = RESULTS / "five_minutes.json"
ASKED = 9
"""Tasks on which ours is to be best at both times."""
ASKED_SOON = 6
"""Tasks on which ours is to have PPO's final score in a tenth of PPO's time."""
PPO = "sb3-ppo"


def contestants(env: str) -> tuple[str, ...]:
    """Who learns a task; SAC takes continuous actions alone."""
    return (OURS, *(algo for algo in ALGORITHMS if algo != "sb3-sac" or env not in DISCRETE))


def command(env: str, contestant: str, seed: int, steps: int, folder: Path) -> list[str]:
    """What is started."""
    if contestant == OURS:
        start = ["train_agent.py", "train", "--quiet", "--no-tensorboard", "--threads", "1", "--estimator", "a2c"]
    else:
        start = ["-m", "relax_rl.comparison.peer_training", "--algo", contestant]
    start += ["--total-steps", str(steps)]
    return [sys.executable, *start, "--env", env, "--seed", str(seed), "--run-dir", str(folder)]


def fitting(env: str, *, core: int) -> int:
    """Steps of ours that fit into the last of the times, in whole tens of thousands, by a run of one minute."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "run" / "progress.csv"
        start = time.perf_counter()
        with _process(command(env, OURS, TRIAL_SEED, ENOUGH, table.parent), Path(folder) / "cache", core) as process:
            _wait(process, start + TRIAL)
        if _rows(table) == 0:
            raise RuntimeError(f"{OURS} on {env} has not begun after {TRIAL:g} seconds")
        with table.open(encoding="utf-8") as rows:
            speeds = [float(row["steps_per_second"]) for row in csv.DictReader(rows)]
    return int(float(np.median(speeds[len(speeds) // 2 :])) * (TIMES[-1] - STARTING) // 10_000 * 10_000)


@contextmanager
def _process(start: Sequence[str], cache: Path, core: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process on one thread and one core, with nothing compiled beforehand; ended on the way out."""
    process = subprocess.Popen(
        ["taskset", "--cpu-list", str(core), *start],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RELAX_RL_CACHE": str(cache)},
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _wait(process: subprocess.Popen[bytes], until: float) -> None:
    """Until that time, or the end of the process if that is sooner."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, until - time.perf_counter()))


def timed(
    env: str, contestant: str, seed: int, *, steps: int, core: int, times: Sequence[float] = TIMES
) -> dict[str, Any]:
    """One process on one core, stopped at the last of the times.

    Returns:
        `scores`, the mean return of the last episodes at each of the times, None where there are none; `steps` by then; and
        `curve`, [seconds, steps, mean return of the last episodes] for every note on which an episode has ended since the last.

    Raises:
        RuntimeError: if the process ends with an error.
    """
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "run" / "episodes.csv"
        start = time.perf_counter()
        notes: list[tuple[float, int]] = []
        with _process(command(env, contestant, seed, steps, table.parent), Path(folder) / "cache", core) as process:
            for at in sorted({*times, *np.arange(EVERY, times[-1], EVERY).tolist()}):
                _wait(process, start + at)
                notes.append((at, _rows(table)))
            ended = process.poll()
            seconds = time.perf_counter() - start
        if ended not in (None, 0):
            raise RuntimeError(f"{contestant} on {env} ended with exit code {ended}")
        episodes = []
        if table.exists():  # an episode has ended
            with table.open(encoding="utf-8") as rows:
                episodes = [(int(row["step"]), float(row["return"])) for row in csv.DictReader(rows)]
    about = {"env": env, "contestant": contestant, "seed": seed, "commit": commit(), "seconds": round(seconds, 1)}
    return {**about, "total_steps": steps, **_noted(notes, episodes, times)}


def _noted(
    notes: Sequence[tuple[float, int]], episodes: Sequence[tuple[int, float]], times: Sequence[float]
) -> dict[str, Any]:
    """What a run had come to by its notes, seconds and numbers of episodes."""
    known = {at: (episodes[n - 1][0], float(np.mean([x for _, x in episodes[:n][-WINDOW:]]))) for at, n in notes if n}
    rows, before = [], 0
    for at, count in notes:
        if count > before:
            rows.append([at, known[at][0], round(known[at][1], 4)])
        before = count
    at_times = [known.get(at) for at in times]
    scores, steps = ([None if x is None else x[k] for x in at_times] for k in (1, 0))
    return {"scores": scores, "steps": [x or 0 for x in steps], "curve": rows}


def _rows(table: Path) -> int:
    """Whole rows of a table, without its head."""
    return max(0, table.read_bytes().count(b"\n") - 1) if table.exists() else 0


def report(runs: Sequence[Mapping[str, Any]]) -> str:
    """The tables: means over seeds with 95% intervals, the best of each time in bold; and when ours had PPO's final score."""
    lines = [
        "# After two minutes and after five",
        "",
        f"Mean return of the last {WINDOW} training episodes, from the start of a process on one core; means over seeds with 95% "
        "intervals where there are several. `python -m benchmarks.five_minutes` writes this file.",
        "",
        "| task | seconds | " + " | ".join((OURS, *ALGORITHMS)) + " |",
        "|---|---:|" + "---:|" * (1 + len(ALGORITHMS)),
    ]
    alone, level = 0, 0
    tasks = list(dict.fromkeys(run["env"] for run in runs))
    for env in tasks:
        best: list[list[str]] = []
        for k, at in enumerate(TIMES):
            found = {label: _interval(runs, env, label, k) for label in contestants(env)}
            means = {label: interval[0] for label, interval in found.items() if interval is not None}
            first = [label for label, mean in means.items() if mean == max(means.values())]
            best.append(first if len(means) == len(found) else [])
            cells = [_cell(found.get(label), label in first) for label in (OURS, *ALGORITHMS)]
            lines.append(f"| {env if not k else ''} | {at:g} | {' | '.join(cells)} |")
        alone += all(labels == [OURS] for labels in best)
        level += all(OURS in labels for labels in best)
    lines += [
        "",
        f"Ours best at both times, with all rivals run: {alone} of {len(tasks)} tasks, best or level with the best: {level}, "
        f"of {ASKED} of {len(CONTESTS)} that were asked.",
        "",
        *_soon(runs, tasks),
    ]
    return "\n".join(lines)


def _soon(runs: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> list[str]:
    """When ours first had what PPO ends with, beside how long PPO takes."""
    lines = ["| task | PPO's final score | its seconds | ours has it after | share |", "|---|---:|---:|---:|---:|"]
    held = told = 0
    for env in tasks:
        published, ppo = ppo_final(env), [run for run in runs if (run["env"], run["contestant"]) == (env, PPO)]
        if published is None or not any(run["curve"] for run in ppo):
            continue
        score, steps = published
        speeds = [run["curve"][-1][1] / run["curve"][-1][0] for run in ppo if run["curve"]]
        seconds = steps / float(np.median(speeds))
        ours = _median_of(runs, env, OURS, score)
        told += 1
        held += ours <= seconds / 10.0
        when = "not in 300" if ours == math.inf else f"{ours:.0f}"
        share = "" if ours == math.inf else f"{ours / seconds:.2f}"
        lines.append(f"| {env} | {score:,.1f} | {seconds:,.0f} | {when} | {share} |")
    if not told:
        return []
    asked = f"Within a tenth of PPO's time: {held} of {told} tasks, of {ASKED_SOON} of {len(CONTESTS)} that were asked."
    return [*lines, "", asked, ""]


def ppo_final(env: str) -> tuple[float, int] | None:
    """The interquartile mean of what PPO's runs end with, as its contest has it, and their steps; None where it has no runs."""
    group, name = (GROUP, f"{env}-ppo") if CONTESTS[env].known is None else ("against_ppo", CONTESTS[env].known)
    found = read_result(group, str(name))
    task = {} if found is None else next(iter(found["environments"].values()))
    if PPO not in task.get("contestants", {}):
        return None
    ends = np.array([final(run) for run in task["contestants"][PPO]["runs"]])
    return float(iqm(ends)), int(task["total_steps"])


def _median_of(runs: Sequence[Mapping[str, Any]], env: str, label: str, score: float) -> float:
    """Median over seeds of the seconds to a score; never where half of them have not come there."""
    curves = [run["curve"] for run in runs if (run["env"], run["contestant"]) == (env, label)]
    first = [next((at for at, _, mean in curve if mean >= score), math.inf) for curve in curves]
    return float(median(np.array(first))) if first else math.inf


def _interval(runs: Sequence[Mapping[str, Any]], env: str, label: str, k: int) -> tuple[float, float, float] | None:
    scores = [run["scores"][k] for run in runs if (run["env"], run["contestant"]) == (env, label)]
    known = [score for score in scores if score is not None]
    if not scores or len(known) < len(scores):
        return None
    found = bootstrap(np.mean, np.array(known))
    return float(found.value), float(found.low), float(found.high)


def _cell(interval: tuple[float, float, float] | None, best: bool) -> str:
    if interval is None:
        return ""
    value, low, high = interval
    shown = f"**{value:,.1f}**" if best else f"{value:,.1f}"
    return shown if low == high else f"{shown} [{low:,.1f}, {high:,.1f}]"


def _on_a_core(cores: SimpleQueue[int], env: str, contestant: str, seed: int) -> dict[str, Any]:
    """`timed` on a core that nothing else of this script uses."""
    core = cores.get()
    try:
        steps = fitting(env, core=core) if contestant == OURS else ENOUGH
        return timed(env, contestant, seed, steps=steps, core=core)
    finally:
        cores.put(core)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, and write down all that is there after each process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=list(CONTESTS), default=list(CONTESTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=at_least_one, default=1, help="processes side by side (default: 1)")
    parser.add_argument("--report", action="store_true", help="sum up and train nothing")
    args = parser.parse_args(argv)
    runs = json.loads(REPORT.read_text(encoding="utf-8")) if REPORT.exists() else []
    there = {(run["env"], run["contestant"], run["seed"]) for run in runs}
    wanted = [(env, label, seed) for env in args.tasks for seed in args.seeds for label in contestants(env)]
    failures: list[str] = []
    cores: SimpleQueue[int] = SimpleQueue()
    for core in sorted(os.sched_getaffinity(0))[: args.jobs]:
        cores.put(core)
    missing = [] if args.report else [key for key in wanted if key not in there]
    with ThreadPoolExecutor(cores.qsize()) as pool:
        for key, future in [(key, pool.submit(_on_a_core, cores, *key)) for key in missing]:
            try:
                runs.append(future.result())
            except RuntimeError as failed:
                failures.append(str(failed))
                print(failed, file=sys.stderr, flush=True)
                continue
            write_text(REPORT, "[\n" + ",\n".join(map(json.dumps, runs)) + "\n]\n")
            write_text(REPORT.with_suffix(".md"), report(runs))
            print(f"{key[0]}, {key[1]}, seed {key[2]}: {runs[-1]['scores']}", flush=True)
    if runs:
        write_text(REPORT.with_suffix(".md"), report(runs))
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
