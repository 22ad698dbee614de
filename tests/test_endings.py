"""How runs end, whatever ends them: saved, told in one line, with nothing left behind; and how they begin again."""

from __future__ import annotations

import csv
import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import relax_rl
from relax_rl import make_envs
from relax_rl.cli import main
from relax_rl.compute.serialization import FORMAT_VERSION, save_state
from relax_rl.errors import CheckpointError, EnvironmentFault, SettingsError
from relax_rl.runs import RunFolder, training
from relax_rl.runs.checkpoints import CheckpointFolder
from relax_rl.runs.displays import PlainDisplay, make_display, say
from relax_rl.runs.interruption import Interruption, interruptible
from relax_rl.runs.loggers import read_csv
from relax_rl.runs.training import resume_config, train
from relax_rl.settings.fields import with_settings
from tests.fakes import GoldenEnv
from tests.steps import small_run

ROOT = Path(relax_rl.__file__).parent.parent


class Moody(GoldenEnv):
    """A golden environment that does something in its fifth step, and something when it is closed."""

    def __init__(self, does: str = "", on_close: str = "") -> None:
        super().__init__(cycle=((20, "truncated"),))
        self.does, self.on_close, self.steps = does, on_close, 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == 5:
            match self.does:
                case "leave":
                    sys.exit()
                case "leave with a word":
                    sys.exit("enough")
                case "break":
                    raise RuntimeError("the motor is hot")
                case "lose the robot":
                    raise BrokenPipeError("gone")
                case "hang":
                    time.sleep(1000)
                case "move":
                    os.chdir(tempfile.gettempdir())
        return super().step(action)

    def close(self) -> None:
        if self.on_close and self.steps:
            raise RuntimeError(self.on_close)


gym.register("relax_rl_fakes/Moody-v0", Moody)
MOODY = "tests.test_endings:relax_rl_fakes/Moody-v0"


def moody(vectorization: str = "sync", **kwargs: Any) -> Any:
    return make_envs(MOODY, num_envs=2, vectorization=vectorization, **kwargs)  # type: ignore[arg-type]


# Environments


@pytest.mark.parametrize(
    ("does", "told"), [("leave", r"sys\.exit\(\)"), ("leave with a word", r"sys\.exit\('enough'\)")]
)
def test_an_environment_that_leaves_is_told(does: str, told: str) -> None:
    with moody(does=does) as envs, pytest.raises(EnvironmentFault, match=f"Moody-v0 called {told}"):
        for _ in range(5):
            envs.step(np.zeros(2, np.int64))


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_environment_that_cannot_be_closed_ends_nothing(vectorization: str) -> None:
    envs = moody(vectorization, on_close="stuck")
    envs.step(np.zeros(2, np.int64))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        envs.close()
    assert vectorization == "async" or any("stuck" in str(each.message) for each in told)


def test_workers_outlive_a_signal_to_the_group_and_leave_with_the_main_process() -> None:
    code = (
        "import sys, time\nfrom tests.test_endings import moody\nenvs = moody('async', does='hang')\n"
        "print(*(process.pid for process in envs.vector_env.processes), flush=True)\n"
        "for _ in range(5):\n    envs.step([0, 0])"
    )
    main = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert main.stdout is not None
    workers = [int(pid) for pid in main.stdout.readline().split()]
    time.sleep(0.5)  # by now they hang
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
        os.kill(worker, signal.SIGINT)
        os.kill(worker, signal.SIGHUP)
    time.sleep(0.2)
    assert len(workers) == 2 and all(alive(worker) for worker in workers)
    main.kill()
    main.wait()
    assert within(10, lambda: not any(alive(worker) for worker in workers))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] not in "ZX"
    except OSError:
        return False


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds()


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_signal_that_asks_to_leave_is_noted(number: signal.Signals) -> None:
    of_the_session = signal.signal(number, signal.default_int_handler)  # the session may ignore it, as under nohup
    try:
        with interruptible() as interruption:
            assert not interruption
            os.kill(os.getpid(), number)
            assert interruption and interruption.signal is number
            assert signal.getsignal(number) is signal.SIG_DFL
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, of_the_session)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interruption
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_that_python_does_not_know_are_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    known = signal.signal
    set_to: list[Any] = []

    def of_c(number: int, handler: Any) -> None:
        set_to.append(handler)

    monkeypatch.setattr(signal, "signal", of_c)
    with interruptible():
        pass
    monkeypatch.setattr(signal, "signal", known)
    assert set_to[-1] is signal.SIG_DFL


