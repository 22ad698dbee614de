"""The pool and its processes, with commands that only pretend and with one that trains; and how it all is shown."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from relax_rl.cli import main
from relax_rl.comparison.config import CompareConfig
from relax_rl.comparison.contestants import Contestant
from relax_rl.comparison.plan import Environment, Folder, run_task
from relax_rl.comparison.pool import RESTARTS, Pool, ProcessLost, Progress
from relax_rl.comparison.process import CommandProcess, last_line, last_row
from relax_rl.comparison.task import Task, has_ended, read_outcome
from relax_rl.errors import SettingsError
from relax_rl.runs.folder import RunFolder
from relax_rl.runs.interruption import Interruption
from relax_rl.runs.loggers import read_csv

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


class Watching(Progress):
    """Shows nothing, and calls a function with each row of a run in progress."""

    def __init__(self, watch=lambda task, row: None) -> None:
        super().__init__(quiet=True, errors=io.StringIO())
        self.watch, self.most = watch, 0

    def row(self, task: Task, row) -> None:
        super().row(task, row)
        self.most = max(self.most, len(self._running))
        if row:
            self.watch(task, row)

    @property
    def lines(self) -> list[str]:
        return self._errors.getvalue().splitlines()


def pretend(what: str, name: str | None = None, *, resume: str = "work") -> Task:
    name = name or what
    command = [("pretend", which, f"runs/{name}", "10") for which in (what, resume)]
    return Task(name=name, folder=f"runs/{name}", begin=command[0], resume=command[1], total_steps=10)


def work(root: Path, *tasks: Task, workers: int = 1, progress: Progress | None = None, **options):
    """What comes of tasks."""
    with Pool(workers, root, progress or Watching(), **options) as pool:
        return pool.run(tasks, Interruption())


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """The folder of a comparison, and the working folder, from which commands that pretend are imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / "pretend.py").write_text(PRETEND)
    return tmp_path


@pytest.mark.parametrize("workers", [1, 3])
def test_all_tasks_are_done_at_most_so_many_at_a_time(root, workers):
    tasks, progress = [pretend("work", f"work-{k}") for k in range(4)], Watching()
    outcomes = work(root, *tasks, workers=workers, progress=progress)
    assert sorted(outcomes) == [task.name for task in tasks] and 1 <= progress.most <= workers
    for task in tasks:
        expected = {"status": "finished", "steps": 10, "episodes": 3, "return_mean": 1.5}
        assert read_outcome(root / task.folder) == outcomes[task.name] == expected
        assert has_ended(task, root)


def test_a_command_imports_nothing_from_the_folder_of_a_comparison(root):
    """What lies there may be somebody else's; what lies where the user has started is the user's own."""
    theirs = root / "theirs"
    (theirs / "logs").mkdir(parents=True)
    for name in ("torch", "relax_rl", "missing"):
        (theirs / f"{name}.py").write_text(f"open({str(theirs / 'OWNED')!r}, 'w')\n")
    (root / "own.py").write_text(
        f"import importlib.util, torch\nassert not importlib.util.find_spec('missing')\n{PRETEND}"
    )
    task = Task(name="own", folder="runs/own", begin=("own", "work", "runs/own", "10"), total_steps=10)
    outcome = work(theirs, task)["own"]
    assert outcome["status"] == "finished", (theirs / "logs" / "own.log").read_text()
    assert not (theirs / "OWNED").exists()


def test_what_fails_does_not_stop_the_rest(root):
    progress = Watching()
    tasks = [*map(pretend, ("work", "die", "refuse", "leave", "crash", "diverge")), pretend("work", "last")]
    outcomes = work(root, *tasks, workers=2, progress=progress)
    told = {name: (outcome["status"], outcome.get("error", "")) for name, outcome in outcomes.items()}
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
    assert outcomes["diverge"]["seconds"] > 0
    assert sorted(progress.lines)[3] == "leave: failed: " + told["leave"][1] and len(progress.lines) == 5
    ended = {name for name in outcomes if read_outcome(root / "runs" / name) is not None}
    assert ended == {"work", "diverge", "last"}, "the others are to be tried again"


def test_an_interruption_has_runs_saved_and_begins_nothing_more(root):
    interruption = Interruption()

    def interrupt(task, row) -> None:
        assert row["step"] == 5 and row["return_mean"] == 1.5
        interruption.signal = signal.SIGINT

    with Pool(1, root, Watching(interrupt)) as pool:
        assert pool.run([pretend("wait"), pretend("work")], interruption) is None
    assert not (root / "runs" / "work").exists() and not has_ended(pretend("wait"), root)
    assert work(root, pretend("wait"))["wait"]["status"] == "finished", "it went on by the command that resumes"


def test_a_run_that_somebody_else_stops_is_a_failure(root):
    asked: list[str] = []

    def stop(task, row) -> None:
        if task.name == "wait" and not asked:  # a row may be looked at again while its process ends
            asked.append(task.name)
            os.kill(int((root / task.folder / "pids").read_text()), signal.SIGTERM)

    outcomes = work(root, pretend("wait"), pretend("work"), progress=Watching(stop))
    assert outcomes["wait"] == {"status": "failed", "error": "stopped from outside"}
    assert outcomes["work"]["status"] == "finished"


def test_a_folder_without_a_checkpoint_holds_nothing_to_go_on_from(root):
    left = root / "runs" / "work"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    assert work(root, pretend("work", resume="leave"))["work"]["status"] == "finished"
    assert not (left / "config.json").exists()


def test_a_folder_that_somebody_is_at_work_in_is_left_to_him(root):
    left = root / "runs" / "work"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    with RunFolder(left).locked():
        work(root, pretend("work", resume="leave"))
    assert (left / "config.json").exists() and (left / ".lock").exists()


