"""EnvPool's environments, stepped by threads in C++, in the place of Gymnasium's where they are the same task."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.metadata import version
from importlib.util import find_spec as find_module
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from relax_rl.backends.registry import ATARI_FRAMES
from relax_rl.compute.installation import install_line, typed
from relax_rl.errors import SettingsError

__all__ = ["EnvPoolVectorEnv", "faster_in_envpool", "why_not_envpool"]

SAME_TO_ROUNDING = (
    "CartPole-v0",
    "CartPole-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Acrobot-v1",
    "LunarLander-v3",
    "LunarLanderContinuous-v3",
    "BipedalWalker-v3",
    "BipedalWalkerHardcore-v3",
    *(
        f"{body}-{version}"
        for body in (
            "HalfCheetah",
            "Hopper",
            "InvertedDoublePendulum",
            "InvertedPendulum",
            "Reacher",
            "Swimmer",
            "Walker2d",
        )
        for version in ("v4", "v5")
    ),
    "Pusher-v5",
)
"""Gymnasium's ids of which EnvPool's task is the same: starts, steps, rewards and ends (of Box2D: in distribution)."""

SAME_BUT_FOR_THE_ENGINE = ("Ant-v4", "Ant-v5", "Humanoid-v5", "HumanoidStandup-v5")
"""Equal to Gymnasium's with the MuJoCo that EnvPool is built on (3.6); MuJoCo 4 resolves their contacts differently."""

DIFFERENT = {
    "Pendulum-v1": "turns by the speed before it is limited to 8, Gymnasium's by the limited one",
    "Humanoid-v4": "observes no contact forces, which Gymnasium's does",
    "HumanoidStandup-v4": "observes and counts no contact forces, which Gymnasium's does",
    "Pusher-v4": "cannot be compared with Gymnasium's, which needs MuJoCo 2",
    "CarRacing-v3": "draws images of its own",
}
"""What sets EnvPool's task of the same name apart."""

OLDEST = "1.2.5"
"""Release whose tasks were compared; those before it have others under the same names."""

SMALLEST_BATCH = 8
"""Environments below which handing the work to threads costs more than it saves."""

NEVER = 2**30
"""Time limit that EnvPool gets, in steps: the limit is kept here, where it cannot hide a final state."""

ATARI_STEPS = 27_000
"""Time limit of Atari games: 108,000 frames, as ale-py has it."""


def why_not_envpool(
    spec: EnvSpec, *, autoreset_mode: AutoresetMode | None = None, env_kwargs: Mapping[str, Any] | None = None
) -> str | None:
    """The reason why EnvPool cannot stand in for an environment, or None if it can.

    Args:
        spec: Gymnasium's registration.
        autoreset_mode: that is asked for.
        env_kwargs: settings of the environment; EnvPool's have other names and meanings.
    """
    if autoreset_mode not in (None, AutoresetMode.NEXT_STEP):
        return f"EnvPool autoresets by NEXT_STEP, not {autoreset_mode.name}; leave autoreset_mode out"
    foreign = [name for name in env_kwargs or {} if name != "max_episode_steps"]
    if foreign:
        return f"EnvPool does not take {foreign[0]!r} for {spec.id}; use vectorization 'auto'"
    if spec.id in DIFFERENT:
        return f"EnvPool's {spec.id} is another task: it {DIFFERENT[spec.id]}; use vectorization 'auto'"
    known = spec.id in SAME_TO_ROUNDING or spec.id in SAME_BUT_FOR_THE_ENGINE or _is_atari(spec)
    if not known or not str(spec.entry_point).startswith(("gymnasium.envs.", "ale_py")) or spec.additional_wrappers:
        return f"{spec.id} is not known to be the same task in EnvPool; use vectorization 'auto'"
    if find_module("envpool") is None:
        return f"{spec.id} needs EnvPool for this; {install_line('envpool')}"
    found = version("envpool")
    if _numbers(found) < _numbers(OLDEST):
        return (
            f"EnvPool {found} has other tasks than {OLDEST}, which is needed; {typed('pip')} install --upgrade envpool"
        )
    return None


def faster_in_envpool(spec: EnvSpec, num_envs: int) -> bool:
    """Whether to prefer EnvPool, where it can stand in: the same to rounding, and enough to do for its threads."""
    return spec.id in SAME_TO_ROUNDING and num_envs >= SMALLEST_BATCH


