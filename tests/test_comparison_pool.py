"""Worker processes and their queue, with workers that only pretend; and how it all is shown."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from relax_rl.comparison.plan import Folder
from relax_rl.comparison.pool import Task, WorkerPool
from relax_rl.comparison.progress import Board, LinesView, SilentView, TableView, make_view
from relax_rl.comparison.worker_process import WorkerProcess, local_workers
from relax_rl.errors import SettingsError
from relax_rl.runs.interruption import Interruption

WORKER = """
import json, os, signal, sys, time
stopped = False
def stop(*_):
    global stopped
    stopped = True
signal.signal(signal.SIGTERM, stop)
for line in sys.stdin:
    task = json.loads(line)
    def tell(**message):
        print(json.dumps(message), flush=True)
    tell(event="progress", step=5, return_mean=1.5, steps_per_second=10.0)
    what = task["what"]
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "leave":
        open(task["log"], "w").write("left")
        sys.exit(3)
    if what == "fail":
        tell(event="done", outcome={"status": "failed", "error": "no luck"})
        continue
    while what == "wait" and not stopped:
        time.sleep(0.02)
    if stopped:
        tell(event="done", outcome={"status": "interrupted"})
        break
    tell(event="done", outcome={"status": "finished", "steps": 10, "return_mean": 2.0, "pid": os.getpid()})
