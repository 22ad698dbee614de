"""Random command lines: options of every command with values that are small, odd, wrong, enormous or no values at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import numpy as np

from relax_rl.commands.evaluate import EvaluateConfig
from relax_rl.comparison.config import CompareConfig
from relax_rl.errors import in_one_line
from relax_rl.experiments.toy.config import ToyConfig
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.settings.config import TrainConfig
from relax_rl.settings.fields import Setting, settings_of
from relax_rl.variance.measure import VarianceConfig
from tests.attack.mutations import template
from tests.attack.preloaded import __name__ as _preloaded  # noqa: F401
from tests.attack.trials import Attack, called, gentle, rng_of, untidy

__all__ = ["COMMAND_LINES"]

COMMANDS: Mapping[str, Any] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "variance": VarianceConfig,
    "toy": ToyConfig,
    "compare": CompareConfig,
    "vae": VaeConfig,
}
SMALL: Mapping[str, Sequence[str]] = {
    "train": [
        "--env=CartPole-v1",
        "--total-steps=40",
        "--hidden",
        "4",
        "--surrogate-hidden",
        "4",
        "--num-envs=2",
        "--compile=off",
    ],
    "evaluate": ["RUN", "--episodes=1", "--num-envs=1"],
    "variance": ["RUN", "--batches=2", "--fit-batches=0", "--states=0"],
    "toy": ["--steps=2", "--seeds=2", "--draws=4", "--log-interval=2"],
    "compare": [
        "--env=CartPole-v1",
        "--estimators",
        "a2c",
        "--seeds=1",
        "--total-steps=40",
        "--num-workers=1",
        "--set",
        "compile=off",
    ],
    "vae": [
        "--data=digits",
        "--width=4",
        "--steps=2",
        "--eval-samples=0",
        "--valid-images=4",
        "--surrogate-width=4",
        "--compile=off",
    ],
}
WORDS = (
    "",
    " ",
    "x",
    "CartPole-v1",
    "nosuch-v7",
    "a2c",
    "relax",
    "none",
    "auto",
    "latest",
    "best",
    "cuda",
    "cuda:99",
    "math:pi",
)
WORDS = (
    *WORDS,
    "math:no",
    ":",
    "é∞\u202e",
    "x" * 5000,
    "-",
    "--",
    "\x1b[31m",
    "a\nb",
    "%s%n",
    "{}",
    "$HOME",
    "🚀" * 100,
    "None",
)
PATHS = (
    "",
    ".",
    "/proc",
    "/dev/null",
    "/proc/self/mem",
    "no/such/folder",
    "RUN",
    "RUN/config.json",
    "FILE",
    "LOOP",
    "~",
    "a" * 300,
)
PATHS = (*PATHS, "new", "new folder/é", "/dev/full/x", "b/" * 2000, "\n", "-x", "DANGLING", "/sys/new")
NUMBERS = (
    "0",
    "1",
    "-1",
    "2",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-0.0",
    "0.5",
    "1e-320",
    "9" * 40,
    "9" * 5000,
    "1e308",
    "1e18",
)
NUMBERS = (
    *NUMBERS,
    "0x10",
    "1_0",
    "٣",
    "1,5",
    "",
    "one",
    "1e6",
    "+3",
    " 4 ",
    "64x64",
    "True",
    "4294967296",
    "9007199254740993",
)
BUSY = {
    # What is right and takes minutes, much memory, threads that cannot be ended, the network or a cluster.
    *("compile", "threads", "ray_address", "tune", "variance", "video", "peers", "profile", "data"),
}
PATIENCE = 2.5
"""Seconds of CPU after which Ctrl-C is pressed; the command then has to leave with 130, or 0 where it was done."""
_AT_MOST = 20.0
"""Seconds after which it is pressed in any case."""


def _attempt(seed: int, number: int, folder: Path) -> str | None:
    command, words = _line(seed, number)
    with _working_in(folder) as run, gentle(), _ctrl_c_after(PATIENCE):
        ended = called([command, *(word.replace("RUN", str(run)) for word in words)], within=_AT_MOST)
    fault = untidy(ended, codes=(0, 2, 130), limits=False)
    return fault or _left_behind(folder)


def _about(seed: int, number: int) -> str:
    command, words = _line(seed, number)
    return in_one_line(
        " ".join([command, *(word if len(word) < 60 else f"{word[:40]}...({len(word)})" for word in words)])
    )


def _line(seed: int, number: int) -> tuple[str, list[str]]:
    random = rng_of(seed, number)
    command = _one_of(random, ("train", "train", *COMMANDS))
    options = settings_of(COMMANDS[command])
    # Now and then nothing but odd words.
    words = list(SMALL[command]) if random.random() < 0.9 else []
    for _ in range(random.integers(1, 4)):
        names = [name for name in options if not options[name].required]
        words += _option(options[_one_of(random, names)], random)
    if random.random() < 0.1:
        words.append(
            _one_of(random, (*WORDS, *PATHS, "--nonsense", "--total_steps", "-v", "--no-seed", "--help", "---"))
        )
    if random.random() < 0.05:
        command = _one_of(random, ("", "trian", "toys", "-", command.upper()))
    return command, [word for word in words if "\0" not in word]


def _option(option: Setting, random: np.random.Generator) -> list[str]:
    flag = f"--{option.name.replace('_', '-')}"
    inner = get_args(option.kind)
    several, optional = get_origin(option.kind) is tuple, NoneType in inner
    plain = inner[0] if several or optional else option.kind
    wrong = option.name in BUSY
    if plain is bool:
        return [
            _one_of(
                random, (f"{flag}=yes", f"--no{flag[1:]}=1") if wrong else (flag, f"--no-{flag[2:]}", f"{flag}=yes")
            )
        ]
    if option.name in ("run_dir", "resume", "run", "checkpoint", "data_dir"):
        pool: Sequence[str] = PATHS
    elif plain in (int, float):
        pool = tuple(number for number in NUMBERS if not wrong or not _counts(number))
    elif get_origin(plain) is Literal:
        pool = (*WORDS, *NUMBERS) if wrong else (*WORDS, *map(str, get_args(plain)), *map(str, get_args(plain)))
    else:
        pool = (*WORDS, *NUMBERS)
    if wrong:
        pool = [word for word in pool if word not in ("auto", "", "None", "none")]
    values = [_one_of(random, pool) for _ in range(random.integers(0, 3) if several else 1)]
    if several or random.random() < 0.1:
        return [flag, *values]
    return [f"{flag}={values[0]}"] if values else [flag]


def _counts(number: str) -> bool:
    try:
        return float(number.replace("_", "")) >= 1
    except ValueError:
        return False


def _one_of(random: np.random.Generator, pool: Sequence[str]) -> str:
    return pool[int(random.integers(len(pool)))]


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[Path]:
    """Work in an empty folder with a few odd things in it; yields a run's folder there."""
    shutil.copytree(template("present"), folder / "run")
    (folder / "FILE").write_text("no folder")
    (folder / "LOOP").symlink_to("LOOP")
    (folder / "DANGLING").symlink_to("nowhere/at all")
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder / "run"
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _ctrl_c_after(seconds: float) -> Iterator[None]:
    over, started, spent = threading.Event(), time.monotonic(), time.process_time()

    def press() -> None:
        while not over.wait(0.1):
            if time.process_time() - spent > seconds or time.monotonic() - started > _AT_MOST:
                os.kill(os.getpid(), signal.SIGINT)
                return

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=press, daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:  # it came in the very moment when the command had ended
        pass
    finally:
        over.set()
        signal.signal(signal.SIGINT, before)


def _left_behind(folder: Path) -> str | None:
    left = list(folder.rglob("*.tmp"))
    return f"left {left[0].relative_to(folder)}" if left else None


COMMAND_LINES = Attack(
    name="command-lines",
    what="options of every command with small, odd, wrong and enormous values",
    trials=500,
    sample=60,
    attempt=_attempt,
    about=_about,
)
