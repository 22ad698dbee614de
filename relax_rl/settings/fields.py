"""Settings as fields of frozen dataclasses: what a value may be stands with the field, and everything else reads it there.

    @dataclass(frozen=True, kw_only=True)
    class Config:
        lr: float = setting(1e-3, above=0.0, resumable=True)
        "Learning rate, in a docstring."
        def __post_init__(self) -> None:
            check(self)

The type is the annotation, the choices those of a `Literal`, the help the docstring beneath. A class may name settings of
earlier versions in `DROPPED`, each at the value that did nothing, what they did without one in `BEFORE`, help in `SECTIONS`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from relax_rl.errors import SettingsError, shown
from relax_rl.settings.dictionaries import pairs, plain
from relax_rl.settings.synonyms import flag, meant
from relax_rl.settings.unions import in_words, is_union, member

__all__ = [
    "Setting",
    "allowed",
    "check",
    "check_resumable",
    "flat",
    "from_json",
    "from_text",
    "of_the_call",
    "setting",
    "settings_of",
    "to_json",
    "whole",
    "with_settings",
]

T = TypeVar("T")

_RULE = "relax_rl"
_WHOLE = 2.0**53
"""Whole numbers beyond are no longer all floats, and no settings either."""


@dataclass(frozen=True)
class Rule:
    """What a setting may be: the arguments of `setting`."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    finite: bool = True
    fits: Callable[[Any], object] | None = None
    expected: str | None = None
    open: bool = False
    resumable: bool = False
    of_the_call: bool = False
    repeatable: bool = False
    cap: float = _WHOLE

    def allows(self, value: Any) -> bool:
        """Whether a value of the right type, or each entry of a tuple, lies within the bounds; NaN lies within none."""
        numbers = value if isinstance(value, tuple) else (value,)
        held = all(self._holds(number) for number in numbers if isinstance(number, (int, float)))
        return held and (value is None or self.fits is None or bool(self.fits(value)))

    def _holds(self, number: float) -> bool:
        return (
            (isinstance(number, int) or not (math.isnan(number) or (self.finite and math.isinf(number))))
            and (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
            and not self._is_beyond(number)
        )

    def _is_beyond(self, number: float) -> bool:
        return number > self.cap and (isinstance(number, int) or (self.cap < _WHOLE and math.isfinite(number)))

    def expectation(self, value: Any) -> str:
        """What is expected in place of a value that is not allowed, in words."""
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, (int, float)) and self._is_beyond(number) for number in numbers):
            return f"at most {int(self.cap):,}"
        endless = self.finite and self.most is self.below is None and {math.inf, -math.inf} & set(numbers)
        return f"{self}, and finite" if endless else str(self)

    def __str__(self) -> str:
        """What is expected, in words."""
        if self.expected is not None:
            return self.expected
        low = None if self.least is None else f"at least {self.least}"
        low = low if self.above is None else f"above {self.above:g}"
        high = None if self.most is None else f"at most {self.most}"
        high = high if self.below is None else f"below {self.below:g}"
        if self.least == 0 and high is None:
            return "0 or above"
        if self.least is not None and self.most is not None:
            return f"between {self.least:g} and {self.most:g}"
        return " and ".join(bound for bound in (low, high) if bound) or "a number"


def setting(default: T, **rule: Any) -> T:
    """A field with a default and what else it may be.

    Args:
        default: the plain default.
        rule: `least`, `above`, `most`, `below`: bounds of the number, or of each entry of a tuple; `cap`: what nobody means
            to exceed; `finite=False` where infinity is a value; `fits`: what else must hold of a value that is not None;
            `expected`: the bounds in other words; `open=True`: names beside the choices are taken too; `resumable=True`:
            may differ when a run is gone on with; `of_the_call=True`: not taken over from it; `repeatable=True`: adds up.
    """
    return field(default=default, metadata={_RULE: Rule(**rule)})


