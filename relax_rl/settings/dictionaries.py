"""Settings that are dictionaries: those of somebody else's code, of which nothing but JSON is known."""

from __future__ import annotations

import json
from typing import Any

from relax_rl.errors import SettingsError

__all__ = ["pairs", "plain"]


def pairs(text: str) -> dict[str, Any]:
    """`name=value`, or a JSON object, as a dictionary; a value that is no JSON is True, False, None, or a text.

    Raises:
        ValueError: it is neither.
    """
    if text.lstrip().startswith("{"):
        return dict(json.loads(text))
    name, equals, value = text.partition("=")
    if not (equals and name.strip()):
        raise ValueError(text)
    python = {"True": True, "False": False, "None": None}
    try:
        return {name.strip(): python[value] if value in python else json.loads(value)}
    except ValueError:
        return {name.strip(): value}


def plain(name: str, value: Any) -> dict[str, Any]:
    """A dictionary, or several as one, of what JSON has words for.

    Raises:
        SettingsError: it is something else.
    """
    parts = value if isinstance(value, (list, tuple)) else [value]
    try:
        found = {key: each for part in parts for key, each in dict(part).items()}
        if not all(isinstance(key, str) for key in found):
            raise TypeError
        return dict(json.loads(json.dumps(found, allow_nan=False)))
    except (TypeError, ValueError, RecursionError):
        raise SettingsError(
            f"{name} is {str(value)[:80]}, expected a dictionary of values that JSON has words for"
        ) from None
