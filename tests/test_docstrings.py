"""Docstrings of public names say what is given and what comes back."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

from tests.surface import AGENT_METHODS, OF_ENVS, named_in_reference, public_names

SAYS_WHAT_COMES_BACK = re.compile(r"\A`|\A[^\n]*\Z|\breturns\b|^Returns:$", re.MULTILINE)
"""Beginning with its shape or type, in one line, or by the word."""
AS = re.compile(r"^ +(\w+(?:, \w+)*): as (?:in|for|of|from) `([\w.]+)`", re.MULTILINE)
"""Arguments that another function describes."""


def public(names: list[tuple[str, str]], kind: Callable[[Any], bool]) -> dict[str, Any]:
    """Things of a kind by their whole names, each of them once."""
    found: dict[int, tuple[str, Any]] = {}
    for module, name in names:
        thing = getattr(import_module(module), name)
        if kind(thing):
            found.setdefault(id(thing), (f"{module}.{name}", thing))
    return dict(sorted(found.values()))


PUBLIC = [(module, name) for module, names in {**public_names(), "relax_rl.envs": OF_ENVS}.items() for name in names]
SHOWN = [each for names in named_in_reference().values() for each in names]
FUNCTIONS = public([*PUBLIC, *SHOWN], inspect.isfunction)
CLASSES = public([*PUBLIC, *SHOWN], inspect.isclass)
PROTOCOLS = [kind for kind in CLASSES.values() if getattr(kind, "_is_protocol", False)]
MADE = [name for name, kind in CLASSES.items() if kind not in PROTOCOLS and "__init__" in vars(kind)]
WITH_METHODS = [name for name, kind in CLASSES.items() if not name.endswith("Config")]


def described(thing: Any, *sections: str) -> set[str]:
    """Names before the colons of these sections of a docstring."""
    doc = inspect.cleandoc(thing.__doc__ or "")
    found: set[str] = set()
    for body in re.findall(rf"^(?:{'|'.join(sections)}):\n((?: {{4}}.*\n?|\n)*)", doc, re.MULTILINE):
        for names in re.findall(r"^ {4}(\w+(?:, \w+)*):(?=\s)", body, re.MULTILINE):
            found |= set(names.split(", "))
    return found


def parameters(function: Any) -> set[str]:
    return {name for name in inspect.signature(function).parameters if name != "self" and not name.startswith("_")}


def fields_described(kind: type) -> set[str]:
    """Fields with a docstring below them."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    pairs = zip(body.body, body.body[1:], strict=False)
    return {
        field.target.id
        for field, doc in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str)
    }


def test_what_is_looked_at() -> None:
    assert len(FUNCTIONS) > 80 and len(CLASSES) > 70 and len(MADE) > 50
    assert described(FUNCTIONS["relax_rl.estimators.lax"], "Args") == parameters(FUNCTIONS["relax_rl.estimators.lax"])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_describe_what_they_take(name: str) -> None:
    """Under `Args`, all of them; or they are as in another function, which does."""
    function = FUNCTIONS[name]
    assert described(function, "Args") == parameters(function)
    for names, other in AS.findall(function.__doc__):
        if not other[0].islower() or not set(names.split(", ")) <= parameters(function):
            continue
        (sibling,) = {each for known, each in FUNCTIONS.items() if known.endswith(f".{other}")}
        assert set(names.split(", ")) <= parameters(sibling), f"as in {other}"


@pytest.mark.parametrize("name", public(PUBLIC, inspect.isfunction))
def test_functions_describe_what_they_return(name: str) -> None:
    function = FUNCTIONS[name]
    if inspect.signature(function).return_annotation not in (None, "None"):
        assert SAYS_WHAT_COMES_BACK.search(inspect.cleandoc(function.__doc__))


@pytest.mark.parametrize("name", MADE)
def test_classes_describe_what_they_are_made_of(name: str) -> None:
    """Under `Args` or `Attributes`, below a field, or in their text."""
    kind = CLASSES[name]
    own = [each for each in kind.__mro__ if each.__module__.startswith("relax_rl")]
    told = described(kind, "Args", "Attributes").union(*(re.findall(r"`(\w+)", each.__doc__ or "") for each in own))
    assert parameters(kind) - fields_described(kind) - {"settings"} <= told or name == "relax_rl.TrainConfig"


@pytest.mark.parametrize("name", WITH_METHODS)
def test_methods_have_docstrings(name: str) -> None:
    """Their own, or those of a protocol or class that they take after."""
    kind = CLASSES[name]
    above = [*PROTOCOLS, *kind.__mro__[1:]]
    for method, function in vars(kind).items():
        if inspect.isfunction(function) and not method.startswith("_") and method not in ("forward", "extra_repr"):
            assert function.__doc__ or any(getattr(vars(other).get(method), "__doc__", None) for other in above), method
    if name == "relax_rl.ActorCritic":
        assert all(getattr(kind, method).__doc__ for method in AGENT_METHODS)
