"""Measure how training scales: two processes against one on Pong, and what a larger problem costs.

    python -m benchmarks.scaling                        # about ten minutes; the machine must be otherwise idle
    python -m benchmarks.scaling --parts cost           # only that part; the other's results are kept

*Processes.* `train_agent.py` on Pong, once as a single process on one core, once under torchrun as two processes on two
cores, in turns; each process has the same number of environments, at two sizes of batch. The speed is that of `profile.json`: set-up and the
first updates do not count.

*Cost.* One process on one core, environments that cost next to nothing, and one thing varied at a time: environments,
steps per update, width of the networks, number of actions.

*Forecast.* What more machines would give, from the measured time of an update and the size of what is exchanged, for a
network that is assumed, not measured. Writes `results/scaling.json` and `results/scaling.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from benchmarks.tasks import RESULTS, write_text
from relax_rl.agents import AGENTS, ActorCritic
from relax_rl.compute.clocks import Stopwatch
from relax_rl.envs import VectorEnvs
from relax_rl.runs import write_json

__all__ = ["NETWORKS", "Arena", "Network", "cost", "forecast", "main", "processes"]

ESTIMATORS = ("a2c", "relax")
PONG = ((16, 5, 100), (32, 16, 40))
"""Environments of each process and steps per update on Pong, and how many updates a turn has."""
ASKED = 1.7
"""Times the speed of one process that two processes on two cores are asked for."""

STANDARD = {"num_envs": 16, "num_steps": 16, "width": 64, "actions": 4}
VARIED: Mapping[str, Sequence[int]] = {
    "num_envs": (4, 16, 64, 256),
    "num_steps": (4, 16, 64, 256),
    "width": (32, 64, 128, 256, 512),
    "actions": (2, 4, 16, 64, 256),
}


class Arena(VectorEnv[Any, Any, Any]):
    """Random observations and rewards for any number of actions, at next to no cost; an episode ends every 200 steps."""

    length = 200

    def __init__(self, num_envs: int, num_actions: int, num_inputs: int = 16) -> None:
        self.num_envs, self._num_inputs = num_envs, num_inputs
        self.metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (num_inputs,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.single_action_space = spaces.Discrete(num_actions)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rng = np.random.default_rng(0)
        self._step = 0

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._step = 0
        return self._see(), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self._step += 1
        ended = np.full(self.num_envs, self._step % self.length == 0)
        obs = self._see()
        infos = {"final_obs": self._see()} if ended[0] else {}
        return obs, np.asarray(actions % 2, np.float64), ended, np.zeros_like(ended), infos

    def _see(self) -> np.ndarray:
        return self._rng.standard_normal((self.num_envs, self._num_inputs), np.float32)


def processes(estimator: str, *, num_envs: int, num_steps: int, updates: int, rounds: int) -> dict[str, Any]:
    """Speeds of one process and of two on Pong, in turns, and their ratio in each round."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("two cores are needed, this process may use one")
    found: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for _ in range(rounds):
        for count in found:
            found[count].append(trained(estimator, count, cores[:count], (num_envs, num_steps, updates)))
    speed = {count: [speed_of(profile) for profile in profiles] for count, profiles in found.items()}
    ratios = [two / one for one, two in zip(speed[1], speed[2], strict=True)]
    return {
        "estimator": estimator,
        "num_envs": num_envs,
        "num_steps": num_steps,
        "steps_per_second": {str(count): speeds for count, speeds in speed.items()},
        "ratio": {"median": statistics.median(ratios), "rounds": ratios},
        "profiles": {str(count): profiles[-1] for count, profiles in found.items()},
    }


def trained(estimator: str, count: int, cores: Iterable[int], sizes: tuple[int, int, int]) -> dict[str, Any]:
    """Train on Pong in `count` processes on these cores; returns the profile."""
    num_envs, num_steps, updates = sizes
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "env": "ALE/Pong-v5",
            "estimator": estimator,
            "num-envs": num_envs,
            "num-steps": num_steps,
            "total-steps": updates * num_steps * num_envs * count,
            "threads": 1,
            "run-dir": f"{folder}/run",
        }
        given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, *launcher, "train_agent.py", *given, "--profile", "--quiet", "--no-tensorboard"]
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        profile: dict[str, Any] = json.loads(Path(folder, "run", "profile.json").read_text())
    return profile


