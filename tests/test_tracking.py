"""Trackers: what they are told, that a run is gone on with in them, and that nothing they do ends or holds up a run.

Most tests have a stand-in of Trackio, which writes down what it hears, fails or hangs; one has the libraries themselves.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from relax_rl import train
from relax_rl.commands.main import main
from relax_rl.compute.installation import install_line
from relax_rl.errors import SettingsError
from relax_rl.runs import RunFolder, reporting, trackers, tracking
from relax_rl.runs.tracking import Tracker, default_project, places, require_trackers
from relax_rl.runs.training import resume_config
from relax_rl.settings.fields import with_settings
from tests.steps import small_run

LONG = 240.0
"""Seconds for what takes one or two where nobody else is at work."""

STAND_IN = """
import json, os, sys, time

def note(**said):
    with open(os.environ["HEARD"], "a") as file:
        file.write(json.dumps(said) + "\\n")

def act(place):
    what = os.environ.get("BEHAVIOUR", "")
    if what == f"raise in {place}":
        raise OSError("no route to host\\nand more")
    if what == f"hang in {place}":
        time.sleep(600)
    if what == f"leave in {place}":
        os._exit(3)

def init(**given):
    print("a line of its own")
    act("init")
    note(init=given)

class Image(str):
    pass

def log(metrics, step):
    if step == 20:
        act("log")
    note(log=metrics, step=step)

def finish():
    act("finish")
    note(finish=True)
"""


class StandIn:
    """Has `trackio` be the stand-in, in the processes that are started."""

    def __init__(self, path: Path, patch: pytest.MonkeyPatch) -> None:
        self.path, self._patch = path / "heard.jsonl", patch
        (path / "modules").mkdir()
        (path / "modules" / "trackio.py").write_text(STAND_IN)
        patch.setenv("HEARD", str(self.path))
        patch.setenv("PYTHONPATH", str(path / "modules"), prepend=os.pathsep)
        patch.syspath_prepend(str(path / "modules"))
        patch.setattr(trackers, "PATIENCE", LONG)

    def behave(self, how: str, *, patience: float = LONG) -> None:
        self._patch.setenv("BEHAVIOUR", how)
        self._patch.setattr(trackers, "PATIENCE", patience)

    def heard(self, what: str) -> list[Any]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [told for told in map(json.loads, lines) if what in told]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn(tmp_path, monkeypatch)


def tracker(path: Path, *, resumed: bool = False, project: str = "p", **settings: Any) -> Tracker:
    path.mkdir(exist_ok=True)
    return Tracker("trackio", RunFolder(path), project=project, settings=settings, resumed=resumed)


def three_rows(path: Path) -> list[str]:
    """What is warned of while a tracker takes three rows and the end."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        told = tracker(path)
        for step in (10, 20, 30):
            told.log({"step": step, "losses/value": 1.5, "return_mean": float("nan")})
        told.finish(30, {"final/return_mean": 2.0})
        told.close()
        told.close()
    assert told._process.poll() is not None, "it has left"
    return [str(warning.message) for warning in caught]


def test_rows_evaluations_settings_and_the_outcome_arrive_in_their_order(stand_in: StandIn, tmp_path: Path) -> None:
    told = tracker(tmp_path / "run-a", hidden=(8, 8), clip_range=float("inf"), networks=None)
    told.log({"step": 10, "losses/value": 0.5, "return_mean": float("nan")})
    told.log({"step": 10, "return_mean": 3.0}, group="evaluation")
    (tmp_path / "curve.png").write_bytes(b"")
    told.finish(12, {"final/return_mean": 4.0}, figure=tmp_path / "curve.png")
    told.close()
    (begun,) = stand_in.heard("init")
    assert begun["init"] == {
        "project": "p",
        "name": "run-a",
        "config": {"hidden": [8, 8], "clip_range": float("inf"), "networks": None},
        "resume": "never",
    }
    assert stand_in.heard("log") == [
        {"log": {"losses/value": 0.5}, "step": 10},
        {"log": {"evaluation/return_mean": 3.0}, "step": 10},
        {"log": {"final/return_mean": 4.0, "learning_curve": str(tmp_path / "curve.png")}, "step": 12},
    ]
    assert len(stand_in.heard("finish")) == 1
    assert RunFolder(tmp_path / "run-a").tracking_log.read_text() == "a line of its own\n"
    assert places(RunFolder(tmp_path / "run-a")) == {"trackio": "trackio show --project p"}


