"""Where environments say which actions are allowed: in their infos, by a method, or in their observations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from relax_rl.errors import EnvironmentFault, SettingsError
from relax_rl.networks.masks import action_masks_for
from relax_rl.networks.spaces import leaf_spaces

__all__ = ["AskedMasks", "EnvMasks", "MaskInInfo", "allowed_actions", "single_masks", "with_mask_in_info"]

AskedMasks = Literal["auto", "off", "info", "method"]
KEY, METHOD = "action_mask", "action_masks"

Source = Callable[[Any, Mapping[str, Any]], np.ndarray]
"""From a batch of observations and its infos to `[N, W]` masks."""


class MaskInInfo(gym.Wrapper[Any, Any, Any, Any]):
    """An environment whose infos hold the mask of every observation that an action follows, however it gives it.

    Args:
        env: the environment.
        mask_of: from an observation to its mask.
        always: whether to replace a mask that stands in the infos.
    """

    def __init__(self, env: gym.Env[Any, Any], mask_of: Callable[[Any], Any], *, always: bool) -> None:
        super().__init__(env)
        self._mask_of, self._always = mask_of, always

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return obs, self._with_mask(obs, info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if not (terminated or truncated):  # no action follows, and there may be none
            info = self._with_mask(obs, info)
        return obs, reward, terminated, truncated, info

    def _with_mask(self, obs: Any, info: dict[str, Any]) -> dict[str, Any]:
        if not self._always and info.get(KEY) is not None:
            return info
        return {**info, KEY: self._mask_of(obs)}


def with_mask_in_info(
    env: gym.Env[Any, Any], how: AskedMasks, key: str | None, env_id: str = "the environment"
) -> gym.Env[Any, Any]:
    """A single environment with its masks in its infos; as it is where they are there anyway, or nowhere.

    Args:
        env: the environment.
        how: see `EnvMasks`.
        key: name of the leaf of its observations that is the mask, if one is.
        env_id: its name in messages.

    Raises:
        SettingsError: there is no such method or leaf.
    """
    if action_masks_for(env.action_space) is None:
        return env
    if key is not None:
        path = _path_to(env.observation_space, key, env_id)
        return MaskInInfo(env, partial(_leaf, path=path), always=True)
    asked = how in ("auto", "method") and env.has_wrapper_attr(METHOD)
    method = env.get_wrapper_attr(METHOD) if asked else None
    if not callable(method):
        if how == "method":
            raise SettingsError(_no_method(env_id))
        return env
    return MaskInInfo(env, partial(_answer, method), always=how == "method")  # a deep copy asks its own environment


def single_masks(
    env: gym.Env[Any, Any], key: str | None, drop: Sequence[str], env_id: str
) -> Callable[[Any, Mapping[str, Any]], np.ndarray] | None:
    """What reads `[W]` the mask of an observation of a single environment that came with an info; None without masks.

    Where an info has none, at the end of an episode say, everything is allowed.

    Args:
        env: has its masks in its infos, see `with_mask_in_info`, or as a leaf of its observations.
        key, drop: names of that leaf, and of those that are left out.
        env_id: its name in messages.

    Raises:
        SettingsError: there is no such leaf.
    """
    masks = action_masks_for(env.action_space)
    if masks is None:
        return None
    if key is not None and key not in drop:
        path = _path_to(env.observation_space, key, env_id)
        return lambda obs, _: masks.row(_leaf(obs, path))
    if KEY not in env.reset(seed=0)[1]:
        return None
    return lambda _, info: np.ones(masks.width, dtype=bool) if info.get(KEY) is None else masks.row(info[KEY])


def allowed_actions(env: gym.Env[Any, Any], seed: int) -> Callable[[Any, Mapping[str, Any]], Any]:
    """What draws an action that is allowed at an observation that came with an info; any action where there are no masks.

    Args:
        env: has its masks in its infos, see `with_mask_in_info`; it is reset.
        seed: of the actions.

    Raises:
        SettingsError: its first mask is none of its actions.
        EnvironmentFault: while drawing, where a mask allows no action.
    """
    space, rng = env.action_space, np.random.default_rng(seed)
    space.seed(seed)
    masks, mask_of = action_masks_for(space), single_masks(env, None, (), "the environment")
    if masks is None or mask_of is None:
        return lambda *_: space.sample()
    mask_of(*env.reset(seed=seed))

    def draw(obs: Any, info: Mapping[str, Any]) -> Any:
        row = mask_of(obs, info)
        if masks.stuck(row[None])[0]:
            raise EnvironmentFault("an action mask allows no action, expected at least one (in every dimension)")
        return masks.sample(row, rng)

    return draw


class EnvMasks:
    """The masks of the actions of a vector environment, whichever way it gives them.

    Args:
        vector_env: steps the environments.
        space: of the actions of one, as they are chosen.
        how: "info" takes `action_mask` of the infos, "method" what `action_masks()` of the environments says, "auto"
            either where it is found at the first reset, in this order, "off" none.
        key: name of the leaf of the observations that is the mask, in place of these; None for none.
        env_id: its name in messages.
        first_env: how many environments of other processes stand before these.

    Raises:
        SettingsError: a way of another name, or one that does not go with the actions.
    """

    def __init__(
        self,
        vector_env: VectorEnv[Any, Any, Any],
        space: spaces.Space[Any],
        how: AskedMasks,
        key: str | None,
        env_id: str,
        first_env: int = 0,
    ) -> None:
        if how not in get_args(AskedMasks):
            raise SettingsError(f"action_masks is {how!r}, expected one of {', '.join(get_args(AskedMasks))}")
        if key is not None and how != "auto":
            raise SettingsError(f"mask_key is {key!r} and action_masks {how!r}, expected auto beside a mask_key")
        self._masks = action_masks_for(space) if space == vector_env.single_action_space else None
        if self._masks is None and (key is not None or how in ("info", "method")):
            what = f"mask_key is {key!r}" if key is not None else "masks of actions are asked for"
            if space != vector_env.single_action_space:
                raise SettingsError(
                    f"{what}, but the actions of {env_id} are those of {space} by bins, which nothing says how to mask; leave "
                    "action_masks at auto, or bins at 0"
                )
            raise SettingsError(f"{what}, but the actions of {env_id} are those of {space}; leave action_masks at auto")
        self._env, self._how, self._key, self._id, self._first = vector_env.unwrapped, how, key, env_id, first_env
        self._seen, self._chosen = vector_env.single_observation_space, how == "off" or self._masks is None
        self._source: Source | None = None

    def at_reset(self, obs: Any, infos: Mapping[str, Any]) -> np.ndarray | None:
        """`[N, W]` the masks after a reset of all environments; None where there are none.

        Raises:
            SettingsError: the way that is asked for gives none, or no mask of these actions.
            EnvironmentFault: one leaves nothing to choose.
        """
        if not self._chosen:
            self._source, self._chosen = self._choose(infos), True
        if self._source is None:
            return None
        nobody = np.zeros(self._env.num_envs, dtype=bool)
        return self._possible(self._source(obs, infos), nobody, np.zeros(self._env.num_envs, dtype=np.int64))

    def after_step(
        self,
        obs: Any,
        infos: Mapping[str, Any],
        lengths: np.ndarray,
        *,
        over: np.ndarray,
        reset_infos: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """`[N, W]` the masks of the observations that the next actions are chosen on.

        Args:
            obs: these observations.
            infos: of the step.
            lengths: `[N]` steps in the present episodes.
            over: `[N]` where the next step is a reset, which no action is asked for; or where environments have been reset
                by hand since the step, if `reset_infos` tells of that.
            reset_infos: of that reset.

        Raises:
            SettingsError: a mask does not fit the actions.
            EnvironmentFault: one leaves nothing to choose.
        """
        assert self._source is not None
        if reset_infos is None:
            return self._possible(self._source(obs, infos), over, lengths)
        found = self._source(obs, infos)
        found[over] = self._source(obs, reset_infos)[over]
        return self._possible(found, np.zeros_like(over), lengths)

    def _choose(self, infos: Mapping[str, Any]) -> Source | None:
        masks, count = self._masks, self._env.num_envs
        assert masks is not None
        key_left_out = self._key not in _names(self._seen) and KEY in infos  # see `with_mask_in_info`
        if self._key is not None and not key_left_out:
            path = _path_to(self._seen, self._key, self._id)
            return lambda obs, _: masks.rows(_leaf(obs, path), count)
        if self._how != "method" and KEY in infos:
            try:
                masks.of_infos(infos, count)
            except SettingsError as error:
                if self._how == "info" or self._key is not None:
                    raise
                warnings.warn(f"{self._id}: {error}; left out", UserWarning, stacklevel=4)
                return None
            return lambda _, infos: masks.of_infos(infos, count)
        if self._how == "info":
            raise SettingsError(
                f"action_masks is 'info', but {self._id} gives no action_mask in the infos of its reset; leave it at auto"
            )
        call = self._method()
        if call is None and self._how == "method":
            raise SettingsError(_no_method(self._id))
        return None if call is None else lambda obs, _: masks.rows(call(), count)

    def _method(self) -> Callable[[], Any] | None:
        """What asks every environment for its mask, if they can be asked."""
        env: Any = self._env
        if callable(own := getattr(env, METHOD, None)):
            found: Callable[[], Any] = own
            return found
        if not isinstance(env, SyncVectorEnv | AsyncVectorEnv):
            return None
        # A worker that is asked for what it has not would end.
        return (lambda: list(env.call(METHOD))) if all(env.call("has_wrapper_attr", METHOD)) else None

    def _possible(self, found: np.ndarray, unasked: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The masks, all allowed where nothing is asked for."""
        assert self._masks is not None
        found[unasked] = True
        stuck = self._masks.stuck(found)
        if stuck.any():
            row = int(np.argmax(stuck))
            when = f"in step {lengths[row]} of its episode" if lengths[row] else "at its reset"
            raise EnvironmentFault(
                f"environment {self._first + row} of {self._id} gave an action mask that allows no action {when}, expected "
                "at least one (in every dimension); mend the environment, or end its episode there"
            )
        return found


def _answer(method: Callable[[], Any], _obs: Any) -> Any:
    return method()


def _no_method(env_id: str) -> str:
    return f"action_masks is 'method', but {env_id} has no method action_masks(); leave it at auto"


def _names(space: spaces.Space[Any]) -> dict[str, tuple[str | int, ...]]:
    """The keys on the way to each leaf of observations, by its name."""
    return {".".join(map(str, path)): path for path, _ in leaf_spaces(space) if path}


def _path_to(space: spaces.Space[Any], key: str, env_id: str) -> tuple[str | int, ...]:
    """The keys on the way to a leaf of that name."""
    names = _names(space)
    if key not in names:
        leaves = ", ".join(names) or "one leaf without a name"
        raise SettingsError(f"mask_key names {key!r}, but the observations of {env_id} have {leaves}")
    return names[key]


def _leaf(obs: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        obs = obs[part]
    return obs
