"""`python -m tests.attack`: every trial of every attack, with a table of what was tried and what failed."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ["RELAX_RL_CACHE"] = ""  # what earlier runs have compiled decides nothing here

import torch

from benchmarks.tasks import commit
from tests.attack import ATTACKS
from tests.attack.report import Row, read, write
from tests.attack.trials import Attack


def main() -> int:
    """Returns the exit code: 1 if anything failed."""
    parser = argparse.ArgumentParser(description="Attack the package; exits with 1 if it does not hold.")
    parser.add_argument("--seed", type=int, default=0, help="of every trial")
    parser.add_argument(
        "--only", metavar="NAME[:NUMBER[-NUMBER]]", help="one attack, or some of its trials, without a report"
    )
    parser.add_argument(
        "--anew", action="store_true", help="try again what has been tried with this seed at this commit"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    name, colon, numbers = (args.only or "").partition(":")
    chosen = [attack for attack in ATTACKS if not name or attack.name == name]
    if not chosen:
        parser.error(f"there is no attack {name!r}, expected one of {', '.join(attack.name for attack in ATTACKS)}")
    if colon and not re.fullmatch(r"\d+(-\d+)?", numbers):
        parser.error(f"the trials are {numbers!r}, expected NUMBER or NUMBER-NUMBER")
    if colon:
        first, _, last = numbers.partition("-")
        return int(bool(attacked(chosen[0], args.seed, range(int(first), int(last or first) + 1), told=True)))
    here, failed = commit(), False
    for attack in chosen:
        row = rows().get(attack.name)
        if row is not None and (row.commit, row.seed, row.tried) == (here, args.seed, attack.trials) and not args.anew:
            print(f"{attack.name}: {row.tried:,} tried before, {len(row.failures)} failed")
            failed |= bool(row.failures)
            continue
        failures = attacked(attack, args.seed, range(attack.trials))
        failed |= bool(failures)
        # Read again: other attacks may have come to their end beside this one.
        found = {**rows(), attack.name: Row(attack.name, attack.what, args.seed, here, attack.trials, failures)}
        write([found[each.name] for each in ATTACKS if each.name in found])
    return int(failed)


def rows() -> dict[str, Row]:
    """The rows of the report, by attack."""
    return {row.attack: row for row in read()}


def attacked(attack: Attack, seed: int, numbers: range, *, told: bool = False) -> list[dict[str, object]]:
    """The trials that failed; progress is shown, and each failure at once."""
    failures: list[dict[str, object]] = []
    shown = time.monotonic()
    for count, number in enumerate(numbers, 1):
        folder = Path(tempfile.mkdtemp(prefix="relax-attack-"))
        try:
            fault = attack.attempt(seed, number, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if fault is not None:
            failures.append({"number": number, "about": attack.about(seed, number), "fault": fault})
            print(f"{attack.name} {number}: {failures[-1]['about']}: {fault}", flush=True)
        elif told:
            print(f"{attack.name} {number}: {attack.about(seed, number)}: held", flush=True)
        if time.monotonic() - shown > 10 or count == len(numbers):
            shown = time.monotonic()
            print(f"{attack.name}: {count:,} of {len(numbers):,} tried, {len(failures)} failed", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(main())
