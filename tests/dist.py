"""`make dist`: what is handed out, built, checked, and tried as a stranger to the repository would.

The wheel is built of the source distribution, both are looked at by twine and check-wheel-contents, and the wheel is installed
into an environment of its own in a temporary folder. There, outside the repository, the README's first training command runs.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
LAUNCHER = "python train_agent.py "
"""What calls the program in a clone; installed, it is called `relax-rl`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, check and try; returns the exit code: 1 after a step that failed, whose output says why."""
    parser = argparse.ArgumentParser(description="Build, check and try the distributions.")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "dist", help="folder of the wheel and the source distribution"
    )
    parser.add_argument("--not-tried", action="store_true", help="only build and check")
    parser.add_argument("--total-steps", type=int, help="of the training that is tried (default: those of the README)")
    given = parser.parse_args(arguments)
    more = [] if given.total_steps is None else ["--total-steps", str(given.total_steps)]
    try:
        wheel = built(given.out.resolve())
        if not given.not_tried:
            try_out(wheel, more)
    except subprocess.CalledProcessError as error:
        print(f"dist: failed with code {error.returncode}: {shlex.join(error.cmd)}", file=sys.stderr)
        return 1
    print(f"dist: {wheel.name} and its source distribution lie in {given.out}")
    return 0


def try_out(wheel: Path, more: Sequence[str]) -> None:
    """Install a wheel elsewhere, train there as the README does with further options, and evaluate."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        program = installed(wheel, place / "env").parent / "relax-rl"
        run([str(program), *first_training(), *more], place)
        (made,) = (place / "runs").iterdir()
        run([str(program), "evaluate", str(made), "--episodes", "5"], place)


def built(folder: Path) -> Path:
    """Both distributions, made anew and checked; returns the wheel."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)  # setuptools would pack what lies there
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)], ROOT)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    run([sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(source)], ROOT)
    run([sys.executable, "-m", "check_wheel_contents", str(wheel)], ROOT)
    return wheel


def installed(wheel: Path, env: Path) -> Path:
    """Install a wheel into a fresh environment, with PyTorch first and all versions those of the tests; returns its Python."""
    run([sys.executable, "-m", "venv", str(env)], env.parent)
    python = env / "bin" / "python"
    pip = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-c",
        str(ROOT / "constraints.txt"),
    ]
    run([*pip, "torch"], env.parent)
    run([*pip, str(wheel)], env.parent)
    return python


def first_training() -> list[str]:
    """The arguments of the first command of the README that trains, as it stands there."""
    lines = README.read_text(encoding="utf-8").splitlines()
    return shlex.split(next(line for line in lines if line.startswith(LAUNCHER)).removeprefix(LAUNCHER), comments=True)


def run(command: Sequence[str], folder: Path) -> None:
    """Run a command in a folder, without what would lead Python back to this repository; raises CalledProcessError."""
    print("+", shlex.join(command), flush=True)
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run(command, cwd=folder, check=True, env=variables)


if __name__ == "__main__":
    sys.exit(main())
