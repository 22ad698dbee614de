"""How this package, and what belongs to it, is installed and called here: lines that work as they are typed."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

__all__ = ["install_line", "typed"]

_ROOT = Path(__file__).resolve().parents[2]


def install_line(extra: str) -> str:
    """The line that installs an extra of this package: into the clone that the code is imported from, or else by name."""
    if not all((_ROOT / name).is_file() for name in ("pyproject.toml", "constraints.txt")):
        return f'{typed("pip")} install "relax-rl[{extra}]"'
    if _here() == _ROOT:
        return f'{typed("pip")} install -c constraints.txt -e ".[{extra}]"'
    return f'{typed("pip")} install -c {shlex.quote(str(_ROOT / "constraints.txt"))} -e "{_ROOT}[{extra}]"'


def typed(program: str) -> str:
    """What to type for a program that is installed beside this Python, or for `python` itself.

    Its name, where a shell finds that very program by it; else its path, relative to the working folder if it lies
    within; the bare name of a program that is not installed there.
    """
    beside = Path(sys.executable).parent
    names = [program, Path(sys.executable).name] if program == "python" else [program]
    for name in names:
        found = shutil.which(name)
        if found is not None and Path(os.path.abspath(found)).parent == beside:
            return name
    there = [at for name in names if (at := shutil.which(name, path=str(beside))) is not None]
    if not there:
        return program
    path, here = Path(there[0]), _here()
    return shlex.quote(str(path.relative_to(here) if here is not None and path.is_relative_to(here) else path))


def _here() -> Path | None:
    """The working folder, unless it has been removed."""
    try:
        return Path.cwd()
    except OSError:
        return None
