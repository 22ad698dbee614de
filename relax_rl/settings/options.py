"""Options of a command from the dataclass that defines them, with every mistake told in one line."""

from __future__ import annotations

import argparse
import ast
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from types import NoneType
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from relax_rl.errors import SettingsError, did_you_mean
from relax_rl.settings.fields import flat, with_settings

__all__ = ["ALIASES", "parse"]

ALIASES = {"backend": "vectorization"}
"""Options that may be called by another name, and what they are called in the settings."""

_NUMBERS = {int: "a whole number", float: "a number"}

T = TypeVar("T")


def parse(kind: type[T], args: Sequence[str], *, default: T | None = None, prog: str, description: str) -> T:
    """Read command-line arguments into a dataclass; nested dataclasses give their fields without a prefix.

    `--some-name` and `--some_name` are the same option, and so are those of `ALIASES`; the docstring under a field is
    its help, and a field without a default is an argument that has to be given. `--help` prints the help and raises
    SystemExit(0).

    Args:
        kind: the dataclass.
        args: what stands behind the command.
        default: values of the options that are not given (else those of the definition).
        prog: the command, for the help.
        description: the first line of the help.

    Raises:
        SettingsError: an unknown option, a value of the wrong type or out of range.
    """
    options = {option.name: option for option in _options(kind)}
    required = [name for name, option in options.items() if option.field.default is MISSING]
    usage = " ".join([prog, "[-h]", "[OPTIONS]", *map(str.upper, required)])
    parser = _Parser(prog=prog, description=description, usage=usage, allow_abbrev=False)
    sections: dict[type, Any] = {kind: parser}
    shown = {} if default is None else flat(default)
    for name, option in options.items():
        if option.section not in sections:
            sections[option.section] = parser.add_argument_group(inspect.cleandoc(option.section.__doc__ or ""))
        option.add_to(
            sections[option.section],
            shown.get(name, option.field.default),
            with_help=not {"-h", "--help"}.isdisjoint(args),
        )
    given = vars(parser.parse_args([_settled(token, options) for token in args]))
    values = {name: options[name].value(text) for name, text in given.items()}
    for name in required:
        if values.get(name) is None:
            raise SettingsError(f"{name.upper()} is missing: {options[name].help}; see {prog} --help")
    base = default if default is not None else kind(**{name: values[name] for name in required})
    return with_settings(base, values)


@dataclass(frozen=True)
class _Option:
    """A setting as an option, of the section that stands above it in the help."""

    field: Field[Any]
    kind: Any
    section: type

    @property
    def name(self) -> str:
        return self.field.name

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def help(self) -> str:
        return _docstrings(self.section).get(self.name, "")

    @property
    def plain(self) -> Any:
        """The type of a value: of one entry, and of one that is not None."""
        if get_origin(self.kind) is Literal:
            return self.kind
        return next((part for part in get_args(self.kind) if part is not NoneType), self.kind)

    def value(self, text: Any) -> Any:
        """What was given, with its type.

        Raises:
            SettingsError: it is of another type.
        """
        if isinstance(text, list):
            return tuple(self.value(entry) for entry in text)
        if not isinstance(text, str):
            return text
        if text.lower() == "none" and NoneType in get_args(self.kind):
            return None
        choices = get_args(self.plain)
        if choices and text not in choices:
            near = did_you_mean(text, choices)
            raise SettingsError(f"{self.flag}: {text!r} is not one of {', '.join(choices)}{near}")
        try:
            return text if choices else self.plain(text)
        except ValueError:
            raise SettingsError(f"{self.flag}: {text!r} is not {_NUMBERS[self.plain]}") from None

    def add_to(self, parser: Any, default: Any, *, with_help: bool) -> None:
        """Describe it to a parser, which then gives it only where it was given itself."""
        told = " ".join(map(str, default)) if isinstance(default, tuple) else default
        how: dict[str, Any] = {"help": f"{self.help} (default: {told})".replace("%", "%%")} if with_help else {}
        if self.field.default is MISSING:
            parser.add_argument(self.name, nargs="?", metavar=self.name.upper(), help=self.help if with_help else None)
            return
        if self.kind is bool:
            how["action"] = argparse.BooleanOptionalAction
        else:
            choices = get_args(self.plain)
            how["metavar"] = f"{{{','.join(choices)}}}" if choices else self.plain.__name__.upper()
            how["nargs"] = "*" if get_origin(self.kind) is tuple else None
        parser.add_argument(self.flag, dest=self.name, default=argparse.SUPPRESS, **how)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def _settled(token: str, options: dict[str, _Option]) -> str:
    """An argument with the option in it called as the parser calls it.

    Raises:
        SettingsError: there is no such option.
    """
    flag, equals, value = token.partition("=")
    if not token.startswith("--") or token in ("--", "--help"):
        return token
    name = flag.removeprefix("--").replace("-", "_")
    name = ALIASES[name] if ALIASES.get(name) in options else name
    known = {option.flag for option in options.values()}
    known |= {f"--no-{option.flag[2:]}" for option in options.values() if option.kind is bool}
    found = f"--{name.replace('_', '-')}"
    if found not in known:
        raise SettingsError(f"unknown option {found}{did_you_mean(found, known)}")
    return f"{found}{equals}{value}"


def _options(kind: Any) -> Iterator[_Option]:
    """Every setting, those of sections included."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from _options(hints[field.name])
        else:
            yield _Option(field, hints[field.name], kind)


@cache
def _docstrings(kind: type) -> dict[str, str]:
    """The docstring under each field."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    return {
        ast.unparse(before.target): " ".join(str(after.value.value).split())
        for before, after in pairwise(body)
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }
