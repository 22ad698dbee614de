"""Where the time goes: sections that add up, files that say so, and nothing where nobody asked."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from relax_rl.compute.clocks import Stopwatch, unwatched
from relax_rl.runs.profile import SECTIONS, Profile
from relax_rl.runs.training import train
from tests.steps import small_run


class Clock:
    """A clock that is put forward by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("relax_rl.compute.clocks.time.perf_counter", clock)
    return clock


def test_a_section_lasts_until_the_next_one(clock: Clock) -> None:
    waits: list[float] = []
    watch = Stopwatch(lambda: waits.append(clock.now))
    for section, seconds in (("act", 1.0), ("env", 2.0), ("act", 4.0), ("env", 8.0)):
        watch(section)
        clock.now += seconds
    watch(None)
    clock.now += 16.0
    watch("act")
    assert watch.seconds == {"act": 5.0, "env": 10.0}
    assert waits == [0.0, 1.0, 3.0, 7.0, 15.0, 31.0]


def test_a_reset_forgets_but_the_section_goes_on(clock: Clock) -> None:
    watch = Stopwatch()
    watch("act")
    clock.now += 1.0
    watch.reset()
    clock.now += 2.0
    watch(None)
    assert watch.seconds == {"act": 2.0}


def profiled(path: Path, estimator: str, steps: int) -> tuple[dict, str, list[dict]]:
    settings = {"num_envs": 2, "total_steps": steps, "eval_interval": 100, "eval_episodes": 1, "profile": True}
    result = train(small_run(path, "CartPole-v1", estimator, **settings))
    assert isinstance(result.agent.watch, Stopwatch)
    trace = path / "profile_trace.json"
    events = json.loads(trace.read_text())["traceEvents"] if trace.exists() else []
    assert not list(path.rglob("*.tmp"))
    return json.loads((path / "profile.json").read_text()), (path / "profile.md").read_text(), events


def test_a_profiled_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    started = time.perf_counter()
    report, table, events = profiled(tmp_path / "run", "relax", 400)
    seconds = time.perf_counter() - started
    assert capfd.readouterr() == ("", "")
    assert report["environment"] == "CartPole-v1" and report["estimator"] == "relax" and report["batch"] == "2 x 5"
    sections = report["sections"]
    assert list(sections) == [name for name in SECTIONS if name != "communication" and name in sections]
    assert {"act", "env", "advantage", "estimate", "backward", "optimiser", "surrogate", "logging"} <= sections.keys()
    assert sum(entry["share"] for entry in sections.values()) == pytest.approx(1.0)
    whole = report["ms_per_update"]
    assert whole == pytest.approx(sum(entry["ms_per_update"] for entry in sections.values()))
    assert report["updates"] >= 27 and 0.0 < 1e-3 * whole * report["updates"] < seconds
    for name, entry in sections.items():
        assert f"| {name} | {entry['ms_per_update']:.3f} | {entry['share']:.1%} |" in table
    marked = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert marked.count("surrogate") == marked.count("estimate") == 3 and marked.count("env") == 15


def test_a_run_too_short_to_measure_says_so(tmp_path: Path) -> None:
    report, table, events = profiled(tmp_path / "run", "a2c", 110)  # ends while it is being traced
    assert report["updates"] == 0 and report["sections"] == {}
    assert "the run ended within its first 13 updates" in table
    assert events


def test_nothing_is_measured_unasked(tmp_path: Path) -> None:
    path = tmp_path / "run"
    result = train(small_run(path, "CartPole-v1", "a2c", total_steps=50))
    assert result.agent.watch is unwatched
    assert not list(path.glob("profile*"))


def test_a_profile_without_any_update(tmp_path: Path) -> None:
    Profile(Stopwatch(), tmp_path, about={"environment": "none"}).close()
    assert json.loads((tmp_path / "profile.json").read_text())["updates"] == 0