def test_a_tracked_run_is_gone_on_with_in_its_project(stand_in: StandIn, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    tracker(folder.path).close()
    known = json.loads(folder.tracking.read_text())
    known["trackio"]["identity"] = "as it was called"
    folder.tracking.write_text(json.dumps(known))
    tracker(folder.path, resumed=True).close()
    tracker(folder.path, resumed=True, project="another").close()
    folder.tracking.write_text("no JSON")
    tracker(folder.path, resumed=True).close()
    tracker(folder.path, resumed=False).close()
    found = [(x["init"]["project"], x["init"]["name"], x["init"]["resume"]) for x in stand_in.heard("init")]
    assert found == [
        ("p", "run", "never"),
        ("p", "as it was called", "allow"),
        ("another", "run", "never"),
        ("p", "run", "never"),
        ("p", "run", "never"),
    ]


@pytest.mark.parametrize(
    ("behaviour", "said", "steps"),
    [
        ("raise in init", "OSError: no route to host;", []),
        ("raise in log", "OSError: no route to host;", [10, 30, 30]),
        ("raise in finish", "OSError: no route to host;", [10, 20, 30, 30]),
        ("leave in init", "has left before the end", []),
        ("leave in log", "has left before the end", [10]),
    ],
)
def test_failures_are_one_warning(stand_in: StandIn, tmp_path: Path, behaviour: str, said: str, steps: Any) -> None:
    stand_in.behave(behaviour)
    (warned,) = three_rows(tmp_path / "run")
    assert warned.startswith("--track trackio: ") and said in warned and "\n" not in warned
    assert "the run goes on, its numbers are in progress.csv" in warned
    assert [told["step"] for told in stand_in.heard("log")] == steps


@pytest.mark.parametrize("place", ["init", "finish"])
def test_whoever_hangs_is_waited_for_a_while_and_killed(stand_in: StandIn, tmp_path: Path, place: str) -> None:
    stand_in.behave(f"hang in {place}", patience=1.5)
    (warned,) = three_rows(tmp_path / "run")
    assert "has not taken everything in 2 s" in warned


def test_what_waits_for_a_tracker_is_limited(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.behave("hang in init", patience=0.5)
    monkeypatch.setattr(tracking, "_MOST", 2**12)
    told = tracker(tmp_path / "run")
    with pytest.warns(UserWarning, match="has taken nothing for long"):
        for step in range(2**14):
            told.log({"step": step, "losses/value": 0.5})
    assert len(told._pending) < 2**13
    told.close()


def test_a_training_that_is_killed_leaves_a_run_that_has_ended(stand_in: StandIn, tmp_path: Path) -> None:
    told = tracker(tmp_path / "run")
    told.log({"step": 10, "x": 1.0})
    assert told._process.stdin is not None
    told._process.stdin.close()
    assert told._process.wait(LONG) == 0
    assert len(stand_in.heard("log")) == len(stand_in.heard("finish")) == 1
    told._lost = True
    told._leave()


def test_whole_runs(stand_in: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--env CartPole-v1 --total-steps 200 --num-envs 4 --hidden 4 --log-interval 100 --no-tensorboard --quiet"
    words += " --compile off --eval-interval 100 --eval-episodes 1 --track trackio --track-project mine"
    run = tmp_path / "run"
    assert main([*words.split(), "--run-dir", str(run)]) == 0
    (begun,) = stand_in.heard("init")
    assert begun["init"]["project"] == "mine" and begun["init"]["config"]["hidden"] == [4]
    logged = stand_in.heard("log")
    names = set().union(*(told["log"] for told in logged))
    assert {"losses/value", "evaluation/return_mean", "final/return_mean", "best/return_mean"} <= names
    assert "step" not in names
    assert main(["--resume", str(run), "--total-steps", "400"]) == 0
    assert stand_in.heard("init")[1]["init"]["resume"] == "allow"
    assert "  trackio         trackio show --project mine" in capsys.readouterr().out
    assert max(told["step"] for told in stand_in.heard("log")) >= 400


def test_a_run_that_fails_is_told_so(stand_in: StandIn, tmp_path: Path) -> None:
    def fail(agent: Any, info: Any) -> None:
        raise KeyError("mine")

    config = with_settings(small_run(tmp_path / "run", log_interval=40), {"track": ["trackio"]})
    with pytest.raises(KeyError):
        train(config, callbacks=fail)
    assert len(stand_in.heard("finish")) == 1
    assert not any("final/return_mean" in told["log"] for told in stand_in.heard("log"))


def test_missing_packages_are_told_with_the_line_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None if name == "mlflow" else find_spec("json"))
    with pytest.raises(SettingsError) as caught:
        train(with_settings(small_run(tmp_path / "run"), {"track": ("wandb", "mlflow")}))
    assert str(caught.value) == f"--track mlflow needs mlflow, which is missing: {install_line('mlflow')}"
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    (tmp_path / "only_a_folder").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SettingsError, match="needs only_a_folder, which is missing"):
        require_trackers(["only_a_folder"])


def test_projects_are_called_as_environments() -> None:
    assert default_project("CartPole-v1") == "CartPole-v1"
    assert default_project("ALE/Pong-v5") == "ALE-Pong-v5"
    assert default_project("my.envs:Mine-v0") == "Mine-v0"


def test_the_process_of_a_tracker_imports_little() -> None:
    code = "import sys, relax_rl.runs.trackers; print({'torch', 'gymnasium', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG)
    assert done.stdout == "set()\n", done.stderr


def test_nobody_is_told_where_nobody_asked(tmp_path: Path) -> None:
    config = small_run(tmp_path / "run")
    assert reporting.loggers_of(config, RunFolder(tmp_path / "run"), resumed=False) == []
    train(config)
    assert not RunFolder(tmp_path / "run").tracking.exists()


MISSING = [name for name in trackers.TRACKERS if find_spec(name) is None or find_spec(name).origin is None]


@pytest.mark.skipif(bool(MISSING), reason=f"needs the extras {', '.join(trackers.TRACKERS)}; missing: {MISSING}")
@pytest.mark.timeout(900)
def test_the_libraries_themselves_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "PATIENCE", LONG)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    folder = RunFolder(tmp_path / "run")
    settings = {"track": tuple(trackers.TRACKERS), "track_project": "tests", "eval_interval": 100, "eval_episodes": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first = train(with_settings(small_run(folder.path, log_interval=100), settings))
        known = json.loads(folder.tracking.read_text())
        again = {"total_steps": first.steps + 100, "track": ("mlflow", "wandb"), "quiet": True}
        second = train(resume_config(folder.path, **again))
    assert {name: entry["identity"] for name, entry in json.loads(folder.tracking.read_text()).items()} == {
        name: entry["identity"] for name, entry in known.items()
    }
    (mlflow,) = (tmp_path / "mlruns").glob(f"*/{known['mlflow']['identity']}")
    rows = [line.split() for line in (mlflow / "metrics" / "losses" / "value").read_text().splitlines()]
    assert int(rows[0][2]) >= 100 and int(rows[-1][2]) == second.steps
    (mean,) = (mlflow / "metrics" / "final" / "return_mean").read_text().splitlines()[-1:]
    assert float(mean.split()[1]) == pytest.approx(second.return_mean)
    assert (mlflow / "params" / "num_envs").read_text() == str(small_run(folder.path).env.num_envs)
    assert (mlflow / "artifacts" / "learning_curve.png").exists()
    assert (mlflow / "tags" / "total_steps").read_text() == str(first.steps + 100)
    wandb = sorted((folder.path / "wandb").glob(f"offline-run-*-{known['wandb']['identity']}"))
    assert len(wandb) == 2
    assert all(b"evaluation/return_mean" in next(each.glob("*.wandb")).read_bytes() for each in wandb)
    (database,) = (tmp_path / "trackio").glob("tests*.db")
    with sqlite3.connect(database) as stored:
        steps = [step for (step,) in stored.execute("select step from metrics where run_name = 'run' order by step")]
    assert steps[0] >= 100 and steps[-1] == first.steps
