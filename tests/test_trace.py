"""Agents, VAE estimators and contestants of the toy go on taking the very steps that were recorded; see `tests.trace`."""

from __future__ import annotations

import pytest

from tests.trace.cases import CASES, ToyCase
from tests.trace.driver import toy_takes
from tests.trace.replaying import replay
from tests.trace.store import DATA, differences, load, machine, path_of

TAKEN = {name: case for name, case in CASES.items() if not isinstance(case, ToyCase) or toy_takes(case)}
WAYS = [
    pytest.param(name, compiled, id=f"{name}-compiled" if compiled else name)
    for name, case in TAKEN.items()
    for compiled in ([False, True] if case.compiled else [False])
]


@pytest.mark.parametrize(("name", "compiled"), WAYS)
def test_steps_are_those_that_were_recorded(name: str, compiled: bool) -> None:
    case = TAKEN[name]
    recorded_on, inputs, expected = load(case)
    if recorded_on != machine():
        pytest.skip(f"the numbers are of {recorded_on}, this is {machine()}")
    found = differences(case, replay(case, inputs, compiled=compiled), expected)
    assert not found, "\n".join([f"{len(found)} differences", *found[:12]])


def test_every_case_is_recorded_and_nothing_else() -> None:
    assert {path_of(case) for case in TAKEN.values()} == set(DATA.rglob("*.npz"))


def test_the_numbers_stay_small() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*.npz")) < 5_000_000
