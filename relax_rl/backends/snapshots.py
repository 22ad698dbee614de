"""Environments whose state can be had again: a fork goes on from the same state with randomness of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from relax_rl.backends.actions import BinnedActions
from relax_rl.backends.creation import single_env
from relax_rl.backends.frames import FrameStack
from relax_rl.backends.masks import AskedMasks, single_masks
from relax_rl.backends.own import Making
from relax_rl.backends.registry import find_spec, is_atari
from relax_rl.backends.single import prepared_env
from relax_rl.errors import SettingsError
from relax_rl.networks.masks import action_masks_for

__all__ = ["ForkableEnv"]

_TRIAL_STEPS = 5


class ForkableEnv:
    """A single Gymnasium environment that can be forked after any step.

    Where the environment can be copied in memory (classic control, MuJoCo), a fork is a copy; else (Box2D) a second
    one takes the same actions from the same seed, and must then show the same observation. Either way the future of a
    fork is independent of the original's: its random stream is replaced.

    Args:
        env_id: Gymnasium id, or `module:EnvId`.
        bins: cut continuous actions into this many values per dimension, as `make_envs` does; 0 leaves them.
        drop_keys, wrappers, frame_stack: of the observations and around the environment, as there.
        action_masks, mask_key: where it says what may be chosen, as there.
        env_kwargs: for the environment, as there.

    Attributes:
        obs: the last observation.
        mask: `[W]` what may be chosen on it; None where the environment has no masks.
        done: whether the episode has ended; `reset` then starts another.

    Raises:
        SettingsError: the environment cannot be made, or its state cannot be had again.
    """

    def __init__(
        self,
        env_id: str,
        *,
        bins: int = 0,
        drop_keys: Sequence[str] = (),
        wrappers: Sequence[Any] = (),
        frame_stack: int = 0,
        action_masks: AskedMasks = "auto",
        mask_key: str | None = None,
        **env_kwargs: Any,
    ) -> None:
        given = env_kwargs.pop("env_kwargs", None) or {}
        self._spec, self._kwargs, self._bins = find_spec(env_id), {**given, **env_kwargs}, bins
        self._making = Making.of(wrappers, frame_stack, drop_keys, (), action_masks, mask_key)
        if self._making.vector:
            raise SettingsError(
                f"wrapper {self._making.vector[0].name} goes around vectors; a fork is a single environment"
            )
        if is_atari(self._spec):
            raise SettingsError(f"the state of {self._spec.id} cannot be had again with a random future of its own")
        self._env = self._make()
        how = self._making.mask_key, self._making.drop_keys
        self._mask_of = None if action_masks == "off" else single_masks(self._env, *how, self._spec.id)
        self._actions: list[Any] = []
        self.copies = self._copies_itself()
        self.reset(0)

    def reset(self, seed: int) -> Any:
        """Start an episode; returns its first observation."""
        self._seed = seed
        self._actions.clear()
        self.obs, info = self._env.reset(seed=seed)
        self.mask = self.mask_of(self.obs, info)
        self.done = False
        return self.obs

    def mask_of(self, obs: Any, info: Mapping[str, Any]) -> np.ndarray | None:
        """`[W]` what may be chosen on an observation of this environment, or of a fork, that came with an info."""
        return None if self._mask_of is None else self._mask_of(obs, info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool]:
        """One step: observation, reward, terminated, truncated."""
        self._actions.append(copy.copy(action))
        self.obs, reward, terminated, truncated, info = self._env.step(action)
        self.done = bool(terminated or truncated)
        self.mask = self.mask_of(self.obs, info)
        return self.obs, float(reward), bool(terminated), bool(truncated)

    def fork(self, seed: int) -> gym.Env[Any, Any]:
        """An environment in the same state, with its own randomness from here on.

        Raises:
            SettingsError: when taking the same actions again led elsewhere.
        """
        env = _copied(self._env) if self.copies else self._replayed()
        env.unwrapped.np_random = np.random.default_rng(seed)
        return env

    def close(self) -> None:
        """End the environment."""
        self._env.close()

    def _make(self) -> gym.Env[Any, Any]:
        making = self._making
        inner = single_env(self._spec, env_kwargs=self._kwargs, making=making)
        env: gym.Env[Any, Any] = prepared_env(
            inner, self._spec.id, making.drop_keys, action_masks=making.action_masks, mask_key=making.mask_key
        )
        env = FrameStack(env, making.frame_stack) if making.frame_stack else env
        return BinnedActions(env, self._bins) if self._bins else env

    def _replayed(self) -> gym.Env[Any, Any]:
        env = self._make()
        obs, _ = env.reset(seed=self._seed)
        for action in self._actions:
            obs, *_ = env.step(action)
        if _plain(obs) != _plain(self.obs):
            raise SettingsError(f"the state of {self._spec.id} cannot be had again: the same actions led elsewhere")
        return env

    def _copies_itself(self) -> bool:
        """Whether a copy goes where the original goes, and leaves the original alone."""
        env = self._env
        env.action_space.seed(0)
        self.reset(0)
        try:
            twin = _copied(env)
            ahead, actions = self._trial(twin)
            twin.close()
        except Exception:  # whatever a foreign environment holds that does not let itself be copied
            return False
        return ahead == _path(env, actions)

    def _trial(self, env: gym.Env[Any, Any]) -> tuple[list[Any], list[Any]]:
        """What an environment in the present state answers to some actions, and these."""
        path, actions, mask, rng = [], [], self.mask, np.random.default_rng(0)
        masks = action_masks_for(env.action_space)
        for _ in range(_TRIAL_STEPS):
            actions.append(
                masks.sample(mask, rng) if masks is not None and mask is not None else env.action_space.sample()
            )
            obs, reward, terminated, truncated, info = env.step(actions[-1])
            path.append((_plain(obs), float(reward), bool(terminated), bool(truncated)))
            if terminated or truncated:
                break
            mask = self.mask_of(obs, info)
        return path, actions


def _copied(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """A deep copy, with the state of MuJoCo's simulator, which deep copies lose."""
    twin = copy.deepcopy(env)
    data = getattr(env.unwrapped, "data", None)
    if type(data).__module__.startswith("mujoco"):
        import mujoco

        here: Any = env.unwrapped
        there: Any = twin.unwrapped
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(here.model, kind))
        mujoco.mj_getState(here.model, here.data, state, kind)
        mujoco.mj_setState(there.model, there.data, state, kind)
        mujoco.mj_forward(there.model, there.data)
    return twin


def _path(env: gym.Env[Any, Any], actions: list[Any]) -> list[tuple[Any, float, bool, bool]]:
    """What the environment answers, up to the end of the episode."""
    path = []
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(action)
        path.append((_plain(obs), float(reward), bool(terminated), bool(truncated)))
        if terminated or truncated:
            break
    return path


def _plain(obs: Any) -> Any:
    """An observation as something that compares by value."""
    if isinstance(obs, dict):
        return {key: _plain(part) for key, part in obs.items()}
    if isinstance(obs, tuple):
        return tuple(_plain(part) for part in obs)
    return np.asarray(obs).tolist()
