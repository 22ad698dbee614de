"""Tasks that no preset names: what the package does untold, beside Stable-Baselines3's PPO with its defaults and a random policy.

    python -m benchmarks.unknown_tasks                       # every task; runs that are there are kept
    python -m benchmarks.unknown_tasks --tasks Dial --seeds 1

Each task is one `train_agent.py compare` command, in the environment that `benchmarks.third_party` makes for the task's package.
Asked: above the random policy on all, below PPO, with intervals apart, on none. No search for defaults may use these tasks.
Importing this module registers `Dial-v0`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from benchmarks.matches import RUNS, Match, keep_unfinished, plan_parser, play, write_summary
from benchmarks.tasks import RESULTS, write_json
from benchmarks.third_party import environment_of
from benchmarks.third_party_packages import PACKAGES
from relax_rl.runs.displays import describe_number

__all__ = ["DIAL", "TASKS", "Dial", "UnknownTask", "main", "random_returns"]

GROUP = "unknown_tasks"
DIAL = "Dial-v0"
RANDOM_EPISODES = 100


class Dial(gym.Env[np.ndarray, np.ndarray]):
    """Turn a dial to where a needle points: an action between 0 and 512, which costs its distance in units of 100, 20 times.

    Observations: where the needle points, from 0 to 512, and a number that never changes.
    """

    observation_space = spaces.Box(0.0, 512.0, (2,), np.float32)
    action_space = spaces.Box(0.0, 512.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._step = 0
        return self._turn(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = -abs(float(action[0]) - self._needle) / 100.0
        self._step += 1
        return self._turn(), reward, False, self._step == 20, {}

    def _turn(self) -> np.ndarray:
        self._needle = float(self.np_random.uniform(0.0, 512.0))
        return np.array([self._needle, 7.0], np.float32)


if DIAL not in gym.registry:
    gym.register(DIAL, "benchmarks.unknown_tasks:Dial")


@dataclass(frozen=True, kw_only=True)
class UnknownTask:
    """A task that neither a preset nor a search has seen.

    Attributes:
        env: what stands behind `--env`.
        package: of `benchmarks.third_party_packages`, which is installed for it; None for one of ours.
        steps: of a run, 100,000 or what ten minutes hold.
        env_kwargs: of the environment.
    """

    env: str
    package: str | None = None
    steps: int = 100_000
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)


TASKS = {
    "Dial": UnknownTask(env=f"benchmarks.unknown_tasks:{DIAL}"),
    "MiniGrid-Empty-5x5": UnknownTask(env="minigrid:MiniGrid-Empty-5x5-v0", package="minigrid"),
    "MinAtar-Breakout": UnknownTask(env="minatar:MinAtar/Breakout-v1", package="minatar"),
    "FlappyBird": UnknownTask(
        env="flappy_bird_gymnasium:FlappyBird-v0", package="flappy-bird-gymnasium", env_kwargs={"use_lidar": False}
    ),
    "PandaReachDense": UnknownTask(env="panda_gym:PandaReachDense-v3", package="panda-gym"),
    "HopperBullet": UnknownTask(env="pybullet_envs_gymnasium:HopperBulletEnv-v0", package="pybullet-envs-gymnasium"),
    "PushT": UnknownTask(env="gym_pusht:gym_pusht/PushT-v0", package="gym-pusht"),
    "highway-fast": UnknownTask(env="highway_env:highway-fast-v0", package="highway-env", steps=20_000),
}


def match_of(task: UnknownTask) -> Match:
    """What is compared: an agent that is told nothing but the task, and PPO as it is."""
    return Match(
        env=task.env,
        env_kwargs=task.env_kwargs,
        steps=task.steps,
        contestants=("auto",),
        peers=("sb3-ppo",),
        seeds=3,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for, and sum up all that is there."""
    parser = plan_parser(TASKS, __doc__)
    parser.add_argument("--random", choices=list(TASKS), help="print returns of a random policy on a task")
    args = parser.parse_args(argv)
    if args.random:
        print(json.dumps(random_returns(TASKS[args.random])))
        return
    for name in args.tasks if args.report else ():
        keep_unfinished(match_of(TASKS[name]), RUNS / GROUP / name, RESULTS / GROUP / name)
    for name in () if args.report else args.tasks:
        python = _python_of(TASKS[name], parser.error)
        play(name, match_of(TASKS[name]), GROUP, seeds=args.seeds, jobs=args.jobs, python=python)
        told = subprocess.run(
            [str(python), "-m", "benchmarks.unknown_tasks", "--random", name],
            check=True,
            capture_output=True,
            text=True,
        )
        write_json(RESULTS / GROUP / name / "random.json", json.loads(told.stdout.splitlines()[-1]))
        _write_summary()
    _write_summary()


def random_returns(task: UnknownTask) -> list[float]:
    """Of episodes in which actions are drawn uniformly from the space; bounds at infinity are those of a standard Gaussian."""
    from relax_rl import make_envs

    with make_envs(task.env, num_envs=4, seed=0, vectorization="sync", env_kwargs=dict(task.env_kwargs)) as envs:
        space = envs.single_action_space
        space.seed(0)
        found: list[float] = []
        while len(found) < RANDOM_EPISODES:
            envs.step(np.stack([np.asarray(space.sample()) for _ in range(envs.num_envs)]))
            found += [episode.return_ for episode in envs.drain_episodes()]
    return found[:RANDOM_EPISODES]


def _python_of(task: UnknownTask, refuse: Callable[[str], NoReturn]) -> str | Path:
    """Where the task's package is; `refuse` is told where it cannot be installed."""
    if task.package is None:
        return sys.executable
    python, error = environment_of(next(package for package in PACKAGES if package.name == task.package))
    if error:
        refuse(f"{task.package} cannot be installed: {error}")
    return python


def _write_summary() -> None:
    """`results/unknown_tasks.md` from what is there."""
    intro = ("Every agent is what `train_agent.py train --env ENV` gives; PPO has its library's defaults.", "")
    write_summary("Tasks that no preset names", GROUP, TASKS, intro=intro, after=_verdict)


def _verdict(name: str, found: Mapping[str, Any]) -> list[str]:
    """The random policy, and whether what is asked holds."""
    file = RESULTS / GROUP / name / "random.json"
    if not file.exists():
        return []
    blind = np.array(json.loads(file.read_text(encoding="utf-8")))
    error = 1.96 * float(blind.std(ddof=1)) / len(blind) ** 0.5
    ((_, task),) = found["environments"].items()
    if len(task["contestants"]) < 2:
        return ["One of the two has finished no episode.", ""]
    own, peer = ({key: float(x) for key, x in entry["final"].items()} for entry in task["contestants"].values())
    above, below = own["low"] > float(blind.mean()) + error, own["high"] < peer["low"]
    return [
        f"A random policy: {describe_number(float(blind.mean()))} ± {describe_number(error)}. Above it: **{'yes' if above else 'no'}**. "
        f"Below PPO, intervals apart: **{'yes' if below else 'no'}**.",
        "",
    ]


if __name__ == "__main__":
    main()
