"""Callbacks: each does its one thing at the right moments. The agent is a stand-in that only counts."""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass

import pytest

from relax_rl.agents import UpdateInfo
from relax_rl.compute.serialization import write_json
from relax_rl.envs import Episode
from relax_rl.runs.agent import AgentRun
from relax_rl.runs.callbacks import (
    CountEpisodes,
    Every,
    KeepBest,
    LogProgress,
    PeriodicEvaluation,
    SaveCheckpoints,
    note_compiled,
    show_progress,
    stop_at_return,
    stop_when_interrupted,
)
from relax_rl.runs.displays import Display
from relax_rl.runs.evaluation import Scores
from relax_rl.runs.folder import RunFolder
from relax_rl.runs.interruption import Interruption
from relax_rl.runs.record import read_record
from tests.fakes import Rows


@dataclass
class Counter:
    """An agent that only counts."""

    steps: int = 0
    episodes: int = 0
    compiled_from: int | None = None

    def watch(self, section):
        """Measure nothing."""


def updates(agent, callbacks, count, *, steps=10, returns=(), metric=1.0):
    """Let that many updates happen; returns what the last call of each callback returned."""
    answers = []
    for _ in range(count):
        agent.steps += steps
        agent.episodes += len(returns)
        episodes = tuple(Episode(r, 5) for r in returns)
        info = UpdateInfo(agent.steps, agent.steps // steps, episodes, {"losses/value": metric})
        answers = [getattr(callback, "on_count", callback)(agent, info) for callback in callbacks]
    return answers


def test_every_counts_multiples_passed():
    every = Every(100, 250)
    assert [every.due(step) for step in (260, 299, 300, 301, 399, 650, 660, 700)] == [
        *(False, False, True, False, False, True, False, True)
    ]


def test_rows_once_per_interval_with_means_since_the_last_one():
    agent, rows = Counter(), Rows()
    run = AgentRun(agent)
    log = LogProgress(run, [rows], interval=40)
    count = CountEpisodes(run)
    updates(agent, [count, log], 4, metric=1.0)
    updates(agent, [count, log], 2, metric=2.0, returns=[7.0, 9.0])
    updates(agent, [count, log], 2, metric=4.0)
    assert [row["step"] for row in rows.rows] == [40, 80]
    assert [row["losses/value"] for row in rows.rows] == [1.0, 3.0]
    assert math.isnan(rows.rows[0]["return_mean"]) and rows.rows[1]["return_mean"] == 8.0
    assert rows.rows[1]["episodes"] == 4 and rows.rows[1]["length_mean"] == 5.0
    assert list(rows.rows[0])[:5] == ["step", "episodes", "return_mean", "seconds", "steps_per_second"]
    assert rows.rows[0]["steps_per_second"] > 0 and rows.rows[1]["seconds"] >= rows.rows[0]["seconds"]


def test_the_last_row_is_written_once():
    agent, rows = Counter(), Rows()
    log = LogProgress(AgentRun(agent), [rows], interval=40)
    updates(agent, [log], 5)
    log.write()
    log.write()
    assert [row["step"] for row in rows.rows] == [40, 50]


def test_the_display_hears_the_mean_return():
    class Listener(Display):
        def __init__(self):
            self.heard = []

        def update(self, step, return_mean):
            self.heard.append((step, return_mean))

    agent, display = Counter(), Listener()
    run = AgentRun(agent)
    callbacks = [CountEpisodes(run), show_progress(run, display)]
    updates(agent, callbacks, 1)
    updates(agent, callbacks, 1, returns=[3.0, 5.0])
    updates(agent, callbacks, 1)
    assert math.isnan(display.heard[0][1])
    assert display.heard[1:] == [(20, 4.0), (30, 4.0)]


@pytest.mark.parametrize("before", [[], [474.0] * 100])
def test_stopping_goes_by_the_last_hundred_episodes(before):
    agent = Counter()
    run = AgentRun(agent)
    callbacks = [CountEpisodes(run), stop_at_return(run, 475.0)]
    assert updates(agent, callbacks, 1, returns=before)[1] is True
    assert updates(agent, callbacks, 99, returns=[475.0])[1] is True
    assert updates(agent, callbacks, 1, returns=[475.0])[1] is False


def test_a_signal_stops_and_is_told():
    class Listener(Display):
        said = ""

        def say(self, line):
            self.said += line

    agent, interruption, display = Counter(), Interruption(), Listener()
    stop = stop_when_interrupted(interruption, display)
    assert updates(agent, [stop], 2) == [True]
    interruption.signal = signal.SIGTERM
    assert updates(agent, [stop], 1) == [False]
    assert display.said.startswith("SIGTERM")


class Folder:
    """Counts checkpoints."""

    def __init__(self):
        self.saved = []

    def save(self, run):
        self.saved.append(run.steps)
        return f"step {run.steps}"


def test_checkpoints_once_per_interval_and_one_at_the_end():
    agent, folder, drawn = Counter(), Folder(), []
    save = SaveCheckpoints(AgentRun(agent), folder, interval=30, after=lambda: drawn.append(agent.steps))
    updates(agent, [save], 7)
    assert folder.saved == drawn == [30, 60]
    assert save.save() == "step 70"
    assert save.save() == save.last == "step 70"
    assert folder.saved == [30, 60, 70]


def test_a_resumed_run_does_not_save_what_it_has():
    agent, folder = Counter(steps=50), Folder()
    save = SaveCheckpoints(AgentRun(agent), folder, interval=30, last="step 50")
    assert save.save() == "step 50" and folder.saved == []
    updates(agent, [save], 1)
    assert folder.saved == [60]


@pytest.fixture
def evaluation():
    """A `PeriodicEvaluation` whose evaluations return the scores in `scores`, and what it did."""
    scores, rows, best, agent = [], Rows(), [], Counter()
    run = AgentRun(agent)
    callback = PeriodicEvaluation(
        run,
        interval=20,
        play=lambda: scores.pop(0),
        log=rows.log,
        save_best=lambda: best.append(agent.steps),
    )
    return callback, scores, rows, best, run


def test_the_best_agent_is_kept(evaluation):
    callback, scores, rows, best, run = evaluation
    scores += [Scores((1.0, 3.0), (4, 6)), Scores((0.0, 1.0), (1, 1)), Scores((2.0, 2.0), (1, 1)), Scores((3.0,), (1,))]
    updates(run.agent, [callback], 8)
    assert [row["return_mean"] for row in rows.rows] == [2.0, 0.5, 2.0, 3.0]
    assert rows.rows[0] | {"seconds": 0} == {
        "step": 20,
        "episodes": 2,
        "return_mean": 2.0,
        "return_std": 1.0,
        "length_mean": 5.0,
        "seconds": 0,
    }
    assert best == [20, 80] and run.best_evaluation == 3.0


def test_an_evaluation_that_was_broken_off_leaves_nothing(evaluation):
    callback, scores, rows, best, run = evaluation
    scores.append(None)
    updates(run.agent, [callback], 2)
    assert rows.rows == [] and best == []


def test_the_variance_ratio_is_that_of_the_means():
    agent, rows = Counter(), Rows()
    log = LogProgress(AgentRun(agent), [rows], interval=20)
    for variance, plain in ((1.0, 0.001), (1.0, 3.999)):
        agent.steps += 10
        log(agent, UpdateInfo(agent.steps, 1, (), {"estimate/variance": variance, "estimate/variance_a2c": plain}))
    assert rows.rows[0]["estimate/variance_ratio"] == pytest.approx(0.5)


def test_the_record_tells_since_when_code_was_compiled(tmp_path, monkeypatch):
    folder, agent = RunFolder(tmp_path), Counter()
    write_json(folder.config, {"agent": {}, "compiled_from": None})
    look = note_compiled(folder, agent)
    for compiled_from in (None, 3, None):
        agent.compiled_from = compiled_from
        updates(agent, [look], 2)
        assert read_record(folder) == {"agent": {}, "compiled_from": compiled_from}
    monkeypatch.setattr("relax_rl.runs.callbacks.note", lambda *_, **__: pytest.fail("nothing has changed"))
    updates(agent, [look], 2)


def test_the_best_agent_by_its_training_is_kept_once_a_hundred_episodes_tell():
    agent, saved = Counter(), []
    run = AgentRun(agent)
    keep = KeepBest(run, interval=20, save_best=lambda: saved.append((agent.steps, run.best_return)))
    callbacks = [CountEpisodes(run), keep]
    updates(agent, callbacks, 4, returns=[9.0] * 20)
    assert saved == [] and run.best is None
    updates(agent, callbacks, 2, returns=[9.0] * 10)
    assert saved == [(60, 9.0)]
    updates(agent, callbacks, 2, returns=[9.0] * 10)
    updates(agent, callbacks, 6, returns=[3.0] * 20)
    assert saved == [(60, 9.0)] and (run.best, run.best_step) == (9.0, 60)
    updates(agent, callbacks, 5, returns=[11.0] * 20)
    keep.look()
    assert saved[1:] == [(180, pytest.approx(9.4)), (190, 11.0)] and run.best_step == 190
