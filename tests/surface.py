"""What users of the package can see: options, public names and signatures, as plain data that can be compared."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from relax_rl import ActorCritic
from relax_rl.cli import COMMANDS, main

__all__ = [
    "AGENT_METHODS",
    "MODULES",
    "OF_ENVS",
    "named_in_reference",
    "options",
    "parameters",
    "public_names",
    "signatures",
    "surface",
]

MODULES = ("relax_rl", "relax_rl.agents", "relax_rl.critics", "relax_rl.distributions", "relax_rl.estimators")
"""Modules whose `__all__` is what users import from."""

OF_ENVS = ["Episode", "Step", "VectorEnvs", "make_envs"]
"""Public names of `relax_rl.envs`."""

AGENT_METHODS = ("act", "join", "learn", "load", "load_state_dict", "predict", "save", "state_dict", "update")
"""What users call of an agent; its other methods are its own."""

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
_ENTRY = re.compile(r"^::: ([\w.]+)\n((?: .*\n)*)", re.MULTILINE)
_OPTION = re.compile(r"--[a-z][a-z0-9-]*")


def options(command: str) -> list[str]:
    """The options in the help of a command, sorted, without `--help`."""
    told = io.StringIO()
    with mock.patch.dict(os.environ, {"COLUMNS": "200"}), contextlib.redirect_stdout(told):
        assert main([command, "--help"]) == 0
    rows = (line.strip("│| ") for line in told.getvalue().splitlines())
    found = {name for row in rows if row.startswith("--") for name in _OPTION.findall(row.partition("  ")[0])}
    return sorted(found - {"--help"})


def public_names() -> dict[str, list[str]]:
    """Public names by module."""
    return {module: sorted(import_module(module).__all__) for module in MODULES}


def named_in_reference() -> dict[str, list[tuple[str, str]]]:
    """Names that pages of the reference tell of, each with the module it is asked of there, by page."""
    found: dict[str, list[tuple[str, str]]] = {}
    for page in sorted(REFERENCE.glob("*.md")):
        names = found.setdefault(page.name, [])
        for whole, options in _ENTRY.findall(page.read_text(encoding="utf-8")):
            listed = re.search(r"(?<!_)members:\s*\[([^\]]*)\]", options)
            try:
                each = re.split(r",\s*", listed[1]) if listed else import_module(whole).__all__
                names += [(whole, name) for name in each if import_module(whole)]
            except ModuleNotFoundError:  # a name of a module
                module, _, name = whole.rpartition(".")
                names.append((module, name))
    return found


def signatures() -> dict[str, list[str]]:
    """Parameters of public functions, classes and methods, one string each; see `parameters`."""
    found: dict[str, list[str]] = {}
    seen: set[int] = set()
    for module, names in {**public_names(), "relax_rl.envs": OF_ENVS}.items():
        for name in names:
            thing = getattr(import_module(module), name)
            if not callable(thing) or id(thing) in seen:
                continue
            seen.add(id(thing))
            if inspect.isroutine(thing) or (inspect.isclass(thing) and not getattr(thing, "_is_protocol", False)):
                found[f"{module}.{name}"] = parameters(thing)
            for method in _methods(thing):
                found[f"{module}.{name}.{method}"] = parameters(getattr(thing, method))
    return dict(sorted(found.items()))


def parameters(function: Callable[..., Any]) -> list[str]:
    """Parameters as one writes them: `name`, `name=` with a default, `*` before those that are given by name only."""
    told: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not any(name.startswith("*") for name in told):
            told.append("*")
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        if parameter.name != "self" and not parameter.name.startswith("_"):
            told.append(f"{stars}{parameter.name}{'=' * (parameter.default is not parameter.empty)}")
    return told


def _methods(thing: Any) -> list[str]:
    """Public methods that the package itself wrote; of an agent, those that users call."""
    if not inspect.isclass(thing):
        return []
    own = [
        name
        for name, function in inspect.getmembers(thing, callable)
        if not name.startswith("_") and str(getattr(function, "__module__", "")).startswith("relax_rl")
    ]
    return [name for name in own if name in AGENT_METHODS] if issubclass(thing, ActorCritic) else own


def surface() -> dict[str, Any]:
    """All of it, as kept in `tests/fixtures/VERSION/surface.json`."""
    return {
        "options": {command: options(command) for command in COMMANDS},
        "names": public_names(),
        "signatures": signatures(),
    }
