"""The command line, called in this process: what it prints, what it leaves, and one line for every mistake."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from relax_rl.commands import train
from relax_rl.commands.main import COMMANDS, main
from relax_rl.compute.installation import install_line
from relax_rl.errors import RelaxRLError
from relax_rl.runs import RunFolder, read_config

ROOT = Path(__file__).parent.parent
SMALL = ["--hidden", "8", "--surrogate-hidden", "8", "--num-envs", "4", "--total-steps", "200", "--no-tensorboard"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test has a working folder of its own."""
    monkeypatch.chdir(tmp_path)


def test_the_bare_command_lists_the_commands(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.summary)}$", out, re.MULTILINE)
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == out


def test_help_of_every_command_is_light():
    code = (
        "import sys\n"
        "from relax_rl.commands.main import COMMANDS, main\n"
        "assert main(['--help']) == 0\n"
        "assert all(main([name, '--help']) == 0 for name in COMMANDS)\n"
        "assert main(['--num-envs', '0']) == 2\n"
        "heavy = {'torch', 'gymnasium', 'numpy', 'matplotlib', 'tensorboard', 'safetensors'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_help_shows_the_settings_of_the_preset(capsys):
    assert main(["train", "--env", "ALE/Pong-v5", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Clip rewards to [-c, c] for learning; reported scores stay raw. (default: 1.0)" in out
    assert main(["--env", "ALE/Pong-v5", "--preset", "none", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "reported scores stay raw. (default: inf)" in out


def test_training_says_where_everything_lies(capsys, tmp_path):
    assert main(["train", "--env", "CartPole-v1", "--seed", "3", *SMALL]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    (path,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"CartPole-v1-relax-s3-\d{8}-\d{6}", path.name)
    run = Path("runs") / path.name
    assert out.splitlines()[0] == f"CartPole-v1 · relax · preset classic-control · 4 environments (native) · {run}"
    folder = RunFolder(run)
    assert f"learning curve  {folder.curve}" in out and folder.curve.exists()
    (checkpoint,) = folder.checkpoints.iterdir()
    assert f"checkpoint      {checkpoint}" in out
    assert f"evaluate {run}" in out
    record = json.loads(folder.config.read_text())
    assert record["run"]["seed"] == 3 and "--seed 3" in record["command"]


def test_tensorboard_is_named_where_it_is_written(capsys, tmp_path):
    args = [arg for arg in SMALL if arg != "--no-tensorboard"]
    assert main([*args, "--total-steps", "20", "--run-dir", "r"]) == 0
    assert "tensorboard --logdir r" in capsys.readouterr().out
    assert list((tmp_path / "r").glob("events*"))


def test_explicit_options_win_over_the_preset():
    config = train.train_config(["--env", "ALE/Pong-v5", "--num_envs", "8", "--reward-clip", "inf"], "prog train")
    assert (config.env.num_envs, config.agent.reward_clip) == (8, float("inf"))  # the plain defaults, but asked for
    assert config.agent.num_steps == 5 and config.agent.entropy_coef == 0.01
    assert config.run.preset == "atari"
    assert train.train_config(["--preset", "atari"], "prog train").agent.reward_clip == 1.0
    assert train.train_config(["--preset", "none", "--env", "ALE/Pong-v5"], "prog train").run.preset == "none"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["trian"], "unknown command 'trian', expected one of train, evaluate, "),
        (["--env", "CartPol-v1"], "unknown environment 'CartPol-v1'; did you mean CartPole-v1"),
        (["--env", "no_such_module:Env-v0"], "no_such_module"),
        (["--env", ""], "env is ''"),
        (["--estimator", "lax"], "'lax' does not fit discrete actions"),
        (["--env", "Pendulum-v1", "--estimator", "relax"], "'relax' does not fit continuous actions"),
        (["--env", "tests.fakes:relax_rl_fakes/Wordy-v0"], "Text"),
        (["--total-steps", "0"], "total_steps is 0, expected at least 1"),
        (["--num-steps", "0"], "num_steps is 0"),
        (["--num-envs", "-1"], "num_envs is -1"),
        (["--checkpoint-interval", "0"], "checkpoint_interval is 0"),
        (["--eval-episodes", "0"], "eval_episodes is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--gamma", "1.5"], "gamma is 1.5, expected between 0 and 1"),
        (["--vectorization", "magic"], "'magic'"),
        (["--env", "Acrobot-v1", "--vectorization", "native"], "no native vector code"),
        (["--device", "cuda:99"], "device 'cuda:99' is not available"),
        (["--device", "toaster"], "unknown device 'toaster'"),
        (["--run-dir", "file/run"], "file/run: Not a directory"),
        (["--resume", "none"], "run none does not exist"),
        (["export", "zoo:x"], "has no agent 'x', only Acrobot-v1"),
        (["push", "zoo:x", "me/x"], "has no agent 'x', only Acrobot-v1"),
        (["variance", "zoo:x"], "has no agent 'x', only Acrobot-v1"),
        (["--resume", "."], "holds no run"),
        (["evaluate"], "RUN is missing"),
        (["evaluate", "none"], "run none does not exist"),
        (["evaluate", "file"], "run file is a file, expected the folder of a run"),
    ],
)
def test_mistakes_are_told_in_one_line(args, expected, refused):
    Path("file").write_text("")
    assert expected in refused(*args)
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_a_python_without_the_package_is_told(monkeypatch, refused):
    def lacking(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("relax_rl.commands.main.import_module", lambda name: lacking("gymnasium"))
    assert "has no gymnasium: activate the environment" in refused("--env", "CartPole-v1")
    monkeypatch.setattr("relax_rl.commands.main.import_module", lambda name: lacking("theirs"))
    with pytest.raises(ModuleNotFoundError, match="theirs"):
        main(["--env", "CartPole-v1"])


def test_the_missing_extra_is_named(monkeypatch, refused):
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "Box2D", None)
    assert install_line("box2d") in refused("--env", "LunarLander-v3")


def test_a_folder_with_a_run_is_refused_before_anything_heavy(run, refused):
    assert f"already holds a run; go on with it by --resume {run}" in refused("--run-dir", str(run))


def test_a_resumption_needs_only_the_folder(capsys, run, refused):
    assert "raise --total-steps" in refused("--resume", str(run))
    assert main(["--resume", str(run), "--total-steps", "300"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and re.search(rf"{run} · resumed at step 2\d\d$", out.splitlines()[0])
    config = read_config(RunFolder(run))
    assert config.run.total_steps == 300 and config.agent.hidden == (8,)
    assert config.run.preset == "classic-control"


def test_a_resumption_as_another_run_is_refused(run, refused):
    more = ["--resume", str(run), "--total-steps", "300"]
    assert "--env Acrobot-v1: the run was trained on CartPole-v1" in refused(*more, "--env", "Acrobot-v1")
    for args in (
        ["--gamma", "0.5"],
        ["--num-steps", "6"],
        ["--estimator", "a2c"],
        ["--seed", "7"],
        ["--preset", "none"],
    ):
        assert "may change" in refused(*more, *args)
    assert "stays in its folder" in refused(*more, "--run-dir", "elsewhere")


def test_saying_again_what_the_run_has_is_no_change(run):
    same = ["--env", "CartPole-v1", "--estimator", "auto", "--num-envs", "4", "--preset", "auto", "--run-dir", str(run)]
    changed = ["--total-steps", "240", "--threads", "2", "--log-interval", "100", "--quiet"]
    assert main(["--resume", str(run), *same, *changed]) == 0


def test_damaged_checkpoints(capsys, run):
    (good,) = (run / "checkpoints").glob("step_*")
    newest = good.with_name("step_000000300.safetensors")
    newest.write_bytes(good.read_bytes()[:-10])
    assert main(["--resume", str(run), "--total-steps", "300", "--quiet"]) == 0
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ") and "step_000000300.safetensors is damaged" in warning

    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"\x80\x04 no pickle is ever loaded")
    assert main(["--resume", str(run), "--total-steps", "400"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["warning"] * (len(lines) - 1) + ["error"]


def test_a_damaged_config(run, refused):
    (run / "config.json").write_text("{")
    assert "damaged" in refused("--resume", str(run))
    assert "damaged" in refused("evaluate", str(run))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(capsys, monkeypatch, number, code):
    from relax_rl.runs.agent import AgentRun

    add, calls = AgentRun.add, []

    def send(self, episodes):
        add(self, episodes)
        calls.append(episodes)
        if len(calls) == 3:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(AgentRun, "add", send)
        assert main([*SMALL, "--total-steps", "100000", "--run-dir", "r"]) == code
    out = capsys.readouterr().out
    assert f"interrupted by {number.name}: " in out and "--resume r" in out
    assert len(list(Path("r/checkpoints").iterdir())) == 1
    assert main(["--resume", "r", "--total-steps", "100", "--quiet"]) == 0


def test_ctrl_c_before_there_is_a_run(capsys, monkeypatch):
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_command", interrupted)
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_sigterm_from_outside(tmp_path):
    """The launcher as a process of its own, stopped as a scheduler would stop it."""
    run = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train_agent.py"), *SMALL, "--total-steps", "10000000", "--compile", "off"]
    process = subprocess.Popen(
        [*command, "--run-dir", str(run), "--log-interval", "20"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (run / "progress.csv").exists() or not (run / "progress.csv").stat().st_size:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 143
    assert err == ""
    assert "interrupted by SIGTERM" in out
    assert f"python {ROOT / 'train_agent.py'} --resume {run}" in out
    assert len(list((run / "checkpoints").glob("step_*.safetensors"))) == 1


def test_errors_that_are_no_mistake_of_the_user_keep_their_traceback(monkeypatch):
    def broken(*_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(train, "train_command", broken)
    with pytest.raises(ZeroDivisionError):
        main(["train"])


def test_every_error_of_the_package_is_told_in_one_line(monkeypatch, refused):
    def refuse(*_: object) -> int:
        raise RelaxRLError("this is why")

    monkeypatch.setattr(train, "train_command", refuse)
    assert refused("train") == "error: this is why"


@pytest.mark.parametrize(
    ("argv0", "expected"),
    [
        ("train_agent.py", "python train_agent.py"),
        ("/x/relax_rl/__main__.py", "python -m relax_rl"),
        ("/x/bin/relax-rl", "relax-rl"),
    ],
)
def test_the_program_is_named_as_it_was_called(monkeypatch, capsys, argv0, expected):
    monkeypatch.setattr(sys, "argv", [argv0])
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert main([]) == 0
    assert capsys.readouterr().out.startswith(f"usage: {expected} COMMAND")


def test_quiet_leaves_one_line(capsys):
    assert main([*SMALL, "--run-dir", "r", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and re.fullmatch(r"all steps taken: 2\d\d steps, \d+ episodes, .* s · r\n", out)


def test_an_id_without_a_version_is_told_and_gets_its_preset(capsys):
    assert main(["--env", "CartPole", *SMALL, "--total-steps", "20", "--run-dir", "r", "--quiet"]) == 0
    assert capsys.readouterr().err == ("warning: env 'CartPole' names no version: CartPole-v1 is taken\n")
    config = read_config(RunFolder(Path("r")))
    assert (config.env.env, config.run.preset, config.agent.gamma) == ("CartPole-v1", "classic-control", 0.98)


def test_the_summary_names_the_best_agent(capsys):
    assert main([*SMALL, "--stop-at-return", "5", "--num-envs", "16", "--total-steps", "9000", "--run-dir", "r"]) == 0
    out, best = capsys.readouterr().out, Path("r/checkpoints/best.safetensors")
    found = re.search(
        rf"^  best            {best} \(the last agent, mean return in 100 episodes (\S+)\)$", out, re.MULTILINE
    )
    assert best.exists() and found and f"mean return of the last 100 {found[1]}," in out


def test_a_refused_resumption_names_options(run, refused):
    line = refused("--resume", str(run), "--total-steps", "300", "--policy-lr", "0.5")
    assert "--policy-lr is 0.5, but the run to resume has 0.001, and only" in line
    assert "--eval-interval" in line and "_" not in line.partition("and only")[2]


def test_fewer_steps_than_a_run_was_to_take_are_told(run, refused, capsys):
    assert main(["--resume", str(run), "--total-steps", "400", "--quiet"]) == 0
    assert "already taken 4" in refused("--resume", str(run), "--total-steps", "400")
    config = json.loads((run / "config.json").read_text())
    config["run"]["total_steps"] = 9000
    (run / "config.json").write_text(json.dumps(config))
    assert main(["--resume", str(run), "--total-steps", "500", "--quiet"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: --total-steps is 500, the run was to take 9,000")


def test_warnings_of_others_come_without_colours(monkeypatch, capsys):
    def warn(*_: object) -> int:
        warnings.warn("\x1b[33mWARN: something\n is off\x1b[0m", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(train, "train_command", warn)
    assert main(["train"]) == 0
    assert capsys.readouterr().err == "warning: something is off\n"


def test_printed_paths_stand_whole_in_a_narrow_pipe(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    run = "a-folder-with-a-long-name/and-another-one-in-it/run"
    assert main([*SMALL, "--total-steps", "20", "--run-dir", run]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(run) and any(line.endswith(f"{run}/learning_curve.png") for line in lines)


def test_a_line_about_an_error_is_a_line_whatever_stands_in_it(monkeypatch, refused):
    assert "\\x1b[31m" in refused("--seed", "\x1b[31m") and "\\u202e" in refused("--env", "abc\u202e")
    told = refused("--seed", "9" * 5000)
    assert len(told) < 1100 and " ... " in told and told.endswith("train --help")

    def fail(args, prog):
        raise RelaxRLError("first\nsecond")

    monkeypatch.setattr(train, "train_command", fail)
    assert refused("--seed", "0") == "error: first second"


def test_the_summary_says_what_the_best_return_is_of_when_evaluations_have_ended(capsys):
    assert (
        main([*SMALL, "--eval-interval", "50", "--eval-episodes", "1", "--total-steps", "200", "--run-dir", "r"]) == 0
    )
    assert "mean return in evaluation" in capsys.readouterr().out
    assert main(["--resume", "r", "--eval-interval", "0", "--total-steps", "300"]) == 0
    assert "mean return in evaluation" in capsys.readouterr().out
