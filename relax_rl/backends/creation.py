"""From the id of an environment to a Gymnasium vector environment: registry, settings, Atari, one-line errors."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields
from functools import partial
from typing import Any, Literal, cast, get_args

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv

from relax_rl.backends.envpool import EnvPoolVectorEnv, faster_in_envpool, why_not_envpool
from relax_rl.backends.frames import FrameStack
from relax_rl.backends.own import Making, vector_env_made_elsewhere, wrapped_vector_env
from relax_rl.backends.registry import find_spec, first_line, full_name, is_atari, told, without_version
from relax_rl.backends.traits import Vectorization, declared_autoreset_mode
from relax_rl.backends.workers import CannotFork, EnvironmentReport, shielded_from_signals
from relax_rl.compute.host import usable_cores
from relax_rl.compute.installation import install_line, typed
from relax_rl.errors import RelaxRLError, SettingsError
from relax_rl.settings.config import EnvConfig
from relax_rl.settings.fields import allowed, settings_of
from relax_rl.settings.naming import is_own, named, require_call
from relax_rl.settings.synonyms import meant

__all__ = ["AskedVectorization", "create_vector_env", "is_atari", "one_line_errors", "single_env", "vector_env_of"]

AskedVectorization = Literal["auto", "native", "envpool", "sync", "async"]

SubEnvWrapper = Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]

EXTRAS = {"box2d": "box2d", "mujoco": "mujoco", "cv2": "atari-wrappers", "opencv": "atari-wrappers", "pygame": "video"}
"""The extra to install when one of these words stands in the reason why an environment cannot be made."""

SET_ELSEWHERE = {
    "reward_clipping": "clip rewards in the agent with reward_clip, so that scores stay raw",
    "episodic_life": "use life_loss_terminal, which does not restart the game",
    "life_loss_info": "use life_loss_terminal",
    "repeat_action_probability": "use sticky_actions",
    "batch_size": "every environment answers every step",
}
"""Settings of ale-py's vector environment that would change what the adapter relies on."""


def vector_env_of(
    env: Any, *, env_kwargs: Mapping[str, Any], vectorization: AskedVectorization, making: Making, **how: Any
) -> tuple[VectorEnv[Any, Any, Any], EnvSpec | None, dict[str, Any]]:
    """A vector environment from whatever `make_envs` takes; its registration; and further arguments of `VectorEnvs`.

    Args:
        env: an id, what makes an environment, or one that is there.
        env_kwargs, vectorization, making, how: as for `create_vector_env`.

    Raises:
        SettingsError: as there.
    """
    if isinstance(env, gym.Env | VectorEnv):
        chosen_elsewhere = {"vectorization": vectorization != "auto", "autoreset_mode": how.get("autoreset_mode")}
        asked = [*env_kwargs, *(word for word, given in chosen_elsewhere.items() if given)]
        made, chosen, name = vector_env_made_elsewhere(env, making, asked=asked)
        masks = making.masks_of(isinstance(env, gym.Env))
        return made, env.unwrapped.spec, {"env_id": name, "vectorization": chosen, "action_masks": masks}
    spec = find_spec(env)
    name = full_name(env, spec) if isinstance(env, str) else spec.id
    made, chosen = create_vector_env(spec, env_kwargs=env_kwargs, vectorization=vectorization, making=making, **how)
    masks = making.masks_of(chosen in ("sync", "async"))
    return made, spec, {"env_id": name, "vectorization": chosen, "action_masks": masks}


