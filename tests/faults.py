"""The faults of `faults.txt`, and whether their tests see them in another checkout of the package.

    git worktree add --detach /tmp/before cecd4ec
    python -m tests.faults /tmp/before          # every line: by which test, and how, the older code fails; a few minutes

Runs the tests of this tree on the package of that one, in a folder that holds both. Names that it does not have yet are
stood in for, so that a test fails by what the older code does and not by what it is called.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

__all__ = ["Fault", "faults"]

HERE = Path(__file__).parent
_TITLE = re.compile(r"([A-F]\d+) (.+)")
OWN = ("tests", "docs", "README.md", "CHANGELOG.md", "mkdocs.yml", "Makefile")
"""What comes from this tree; all else is the other checkout's."""


@dataclass(frozen=True)
class Fault:
    """One line of the list.

    Attributes:
        name: its group and number.
        right: what holds now.
        tests: `test_file.py::test_name` of those that fail where it does not.
    """

    name: str
    right: str
    tests: tuple[str, ...]


def faults() -> list[Fault]:
    """The list, in its order."""
    found: list[tuple[str, str, list[str]]] = []
    for line in (HERE / "faults.txt").read_text(encoding="utf-8").splitlines():
        if match := _TITLE.fullmatch(line):
            found.append((*match.groups(), []))  # type: ignore[arg-type]
        elif line.startswith("    "):
            found[-1][2].append(line.strip())
    return [Fault(name, right, tuple(tests)) for name, right, tests in found]


def main() -> None:
    """Run every test that is named on the other checkout, and print how each line fares there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder with the other code")
    parser.add_argument("--only", nargs="+", help="names of lines")
    arguments = parser.parse_args()
    if not (arguments.checkout / "relax_rl").is_dir():
        parser.error(f"{arguments.checkout} is no checkout: it has no folder relax_rl")
    if unknown := set(arguments.only or ()) - {fault.name for fault in faults()}:
        parser.error(f"there is no line {', '.join(sorted(unknown))}")
    chosen = [fault for fault in faults() if not arguments.only or fault.name in arguments.only]
    failures = dict(_failures(arguments.checkout.resolve(), sorted({t for fault in chosen for t in fault.tests})))
    print("| | what is right | fails there by |\n|---|---|---|")
    unseen = 0
    for fault in chosen:
        seen = {test: failures[test] for test in fault.tests if test in failures}
        unseen += not seen
        how = "; ".join(f"`{test.partition('::')[2]}`: {why}" for test, why in seen.items()) or "**nothing**"
        print(f"| {fault.name} | {fault.right} | {how} |")
    sys.exit(1 if unseen else 0)


def _failures(checkout: Path, tests: list[str]) -> Iterator[tuple[str, str]]:
    """Tests that fail there, and the first line of why."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for path in checkout.iterdir():
            if path.name not in OWN and not path.name.startswith("."):
                (root / path.name).symlink_to(path)
        for name in OWN:
            if (HERE.parent / name).exists():
                (root / name).symlink_to(HERE.parent / name)
        for _, group in groupby(
            tests, lambda test: test.partition("::")[0]
        ):  # one that cannot be imported spoils no other
            yield from _of_file(root, list(group))


def _of_file(root: Path, tests: list[str]) -> Iterator[tuple[str, str]]:
    report = root / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-c", "from tests.faults import run; run()", *(f"tests/{test}" for test in tests)]
    command += ["-q", "-p", "no:cacheprovider", "--timeout", "120", f"--junitxml={report}", f"--rootdir={root}"]
    subprocess.run([*command, "-c", os.devnull], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=False)
    if report.exists() and ElementTree.parse(report).find(".//testcase[@classname='']") is not None:
        yield from ((test, "its file cannot be imported there") for test in tests)
    elif report.exists():
        yield from _read(report, tests)
    elif len(tests) > 1:  # one of them has ended the process
        for test in tests:
            yield from _of_file(root, [test])
    else:
        yield tests[0], "the process that runs it ends"


def _read(report: Path, tests: list[str]) -> Iterator[tuple[str, str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):
        for outcome in (*case.iter("failure"), *case.iter("error")):
            reason = (outcome.get("message") or "").partition("\n")[0][:100]
            module, name = case.get("classname", "").rpartition(".")[2], case.get("name", "").partition("[")[0]
            if (test := f"{module}.py::{name}") in tests:
                found[test].append(reason)
    for test, reasons in found.items():
        yield test, f"{reasons[0]}" + (f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else "")


class StandIns(MetaPathFinder):
    """Modules of the package that are not there yet, and names that modules do not have."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not fullname.startswith("relax_rl"):
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is None:
            return ModuleSpec(fullname, _Empty(), is_package=True)
        execute = getattr(spec.loader, "exec_module")  # noqa: B009

        def exec_module(module: ModuleType) -> None:
            execute(module)
            module.__dict__.setdefault("__getattr__", _stand_in)

        spec.loader.exec_module = exec_module  # type: ignore[union-attr, method-assign]
        return spec


class _Empty(Loader):
    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__getattr__"] = _stand_in


class _Absent(type):
    """The class of stand-ins, which have stand-ins for whatever is asked of them."""

    def __getattr__(cls, name: str) -> Any:
        return _stand_in(name)


def _stand_in(name: str) -> Any:
    """A class that is neither raised nor of use."""
    if name.startswith("_"):
        raise AttributeError(name)
    return _Absent(name, (Exception,), {})


def run() -> None:
    """The tests that are named on the command line, on a package that may lack what they import."""
    sys.meta_path.insert(0, StandIns())
    sys.exit(pytest.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
