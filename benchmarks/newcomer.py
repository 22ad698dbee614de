"""A newcomer's way through the documents, timed: from a clone to an environment, networks and a logger of one's own, compared.

    python -m benchmarks.newcomer             # goes the way in a temporary folder, prints the seconds of each step
    python -m benchmarks.newcomer --write     # and writes results/newcomer.md

Every command and every piece of code is one that a page of the documents shows, and is taken from there. Only the last lines of
blocks that use what they define are left out of the newcomer's files, as they are modules there. What is committed is cloned.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tasks import RESULTS, commit, write_text

__all__ = ["STEPS", "Step", "code_of", "commands_of", "main", "walk"]

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Something a newcomer does.

    Attributes:
        what: in the table.
        page: of the documents, where code and commands are taken from.
        file: of the newcomer's own, and the class or function whose block of the page goes into it.
        commands: beginnings of the commands that are run, each of one command of the page.
    """

    what: str
    page: str
    file: tuple[str, str] | None = None
    commands: tuple[str, ...] = ()


LIMITED = "--wrapper gymnasium.wrappers:TimeLimit max_episode_steps=50"
STEPS = (
    Step(
        what="install into an environment of its own",
        page="installation.md",
        commands=(
            "python -m venv",
            ". .venv",
            "pip install -c constraints.txt torch",
            "pip install -c constraints.txt -e",
        ),
    ),
    Step(
        what="an environment of one's own, written and checked",
        page="own_environment.md",
        file=("my_package/envs.py", "Corridor"),
        commands=("python train_agent.py check --env my_package.envs:Corridor",),
    ),
    Step(what="networks of one's own", page="networks.md", file=("my_package/networks.py", "Torso")),
    Step(what="a logger of one's own", page="logging.md", file=("my_package/loggers.py", "Highest")),
    Step(
        what="an agent trained with all three",
        page="own_environment.md",
        commands=(f"python train_agent.py --env my_package.envs:Corridor {LIMITED} --networks",),
    ),
    Step(
        what="the agent evaluated",
        page="own_environment.md",
        commands=(f"python train_agent.py evaluate RUN --env my_package.envs:Corridor {LIMITED} --networks",),
    ),
    Step(
        what="two estimators compared over three seeds, with the report",
        page="own_environment.md",
        commands=("python train_agent.py compare --env my_package.envs:Corridor",),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Go the way; returns the exit code, 1 after a step that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write results/newcomer.md")
    given = parser.parse_args(argv)
    cloned = commit()
    try:
        rows = walk(STEPS)
    except subprocess.CalledProcessError as error:
        print(f"newcomer: failed with code {error.returncode}: {error.cmd}", file=sys.stderr)
        return 1
    table = report(rows, cloned)
    print(table)
    if given.write:
        write_text(RESULTS / "newcomer.md", table)
    return 0


def walk(steps: Sequence[Step], source: Path = ROOT) -> list[tuple[str, str, float]]:
    """Take all steps from a fresh clone of a repository: what, page and seconds of each.

    Raises:
        CalledProcessError: a command failed.
        LookupError: a page no longer shows what a step takes from it.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "relax_rl"
        begun = time.perf_counter()
        run(f"git clone --quiet {shlex.quote(str(source))} {shlex.quote(str(place))}", Path(folder))
        rows = [("clone", "README.md", time.perf_counter() - begun)]
        for step in steps:
            begun = time.perf_counter()
            take(step, place)
            rows.append((step.what, f"docs/{step.page}", time.perf_counter() - begun))
        report_of_theirs = sorted(place.glob("runs/compare-*/report.md"))
        if not report_of_theirs:
            raise LookupError("the comparison has left no report.md")
    return rows


def take(step: Step, place: Path) -> None:
    """Write the file of a step, and run its commands as one script in the shell."""
    page = place / "docs" / step.page
    if step.file is not None:
        path = place / step.file[0]
        path.parent.mkdir(exist_ok=True)
        path.write_text(code_of(page, step.file[1]), encoding="utf-8")
    lines = [command.replace(" RUN ", f" {latest(place)} ") for command in commands_of(page, step.commands)]
    if lines:
        activated = [". .venv/bin/activate"] if (place / ".venv").exists() else []
        run("\n".join([*activated, *lines]), place)


def latest(place: Path) -> str:
    """The run that was made last, as it is typed; RUN where there is none yet."""
    runs = sorted(place.glob("runs/*/config.json"), key=lambda path: path.stat().st_mtime)
    return str(runs[-1].parent.relative_to(place)) if runs else "RUN"


def code_of(page: Path, name: str) -> str:
    """The imports and definitions of the block of a page that defines `name`.

    Raises:
        LookupError: there is no such block, or there are several.
    """
    found = [body for language, body in _BLOCK.findall(page.read_text(encoding="utf-8")) if language == "python"]
    found = [body for body in found if re.search(rf"^(class|def) {name}\b", body, re.MULTILINE)]
    if len(found) != 1:
        raise LookupError(f"{page.name} has {len(found)} blocks that define {name}, expected 1")
    lines, kinds = found[0].splitlines(), (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)
    kept = [node for node in ast.parse(found[0]).body if isinstance(node, kinds)]
    return "\n".join("\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in kept) + "\n"


def commands_of(page: Path, beginnings: Sequence[str]) -> list[str]:
    """The commands of a page that begin so, without the comments behind them.

    Raises:
        LookupError: there is no such command.
    """
    blocks = [body for language, body in _BLOCK.findall(page.read_text(encoding="utf-8")) if language == "bash"]
    lines = [line for body in blocks for line in body.replace("\\\n", " ").splitlines()]
    shown = [part.strip() for line in lines for part in line.split("&&")]
    found = []
    for beginning in beginnings:
        fitting = [command for command in shown if command.startswith(beginning)]
        if not fitting:
            raise LookupError(f"{page.name} shows no command that begins with {beginning!r}")
        found.append(re.sub(r"\s+# .*$", "", fitting[0]))
    return found


def run(script: str, folder: Path) -> None:
    """Run lines of a shell in a folder, each shown; raises CalledProcessError after the first that fails."""
    print("\n".join(f"$ {line}" for line in script.splitlines()), flush=True)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run(["bash", "-e", "-c", script], cwd=folder, check=True, env=kept)


def report(rows: Sequence[tuple[str, str, float]], cloned: str) -> str:
    """The table, and what it was measured on: the commit that was cloned, the machine and how busy it was."""
    lines = ["# A newcomer's way", "", "Seconds of each step, by code and commands of the documents alone:", ""]
    lines += ["| step | page | seconds |", "|---|---|---:|"]
    lines += [f"| {what} | {page} | {seconds:.0f} |" for what, page, seconds in rows]
    lines += [f"| in all | | {sum(seconds for *_, seconds in rows):.0f} |", ""]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[1] if hasattr(os, "getloadavg") else float("nan")
    lines += [
        f"`python -m benchmarks.newcomer --write` at commit {cloned}, on {cores} cores with a load average of {load:.1f} over the",
        "last five minutes, the way's own work included. Reading is not counted, and packages came from wherever `pip` is set up to look.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