def create_vector_env(
    spec: EnvSpec,
    *,
    num_envs: int,
    vectorization: AskedVectorization = "auto",
    autoreset_mode: AutoresetMode | None = None,
    sticky_actions: float = 0.25,
    env_kwargs: Mapping[str, Any] | None = None,
    making: Making | None = None,
) -> tuple[VectorEnv[Any, Any, Any], Vectorization]:
    """`num_envs` environments of one kind, stepped together, and how they are.

    Args:
        vectorization: `module:function` calls a function of the user's own with the id, `num_envs` and `env_kwargs` for
            a Gymnasium vector environment; "auto" takes native vector code if the environment has it and it can do what is asked; else
            EnvPool, if it is installed, faster, and steps the very same task; else one process.
        autoreset_mode: None takes NEXT_STEP, the mode in which Gymnasium itself copies every observation.
        sticky_actions: Atari only.
        env_kwargs: passed on to the environment.
        making: what is put around each environment, which needs one process or one each, and around all of them.

    Raises:
        SettingsError: if the environment cannot be made like this; the line says why and what to do.
    """
    making = making or Making()
    num_envs, sticky_actions = (
        allowed(settings_of(EnvConfig)[name], value)
        for name, value in (("num_envs", num_envs), ("sticky_actions", sticky_actions))
    )
    if (asked := making.around_each(spec)) and vectorization not in ("auto", "sync", "async"):
        raise SettingsError(f"{asked} needs vectorization 'sync' or 'async', not {vectorization!r}")
    if asked and spec.entry_point is None:
        raise SettingsError(f"{spec.id} exists as native vector code only, which {asked} cannot be had with")
    vectorization = "sync" if asked and vectorization == "auto" else vectorization
    env, chosen = _inner_vector_env(spec, num_envs, vectorization, autoreset_mode, sticky_actions, env_kwargs, making)
    return wrapped_vector_env(env, making.vector), chosen


def _check_own_games(spec: EnvSpec, sticky_actions: float, making: Making) -> None:
    """Raises SettingsError for what a function of the user's own that makes games is not told."""
    usual = settings_of(EnvConfig)["sticky_actions"].default
    for name, given in (("frame_stack", making.frame_stack), ("sticky_actions", sticky_actions != usual)):
        if given:
            raise SettingsError(
                f"{name} is given, but your own vector code makes {spec.id}, and is told env_kwargs alone; name it there"
            )


def _inner_vector_env(
    spec: EnvSpec,
    num_envs: int,
    vectorization: AskedVectorization,
    autoreset_mode: AutoresetMode | None,
    sticky_actions: float,
    env_kwargs: Mapping[str, Any] | None,
    making: Making,
) -> tuple[VectorEnv[Any, Any, Any], Vectorization]:
    """Vector environments as `create_vector_env` makes them, without the wrappers around all of them."""
    if is_own(vectorization):
        if is_atari(spec):
            _check_own_games(spec, sticky_actions, making)
        return _of_the_users_own(spec, vectorization, {"num_envs": num_envs, **(env_kwargs or {})})
    if vectorization not in get_args(AskedVectorization):
        raise SettingsError(f"vectorization is {vectorization!r}, expected auto, native, envpool, sync or async")
    kwargs = dict(env_kwargs or {})
    with one_line_errors(spec):
        _check_settings(spec, kwargs)
        with_stack = {**kwargs, **making.native(spec, kwargs)}
        if vectorization == "native" or (vectorization == "auto" and _prefers_native(spec, kwargs)):
            env = _native(spec, num_envs, autoreset_mode, sticky_actions, with_stack)
            declared = declared_autoreset_mode(env)
            if autoreset_mode in (None, declared):
                return env, "native"
            env.close()
            if vectorization == "native":
                raise SettingsError(
                    f"the native vector code of {spec.id} autoresets by {declared.name}, not {autoreset_mode.name}; "
                    "leave autoreset_mode out or use vectorization 'sync'"
                )
        may = vectorization == "auto" and not making.info_keys and faster_in_envpool(spec, num_envs)
        if may or vectorization == "envpool":
            if making.info_keys:
                raise SettingsError(
                    "EnvPool tells nothing in its infos; use vectorization 'sync' or 'async' with info_keys"
                )
            refusal = why_not_envpool(spec, autoreset_mode=autoreset_mode, env_kwargs=with_stack)
            if refusal is None:
                return _envpool(spec, num_envs, sticky_actions, kwargs), "envpool"
            if vectorization == "envpool":
                raise SettingsError(refusal)
        mode = autoreset_mode or AutoresetMode.NEXT_STEP
        chosen: Vectorization = "async" if vectorization == "async" else "sync"
        return _one_by_one(spec, num_envs, chosen, mode, sticky_actions, kwargs, making), chosen


