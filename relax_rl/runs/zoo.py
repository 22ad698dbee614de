"""Trained agents ready for use: a zoo is a folder, or the address of one, with a manifest and a thin run for each agent.

A run of a zoo holds `config.json`, one checkpoint without optimisers, `evaluation.json` and a card. The manifest has checksums
of the first three, which are all that is read here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, fields
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from relax_rl.compute.serialization import read_regular, write_bytes_atomic, writing
from relax_rl.errors import CheckpointError, SettingsError, did_you_mean, shown
from relax_rl.runs.checkpoints import newest_first
from relax_rl.runs.folder import RunFolder
from relax_rl.runs.record import object_in, read_config

if TYPE_CHECKING:
    from relax_rl.agents import ActorCritic

__all__ = [
    "MANIFEST",
    "OWN_ZOO",
    "PREFIX",
    "VARIABLE",
    "ZooAgent",
    "digest",
    "fetch_agent",
    "load_zoo",
    "run_of",
    "zoo_agents",
]

MANIFEST = "manifest.json"
VARIABLE = "RELAX_RL_ZOO"
"""The variable of the environment that names another zoo."""
OWN_ZOO = Path(__file__).parent.parent / "zoo"
"""The small agents that come with the package."""
PREFIX = "zoo:"
"""What a command takes in place of a run's folder begins so where an agent of the zoo is meant."""
_FETCHED = Path("runs") / "zoo"
_VERSION = 1
_MANIFEST_BYTES = 2**20
_AGENT_BYTES = 2**28
_TIMEOUT = 30.0
_PLACE = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ZooAgent:
    """What the manifest tells of an agent."""

    name: str
    """What it is asked for by, such as `CartPole-v1`."""
    env: str
    """Gymnasium id."""
    estimator: str
    """By which it was trained."""
    file: str
    """Its checkpoint, from the folder of the manifest."""
    sha256: str
    """Of that file, 64 hexadecimal digits."""
    bytes: int
    """Of that file."""
    config: str
    """`config.json` of its run, from the folder of the manifest."""
    config_sha256: str
    """Of that file."""
    evaluation: str
    """`evaluation.json` of its run, from the folder of the manifest."""
    evaluation_sha256: str
    """Of that file."""
    return_mean: float
    """Mean raw return of the evaluation."""
    return_std: float
    """Their standard deviation (divisor N)."""
    episodes: int
    """Of the evaluation."""
    deterministic: bool
    """Whether the most likely actions were taken in it, or samples."""
    seed: int
    """Of the training."""
    steps: int
    """Environment steps that it has learned from."""
    commit: str
    """Of this package, that trained it."""
    licence: str
    """Of the weights, by its SPDX name."""


def load_zoo(name: str, *, source: str | os.PathLike[str] | None = None, device: str = "cpu") -> ActorCritic:
    """A trained agent, to act, or to learn on with fresh optimisers: `load_zoo("CartPole-v1")`.

    Args:
        name: what `zoo_agents(source)` knows it by.
        source: folder or http(s) address of a zoo (default: what the variable RELAX_RL_ZOO names, else the agents that come with
            the package).
        device: where the networks go.

    Returns:
        The agent, of the kind that was trained.

    Raises:
        SettingsError: there is no such agent; the message names those that there are.
        CheckpointError: the zoo cannot be read, or a file of it is not what its manifest says.
    """
    from relax_rl.agents import ActorCritic

    place = _source(source)
    found = _asked(name, place)
    content = _checked(place, found.file, found.sha256, found.bytes)
    return ActorCritic.load(BytesIO(content), device=device, optimizer=False)


def fetch_agent(
    name: str, folder: str | os.PathLike[str] | None = None, *, source: str | os.PathLike[str] | None = None
) -> Path:
    """Put an agent of a zoo into a run's folder, on which `evaluate`, `export`, `variance` and `push` work; returns the folder.

    Files that are there already and are those of the zoo are left alone, as is an evaluation that has been made since.

    Args:
        name, source: as for `load_zoo`.
        folder: of the run (default: `runs/zoo/NAME`).

    Raises:
        SettingsError: as `load_zoo`, or the folder holds another agent.
        CheckpointError: as `load_zoo`.
        RelaxRLError: the folder cannot be written.
    """
    place = _source(source)
    found = _asked(name, place)
    run = RunFolder(_FETCHED / name.replace("/", "-") if folder is None else Path(folder))
    checkpoint = run.checkpoints / Path(found.file).name
    others = {path.name for path in (*newest_first(run.checkpoints), run.best) if path.exists()}
    ours = _is_there(checkpoint, found.sha256) or _is_there(run.config, found.config_sha256)
    if others - {checkpoint.name} or run.progress.exists() or (not ours and object_in(run.config)):
        raise SettingsError(f"{run.path} holds another agent; remove or rename that folder, or choose another")
    for path, file, sha256, size in (
        (checkpoint, found.file, found.sha256, found.bytes),
        (run.config, found.config, found.config_sha256, None),
        (run.evaluation, found.evaluation, found.evaluation_sha256, None),
    ):
        if not _is_there(path, sha256) and not (path == run.evaluation and path.exists()):
            content = _checked(place, file, sha256, size)
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes_atomic(path, content)
    return run.path


