"""Environments of third parties by the commands of a user: trained, evaluated, resumed, in one process and in workers.

The lightest packages of `benchmarks/third_party_packages.py`; `python -m benchmarks.third_party` tries all of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.third_party import PASSES, commands
from benchmarks.third_party_packages import PACKAGES, Case
from relax_rl.cli import main

LIGHTEST = ("mo-gymnasium", "rware", "lbforaging", "minatar", "flappy-bird-gymnasium")
CASES = [case for package in PACKAGES if package.name in LIGHTEST for case in package.cases]


def test_there_is_a_case_of_each() -> None:
    assert len(CASES) == len(LIGHTEST)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.env)
def test_a_package_of_environments_is_served(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = commands(case, tmp_path)
    assert tuple(given) == PASSES
    for command in given.values():
        assert main(command) == 0, capsys.readouterr().err
    assert "return" in capsys.readouterr().out  # of the evaluation
    for name, steps in (("sync", 512), ("async", 256)):
        rows = (tmp_path / name / "progress.csv").read_text(encoding="utf-8").splitlines()
        assert int(rows[-1].split(",")[rows[0].split(",").index("step")]) >= steps