"""


class Queue:
    """A source that keeps what has ended."""

    def __init__(self, *whats: str) -> None:
        self.tasks = [Task(f"{what}-{k}", ("E", what), 10, {"what": what}) for k, what in enumerate(whats)]
        self.ended: dict[str, dict] = {}

    def next(self) -> Task | None:
        return self.tasks.pop(0) if self.tasks else None

    def finished(self, task: Task, outcome) -> None:
        self.ended[task.name] = dict(outcome)


@pytest.fixture
def command(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    return [sys.executable, "-S", str(script)]


class Quiet(SilentView):
    def __init__(self) -> None:
        super().__init__(Board(1))


@pytest.mark.parametrize("workers", [1, 2])
def test_all_tasks_are_done_by_at_most_so_many_workers(tmp_path, command, workers):
    queue = Queue(*["work"] * 6)
    with WorkerPool(workers, tmp_path, start=local_workers(command=command)) as pool:
        assert pool.run(queue, Quiet(), Interruption())
        again = Queue("work")
        assert pool.run(again, Quiet(), Interruption())
    pids = {outcome["pid"] for outcome in (*queue.ended.values(), *again.ended.values())}
    assert len(queue.ended) == 6 and 1 <= len(pids) <= workers, "workers are used again"


def test_what_fails_does_not_stop_the_rest(tmp_path, command, capsys):
    queue = Queue("work", "die", "fail", "leave", "work")
    with WorkerPool(1, tmp_path, start=local_workers(command=command)) as pool:
        assert pool.run(queue, Quiet(), Interruption())
    assert queue.ended["die-1"] == {"status": "failed", "error": "its process was ended by SIGKILL (out of memory?)"}
    assert queue.ended["fail-2"]["error"] == "no luck"
    assert queue.ended["leave-3"]["error"] == f"its process ended with code 3, see {tmp_path / 'leave-3.log'}"
    assert queue.ended["work-0"]["status"] == queue.ended["work-4"]["status"] == "finished"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[1] == "fail-2: failed: no luck"


def test_an_interruption_lets_workers_save_and_begins_nothing_more(tmp_path, command):
    interruption, queue = Interruption(), Queue("wait", "work")

    class Interrupting(Quiet):
        def progress(self, task, message) -> None:
            interruption.signal = signal.SIGINT

    with WorkerPool(1, tmp_path, start=local_workers(command=command)) as pool:
        assert not pool.run(queue, Interrupting(), interruption)
    assert queue.ended == {} and len(queue.tasks) == 1


def test_a_worker_that_somebody_else_stops_is_a_failure(tmp_path, command):
    queue = Queue("wait", "work")

    class Stopping(Quiet):
        def progress(self, task, message) -> None:
            if task.name == "wait-0":
                os.kill(pool._posts[0].worker.process.pid, signal.SIGTERM)

    with WorkerPool(1, tmp_path, start=local_workers(command=command)) as pool:
        assert pool.run(queue, Stopping(), Interruption())
    assert queue.ended["wait-0"] == {"status": "failed", "error": "stopped from outside"}
    assert queue.ended["work-1"]["status"] == "finished"


def test_a_folder_is_held_by_its_workers_too(tmp_path, command):
    folder = Folder(tmp_path / "comparison")
    folder.create()
    with folder.locked() as held:
        with pytest.raises(SettingsError, match="is being worked on"), folder.locked():
            pass
        pool = WorkerPool(1, tmp_path, start=local_workers(command=command, held=held))
        assert pool.run(Queue("work"), Quiet(), Interruption())
    with pytest.raises(SettingsError, match="is being worked on"), folder.locked():
        pass
    pool.close()
    with folder.locked():
        pass
    (folder.settings).write_text("{}")
    with pytest.raises(SettingsError, match="already holds a comparison"):
        folder.create()


def a_task(label: str = "relax", seed: int = 0) -> Task:
    return Task(f"CartPole-v1-{label}-s{seed}", ("CartPole-v1", label), 1000, {})


def test_the_board_counts():
    board = Board(num_workers=2)
    board.plan([(("CartPole-v1", label), 1000) for label in ("relax", "a2c") for _ in range(3)])
    assert board.time_left() is None
    board.started(a_task())
    board.progress(a_task(), {"step": 400, "return_mean": 20.0, "steps_per_second": 100.0})
    row = board.rows["CartPole-v1", "relax"]
    assert (row.done, row.total, row.mean_return, row.steps_to_go) == (0, 3, 20.0, 2600)
    # Two workers, 100 steps a second each; a2c counts with relax's speed.
    assert board.time_left() == pytest.approx((2600 + 3000) / 200)
    assert board.time_left([row]) == pytest.approx(13.0)
    board.ended(a_task(), {"status": "finished", "return_mean": 30.0})
    board.started(a_task(seed=1))
    board.ended(a_task(seed=1), {"status": "diverged", "error": "inf"})
    assert (row.done, row.failed, row.steps_left, row.mean_return) == (2, 1, 1000, 30.0)
    board.started(a_task(seed=2))
    board.ended(a_task(seed=2), {"status": "interrupted"})
    assert row.done == 2 and not row.running


def test_the_live_table(monkeypatch):
    view = TableView(Board(num_workers=1))
    view.board.plan([((env, label), 1000) for env in ("CartPole-v1", "Acrobot-v1") for label in ("relax", "a2c")])
    view.started(a_task())
    view.progress(a_task(), {"step": 400, "return_mean": 20.0, "steps_per_second": 100.0})
    console = Console(file=io.StringIO(), width=120)
    console.print(view.table())
    lines = console.file.getvalue().splitlines()
    row = next(line for line in lines if "relax" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "CartPole-v1",
        "relax",
        "0 of 1",
        "400",
        "20.0",
        "100",
        "0:06",
    ]
    assert sum("CartPole-v1" in line for line in lines) == 1, "an environment is named once"
    assert "0:36 left" in lines[0]


def test_plain_lines():
    out = io.StringIO()
    view = LinesView(Board(num_workers=1), file=out, interval=0.0)
    view.board.plan([(("CartPole-v1", "relax"), 1000)] * 2)
    view.begin("2 runs")
    view.started(a_task())
    view.progress(a_task(), {"step": 400, "return_mean": None, "steps_per_second": 100.0})
    view.refresh()
    view.ended(a_task(), {"status": "finished", "steps": 1003, "return_mean": 31.26})
    view.started(a_task(seed=1))
    view.ended(a_task(seed=1), {"status": "failed", "error": "no luck"})
    view.ended(a_task(seed=2), {"status": "finished", "steps": 5, "return_mean": float("nan")})
    assert out.getvalue().splitlines()[:-1] == [
        "2 runs",
        "0 of 2 runs done | 100 steps/s | 0:16 left",
        "CartPole-v1-relax-s0: mean return 31.3 after 1,003 steps, 1 of 2 runs done",
        "CartPole-v1-relax-s1: failed: no luck",
    ]
    assert out.getvalue().splitlines()[-1].startswith("CartPole-v1-relax-s2: no episode has finished after 5 steps")


def test_the_view_fits_the_output(capsys):
    assert isinstance(make_view(Board(1)), LinesView)
    assert type(make_view(Board(1), quiet=True)) is SilentView


def test_the_real_worker_leaves_when_its_starter_is_gone():
    """The end of its input ends it, also while nothing is being worked on."""
    worker = WorkerProcess(lambda message: None)
    worker.dismiss()
    deadline = time.monotonic() + 60
    while worker.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert worker.process.returncode == -signal.SIGTERM


def test_the_real_worker_tells_what_went_wrong(tmp_path):
    queue = Queue()
    queue.tasks = [Task("broken", ("E", "x"), 10, {"kind": "own", "folder": str(tmp_path / "run")})]
    with WorkerPool(1, tmp_path) as pool:
        assert pool.run(queue, Quiet(), Interruption())
    assert queue.ended["broken"] == {"status": "failed", "error": "KeyError: 'settings'"}
    assert "Traceback" in Path(tmp_path / "broken.log").read_text()
    assert json.dumps(queue.ended)
