"""The command `compare` from end to end, on a few hundred steps of CartPole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from relax_rl.cli import main
from relax_rl.comparison import plan
from relax_rl.comparison.command import _told
from relax_rl.comparison.plan import Folder
from relax_rl.compute.installation import install_line
from relax_rl.errors import SettingsError
from relax_rl.runs import RunFolder, read_config
from relax_rl.runs.loggers import read_csv

ROOT = Path(__file__).parent.parent
SMALL = ["--set", "hidden=8", "surrogate_hidden=8", "log_interval=100", "--quiet"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A comparison with everything in it. Tests must not write to it."""
    folder = tmp_path_factory.mktemp("compare") / "all"
    args = "--env CartPole-v1 --estimators few=relax:num_envs=4 --peers sb3-a2c --set hidden=8 surrogate_hidden=8"
    args += " log_interval=100 num_steps=5 --quiet --seeds 2 --total-steps 500 --threshold 15 --num-workers 2"
    args += " --tune 2 --tune-steps 200 --variance --variance-batches 3 --variance-fit-batches 1"
    assert main(["compare", *args.split(), "--run-dir", str(folder)]) == 0
    return folder


def test_every_run_is_an_ordinary_run(finished):
    names = {f"CartPole-v1-{label}-s{seed}" for label in ("few", "sb3-a2c") for seed in (0, 1)}
    assert {path.name for path in (finished / "runs").iterdir()} == names
    config = read_config(RunFolder(finished / "runs" / "CartPole-v1-few-s1"))
    assert (config.run.estimator, config.run.seed, config.run.total_steps) == ("relax", 1, 500)
    assert config.env.num_envs == 4 and config.agent.hidden == (8,) and config.run.threads == 1
    assert main(["evaluate", str(finished / "runs" / "CartPole-v1-few-s0"), "--episodes", "1"]) == 0


def test_episodes_agree_with_the_run(finished):
    for name in ("CartPole-v1-few-s0", "CartPole-v1-sb3-a2c-s0"):
        folder = finished / "runs" / name
        episodes, progress = read_csv(folder / "episodes.csv"), read_csv(folder / "progress.csv")
        assert len(episodes["step"]) == progress["episodes"][-1] > 0
        assert episodes["return"] == episodes["length"], "CartPole pays 1 a step"
        last = episodes["return"][-100:]
        assert progress["return_mean"][-1] == pytest.approx(sum(last) / len(last), rel=1e-4)
        assert json.loads((folder / "outcome.json").read_text())["status"] == "finished"


def test_the_results_are_complete(finished):
    result = json.loads((finished / "comparison.json").read_text())
    summary = result["environments"]["CartPole-v1"]
    assert (summary["total_steps"], summary["threshold"]) == (500, 15.0)
    assert list(summary["contestants"]) == ["few", "sb3-a2c"]
    for entry in summary["contestants"].values():
        assert [run["seed"] for run in entry["runs"]] == [0, 1] and entry["solved"]["runs"] == 2
        assert entry["final"]["low"] <= entry["final"]["value"] <= entry["final"]["high"]
        assert all(run["steps"] >= 500 and run["steps_per_second"] > 0 for run in entry["runs"])
    assert len(summary["improvement"]) == 1 and result["aggregate"] is None and result["failures"] == []
    variance = result["variance"]["CartPole-v1"]
    assert list(variance) == ["early", "midway", "late"]
    assert {"a2c", "reinforce", "relax, fitted"} <= set(variance["late"]["applied"])
    kept = {Path(stage["checkpoint"]).name for stage in variance.values()}
    assert {p.name for p in (finished / "runs" / "CartPole-v1-few-s0" / "snapshots").iterdir()} == kept


def test_every_contestant_has_its_trials_and_runs_with_the_best(finished):
    about = json.loads((finished / "comparison.json").read_text())["contestants"]["CartPole-v1"]
    for label, entry in about.items():
        trials = entry["tuning"]["trials"]
        assert len(trials) == 2 and entry["tuning"]["steps"] == 200 and entry["tuning"]["seeds"] == [1_000_000]
        best = max(trials, key=lambda trial: trial["score"])
        config = json.loads((finished / "runs" / f"CartPole-v1-{label}-s0" / "config.json").read_text())
        used = {**config["peer"]["settings"], **config["peer"]["linear"]} if label == "sb3-a2c" else config["agent"]
        assert {name: used[name] for name in best["settings"]} == best["settings"]
        if label == "sb3-a2c":
            assert config["peer"] == entry["peer"], "what the report tells of a peer is what it was trained with"
    assert about["few"]["settings"]["num_envs"] == 4


