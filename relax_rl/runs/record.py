"""`config.json`, from which a run can be told and gone on with."""

from __future__ import annotations

import json
import os
import platform
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from relax_rl.compute.serialization import read_regular, write_json
from relax_rl.errors import CheckpointError, SettingsError
from relax_rl.runs.folder import RunFolder
from relax_rl.settings.config import EnvConfig, TrainConfig
from relax_rl.settings.fields import (
    check_resumable,
    flat,
    from_json,
    of_the_call,
    settings_of,
    shown,
    to_json,
    with_settings,
)
from relax_rl.settings.naming import is_own, same_thing, warn_of_namesakes
from relax_rl.settings.presets import same_env
from relax_rl.settings.synonyms import flag

__all__ = [
    "NAMING_CODE",
    "OWN",
    "PACKAGES",
    "check_recorded",
    "entries",
    "known_env",
    "lasting",
    "logged_again",
    "named_again",
    "named_by_a_file",
    "note",
    "now",
    "object_in",
    "option_of",
    "read_config",
    "read_object",
    "read_record",
    "read_settings",
    "resumed_config",
    "settings_to_resume",
    "versions",
    "write_config",
]

C = TypeVar("C")

OWN = {"env": EnvConfig().env, "estimator": "auto", "networks": None, "vectorization": "auto", "wrapper": ()}
"""Settings that may name code of the user's own, and what they are where nobody names any."""

NAMING_CODE = (*OWN, "logger")
"""All such settings; loggers belong to one call, and are not among what a run goes on with."""

_LARGEST = 2**24
"""Bytes of a file of settings that is read."""

PACKAGES = ("torch", "gymnasium", "numpy", "ale-py")
"""What a run's numbers depend on beside Python and this package."""


