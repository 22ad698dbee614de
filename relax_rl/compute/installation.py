"""How this package and what belongs to it are installed here, as lines that work as they are typed."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

__all__ = ["install_line", "typed"]

_ROOT = Path(__file__).resolve().parents[2]


def install_line(extra: str) -> str:
    """The line that installs an extra of this package: from the clone that the code is imported from, or else by name."""
    if not all((_ROOT / name).is_file() for name in ("pyproject.toml", "constraints.txt")):
        return f'{typed("pip")} install "relax-rl[{extra}]"'
    if Path.cwd() == _ROOT:
        return f'{typed("pip")} install -c constraints.txt -e ".[{extra}]"'
    return f'{typed("pip")} install -c {shlex.quote(str(_ROOT / "constraints.txt"))} -e "{_ROOT}[{extra}]"'


def typed(program: str) -> str:
    """What to type for a program that is installed beside this Python.

    Its name, where the shell finds that very program; the path of one that the shell does not find, relative to the
    working folder if it lies within; the name, where there is none.
    """
    beside = Path(sys.executable).parent
    found = shutil.which(program)
    if found is not None and Path(os.path.abspath(found)).parent == beside:
        return program
    here = shutil.which(program, path=str(beside))
    if here is None:
        return program
    path = Path(here)
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