def test_a_signal_that_nobody_hears_is_answered(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relax_rl.runs.interruption._PATIENCE", 0.05)
    unheard, heard = Interruption(), Interruption()
    heard.note(signal.SIGINT)
    assert heard
    unheard.note(signal.SIGTERM)
    time.sleep(0.3)
    told = capfd.readouterr().err
    assert "SIGTERM received: waiting for the step at hand" in told and "SIGINT" not in told


# Folders


def test_a_run_without_a_checkpoint_is_begun_anew_by_the_same_command(tmp_path: Path) -> None:
    config = small_run(tmp_path / "run")
    result = train(config)
    expected = result.agent.state_dict()[0]
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        checkpoint.unlink()
    (tmp_path / "run" / "checkpoints" / ".step_1.safetensors.0123abcd.tmp").touch()
    (tmp_path / "run" / ".config.json.0123abcd.tmp").touch()
    with pytest.warns(UserWarning, match="begun anew"):
        again = train(config)
    assert all((again.agent.state_dict()[0][name] == x).all() for name, x in expected.items())
    steps = read_csv(RunFolder(tmp_path / "run").progress)["step"]
    assert steps == sorted(set(steps)) and not list((tmp_path / "run").rglob("*.tmp"))


def test_a_best_agent_alone_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    """As a run leaves it that was killed between its first best agent and its first checkpoint."""
    config = small_run(tmp_path / "run")
    expected = train(config).agent.state_dict()[0]
    (only,) = (tmp_path / "run" / "checkpoints").iterdir()
    only.rename(only.with_name("best.safetensors"))
    with pytest.warns(UserWarning, match="begun anew"):
        again = train(config)
    assert all((again.agent.state_dict()[0][name] == x).all() for name, x in expected.items())
    assert [x.name for x in (tmp_path / "run" / "checkpoints").iterdir()] == [only.name]


def test_files_of_the_user_stay_where_a_run_is_begun(tmp_path: Path) -> None:
    (tmp_path / "site" / "checkpoints").mkdir(parents=True)
    theirs = [
        tmp_path / name for name in (".env.tmpl", ".a.tmp", "site/.b.0123abcd.tmp", "site/checkpoints/.c.0123abcd.tmp")
    ]
    for file in theirs:
        file.write_text("mine")
    (tmp_path / ".d.0123abcd.tmp").mkdir()
    train(small_run(tmp_path))
    assert all(file.read_text() == "mine" for file in theirs) and (tmp_path / ".d.0123abcd.tmp").is_dir()


def test_a_run_that_another_process_has_gone_on_with_is_not_gone_on_with_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While environments are made somebody else may take steps in the folder, which nobody holds yet."""
    train(small_run(tmp_path / "run"))
    made = training.envs_of

    def slowly(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(training, "envs_of", made)
        train(resume_config(tmp_path / "run", total_steps=500))
        return made(*args, **kwargs)

    monkeypatch.setattr(training, "envs_of", slowly)
    with pytest.raises(
        SettingsError, match=r"has been gone on with since step_\d+\.safetensors was read; give the same"
    ):
        train(resume_config(tmp_path / "run", total_steps=600))
    steps = read_csv(RunFolder(tmp_path / "run").progress)["step"]
    assert steps[-1] >= 500
    assert train(resume_config(tmp_path / "run", total_steps=600)).steps >= 600


def test_one_process_works_in_a_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.locked(), pytest.raises(SettingsError, match="is being worked on"):
        train(small_run(tmp_path / "run"))
    train(small_run(tmp_path / "run"))
    with folder.locked(), pytest.raises(SettingsError, match="is being worked on"):
        train(resume_config(tmp_path / "run", total_steps=10_000))


def test_what_killed_writers_have_left_goes_when_a_run_is_gone_on_with(tmp_path: Path) -> None:
    train(small_run(tmp_path / "run"))
    for left in (".config.json.0123abcd.tmp", "checkpoints/.step_000000400.safetensors.0123abcd.tmp"):
        (tmp_path / "run" / left).touch()
    train(resume_config(tmp_path / "run", total_steps=500))
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_what_a_writer_has_left_that_was_killed_at_the_end_goes_too(tmp_path: Path) -> None:
    done = train(small_run(tmp_path / "run"))
    (tmp_path / "run" / ".learning_curve.png.0123abcd.tmp").touch()
    with RunFolder(tmp_path / "run").locked(), pytest.raises(SettingsError, match="has already taken"):
        train(resume_config(tmp_path / "run", total_steps=done.steps))
    assert list((tmp_path / "run").rglob("*.tmp"))  # somebody else may be writing it
    with pytest.raises(SettingsError, match="has already taken"):
        train(resume_config(tmp_path / "run", total_steps=done.steps))
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with RunFolder(tmp_path / "run").locked() as held:
        assert held is not None


def test_a_checkpoint_that_is_not_damaged_is_never_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step_000000001.safetensors"
    monkeypatch.setattr("relax_rl.compute.serialization.FORMAT_VERSION", FORMAT_VERSION + 1)
    save_state(path, {}, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="update relax_rl"):
        CheckpointFolder(tmp_path).newest(set_aside=True)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        CheckpointFolder(tmp_path).newest(set_aside=True)
    assert path.exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace("0", "zero", 3),
        lambda text: text.encode().replace(b",", b"\xff,", 2).decode("latin-1"),
        lambda text: text.replace("return_mean", "mean_return"),
        lambda text: text.replace("step,", "stop,", 1),
        lambda text: "",
        lambda text: "\0" * 100,
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tables_that_cannot_be_read_block_no_resumption(tmp_path: Path, spoil: Callable[[str], str]) -> None:
    done = train(small_run(tmp_path / "run", log_interval=40, eval_interval=200, eval_episodes=1))
    shutil.rmtree(tmp_path / "run" / "videos", ignore_errors=True)
    for table in ("progress.csv", "evaluation.csv", "episodes.csv"):
        path = tmp_path / "run" / table
        path.write_bytes(spoil(path.read_text()).encode("latin-1"))
    assert train(resume_config(tmp_path / "run", total_steps=done.steps + 200)).steps >= done.steps + 200


def test_rows_that_hold_no_numbers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"step,x\n1,2\n2,\xff\n3,4,5\n4,\n5,7\n6,8")
    with pytest.warns(UserWarning, match=r"holds no numbers in line 3, 4: left out"):
        found = read_csv(path)
    assert found["step"] == [1.0, 4.0, 5.0] and found["x"][2] == 7.0


def test_episodes_are_written_before_the_checkpoint_that_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[tuple[int, int]] = []
    save = CheckpointFolder.save

    def look(self: CheckpointFolder, trained: Any) -> Path:
        with open(tmp_path / "run" / "episodes.csv", encoding="utf-8") as file:
            counted.append((len(list(csv.reader(file))) - 1, trained.agent.episodes))
        return save(self, trained)

    monkeypatch.setattr(CheckpointFolder, "save", look)
    train(small_run(tmp_path / "run", total_steps=2_000, checkpoint_interval=100))
    assert len(counted) > 10 and counted[-1][0] > 20 and all(written == known for written, known in counted)


# What is shown


def test_a_figure_never_ends_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("no backend")

    monkeypatch.setattr("relax_rl.runs.plotting.plot_curves", broken)
    with pytest.warns(UserWarning, match="the learning curve could not be drawn: no backend"):
        assert train(small_run(tmp_path / "run")).checkpoint.exists()


def test_without_standard_output_or_its_signs_runs_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")
    PlainDisplay(file=stream).begin("CartPole · 7 ± 2", total=3)
    assert written.getvalue() == b"CartPole ? 7 ? 2\n"
    monkeypatch.setattr(sys, "stdout", None)
    display = make_display()
    display.begin("nobody hears this", total=3)
    say("nor this")
    display.end()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_environment_that_changes_the_folder_moves_no_run(
    tmp_path: Path, vectorization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    gym.register("relax_rl_fakes/Moving-v0", Moody, kwargs={"does": "move"})
    try:
        config = small_run(Path("run"), MOODY.replace("Moody", "Moving"), "a2c", vectorization=vectorization)
        result = train(config)
    finally:
        gym.registry.pop("relax_rl_fakes/Moving-v0")
    assert result.run_dir == Path("run") and (tmp_path / "run" / "learning_curve.png").exists()
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


class Wandering(gym.Wrapper[Any, Any, Any, Any]):
    """Moves the process to another folder when it is made."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        Path("elsewhere").mkdir(exist_ok=True)
        os.chdir("elsewhere")


def test_nor_does_one_that_changes_it_when_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    how: dict[str, Any] = {"wrapper": ("tests.test_endings:Wandering",), "num_envs": 1, "vectorization": "sync"}
    for run_dir in ("run", None):
        config = with_settings(small_run(Path("run"), estimator="a2c", **how), {"run_dir": run_dir})
        done = train(config)
        assert not done.run_dir.is_absolute() and (tmp_path / done.run_dir / "learning_curve.png").exists()
        monkeypatch.chdir(tmp_path)
        again = train(resume_config(done.run_dir, total_steps=500, wrapper=how["wrapper"]))
        assert again.steps >= 500 and (tmp_path / done.run_dir / "learning_curve.png").exists()
        monkeypatch.chdir(tmp_path)
    assert not list((tmp_path / "elsewhere").iterdir())


# Code of somebody else's


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(
    ("does", "code", "told"),
    [
        (
            "break",
            1,
            "error: RuntimeError: the motor is hot; raised by environment 0 of {env} in step 5 of its episode; saved as",
        ),
        (
            "lose the robot",
            1,
            "error: BrokenPipeError: gone; raised by environment 0 of {env} in step 5 of its episode; saved as",
        ),
        ("leave", 2, "error: {died} in step 5 of its episode; "),
    ],
)
def test_the_last_line_names_environment_and_step(
    does: str, code: int, told: str, vectorization: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = MOODY.replace("Moody", f"Moody{does.title().replace(' ', '')}")
    gym.register(env.partition(":")[2], Moody, kwargs={"does": does})
    try:
        small = ["--num-envs", "2", "--hidden", "4", "--quiet", "--no-tensorboard", "--run-dir", str(tmp_path / "run")]
        words = ["--env", env, "--estimator", "a2c", "--vectorization", vectorization, "--num-steps", "2", *small]
        assert main([*words, "--total-steps", "100"]) == code
    finally:
        gym.registry.pop(env.partition(":")[2])
    lines = capsys.readouterr().err.splitlines()
    died = {
        "sync": f"environment 0 of {env} called sys.exit()",
        "async": f"a worker process of {env} died (crashed, killed, or out of memory), that of environment 0 of {env}",
    }
    assert lines[-1].startswith(told.format(env=env, died=died[vectorization])), lines[-1]
    assert f"go on with --resume {tmp_path / 'run'}" in lines[-1]
    assert len(list((tmp_path / "run" / "checkpoints").glob("step_*"))) == 1
    assert any(line.startswith("Traceback") for line in lines) == (code == 1)


def test_an_environment_that_cannot_be_closed_is_made_nevertheless() -> None:
    class Stuck(GoldenEnv):
        def close(self) -> None:
            sys.exit("stuck")

    gym.register("relax_rl_fakes/Stuck-v0", Stuck)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with make_envs("relax_rl_fakes/Stuck-v0", num_envs=1, vectorization="async") as envs:
            envs.step(np.zeros(1, np.int64))
    assert any("closing an environment failed: SystemExit('stuck')" in str(each.message) for each in told)
