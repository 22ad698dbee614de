"""Wall time of 100,000 steps of training as whole processes, beside Stable-Baselines3's A2C.

    python -m benchmarks.whole_runs                      # a quarter of an hour; the machine must be otherwise idle
    python -m benchmarks.whole_runs --other CHECKOUT     # another commit's `train_agent.py` takes its turns too

Ours is the plain command, with its preset and everything that it writes: once with an empty cache of machine code ("cold"),
once with the code there that a longer run of the kind, or one with `--compile on`, has left ("warm"). The peer is a script of a few
lines, with eight environments, one thread (its fastest) and the library's defaults, that writes nothing. All are started in turns from the command
line, imports and all. Writes `results/whole_runs.json`, `.md` and `.png`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tasks import RESULTS, at_least_one, checkout, commit, commit_of, write_json, write_text
from relax_rl.compute.serialization import write_bytes_atomic
from relax_rl.runs.plotting import png

__all__ = ["main"]

ENVS = ("CartPole-v1", "LunarLander-v3")
STEPS = 100_000
ROOT = Path(__file__).parent.parent
PEER, OTHER = "SB3 A2C", "RELAX, the other commit"
COLD, WARM, OWN = "RELAX, cold", "RELAX, warm", "A2C, warm"

SCRIPT = """
import sys, torch
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_vec_env
torch.set_num_threads(1)
A2C("MlpPolicy", make_vec_env(sys.argv[1], n_envs=8, seed=int(sys.argv[3])), seed=int(sys.argv[3]), device="cpu").learn(int(sys.argv[2]))
"""


def timed(
    contestant: str, env: str, seed: int, *, other: Path | None, cache: Path, options: Sequence[str] = ()
) -> float:
    """Seconds from the start of one process to its end."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder, "cache") if contestant == COLD else cache
        tree = other if contestant == OTHER and other is not None else ROOT
        estimator = "a2c" if contestant == OWN else "relax"
        words = ["train_agent.py", "train", "--env", env, "--estimator", estimator, "--total-steps", str(STEPS)]
        words += ["--seed", str(seed), "--run-dir", str(Path(folder, "run")), *options]
        if contestant == PEER:
            words = ["-c", SCRIPT, env, str(STEPS), str(seed)]
        environment = {**os.environ, "PYTHONPATH": str(tree), "RELAX_RL_CACHE": str(kept)}
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], cwd=tree, env=environment, check=True, capture_output=True)
        return time.perf_counter() - start


def measure(env: str, rounds: int, other: Path | None) -> dict[str, list[float]]:
    """Seconds of everyone's processes, one a round, which is also their seed."""
    contestants = [COLD, WARM, OWN, PEER] + ([OTHER] if other is not None else [])
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "kept")
        for name in (WARM, OWN):
            timed(name, env, 0, other=other, cache=cache, options=("--compile", "on"))  # leaves its machine code
        for seed in range(rounds):
            for name in contestants:
                seconds[name].append(round(timed(name, env, seed, other=other, cache=cache), 3))
            print(env, {name: found[-1] for name, found in seconds.items()}, flush=True)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], name: str, to: str) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[to], strict=True))


def report(found: Mapping[str, Mapping[str, Sequence[float]]], about: Mapping[str, Any]) -> str:
    """The Markdown of all environments."""
    lines = ["# Whole runs\n", f"{__doc__.split(chr(10) * 2)[2]}\n"]
    lines += [f"{STEPS:,} steps; {about['cores']} cores, commit {about['commit']}.", ""]
    lines += ["![Seconds of whole processes](whole_runs.png)\n"]
    for env, seconds in found.items():
        lines += [f"## {env}\n", f"| contestant | seconds: median [lowest, highest] | times {PEER} |", "|---|---|---:|"]
        for name, each in seconds.items():
            spread = f"{statistics.median(each):.1f} [{min(each):.1f}, {max(each):.1f}]"
            lines.append(f"| {name} | {spread} | {ratio(seconds, name, PEER):.2f} |")
        if OTHER in seconds:
            both = ", ".join(f"{ratio(seconds, name, OTHER):.2f} ({name[7:]})" for name in (COLD, WARM))
            lines += ["", f"RELAX takes {both} times as long as at commit {about['other']}."]
        lines.append("")
    return "\n".join(lines)


def draw(path: Path, found: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Bars of the medians, with the ranges."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6), dpi=120, layout="constrained")
    for axes, (env, seconds) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        middle = [statistics.median(each) for each in seconds.values()]
        low = [m - min(each) for m, each in zip(middle, seconds.values(), strict=True)]
        high = [max(each) - m for m, each in zip(middle, seconds.values(), strict=True)]
        colours = ["0.6" if name in (PEER, OTHER) else "C0" for name in seconds]
        axes.barh(list(seconds), middle, xerr=[low, high], color=colours, error_kw={"elinewidth": 0.8})
        axes.invert_yaxis()
        axes.set_xlabel("seconds")
        axes.set_title(f"{env}, {STEPS:,} steps", fontsize="medium")
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
    write_bytes_atomic(path, png(figure))


def main() -> None:
    """Measure everyone in turns and write everything."""
    parser = argparse.ArgumentParser(description="Whole runs beside Stable-Baselines3's A2C.")
    parser.add_argument("--rounds", type=at_least_one, default=5, help="processes of every contestant")
    parser.add_argument("--other", type=checkout, help="a checkout of another commit")
    arguments = parser.parse_args()
    about: dict[str, Any] = {"commit": commit(), "cores": os.cpu_count()}
    if arguments.other is not None:
        about["other"] = commit_of(arguments.other)
    found = {env: measure(env, arguments.rounds, arguments.other) for env in ENVS}
    path = RESULTS / "whole_runs.json"
    write_json(path, {**about, "steps": STEPS, "seconds": found})
    text = report(found, about)
    write_text(path.with_suffix(".md"), text)
    draw(path.with_suffix(".png"), found)
    print(text)


if __name__ == "__main__":
    main()