@dataclass(frozen=True)
class Setting:
    """A setting as its dataclass defines it.

    Attributes:
        name: of the field.
        kind: its annotation.
        default: the plain default.
        rule: what else it may be.
        section: the dataclass that it stands in.
    """

    name: str
    kind: Any
    default: Any
    rule: Rule
    section: type

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is MISSING


def _find_settings(kind: Any) -> dict[str, Setting]:
    hints = get_type_hints(kind)
    found: dict[str, Setting] = {}
    for f in fields(kind):
        of = hints[f.name]
        own = {f.name: Setting(f.name, of, f.default, f.metadata.get(_RULE, Rule()), kind)}
        found |= settings_of(of) if is_dataclass(of) else own
    return found


settings_of: Callable[[Any], Mapping[str, Setting]] = cache(_find_settings)
"""Every setting of a dataclass by name, those of its sections included."""


def check(config: Any) -> None:
    """Check every setting of a frozen dataclass, and give it its type: NumPy's numbers, lists and whole floats become
    Python's, tuples and ints. For `__post_init__`.

    Raises:
        SettingsError: a value of the wrong type, or beyond its bounds.
    """
    for name, known in settings_of(type(config)).items():
        if known.section is type(config):  # others have checked theirs
            object.__setattr__(config, name, allowed(known, getattr(config, name)))


def allowed(known: Setting, value: Any) -> Any:
    """A value that a setting may have, whatever the others are, with its type.

    Raises:
        SettingsError: it is of another type, or beyond the setting's bounds.
    """
    value = _typed(known.name, known.kind, value, known.rule)
    if not known.rule.allows(value):
        raise SettingsError(f"{known.name} is {shown(value)}, expected {known.rule.expectation(value)}")
    return value


def from_text(kind: Any, text: str) -> Any:
    """The value of a type that a text stands for, such as `1e-3`, `true`, `64x64` or `None`; `1e6` is a whole number.

    Raises:
        ValueError: it stands for none; the message says what is expected.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if is_union(kind):
        of = member(kind, None if text == "None" else text)
        return None if of is NoneType else from_text(of, text)
    if origin is Literal and text not in inner:
        raise ValueError(f"one of {', '.join(map(str, inner))}")
    try:
        if origin is dict:
            return pairs(text)
        if origin is tuple:
            return tuple(from_text(inner[0], part) for part in text.split("x" if inner[0] is int else "+"))
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is int and not text.lstrip("+-").isdigit() and float(text).is_integer():
            return int(float(text))
        return text if origin is Literal else kind(text)
    except (ValueError, KeyError, OverflowError):
        expected = {bool: "true or false", int: "a whole number", float: "a number", dict: "name=value, or JSON"}
        raise ValueError(
            expected.get(origin or kind, "widths such as 64x64" if int in inner else "names joined by +")
        ) from None


def whole(name: str, value: Any, *, least: int, below: int = 2**63) -> int:
    """An argument that is a whole number, of Python, NumPy or torch, `1e6` among them.

    Raises:
        SettingsError: it is something else, or beyond its bounds.
    """
    rule = Rule(least=least, below=below, cap=below)
    number: int = _typed(name, int, value, rule)
    if not rule.allows(number):
        raise SettingsError(f"{name} is {shown(number)}, expected a whole number from {least} to {below - 1}")
    return number


def to_json(config: Any) -> dict[str, Any]:
    """All settings by name; sections are dictionaries of their own."""
    return asdict(config)


def from_json(kind: type[T], saved: Any) -> T:
    """The settings that `to_json` gave, after a way through JSON; those that are missing are as `BEFORE` or by default.

    Raises:
        SettingsError: no such settings, an unknown one, one that has been dropped at a value that did something, or a
            value that it cannot have.
    """
    if not isinstance(saved, dict):
        raise SettingsError("the settings are not a JSON object")
    hints = get_type_hints(kind)
    known, dropped = {f.name for f in fields(kind)}, getattr(kind, "DROPPED", {})  # type: ignore[arg-type]
    values = dict(getattr(kind, "BEFORE", {}))
    for name, value in saved.items():
        if name in known:
            values[name] = from_json(hints[name], value) if is_dataclass(hints[name]) else value
        elif name not in dropped:
            raise SettingsError(f"unknown setting {shown(name)}")
        elif value != dropped[name] and str(value) != str(dropped[name]):
            raise SettingsError(
                f"{name} is {shown(value)}, but this relax_rl no longer has that setting and takes only runs with "
                f"{dropped[name]!r}; use the version that made the run"
            )
    return kind(**values)


def with_settings(config: T, settings: Mapping[str, Any]) -> T:
    """A copy with settings replaced by name, whichever section they stand in.

    Raises:
        SettingsError: an unknown name, or a value that a setting cannot have.
    """
    known = flat(config)
    for name in settings:
        if name not in known:
            raise SettingsError(f"unknown setting {shown(name)}{meant(name, known)}")
    return _replaced(config, settings)


def flat(config: Any) -> dict[str, Any]:
    """Every setting by name, whichever section it stands in."""
    found: dict[str, Any] = {}
    for name, value in ((f.name, getattr(config, f.name)) for f in fields(config)):
        found |= flat(value) if is_dataclass(value) else {name: value}
    return found


def of_the_call(config: Any) -> dict[str, Any]:
    """Settings that belong to one call, at their plain defaults: what a resumed run does not take over."""
    return {name: known.default for name, known in settings_of(type(config)).items() if known.rule.of_the_call}


def check_resumable(saved: T, wanted: T, *, what: str = "run to resume") -> T:
    """Refuse a resumption with settings that would make it another run; returns those to go on with.

    Args:
        saved: the settings of the run.
        wanted: those to go on with.
        what: is gone on with; its first word says what else to start.

    Raises:
        SettingsError: a setting differs that is not resumable.
    """
    before, after, rules = flat(saved), flat(wanted), {name: s.rule for name, s in settings_of(type(saved)).items()}
    may_change = ", ".join(sorted(flag(name) for name, rule in rules.items() if rule.resumable))
    for name, rule in rules.items():
        if before[name] != after[name] and not rule.resumable and not rule.of_the_call:
            raise SettingsError(
                f"{flag(name)} is {shown(after[name])}, but the {what} has {shown(before[name])}, and only {may_change} may "
                f"change; start a new {what.split()[0]} instead"
            )
    return wanted


def _replaced(config: T, settings: Mapping[str, Any]) -> T:
    own: dict[str, Any] = {}
    for name, value in ((f.name, getattr(config, f.name)) for f in fields(config)):  # type: ignore[arg-type]
        if is_dataclass(value):
            inner = {each: settings[each] for each in flat(value) if each in settings}
            own |= {name: _replaced(value, inner)} if inner else {}
        elif name in settings:
            own[name] = settings[name]
    return replace(config, **own)  # type: ignore[type-var]


def _typed(name: str, kind: Any, value: Any, rule: Rule) -> Any:
    """A value as its definition has it.

    Raises:
        SettingsError: it is of another type.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a number of NumPy or torch
        value = value.item()
    elif getattr(value, "shape", ()):
        raise SettingsError(f"{name} is an array of shape {tuple(value.shape)}, expected {in_words(kind)}")
    if is_union(kind):
        of = member(kind, value)
        return None if of is NoneType else _typed(name, of, value, rule)
    if origin is dict or (origin is tuple and isinstance(value, (list, tuple))):
        return plain(name, value) if origin is dict else tuple(_typed(name, inner[0], part, rule) for part in value)
    if origin is Literal:
        if value in inner or (rule.open and isinstance(value, str)):
            return value
        raise SettingsError(f"{name} is {shown(value)}, expected {in_words(kind)}")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int and number and value == value // 1:
        return int(value)
    if kind is float and (number or value in ("inf", "-inf", "nan")):  # JSON has no words for these
        try:
            return float(value)
        except OverflowError:
            raise SettingsError(f"{name} is {shown(value)}, expected {rule}") from None
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if kind in (bool, str) and isinstance(value, kind):
        return value
    raise SettingsError(f"{name} is {shown(value)}, expected {in_words(kind)}")
