"""Who is compared: contestants from the command line, and their settings from text."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from relax_rl.comparison.peers import ALGORITHMS
from relax_rl.errors import SettingsError, did_you_mean
from relax_rl.settings.config import ESTIMATORS, TrainConfig
from relax_rl.settings.fields import allowed, from_text, settings_of
from relax_rl.settings.naming import instead_of_path
from relax_rl.settings.synonyms import meant

__all__ = [
    "GOVERNED",
    "Contestant",
    "file_names",
    "parse_settings",
    "read_contestant",
    "read_contestants",
    "read_peer",
    "safe_name",
]

_LONGEST, _KEPT = 200, 80
"""Characters that a file name has room for beside what is put to it, and those that are kept of a longer one."""

_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*(?::|$)")
"""How a contestant of an estimator of the user's own begins, behind its label."""

GOVERNED = {
    "env": "--env",
    "estimator": "--estimators",
    "seed": "--seeds and --first-seed",
    "total_steps": "--total-steps",
    "stop_at_return": "--stop-when-solved and --threshold",
    "stop_at_step": "--tune-rungs",
    "run_dir": "--run-dir",
    "resume": "--resume",
    "quiet": "--quiet",
}
"""Settings of a run that the comparison gives, and by which option."""


@dataclass(frozen=True)
class Contestant:
    """One of those that are compared.

    Attributes:
        label: its name in tables and figures.
        kind: an estimator (`module:name` of the user's own), or the name of a peer.
        settings: by name, over those of the environment's preset (of the published ones for a peer).
        pinned: names among them that tuning leaves alone.
        peer: whether it is of another library.
    """

    label: str
    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    pinned: frozenset[str] = frozenset()
    peer: bool = False


def read_contestants(estimators: Sequence[str], peers: Sequence[str], common: Sequence[str]) -> list[Contestant]:
    """All contestants, estimators first.

    Args:
        estimators: such as "relax" or "best=relax:surrogate_steps=4".
        peers: such as "sb3-ppo" or "ppo=sb3-ppo:n_steps=256".
        common: `name=value` settings of all estimators; a contestant's own win.

    Raises:
        SettingsError: an unknown estimator, peer or setting, a value that a setting cannot have, or two equal labels.
    """
    shared = parse_settings(common)
    found = [read_contestant(text, shared) for text in estimators]
    found += [read_peer(text) for text in peers]
    labels = [contestant.label for contestant in found]
    for label in labels:
        if labels.count(label) > 1:
            raise SettingsError(f"two contestants are called {label!r}; give them labels, as in best=relax")
    return found


def read_contestant(text: str, common: Mapping[str, Any] | None = None) -> Contestant:
    """One contestant from `[LABEL=]ESTIMATOR[:name=value,...]`; an estimator of the user's own is `module:name`.

    Raises:
        SettingsError: an unknown estimator or setting, or a value that a setting cannot have.
    """
    label, estimator, assignments = _parts(text, ("auto", *ESTIMATORS), "estimator")
    try:
        settings = {**(common or {}), **parse_settings(assignments)}
    except SettingsError as error:
        raise SettingsError(f"contestant {label!r}: {error}") from None
    return Contestant(label, estimator, settings, frozenset(settings))


def read_peer(text: str) -> Contestant:
    """A peer from `[LABEL=]PEER[:name=value,...]`; names and values are those of its own library, in JSON or as plain text.

    Raises:
        SettingsError: an unknown peer, or a text that is not of this form.
    """
    label, kind, assignments = _parts(text, tuple(ALGORITHMS), "peer")
    settings = {}
    for assignment in assignments:
        name, equals, value = (part.strip() for part in assignment.partition("="))
        if not (name and equals and value) or name in settings:
            why = "is there twice" if name in settings else "is not of the form name=value"
            raise SettingsError(
                f"contestant {label!r}: setting {assignment!r} {why}; expected {kind}:name=value,name=value"
            )
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return Contestant(label, kind, settings, frozenset(settings), peer=True)


def _parts(text: str, known: Sequence[str], what: str) -> tuple[str, str, list[str]]:
    """Label, kind and `name=value` texts of `[LABEL=]KIND[:name=value,...]`."""
    head, colon, tail = text.partition(":")
    label, equals, kind = head.rpartition("=")
    if what == "estimator" and kind not in known and _OWN.match(f"{kind}:{tail}"):
        name, colon, tail = tail.partition(":")
        kind = f"{kind}:{name}"
    elif kind not in known:
        near = did_you_mean(kind, known)
        if what == "estimator":
            near = f", or module:name of your own{instead_of_path(f'{kind}:{tail}') or near}"
        raise SettingsError(f"unknown {what} {kind!r}, expected one of {', '.join(known)}{near}")
    if equals and not label:
        raise SettingsError(f"contestant {text!r} is not of the form [LABEL=]{what.upper()}[:name=value,...]")
    return label or text, kind, tail.split(",") if colon else []


def parse_settings(assignments: Iterable[str]) -> dict[str, Any]:
    """Settings of a run by name from `name=value` texts; widths are written 64x64.

    Raises:
        SettingsError: an unknown name, one that the comparison itself gives, or a value that it cannot have.
    """
    settings: dict[str, Any] = {}
    known = settings_of(TrainConfig)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals:
            raise SettingsError(f"setting {assignment!r} is not of the form name=value")
        if name in GOVERNED:
            raise SettingsError(f"{name} cannot be set for a contestant; use {GOVERNED[name]}")
        if name not in known:
            raise SettingsError(f"unknown setting {name!r}{meant(name, known)}")
        try:
            value = from_text(known[name].kind, text.strip())
        except ValueError as error:
            raise SettingsError(f"{name} is {text.strip()!r}, expected {error}") from None
        settings[name] = allowed(known[name], value)  # whether they go together is seen once all of a run's are there
    return settings


def safe_name(*texts: str) -> str:
    """The texts as part of a file name; of what no file name can hold, the beginning and a hash of the whole."""
    name = "-".join(re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.") or "-" for text in texts)
    return name if len(name) <= _LONGEST else _hashed(name, texts)


def file_names(every: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """A name for each, no two of which are equal: `safe_name`, and a hash where one before it has that already."""
    found: dict[tuple[str, ...], str] = {}
    for texts in dict.fromkeys(every):
        name = safe_name(*texts)
        found[texts] = _hashed(name, texts) if name in found.values() else name
    return found


def _hashed(name: str, texts: Sequence[str]) -> str:
    return f"{name[:_KEPT]}-{hashlib.sha256(chr(0).join(texts).encode()).hexdigest()[:12]}"
