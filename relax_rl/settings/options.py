"""Options of a command from the dataclass that defines them, with every mistake told in one line."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from relax_rl.errors import RelaxRLError, SettingsError, did_you_mean

__all__ = ["ALIASES", "parse"]

ALIASES = {"backend": "vectorization"}
"""Options that may be called by another name, and what they are called in the settings."""

T = TypeVar("T")


def parse(kind: type[T], args: Sequence[str], *, default: T | None = None, prog: str, description: str) -> T:
    """Read command-line arguments into a dataclass; nested dataclasses give their fields without a prefix.

    `--some-name` and `--some_name` are the same option, and so are those of `ALIASES`; the docstring under a field is
    its help. `--help` prints the help and raises SystemExit(0).

    Args:
        kind: the dataclass.
        args: what stands behind the command.
        default: values of the options that are not given (else those of the definition).
        prog: the command, for the help.
        description: the first line of the help.

    Raises:
        SettingsError: an unknown option, a value of the wrong type or out of range.
    """
    import tyro

    known = _option_names(kind)
    args = [_settled_name(token, known) for token in args]
    _check_names(known, args)
    settings: dict[str, Any] = {} if default is None else {"default": default}
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            result: T = tyro.cli(
                kind, args=args, prog=prog, description=description, config=(tyro.conf.OmitArgPrefixes,), **settings
            )
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        cause = _own_error(leaving)
        raise cause or SettingsError(f"{_one_line(told.getvalue())}; see {prog} --help") from None
    return result


def _settled_name(token: str, known: set[str]) -> str:
    """An argument with the option in it called as the settings call it."""
    name, equals, value = token.partition("=")
    option = ALIASES.get(name.removeprefix("--").replace("_", "-")) if name.startswith("--") else None
    return f"--{option}{equals}{value}" if option in known else token


def _check_names(options: set[str], args: Sequence[str]) -> None:
    """Refuse unknown options with the nearest known one."""
    known = {"help", *options}
    for token in args:
        if token.startswith("--") and token != "--":
            name = token[2:].partition("=")[0].replace("_", "-")
            if name not in known:
                near = did_you_mean(f"--{name}", [f"--{option}" for option in known])
                raise SettingsError(f"unknown option --{name}{near}")


def _option_names(kind: type) -> set[str]:
    names: set[str] = set()
    hints = get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            names |= _option_names(hints[field.name])
        else:
            name = field.name.replace("_", "-")
            names |= {name, f"no-{name}"} if hints[field.name] is bool else {name}
    return names


def _own_error(leaving: BaseException) -> RelaxRLError | None:
    """The error of a setting's own check, if that is why the parser gave up."""
    error: BaseException | None = leaving
    while error is not None and not isinstance(error, RelaxRLError):
        error = error.__context__
    return error


def _one_line(box: str) -> str:
    """The message in the box that the parser draws: what stands between its title and its next rule.

    Without UTF-8 the box has no sides, and one more rule under its title.
    """
    lines = (re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│| \t") for line in box.splitlines())
    message: list[str] = []
    for text in [line for line in lines if line][1:]:
        if not re.fullmatch(r"[╰╯─-]+", text):
            message.append(text)
        elif message:
            break
    line = " ".join(message).rstrip(".").replace("Error parsing ", "")
    line = re.sub(r"Missing from .*: (\w+) (.+)\. \(required\)", r"\1 is missing: \2", line)
    line = re.sub(r"invalid literal for int\(\) with base 10: (.+)", r"\1 is not a whole number", line)
    line = re.sub(r"could not convert string to float: (.+)", r"\1 is not a number", line)
    return line or "the options cannot be read"
