"""The command line: finds the command, and tells every mistake in one line.

Nothing heavy is imported before the options are known to be right, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from relax_rl.compute.installation import typed
from relax_rl.errors import RelaxRLError, SettingsError, did_you_mean, in_one_line, notes_of, set_notes
from relax_rl.settings.options import HelpShown

__all__ = ["COMMANDS", "Command", "main"]

_ALWAYS_NEEDED = ("gymnasium", "matplotlib", "numpy", "rich", "safetensors", "tensorboard", "torch")


@dataclass(frozen=True)
class Command:
    """A command: what the list of commands says of it, and `module:function` called with its arguments.

    The function takes `(args, prog)` and returns the exit code.
    """

    summary: str
    function: str

    def __call__(self, args: Sequence[str], prog: str) -> int:
        module, _, name = self.function.partition(":")
        run: Callable[[Sequence[str], str], int] = getattr(import_module(module), name)
        try:
            return run(args, prog)
        except HelpShown:
            return 0


COMMANDS: Mapping[str, Command] = {
    "train": Command("train an agent (the default command)", "relax_rl.commands.train:train_command"),
    "evaluate": Command(
        "score a trained agent, and record a video of it", "relax_rl.commands.evaluate:evaluate_command"
    ),
    "variance": Command(
        "measure the variance of a trained agent's gradient under every estimator",
        "relax_rl.commands.variance:variance_command",
    ),
    "export": Command(
        "write a trained policy into a file that runs without this package", "relax_rl.commands.export:export_command"
    ),
    "push": Command(
        "put a trained agent into a repository of the Hugging Face hub", "relax_rl.commands.push:push_command"
    ),
    "check": Command("say what an environment is, and what is wrong with it", "relax_rl.commands.check:check_command"),
    "toy": Command("compare estimators on the toy problem of REBAR and RELAX", "relax_rl.commands.toy:toy_command"),
    "compare": Command(
        "compare estimators, and other libraries, over environments and seeds",
        "relax_rl.comparison.command:compare_command",
    ),
    "vae": Command("train a discrete variational autoencoder", "relax_rl.commands.vae:vae_command"),
}

DEFAULT_COMMAND = "train"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 after a mistake told in one line, 1 after an error in code of the
    user's own, 129, 130 or 143 after a signal.

    Args:
        argv: what stands behind the program's name; those of the process if left out.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    prog = _program()
    threading.excepthook = _thread_failed
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "±" shows "?" instead of a traceback
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return _dispatch(args, prog)
        except RelaxRLError as error:
            if not error.already_printed:
                print(f"error: {in_one_line(error)}", file=sys.stderr)
            return 2
        except SystemExit as leaving:
            print(f"error: {in_one_line(_left_early(leaving))}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            return 128 + signal.SIGINT
        except BrokenPipeError as error:
            if notes_of(error):  # it is not that of the output
                print(_code_of_theirs(error), file=sys.stderr)
                return 1
            # Whoever read the output is gone: no more of it, not even what the interpreter flushes on leaving.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and error.name in _ALWAYS_NEEDED:
                told = f"{sys.executable} has no {error.name}: activate the environment that relax_rl is installed in"
                print(f"error: {told} (`make` installs into .venv: . .venv/bin/activate)", file=sys.stderr)
                return 2
            if not notes_of(error):
                raise
            print(_code_of_theirs(error), file=sys.stderr)
            return 1


def _dispatch(args: list[str], prog: str) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_overview(prog))
        return 0
    if args[0] == "--version":
        from relax_rl import __version__

        print(f"relax_rl {__version__}")
        return 0
    name = DEFAULT_COMMAND if args[0].startswith("-") else args.pop(0)
    if name not in COMMANDS:
        raise SettingsError(
            f"unknown command {name!r}, expected one of {', '.join(COMMANDS)}{did_you_mean(name, COMMANDS)}"
        )
    return COMMANDS[name](args, f"{prog} {name}")


def _overview(prog: str) -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        f"usage: {prog} COMMAND [OPTIONS]\n\n"
        "Train reinforcement-learning agents with low-variance policy gradients: RELAX, LAX, A2C, REINFORCE.\n\n"
        f"commands:\n{commands}\n\n"
        "examples:\n"
        f"  {prog} --env CartPole-v1 --estimator relax\n"
        f"  {prog} evaluate RUN --episodes 20\n"
        f"  {prog} check --env module:MyEnv\n"
        f"  {prog} variance RUN\n\n"
        f"{prog} COMMAND --help lists the options of a command."
    )


def _program() -> str:
    """How the program was called, as a user would type it again; with the path of a Python that the shell does not find."""
    path = Path(sys.argv[0])
    if path.suffix != ".py":
        return typed(path.name)
    python = typed("python")
    return f"{python} -m relax_rl" if path.name == "__main__.py" else f"{python} {path}"


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's writing thread meets a full disk first; the main thread then says so itself, in one line."""
    if not issubclass(args.exc_type, OSError):
        threading.__excepthook__(args)


def _left_early(leaving: SystemExit) -> str:
    """What is said where code that is not this package's ends the process in the middle of a command."""
    code = "" if leaving.code is None else repr(leaving.code)
    *_, place = traceback.extract_tb(leaving.__traceback__)
    called = f"sys.exit({code}) was called in {place.filename}, line {place.lineno}"
    return f"{called}, before the command was done; take it out of there, or raise an error instead"


def _code_of_theirs(error: Exception) -> str:
    """The traceback of an error that code of the user's own has raised, and the line that says what it means for the run."""
    notes = notes_of(error)
    set_notes(error, [])
    trace = "".join(traceback.format_exception(error))
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{trace}error: {in_one_line('; '.join([said, *notes]))}"


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    plain = re.sub(r"\x1b\[[0-9;]*m|WARN: ", "", str(message))  # Gymnasium's are coloured
    print(f"warning: {in_one_line(' '.join(plain.split()))}", file=sys.stderr)
