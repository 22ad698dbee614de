"""The command line: `train` (the default) and `evaluate`.

Nothing heavy is imported before the options are known to be right, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relax_rl import distributed, runs
from relax_rl.errors import RelaxRLError, SettingsError, did_you_mean
from relax_rl.runs import RunFolder
from relax_rl.settings.config import TrainConfig
from relax_rl.settings.fields import of_the_call, with_settings
from relax_rl.settings.options import parse
from relax_rl.settings.presets import preset_config

if TYPE_CHECKING:
    from relax_rl.training import TrainingResult

__all__ = ["COMMANDS", "Command", "main"]


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
        return run(args, prog)


COMMANDS: Mapping[str, Command] = {
    "train": Command("train an agent (the default command)", "relax_rl.cli:train_command"),
    "evaluate": Command(
        "score a trained agent, and record a video of it", "relax_rl.evaluate_command:evaluate_command"
    ),
    "variance": Command(
        "measure the variance of a trained agent's gradient under every estimator",
        "relax_rl.variance_command:variance_command",
    ),
    "toy": Command(
        "compare estimators on the toy problem of REBAR and RELAX", "relax_rl.experiments.toy.command:toy_command"
    ),
    "compare": Command(
        "compare estimators, and other libraries, over environments and seeds",
        "relax_rl.comparison.command:compare_command",
    ),
    "vae": Command("train a discrete variational autoencoder", "relax_rl.experiments.vae.command:vae_command"),
}

DEFAULT_COMMAND = "train"

ENDS = {
    "total_steps": "all steps taken",
    "return": "reached a mean return of {target:g}",
    "callback": "stopped by a callback",
}
"""What is said of a run that ended in one of these ways; all other ways are signals."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 after a mistake told in one line, 130 or 143 after a signal.

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
            if not error.told_elsewhere:
                print(f"error: {error}", file=sys.stderr)
            return 2
        except SystemExit as leaving:  # help has been printed
            return int(leaving.code or 0)
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            return 128 + signal.SIGINT
        except BrokenPipeError:
            # Whoever read the output is gone: no more of it, not even what the interpreter flushes on leaving.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE


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
        f"  {prog} variance RUN\n\n"
        f"{prog} COMMAND --help lists the options of a command."
    )


def train_command(args: Sequence[str], prog: str) -> int:
    """`train`: start or resume a run, and say where its results lie."""
    config = _train_config(list(args), prog)
    if config.run.resume is None and config.run.run_dir is not None and not distributed.elastic():
        RunFolder(Path(config.run.run_dir)).check_unused()
    from relax_rl.training import train

    started = time.perf_counter()
    result = train(config, command=f"{prog} {shlex.join(args)}")
    if distributed.is_first():
        print(_summary(result, config, prog.rpartition(" ")[0], time.perf_counter() - started), flush=True)
    return 128 + signal.Signals[result.stopped_by] if result.stopped_by in ("SIGINT", "SIGTERM") else 0


def _train_config(args: list[str], prog: str) -> TrainConfig:
    """The settings: what is given, over what the preset or the resumed run says.

    The arguments are read twice: first to learn which environment or run it is about, then with its settings as the
    defaults, so that the help shows them and whatever is given wins.
    """
    description = "Train an agent and leave a run folder with its settings, curves and checkpoints."

    def read(arguments: list[str], default: TrainConfig) -> TrainConfig:
        return parse(TrainConfig, arguments, default=default, prog=prog, description=description)

    automatic = with_settings(TrainConfig(), {"preset": "auto"})
    given = read([token for token in args if token not in ("-h", "--help")], automatic)
    if given.run.resume is None:
        base = preset_config(given.env.env, given.run.estimator, preset=given.run.preset, bins=given.env.bins)
        config = read(args, base)
        return replace(config, run=replace(config.run, preset=base.run.preset))
    saved = runs.read_config(RunFolder(Path(given.run.resume)))
    # Whether progress is shown, or time measured, is a matter of this call, not of the run.
    here = {**of_the_call(saved), "resume": given.run.resume, "run_dir": given.run.resume}
    config = read(args, with_settings(saved, here))
    if config.run.preset == "auto":
        config = replace(config, run=replace(config.run, preset=saved.run.preset))
    runs.check_resumable(saved, config)
    return config


def _summary(result: TrainingResult, config: TrainConfig, prog: str, seconds: float) -> str:
    folder = RunFolder(result.run_dir)
    run_dir = shlex.quote(str(result.run_dir))
    mean = "no episode has finished" if not result.episodes else f"mean return of the last 100 {result.return_mean:.1f}"
    if result.stopped_by in ENDS:
        end = ENDS[result.stopped_by].format(target=config.run.stop_at_return)
    else:
        end = f"interrupted by {result.stopped_by}"
    lines = [
        f"{end}: {result.steps:,} steps, {result.episodes:,} episodes, {mean}, {seconds:.0f} s",
        f"  learning curve  {folder.curve}",
    ]
    if config.run.tensorboard:
        lines.append(f"  TensorBoard     tensorboard --logdir {run_dir}")
    lines += [
        f"  checkpoint      {result.checkpoint}",
        f"  evaluate        {prog} evaluate {run_dir}",
    ]
    if result.stopped_by not in ("total_steps", "return"):
        lines.append(f"  go on           {prog} --resume {run_dir}")
    return "\n".join(lines)


def _program() -> str:
    """How the program was called, as a user would type it again."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return "python -m relax_rl"
    return f"python {path}" if path.suffix == ".py" else path.name


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's writing thread meets a full disk first; the main thread then says so itself, in one line."""
    if not issubclass(args.exc_type, OSError):
        threading.__excepthook__(args)


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