def speed_of(profile: Mapping[str, Any]) -> float:
    """Environment steps per second, over all processes, without evaluations and checkpoints."""
    sections = profile["sections"]
    ms = sum(entry["ms_per_update"] for name, entry in sections.items() if name not in ("evaluation", "checkpoints"))
    return float(profile["steps"] / (1e-3 * ms * profile["updates"]))


def cost(estimator: str, *, seconds: float) -> list[dict[str, Any]]:
    """Time of an update by section, with one thing varied at a time."""
    found = []
    for name, values in VARIED.items():
        for value in values:
            sizes = {**STANDARD, name: value}
            found.append({"estimator": estimator, "varied": name, **sizes, **measured(estimator, sizes, seconds)})
    return found


def measured(estimator: str, sizes: Mapping[str, int], seconds: float) -> dict[str, Any]:
    """Milliseconds per update of an agent in the arena, in about that many seconds."""
    with VectorEnvs(Arena(sizes["num_envs"], sizes["actions"]), env_id="Arena") as envs:
        width = (sizes["width"], sizes["width"])
        agent = AGENTS[estimator](
            envs.single_observation_space,
            envs.single_action_space,
            num_steps=sizes["num_steps"],
            hidden=width,
            surrogate_hidden=width,
        )
        watch = Stopwatch()
        agent.watch = watch
        warm_up, updates = 10, 0

        def go_on(agent: ActorCritic, info: Any) -> bool:
            nonlocal updates
            updates = info.updates - warm_up
            if not updates:
                watch.reset()
            return updates < 5 or sum(watch.seconds.values()) < seconds

        agent.learn(envs, sys.maxsize, [go_on], threads=None)
        watch(None)
    ms = {name: 1e3 * spent / updates for name, spent in watch.seconds.items()}
    whole = sum(ms.values())
    rows = sizes["num_envs"] * sizes["num_steps"]
    parameters = {name: x.numel() for name, x in exchanged(agent).items()}
    return {"ms_per_update": whole, "us_per_step": 1e3 * whole / rows, "sections": ms, "exchanged": parameters}


def exchanged(agent: ActorCritic) -> dict[str, torch.Tensor]:
    """The gradients that workers average in one update."""
    parts = {
        "policy": agent.policy,
        "value": agent.components()["value"],
        "surrogate": agent.components().get("surrogate"),
    }
    return {
        name: torch.cat([p.detach().flatten() for p in part.parameters()])
        for name, part in parts.items()
        if part is not None
    }


@dataclass(frozen=True, kw_only=True)
class Network:
    """What joins the machines; assumed."""

    name: str
    latency: float
    """Seconds from one machine to the next, through the software on both sides."""
    bandwidth: float
    """Bytes per second and direction."""


NETWORKS = (
    Network(name="gloo over 1 Gbit/s", latency=100e-6, bandwidth=0.125e9),
    Network(name="gloo over 25 Gbit/s", latency=30e-6, bandwidth=3.1e9),
    Network(name="NCCL over 200 Gbit/s", latency=5e-6, bandwidth=25e9),
)
SMALL_EXCHANGES = 4
"""Exchanges of an update that hold a few numbers only: the variance's unit, statistics, episodes, and whether to stop."""


def forecast(seconds: float, sizes: Sequence[int], network: Network, workers: int) -> float:
    """Share of W times one worker's speed that W workers would reach, from the time of an update and what it exchanges.

    A ring all-reduce of M bytes takes 2 (W - 1) messages of M / W bytes one after the other, a gathering W - 1 of M:

        t = 2 (W - 1) (latency + M / (W bandwidth))

    Args:
        seconds: of one worker's update, alone.
        sizes: how many float32 numbers each of its all-reduces holds.
        network: that joins the workers.
        workers: W, one to a machine.
    """
    reduced = sum(2 * (workers - 1) * (network.latency + 4 * size / workers / network.bandwidth) for size in sizes)
    small = SMALL_EXCHANGES * (workers - 1) * network.latency
    return seconds / (seconds + reduced + small)


