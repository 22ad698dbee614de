"""The pool and its processes, with commands that only pretend and with one that trains; and how it all is shown."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from relax_rl.cli import main
from relax_rl.comparison.config import CompareConfig
from relax_rl.comparison.contestants import Contestant
from relax_rl.comparison.plan import Environment, Folder, run_task
from relax_rl.comparison.pool import RESTARTS, Pool, ProcessLost, Task, has_ended, read_outcome
from relax_rl.comparison.process import CommandProcess, last_line, last_row
from relax_rl.comparison.progress import Board, TableView, View, make_view
from relax_rl.errors import SettingsError
from relax_rl.interruption import Interruption
from relax_rl.loggers import read_csv

PRETEND = """
import os, signal, sys, time
from pathlib import Path
what, folder, total = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
stopped = False
def stop(*_):
    global stopped
    stopped = True
signal.signal(signal.SIGTERM, stop)
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
(folder / "pids").open("a").write(f"{os.getpid()}\\n")
def save(step):
    (folder / "progress.csv").write_text(f"step,episodes,return_mean,steps_per_second\\n{step},3,1.5,10\\n")
    (folder / "checkpoints" / f"step_{step:09d}.safetensors").touch()
if what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "leave":
    sys.exit(3)
if what == "crash":
    raise OSError("no luck")
if what == "refuse":
    sys.exit("error: no luck" if print("error: no luck") else 2)
if what == "diverge":
    save(2)
    print("error: the gradient is not finite after 2 steps; lower the learning rates")
    sys.exit(2)
if what == "wait":
    save(5)
    while not stopped:
        time.sleep(0.02)
    sys.exit(143)
save(total)
"""


class Queue:
    """A source that keeps what has ended."""

    def __init__(self, *tasks: Task) -> None:
        self.tasks, self.ended = list(tasks), {}

    def next(self) -> Task | None:
        return self.tasks.pop(0) if self.tasks else None

    def finished(self, task: Task, outcome) -> None:
        self.ended[task.name] = dict(outcome)


def pretend(what: str, name: str | None = None, *, resume: str = "work", **settings) -> Task:
    name = name or what
    command = [("pretend", which, f"runs/{name}", "10") for which in (what, resume)]
    return Task(name=name, row=("E", what), folder=f"runs/{name}", begin=command[0], resume=command[1], total_steps=10)


@pytest.fixture
def root(tmp_path) -> Path:
    """The folder of a comparison in which commands can pretend."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "pretend.py").write_text(PRETEND)
    return tmp_path


@pytest.fixture
def view() -> View:
    return View(Board(1), io.StringIO())


@pytest.mark.parametrize("workers", [1, 3])
def test_all_tasks_are_done_at_most_so_many_at_a_time(root, workers):
    queue, most = Queue(*(pretend("work", f"work-{k}") for k in range(4))), 0

    class Counting(View):
        def refresh(self) -> None:
            nonlocal most
            most = max(most, sum(len(row.running) for row in self.board.rows.values()))

    with Pool(workers, root) as pool:
        assert pool.run(queue, Counting(Board(workers), None), Interruption())
    assert len(queue.ended) == 4 and 1 <= most <= workers
    for name in queue.ended:
        expected = {"status": "finished", "steps": 10, "episodes": 3, "return_mean": 1.5}
        assert read_outcome(root / "runs" / name) == queue.ended[name] == expected
        assert has_ended(pretend("work", name), root)


