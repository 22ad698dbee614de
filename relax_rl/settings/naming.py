"""Code of the user's own, named on the command line as `module:name`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from typing import Any

from relax_rl.errors import SettingsError, did_you_mean

__all__ = ["find_here", "is_own", "name_of", "named", "require_call"]


def is_own(setting: str | Sequence[str] | None) -> bool:
    """Whether a setting, of one name or of several, names code of the user's own."""
    return any(":" in text for text in ((setting,) if isinstance(setting, str) else setting or ()))


def named(text: str, what: str) -> Any:
    """What `module:name` names; modules of the working folder are found too.

    Code that only a file names is not to be given here: a user has to name it.

    Args:
        text: the name.
        what: it is to be, for messages.

    Raises:
        SettingsError: there is no such module or name, or the module cannot be imported.
    """
    module, _, name = text.partition(":")
    find_here()
    try:
        home = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever a module of somebody's own does when it is imported
        line = (str(error).splitlines() or [""])[0]
        raise SettingsError(f"{what} {text!r} cannot be imported ({type(error).__name__}: {line})") from error
    if not hasattr(home, name):
        raise SettingsError(f"{what} {text!r}: {module} has no {name!r}{did_you_mean(name, dir(home))}")
    return getattr(home, name)


def find_here() -> None:
    """Have modules of the working folder found, wherever the launcher lies."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def require_call(thing: Any, what: str, *args: Any, **kwargs: Any) -> None:
    """Raises SettingsError unless a thing of the user's own can be called like this."""
    try:
        inspect.signature(thing).bind(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{what} {name_of(thing)} cannot be called as it has to be: {error}") from None


def name_of(thing: Any) -> str:
    """`module:name` of a function or class."""
    return f"{thing.__module__}:{getattr(thing, '__qualname__', type(thing).__qualname__)}"
