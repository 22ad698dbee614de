"""What `benchmarks` tells of the comparisons that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import contest_curves, contests, run_off
from benchmarks.finalists import Round, early
from relax_rl.errors import RelaxRLError

CURVE: dict[str, Any] = {"steps": [50.0, 100.0], "iqm": ["nan", 4.0], "low": ["nan", 3.0], "high": ["nan", 5.0]}


def entry(*finals: float, steps: float = 10.0) -> dict[str, Any]:
    """A contestant as `comparison.json` has it."""
    median = {"value": steps, "low": steps, "high": steps}
    solved = {"runs": len(finals), "solved": len(finals), "steps": {"median": median}}
    return {
        "runs": [{"final": final, "curve": {"return": [final]}} for final in finals],
        "curve": CURVE,
        "solved": solved,
    }


def result(env: str, **contestants: dict[str, Any]) -> dict[str, Any]:
    return {"environments": {env: {"threshold": 200.0, "contestants": contestants}}}


def test_a_contest_stands_beside_what_is_asked_and_published(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"Pong": result("ALE/Pong-v5", ours=entry(19.0, 19.0, 19.0))}
    monkeypatch.setattr(contests, "read_result", lambda group, name: found.get(name))
    row = contests._row(contests.ATARI["Pong"], contests._entries("Pong", contests.ATARI["Pong"]))
    assert row == "| ALE/Pong-v5 | 4,000,000 | final | 19.0 [19.0, 19.0] | 20.7 (published) |  | 18 | yes |"


def test_ppo_alone_is_told_only_where_it_was_trained_for_the_contest(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"HalfCheetah-v5": None, "Ant-v5": None}
    known = result("any", **{"sb3-ppo": entry(7.0, 7.0)})
    monkeypatch.setattr(contests, "read_result", lambda group, name: found.get(name, known))
    told = {
        name: contests._row(contest, contests._entries(name, contest)) for name, contest in contests.CONTESTS.items()
    }
    assert told["Ant-v5"].startswith("| Ant-v5 | 1,000,000 | final |  | 7.0 [7.0, 7.0]")
    monkeypatch.setattr(contests, "read_result", lambda group, name: known if group == "against_ppo" else None)
    contest = contests.CONTESTS["HalfCheetah-v5"]
    assert contests._row(contest, contests._entries("HalfCheetah-v5", contest)) == ""


def test_curves_of_contests_are_drawn(tmp_path: Path) -> None:
    panels = [
        contest_curves.Panel(
            title=f"task {k}", steps=100, curves={"ours": entry(1.0), "theirs": entry(1.0, 2.0)}, asked=k
        )
        for k in range(5)
    ]
    contest_curves.draw(panels, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RelaxRLError):
        contest_curves.draw(panels, tmp_path / "nowhere" / "curves.png")


def test_rounds_that_end_at_the_threshold_are_told_by_their_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = {
        name: Round(finalists={"a": early()}, steps=500_000, until_solved=until)
        for name, until in (("one", True), ("two", True), ("by curves", False))
    }
    monkeypatch.setattr(run_off, "ROUNDS", rounds)
    found = {
        "one-LunarLander-v3": result("LunarLander-v3", a=entry(201.0, 202.0, steps=1234.0)),
        "two-LunarLander-v3": result("LunarLander-v3", b=entry(201.0, steps=float("inf"))),
    }
    monkeypatch.setattr(run_off, "read_result", lambda group, name: found.get(name))
    lines = run_off._steps_table(run_off._kind(rounds["one"]))
    assert lines[0] == "Steps of LunarLander-v3 until 100 episodes have a mean of 200, of 500,000 at most."
    assert lines[4:] == ["| a | 2 | 2 | 1,234 [1,234, 1,234] |", "| b | 1 | 1 | beyond |", ""]
