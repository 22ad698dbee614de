"""The benchmark of the library beside the command line: its script learns, and its report says what was measured."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stdout
from typing import Any

import pytest

from benchmarks import library_speed
from benchmarks.library_speed import COMMAND, LIBRARY, SCRIPT, UNDER_WAY, measure, report


def test_the_script_learns_and_tells_when(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["-c", "CartPole-v1", "1000", "3", "8", "off"])
    with redirect_stdout(io.StringIO()) as out:
        exec(compile(SCRIPT, "script", "exec"), {})
    told = json.loads(out.getvalue())
    assert told["step"][-1] >= 1000 and told["seconds"] == sorted(told["seconds"]) and told["compiled_from"] is None
    assert len(told["step"]) == len(told["seconds"])


def test_the_two_take_turns_and_the_ratio_is_that_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[tuple[str, int]] = []

    def timed(who: str, env: str, seed: int, **_: Any) -> dict[str, Any]:
        turns.append((who, seed))
        seconds = {LIBRARY: [1.0, 2.0, 4.0], COMMAND: [2.0, 3.0, 4.0]}[who][seed]
        return {"steps": 12_000, "seconds": seconds, "process": seconds + 1, "compiled_from": None}

    monkeypatch.setattr(library_speed, "timed", timed)
    found = measure("CartPole-v1", rounds=3, steps=2 * UNDER_WAY, compile="off")
    assert turns == [(LIBRARY, 0), (COMMAND, 0), (COMMAND, 1), (LIBRARY, 1), (LIBRARY, 2), (COMMAND, 2)]
    assert found["ratio"] == 1.5  # the median of 2, 3 / 2 and 1
    about = {"steps": 14_000, "rounds": 3, "compile": "off", "cores": 2, "commit": "none"}
    text = report({"busy": {**about, "tasks": {"CartPole-v1": found}}})
    assert "## On one core in use by something else" in text
    assert "| CartPole-v1 | agent.learn | 6,000 [3,000, 12,000] | 3.0 | 1.50 |" in text
    assert "| CartPole-v1 | command line | 4,000 [3,000, 6,000] | 4.0 |  |" in text