def single_env(
    spec: EnvSpec, *, env_kwargs: Mapping[str, Any] | None = None, making: Making | None = None
) -> gym.Env[Any, Any]:
    """One environment as each of a vector is made, Atari as the emulator has it.

    Raises:
        SettingsError: it cannot be made like this.
    """
    making = making or Making()
    with one_line_errors(spec):
        if spec.entry_point is None:
            raise SettingsError(f"{spec.id} exists as native vector code only; no single one of it can be had")
        env = gym.make(spec, disable_env_checker=True, **(env_kwargs or {}))
        for wrap in making.single:
            env = wrap(env)
    return env


def _prefers_native(spec: EnvSpec, kwargs: Mapping[str, Any]) -> bool:
    renders = is_atari(spec) and kwargs.get("render_mode") is not None  # the native Atari code cannot
    return spec.vector_entry_point is not None and not spec.additional_wrappers and not renders


def _native(
    spec: EnvSpec, num_envs: int, mode: AutoresetMode | None, sticky_actions: float, kwargs: Mapping[str, Any]
) -> VectorEnv[Any, Any, Any]:
    if spec.vector_entry_point is None:
        raise SettingsError(
            f"{spec.id} has no native vector code; use vectorization 'auto', 'envpool', 'sync' or 'async'"
        )
    settings: dict[str, Any] = {}
    if is_atari(spec):
        settings = {
            "reward_clipping": False,
            "repeat_action_probability": sticky_actions,
            # ale-py counts the cores of the host, not those this process may use; one thread more evens out long frames
            "num_threads": min(num_envs, usable_cores() + 1),
        }
        if mode is AutoresetMode.SAME_STEP:
            settings["autoreset_mode"] = mode
    return gym.make_vec(spec, num_envs, vectorization_mode="vector_entry_point", **{**settings, **kwargs})


def _envpool(
    spec: EnvSpec, num_envs: int, sticky_actions: float, kwargs: Mapping[str, Any]
) -> VectorEnv[Any, Any, Any]:
    threads = min(num_envs, usable_cores())
    return EnvPoolVectorEnv(spec, num_envs, num_threads=threads, sticky_actions=sticky_actions, **kwargs)


def _one_by_one(
    spec: EnvSpec,
    num_envs: int,
    vectorization: Vectorization,
    mode: AutoresetMode,
    sticky_actions: float,
    kwargs: Mapping[str, Any],
    making: Making,
) -> VectorEnv[Any, Any, Any]:
    if spec.entry_point is None:
        raise SettingsError(f"{spec.id} exists as native vector code only; use vectorization 'auto' or 'native'")
    settings = dict(kwargs)
    wrappers: list[Any] = []
    if is_atari(spec):
        settings, wrappers = _atari_classic(sticky_actions, settings)
    wrappers += [*making.single, making.prepared(spec.id)]
    if frames := making.frames(spec):
        wrappers.append(partial(FrameStack, size=frames, blank=is_atari(spec)))
    if mode is AutoresetMode.SAME_STEP:
        wrappers.append(_OwnObservation)

    def made(own: Sequence[Any], **how: Any) -> VectorEnv[Any, Any, Any]:
        with EnvironmentReport(spec.id, None, when="when it was made"):
            return gym.make_vec(
                spec,
                num_envs,
                vectorization_mode=vectorization,
                vector_kwargs={"autoreset_mode": mode, **how},
                wrappers=[*wrappers, *own],
                **{"disable_env_checker": True, **settings},  # observations are checked in one line
            )

    if vectorization != "async":
        return made([])
    try:
        return made([shielded_from_signals(forked=multiprocessing.get_start_method() == "fork")])
    except CannotFork:
        return made([shielded_from_signals(forked=False)], context="forkserver")