def process_table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown of the first part."""
    lines = [
        "## Two processes on two cores against one on one core, Pong",
        "",
        "| estimator | environments each x steps | one process, steps/s | two processes, steps/s | ratio: median [lowest, highest] "
        "| communication | asked |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in found:
        one, two = (statistics.median(entry["steps_per_second"][count]) for count in ("1", "2"))
        ratios = entry["ratio"]["rounds"]
        share = entry["profiles"]["2"]["sections"]["communication"]["share"]
        lines.append(
            f"| {entry['estimator']} | {entry['num_envs']} x {entry['num_steps']} | {one:,.0f} | {two:,.0f} | {entry['ratio']['median']:.2f} "
            f"[{min(ratios):.2f}, {max(ratios):.2f}] | {share:.1%} | at least {ASKED} |"
        )
    return [*lines, ""]


def cost_tables(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown of the second part: a table for everything that was varied."""
    words = {"num_envs": "environments", "num_steps": "steps per update", "width": "width", "actions": "actions"}
    lines = []
    for name, values in VARIED.items():
        others = ", ".join(f"{words[other]} {value}" for other, value in STANDARD.items() if other != name)
        head = " | ".join(f"{estimator}, ms per update | {estimator}, µs per step" for estimator in ESTIMATORS)
        lines += [f"## Cost against {words[name]}", "", f"{others.capitalize()}.", "", f"| {words[name]} | {head} |"]
        lines.append("|---:" * (1 + 2 * len(ESTIMATORS)) + "|")
        for value in values:
            cells = [
                f"{entry['ms_per_update']:.2f} | {entry['us_per_step']:.1f}"
                for estimator in ESTIMATORS
                for entry in found
                if (entry["estimator"], entry["varied"], entry[name]) == (estimator, name, value)
            ]
            lines.append(f"| {value} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def forecast_table(found: Sequence[Mapping[str, Any]], counts: Sequence[int] = (8, 64, 512)) -> list[str]:
    """Markdown of the third part, for Pong."""
    lines = [
        "## Forecast for Pong, one worker to a machine",
        "",
        "Worked out, not measured: share of W times one worker's speed.",
        "",
        f"| estimator | environments each x steps | network | {' | '.join(f'{count} machines' for count in counts)} |",
        "|---|---|---|" + "---:|" * len(counts),
    ]
    for entry in found:
        sizes = f"{entry['num_envs']} x {entry['num_steps']}"
        seconds = 1e-3 * entry["profiles"]["1"]["ms_per_update"]
        for network in NETWORKS:
            shares = [forecast(seconds, entry["exchanged"], network, count) for count in counts]
            lines.append(
                f"| {entry['estimator']} | {sizes} | {network.name} | {' | '.join(f'{share:.0%}' for share in shares)} |"
            )
    return [*lines, ""]


def pong_sizes(estimator: str) -> list[int]:
    """How many numbers the all-reduces of an update on Pong hold."""
    images, actions = spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(6)
    return [x.numel() for x in exchanged(AGENTS[estimator](images, actions)).values()]


def main() -> None:
    """Measure what is asked for, put it beside what is there, and write the results."""
    parser = argparse.ArgumentParser(description="How training scales with processes and with the size of the problem.")
    sizes = [f"{num_envs}x{num_steps}" for num_envs, num_steps, _ in PONG]
    parser.add_argument("--parts", nargs="*", choices=[*sizes, "cost"], default=[*sizes, "cost"], help="which parts")
    parser.add_argument("--rounds", type=int, default=3, help="turns of one process and of two")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row of the tables of costs")
    parser.add_argument("--dry-run", action="store_true", help="print the tables and write no files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "scaling.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"processes": [], "cost": []}
    pong = {(entry["num_envs"], entry["num_steps"], entry["estimator"]): entry for entry in known["processes"]}
    for num_envs, num_steps, updates in PONG:
        if f"{num_envs}x{num_steps}" in arguments.parts:
            for name in ESTIMATORS:
                options = {"num_envs": num_envs, "num_steps": num_steps, "updates": updates, "rounds": arguments.rounds}
                pong[num_envs, num_steps, name] = {**processes(name, **options), "exchanged": pong_sizes(name)}
    ordered = [pong[key] for key in sorted(pong)]
    costs = known["cost"]
    if "cost" in arguments.parts:
        costs = [entry for name in ESTIMATORS for entry in cost(name, seconds=arguments.seconds)]
    text = "\n".join(["# Scaling", "", *process_table(ordered), *cost_tables(costs), *forecast_table(ordered)])
    print(text)
    if not arguments.dry_run:
        networks = [asdict(network) for network in NETWORKS]
        write_json(path, {"processes": ordered, "cost": costs, "networks": networks})
        write_text(RESULTS / "scaling.md", text)


if __name__ == "__main__":
    main()
