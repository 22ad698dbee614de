"""Time this tree's training and another checkout's in turns, each in processes of its own.

    git worktree add --detach /tmp/before COMMIT
    python -m benchmarks.beside /tmp/before              # writes results/beside.json and beside.md; half an hour
    python -m benchmarks.beside /tmp/before --tasks vae "CartPole-v1 8x5"    # only these; the others' results are kept

The tasks are those of `benchmarks.throughput` (whole training on its terms, eager and compiled) and of
`benchmarks.vae_speed` (one update with each estimator). Each side runs its own tree's scripts; a round times one side
directly after the other, the first of them changing from round to round, and for half of the rounds processes start in the
other order.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROUNDS, VAE_STEPS = 10, 15
ROOT = Path(__file__).parent.parent
SIDES = ("this", "other")
Timed = Callable[[], float]


def timed_training(match: Any) -> dict[str, Timed]:
    """Seconds of one turn of training, by agent and mode."""
    from benchmarks.throughput_contestants import make_agent

    modes = ("off",) if match.atari else ("off", "on")
    agents = {(name, mode): make_agent(match, name, mode) for name in match.estimators for mode in modes}
    threads = 2 if match.atari else 1
    for agent in agents.values():
        agent.speed(match.turn, threads)

    def case(agent: Any) -> Timed:
        return lambda: match.turn / agent.speed(match.turn, threads)

    return {f"{name}, {'compiled' if mode == 'on' else 'eager'}": case(agent) for (name, mode), agent in agents.items()}


def timed_updates(model: str) -> dict[str, Timed]:
    """Seconds of a few updates of a VAE, by estimator and mode."""
    from dataclasses import replace

    import numpy as np
    import torch

    from benchmarks import vae_speed
    from relax_rl.experiments.data import Dataset

    torch.set_num_threads(1)
    images = (np.random.default_rng(0).random((10_000, 784)) < 0.13).astype(np.uint8)
    data = Dataset("noise", images, images, images[:100], shape=(28, 28), dynamic=False)
    base, options = vae_speed.MODELS[model]

    def case(update: Callable[[], None]) -> Timed:
        def run() -> float:
            started = time.process_time()
            for _ in range(VAE_STEPS):
                update()
            return (time.process_time() - started) / VAE_STEPS

        return run

    cases: dict[str, Timed] = {}
    for name, chosen in options.items():
        for mode, word in (("off", "eager"), ("on", "compiled")):
            settings: Any = {**chosen, "compile": mode}
            trainer = vae_speed._trainer(replace(base, **settings), data)
            cases[f"{name}: {word}"] = case(vae_speed._update(trainer))
            cases[f"{name}: {word}"]()
    return cases


def serve(task: str) -> None:
    """Build every case of a task, print their names, then time the one that each line of the input names."""
    from benchmarks import vae_speed
    from benchmarks.throughput import MATCHES

    matches = {match.name: match for match in MATCHES}
    cases = timed_training(matches[task]) if task in matches else timed_updates(_vae_tasks(vae_speed.MODELS)[task])
    print(json.dumps(list(cases)), flush=True)
    for line in sys.stdin:
        print(cases[line.rstrip("\n")](), flush=True)


def _vae_tasks(models: Any) -> dict[str, str]:
    return {f"vae {model}": model for model in models}


@contextmanager
def side(tree: Path, task: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs a task by a tree's own code."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "--serve", task]
    with subprocess.Popen(
        command, cwd=tree, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def measure(task: str, other: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every case of a task, by case and side, one value a round.

    Half of the rounds are by processes that started in the other order: by a few percent it matters who came first.
    """
    trees = {"this": ROOT, "other": other}
    seconds: dict[str, dict[str, list[float]]] = {}
    for order, count in ((SIDES, rounds - rounds // 2), (SIDES[::-1], rounds // 2)):
        with side(trees[order[0]], task) as first, side(trees[order[1]], task) as second:
            _time_rounds(dict(zip(order, (first, second), strict=True)), count, seconds)
    return seconds


def _time_rounds(
    processes: dict[str, subprocess.Popen[str]], rounds: int, seconds: dict[str, dict[str, list[float]]]
) -> None:
    """Adds the rounds to `seconds`; who begins changes from round to round."""
    names = {label: json.loads(_line(process)) for label, process in processes.items()}
    order = list(processes)
    for number in range(rounds):
        for name in (name for name in names["this"] if name in names["other"]):
            for label in order if number % 2 == 0 else order[::-1]:
                process = processes[label]
                assert process.stdin is not None
                process.stdin.write(f"{name}\n")
                process.stdin.flush()
                seconds.setdefault(name, {side: [] for side in SIDES})[label].append(float(_line(process)))


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    if not (line := process.stdout.readline()):
        raise SystemExit(f"a side ended early, with {process.wait()}")
    return line


def table(task: str, other: str, found: dict[str, Any]) -> str:
    """The Markdown section of one task: medians, and the median of the rounds' ratios."""
    lines = [f"## {task}, beside {other[:7]}", "", f"This tree at `{found['this']}`, the other at `{other}`.", ""]
    lines += ["| case | ms, this tree | ms, the other | this : other |", "|---|---:|---:|---:|"]
    for name, sides in found["seconds"].items():
        this, before = (sides[label] for label in SIDES)
        ratio = statistics.median(a / b for a, b in zip(this, before, strict=True))
        lines.append(
            f"| {name} | {1e3 * statistics.median(this):.2f} | {1e3 * statistics.median(before):.2f} | {ratio:.3f} |"
        )
    return "\n".join([*lines, ""])


ABOUT = """# This tree beside earlier ones

Milliseconds of the same work by this tree and by another, in turns: a turn of training, or an update of a VAE. Medians of the
rounds; above 1 this tree is slower. `python -m benchmarks.beside CHECKOUT` writes this file.
"""


def main() -> None:
    """Measure tasks, put their results beside those of the others, and write everything."""
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
        return
    from benchmarks import vae_speed
    from benchmarks.tasks import RESULTS, at_least_one, checkout, commit, commit_of, write_json, write_text
    from benchmarks.throughput import MATCHES

    tasks = [match.name for match in MATCHES] + list(_vae_tasks(vae_speed.MODELS))
    parser = argparse.ArgumentParser(description="This tree's training beside another checkout's.")
    parser.add_argument("other", type=checkout, help="a checkout of another commit")
    parser.add_argument("--tasks", nargs="+", default=tasks, help=f"beginnings of names, of {tasks}")
    parser.add_argument("--rounds", type=at_least_one, default=ROUNDS, help="turns of every case")
    parser.add_argument("--dry-run", action="store_true", help="print the tables and write no files")
    arguments = parser.parse_args()
    for beginning in arguments.tasks:
        if not any(task.startswith(beginning) for task in tasks):
            parser.error(f"no task begins with {beginning!r}, expected one of {tasks}")
    path = RESULTS / "beside.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    this, other = commit(), commit_of(arguments.other)
    beside = found.setdefault(other, {})
    for task in tasks:
        if task.startswith(tuple(arguments.tasks)):
            beside[task] = {"this": this, "seconds": measure(task, arguments.other, arguments.rounds)}
            print(table(task, other, beside[task]), flush=True)
            if not arguments.dry_run:
                write_json(path, found)
    if not arguments.dry_run:
        tables = [table(task, it, rows[task]) for it, rows in found.items() for task in tasks if task in rows]
        write_text(path.with_suffix(".md"), "\n".join([ABOUT, *tables]))


if __name__ == "__main__":
    main()
