"""`python -m tests.trace [PART ...]` records anew the cases in whose names one of the parts occurs, or all of them."""

from __future__ import annotations

import sys

import torch

from tests.trace.cases import CASES, ToyCase
from tests.trace.driver import toy_takes
from tests.trace.replaying import record
from tests.trace.store import path_of, save


def main(parts: list[str]) -> None:
    torch.set_num_threads(1)
    chosen = [case for name, case in CASES.items() if not parts or any(part in name for part in parts)]
    chosen = [case for case in chosen if not isinstance(case, ToyCase) or toy_takes(case)]
    if not chosen:
        raise SystemExit(f"no case has any of {parts} in its name; there are {', '.join(CASES)}")
    size = 0
    for case in chosen:
        save(case, *record(case))
        size += path_of(case).stat().st_size
        print(f"{case.name}: {path_of(case).stat().st_size:,} bytes", flush=True)
    print(f"{len(chosen)} cases, {size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