def test_what_fails_does_not_stop_the_rest(root):
    errors = io.StringIO()
    queue = Queue(*map(pretend, ("work", "die", "refuse", "leave", "crash", "diverge")), pretend("work", "last"))
    with Pool(2, root) as pool:
        assert pool.run(queue, View(Board(2), None, errors=errors), Interruption())
    told = {name: (outcome["status"], outcome.get("error", "")) for name, outcome in queue.ended.items()}
    log = root / "logs"
    assert told == {
        "work": ("finished", ""),
        "die": ("failed", f"its process was ended by SIGKILL (out of memory?), see {log / 'die.log'}"),
        "refuse": ("failed", "no luck"),
        "leave": ("failed", f"its process ended with code 3, see {log / 'leave.log'}"),
        "crash": ("failed", f"OSError: no luck, see {log / 'crash.log'}"),
        "diverge": ("diverged", "the gradient is not finite after 2 steps; lower the learning rates"),
        "last": ("finished", ""),
    }
    assert queue.ended["diverge"]["seconds"] > 0
    assert sorted(errors.getvalue().splitlines())[3] == "leave: failed: " + told["leave"][1]
    ended = {name for name in queue.ended if read_outcome(root / "runs" / name) is not None}
    assert ended == {"work", "diverge", "last"}, "the others are to be tried again"


def test_an_interruption_has_runs_saved_and_begins_nothing_more(root):
    interruption, queue = Interruption(), Queue(pretend("wait"), pretend("work"))

    class Interrupting(View):
        def progress(self, task, row) -> None:
            assert row["step"] == 5 and row["return_mean"] == 1.5
            interruption.signal = signal.SIGINT

    with Pool(1, root) as pool:
        assert not pool.run(queue, Interrupting(Board(1), None), interruption)
    assert queue.ended == {} and len(queue.tasks) == 1 and not has_ended(pretend("wait"), root)
    again = Queue(pretend("wait"))
    with Pool(1, root) as pool:
        assert pool.run(again, View(Board(1), None), Interruption())
    assert again.ended["wait"]["status"] == "finished", "it went on by the command that resumes"


def test_a_run_that_somebody_else_stops_is_a_failure(root):
    class Stopping(View):
        def progress(self, task, row) -> None:
            os.kill(int((root / task.folder / "pids").read_text()), signal.SIGTERM)

    queue = Queue(pretend("wait"), pretend("work"))
    with Pool(1, root) as pool:
        assert pool.run(queue, Stopping(Board(1), None), Interruption())
    assert queue.ended["wait"] == {"status": "failed", "error": "stopped from outside"}
    assert queue.ended["work"]["status"] == "finished"


def test_a_folder_without_a_checkpoint_holds_nothing_to_go_on_from(root):
    left = root / "runs" / "work"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    with Pool(1, root) as pool:
        assert pool.run(Queue(pretend("work", resume="leave")), View(Board(1), None), Interruption())
    assert not (left / "config.json").exists() and read_outcome(left)["status"] == "finished"


def test_a_run_that_ended_while_nobody_was_there_is_not_repeated(root):
    folder = root / "runs" / "work"
    (folder / "checkpoints").mkdir(parents=True)
    rows = "step,episodes,return_mean\n5,100,149.9\n8,120,150.001\n"
    (folder / "progress.csv").write_text(rows)
    task = pretend("work")
    solved = Task(**{**vars(task), "stop_at_return": 150.0014})
    for name, whole, stopped in (
        ("5.safetensors", False, False),
        ("8.zip", False, True),
        ("10.safetensors", True, True),
    ):
        step, _, kind = name.partition(".")
        (folder / "checkpoints" / f"step_{int(step):09d}.{kind}").touch()
        for candidate, expected in ((task, whole), (solved, stopped)):
            assert has_ended(candidate, root) is expected
            (folder / "outcome.json").unlink(missing_ok=True)


class Lost:
    """A process whose node is lost."""

    def poll(self) -> int | None:
        raise ProcessLost("the node is lost")

    def stop(self) -> None:
        """Nothing is left to stop."""