@pytest.mark.parametrize(("runs", "interval"), [(1, ""), (2, " [0.500, 2.00]")])
def test_a_single_run_is_told_without_an_interval(tmp_path, runs, interval):
    entry = {
        "runs": [{}] * runs,
        "final": {"value": 1.0, "low": 0.5, "high": 2.0},
        "solved": None,
        "steps_per_second": 9.0,
    }
    environments = {"CartPole-v1": {"contestants": {"few": entry}}}
    lines = _told({"options": {"seeds": runs}, "environments": environments, "failures": []}, tmp_path)
    assert lines[1] == f"  few  final score 1.00{interval}, 9 steps/s"


def test_the_report_links_to_figures_that_exist(finished):
    text = (finished / "report.md").read_text()
    links = [line.partition("](")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(links) >= 4 and all((finished / link).read_bytes().startswith(b"\x89PNG") for link in links)
    assert "rl-baselines3-zoo/blob" in text and "compare --env CartPole-v1" in text


def test_a_finished_comparison_is_only_reported_anew(finished, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in (finished / "runs").rglob("*") if path.is_file()}
    assert main(["compare", "--resume", str(finished), "--threshold", "1000000", "--quiet"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (finished / "runs").rglob("*") if path.is_file()} == before
    summary = json.loads((finished / "comparison.json").read_text())["environments"]["CartPole-v1"]
    assert all(entry["solved"]["solved"] == 0 for entry in summary["contestants"].values())
    assert "| beyond |" in (finished / "report.md").read_text()


def test_seeds_under_a_changed_preset_are_refused(tmp_path, capsys, monkeypatch):
    args = ["--env", "CartPole-v1", "--estimators", "a2c", "--peers", "sb3-a2c", "--total-steps", "400", "--quiet"]
    folder = tmp_path / "c"
    assert main(["compare", *args, "--seeds", "1", "--run-dir", str(folder)]) == 0
    preset, own = plan.own_config, {"policy_lr": 0.5}
    monkeypatch.setattr(
        plan, "own_config", lambda env, who: preset(env, replace(who, settings={**who.settings, **own}))
    )
    assert main(["compare", "--resume", str(folder), "--quiet"]) == 0  # nothing is trained
    capsys.readouterr()
    assert main(["compare", "--resume", str(folder), "--seeds", "2", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "was trained with policy_lr 0.001, now 0.5: the preset has changed" in said and said.count("\n") == 1
    own["policy_lr"] = 1e-3
    assert main(["compare", "--resume", str(folder), "--seeds", "2", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["compare", "--resume", str(folder), "--seeds", "1", "--quiet"]) == 0
    told = "not counted, their seeds were not asked for: CartPole-v1-a2c-s1, CartPole-v1-sb3-a2c-s1"
    assert capsys.readouterr().err.splitlines() == [told]


def test_an_interrupted_comparison_of_agents_that_see_images_goes_on(tmp_path, capsys):
    env, folder = ["--env", "tests.old_envs:relax_rl_old/Images-v0", "--quiet"], tmp_path / "c"
    args = ["--estimators", "small=a2c:cnn=small", "flat=a2c:cnn=none", "--set", "normalize_obs=true", "hidden=8"]
    args += ["--total-steps", "40", "--seeds", "1", "--run-dir", str(folder)]
    assert main(["compare", *env, *args]) == 0, capsys.readouterr().err
    assert main(["compare", *env, "--resume", str(folder), "--seeds", "2"]) == 0, capsys.readouterr().err
    kept = {path.parent.name: read_config(RunFolder(path.parent)).agent for path in folder.glob("runs/*/config.json")}
    assert len(kept) == 4
    assert all(config.normalize_obs == ("flat" in name) for name, config in kept.items())


def test_folders_that_were_removed_are_made_again(finished):
    drawn = {path.name for path in (finished / "figures").iterdir()}
    shutil.rmtree(finished / "figures")
    assert main(["compare", "--resume", str(finished), "--quiet"]) == 0
    assert {path.name for path in (finished / "figures").iterdir()} == drawn


def test_a_measurement_whose_result_is_gone_is_made_again(finished):
    before = {path: json.loads(path.read_text()) for path in (finished / "variance").iterdir()}
    removed = next(path for path in before if "midway" in path.name)
    removed.unlink()
    assert main(["compare", "--resume", str(finished), "--quiet"]) == 0
    after = {path: json.loads(path.read_text()) for path in (finished / "variance").iterdir()}
    assert after.keys() == before.keys()
    assert all(after[path]["checkpoint"] == before[path]["checkpoint"] for path in before)
    assert after[removed]["applied"] == before[removed]["applied"]


def test_what_has_ended_and_cannot_be_read_is_a_failure_and_the_rest_is_told(finished, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    (folder / "runs" / "CartPole-v1-few-s1" / "episodes.csv").write_text("garbage\n")
    (folder / "runs" / "CartPole-v1-few-s0" / "progress.csv").write_text("step,return_mean\n5,1\n")
    (folder / "variance" / "CartPole-v1-early.json").write_text('{"a": 1}')
    assert main(["compare", "--resume", str(folder), "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert "2 failed or without a score, told in the report" in out and len(err.splitlines()) == 2
    for line, seed, column in zip(err.splitlines(), (0, 1), ("seconds", "step"), strict=True):
        assert line.startswith(f"CartPole-v1-few-s{seed}: unreadable: the run has ended, but")
        assert f"it has no column '{column}'" in line and line in (folder / "report.md").read_text()
    result = json.loads((folder / "comparison.json").read_text())
    assert list(result["environments"]["CartPole-v1"]["contestants"]) == ["sb3-a2c"]
    assert "applied" in result["variance"]["CartPole-v1"]["early"], "it has been measured again"


def test_runs_without_an_episode_are_told(tmp_path, capsys):
    args = "compare --env MountainCar-v0 --estimators a2c --set hidden=8 --seeds 2 --total-steps 150 --quiet"
    assert main([*args.split(), "--run-dir", str(tmp_path / "run")]) == 0
    failures = json.loads((tmp_path / "run" / "comparison.json").read_text())["failures"]
    assert [failure["run"] for failure in failures] == ["MountainCar-v0-a2c-s0", "MountainCar-v0-a2c-s1"]
    assert {failure["error"] for failure in failures} == {"no episode has ended in 150 steps"}
    assert "No run has ended with a score." in (tmp_path / "run" / "report.md").read_text()
    assert not (tmp_path / "run" / "variance").exists()
    said = capsys.readouterr().out
    assert "2 failed or without a score, told in the report" in said and "figures" not in said


def test_agents_in_wrapped_environments_that_name_no_version_are_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["--env", "CartPole", "--wrapper", "gymnasium.wrappers:TimeAwareObservation", "--estimators", "a2c"]
    args += ["--seeds", "1", "--total-steps", "500", "--num-workers", "1", "--run-dir", "v", *SMALL[:-1]]
    args += ["num_steps=5", "--quiet", "--variance", "--variance-batches", "3", "--variance-fit-batches", "1"]
    assert main(["compare", *args]) == 0, capsys.readouterr()
    assert "names no version: CartPole-v1 is taken" in capsys.readouterr().err
    found = json.loads((tmp_path / "v" / "comparison.json").read_text())["variance"]["CartPole"]
    assert set(found) == {"early", "midway", "late"} and found["early"]["env"] == "CartPole-v1"


def start(folder: Path, *args: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train_agent.py"), "compare", *args]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(what, process: subprocess.Popen | None = None) -> None:
    """As long as it takes: on a machine that others use, processes take minutes to come up; the test's limit ends it."""
    while not what():
        assert process is None or process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


@pytest.mark.timeout(900)
def test_a_comparison_goes_on_after_ctrl_c_and_after_a_kill(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "it" / "runs" / "gymnasium-CartPole-v1-a2c-s0"
    named = ["--env", "gymnasium:CartPole-v1"]  # a module that only a file names is not imported
    args = [*named, "--estimators", "a2c", "--seeds", "1", "--total-steps", "16000", *SMALL[:-1]]

    ended = threading.Event()

    def interrupt() -> None:
        wait_for(lambda: any(run.glob("checkpoints/step_*")) or ended.is_set())
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        code = main(["compare", *args, "checkpoint_interval=1000", "--run-dir", "it", "--num-workers", "1"])
    finally:
        ended.set()
        thread.join()
    out, err = capsys.readouterr()
    assert code == 130 and err == ""
    assert "stopping: what is at work (1) is saved, the rest is not begun" in out
    assert out.splitlines()[-1].endswith("compare --resume it --env gymnasium:CartPole-v1")
    stopped = max(run.glob("checkpoints/step_*")).name
    assert not (run / "outcome.json").exists()

    assert main(["compare", "--resume", "it", "--quiet"]) == 2
    assert "name it again if you trust it: --env gymnasium:CartPole-v1" in capsys.readouterr().err

    second = start(tmp_path, "--resume", "it", *named, "--quiet")
    wait_for(lambda: max(run.glob("checkpoints/step_*")).name > stopped, second)
    second.kill()
    second.communicate()
    killed = max(run.glob("checkpoints/step_*")).name

    def free() -> bool:
        try:
            with Folder(tmp_path / "it").locked():
                return True
        except SettingsError:
            return False

    wait_for(free)  # the worker has noticed, saved and left
    assert main(["compare", "--resume", "it", *named, "--quiet"]) == 0
    record = json.loads((run / "config.json").read_text())
    assert len(record["resumed"]) == 2
    assert record["resumed"][1]["step"] >= int(killed[5:14]), "what the kill interrupted was saved all the same"
    episodes, progress = read_csv(run / "episodes.csv"), read_csv(run / "progress.csv")
    assert progress["step"] == sorted(progress["step"]) and progress["step"][-1] >= 16000
    assert len(episodes["step"]) == progress["episodes"][-1] and episodes["step"] == sorted(episodes["step"])
    commands = [line for line in (tmp_path / "it" / "report.md").read_text().splitlines() if line.startswith("    ")]
    assert len(commands) == 3 and all("compare" in line for line in commands), "every session's command"


def test_a_run_that_diverges_is_told_and_does_not_stop_the_rest(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["--env", "CartPole-v1", "--estimators", "wild=a2c:value_coef=1e38,normalize_obs=false", "a2c", *SMALL]
    assert (
        main(["compare", *args, "--seeds", "1", "--total-steps", "1000", "--num-workers", "1", "--run-dir", "d"]) == 1
    )
    out, err = capsys.readouterr()
    assert "1 failed or without a score, told in the report" in out
    assert len(err.splitlines()) == 1 and err.startswith("CartPole-v1-wild-s0: diverged: the gradient is not finite")
    result = json.loads((tmp_path / "d" / "comparison.json").read_text())
    assert result["failures"][0]["status"] == "diverged"
    assert "a2c" in result["environments"]["CartPole-v1"]["contestants"]
    assert main(["compare", "--resume", "d", "--quiet"]) == 1
    assert "diverged: the gradient" in (tmp_path / "d" / "report.md").read_text()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--estimators", "lax"], "contestant 'lax' on CartPole-v1: estimator 'lax' does not fit discrete actions"),
        (["--env", "Pendulum-v1", "--estimators", "a2c", "relax"], "'relax' does not fit continuous actions"),
        (["--env", "CartPole-v7"], "CartPole-v7"),
        (["--estimators", "relaks"], "unknown estimator 'relaks'"),
        (["--seeds", "0"], "seeds is 0, expected at least 1"),
        (["--threshold", "high"], "threshold is 'high', expected a finite number, or ENV=number"),
        (["--threshold", "CartPole-v1=nan"], "threshold is 'CartPole-v1=nan', expected a finite number, or ENV=number"),
        (["--threshold", "inf"], "threshold is 'inf', expected a finite number, or ENV=number"),
        (["--threshold", "3", "4"], "threshold '4' is the second for all, expected one"),
        (["--threshold", "Acrobot-v1=3"], "is for Acrobot-v1, expected one of CartPole-v1"),
        (["--env", "Pendulum-v1", "--stop-when-solved"], "Pendulum-v1 has no registered threshold"),
        (["--variance", "--variance-of", "relax"], "variance_of is 'relax', expected one of auto, a2c"),
        (["--resume", "nowhere"], "nowhere holds no comparison"),
        (["--tune", "1", "--first-seed", "1000000"], "expected seeds below 1000000 with --tune"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_runs(args, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = [] if {"--env", "--resume"} & set(args) else ["--env", "CartPole-v1"]
    assert main(["compare", *env, *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith("error: ") and expected in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("args", [[], ["--seeds", "3", "--run-dir", "d"], ["--env"]])
def test_environments_have_to_be_named(args, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *args]) == 2
    told = "error: env is missing, expected the environments to compare on, such as --env CartPole-v1\n"
    assert capsys.readouterr() == ("", told) and not list(tmp_path.iterdir())
    assert main(["compare", "--help"]) == 0


@pytest.mark.parametrize(
    ("module", "args", "expected"),
    [
        ("stable_baselines3", ["--peers", "sb3-ppo"], "--peers needs Stable-Baselines3, which is missing: "),
        ("optuna", ["--tune", "3"], "--tune needs Optuna, which is missing: "),
    ],
)
def test_a_missing_extra_is_named(module, args, expected, capsys, monkeypatch):
    from relax_rl.comparison import peers, tuning

    for user in (peers, tuning):
        monkeypatch.setattr(user, "find_spec", lambda name: None if name == module else True)
    assert main(["compare", "--env", "CartPole-v1", *args]) == 2
    assert expected + install_line("compare") in capsys.readouterr().err


def test_a_folder_in_use_is_refused(finished, capsys):
    assert main(["compare", "--env", "CartPole-v1", "--run-dir", str(finished)]) == 2
    assert "already holds a comparison; go on with it by --resume" in capsys.readouterr().err
    assert main(["compare", "--resume", str(finished), "--estimators", "a2c"]) == 2
    assert "start a new comparison instead" in capsys.readouterr().err
    with Folder(finished).locked():
        assert main(["compare", "--resume", str(finished)]) == 2
    assert "is being worked on" in capsys.readouterr().err
