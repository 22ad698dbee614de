"""Environments of third parties: whether each trains, evaluates, resumes and runs in worker processes.

    python -m benchmarks.third_party                     # all that no earlier call has tried at this commit
    python -m benchmarks.third_party --only minigrid highway-env --again
    python -m benchmarks.third_party --report            # results/third_party.md from what is there

Each package of `benchmarks/third_party_packages.py` gets an environment of its own under `runs/third_party/`, which sees
the packages of this one (PyTorch above all) and shadows them where it needs other versions. The passes are the commands
that a user types, a few hundred steps each: what is tried is whether they fit together, not what is learned.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.tasks import RESULTS, commit, write_json, write_text
from benchmarks.third_party_packages import PACKAGES, Case, Package

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs" / "third_party"
FILE = RESULTS / "third_party.json"
SECONDS = 300.0
"""After which a command is killed, and counts as failed."""
PASSES = ("trains", "evaluates", "resumes", "async")


def main() -> None:
    """Try what is asked for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[package.name for package in PACKAGES], help="names of packages")
    parser.add_argument("--again", action="store_true", help="try what has been tried already")
    parser.add_argument("--report", action="store_true", help="write the table alone")
    arguments = parser.parse_args()
    known: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    chosen = [] if arguments.report else [x for x in PACKAGES if not arguments.only or x.name in arguments.only]
    for package in chosen:
        missing = [case for case in package.cases if arguments.again or case.env not in known.get(package.name, {})]
        if not missing:
            continue
        python, installed = environment_of(package)
        for case in missing:
            print(f"{package.name} {case.env}", end=" ", flush=True)
            found = {"installation": installed} if installed else tried(python, case, dict(package.variables))
            print(", ".join(f"{name}: {outcome}" for name, outcome in found.items()), flush=True)
            known.setdefault(package.name, {})[case.env] = {
                "requirements": package.requirements,
                "commit": commit(),
                **asdict(case),
                "outcomes": found,
            }
            write_json(FILE, known)
    write_text(RESULTS / "third_party.md", table(known))


def environment_of(package: Package) -> tuple[Path, str]:
    """Its Python, and what kept the package from being installed, if anything did."""
    folder = RUNS / "environments" / package.name
    python = folder / "bin" / "python"
    done = folder / "installed"
    if done.exists() and done.read_text(encoding="utf-8") == " ".join(package.requirements):
        return python, ""
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    (site / "shared.pth").write_text("\n".join(here) + "\n", encoding="utf-8")
    # A package that asks for an open range of PyTorch is content with the one that is there.
    only = [
        line
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line.startswith("torch==")
    ]
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(only), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    result = subprocess.run(
        [*command, "-c", str(constraints), *package.requirements], capture_output=True, text=True, check=False
    )
    if result.returncode:
        return python, last_line(result.stderr)
    done.write_text(" ".join(package.requirements), encoding="utf-8")
    return python, ""


def commands(case: Case, run: Path) -> dict[str, list[str]]:
    """What a user types, by the name of the pass; runs lie in a folder."""
    few = ["--num-envs", "2", "--num-steps", "16", "--no-tensorboard", "--quiet", "--eval-episodes", "1"]
    begin = ["train", "--env", case.env, *case.options, "--total-steps", "256", *few]
    again = ["--env", case.env]  # a module that only a file names is not imported
    return {
        "trains": [*begin, "--run-dir", str(run / "sync"), "--vectorization", case.vectorization],
        "evaluates": ["evaluate", str(run / "sync"), "--episodes", "2", "--step-limit", "100", *again],
        "resumes": ["train", "--resume", str(run / "sync"), "--total-steps", "512", "--quiet", *again],
        "async": [*begin, "--run-dir", str(run / "async"), "--vectorization", "async"],
    }


def tried(python: Path, case: Case, variables: dict[str, str]) -> dict[str, str]:
    """How each pass ends: "ok", or what its last line says."""
    run = RUNS / "runs" / case.env.replace("/", "-").replace(":", "-")
    shutil.rmtree(run, ignore_errors=True)
    outcomes: dict[str, str] = {}
    for name, command in commands(case, run).items():
        outcomes[name] = outcome_of(python, command, variables)
        if name == "trains" and outcomes[name] != "ok":
            break
    return outcomes


def outcome_of(python: Path, command: Iterable[str], variables: dict[str, str]) -> str:
    """How a command of the package ends there."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy", **variables}
    try:
        result = subprocess.run(
            [str(python), str(ROOT / "train_agent.py"), *command],
            cwd=RUNS,
            env=environ,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"still at work after {SECONDS:.0f} s"
    return "ok" if not result.returncode else f"{result.returncode}: {last_line(result.stderr)}"


def last_line(text: str) -> str:
    """Of an error; the first 300 characters."""
    return ([line for line in text.splitlines() if line.strip()] or ["no word"])[-1].strip()[:300]


def table(known: dict[str, Any]) -> str:
    """One row for each environment, and under it what failed."""
    rows, failures, served = [], [], 0
    for package in PACKAGES:
        for case in package.cases:
            found = known.get(package.name, {}).get(case.env)
            if found is None:
                continue
            outcomes = found["outcomes"]
            passed = [outcomes.get(name) == "ok" for name in PASSES]
            served += all(passed)
            marks = " | ".join(
                "yes" if ok else ("no" if name in outcomes else "-") for ok, name in zip(passed, PASSES, strict=True)
            )
            what = " ".join(f"`{word}`" for word in case.options) or "-"
            rows.append(f"| {' '.join(package.requirements)} | `{case.env}` | {what} | {marks} |")
            wrong = "; ".join(f"{name}: {said}" for name, said in outcomes.items() if said != "ok")
            if wrong or case.note or package.note:
                failures.append(f"- `{case.env}`: {' '.join(filter(None, (case.note, package.note, wrong)))}")
    head = (
        "# Environments of third parties\n\n`python -m benchmarks.third_party`: the commands of a user, 256 steps, "
        f"2 environments; {served} of {len(rows)} pass all.\n\n"
        f"| packages | `--env` | options | {' | '.join(PASSES)} |\n|---|---|---|{'---|' * len(PASSES)}\n"
    )
    return head + "\n".join(rows) + ("\n\n" + "\n".join(failures) if failures else "") + "\n"


if __name__ == "__main__":
    main()