@pytest.mark.parametrize("losses", [RESTARTS, RESTARTS + 1])
def test_a_lost_run_is_started_again_a_few_times(root, view, losses):
    starts = []

    def start(task: Task, log: Path):
        starts.append(task.command(root))
        return Lost() if len(starts) <= losses else CommandProcess(starts[-1], root, task.folder, log)

    queue = Queue(pretend("work"))
    with Pool(1, root, start=start) as pool:
        assert pool.run(queue, view, Interruption())
    lines = view._file.getvalue().splitlines()
    assert lines[:RESTARTS] == ["work: the node is lost; started again"] * RESTARTS
    if losses > RESTARTS:
        assert queue.ended["work"] == {"status": "failed", "error": "the node is lost; given up after 2 restarts"}
    else:
        assert queue.ended["work"]["status"] == "finished"


def test_a_folder_is_held_by_its_commands_too(root):
    folder = Folder(root / "comparison")
    folder.create()
    (folder.path / "pretend.py").write_text(PRETEND)
    with folder.locked() as held, pytest.raises(SettingsError, match="is being worked on"), folder.locked():
        pass
    with folder.locked() as held:
        command = pretend("wait").begin
        process = CommandProcess(command, folder.path, "runs/wait", folder.logs / "wait.log", held=held)
        while not process.progress():
            time.sleep(0.02)
    with pytest.raises(SettingsError, match="is being worked on"), folder.locked():
        pass
    process.stop()
    assert process.wait(10) == 143
    with folder.locked():
        pass


def test_a_command_leaves_when_its_starter_is_killed(root):
    code = (
        "import time; from pathlib import Path; from relax_rl.comparison.process import CommandProcess\n"
        "CommandProcess(('pretend', 'wait', 'runs/wait', '10'), Path(), 'runs/wait', Path('log')); time.sleep(60)"
    )
    starter = subprocess.Popen([sys.executable, "-c", code], cwd=root)
    pids = root / "runs" / "wait" / "pids"
    while not last_row(root / "runs" / "wait" / "progress.csv"):
        time.sleep(0.02)
    starter.kill()
    starter.wait()
    deadline = time.monotonic() + 20
    while Path("/proc", pids.read_text().strip()).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert time.monotonic() < deadline, "it is still at work"


def test_a_run_of_train_goes_on_after_a_stop_and_after_a_kill(root):
    """What comes out is what `train --resume` makes of the same checkpoints."""
    env = Environment("CartPole-v1", total_steps=3000, threshold=475.0, id="CartPole-v1")
    settings = {"hidden": (8,), "log_interval": 100, "checkpoint_interval": 500, "keep_checkpoints": 0}
    contestant = Contestant("a2c", "a2c", settings)
    task = run_task(CompareConfig(), env, contestant, 3, "runs/a", name="a")
    run, interruption = root / "runs" / "a", Interruption()

    def first(stem: str) -> bool:
        return any(path.stem > stem for path in run.glob("checkpoints/step_*"))

    class Stopping(View):
        """Stops the run at its first checkpoint."""

        def refresh(self) -> None:
            if first(""):
                interruption.signal = signal.SIGTERM

    with Pool(1, root) as pool:
        assert not pool.run(Queue(task), Stopping(Board(1), None), interruption)
    stopped = max(run.glob("checkpoints/step_*")).stem

    killed = CommandProcess(task.command(root), root, task.folder, root / "logs" / "a.log")
    while not first(stopped):
        assert killed.poll() is None, (root / "logs" / "a.log").read_text()
        time.sleep(0.01)
    killed._process.kill()
    killed.wait(10)
    resumed = max(run.glob("checkpoints/step_*")).stem
    shutil.copytree(run, root / "copy")

    queue = Queue(task)
    with Pool(1, root) as pool:
        assert pool.run(queue, View(Board(1), None), Interruption())
    assert queue.ended["a"]["status"] == "finished" and queue.ended["a"]["steps"] >= 3000
    steps = [f"step_{entry['step']:09d}" for entry in _resumptions(run)]
    assert steps == [stopped, resumed]
    assert main(["train", "--resume", str(root / "copy"), "--quiet"]) == 0
    assert (root / "copy" / "episodes.csv").read_bytes() == (run / "episodes.csv").read_bytes()
    progress, by_hand = read_csv(run / "progress.csv"), read_csv(root / "copy" / "progress.csv")
    assert progress["step"] == sorted(set(progress["step"])) and progress["return_mean"] == by_hand["return_mean"]


