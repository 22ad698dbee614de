"""Measure what each estimator costs against plain REINFORCE on the same model, and against Storchastic.

    python -m benchmarks.estimators                     # a few minutes; the machine must be otherwise idle

A gradient is one estimate, its pull-back to theta and, where there is a phi, the backward pass of the variance. All
contestants of a model take turns in one process, on one thread; every round gives one ratio to REINFORCE. Writes
`results/estimators.json`, `results/estimators.md` and `results/estimators.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import storchastic_peers
from benchmarks.estimator_models import Model, Step, belief_network, policy
from benchmarks.estimator_tables import draw, section
from benchmarks.tasks import RESULTS, write_text
from benchmarks.throughput import spread
from relax_rl.runs import write_json

__all__ = ["MODELS", "in_turns", "machine", "main", "measure", "peak_memory"]

Key = TypeVar("Key")
Peers = Callable[[], dict[str, Step]]
MODELS: dict[str, tuple[Callable[[], Model], Peers]] = {
    "belief-network": (belief_network, storchastic_peers.belief_network_peers),
    "policy-40": (lambda: policy(40), lambda: storchastic_peers.policy_peers(40)),
    "policy-2048": (lambda: policy(2048), lambda: storchastic_peers.policy_peers(2048)),
}
ASKED = {"eager": 2.5, "compiled": 1.7}
"""Of RELAX on the policy: at most this many times REINFORCE."""


def contestants(model: Model, peers: dict[str, Step], *, with_compiled: bool) -> dict[tuple[str, str], Step]:
    """(way of running, name) -> one gradient."""
    ways = {"eager": model.steps, "without phi": model.without_phi, "storchastic": peers}
    if with_compiled:
        ways["compiled"] = model.compiled
    return {(way, name): step for way, steps in ways.items() for name, step in steps.items()}


def measure(model: Model, peers: dict[str, Step], rounds: int, turn: float, *, with_compiled: bool) -> dict[str, Any]:
    """Time everyone in turns and summarise.

    Args:
        turn: seconds that a contestant runs for in a round.
    """
    steps = contestants(model, peers, with_compiled=with_compiled)
    seconds = in_turns(steps, rounds, turn)
    entries = []
    for (way, name), times in seconds.items():
        reference = seconds["eager", model.references.get(name, "reinforce")]
        entry = {
            "way": way,
            "name": name,
            "milliseconds": spread([1e3 * x for x in times], 4),
            "ratio": spread([x / y for x, y in zip(times, reference, strict=True)], 3),
            "peak_kib": round(peak_memory(steps[way, name]) / 1024, 1),
        }
        if way == "compiled":
            compiled = seconds["compiled", model.references.get(name, "reinforce")]
            entry["ratio_to_compiled"] = spread([x / y for x, y in zip(times, compiled, strict=True)], 3)
        entries.append(entry)
    return {
        "model": model.name,
        "about": model.about,
        "rounds": rounds,
        "left_out": model.left_out,
        "references": model.references,
        "contestants": entries,
    }


def in_turns(steps: Mapping[Key, Step], rounds: int, turn: float) -> dict[Key, list[float]]:
    """Seconds of one call of everyone, in each of `rounds` turns of `turn` seconds."""
    repeats = {key: max(1, round(turn / warm(step))) for key, step in steps.items()}
    seconds: dict[Key, list[float]] = {key: [] for key in steps}
    for _ in range(rounds):
        for key, step in steps.items():
            start = time.perf_counter()
            for _ in range(repeats[key]):
                step()
            seconds[key].append((time.perf_counter() - start) / repeats[key])
    return seconds


def warm(step: Step) -> float:
    """Seconds of one step, after those that compile and allocate."""
    for _ in range(3):
        step()
    start = time.perf_counter()
    for _ in range(3):
        step()
    return (time.perf_counter() - start) / 3


def peak_memory(step: Step) -> int:
    """Bytes that one step holds in tensors at most, beyond what it leaves of the tensors before: not sampled, counted."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = least = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        least = min(least, held)  # the gradients of the step before go first
        most = max(most, held - least)
    return most


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compiler": shutil.which(os.environ.get("CXX", "g++")) is not None,
        "storchastic": storchastic_peers.version(),
    }


CAPTION = """# What an estimator costs

Time of one gradient of all parameters (one estimate, its pull-back to theta, and the backward pass of the variance to
phi where there is one), divided by that of plain REINFORCE on the same model, both by this package: median [lowest,
highest] over the rounds of one run, everyone in turns, one thread. "Without phi" leaves the variance's backward pass
out. "Compiled" is `torch.compile` of the whole update as one graph, `grad(loss, argnums=(theta, phi))`, divided by
eager and by compiled REINFORCE. "Memory" is the most that one gradient holds in tensors, the gradients of the
parameters among them.
Storchastic's columns are the time of its estimator of the same kind, with the same networks, and that time divided by
ours.

"Closed form" is the same surrogate as an `MLPSurrogate`, which brings its slope, so that no graph is differentiated
twice; the others are plain functions of z.

How low it can go. Of the products with 64 x 64 matrices REINFORCE takes 3 a row (forward, weights, input). RELAX adds 6
for each of z and z~ (forward, slope, and 4 to differentiate both in the weights): 15 in all, 5 times as many. With coupled
noise, or in LAX, it is 6 once: 3 times as many. Of the hyperbolic tangents, 128 a row, it adds as many again for each:
3 and 2 times as many. At batch 2048 on the CPU of these numbers the 64 of a layer took 1.65 times as long as one product,
which puts the floor at about 4, and with coupled noise at 2.5. At batch 40 operations count more than sizes: views aside,
REINFORCE takes 34, RELAX 178 and in closed form 123 (with coupled noise 120 and 109). Of the latter all but 25 are neither
products nor tangents and take 1 to 3 microseconds each, whatever the batch; a compiled graph saves most of them.
"""


def main() -> None:
    """Measure every model and write the results."""
    parser = argparse.ArgumentParser(description="Cost of every estimator against REINFORCE.")
    parser.add_argument("--rounds", type=int, default=9, help="turns of every contestant")
    parser.add_argument("--turn", type=float, default=0.03, help="seconds of a turn")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=list(MODELS),
        default=list(MODELS),
        help="only these; the others stay as they are",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--dry-run", action="store_true", help="print the tables and write no files")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    path, about = RESULTS / "estimators.json", machine()
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() and not arguments.dry_run else {}
    for name in arguments.models:
        make, peers = MODELS[name]
        others = peers() if about["storchastic"] else {}
        with_compiled = about["compiler"] and not arguments.no_compile
        found = measure(make(), others, arguments.rounds, arguments.turn, with_compiled=with_compiled)
        results[name] = {"machine": about, **found}
    ordered = [results[name] for name in MODELS if name in results]
    text = "\n".join([CAPTION, *(section(result, ASKED) for result in ordered)])
    print(text)
    if not arguments.dry_run:
        write_json(path, results)
        write_text(RESULTS / "estimators.md", text + "\n![Cost of every estimator](estimators.png)\n")
        draw(ordered, RESULTS / "estimators.png")


if __name__ == "__main__":
    main()