def test_a_run_that_ended_while_nobody_was_there_is_not_repeated(root):
    folder = root / "runs" / "work"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "progress.csv").write_text("step,episodes,return_mean\n5,100,149.9\n11,120,150.5\n")
    for name, ended in (("step_000000008.zip", False), ("step_000000011.zip", True)):
        (folder / "checkpoints" / name).touch()
        assert has_ended(pretend("work"), root) is ended
    assert read_outcome(folder) == {"status": "finished", "steps": 11, "episodes": 120, "return_mean": 150.5}


def test_how_a_run_has_come_to_a_rung_stands_in_a_file_of_its_own(root):
    task = replace(pretend("work"), outcome="rung-1.json")
    assert work(root, task)["work"]["status"] == "finished"
    assert has_ended(task, root) and read_outcome(root / task.folder, "rung-1.json")["steps"] == 10
    assert read_outcome(root / task.folder) is None, "the run itself goes on"


class Lost:
    """A process whose node is lost."""

    def poll(self) -> int | None:
        raise ProcessLost("the node is lost")

    def stop(self) -> None:
        """Nothing is left to stop."""


@pytest.mark.parametrize("losses", [RESTARTS, RESTARTS + 1])
def test_a_lost_run_is_started_again_a_few_times(root, losses):
    starts, progress = [], Watching()

    def start(task: Task, log: Path):
        starts.append(task.command(root))
        return Lost() if len(starts) <= losses else CommandProcess(starts[-1], root, task.folder, log)

    outcome = work(root, pretend("work"), progress=progress, start=start)["work"]
    assert progress.lines[:RESTARTS] == ["work: the node is lost; started again"] * RESTARTS
    if losses > RESTARTS:
        assert outcome == {"status": "failed", "error": "the node is lost; given up after 2 restarts"}
    else:
        assert outcome["status"] == "finished"


def test_a_folder_is_held_by_its_commands_too(root):
    folder = Folder(root / "comparison")
    folder.create()
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

    class Stopping(Watching):
        """Stops the run at its first checkpoint."""

        def refresh(self) -> None:
            if first(""):
                interruption.signal = signal.SIGTERM

    with Pool(1, root, Stopping()) as pool:
        assert pool.run([task], interruption) is None
    stopped = max(run.glob("checkpoints/step_*")).stem

    killed = CommandProcess(task.command(root), root, task.folder, root / "logs" / "a.log")
    while not first(stopped):
        assert killed.poll() is None, (root / "logs" / "a.log").read_text()
        time.sleep(0.01)
    killed._process.kill()
    killed.wait(10)
    resumed = max(run.glob("checkpoints/step_*")).stem
    shutil.copytree(run, root / "copy")

    outcome = work(root, task)["a"]
    assert outcome["status"] == "finished" and outcome["steps"] >= 3000
    steps = [f"step_{entry['step']:09d}" for entry in _resumptions(run)]
    assert steps == [stopped, resumed]
    assert main(["train", "--resume", str(root / "copy"), "--quiet"]) == 0
    assert (root / "copy" / "episodes.csv").read_bytes() == (run / "episodes.csv").read_bytes()
    progress, by_hand = read_csv(run / "progress.csv"), read_csv(root / "copy" / "progress.csv")
    assert progress["step"] == sorted(set(progress["step"])) and progress["return_mean"] == by_hand["return_mean"]


def _resumptions(run: Path) -> list[dict]:
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


def a_task(seed: int) -> Task:
    return Task(name=f"CartPole-v1-relax-s{seed}", folder="x", begin=(), total_steps=1000)


def test_lines_of_progress(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    ended = []
    progress = Progress(after=lambda task, outcome: ended.append((task.name[-1], outcome["status"])))
    progress.begin("3 runs", map(a_task, (1, 2, 3)), done=[a_task(0)])
    progress._display._interval = 0.0
    progress.row(a_task(1), {})
    progress.row(a_task(1), {"step": 400.0})
    progress.refresh()
    progress.ended(a_task(1), {"status": "finished", "steps": 1003, "return_mean": 31.26})
    progress.ended(a_task(2), {"status": "failed", "error": "no luck"})
    progress.ended(a_task(3), {"status": "interrupted"})
    progress.ended(a_task(3), {"status": "finished", "steps": 5, "return_mean": float("nan")})
    lines = out.getvalue().splitlines()
    assert lines[1].startswith("step 1,400 of 4,000 | 1 of 4 runs done, 1 running | ")
    assert [lines[0], *lines[2:]] == [
        "3 runs",
        "CartPole-v1-relax-s1: mean return 31.3 after 1,003 steps, 2 of 4 runs done",
        "CartPole-v1-relax-s2: failed: no luck",
        "CartPole-v1-relax-s3: no episode has finished after 5 steps, 4 of 4 runs done",
    ]
    assert ended == [("1", "finished"), ("2", "failed"), ("3", "finished")]


def test_steps_never_go_back_when_a_run_ends(monkeypatch):
    progress = Progress()
    progress.begin("2 runs", map(a_task, (1, 2)))
    seen = []
    monkeypatch.setattr(progress._display, "update", lambda step, status: seen.append(step))
    progress.row(a_task(1), {"step": 1_030.0})  # its last update led beyond the 1,000
    progress.refresh()
    progress.ended(a_task(1), {"status": "finished", "steps": 1_030, "return_mean": 31.26})
    progress.refresh()
    assert seen == [1_000, 1_000]


def test_quiet_progress_tells_of_failures_alone(capsys):
    progress = Progress(quiet=True)
    progress.begin("2 runs", ())
    progress.warn("something went wrong")
    assert capsys.readouterr() == ("", "something went wrong\n")
