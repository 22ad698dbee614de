"""Whether an environment keeps to its own spaces, and to what agents need."""

from __future__ import annotations

import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import env_checker
from gymnasium.utils.env_checker import check_env as check_by_gymnasium

from relax_rl.backends.api import MEND_API, called
from relax_rl.backends.creation import one_line_errors
from relax_rl.backends.masks import KEY, allowed_actions, with_mask_in_info
from relax_rl.backends.registry import find_spec
from relax_rl.backends.single import kept_space, misfit, vector_reward
from relax_rl.errors import SettingsError
from relax_rl.networks.actions import action_encoder
from relax_rl.networks.spaces import ObservationEncoder, leaf_spaces

__all__ = ["FirstLook", "check_env", "decisive"]

LOOKS = 32
"""Batches that are compared with the bounds of their space."""
_NO_FAULTS = ("This is probably too", "is different from the unwrapped version", "a symmetric and normalized space")
"""Said by Gymnasium's checker of observations without bounds, which are normalised, of wrappers, which are meant, and of
bounds of actions, which agents cut to or are rescaled to."""
_ROUNDING = 1e-5
"""Of a bound's size that a number may lie beyond it."""
_NO_NUMBER = "which is no finite number of 32 bits and ends a run"
_NOT_THEIRS = {*sys.stdlib_module_names, "gymnasium", "numpy", "relax_rl"} - {"__main__"}
"""Modules that are no environment's."""


class FirstLook:
    """Compares the first batches of observations with the bounds of their space, and warns once.

    Args:
        space: of a single environment.
        env_id: its name.
    """

    def __init__(self, space: spaces.Space[Any], env_id: str) -> None:
        self._id, self._left = env_id, LOOKS
        self._bounds = list(_bounds(space))

    def __call__(self, obs: Any) -> bool:
        """Look at a batch `[N, ...]`; returns whether to go on looking."""
        self._left -= 1
        for bounds in self._bounds:
            if line := bounds.beyond(obs):
                warnings.warn(f"{self._id}: {line}; mend the environment or its space", UserWarning, stacklevel=4)
                return False
        return self._left > 0 and bool(self._bounds)


class _Bounds:
    """Of one leaf, `path` to it."""

    def __init__(self, path: tuple[str | int, ...], leaf: spaces.Box) -> None:
        self._path, self._low, self._high = path, leaf.low, leaf.high
        sizes = (np.abs(np.where(np.isfinite(x), x, 0.0)) for x in (leaf.low, leaf.high))
        below, above = (_ROUNDING * np.maximum(1.0, size) for size in sizes)
        self._least, self._most = leaf.low - below, leaf.high + above

    def beyond(self, obs: Any) -> str:
        """What is said of a number in an observation, or a batch of them, that lies beyond; nothing if none does."""
        for key in self._path:
            obs = obs[key]
        array = np.asarray(obs)
        finite = np.isfinite(array)  # what is no number is told of elsewhere
        below, above = (array < self._least) & finite, (array > self._most) & finite
        for beyond, bound, side in ((below, self._low, "least"), (above, self._high, "most")):
            if beyond.any():
                which = np.unravel_index(int(np.argmax(beyond)), beyond.shape)
                name, limit = ".".join(map(str, self._path)) or "obs", np.broadcast_to(bound, beyond.shape)[which]
                return f"the observation {name!r} leaves its space: {array[which]:g}, where at {side} {limit:g} was declared"
        return ""


def _bounds(space: spaces.Space[Any]) -> Iterator[_Bounds]:
    """Of every leaf that has numbers beyond its bounds."""
    for path, leaf in leaf_spaces(space):
        if isinstance(leaf, spaces.Box) and leaf.dtype != np.uint8 and (leaf.bounded_below | leaf.bounded_above).any():
            yield _Bounds(path, leaf)


def check_env(
    env: gym.Env[Any, Any] | Callable[..., Any] | str, *, steps: int = 200, seed: int = 0, mask_key: str | None = None
) -> list[str]:
    """What is wrong with an environment.

    Gymnasium's own checker (`gymnasium.utils.env_checker`) comes first, then what agents need beyond it: spaces that
    networks read, and observations inside their space and rewards of one finite number over an episode or more of random
    actions. Where the environment masks actions, allowed ones are taken, and Gymnasium's checker, which knows no masks, does not
    step.

    Args:
        env: a Gymnasium environment, or an id, class or function as for `make_envs`; one that is given is stepped, and left
            open.
        steps: how many are taken.
        seed: of the environment and the actions.
        mask_key: name of the leaf of the observations that is the mask of the actions, if one is.

    Returns:
        A line for each thing that is wrong; none where an agent can learn in it as it is.

    Raises:
        SettingsError: an unknown id, or an environment that cannot be made.
    """
    if not isinstance(env, gym.Env):
        spec = find_spec(env)
        with one_line_errors(spec):
            made = gym.make(spec, disable_env_checker=True)
        try:
            return check_env(made.unwrapped, steps=steps, seed=seed, mask_key=mask_key)
        finally:
            made.close()
    found: list[str] = []
    masked = _with_masks(env, mask_key, found)
    if line := _of_api(env if masked is None else masked, seed):
        return [*found, line]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            if masked is None:
                check_by_gymnasium(env, skip_render_check=True, skip_close_check=True)
            else:
                _check_resets(env)
        except (Exception, SystemExit) as error:  # whatever an environment does
            found.append(_line(error))
    lines = [_plain(str(each.message)) for each in told]
    found += [line for line in lines if not any(words in line for words in _NO_FAULTS)]
    try:
        found += [*_of_spaces(env), *_of_steps(env if masked is None else masked, steps, seed)]
    except (Exception, SystemExit) as error:
        found.append(_line(error))
    return list(dict.fromkeys(found))


