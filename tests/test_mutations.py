"""Mistakes that published code makes, planted one by one: each must make the test that is named beside it fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.planting import ROOT, source_of

Planting = Callable[[dict[str, Any]], dict[str, Any]]


def read_mistakes() -> dict[str, dict[str, Any]]:
    """By name: the module, what in it becomes what, and the test that must notice."""
    found = {}
    for block in Path(__file__).with_name("mistakes.txt").read_text(encoding="utf-8").split("\n\n")[1:]:
        name, place, *lines = block.strip().splitlines()
        module, test = place.split(" ", 1)
        old, new = ("\n".join(line[1:] for line in lines if line[0] == sign) for sign in "-+")
        found[name] = {"module": module, "old": old, "new": new, "tests": [test]}
    return found


MISTAKES = read_mistakes()


@pytest.fixture(scope="module")
def planting() -> Iterator[Planting]:
    """Plants a mistake and runs tests, in a process that the other tests have not touched."""
    command = [sys.executable, "-m", "tests.planting"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        questions, answers = process.stdin, process.stdout

        def plant(request: dict[str, Any]) -> dict[str, Any]:
            print(json.dumps(request), file=questions, flush=True)
            answer: dict[str, Any] = json.loads(answers.readline())
            return answer

        try:
            yield plant
        finally:
            process.kill()


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_found(name: str, planting: Planting) -> None:
    mistake = MISTAKES[name]
    text = source_of(mistake["module"]).read_text(encoding="utf-8")
    assert text.count(mistake["old"]) == 1, "it has lost its place: bring it up to date with the code"
    found = planting(mistake)
    assert found["code"] == 1, f"nothing noticed (exit code {found['code']}):\n{found['log']}"


def test_without_a_mistake_all_is_well(planting: Planting) -> None:
    one_a_file = {mistake["tests"][0].split("::")[0]: mistake["tests"][0] for mistake in MISTAKES.values()}
    found = planting({"tests": list(one_a_file.values())})
    assert found["code"] == 0, found["log"]


def test_there_are_as_many_mistakes_as_there_were() -> None:
    assert len(MISTAKES) >= 34
