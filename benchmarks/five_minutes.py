"""Which agent is best after two minutes and after five, from the start of its process: ours, or Stable-Baselines3's PPO, A2C or SAC.

    python -m benchmarks.five_minutes                            # three seeds of every task; the machine must be otherwise idle
    python -m benchmarks.five_minutes --tasks Hopper-v5 --seeds 0

Whole processes on one thread each, one after the other, imports counted, and compiling, for which nothing is cached. Ours is what
`train` starts, with the preset and the steps of the contest; peers are what `compare` starts, with rl-baselines3-zoo's settings; with
linear schedules until their published steps are done. What counts at a time are the last 20 training episodes that had been written
by then. Writes `results/five_minutes.json` and `.md`; runs that are there are kept, each with its commit.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contests import CONTESTS
from benchmarks.tasks import RESULTS, commit, write_json, write_text
from relax_rl.comparison.peers import ALGORITHMS
from relax_rl.comparison.statistics import bootstrap

__all__ = ["main"]

OURS = "ours"
TIMES = (120.0, 300.0)
WINDOW = 20
"""Episodes that count."""
DISCRETE = ("CartPole-v1", "Acrobot-v1", "LunarLander-v3")
REPORT = RESULTS / "five_minutes.json"
ASKED = 9
"""Tasks on which ours is to be best at both times."""


def contestants(env: str) -> tuple[str, ...]:
    """Who learns a task; SAC takes continuous actions alone."""
    return (OURS, *(algo for algo in ALGORITHMS if algo != "sb3-sac" or env not in DISCRETE))


def command(env: str, contestant: str, seed: int, folder: Path) -> list[str]:
    """What is started."""
    if contestant == OURS:
        steps = str(CONTESTS[env].steps)
        start = ["train_agent.py", "train", "--quiet", "--no-tensorboard", "--threads", "1", "--total-steps", steps]
    else:
        start = ["-m", "relax_rl.comparison.peer_training", "--algo", contestant, "--total-steps", "100000000"]
    return [sys.executable, *start, "--env", env, "--seed", str(seed), "--run-dir", str(folder)]


def timed(env: str, contestant: str, seed: int, *, times: Sequence[float] = TIMES) -> dict[str, Any]:
    """One process, stopped at the last of the times: the mean return of the last episodes at each, None where there are none."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "run" / "episodes.csv"
        known: list[int] = []
        start = time.perf_counter()
        process = subprocess.Popen(
            command(env, contestant, seed, table.parent),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "RELAX_RL_CACHE": str(Path(folder) / "cache")},
        )
        for at in times:
            while process.poll() is None and time.perf_counter() - start < at:
                time.sleep(0.1)
            known.append(_rows(table))
        ended = process.poll()
        seconds = time.perf_counter() - start
        process.send_signal(signal.SIGTERM)
        process.wait()
        if ended not in (None, 0):
            raise RuntimeError(f"{contestant} on {env} ended with exit code {ended}")
        episodes = []
        if table.exists():  # an episode has ended
            with table.open(encoding="utf-8") as rows:
                episodes = [(int(row["step"]), float(row["return"])) for row in csv.DictReader(rows)]
    scores = [float(np.mean([x for _, x in episodes[:count][-WINDOW:]])) if count else None for count in known]
    steps = [episodes[count - 1][0] if count else 0 for count in known]
    about = {"env": env, "contestant": contestant, "seed": seed, "commit": commit()}
    return {**about, "seconds": round(seconds, 1), "scores": scores, "steps": steps}


def _rows(table: Path) -> int:
    """Whole rows of a table, without its head."""
    return max(0, table.read_bytes().count(b"\n") - 1) if table.exists() else 0


def report(runs: Sequence[Mapping[str, Any]]) -> str:
    """The table: means over seeds with 95% intervals, the best of each time in bold."""
    lines = [
        "# After two minutes and after five",
        "",
        f"Mean return of the last {WINDOW} training episodes, means over seeds with 95% intervals, from the start of a process on one "
        "thread. `python -m benchmarks.five_minutes` writes this file.",
        "",
        "| task | seconds | " + " | ".join((OURS, *ALGORITHMS)) + " |",
        "|---|---:|" + "---:|" * (1 + len(ALGORITHMS)),
    ]
    won = []
    for env in dict.fromkeys(run["env"] for run in runs):
        first = []
        for k, at in enumerate(TIMES):
            found = {label: _interval(runs, env, label, k) for label in contestants(env)}
            means = {label: interval[0] for label, interval in found.items() if interval is not None}
            best = [label for label, mean in means.items() if mean == max(means.values())]
            first.append(best == [OURS] and len(means) == len(found))
            cells = [_cell(found.get(label), label in best) for label in (OURS, *ALGORITHMS)]
            lines.append(f"| {env if not k else ''} | {at:g} | {' | '.join(cells)} |")
        won.append(all(first))
    lines += [
        "",
        f"Best at both times, level with none and with all rivals run: {sum(won)} of {len(won)} tasks, of {ASKED} of "
        f"{len(CONTESTS)} that were asked.",
        "",
    ]
    return "\n".join(lines)


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
    return f"{f'**{value:,.1f}**' if best else f'{value:,.1f}'} [{low:,.1f}, {high:,.1f}]"


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, and write down all that is there after each process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=list(CONTESTS), default=list(CONTESTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--report", action="store_true", help="sum up and train nothing")
    args = parser.parse_args(argv)
    runs = json.loads(REPORT.read_text(encoding="utf-8")) if REPORT.exists() else []
    there = {(run["env"], run["contestant"], run["seed"]) for run in runs}
    wanted = [(env, label, seed) for env in args.tasks for seed in args.seeds for label in contestants(env)]
    failures: list[str] = []
    for key in () if args.report else wanted:
        if key in there:
            continue
        try:
            runs.append(timed(*key))
        except RuntimeError as failed:
            failures.append(str(failed))
            print(failed, file=sys.stderr, flush=True)
            continue
        write_json(REPORT, runs)
        write_text(REPORT.with_suffix(".md"), report(runs))
        print(f"{key[0]}, {key[1]}, seed {key[2]}: {runs[-1]['scores']}", flush=True)
    if runs:
        write_text(REPORT.with_suffix(".md"), report(runs))
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