def decisive(faults: Sequence[str], drop: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """The lines of `check_env` that end every run, and the others, without those of leaves that are dropped."""
    end, others = list[str](), list[str]()
    for line in faults:
        named = re.match(rf"the observation '(.*)' is \S+, {_NO_NUMBER}", line)
        if named and any(f"{named[1]}.".startswith(f"{name}.") for name in drop):
            continue
        (end if named or line.endswith(MEND_API) else others).append(line)
    return end, others


def _of_api(env: gym.Env[Any, Any], seed: int) -> str:
    """What is said of a `reset` or a `step` that is none of Gymnasium's."""
    name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
    try:
        if line := called(env, "reset", name, seed=seed, options=None)[1]:
            return line
        draw = allowed_actions(env, seed)
        obs, info = called(env, "reset", name)[0]
        return called(env, "step", name, draw(obs, info))[1]
    except (Exception, SystemExit):  # whatever an environment does; the checks that follow tell of it
        return ""


def _with_masks(env: gym.Env[Any, Any], key: str | None, found: list[str]) -> gym.Env[Any, Any] | None:
    """The environment with its masks in its infos; None where it has none, or one that is no mask, which is `found` then."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            masked = with_mask_in_info(env, "auto", key)
            if KEY not in masked.reset(seed=0)[1]:
                return None
            allowed_actions(masked, 0)
        except SettingsError as error:
            found.append(str(error))
            return None
        except (Exception, SystemExit):  # whatever an environment does; the checks that follow tell of it
            return None
    return masked


def _check_resets(env: gym.Env[Any, Any]) -> None:
    """What Gymnasium's checker looks at before it steps."""
    for kind in ("action", "observation"):
        space = getattr(env, f"{kind}_space")
        getattr(env_checker, f"check_{kind}_space")(space)
        env_checker.check_space_limit(space, kind)
    for check in ("seed_deprecation", "reset_return_info_deprecation", "reset_return_type", "reset_seed_determinism"):
        getattr(env_checker, f"check_{check}")(env)
    env_checker.check_reset_options(env)
    env_checker.env_reset_passive_checker(env)


def _of_spaces(env: gym.Env[Any, Any]) -> Iterator[str]:
    for name, read in (("observation", _read), ("action", action_encoder)):
        try:
            read(getattr(env, f"{name}_space"))
        except SettingsError as error:
            yield str(error)


def _read(space: spaces.Space[Any]) -> None:
    kept, unread = kept_space(space, (), "the environment")
    ObservationEncoder(kept)
    if unread:
        raise SettingsError(f"no network here reads {', '.join(unread)} of the observations: left out")


def _of_steps(env: gym.Env[Any, Any], steps: int, seed: int) -> Iterator[str]:
    """What is wrong with observations and rewards, the first line of each kind."""
    space, bounds = env.observation_space, list(_bounds(env.observation_space))
    draw = allowed_actions(env, seed)
    obs, info = env.reset(seed=seed)
    reward: Any = 0.0
    said: set[str] = set()
    for step in range(steps + 1):
        wrong, fatal = misfit(space, obs)
        lines = {
            "space": wrong,
            "number": "" if fatal else _of_numbers(space, obs),
            "bounds": "" if fatal else next(filter(None, (each.beyond(obs) for each in bounds)), ""),
            "reward": _of_reward(reward),
        }
        for kind, line in lines.items():
            if line and kind not in said:
                said.add(kind)
                yield f"{line} (in step {step})"
        if fatal:
            return
        obs, reward, terminated, truncated, info = env.step(draw(obs, info))
        if terminated or truncated:
            last = "" if terminated or misfit(space, obs)[1] else _of_numbers(space, obs)
            if last and "number" not in said:  # agents go on from the last observation of what is cut off
                said.add("number")
                yield f"{last} (in step {step + 1})"
            obs, info = env.reset()


def _of_numbers(space: spaces.Space[Any], obs: Any) -> str:
    """What is said of a number in an observation that ends a run, as it is none in float32."""
    for path, leaf in leaf_spaces(space):
        if not isinstance(leaf, spaces.Box):
            continue
        part = obs
        for key in path:
            part = part[key]
        array = np.asarray(part)
        with np.errstate(over="ignore", invalid="ignore"):
            broken = ~np.isfinite(array.astype(np.float32)) if array.dtype.kind == "f" else np.zeros(())
        if broken.any():
            return f"the observation {'.'.join(map(str, path)) or 'obs'!r} is {array[broken][0]:g}, {_NO_NUMBER}"
    return ""


def _of_reward(reward: Any) -> str:
    if np.size(reward) != 1:
        return vector_reward("the environment", np.shape(reward))
    number = np.asarray(reward).item()
    finite = isinstance(number, bool | int | float) and bool(np.isfinite(number))
    return "" if finite else f"a reward is {number!r}, expected a finite number"


def _line(error: BaseException) -> str:
    """An error, and where code of the environment's own raised it."""
    first = _plain(str(error))
    line = f"{type(error).__name__}: {first}" if first else type(error).__name__
    for frame, number in reversed(list(traceback.walk_tb(error.__traceback__))):
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in _NOT_THEIRS:
            return f"{line} ({Path(frame.f_code.co_filename).name}:{number})"
    return line


def _plain(text: str) -> str:
    """One line, without the colours and the level that Gymnasium's logger puts around it."""
    text = text.replace("\x1b[33m", "").replace("\x1b[0m", "").removeprefix("WARN: ")
    return " ".join(text.split())
