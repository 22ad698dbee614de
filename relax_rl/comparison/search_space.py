"""What tuning varies, as data: the same ranges for every contestant that has the setting, under the names each library gives it.

The ranges stand in `search_space.json`; `--tune-space` takes another file of that form.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relax_rl.comparison.contestants import GOVERNED, Contestant
from relax_rl.comparison.peers import ALGORITHMS, defaults_of
from relax_rl.compute.serialization import read_regular
from relax_rl.errors import SettingsError, shown
from relax_rl.runs.record import OWN
from relax_rl.settings.config import ESTIMATORS, TrainConfig
from relax_rl.settings.fields import Setting, from_text, settings_of
from relax_rl.settings.synonyms import meant

__all__ = [
    "PUBLISHED",
    "Dimension",
    "SearchSpace",
    "check_peers",
    "dimensions",
    "read_space",
    "read_starts",
    "searched_values",
]

PUBLISHED = Path(__file__).with_name("search_space.json")

_INFINITE = "inf"
_LARGEST = 2**20
"""Bytes of a file that is read."""
_KEYS = ("name", "own", *ALGORITHMS, "estimators", "low", "high", "scale", "whole", "one_minus", "choices")
_SCALES = ("linear", "log")
_KINDS = (*ESTIMATORS, "auto", *ALGORITHMS)


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A setting that is tuned, in a range or among choices.

    Attributes:
        name: under which it is searched and recorded.
        own: its name in this package, where it has one.
        peers: its name in other libraries, by the name of the peer.
        estimators: those of this package that read it.
        low, high: bounds of what is searched, both included.
        log: whether the logarithm is uniform.
        whole: whether only whole numbers are taken.
        one_minus: whether what is searched is one minus the setting.
        choices: numbers, words, booleans or lists to choose from, instead of bounds; infinity is the word inf.
    """

    name: str
    own: str | None = None
    peers: Mapping[str, str] = field(default_factory=dict)
    estimators: tuple[str, ...] | None = None
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    one_minus: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def categories(self) -> tuple[Any, ...]:
        """The choices as they are searched and recorded: lists as texts."""
        return tuple(_text(choice) if isinstance(choice, list) else choice for choice in self.choices)

    def setting(self, value: Any) -> Any:
        """The setting from a value that was searched."""
        if self.choices:
            choice = self.choices[self.categories.index(value)]
            return list(choice) if isinstance(choice, list) else choice
        return 1.0 - value if self.one_minus else value

    def searched(self, setting: Any) -> Any:
        """The value to search near for a setting, moved into the range; None where there is no such value."""
        number = isinstance(setting, (int, float)) and not isinstance(setting, bool)
        if self.choices:
            given = list(setting) if isinstance(setting, tuple) else _INFINITE if setting == math.inf else setting
            same = [at for at, choice in enumerate(self.choices) if type(choice) is type(given) and choice == given]
            numbers = [choice for choice in self.choices if choice != _INFINITE]
            finite = numbers and all(isinstance(choice, (int, float)) for choice in numbers)
            if not same and number and finite and math.isfinite(setting):
                return min(numbers, key=lambda choice: abs(choice - setting))
            return self.categories[same[0]] if same else None
        if not number or not math.isfinite(setting):
            return None
        value = min(self.high, max(self.low, 1.0 - setting if self.one_minus else setting))
        return round(value) if self.whole else float(value)

    def takes(self, value: Any) -> bool:
        """Whether it is one of the values that are searched."""
        if self.choices:
            return any(type(value) is type(known) and value == known for known in self.categories)
        return _is_number(value) and self.low <= value <= self.high and not (self.whole and value != int(value))

    def for_kind(self, kind: str) -> str | None:
        """Its name for a contestant of that kind, or None if that has no such setting."""
        if kind in ALGORITHMS:
            return self.peers.get(kind)
        return self.own if self.estimators is None or kind in (*self.estimators, "auto") else None


SearchSpace = tuple[Dimension, ...]


def read_space(path: Path = PUBLISHED) -> SearchSpace:
    """The search space in a JSON file.

    Args:
        path: of an object with `settings`, a list of objects: `own` names a setting of `train`, `sb3-a2c`, `sb3-ppo` and
            `sb3-sac` arguments of these peers; `low` and `high` with `scale` ("linear" or "log"), `whole` and `one_minus`, or
            `choices`; `estimators` that alone have it, and the `name` in tables (default: `own`).

    Raises:
        SettingsError: the file cannot be read, or an entry names no setting, or values that the setting cannot have.
    """
    entries = _objects(path, "settings")
    if not entries:
        raise _no_such_form(path, "settings")
    try:
        space = tuple(map(_dimension, entries))
        for named in [[d.name for d in space], *([d.for_kind(kind) or "" for d in space] for kind in _KINDS)]:
            twice = [name for name in named if name and named.count(name) > 1]
            if twice:
                raise SettingsError(f"{twice[0]} stands there twice, expected each setting once")
    except SettingsError as error:
        raise SettingsError(f"tune_space {path}: {error}") from None
    return space


