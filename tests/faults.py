"""The faults of `faults.txt`, and whether their tests see them in another checkout of the package.

    git worktree add --detach /tmp/before cecd4ec
    python -m tests.faults /tmp/before          # every line: by which test, and how, the older code fails

Runs the tests of this tree on the package of that one, in a folder that holds both.
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
from pathlib import Path

__all__ = ["Fault", "faults"]

HERE = Path(__file__).parent
_TITLE = re.compile(r"([A-F]\d+) (.+)")
OWN = ("tests", "docs", "README.md", "CHANGELOG.md", "mkdocs.yml", "Makefile", "MANIFEST.in")
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
        report = root / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
        command += ["--timeout", "120", f"--junitxml={report}", f"--rootdir={root}", "-c", os.devnull]
        named = [f"tests/{test}" for test in tests]
        subprocess.run([*command, *named], cwd=root, env={**os.environ, "PYTHONPATH": folder}, check=False)
        yield from _read(report, tests)


def _read(report: Path, tests: list[str]) -> Iterator[tuple[str, str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):
        for outcome in (*case.iter("failure"), *case.iter("error")):
            reason = (outcome.get("message") or "").partition("\n")[0][:100]
            module = (case.get("classname") or case.get("name") or "").rpartition(".")[2]
            name = (case.get("name") or "").partition("[")[0]
            for test in tests:
                file, _, function = test.partition("::")
                whole = not case.get("classname")  # a module that cannot be imported there
                if file == f"{(name if whole else module).rpartition('.')[2]}.py" and (whole or function == name):
                    found[test].append("its module cannot be imported there" if whole else reason)
    for test, reasons in found.items():
        yield test, f"{reasons[0]}" + (f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else "")


if __name__ == "__main__":
    main()
