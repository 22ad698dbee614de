"""Single environments as vector code takes them: leaves that no network reads left out, infos short, first answers checked.

A worker process has no way to warn or to refuse in one line: what is to be said travels in the infos.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from relax_rl.backends.api import called, none_of_gymnasiums
from relax_rl.backends.infos import SUCCESS, followed, number
from relax_rl.backends.masks import AskedMasks, with_mask_in_info
from relax_rl.errors import SettingsError
from relax_rl.networks.masks import action_masks_for

__all__ = [
    "COMPLAINT",
    "REFUSAL",
    "SingleEnv",
    "heed",
    "kept_space",
    "misfit",
    "prepared",
    "prepared_env",
    "vector_reward",
]

COMPLAINT, REFUSAL = "relax_rl_complaint", "relax_rl_refusal"
"""Infos that hold a line to warn with, and one to end with."""

READ = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
"""Spaces of leaves that networks read."""


def prepared(
    env_id: str,
    drop: Sequence[str] = (),
    *,
    action_masks: AskedMasks = "auto",
    mask_key: str | None = None,
    info_keys: Sequence[str] = (),
) -> Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]:
    """A wrapper for sub-environments, which says once, in this process, what leaves it has left out unasked."""
    process, told = os.getpid(), set[str]()

    def prepare(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        made = prepared_env(env, env_id, drop, action_masks=action_masks, mask_key=mask_key, info_keys=info_keys)
        if made.unread and os.getpid() == process and not told:
            told.update(made.unread)
            warnings.warn(
                f"{env_id}: left out of the observations, as no network here reads them: {', '.join(made.unread)}",
                UserWarning,
                stacklevel=2,
            )
        return made

    return prepare


def prepared_env(
    env: gym.Env[Any, Any],
    env_id: str,
    drop: Sequence[str],
    *,
    action_masks: AskedMasks,
    mask_key: str | None,
    info_keys: Sequence[str] = (),
) -> SingleEnv:
    """A single environment as `prepared` makes it, in silence."""
    key = mask_key if mask_key is not None and mask_key in drop else None  # else it is read in the observations
    if key is not None or (mask_key is None and action_masks != "off"):
        env = with_mask_in_info(env, action_masks, key, env_id)
    return SingleEnv(env, drop, env_id, masks=action_masks != "off", info_keys=info_keys)


class SingleEnv(gym.Wrapper[Any, Any, Any, Any]):
    """An environment without some leaves of its observations, and with only those infos that something is made of.

    Infos of an episode's statistics, of success, of lives and of masks of actions stay, and the numbers that are asked for;
    whatever else there may be, arrays whose shape varies among it, would end the run within Gymnasium's vector code.

    Args:
        env: the environment.
        drop: leaves to leave out by name, keys and indices on the way to them joined by dots.
        env_id: its name in messages.
        masks: whether masks of actions stay, as rows of `ActionMasks`.
        info_keys: infos that stay where they are numbers; "all" for every number.

    Attributes:
        unread: names of leaves that were left out because no network reads them.

    Raises:
        SettingsError: a name that is none of a leaf, or nothing is left.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        drop: Sequence[str] = (),
        env_id: str = "the environment",
        *,
        masks: bool = True,
        info_keys: Sequence[str] = (),
    ) -> None:
        super().__init__(env)
        self._id, self._keys = env_id, tuple(info_keys)
        self._seen = self._stepped = False
        self._masks, self._mask_fits = action_masks_for(env.action_space) if masks else None, False
        whole = env.observation_space
        space, self.unread = kept_space(whole, drop, env_id)
        self._project = None if space is whole else _projection(space)
        if self._project is not None:
            self.observation_space = space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        given, wrong = called(self.env, "reset", self._id, seed=seed, options=options)
        if wrong:
            return self.observation_space.sample(), {REFUSAL: wrong}
        obs, info = given
        obs = obs if self._project is None else self._project(obs)
        info = self._wanted(info) if info else {}
        if not self._seen:
            self._seen = True
            wrong, fatal = misfit(self.observation_space, obs)
            if wrong:
                info[REFUSAL if fatal else COMPLAINT] = f"{self._id}: {wrong}; mend the environment or its space"
            obs = self.observation_space.sample() if fatal else obs
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        reward: Any
        try:
            obs, reward, terminated, truncated, info = self.env.step(action)
        except (TypeError, ValueError) as error:
            # Of one that has taken steps as it should, the run tells in which step it failed.
            if not self._stepped and (wrong := none_of_gymnasiums(error, "step", self._id)):
                return self.observation_space.sample(), 0.0, False, False, {REFUSAL: wrong}
            raise
        self._stepped = True
        obs = obs if self._project is None else self._project(obs)
        info = self._wanted(info, over=terminated or truncated) if info else {}
        if not isinstance(reward, float | int) and np.ndim(reward):
            if np.size(reward) == 1:
                reward = np.asarray(reward).item()
            else:
                info[REFUSAL] = vector_reward(self._id, np.shape(reward))
                reward = 0.0
        return obs, reward, terminated, truncated, info

    def _wanted(self, info: Mapping[str, Any], *, over: bool = False) -> dict[str, Any]:
        found = {}
        if "lives" in info and not np.ndim(info["lives"]):
            found["lives"] = info["lives"]
        if isinstance(episode := info.get("episode"), dict):
            found["episode"] = {key: x for key, x in episode.items() if not np.ndim(x)}
        # No action follows the end of an episode, and there may be none.
        if self._masks is not None and (mask := info.get("action_mask")) is not None and not over:
            try:
                found["action_mask"], self._mask_fits = self._masks.row(mask), True
            except SettingsError as error:
                if self._mask_fits:
                    found[REFUSAL] = f"{self._id}: {error}"
                else:
                    found[COMPLAINT], self._masks = f"{self._id}: {error}; left out", None
        for name in SUCCESS:
            if name in info and (value := number(info[name])) is not None:
                found[name] = value
        if self._keys:
            terms = {name: number(info[name]) for name in followed(self._keys, info)}
            found |= {name: value for name, value in terms.items() if value is not None}
        return found


