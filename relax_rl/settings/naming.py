"""Code of the user's own, named on the command line as `module:name`."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from relax_rl.errors import SettingsError, did_you_mean

__all__ = [
    "find_here",
    "instead_of_path",
    "is_own",
    "name_of",
    "named",
    "require_call",
    "same_thing",
    "warn_of_namesakes",
]

_PARTIAL = "functools:partial"
"""What earlier versions called every partial."""


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
        told = f"{what} {text!r} cannot be imported ({type(error).__name__}: {line}){instead_of_path(text)}"
        raise SettingsError(told) from error
    if not name:
        raise SettingsError(f"{what} {text!r} names a module alone, expected {module}:NAME")
    if not hasattr(home, name):
        raise SettingsError(f"{what} {text!r}: {module} has no {name!r}{did_you_mean(name, dir(home))}")
    return getattr(home, name)


def instead_of_path(text: str) -> str:
    """`; did you mean module:name?`, where a path stands in the place of the module; else nothing."""
    module, _, name = text.partition(":")
    dotted = re.sub(r"[/\\]+", ".", module.removesuffix(".py")).strip(".")
    return "" if dotted == module else f"; did you mean {dotted}:{name}?"


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
    """`module:name` of a function or class; of a `functools.partial` with its arguments, of any other object with `(...)`.

    What a script defines is named as if the script were imported.
    """
    if isinstance(thing, partial):
        given = [_shown(x) for x in thing.args] + [f"{k}={_shown(x)}" for k, x in sorted(thing.keywords.items())]
        return f"{name_of(thing.func)}({', '.join(given)})"
    owner = getattr(thing, "__self__", None)
    if owner is not None and not isinstance(owner, type | ModuleType):  # a method, whose object is not told
        return f"{name_of(owner)}.{thing.__name__}"
    if not hasattr(thing, "__qualname__"):
        return f"{name_of(type(thing))}(...)"
    return f"{_importable(thing.__module__)}:{thing.__qualname__}"


def same_thing(saved: str | None, given: str | None) -> bool:
    """Whether a name that was written is that of what is given, as far as both tell.

    Earlier versions wrote no arguments of a `functools.partial`, no `(...)`, and `__main__` for a script.
    """
    if saved is None or given is None:
        return saved is given
    (module, _, name), (module_now, _, name_now) = saved.partition(":"), given.partition(":")
    if saved == _PARTIAL:
        return name_now.endswith(")")
    alike = module in (module_now, "__main__") or module_now.endswith(f".{module}")  # a script of a package
    return alike and name in (name_now, name_now.replace("(...)", ""))


def warn_of_namesakes(saved: str | None, given: str | None, what: str) -> None:
    """Warns where things that differ may have these names of `what`: lambdas, functions within functions, and objects."""
    if saved and given and ("<" in given or "..." in given or saved == _PARTIAL):
        warnings.warn(f"{what} {saved}, a name that others may have, too: give the very one", UserWarning, stacklevel=3)


def _shown(x: Any) -> str:
    """The same in any process, for what shows all that it is."""
    if isinstance(x, partial) or hasattr(x, "__qualname__"):
        return name_of(x)
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(x).split()))


def _importable(module: str | None) -> str:
    """The name of a module; of a script that runs, the one that it is imported by."""
    if module not in ("__main__", "__mp_main__"):
        return str(module)
    main = sys.modules["__main__"]
    spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    return str(spec.name) if spec is not None else Path(path).stem if path else "__main__"
