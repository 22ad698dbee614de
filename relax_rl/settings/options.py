"""Options of a command from the dataclass that defines them, with every mistake told in one line."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from relax_rl.errors import RelaxRLError, SettingsError
from relax_rl.settings.fields import Setting, flat, from_text, settings_of, with_settings
from relax_rl.settings.naming import is_own
from relax_rl.settings.synonyms import flag, meant
from relax_rl.settings.unions import is_union, words

__all__ = ["ALIASES", "HelpShown", "help_of", "parse", "sections"]

ALIASES = {"backend": "vectorization"}
"""Options that may be called by another name, and what they are called in the settings."""

_HELP = {"-h", "--help"}
_NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
"""What stands for a number: argparse itself takes -5e-1 for an option."""
_WIDEST = 112
"""Columns of the help, however wide the terminal: longer lines are hard to read."""

T = TypeVar("T")


class HelpShown(SystemExit):
    """Leaves after the help: of a kind of its own, since code of the user's own may call `sys.exit` too."""


def parse(
    kind: type[T],
    args: Sequence[str],
    *,
    prog: str,
    description: str | None = None,
    default: T | None = None,
    base: Callable[[Mapping[str, Any]], T] | None = None,
) -> T:
    """Read command-line arguments into a dataclass; nested dataclasses give their fields without a prefix.

    `--some-name` and `--some_name` are the same option, and so are those of `ALIASES`; the docstring under a field is
    its help, and a field without a default is an argument that has to be given. `--help` prints the help and raises
    HelpShown(0).

    Args:
        kind: the dataclass.
        args: what stands behind the command.
        prog: the command, for the help.
        description: the first line of the help (else the docstring of `kind`).
        default: values of the options that are not given (else those of the definition).
        base: from the settings that are given, by name (which run or preset it is about, say), to the values to put these over,
            in place of `default`; whether settings go together is asked of the outcome alone.

    Raises:
        SettingsError: an unknown option, a value of the wrong type or out of range.
    """
    options = settings_of(kind)
    required = [option for option in options.values() if option.required]
    helping = not _HELP.isdisjoint(args)
    told = [_settled(token, options) for token in args if token not in _HELP]
    parser = _parser(kind, options, prog, description)
    found, rest = parser.parse_known_args(told)
    if rest:
        bare = "env" in options and not required and not rest[0].startswith("-")
        parser.error(f"unrecognized arguments: {' '.join(rest)}{f'; did you mean --env {rest[0]}' if bare else ''}")
    given = vars(found)
    missing = [option for option in required if given[option.name] is None]
    if missing and not helping:
        what = help_of(missing[0]).rstrip(".")
        raise SettingsError(f"{missing[0].name.upper()} is missing: {what}; see {prog} --help")
    if default is None and not missing:
        default = kind(**{option.name: given[option.name] for option in required})
    if default is not None and base is not None:
        try:
            default = base(given)
        except RelaxRLError:
            if not helping:  # help is there for whoever has something wrong
                raise
    if default is None or helping:
        shown = {} if default is None else flat(default)
        _parser(kind, options, prog, description, shown).parse_args(["--help"])
    assert default is not None
    return with_settings(default, given)


def _parser(
    kind: type,
    options: Mapping[str, Setting],
    prog: str,
    description: str | None,
    shown: Mapping[str, Any] | None = None,
) -> _Parser:
    """A parser of these options, with their help if it is given what to show as their defaults."""
    usage = " ".join([prog, "[-h] [OPTIONS]", *(name.upper() for name, option in options.items() if option.required)])
    parser = _Parser(
        prog=prog,
        description=description or kind.__doc__,
        usage=usage,
        allow_abbrev=False,
        formatter_class=_Formatter,
        add_help=False,
    )
    for number, (heading, listed) in enumerate(sections(kind, options).items()):
        group = parser.add_argument_group(heading)
        if number == 0:
            group.add_argument("-h", "--help", action="help", help="Show this and leave.")
        for option in listed:
            help_ = None if shown is None else _told(option, shown.get(option.name, option.default))
            _add(option, parser if option.required else group, help_ and help_.replace("%", "%%"))
    return parser


