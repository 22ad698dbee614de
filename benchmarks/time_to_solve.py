"""Wall time from the start of a process to CartPole-v1 solved, beside Stable-Baselines3's PPO.

    python -m benchmarks.time_to_solve                  # ten processes, some minutes; the machine must be otherwise idle
    python -m benchmarks.time_to_solve --seeds 0 1      # only these; what is there already is kept

Whole processes are started from the command line and timed from outside, imports and all, ours and theirs in turns with
the same seed. Ours is what `make train` starts, with everything that it writes; theirs what `compare` starts for a peer:
rl-baselines3-zoo's settings on one thread, its fastest, with a curve and checkpoints. Both stop once the mean return of the last
100 training episodes reaches 475. Writes `results/time_to_solve.json`, `.md` and `.png`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.tasks import RESULTS, TASKS, write_json, write_text
from relax_rl.compute.serialization import write_bytes_atomic
from relax_rl.runs.plotting import png

__all__ = ["main"]

ENV = "CartPole-v1"
THRESHOLD = TASKS[ENV].threshold
OURS, PEER = "relax_rl", "SB3 PPO"
ASKED = 0.5
"""Share of the peer's time that ours may take."""
REPORT = RESULTS / "time_to_solve.json"


def command(contestant: str, seed: int, folder: Path) -> tuple[list[str], Path]:
    """What is started, and where its curve will lie."""
    run = folder / "run"
    options = ["--env", ENV, "--stop-at-return", f"{THRESHOLD:g}", "--seed", str(seed), "--run-dir", str(run)]
    ours, peer = ["train_agent.py", "train"], ["-m", "relax_rl.comparison.peer_training", "--algo", "sb3-ppo"]
    return [sys.executable, *(peer if contestant == PEER else ours), *options], run / "progress.csv"


def timed(contestant: str, seed: int) -> dict[str, Any]:
    """Start one process and wait for its end."""
    with tempfile.TemporaryDirectory() as folder:
        words, curve = command(contestant, seed, Path(folder))
        start = time.perf_counter()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        with curve.open(encoding="utf-8") as rows:
            last = list(csv.DictReader(rows))[-1]
    reached = float(last["return_mean"])
    return {
        "contestant": contestant,
        "seed": seed,
        "seconds": round(seconds, 2),
        "steps": int(last["step"]),
        "return_mean": reached,
        "solved": reached >= THRESHOLD,
    }


def pairs(runs: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Ours and theirs of every seed that both have."""
    of = {(run["contestant"], run["seed"]): run for run in runs}
    seeds = sorted({run["seed"] for run in runs})
    return [(of[OURS, seed], of[PEER, seed]) for seed in seeds if (OURS, seed) in of and (PEER, seed) in of]


def report(runs: Sequence[dict[str, Any]]) -> str:
    """The table."""
    found = pairs(runs)
    lines = [
        f"# Wall time to {ENV} solved",
        "",
        f"From the start of the process to its end, once the mean return of 100 training episodes reaches {THRESHOLD:g}; "
        "imports and all, ours and theirs in turns. A peer that has used up its published budget ends unsolved: its time "
        f"is then too short. {os.cpu_count()} cores.",
        "",
        f"| seed | {OURS}, s | steps | {PEER}, s | steps | ratio |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for ours, theirs in found:
        cells = [str(ours["seed"])]
        for run in (ours, theirs):
            cells += [f"{run['seconds']:.1f}{'' if run['solved'] else ' (unsolved)'}", f"{run['steps']:,}"]
        lines.append(f"| {' | '.join(cells)} | {ours['seconds'] / theirs['seconds']:.2f} |")
    if found:
        medians = [statistics.median(pair[side]["seconds"] for pair in found) for side in (0, 1)]
        ratio = statistics.median(ours["seconds"] / theirs["seconds"] for ours, theirs in found)
        lines.append(f"| median | {medians[0]:.1f} | | {medians[1]:.1f} | | {ratio:.2f} (asked: at most {ASKED:g}) |")
    return "\n".join([*lines, "", "![Wall time to CartPole-v1 solved](time_to_solve.png)", ""])


def draw(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Both times of every seed; hollow where the run ended unsolved."""
    from matplotlib.figure import Figure

    found = pairs(runs)
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for side, (name, colour) in enumerate(((OURS, "C0"), (PEER, "C1"))):
        for row, pair in enumerate(found):
            run = pair[side]
            face = colour if run["solved"] else "none"
            label = name if row == 0 else ""
            axes.bar(row + 0.4 * side - 0.2, run["seconds"], 0.38, facecolor=face, edgecolor=colour, label=label)
    middle = statistics.median(theirs["seconds"] for _, theirs in found)
    axes.axhline(ASKED * middle, color="0.3", linestyle="--", linewidth=1, label=f"{ASKED:g} of the peer's median")
    axes.set_xticks(range(len(found)), [f"seed {ours['seed']}" for ours, _ in found])
    axes.set_ylabel("seconds from start to end of the process")
    axes.set_title(f"{ENV} to a mean return of {THRESHOLD:g} (hollow: ended unsolved)")
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    write_bytes_atomic(path, png(figure))


def main() -> None:
    """Time what is missing and write everything anew."""
    parser = argparse.ArgumentParser(description="Wall time to CartPole-v1 solved, beside Stable-Baselines3's PPO.")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(range(5)), help="seeds (default 0 to 4)")
    parser.add_argument("--anew", action="store_true", help="time these seeds again")
    arguments = parser.parse_args()
    runs = json.loads(REPORT.read_text())["runs"] if REPORT.exists() else []
    if arguments.anew:
        runs = [run for run in runs if run["seed"] not in arguments.seeds]
    for seed in arguments.seeds:
        order = (OURS, PEER) if seed % 2 == 0 else (PEER, OURS)  # neither always comes first
        for contestant in order:
            if all((run["contestant"], run["seed"]) != (contestant, seed) for run in runs):
                runs.append(timed(contestant, seed))
                print(json.dumps(runs[-1]), flush=True)
                write_json(REPORT, {"env": ENV, "threshold": THRESHOLD, "runs": runs})
    if pairs(runs):
        text = report(runs)
        print(text)
        write_text(REPORT.with_suffix(".md"), text)
        draw(REPORT.with_suffix(".png"), runs)


if __name__ == "__main__":
    main()
