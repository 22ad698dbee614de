"""Measure training throughput beside Stable-Baselines3's A2C, in one process, taking turns.

    python -m benchmarks.throughput                     # about five minutes; the machine must be otherwise idle

Same environment, number of environments, steps per update and network for everyone; no logging and no checkpoints.
Each contestant first tries its options (one or two tensor threads; the peer also DummyVecEnv and SubprocVecEnv) and
keeps its fastest. Then all train in turns, A B C A B C ..., and every round gives one ratio to the peer. Writes
`results/throughput.json` and `results/throughput.md`.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import ale_py
import gymnasium
import stable_baselines3
import torch
from stable_baselines3 import A2C as PeerA2C
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack

from benchmarks.tasks import RESULTS, write_text
from relax_rl import make_envs, settings_for
from relax_rl.agents import AGENTS
from relax_rl.runs import write_json

__all__ = ["MATCHES", "Match", "main", "measure"]

STICKY_ACTIONS = 0.25
THREADS = (1, 2)
VEC_ENVS: tuple[type[DummyVecEnv | SubprocVecEnv], ...] = (DummyVecEnv, SubprocVecEnv)


@dataclass(frozen=True, kw_only=True)
class Match:
    """Contestants that train on the same terms."""

    env: str
    num_envs: int
    num_steps: int
    network: str
    estimators: tuple[str, ...]
    turn: int
    """Environment steps that each contestant trains for in its turn."""
    asked: dict[str, float]
    """Throughput asked for, by estimator, as a multiple of the peer's."""


MATCHES = (
    Match(
        env="CartPole-v1",
        num_envs=8,
        num_steps=5,
        network="policy and value function of their own, two layers of 64, tanh",
        estimators=("a2c", "relax"),
        turn=40_000,
        asked={"a2c": 2.0, "relax": 1.2},
    ),
    Match(
        env="ALE/Pong-v5",
        num_envs=16,
        num_steps=5,
        network="Nature CNN with 512 features, shared by policy and value function",
        estimators=("a2c",),
        turn=4_000,
        asked={"a2c": 1.5},
    ),
)


@dataclass(frozen=True)
class Contestant:
    """A learner that is ready to train."""

    name: str
    options: str
    train: Callable[[int], object]
    """Trains for that many more environment steps."""
    close: Callable[[], None]
    settings: dict[str, Any]

    def speed(self, steps: int, threads: int) -> float:
        """Environment steps per second over one turn of training."""
        torch.set_num_threads(threads)
        start = time.perf_counter()
        self.train(steps)
        return steps / (time.perf_counter() - start)


def make_game(env: str) -> gymnasium.Env[Any, Any]:
    """An Atari game for the peer's AtariWrapper: that skips the frames itself; stickiness is the game's own."""
    gymnasium.register_envs(ale_py)
    return gymnasium.make(env, frameskip=1, repeat_action_probability=STICKY_ACTIONS)


def make_peer_envs(match: Match, vec_env: type[DummyVecEnv | SubprocVecEnv]) -> VecEnv:
    """The peer's environments through its own helpers, playing the same game as ours."""
    options: dict[str, Any] = {"n_envs": match.num_envs, "seed": 0, "vec_env_cls": vec_env}
    if vec_env is SubprocVecEnv:
        options["vec_env_kwargs"] = {"start_method": "fork"}  # the others import torch once per environment
    if not match.env.startswith("ALE/"):
        return make_vec_env(match.env, **options)
    return VecFrameStack(make_atari_env(partial(make_game, match.env), **options), n_stack=4)


def make_peer(match: Match, vec_env: type[DummyVecEnv | SubprocVecEnv]) -> Contestant:
    """Stable-Baselines3's A2C with a logger that writes nowhere."""
    envs = make_peer_envs(match, vec_env)
    policy = "CnnPolicy" if match.env.startswith("ALE/") else "MlpPolicy"
    model = PeerA2C(policy, envs, n_steps=match.num_steps, seed=0, device="cpu")
    model.set_logger(Logger(folder=None, output_formats=[]))

    def train(steps: int) -> None:
        model.learn(steps, reset_num_timesteps=False, log_interval=1_000_000)

    settings = {"n_steps": match.num_steps, "parameters": count(model.policy), "other": "the library's defaults"}
    return Contestant("SB3 A2C", vec_env.__name__, train, envs.close, settings)


def make_agent(match: Match, estimator: str) -> Contestant:
    """One of our agents with its preset, on the match's terms."""
    envs = make_envs(match.env, num_envs=match.num_envs, seed=0, sticky_actions=STICKY_ACTIONS)
    settings = {**settings_for(match.env, estimator), "num_steps": match.num_steps, "lr_schedule": "constant"}
    spaces = envs.single_observation_space, envs.single_action_space
    agent = AGENTS[estimator](*spaces, seed=0, **settings)

    def train(steps: int) -> None:
        agent.learn(envs, steps)

    parameters = count(agent.policy, agent.value)
    effective = {**asdict(agent.config), "parameters": parameters}
    return Contestant(estimator, f"{envs.vectorization} environments", train, envs.close, effective)