def run_of(text: str) -> str:
    """The folder of a run, as a command's argument names it: itself, or that of an agent that `zoo:NAME` asks for."""
    return str(fetch_agent(text.removeprefix(PREFIX))) if text.startswith(PREFIX) else text


def env_of(text: str) -> str:
    """The environment of a run that a command's argument names, as `run_of` takes it; no agent is fetched for that.

    Raises:
        CheckpointError: there is no such run, or no zoo.
        SettingsError: the zoo has no such agent.
    """
    if text.startswith(PREFIX):
        return _asked(text.removeprefix(PREFIX), _source(None)).env
    return read_config(RunFolder(Path(text))).env.env


def zoo_agents(source: str | os.PathLike[str] | None = None) -> dict[str, ZooAgent]:
    """The agents of a zoo, by name.

    Args:
        source: as for `load_zoo`.

    Raises:
        CheckpointError: there is no manifest, or it cannot be read.
    """
    place = _source(source)
    try:
        content = json.loads(_content(place, MANIFEST, _MANIFEST_BYTES))
        if not isinstance(content, dict) or not isinstance(content.get("agents"), list):
            raise ValueError("it lists no agents")
        if content.get("version") != _VERSION:
            raise ValueError(f"its version is {shown(content.get('version'))}, expected {_VERSION}; update relax_rl")
        found = [_agent(entry) for entry in content["agents"]]
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{MANIFEST} of the zoo {place} cannot be read: {error}") from None
    return {each.name: each for each in found}


def digest(content: bytes) -> str:
    """SHA-256, as a manifest has it."""
    return hashlib.sha256(content).hexdigest()


def _source(source: str | os.PathLike[str] | None) -> str | Path:
    """The zoo that is meant: an address, or a folder."""
    text = os.fspath(source) if source is not None else os.environ.get(VARIABLE) or str(OWN_ZOO)
    scheme, found, _ = text.partition("://")
    if not found:
        return Path(text)
    if scheme.lower() not in ("http", "https"):
        raise SettingsError(
            f"the zoo is {text!r}, expected a folder or an address that begins with http:// or https://"
        )
    return text.rstrip("/")


def _asked(name: str, place: str | Path) -> ZooAgent:
    found = zoo_agents(place)
    if name not in found:
        raise SettingsError(
            f"the zoo {place} has no agent {name!r}, only {', '.join(sorted(found)) or 'none at all'}{did_you_mean(name, found)}"
        )
    return found[name]


def _agent(entry: Any) -> ZooAgent:
    """An entry of the manifest; raises ValueError for what cannot be one."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"{shown(entry)} is no agent")
    hints: dict[str, type] = get_type_hints(ZooAgent)
    given: dict[str, Any] = {}
    for each in fields(ZooAgent):
        kind, value = hints[each.name], entry.get(each.name)
        fits = isinstance(value, (int, float) if kind is float else kind) and (
            kind is bool or not isinstance(value, bool)
        )
        if not fits:
            raise ValueError(f"{each.name} of {shown(entry.get('name'))} is {shown(value)}, expected {kind.__name__}")
        given[each.name] = value
    found = ZooAgent(**given)
    for name in ("name", "file", "config", "evaluation"):
        if not _PLACE.fullmatch(given[name]):
            raise ValueError(f"{name} of {shown(found.name)} is {shown(given[name])}, expected a path within the zoo")
    if not 0 <= found.bytes <= _AGENT_BYTES:
        raise ValueError(f"bytes of {found.name} is {found.bytes:,}, expected at most {_AGENT_BYTES:,}")
    return found


def _is_there(path: Path, sha256: str) -> bool:
    try:
        return digest(read_regular(path, most=_AGENT_BYTES)) == sha256
    except OSError:
        return False


def _checked(place: str | Path, file: str, sha256: str, size: int | None) -> bytes:
    """A file of a zoo, if it is the one that the manifest tells of."""
    content = _content(place, file, _MANIFEST_BYTES if size is None else size)
    if digest(content) != sha256:
        raise CheckpointError(
            f"{file} of the zoo {place} is damaged: its SHA-256 is {digest(content)}, {MANIFEST} says {sha256}"
        )
    return content


def _content(place: str | Path, file: str, most: int) -> bytes:
    """A file of a zoo of at most so many bytes; nothing is read that a link within it leads to."""
    try:
        if isinstance(place, Path):
            for folder in Path(file).parents[:-1]:
                if (place / folder).is_symlink():
                    raise OSError(f"{folder} is a link")
            return read_regular(place / file, most=most)
        with urllib.request.urlopen(f"{place}/{urllib.parse.quote(file)}", timeout=_TIMEOUT) as answer:
            content: bytes = answer.read(most + 1)
        if len(content) > most:
            raise OSError(f"it has more than {most:,} bytes")
        return content
    except urllib.error.HTTPError as error:
        reason = f"{error.code} {error.reason}"
    except (OSError, HTTPException, ValueError) as error:
        found = getattr(error, "reason", error)
        reason = getattr(found, "strerror", None) or str(found)
    raise CheckpointError(f"{file} of the zoo {place} cannot be read: {reason}")