def heed(infos: Mapping[str, Any]) -> None:
    """Say what single environments had to say.

    Raises:
        SettingsError: one of them cannot be worked with, or they are no infos of a vector environment.
    """
    if not isinstance(infos, Mapping):
        raise SettingsError(
            f"infos are a {type(infos).__name__}, expected a dictionary of arrays, as Gymnasium's vector environments give"
        )
    last = infos.get("final_info")  # of a last step under SAME_STEP
    for kind in (REFUSAL, COMPLAINT):
        lines = [line for said in (infos, last) if isinstance(said, Mapping) for line in said.get(kind, ()) if line]
        if lines and kind == REFUSAL:
            raise SettingsError(lines[0])
        if lines:
            warnings.warn(lines[0], UserWarning, stacklevel=3)


def vector_reward(env_id: str, shape: tuple[int, ...]) -> str:
    """What is said of a reward of several numbers."""
    return (
        f"{env_id} gives rewards of shape {shape}, expected one number; weigh them by a wrapper, such as "
        "mo_gymnasium.wrappers.LinearReward: --wrapper mo_gymnasium.wrappers:LinearReward"
    )


def not_one_each(env_id: str, num_envs: int, reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> str:
    """What is said of a step that does not tell one number of each for each environment."""
    found = {"terminated": terminated.shape, "truncated": truncated.shape}
    wrong = [f"{name} of shape {shape}" for name, shape in found.items() if shape != (num_envs,)]
    if not wrong:
        return vector_reward(env_id, reward.shape[1:])
    return f"{env_id} gives {' and '.join(wrong)}, expected ({num_envs},), one for each environment"


def kept_space(whole: spaces.Space[Any], drop: Sequence[str], env_id: str) -> tuple[spaces.Space[Any], tuple[str, ...]]:
    """An observation space without some leaves, and the names of those that went because no network reads them.

    A Tuple that loses a part becomes a Dict of the others by their places, so that names stay. Nothing is left out of a
    space that is a single leaf.

    Args:
        whole: the space.
        drop: names of leaves, or of what holds them.
        env_id: of the environment, for messages.

    Raises:
        SettingsError: a name that is none of a leaf, or nothing is left.
    """
    asked, unread, names = set[str](), list[str](), list[str]()

    def keep(space: spaces.Space[Any], name: str) -> spaces.Space[Any] | None:
        names.append(name)
        if name in drop:
            asked.add(name)
            return None
        if isinstance(space, spaces.Dict | spaces.Tuple):
            inner = {key: keep(part, f"{name}.{key}" if name else str(key)) for key, part in _parts(space)}
            if all(inner[key] is part for key, part in _parts(space)):
                return space
            left = [(str(key), part) for key, part in inner.items() if part is not None]
            return spaces.Dict(left) if left else None
        if isinstance(space, READ):
            return space
        unread.append(name)
        return None

    if not isinstance(whole, spaces.Dict | spaces.Tuple):
        found: spaces.Space[Any] | None = whole
    else:
        found = keep(whole, "")
    for name in drop:
        if name not in asked:
            leaves = ", ".join(filter(None, names)) or "one leaf without a name"
            raise SettingsError(f"drop_keys names {name!r}, but the observations of {env_id} have {leaves}")
    if found is None:
        raise SettingsError(
            f"nothing of the observations of {env_id} that a network here reads is left; expected Box, Discrete, "
            f"MultiDiscrete or MultiBinary among {whole}"
        )
    return found, tuple(unread)


def misfit(space: spaces.Space[Any], obs: Any, name: str = "") -> tuple[str, bool]:
    """What sets an observation apart from its space, or nothing; and whether vector code cannot take it.

    Bounds are left out: see `relax_rl.backends.checks`.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for key, part in _parts(space):
            try:
                inner = obs[key]
            except (KeyError, IndexError, TypeError):
                return f"its observations have no {f'{name}.{key}' if name else key!r}, which its space has", True
            wrong, fatal = misfit(part, inner, f"{name}.{key}" if name else str(key))
            if wrong:
                return wrong, fatal
        return "", False
    told = f"the observation {name or 'obs'!r}"
    if not isinstance(space, READ):
        return "", False
    try:
        array = np.asarray(obs)
    except ValueError:
        return f"{told} is no array, expected {space}", True
    if array.shape != space.shape or array.dtype.kind not in "biuf":
        return f"{told} is {array.dtype} of shape {array.shape}, expected {space.dtype} of shape {space.shape}", True
    whole = isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)
    other = array.dtype.kind == "f" if whole else array.dtype != space.dtype
    if other:
        return f"{told} is {array.dtype}, where its space says {space.dtype}, and is cast to that", False
    return "", False


def _parts(space: spaces.Dict | spaces.Tuple) -> list[tuple[Any, spaces.Space[Any]]]:
    return list(space.spaces.items()) if isinstance(space, spaces.Dict) else list(enumerate(space.spaces))


def _projection(space: spaces.Space[Any]) -> Callable[[Any], Any]:
    """From an observation of a space with more leaves to one of this."""
    if not isinstance(space, spaces.Dict):
        return lambda obs: obs
    inner = {key: _projection(part) for key, part in space.spaces.items()}

    def project(obs: Any) -> dict[str, Any]:
        by_place = isinstance(obs, tuple)
        return {key: part(obs[int(key) if by_place else key]) for key, part in inner.items()}

    return project