def count(*modules: torch.nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


@dataclass(frozen=True)
class Entrant:
    """A contestant at its fastest, and the speed of everything that was tried."""

    contestant: Contestant
    threads: int
    tried: dict[str, float]

    @property
    def options(self) -> str:
        """What it runs with."""
        return describe(self.contestant, self.threads)

    def speed(self, steps: int) -> float:
        """Environment steps per second over one turn of training."""
        return self.contestant.speed(steps, self.threads)


def describe(contestant: Contestant, threads: int) -> str:
    """Options of a contestant in words."""
    return f"{contestant.options}, {threads} thread{'' if threads == 1 else 's'}"


def fastest(contestants: Sequence[Contestant], steps: int) -> Entrant:
    """The fastest contestant and thread count; every pair of them is warmed up and timed, the others are closed."""
    speeds: dict[tuple[int, int], float] = {}
    for index, contestant in enumerate(contestants):
        for threads in THREADS:
            contestant.speed(steps // 4, threads)
            speeds[index, threads] = contestant.speed(steps // 2, threads)
    best, best_threads = max(speeds, key=lambda pair: speeds[pair])
    for index, contestant in enumerate(contestants):
        if index != best:
            contestant.close()
    tried = {describe(contestants[index], threads): round(speed, 1) for (index, threads), speed in speeds.items()}
    return Entrant(contestants[best], best_threads, tried)


def measure(match: Match, rounds: int) -> dict[str, Any]:
    """Train in turns and summarise the speeds and their ratios to the peer."""
    entrants = [fastest([make_peer(match, vec_env) for vec_env in VEC_ENVS], match.turn)]
    entrants += [fastest([make_agent(match, estimator)], match.turn) for estimator in match.estimators]
    names = [entrant.contestant.name for entrant in entrants]
    speeds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, entrant in zip(names, entrants, strict=True):
            speeds[name].append(entrant.speed(match.turn))
    for entrant in entrants:
        entrant.contestant.close()
    peer = speeds[names[0]]
    ratios = {name: [own / other for own, other in zip(speeds[name], peer, strict=True)] for name in names}
    return {
        "match": asdict(match),
        "rounds": rounds,
        "contestants": [
            {
                "name": name,
                "options": entrant.options,
                "options_tried": entrant.tried,
                "settings": entrant.contestant.settings,
                "steps_per_second": spread(speeds[name], 1),
                "ratio": spread(ratios[name], 3),
            }
            for name, entrant in zip(names, entrants, strict=True)
        ],
    }


def spread(values: list[float], digits: int) -> dict[str, Any]:
    """Every value, and their median, lowest and highest."""
    summary = {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
    rounded = {key: round(value, digits) for key, value in summary.items()}
    return {**rounded, "rounds": [round(value, digits) for value in values]}


def table(result: dict[str, Any]) -> str:
    """The Markdown section of one match."""
    match = result["match"]
    terms = f"{match['num_envs']} environments, {match['num_steps']} steps per update; {match['network']}"
    lines = [
        f"## {match['env']}",
        "",
        f"{terms}. {result['rounds']} rounds of {match['turn']:,} steps each.",
        "",
        "| contestant | options | parameters | steps per second: median [lowest, highest] "
        + "| times SB3 A2C: median [lowest, highest] | asked |",
        "|---|---|---|---|---|---|",
    ]
    for entry in result["contestants"]:
        speed, ratio = entry["steps_per_second"], entry["ratio"]
        asked = match["asked"].get(entry["name"])
        cells = (
            entry["name"],
            entry["options"],
            f"{entry['settings']['parameters']:,}",
            f"{speed['median']:,.0f} [{speed['lowest']:,.0f}, {speed['highest']:,.0f}]",
            f"{ratio['median']:.2f} [{ratio['lowest']:.2f}, {ratio['highest']:.2f}]",
            "" if asked is None else f"at least {asked:g}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gymnasium": gymnasium.__version__,
        "stable_baselines3": stable_baselines3.__version__,
    }


CAPTION = """# Training throughput

Environment steps per second of whole training (acting, environments, updates), measured in turns in one process; the
ratio of a round compares turns that directly follow one another. Both sides count finished episodes (the peer through
its Monitor) and write nothing. Each side runs with the fastest of its options, all of which are in `throughput.json`
with the settings. On Atari both play the same game: 4 frames per step, the last two pooled, grey 84 x 84, 4 frames
stacked, sticky actions of the game itself; the peer through its own AtariWrapper.
"""


def main() -> None:
    """Measure every match and write the results."""
    parser = argparse.ArgumentParser(description="Training throughput beside Stable-Baselines3's A2C.")
    parser.add_argument("--rounds", type=int, default=7, help="turns of every contestant")
    parser.add_argument("--envs", nargs="+", choices=[match.env for match in MATCHES], help="only these environments")
    parser.add_argument("--dry-run", action="store_true", help="print the table and write no files")
    arguments = parser.parse_args()
    about = machine()
    results = [measure(match, arguments.rounds) for match in MATCHES if match.env in (arguments.envs or [match.env])]
    load = f"{about['cores']} cores, torch {about['torch']}, load average before the run {about['load_before']}.\n"
    text = "\n".join([CAPTION, load, *(table(result) for result in results)])
    print(text)
    if not arguments.dry_run:
        write_json(RESULTS / "throughput.json", {"machine": about, "matches": results})
        write_text(RESULTS / "throughput.md", text)


if __name__ == "__main__":
    main()