class EnvPoolVectorEnv(VectorEnv[Any, Any, Any]):
    """EnvPool's environments of one kind behind Gymnasium's interface, with NEXT_STEP autoreset.

    EnvPool reports every end at the time limit as truncated, even where the state was a final one. Its limit is
    therefore out of reach, and the limit is kept here: an episode that is cut off is reset by hand in the next step.
    Seeds are fixed when EnvPool makes its environments, so that a seeded reset makes new ones.

    Args:
        spec: Gymnasium's registration; `why_not_envpool` has nothing against it.
        num_envs: how many.
        num_threads: that step them.
        max_episode_steps: time limit (default: the registration's).
        sticky_actions: Atari: probability that the last action is repeated.
    """

    autoreset_mode = AutoresetMode.NEXT_STEP

    def __init__(
        self,
        spec: EnvSpec,
        num_envs: int,
        *,
        num_threads: int,
        max_episode_steps: int | None = None,
        sticky_actions: float = 0.0,
    ) -> None:
        self.spec = spec
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self._atari = _is_atari(spec)
        self._task = spec.id.removeprefix("ALE/")
        self._settings: dict[str, Any] = {"num_envs": num_envs, "num_threads": num_threads, "max_episode_steps": NEVER}
        if self._atari:
            self._settings["repeat_action_probability"] = sticky_actions
            limit = ATARI_STEPS
        else:
            limit = spec.max_episode_steps or NEVER
        self._limit = max_episode_steps or limit
        # The spaces are Gymnasium's own, so that an agent fits the environment whoever steps it.
        self.single_observation_space, self.single_action_space = _spaces(spec, self._task)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._pool: Any = None
        self._action_dtype: Any = None
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._cut = self._done = np.zeros(num_envs, dtype=bool)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """New episodes everywhere: observations `[N, ...]` and, in Atari, `lives` in the infos.

        Args:
            seed: one per environment, or the first of them; None goes on with the random streams.
            options: not taken.
        """
        if options:
            raise SettingsError(f"EnvPool takes no options for a reset, not {options}; leave them out")
        if seed is not None or self._pool is None:
            self._make(seed)
        obs, infos = self._pool.reset()
        self._elapsed = np.zeros(self.num_envs, dtype=np.int64)
        self._cut = self._done = np.zeros(self.num_envs, dtype=bool)
        return self._seen(obs), self._infos(infos)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Observations `[N, ...]`, rewards `[N]` float32, terminated, truncated, infos.

        Both flags are True where an episode came to a final state in the step that reached the time limit.
        """
        actions = np.asarray(actions).astype(self._action_dtype, copy=False)
        if self._cut.any():
            obs, rewards, terminated, infos = self._step_and_reset(actions)
        else:
            obs, rewards, terminated, _, infos = self._pool.step(actions)
        self._elapsed = np.where(self._done, 0, self._elapsed + 1)
        truncated = self._elapsed >= self._limit
        self._done = terminated | truncated
        self._cut = truncated & ~terminated
        return self._seen(obs), rewards, terminated, truncated, self._infos(infos)

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the environments; their threads end with them."""
        self._pool = None

    def _make(self, seed: int | Sequence[int] | None) -> None:
        import envpool

        if seed is None:
            seed = [int(word) >> 1 for word in np.random.SeedSequence().generate_state(self.num_envs)]
        elif isinstance(seed, int):
            seed = [seed + row for row in range(self.num_envs)]
        self._pool = envpool.make_gymnasium(self._task, seed=list(seed), **self._settings)
        self._action_dtype = self._pool.spec.action_array_spec["action"].dtype
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bounds that lose digits on their way to single precision
            self._pool.observation_space  # noqa: B018  (made at the first look, and kept)

    def _step_and_reset(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """A step of some environments and a reset of those that were cut off; the flags of the latter are False."""
        fresh, others = (np.flatnonzero(rows).astype(np.int32) for rows in (self._cut, ~self._cut))
        obs, infos = self._pool.reset(fresh)
        parts = [(obs, np.zeros(len(fresh), np.float32), np.zeros(len(fresh), bool), infos)]
        if len(others):
            obs, rewards, terminated, _, infos = self._pool.step(actions[others], others)
            parts.append((obs, rewards, terminated, infos))
        order = np.argsort(np.concatenate([infos["env_id"] for *_, infos in parts]))
        obs, rewards, terminated = (np.concatenate([part[i] for part in parts])[order] for i in range(3))
        merged = {name: np.concatenate([part[3][name] for part in parts])[order] for name in ("lives",) if self._atari}
        return obs, rewards, terminated, merged

    def _seen(self, obs: np.ndarray) -> np.ndarray:
        """Observations as ale-py shows them: frames from before the start of a game are black, not repeated."""
        if self._atari:
            for row in np.flatnonzero(self._elapsed < ATARI_FRAMES - 1):
                obs[row, : ATARI_FRAMES - 1 - self._elapsed[row]] = 0
        return obs

    def _infos(self, infos: Mapping[str, Any]) -> dict[str, Any]:
        return {"lives": infos["lives"]} if self._atari else {}


def _spaces(spec: EnvSpec, task: str) -> tuple[Any, Any]:
    """The spaces of one environment as Gymnasium's own (or ale-py's vector code) has them."""
    if _is_atari(spec):
        import envpool

        actions = envpool.make_spec(task).action_space
        return gym.spaces.Box(0, 255, (ATARI_FRAMES, 84, 84), np.uint8), gym.spaces.Discrete(int(actions.n))
    env = gym.make(spec)
    spaces = env.observation_space, env.action_space
    env.close()
    return spaces


def _numbers(release: str) -> tuple[int, ...]:
    """A release as numbers that compare."""
    return tuple(int(digits) for digits in re.findall(r"\d+", release)[:3])


def _is_atari(spec: EnvSpec) -> bool:
    return fnmatchcase(spec.id, "ALE/*-v5") and spec.id != "ALE/TicTacToe3D-v5"