def read_starts(path: Path, space: SearchSpace) -> tuple[dict[str, Any], ...]:
    """Points that a search begins with: `starts` beside `settings`, a list of objects of values by the names that are searched.

    What a point leaves out is proposed; what a contestant does not have is left out for it.

    Args:
        path: of the file.
        space: that it holds.

    Raises:
        SettingsError: the file cannot be read, or a point has a name or a value that is not searched.
    """
    known = {d.name: d for d in space}

    def value_of(name: str, value: Any) -> Any:
        if name not in known:
            raise SettingsError(f"tune_space {path}: a start has {name!r}, which is not searched{meant(name, known)}")
        value = _text(value) if isinstance(value, list) else value
        if not known[name].takes(value):
            raise SettingsError(
                f"tune_space {path}: a start has {name} {shown(value)}, expected {_within(known[name])}"
            )
        return value if known[name].choices or known[name].whole else float(value)

    return tuple({name: value_of(name, value) for name, value in point.items()} for point in _objects(path, "starts"))


def _within(dimension: Dimension) -> str:
    if dimension.choices:
        return f"one of {', '.join(map(str, dimension.categories))}"
    return f"{'whole numbers' if dimension.whole else 'numbers'} from {dimension.low:g} to {dimension.high:g}"


def _objects(path: Path, name: str) -> list[dict[str, Any]]:
    """A list of objects in a JSON file; empty where it is not there."""
    try:
        found = json.loads(read_regular(path.resolve(), most=_LARGEST).decode("utf-8"))
    except OSError as error:
        raise SettingsError(f"tune_space {path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"tune_space {path} is no JSON: {error}") from None
    entries = found.get(name, []) if isinstance(found, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _no_such_form(path, name)
    return entries


def _no_such_form(path: Path, name: str) -> SettingsError:
    return SettingsError(f'tune_space {path} is not of the form {{"{name}": [{{...}}, ...]}}')


def dimensions(contestant: Contestant, space: SearchSpace | None = None) -> dict[str, Dimension]:
    """What is tuned for a contestant, by the name of its setting; what was set for it by hand is left alone."""
    space = read_space() if space is None else space
    found = ((dimension.for_kind(contestant.kind), dimension) for dimension in space)
    return {name: dimension for name, dimension in found if name is not None and name not in contestant.pinned}


def searched_values(settings: Mapping[str, Any], space: Mapping[str, Dimension]) -> dict[str, Any] | None:
    """The point of the search space at some settings, or None if one of them is not known, or has no place in it."""
    if any(name not in settings for name in space):
        return None
    found = {dimension.name: dimension.searched(settings[name]) for name, dimension in space.items()}
    return None if any(value is None for value in found.values()) else found


def check_peers(contestants: Sequence[Contestant], space: SearchSpace) -> None:
    """Raises SettingsError if a peer among the contestants has no argument that the space names for it, or none that may be infinite."""
    for kind in {contestant.kind for contestant in contestants if contestant.peer}:
        named = {name: dimension for dimension in space if (name := dimension.peers.get(kind)) is not None}
        endless = next((name for name in named if _INFINITE in named[name].choices), None)
        if endless is not None:
            raise SettingsError(f"{endless} of {kind} has the choice inf, which is for this package's settings alone")
        for name, default in defaults_of(kind, list(named)).items():
            whole = isinstance(default, int) and not isinstance(default, bool)
            if whole and not named[name].choices and not named[name].whole:
                raise SettingsError(f"{name} of {kind} takes whole numbers; expected whole beside low and high")


def _dimension(entry: Mapping[str, Any]) -> Dimension:
    unknown = next((key for key in entry if key not in _KEYS), None)
    if unknown is not None:
        raise SettingsError(f"unknown entry {unknown!r}, expected some of {', '.join(_KEYS)}")
    peers = {kind: entry[kind] for kind in ALGORITHMS if kind in entry}
    texts = {"name": entry.get("name", entry.get("own")), "own": entry.get("own", ""), **peers}
    if texts["name"] is None:
        raise SettingsError(
            f"the entry of {', '.join(map(str, peers.values())) or 'nothing'} has no name, expected one beside what is not own"
        )
    wrong = next((key for key, value in texts.items() if not isinstance(value, str)), None)
    if wrong is not None:
        raise SettingsError(f"{wrong} is {shown(texts[wrong])}, expected a name")
    name, own = texts["name"], texts["own"] or None
    known = _own_setting(own) if own is not None else None
    if known is None and not peers:
        raise SettingsError(f"{name} names no setting, expected own, or any of {', '.join(ALGORITHMS)}")
    estimators = entry.get("estimators")
    if estimators is not None and not (isinstance(estimators, list) and set(map(str, estimators)) <= set(ESTIMATORS)):
        raise SettingsError(f"{name}: estimators is {shown(estimators)}, expected some of {', '.join(ESTIMATORS)}")
    found = Dimension(
        name=name,
        own=own,
        peers=peers,
        estimators=None if estimators is None else tuple(estimators),
        **(_choices(name, entry) if "choices" in entry else _range(name, entry)),
    )
    if known is not None and known.kind is int and not (found.choices or found.whole):
        raise SettingsError(f"{own} takes whole numbers; expected whole beside low and high")
    if known is not None:
        for value in found.choices or (found.low, found.high):
            _check_value(known, found.setting(_text(value) if isinstance(value, list) else value))
    return found


def _own_setting(name: str) -> Setting:
    """A setting of `train` that may be searched."""
    known = settings_of(TrainConfig)
    if name not in known:
        raise SettingsError(f"unknown setting {name!r}{meant(name, known)}")
    if name in GOVERNED or name in OWN or known[name].rule.of_the_call:  # a file of a folder names no code
        raise SettingsError(f"{name} is no setting of an agent, which alone are searched")
    return known[name]


def _choices(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    choices = entry["choices"]
    if not isinstance(choices, list) or not choices or not all(map(_is_choice, choices)):
        raise SettingsError(
            f"{name}: choices is {shown(choices)}, expected a list of numbers, words, booleans or lists"
        )
    beside = next((key for key in ("low", "high", "scale", "whole", "one_minus") if key in entry), None)
    if beside is not None:
        raise SettingsError(f"{name} has choices and {beside}, expected choices alone")
    twice = [choice for choice in choices if choices.count(choice) > 1]
    if twice:
        raise SettingsError(f"{name} has the choice {shown(twice[0])} twice, expected each once")
    return {"choices": tuple(choices)}


def _range(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    bounds: list[Any] = [entry.get("low"), entry.get("high")]
    if not all(map(_is_number, bounds)) or not bounds[0] < bounds[1]:
        raise SettingsError(f"{name}: low and high are {bounds[0]!r} and {bounds[1]!r}, expected two rising numbers")
    scale, flags = entry.get("scale", "linear"), {key: entry.get(key, False) for key in ("whole", "one_minus")}
    if scale not in _SCALES:
        raise SettingsError(f"{name}: scale is {shown(scale)}, expected {' or '.join(_SCALES)}")
    if scale == "log" and bounds[0] <= 0:
        raise SettingsError(f"{name}: low is {bounds[0]!r}, expected a number above 0 on the scale log")
    wrong = next((key for key, value in flags.items() if not isinstance(value, bool)), None)
    if wrong is not None:
        raise SettingsError(f"{name}: {wrong} is {shown(flags[wrong])}, expected true or false")
    if flags["whole"] and not all(bound == int(bound) for bound in bounds):
        raise SettingsError(f"{name}: low and high are {bounds[0]!r} and {bounds[1]!r}, expected whole numbers")
    return {"low": bounds[0], "high": bounds[1], "log": scale == "log", **flags}


def _check_value(known: Setting, value: Any) -> None:
    """Refuse a value that the setting cannot have by itself."""
    try:
        typed = from_text(known.kind, _text(value))
    except ValueError as error:
        raise SettingsError(f"{known.name} is {shown(value)}, expected {error}") from None
    if not known.rule.allows(typed):
        raise SettingsError(f"{known.name} is {shown(value)}, expected {known.rule.expectation(typed)}")


def _text(value: Any) -> str:
    """A value as it stands on the command line."""
    if isinstance(value, list):
        return ("x" if all(map(_is_number, value)) else "+").join(map(str, value))
    return str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _is_choice(value: Any) -> bool:
    inner = value if isinstance(value, list) else [value]
    return bool(inner) and all(isinstance(each, (str, bool)) or _is_number(each) for each in inner)