def _resumptions(run: Path) -> list[dict]:
    import json

    return json.loads((run / "config.json").read_text())["resumed"]


def test_the_end_of_a_table_that_is_being_written(tmp_path):
    path = tmp_path / "progress.csv"
    assert last_row(path) == {} and last_line(path) == ""
    path.write_text("step,return_mean\n")
    assert last_row(path) == {}
    path.write_text("step,return_mean\n10,\n" + "20,1.5\n" * 3000 + "30,2.")
    assert last_row(path) == {"step": 20.0, "return_mean": 1.5}, "a row is whole once its line has ended"
    (tmp_path / "log").write_text("error: first\n" + "x" * 99 + "\nerror: last\nbye\n\n")
    assert last_line(tmp_path / "log", "error: ") == "error: last" and last_line(tmp_path / "log") == "bye"


def a_task(label: str = "relax", seed: int = 0) -> Task:
    name = f"CartPole-v1-{label}-s{seed}"
    return Task(name=name, row=("CartPole-v1", label), folder="x", begin=(), total_steps=1000)


def a_row(**changes) -> dict[str, float]:
    return {"step": 400.0, "return_mean": 20.0, "steps_per_second": 100.0, **changes}


def test_the_board_counts():
    board = Board(num_workers=2)
    board.plan([(("CartPole-v1", label), 1000, 3) for label in ("relax", "a2c")])
    assert board.time_left() is None
    board.progress(a_task(), {})
    board.progress(a_task(), a_row())
    row = board.rows["CartPole-v1", "relax"]
    assert (row.done, row.total, row.mean_return, row.steps_to_go) == (0, 3, 20.0, 2600)
    # Two workers, 100 steps a second each; a2c counts with relax's speed.
    assert board.time_left() == pytest.approx((2600 + 3000) / 200)
    assert board.time_left([row]) == pytest.approx(13.0)
    board.ended(a_task(), {"status": "finished", "return_mean": 30.0})
    board.progress(a_task(seed=1), {})
    board.ended(a_task(seed=1), {"status": "diverged", "error": "inf"})
    assert (row.done, row.failed, row.steps_left, row.mean_return) == (2, 1, 1000, 30.0)
    board.progress(a_task(seed=2), {})
    board.ended(a_task(seed=2), {"status": "interrupted"})
    assert row.done == 2 and not row.running


def test_the_live_table():
    view = TableView(Board(num_workers=1))
    view.board.plan([((env, label), 1000, 1) for env in ("CartPole-v1", "Acrobot-v1") for label in ("relax", "a2c")])
    view.started(a_task())
    view.progress(a_task(), a_row())
    console = Console(file=io.StringIO(), width=120)
    console.print(view.table())
    lines = console.file.getvalue().splitlines()
    cells = [cell.strip() for cell in next(line for line in lines if "relax" in line).strip("│").split("│")]
    assert cells == ["CartPole-v1", "relax", "0 of 1", "400", "20.0", "100", "0:06"]
    assert sum("CartPole-v1" in line for line in lines) == 1, "an environment is named once"
    assert "0:36 left" in lines[0]


def test_plain_lines():
    out = io.StringIO()
    view = View(Board(num_workers=1), out, interval=0.0)
    view.board.plan([(("CartPole-v1", "relax"), 1000, 2)])
    view.begin("2 runs")
    view.started(a_task())
    view.progress(a_task(), a_row(return_mean=float("nan")))
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


def test_a_quiet_view_tells_of_failures_alone(capsys):
    view = make_view(Board(1), quiet=True)
    view.begin("2 runs")
    view.warn("something went wrong")
    assert capsys.readouterr() == ("", "something went wrong\n")
