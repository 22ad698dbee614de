"""Who takes part in the measurement of throughput: the peers, our agents, and the environments alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import ale_py
import gymnasium
import torch
from stable_baselines3 import A2C as PeerA2C
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack

from benchmarks.plain_a2c import PlainA2C
from relax_rl import make_envs, settings_for
from relax_rl.agents import AGENTS
from relax_rl.compute.clocks import Stopwatch
from relax_rl.settings.config import AgentConfig
from relax_rl.settings.fields import with_settings

__all__ = ["ENVIRONMENT", "NARROW", "PEER", "PLAIN", "Contestant", "Entrant", "Match", "candidates", "fastest"]

PEER, PLAIN, ENVIRONMENT = "SB3 A2C", "plain PyTorch A2C", "environment alone"
NARROW = "relax, bfloat16"
"""Our RELAX once more, on images, with `--precision bfloat16`; everyone else computes in float32."""
STICKY_ACTIONS = 0.25
LEARNING_RATE = 1e-12
"""Of everyone: all go on acting by a policy that is close to uniform. An environment's step takes longer or shorter by what
is done in it (LunarLander's several times as long while engines fire), and that is not to be a matter of who has learned what."""
THREADS = (1, 2)
TRIALS = 3
"""Turns that each option of a contestant gets before the fastest is chosen."""
MOST_PROCESSES = 16
"""Environments up to which the peer is also tried with a process for each: with more, two cores only get slower."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """Contestants that train on the same terms."""

    env: str
    num_envs: int
    num_steps: int
    estimators: tuple[str, ...]
    turn: int
    """Environment steps that each contestant trains for in its turn."""
    asked: dict[str, float]
    """Throughput asked for, by estimator, as a multiple of the peer's."""
    device: str = "cpu"
    """Of everyone's networks."""

    @property
    def name(self) -> str:
        """Such as `CartPole-v1 8x5`."""
        return f"{self.env} {self.num_envs}x{self.num_steps}"

    @property
    def atari(self) -> bool:
        """Whether observations are stacked frames."""
        return self.env.startswith("ALE/")

    @property
    def network(self) -> str:
        """The same for everyone."""
        if self.atari:
            return "Nature CNN with 512 features, shared by policy and value function"
        return "policy and value function of their own, two layers of 64, tanh"


@dataclass(frozen=True)
class Contestant:
    """A learner that is ready to train."""

    name: str
    options: str
    train: Callable[[int], object]
    """Trains for that many more environment steps."""
    close: Callable[[], None]
    settings: dict[str, Any] = field(default_factory=dict)
    sections: Callable[[int], dict[str, float]] | None = None
    """Trains for that many more steps and gives the share of time by section, where that is known."""
    threads: tuple[int, ...] = THREADS
    """Tensor threads that it is tried with."""

    def speed(self, steps: int, threads: int) -> float:
        """Environment steps per second over one turn of training."""
        torch.set_num_threads(threads)
        start = time.perf_counter()
        self.train(steps)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return steps / (time.perf_counter() - start)


def candidates(match: Match) -> list[list[Contestant]]:
    """Everyone who takes part, each as the options from which its fastest is taken; the peer comes first."""
    peers: list[type[DummyVecEnv | SubprocVecEnv]]
    peers = [DummyVecEnv, SubprocVecEnv] if match.num_envs <= MOST_PROCESSES else [DummyVecEnv]
    everyone = [[make_peer(match, vec_env) for vec_env in peers]]
    if not match.atari:
        everyone.append([make_plain(match)])
    # On a CPU nothing is gained by compiling the update of images, and it is not offered.
    compile = ("off",) if match.atari and match.device == "cpu" else ("off", "on")
    everyone += [[make_agent(match, estimator, each) for each in compile] for estimator in match.estimators]
    if match.atari:
        everyone.append([make_agent(match, "relax", each, name=NARROW, precision="bfloat16") for each in compile])
    return [*everyone, [make_idle(match)]]


def make_game(env: str) -> gymnasium.Env[Any, Any]:
    """An Atari game for the peer's AtariWrapper: that skips the frames itself; stickiness is the game's own."""
    gymnasium.register_envs(ale_py)
    return gymnasium.make(env, frameskip=1, repeat_action_probability=STICKY_ACTIONS)


def make_peer_envs(match: Match, vec_env: type[DummyVecEnv | SubprocVecEnv]) -> VecEnv:
    """The peer's environments through its own helpers, playing the same game as ours."""
    options: dict[str, Any] = {"n_envs": match.num_envs, "seed": 0, "vec_env_cls": vec_env}
    if vec_env is SubprocVecEnv:
        options["vec_env_kwargs"] = {"start_method": "fork"}  # the others import torch once per environment
    if not match.atari:
        return make_vec_env(match.env, **options)
    return VecFrameStack(make_atari_env(partial(make_game, match.env), **options), n_stack=4)


def make_peer(match: Match, vec_env: type[DummyVecEnv | SubprocVecEnv]) -> Contestant:
    """Stable-Baselines3's A2C with a logger that writes nowhere."""
    envs = make_peer_envs(match, vec_env)
    options: dict[str, Any] = {"n_steps": match.num_steps, "learning_rate": LEARNING_RATE, "seed": 0}
    options["device"] = match.device
    model = PeerA2C("CnnPolicy" if match.atari else "MlpPolicy", envs, **options)
    model.set_logger(Logger(folder=None, output_formats=[]))

    def train(steps: int) -> None:
        model.learn(steps, reset_num_timesteps=False, log_interval=1_000_000)

    settings = {**options, "parameters": count(model.policy), "other": "the library's defaults"}
    return Contestant(PEER, vec_env.__name__, train, envs.close, settings)


def make_plain(match: Match) -> Contestant:
    """A2C as a plain loop."""
    learner = PlainA2C(match.env, num_envs=match.num_envs, num_steps=match.num_steps, lr=LEARNING_RATE)
    parameters = sum(parameter.numel() for parameter in learner.parameters)
    return Contestant(PLAIN, "SyncVectorEnv", learner.train, learner.close, {"parameters": parameters})


def make_agent(match: Match, estimator: str, compile: str, *, name: str = "", **others: Any) -> Contestant:
    """One of our agents with its preset, on the match's terms: one step of the optimisers on the whole rollout.

    Args:
        name: in the tables, if it is not the estimator's.
        others: further settings.
    """
    envs = make_envs(match.env, num_envs=match.num_envs, seed=0, sticky_actions=STICKY_ACTIONS)
    terms: dict[str, Any] = {"num_steps": match.num_steps, "lr_schedule": "constant", "epochs": 1, "minibatch_size": 0}
    terms["value_replay"] = 0  # which the peer has not
    terms |= dict.fromkeys(("policy_lr", "value_lr", "surrogate_lr"), LEARNING_RATE) | {"device": match.device}
    spaces = envs.single_observation_space, envs.single_action_space
    config = with_settings(AgentConfig(), {**settings_for(match.env, estimator), **terms, "compile": compile, **others})
    agent = AGENTS[estimator](*spaces, seed=0, config=config)

    def train(steps: int) -> None:
        agent.learn(envs, steps, threads=None)

    def sections(steps: int) -> dict[str, float]:
        agent.watch = watch = Stopwatch(torch.cuda.synchronize if agent.device.type == "cuda" else None)
        agent.learn(envs, steps, threads=None)
        watch(None)
        whole = sum(watch.seconds.values())
        return {name: round(seconds / whole, 4) for name, seconds in watch.seconds.items()}

    settings = {**asdict(agent.config), "parameters": count(agent.policy, agent.value)}
    options = f"{envs.vectorization} environments{', compiled' if compile == 'on' else ''}"
    # Compiled code is made for a number of threads, and a GPU needs none.
    threads = THREADS if compile == "off" and match.device == "cpu" else (1,)
    return Contestant(name or estimator, options, train, envs.close, settings, sections, threads)


def make_idle(match: Match) -> Contestant:
    """Our environments, with actions that are chosen beforehand: what no learner on them can exceed."""
    envs = make_envs(match.env, num_envs=match.num_envs, seed=0, sticky_actions=STICKY_ACTIONS)
    envs.vector_env.action_space.seed(0)
    actions = [envs.vector_env.action_space.sample() for _ in range(64)]

    def run(steps: int) -> None:
        for t in range(-(-steps // match.num_envs)):
            envs.step(actions[t % len(actions)])

    return Contestant(ENVIRONMENT, f"{envs.vectorization} environments", run, envs.close, threads=(1,))


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
    """The fastest contestant and thread count by medians of turns; every pair is warmed up first, the others are closed."""
    pairs = [(contestant, threads) for contestant in contestants for threads in contestant.threads]
    speeds: list[list[float]] = [[] for _ in pairs]
    for contestant, threads in pairs:
        contestant.speed(steps // 4, threads)
    for _ in range(TRIALS):
        for (contestant, threads), found in zip(pairs, speeds, strict=True):
            found.append(contestant.speed(steps, threads))
    medians = [statistics.median(found) for found in speeds]
    best, best_threads = pairs[medians.index(max(medians))]
    for contestant in contestants:
        if contestant is not best:
            contestant.close()
    tried = {describe(*pair): round(speed, 1) for pair, speed in zip(pairs, medians, strict=True)}
    return Entrant(best, best_threads, tried)