def now() -> str:
    """The time, as written into a run's record."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def write_config(
    folder: RunFolder,
    config: Any,
    extra: Mapping[str, Any],
    *,
    section: str | None = None,
    packages: Iterable[str] = PACKAGES,
) -> None:
    """Write `config.json`: every setting, the versions it ran with, and `extra` (the command, resumptions).

    Args:
        folder: of the run.
        config: its settings.
        extra: further entries.
        section: the entry that holds the settings; the top level by default.
        packages: whose versions are noted.
    """
    settings = to_json(config) if section is None else {section: to_json(config)}
    write_json(folder.config, {**settings, "versions": versions(packages), **extra})


def note(folder: RunFolder, **entries: Any) -> None:
    """Add entries to `config.json`, or replace them.

    Raises:
        CheckpointError: the file cannot be read.
        RelaxRLError: it cannot be written.
    """
    write_json(folder.config, {**read_record(folder), **entries})


def read_record(folder: RunFolder) -> dict[str, Any]:
    """The content of `config.json` as it stands.

    Args:
        folder: of the run.

    Raises:
        CheckpointError: the folder holds no run, or the file cannot be read.
    """
    if os.path.isfile(folder.path):
        raise CheckpointError(
            f"run {str(folder.path)[:300]} is a file, expected the folder of a run (--checkpoint takes a file)"
        )
    if not os.path.isdir(folder.path):
        raise CheckpointError(f"run {str(folder.path)[:300]} does not exist")
    return read_object(folder.config, "run")


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file without which its folder holds no run, or no other thing that `what` names.

    Raises:
        CheckpointError: there is no such file, or it cannot be read.
    """
    try:
        record = json.loads(read_regular(path, most=_LARGEST).decode("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} holds no {what}: it has no {path.name}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is damaged: it is not JSON") from None
    if not isinstance(record, dict):
        raise CheckpointError(f"{path} is damaged: it is not a JSON object")
    return record


def object_in(path: Path) -> dict[str, Any]:
    """The JSON object in a file that can be made again; empty where there is none that can be read."""
    try:
        return read_object(path, "result")
    except CheckpointError:
        return {}


def entries(record: Mapping[str, Any], name: str) -> list[Any]:
    """The list under a name in a record, which grows from call to call; empty where there is none."""
    found = record.get(name)
    return list(found) if isinstance(found, list) else []


def read_config(folder: RunFolder) -> TrainConfig:
    """The settings of an agent's run.

    Args:
        folder: of the run.

    Raises:
        CheckpointError: as `read_settings`.
    """
    return read_settings(folder, TrainConfig)


def read_settings(folder: RunFolder, kind: type[C], *, section: str | None = None) -> C:
    """The settings of a run, as `write_config` wrote them.

    Raises:
        CheckpointError: the folder holds no such run, or the file cannot be read or has settings unknown to this version.
    """
    record = read_record(folder)
    names = [section] if section is not None else [part.name for part in fields(kind)]  # type: ignore[arg-type]
    for name in names:
        if name not in record:
            raise CheckpointError(f"{folder.config} has no section {name!r}: it is damaged, or of another kind of run")
    try:
        return from_json(kind, record[section] if section is not None else {name: record[name] for name in names})
    except SettingsError as error:
        raise CheckpointError(f"{folder.config} has settings that this relax_rl cannot take: {error}") from None


def settings_to_resume(resume: str, kind: type[C], *, section: str | None = None) -> C:
    """The settings of the run in a folder, without those that belong to one call, as the defaults of another call.

    Raises:
        CheckpointError: as `read_settings`.
    """
    saved = read_settings(RunFolder(Path(resume)), kind, section=section)
    # Code of the user's own that only the file names is not taken from there: see `resumed_config`.
    own = {name: default for name, default in OWN.items() if is_own(flat(saved).get(name))}
    return with_settings(saved, {**of_the_call(saved), **own, "resume": resume, "run_dir": resume})


def lasting(config: Any) -> dict[str, Any]:
    """Settings that stay what they are when a run is gone on with."""
    rules = {name: known.rule for name, known in settings_of(type(config)).items()}
    return {name: x for name, x in flat(config).items() if not (rules[name].resumable or rules[name].of_the_call)}


def check_recorded(theirs: Any, ours: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint that is not of the run that `config.json` tells of, or whose settings were changed there.

    Args:
        theirs: the checkpoint's settings by name; one that only one side has, of another version, is not compared.
        ours: those in `config.json`.
        path: of the checkpoint.

    Raises:
        CheckpointError: a setting differs.
    """
    if not isinstance(theirs, Mapping):
        raise CheckpointError(f"{path} is damaged: its settings cannot be read")
    for name in [name for name in theirs if name in ours]:
        before, now = (list(x) if isinstance(x, tuple) else x for x in (theirs[name], ours[name]))
        alike = name == "networks" and (same_thing(str(before), str(now)) or same_thing(str(now), str(before)))
        if before != now and not alike:
            raise CheckpointError(
                f"{name} is {shown(before)} in {path}, but {shown(now)} in config.json: they are not of one run, or the "
                "file was changed; put it right, or start a new run"
            )


def resumed_config(saved: TrainConfig, wanted: TrainConfig) -> TrainConfig:
    """The settings that an agent's run goes on with.

    Raises:
        CheckpointError: the environment differs.
        SettingsError: another setting differs that is not resumable.
    """
    for name, default in OWN.items():
        before, now = flat(saved)[name], flat(wanted)[name]
        if is_own(before) and now == default:
            raise SettingsError(named_by_a_file(name, before))
    if not same_env(wanted.env.env, saved.env.env):
        raise CheckpointError(
            f"cannot resume with --env {wanted.env.env}: the run was trained on {saved.env.env}; start a new run instead"
        )
    wanted = with_settings(wanted, {"env": saved.env.env})
    if same_thing(saved.run.networks, wanted.run.networks):  # one factory by an earlier and a present name
        warn_of_namesakes(saved.run.networks, wanted.run.networks, "the networks of this run are those of")
        saved = with_settings(saved, {"networks": wanted.run.networks})
    if wanted.run.estimator == "auto":
        wanted = with_settings(wanted, {"estimator": saved.run.estimator})
    return check_resumable(saved, wanted)


def named_again(config: TrainConfig, *, resuming: bool = True) -> str:
    """Options that a command on this run needs, since what only its file names is not imported: empty, or begun by a space.

    Only what is `resuming` the run takes a backend.
    """
    settings, names = flat(config), ("env", "estimator", "networks", "wrapper", *(("vectorization",) * resuming))
    own = [(name, settings[name]) for name in names if is_own(settings[name])]
    return "".join(f" {option_of(name, value)}" for name, value in own)


def logged_again(config: TrainConfig) -> str:
    """What going on with this run needs besides, so that the same loggers hear of it: empty, or begun by a space."""
    return f" --logger {shlex.join(config.run.logger)}" if config.run.logger else ""


def known_env(
    saved: EnvConfig, given: str | None, wrapper: Sequence[str] = (), env_kwargs: Mapping[str, Any] | None = None
) -> EnvConfig:
    """The environments of a run, for looking at its agent. A module that only the run's file names is not imported.

    Args:
        saved: the run's.
        given: the environment as the user names it; None if they do not.
        wrapper: its wrappers as the user names them; none if they do not.
        env_kwargs: settings of the environment over those of the run.

    Raises:
        SettingsError: it is of a module that the user has not named, or they name another one.
    """
    if saved.wrapper and not wrapper:
        raise SettingsError(named_by_a_file("wrapper", saved.wrapper))
    if tuple(wrapper) != saved.wrapper:
        raise SettingsError(f"wrapper is {' '.join(wrapper)!r}, but the run was trained in {' '.join(saved.wrapper)!r}")
    if env_kwargs:
        saved = replace(saved, env_kwargs={**(saved.env_kwargs or {}), **env_kwargs})
    if given is None and is_own(saved.env):
        raise SettingsError(named_by_a_file("env", saved.env))
    if given is not None and not same_env(given, saved.env):
        raise SettingsError(f"env is {given!r}, but the run was trained on {saved.env!r}")
    return replace(saved, vectorization="auto") if is_own(saved.vectorization) else saved


def named_by_a_file(name: str, value: str | Sequence[str], what: str = "run") -> str:
    """What is said where only a file of a run or comparison names code of the user's own."""
    words = value if isinstance(value, str) else " ".join(value)
    return (
        f"{name} of this {what} is {words!r}, code that is not this package's; name it again if you trust it: "
        f"{option_of(name, value)}"
    )


def option_of(name: str, value: str | Sequence[str]) -> str:
    """A setting as it is typed."""
    return f"{flag(name)} {shlex.join([value] if isinstance(value, str) else value)}"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python, of relax_rl, and of those packages that are installed.

    Args:
        packages: names of distributions.
    """
    from relax_rl import __version__

    found = {"python": platform.python_version(), "relax_rl": __version__}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
