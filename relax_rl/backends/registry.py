"""The registration behind the id of an environment, ids like one that there is not, and errors of others in one line."""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from contextlib import suppress
from importlib import import_module
from typing import Any, cast

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, parse_env_id
from gymnasium.vector import VectorEnv

from relax_rl.compute.installation import typed
from relax_rl.errors import SettingsError, shown
from relax_rl.settings.naming import find_here, instead_of_path, name_of
from relax_rl.settings.presets import has_version

__all__ = [
    "ATARI_FRAMES",
    "find_spec",
    "first_line",
    "full_name",
    "is_atari",
    "spec_made_by",
    "told",
    "with_version",
    "without_version",
]

_LONGEST = 300
"""Characters of somebody else's message."""

ATARI_FRAMES = 4
"""Frames of Atari games that are stacked where nobody asks for another number."""


def find_spec(env_id: Any) -> EnvSpec:
    """The registration of a Gymnasium id, of `module:EnvId`, or of a name without version (its highest).

    Args:
        env_id: one of these; or what makes an environment, a class or function, or `module:name` of one.

    Raises:
        SettingsError: if there is none, naming near ones; or if the module cannot be imported.
    """
    if not isinstance(env_id, str):
        return spec_made_by(env_id)
    module, _, name = env_id.rpartition(":")
    if module:
        _register_by(module, name, env_id)
    if name.startswith("ALE/") or name not in gym.registry:
        _register_atari(name)
    spec = gym.registry.get(name)
    if spec is None:
        versions = [other for other in gym.registry.values() if without_version(other.id) == name]
        spec = max(versions, key=lambda other: other.version or 0, default=None)
    if spec is None and module and hasattr(sys.modules[module], name):
        spec = spec_made_by(getattr(sys.modules[module], name), name)
    if spec is None:
        near = _near_names(name) if not module else _near_names_of(module, name)
        advice = (
            f"did you mean {', '.join(near)}?"
            if near
            else "expected a Gymnasium id such as CartPole-v1, module:EnvId, or module:ClassOrFunction"
        )
        raise SettingsError(f"unknown environment {shown(env_id)}; {advice}")
    return spec


def spec_made_by(make: Any, name: str | None = None) -> EnvSpec:
    """The registration, in no registry, of what a class or a function makes: one environment, or a vector of them where it is
    a class of vector environments.

    Args:
        make: called with the settings of the environment.
        name: of the environments (default: `module:name` of what makes them).

    Raises:
        SettingsError: nothing that can be called.
    """
    if not callable(make):
        raise SettingsError(
            f"the environment is {type(make).__name__}, expected an id, a class or function that makes one environment, or "
            "one of Gymnasium's environments or vector environments"
        )
    called = name or name_of(getattr(make, "func", make))
    known = re.sub(r"\(\.\.\.\)|[^\w:.-]", "", called)  # what Gymnasium takes as an id
    if isinstance(make, type) and issubclass(make, VectorEnv):
        return EnvSpec(known, vector_entry_point=cast(Any, make))
    return EnvSpec(known, entry_point=make)


def without_version(env_id: str) -> str:
    """An id without its version."""
    try:
        namespace, name, _ = parse_env_id(env_id)
    except gym.error.Error:
        return env_id
    return f"{namespace}/{name}" if namespace else name


def is_atari(spec: EnvSpec | None) -> bool:
    """Whether ale-py emulates it."""
    return spec is not None and str(spec.entry_point).startswith("ale_py")


def first_line(error: BaseException) -> str:
    """The first line of somebody else's message, or the type of what has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:_LONGEST]


def full_name(env: str, spec: EnvSpec) -> str:
    """The id of `spec` behind the module that `env` names, if it names one."""
    return "".join([*env.rpartition(":")[:2], spec.id])


def with_version(env: str) -> str:
    """The id of an environment, with the newest version told where a user has named none; as it is if it has none."""
    if has_version(env):
        return env
    full = full_name(env, find_spec(env))
    if full != env:
        warnings.warn(f"env {env!r} names no version: {full} is taken", UserWarning, stacklevel=2)
    return full


def told(error: BaseException) -> str:
    """The first line of an error behind its type, which says more than many a message."""
    kind, line = type(error).__name__, first_line(error)
    return line if isinstance(error, ImportError) or line == kind else f"{kind}: {line}"


def _register_by(module: str, name: str, env_id: str) -> None:
    """Import a module, and call its `register_envs`, or that of its `gym`, if that has not registered a name."""
    home = _import_module(module, env_id)
    if name in gym.registry:
        return
    if not hasattr(home, "register_envs"):
        with suppress(ImportError):
            home = import_module(f"{module}.gym")
    if callable(register := getattr(home, "register_envs", None)):
        register()


def _import_module(module: str, env_id: str) -> Any:
    if not all(part.isidentifier() for part in module.split(".")):
        hint = instead_of_path(env_id) or "; expected module:EnvId"
        raise SettingsError(f"environment {env_id!r}: {module!r} is no name of a module{hint}")
    find_here()
    try:
        return import_module(module)
    except ImportError as missing:
        raise SettingsError(
            f"environment {env_id!r}: cannot import {module!r} ({first_line(missing)}); "
            "install it, or put its folder on PYTHONPATH"
        ) from missing
    except (Exception, SystemExit) as error:  # whatever a module of somebody's own does when it is imported
        raise SettingsError(f"environment {env_id!r}: {module!r} cannot be imported ({told(error)})") from error


def _register_atari(name: str) -> None:
    try:
        import ale_py
    except ImportError as missing:
        if name.startswith("ALE/"):
            raise SettingsError(f"{name} needs ale-py; {typed('pip')} install ale-py") from missing
    else:
        gym.register_envs(ale_py)


def _near_names(env_id: str) -> list[str]:
    """Registered ids like this one: the same name elsewhere or in other versions, then similar spellings."""
    namespace, _, wanted = without_version(env_id).casefold().rpartition("/")

    def distance(spec: EnvSpec) -> tuple[bool, bool, int]:
        other_version = not env_id.endswith(f"-v{spec.version}")
        return other_version, (spec.namespace or "").casefold() != namespace, -(spec.version or 0)

    known = sorted(gym.registry.values(), key=distance)
    same = [spec.id for spec in known if spec.name.casefold() == wanted]
    spelled = {spec.id.casefold(): spec.id for spec in known}
    similar = difflib.get_close_matches(env_id.casefold(), list(spelled), n=3, cutoff=0.7)
    return list(dict.fromkeys(same + [spelled[name] for name in similar]))[:3]


def _near_names_of(module: str, name: str) -> list[str]:
    """Ids like this one as `module:EnvId`: of those that the module's package registers, else of all."""
    registered = [spec.id for spec in gym.registry.values() if _home(spec) == module.partition(".")[0]]
    close = difflib.get_close_matches(name, registered, cutoff=0.5) or _near_names(name)
    return [f"{module}:{each}" for each in close]


def _home(spec: EnvSpec) -> str:
    """The package that an environment's class lies in."""
    place = spec.entry_point
    return (
        str(place if isinstance(place, str) else getattr(place, "__module__", "")).partition(":")[0].partition(".")[0]
    )