def sections(kind: type, options: Mapping[str, Setting]) -> dict[str, list[Setting]]:
    """Options by the heading that they stand under: those of `SECTIONS` first, then whatever that leaves out."""
    found = {
        heading: [options[name] for name in names.split()] for heading, names in getattr(kind, "SECTIONS", {}).items()
    }
    named = {option.name for listed in found.values() for option in listed}
    for name, option in options.items():
        if name not in named:
            heading = (
                "options" if option.section is kind else (option.section.__doc__ or "").partition("\n")[0].rstrip(".")
            )
            found.setdefault(heading, []).append(option)
    return found


def _add(option: Setting, parser: Any, help_: str | None) -> None:
    """Describe a setting to a parser, which then gives it only where it was given itself."""
    if option.required:
        parser.add_argument(option.name, nargs="?", metavar=option.name.upper(), help=help_)
        return
    inner = get_args(option.kind)
    several, either = get_origin(option.kind) is tuple, is_union(option.kind)
    plain = inner[0] if several or either else option.kind
    how: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
    if get_origin(plain) is Literal:
        choices = get_args(plain)
        how = {"choices": _OrOwn(choices) if option.rule.open else choices}
    elif get_origin(plain) is dict:
        how, several = {"type": _reader(plain), "metavar": "NAME=VALUE"}, True
    elif plain is not bool:
        how = {"type": _reader(option.kind if either else plain), "metavar": plain.__name__.upper()}
    if several:
        how["nargs"] = "*"
    if option.rule.repeatable:
        how["action"] = "extend"
    parser.add_argument(flag(option.name), dest=option.name, default=argparse.SUPPRESS, help=help_, **how)


def help_of(option: Setting) -> str:
    """The docstring under the field."""
    return _docstrings(option.section).get(option.name, "")


def _told(option: Setting, default: Any) -> str:
    """The help of an option, with its default."""
    words = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return help_of(option) if option.required or words in (None, "") else f"{help_of(option)} (default: {words})"


class _OrOwn(tuple[str, ...]):
    """Choices, beside which a name of the user's own code will do."""

    def __contains__(self, text: object) -> bool:
        return super().__contains__(text) or is_own(str(text))


def _reader(kind: Any) -> Callable[[str], Any]:
    """From a text to a value of a type."""

    def read(text: str) -> Any:
        try:
            return from_text(kind, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not {' or '.join([str(error), *words(kind)])}") from None

    return read


class _Formatter(argparse.HelpFormatter):
    """Help for terminals of any width, and for pipes: no wider than reads well, most options on one line with their help."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, _WIDEST) - 2
        super().__init__(prog, max_help_position=24 if width < 100 else 38, width=width)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)  # options stay whole


class _Parser(argparse.ArgumentParser):
    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self._negative_number_matcher = _NEGATIVE

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise HelpShown(status)

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def _settled(token: str, options: Mapping[str, Setting]) -> str:
    """An argument with the option in it called as the parser calls it.

    Raises:
        SettingsError: there is no such option.
    """
    called, equals, value = token.partition("=")
    if not token.startswith("--") or token == "--":
        return token
    name = called.removeprefix("--").replace("-", "_")
    name = ALIASES[name] if ALIASES.get(name) in options else name
    known = {*options, *(f"no_{name}" for name, option in options.items() if option.kind is bool)}
    if name not in known:
        raise SettingsError(f"unknown option {flag(name)}{meant(name, known, called=flag)}")
    return f"{flag(name)}{equals}{value}"


@cache
def _docstrings(kind: type) -> dict[str, str]:
    """The docstring under each field."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    return {
        ast.unparse(before.target): " ".join(str(after.value.value).split())
        for before, after in pairwise(body)
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }
