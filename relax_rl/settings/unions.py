"""Types of settings: of one type or another, a number or nothing, a number or a word; what they are called."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

__all__ = ["in_words", "is_union", "member", "words"]


def is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)


def words(kind: Any) -> tuple[str, ...]:
    """The words among a union's values, such as `auto` in `int | Literal["auto"]`."""
    return tuple(word for part in get_args(kind) if get_origin(part) is Literal for word in get_args(part))


def member(kind: Any, value: Any) -> Any:
    """The type in a union that a value is meant for: None or a word if it is one, else the first that is neither."""
    parts = get_args(kind)
    if isinstance(value, str) and value in words(kind):
        return next(part for part in parts if value in get_args(part))
    if value is None and NoneType in parts:
        return NoneType
    others = (part for part in parts if part is not NoneType and get_origin(part) is not Literal)
    return next(others, parts[0])


def in_words(kind: Any) -> str:
    """What a type is called, or its choices: `a, b or c`."""
    if get_origin(kind) is not Literal:
        return str(getattr(kind, "__name__", kind))
    *rest, last = map(str, get_args(kind))
    return f"{', '.join(rest)} or {last}"