def _atari_classic(sticky_actions: float, kwargs: dict[str, Any]) -> tuple[dict[str, Any], list[SubEnvWrapper]]:
    """The settings and wrappers that give a single Atari environment what the native vector code does, but for stacks."""
    frameskip = kwargs.pop("frameskip", 4)
    settings = {"repeat_action_probability": sticky_actions, "frameskip": 1, **kwargs}

    def preprocess(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        return gym.wrappers.AtariPreprocessing(env, frame_skip=frameskip, noop_max=30, screen_size=84)

    return settings, [preprocess]


class _OwnObservation(gym.ObservationWrapper[Any, Any, Any]):
    """Copies every observation, so that the reset that follows within the same step cannot overwrite the last one."""

    def observation(self, observation: Any) -> Any:
        return deepcopy(observation)


def _of_the_users_own(
    spec: EnvSpec, name: str, settings: Mapping[str, Any]
) -> tuple[VectorEnv[Any, Any, Any], Vectorization]:
    """What a function `module:name` makes of an id and settings."""
    own = named(name, "backend")
    require_call(own, "backend", spec.id, **settings)
    made = own(spec.id, **settings)
    if not isinstance(made, VectorEnv):
        raise SettingsError(f"backend {name} made {type(made).__name__}, expected a VectorEnv of Gymnasium")
    return made, cast(Vectorization, name)


def _check_settings(spec: EnvSpec, kwargs: Mapping[str, Any]) -> None:
    """Raises SettingsError for what is set elsewhere, or where an environment's class says that it renders no frames."""
    if is_atari(spec):
        for name in SET_ELSEWHERE.keys() & kwargs.keys():
            raise SettingsError(f"{spec.id} does not take {name!r} here: {SET_ELSEWHERE[name]}")
    mode = kwargs.get("render_mode")
    if mode != "rgb_array" or spec.entry_point is None:  # other modes may be made of it by Gymnasium
        return
    kind = spec.entry_point if callable(spec.entry_point) else load_env_creator(spec.entry_point)
    modes = (getattr(kind, "metadata", None) or {}).get("render_modes")
    if modes is not None and mode not in modes:
        only = f"renders {', '.join(modes)} only" if modes else "renders nothing"
        raise SettingsError(f"{spec.id} {only}, expected {mode}; no video can be recorded of it")


@contextmanager
def one_line_errors(spec: EnvSpec) -> Iterator[None]:
    """A context in which whatever goes wrong in making an environment becomes a SettingsError of one line."""
    try:
        yield
    except RelaxRLError:
        raise
    except (ImportError, gym.error.DependencyNotInstalled) as missing:
        raise SettingsError(_missing_line(spec, missing)) from missing
    except gym.error.Error as wrong:
        raise SettingsError(f"{spec.id} cannot be made: {first_line(wrong)}") from wrong
    except (Exception, SystemExit) as wrong:  # whatever an environment of somebody's own does when it is made
        if isinstance(wrong, TypeError) and "keyword argument" in str(wrong):
            reason = first_line(wrong)
            theirs = re.search(r"keyword argument '(\w+)'", reason)
            advice = meant(theirs[1], [f.name for f in fields(EnvConfig)]) if theirs else ""
            raise SettingsError(f"{spec.id} does not take these settings: {reason}{advice}") from wrong
        # stable-retro's emulator
        advice = "; use vectorization 'async'" if "per process" in str(wrong) else ""
        raise SettingsError(f"{spec.id} cannot be made: {told(wrong)}{advice}") from wrong


def _missing_line(spec: EnvSpec, missing: Exception) -> str:
    reason = first_line(missing)
    where = f"{spec.entry_point} {reason}".casefold()
    newest = find_spec(without_version(spec.id)).id
    if newest != spec.id and "moved" in reason:  # the registrations of MuJoCo v2 and v3 only say so
        return f"{spec.id} is gone; use {newest}"
    commands = {word: install_line(extra) for word, extra in EXTRAS.items()}
    for word, command in {**commands, "jax": f'{typed("pip")} install "gymnasium[jax]"'}.items():
        if word in where:
            return f"{spec.id} needs a package that is not installed ({reason}); {command}"
    return f"{spec.id} needs a package that is not installed: {reason}"
