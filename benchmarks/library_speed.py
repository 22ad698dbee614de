"""Training by the library, `agent.learn` in a script, beside the command line with the same settings and seeds.

    python -m benchmarks.library_speed               # five minutes; the machine must be otherwise idle
    python -m benchmarks.library_speed --busy        # the same with a core that something else uses all the time

The script is that of the README. Both are processes of their own that take turns, with the same preset, number of
environments, seed (one a round), setting of `compile`, and machine code that a run before has left. Speeds are those of
training once it is under way, from step 2,000 on; the command line logs, saves and draws meanwhile. Writes `results/library_speed.json` and `.md`, with what is there of the other kind of machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.tasks import RESULTS, at_least_one, commit, write_json, write_text
from relax_rl.compute.compilation import has_compiler
from relax_rl.runs.loggers import read_csv
from relax_rl.settings.presets import preset_config

__all__ = ["main", "measure"]

ENVS = ("CartPole-v1", "LunarLander-v3")
STEPS = 100_000
UNDER_WAY = 2_000
"""The step from which on speeds are measured, that of the first row of `progress.csv`."""
ROOT = Path(__file__).parent.parent
LIBRARY, COMMAND = "agent.learn", "command line"
LEAST = 0.9
"""How fast the library is asked to be, times the command line."""

SCRIPT = """
import json, sys, time
from relax_rl import RELAX, make_envs, settings_for

env, steps, seed, num_envs, compile = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
envs = make_envs(env, num_envs=num_envs, seed=seed)
settings = {**settings_for(env), "compile": compile}
agent = RELAX(envs.single_observation_space, envs.single_action_space, seed=seed, **settings)
marks = {"step": [], "seconds": []}


def mark(agent, info):
    marks["step"].append(info.steps)
    marks["seconds"].append(time.perf_counter())


agent.learn(envs, steps, mark)
print(json.dumps({**marks, "compiled_from": agent.compiled_from}))
"""


def timed(who: str, env: str, seed: int, *, steps: int, compile: str, cache: Path) -> dict[str, Any]:
    """One process: `steps` and `seconds` once it is under way, `process` seconds in all, since when code was compiled."""
    num_envs = preset_config(env, "relax").env.num_envs
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        if who == LIBRARY:
            words = ["-c", SCRIPT, env, str(steps), str(seed), str(num_envs), compile]
        else:
            words = ["train_agent.py", "train", "--env", env, "--estimator", "relax", "--total-steps", str(steps)]
            words += ["--seed", str(seed), "--num-envs", str(num_envs), "--compile", compile, "--run-dir", str(run)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RELAX_RL_CACHE": str(cache)}
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
        )
        process = time.perf_counter() - start
        if who == LIBRARY:
            marks = json.loads(done.stdout.splitlines()[-1])
            compiled_from = marks["compiled_from"]
        else:
            marks, record = read_csv(run / "progress.csv"), json.loads((run / "config.json").read_text())
            compiled_from = record["compiled_from"]
    begin = next(place for place, step in enumerate(marks["step"]) if step >= UNDER_WAY)
    told = {name: marks[name][-1] - marks[name][begin] for name in ("step", "seconds")}
    return {"steps": told["step"], "seconds": told["seconds"], "process": process, "compiled_from": compiled_from}


def measure(env: str, *, rounds: int, steps: int, compile: str) -> dict[str, Any]:
    """Everyone's processes in turns, whose turn it is first changing from round to round."""
    found: dict[str, list[dict[str, Any]]] = {LIBRARY: [], COMMAND: []}
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"steps": steps, "compile": compile, "cache": Path(folder)}
        if compile != "off" and has_compiler():
            timed(
                COMMAND, env, 0, **{**settings, "compile": "on", "steps": min(steps, 2_000)}
            )  # leaves its machine code
        for seed in range(rounds):
            for who in (LIBRARY, COMMAND) if seed % 2 == 0 else (COMMAND, LIBRARY):
                found[who].append(timed(who, env, seed, **settings))
            print(env, {who: f"{speeds(each)[-1]:,.0f} steps/s" for who, each in found.items()}, flush=True)
    pairs = zip(speeds(found[LIBRARY]), speeds(found[COMMAND]), strict=True)
    return {"runs": found, "ratio": statistics.median(ours / theirs for ours, theirs in pairs)}


def speeds(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Environment steps a second of each."""
    return [run["steps"] / run["seconds"] for run in runs]


@contextmanager
def core_in_use(busy: bool) -> Iterator[None]:
    """Within the block something else uses a core all the time, if it is to be busy."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        yield
    finally:
        if other is not None:
            other.kill()
            other.wait()


def report(kinds: Mapping[str, Mapping[str, Any]]) -> str:
    """The Markdown of both kinds of machine."""
    lines = ["# The library beside the command line\n", f"{(__doc__ or '').split(chr(10) * 2)[2]}\n"]
    for kind, found in kinds.items():
        core = "one core in use by something else" if kind == "busy" else "an idle machine"
        lines += [
            f"## On {core}\n",
            f"{found['steps']:,} steps, {found['rounds']} rounds, compile {found['compile']}; {found['cores']} cores, "
            f"commit {found['commit']}. Asked: {LEAST:g} of the command line's speed.\n",
            "| task | who | steps/s: median [lowest, highest] | seconds of the process | times the command line |",
            "|---|---|---|---:|---:|",
        ]
        for env, result in found["tasks"].items():
            for who, runs in result["runs"].items():
                each = speeds(runs)
                speed = f"{statistics.median(each):,.0f} [{min(each):,.0f}, {max(each):,.0f}]"
                process = statistics.median(run["process"] for run in runs)
                ratio = f"{result['ratio']:.2f}" if who == LIBRARY else ""
                lines.append(f"| {env} | {who} | {speed} | {process:.1f} | {ratio} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure, put it beside what was measured before on the other kind of machine, and write everything."""
    parser = argparse.ArgumentParser(description="agent.learn in a script beside the command line.")
    parser.add_argument("--rounds", type=at_least_one, default=5, help="processes of each")
    parser.add_argument("--steps", type=at_least_one, default=STEPS, help="of each process")
    parser.add_argument("--tasks", nargs="+", choices=ENVS, default=list(ENVS), help="only these")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="of both")
    parser.add_argument("--busy", action="store_true", help="keep a core busy meanwhile")
    parser.add_argument("--dry-run", action="store_true", help="print the table and write no files")
    arguments = parser.parse_args()
    if arguments.steps < 2 * UNDER_WAY:
        parser.error(
            f"{arguments.steps} steps, expected at least {2 * UNDER_WAY}: speeds are those from step {UNDER_WAY} on"
        )
    options = {"rounds": arguments.rounds, "steps": arguments.steps, "compile": arguments.compile}
    with core_in_use(arguments.busy):
        tasks = {env: measure(env, **options) for env in arguments.tasks}
    path = RESULTS / "library_speed.json"
    kinds: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    kinds["busy" if arguments.busy else "idle"] = {
        **options,
        "commit": commit(),
        "cores": os.cpu_count(),
        "tasks": tasks,
    }
    text = report(kinds)
    print(text)
    if not arguments.dry_run:
        write_json(path, kinds)
        write_text(path.with_suffix(".md"), text)


if __name__ == "__main__":
    main()
