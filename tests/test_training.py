"""Runs: what they leave, how they stop, and that they can be gone on with exactly."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from relax_rl.commands.main import main
from relax_rl.compute.serialization import load_state, save_state
from relax_rl.errors import CheckpointError, EnvironmentFault, SettingsError, TrainingDiverged
from relax_rl.runs import RunFolder, read_config
from relax_rl.runs.training import resume_config, train
from relax_rl.settings.fields import with_settings
from tests.fakes import Rows
from tests.steps import small_run

POISONED = "tests.fakes:relax_rl_fakes/Poisoned-v0"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def final_state(run: Path):
    """Tensors and state of the newest checkpoint, without the clock."""
    tensors, state = load_state(sorted((run / "checkpoints").glob("step_*.safetensors"))[-1])
    del state["run"]["seconds"]
    return tensors, state


def assert_same_state(one: Path, other: Path) -> None:
    (tensors, state), (other_tensors, other_state) = final_state(one), final_state(other)
    assert state == other_state
    assert tensors.keys() == other_tensors.keys()
    for name in tensors:
        assert torch.equal(tensors[name], other_tensors[name]), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with everything switched on, and its result. Tests must not write to it."""
    config = small_run(
        tmp_path_factory.mktemp("finished") / "run",
        total_steps=600,
        log_interval=100,
        checkpoint_interval=200,
        eval_interval=300,
        eval_episodes=3,
        tensorboard=True,
        normalize_obs=True,
        normalize_reward=True,
        lr_schedule="linear",
    )
    return train(config, command="the command")


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that run to write to."""
    shutil.copytree(finished.run_dir, tmp_path / "copy")
    return tmp_path / "copy"


def test_what_a_run_leaves(finished):
    folder = RunFolder(finished.run_dir)
    record = json.loads(folder.config.read_text())
    assert record["run"]["estimator"] == "relax" and record["run"]["preset"] == "classic-control"
    assert record["command"] == "the command" and record["resumed"] == []
    assert {path.name for path in folder.checkpoints.iterdir()} == {
        "best.safetensors",
        finished.checkpoint.name,
        *(path.name for path in folder.checkpoints.glob("step_*")),
    }
    assert len(list(folder.checkpoints.glob("step_*"))) == 2
    assert folder.curve.read_bytes().startswith(b"\x89PNG")
    assert list(folder.path.glob("events.out.tfevents.*"))
    assert not list(folder.path.rglob("*.tmp"))


def test_progress_columns(finished):
    rows = rows_of(RunFolder(finished.run_dir).progress)
    assert {"losses/value", "policy/entropy", "policy/grad_norm", "value/explained_variance"} <= rows[0].keys()
    assert {"estimate/variance", "estimate/variance_a2c", "losses/variance"} <= rows[0].keys()
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps)) and steps[-1] == finished.steps
    assert len(steps) == 6
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert float(rows[-1]["return_mean"]) == pytest.approx(finished.return_mean, rel=1e-5)


def test_loggers_of_the_caller_get_the_rows(tmp_path):
    mine = Rows()
    train(small_run(tmp_path / "run", log_interval=100), loggers=mine)
    written = rows_of(tmp_path / "run" / "progress.csv")
    assert mine.closed and [row["step"] for row in mine.rows] == [int(row["step"]) for row in written]
    assert len(written) == 4 and mine.rows[0].keys() == written[0].keys()


def test_loggers_and_callbacks_of_the_caller_hear_of_evaluations_and_the_end(tmp_path):
    class Steps:
        def __init__(self):
            self.heard, self.closed = [], False

        def log(self, step, metrics):
            self.heard.append((step, dict(metrics)))

        def close(self):
            self.closed = True

    class Hears:
        def __init__(self):
            self.heard = []

        def on_evaluation(self, agent, info):
            self.heard.append((info.steps, info.metrics))
            return len(self.heard) < 2

    mine, hears = Steps(), Hears()
    config = small_run(tmp_path / "run", log_interval=100, eval_interval=80, eval_episodes=2)
    result = train(config, loggers=[mine], callbacks=hears)
    assert result.stopped_by == "callback" and mine.closed
    rows, played = rows_of(tmp_path / "run" / "progress.csv"), rows_of(tmp_path / "run" / "evaluation.csv")
    assert len(played) == 2 and [step for step, _ in hears.heard] == [int(row["step"]) for row in played]
    names = ("return_mean", "return_std", "length_mean")
    assert [tuple(hears.heard[0][1])] == [tuple(f"evaluation/{name}" for name in names)]
    assert hears.heard[0][1]["evaluation/return_mean"] == pytest.approx(float(played[0]["return_mean"]), rel=1e-5)
    told = [(step, metrics) for step, metrics in mine.heard if "losses/value" in metrics]
    assert [step for step, _ in told] == [int(row["step"]) for row in rows]
    assert all("step" not in metrics and not any(map(math.isnan, metrics.values())) for _, metrics in mine.heard)
    assert [step for step, metrics in mine.heard if "evaluation/return_mean" in metrics] == [x for x, _ in hears.heard]
    best = max(float(row["return_mean"]) for row in rows if row["return_mean"])
    assert mine.heard[-1] == (
        result.steps,
        {"final/return_mean": result.return_mean, "best/return_mean": pytest.approx(best)},
    )


def test_what_is_no_logger_is_told_before_anything_is_made(tmp_path):
    for wrong in (object(), [], print):
        with pytest.raises(
            SettingsError, match=r"is no logger, expected an object with log\(step, metrics\) and close"
        ):
            train(small_run(tmp_path / "run"), loggers=[wrong])
    with pytest.raises(SettingsError, match="hears nothing"):
        train(small_run(tmp_path / "run"), callbacks=[3])
    assert not (tmp_path / "run").exists()


def test_all_or_few_checkpoints_are_kept(tmp_path):
    for keep, count in ((0, 5), (1, 1)):
        run = tmp_path / f"keep{keep}"
        train(small_run(run, checkpoint_interval=80, keep_checkpoints=keep))
        assert len(list((run / "checkpoints").iterdir())) == count


def test_every_episode_has_a_row(finished):
    rows = rows_of(RunFolder(finished.run_dir).episodes)
    assert len(rows) == finished.episodes and list(rows[0]) == ["step", "return", "length"]
    assert np.mean([float(row["return"]) for row in rows[-100:]]) == pytest.approx(finished.return_mean)
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(steps) and steps[-1] <= finished.steps


def test_evaluations_during_training(finished):
    rows = rows_of(RunFolder(finished.run_dir).evaluations)
    assert [row["episodes"] for row in rows] == ["3", "3"]
    assert 300 <= int(rows[0]["step"]) < 600 <= int(rows[1]["step"])
    _, state = load_state(RunFolder(finished.run_dir).checkpoints / "best.safetensors")
    assert state["run"]["best_evaluation"] == pytest.approx(max(float(row["return_mean"]) for row in rows), rel=1e-5)


def test_evaluations_change_nothing(tmp_path):
    for name, interval in (("without", 0), ("with", 100)):
        train(small_run(tmp_path / name, eval_interval=interval, eval_episodes=2))
    (one, state), (other, other_state) = final_state(tmp_path / "without"), final_state(tmp_path / "with")
    assert state["agent"] == other_state["agent"]
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_resumptions_of_one_checkpoint_are_bit_identical(copied, tmp_path):
    shutil.copytree(copied, tmp_path / "other")
    for run in (copied, tmp_path / "other"):
        train(resume_config(run, total_steps=900))
    assert_same_state(copied, tmp_path / "other")
    timing = ("seconds", "steps_per_second")
    one, other = (
        [{k: v for k, v in row.items() if k not in timing} for row in rows_of(run / "progress.csv")]
        for run in (copied, tmp_path / "other")
    )
    assert one == other


def test_a_resumption_goes_on_with_everything(finished, copied):
    seen = []
    result = train(resume_config(copied, total_steps=900), callbacks=[lambda agent, info: seen.append(info.steps)])
    assert finished.steps < seen[0] <= finished.steps + 20
    assert result.steps >= 900 and result.episodes >= finished.episodes
    before, after = rows_of(finished.run_dir / "progress.csv"), rows_of(copied / "progress.csv")
    assert after[: len(before)] == before and len(after) > len(before)
    seconds = [float(row["seconds"]) for row in after]
    assert seconds == sorted(seconds)
    record = json.loads((copied / "config.json").read_text())
    assert record["command"] == "the command" and record["run"]["total_steps"] == 900
    assert record["run"]["run_dir"] == str(copied) and record["run"]["resume"] is None
    assert [entry["step"] for entry in record["resumed"]] == [finished.steps]
    _, state = final_state(copied)
    assert state["agent"]["schedule_start"] == 0 and state["agent"]["schedule_end"] >= 900


def test_a_resumption_from_the_middle_keeps_schedule_and_target(tmp_path):
    config = small_run(tmp_path / "run", lr_schedule="linear", log_interval=20)
    stopped = train(config, callbacks=[lambda agent, info: info.steps < 200])
    assert stopped.stopped_by == "callback" and stopped.steps < 400
    result = train(resume_config(stopped.run_dir))
    assert result.stopped_by == "total_steps"
    rates = [float(row["policy/learning_rate"]) for row in rows_of(stopped.run_dir / "progress.csv")]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.1 * rates[0]


def test_rows_after_the_checkpoint_are_cut_and_written_anew(finished, copied):
    newest, previous = sorted((copied / "checkpoints").glob("step_*.safetensors"), reverse=True)
    newest.unlink()
    step = int(previous.stem.removeprefix("step_"))
    resumed_at = []
    train(resume_config(copied), callbacks=[lambda agent, info: resumed_at.append(info.steps)])
    assert step < resumed_at[0] <= step + 20
    steps = [int(row["step"]) for row in rows_of(copied / "progress.csv")]
    assert steps == sorted(set(steps)) and steps[-1] >= 600
    assert len(rows_of(copied / "evaluation.csv")) == 2


def test_a_resumption_as_another_run_is_refused(copied):
    with pytest.raises(CheckpointError, match="trained on CartPole-v1"):
        train(resume_config(copied, env="Acrobot-v1", total_steps=900))
    with pytest.raises(SettingsError, match="gamma"):
        train(resume_config(copied, gamma=0.5, total_steps=900))
    with pytest.raises(SettingsError, match="stays in its folder"):
        train(with_settings(resume_config(copied, total_steps=900), {"run_dir": "elsewhere"}))


def test_stop_at_return(tmp_path):
    result = train(small_run(tmp_path / "run", total_steps=100_000, stop_at_return=10.0))
    assert result.stopped_by == "return" and result.solved
    assert 100 <= result.episodes < 120 and result.return_mean >= 10.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves(tmp_path, number):
    def send(agent, info):
        if info.updates == 4:
            os.kill(os.getpid(), number)

    with pytest.warns(UserWarning, match=f"{number.name} has ended this run and nothing else: the script goes on"):
        result = train(small_run(tmp_path / "run", total_steps=100_000), callbacks=[send])
    assert result.stopped_by == number.name and result.interrupted
    assert result.steps <= 120
    assert result.checkpoint == RunFolder(result.run_dir).checkpoints / f"step_{result.steps:09d}.safetensors"
    assert train(resume_config(result.run_dir, total_steps=result.steps + 50)).steps >= result.steps + 50


def test_a_loop_over_runs_ends_where_it_looks_at_the_result(tmp_path, recwarn):
    def send(agent, info):
        if info.updates == 2:
            os.kill(os.getpid(), signal.SIGINT)

    begun = []
    for seed in range(3):
        begun.append(seed)
        callbacks = [send] if seed == 1 else []
        result = train(small_run(tmp_path / str(seed), seed=seed, total_steps=100), callbacks=callbacks)
        if result.interrupted:
            break
    assert begun == [0, 1] and [warning.category for warning in recwarn] == [UserWarning]
    recwarn.clear()
    train(small_run(tmp_path / "command", total_steps=100), callbacks=[send], command="the command")
    assert not recwarn.list


@pytest.mark.parametrize("interval", [100, 50_000])
def test_a_reward_that_is_no_number_ends_the_run_which_is_saved(tmp_path, interval):
    config = small_run(tmp_path / "run", POISONED, "a2c", total_steps=4000, checkpoint_interval=interval)
    with pytest.raises(EnvironmentFault, match="gave a reward of nan in step 1") as error:
        train(config)
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert f"saved as {checkpoints[-1]}; go on with --resume" in str(error.value) and "\n" not in str(error.value)
    tensors, state = load_state(checkpoints[-1])
    assert all(torch.isfinite(x).all() for x in tensors.values()) and state["agent"]["steps"] == 400


def spoil(at):
    """A callback after which the gradient is no number."""

    def spoiled(agent, info):
        if info.updates == at:
            agent.policy.head.weight.data.fill_(math.nan)

    return spoiled


def test_a_run_that_diverges_names_the_last_good_checkpoint(tmp_path):
    config = small_run(tmp_path / "run", total_steps=4000, checkpoint_interval=100)
    with pytest.raises(TrainingDiverged) as error:
        train(config, callbacks=[spoil(20)])
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert str(error.value).endswith(f"the last good checkpoint is {checkpoints[-1]}")
    assert "\n" not in str(error.value)


def test_a_run_that_diverges_before_any_checkpoint(tmp_path):
    with pytest.raises(TrainingDiverged, match="no checkpoint had been written"):
        train(small_run(tmp_path / "run", total_steps=4000), callbacks=[spoil(2)])


def test_a_mistake_of_a_callback_leaves_a_checkpoint(tmp_path):
    def mistaken(agent, info):
        if info.updates == 7:
            raise ZeroDivisionError("of the user's own")

    with pytest.raises(ZeroDivisionError, match="own"):
        train(small_run(tmp_path / "run", total_steps=4000), callbacks=[mistaken])
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
    assert train(resume_config(tmp_path / "run", total_steps=300)).steps >= 300


def test_a_run_that_is_to_end_earlier_says_so(tmp_path, recwarn):
    path = tmp_path / "run"
    train(small_run(path, total_steps=900, stop_at_step=100))
    assert not recwarn.list
    with pytest.warns(UserWarning, match="--total-steps is 400, the run was to take 900: it ends, and schedules fall"):
        assert 400 <= train(resume_config(path, total_steps=400)).steps < 900


def test_a_folder_with_a_run_is_refused(finished):
    with pytest.raises(SettingsError, match="already holds a run"):
        train(small_run(finished.run_dir))


def test_threads_are_put_back(tmp_path):
    before, during = torch.get_num_threads(), []
    train(
        small_run(tmp_path / "run", threads=2, total_steps=20),
        callbacks=[lambda *_: during.append(torch.get_num_threads())],
    )
    assert during[0] == 2 and torch.get_num_threads() == before


def test_auto_takes_lax_for_continuous_actions(tmp_path):
    result = train(small_run(tmp_path / "run", "Pendulum-v1", total_steps=100))
    assert result.agent.name == "lax"
    assert read_config(RunFolder(result.run_dir)).run.estimator == "lax"
    assert math.isnan(result.return_mean)
    assert rows_of(result.run_dir / "progress.csv")[0]["return_mean"] == ""


FADING = "tests.fakes:relax_rl_fakes/Fading-v0"


@pytest.fixture(scope="module")
def faded(tmp_path_factory):
    """A run whose returns fall from 2 to 0, and its result. Tests must not write to it."""
    return train(small_run(tmp_path_factory.mktemp("faded") / "run", FADING, "a2c", total_steps=1500, log_interval=50))


def test_the_agent_that_did_best_is_kept(faded):
    assert faded.return_mean == 0.0 and faded.best_return == 2.0
    assert faded.best == faded.run_dir / "checkpoints" / "best.safetensors"
    assert 200 <= faded.best_step <= 600 < faded.steps
    _, state = load_state(faded.best)
    assert state["agent"]["steps"] == faded.best_step and state["run"]["best_return"] == 2.0
    _, last = load_state(faded.checkpoint)
    assert (last["run"]["best_return"], last["run"]["best_step"]) == (2.0, faded.best_step)


def test_evaluate_takes_the_agent_that_did_best(faded, tmp_path, capsys):
    shutil.copytree(faded.run_dir, tmp_path / "copy")
    args = ["evaluate", str(tmp_path / "copy"), "--env", FADING, "--episodes", "1"]
    assert main(args) == 0
    out = capsys.readouterr().out
    assert "best.safetensors" in out and f"of step {faded.best_step:,}; --checkpoint latest" in out
    assert main([*args, "--checkpoint", "latest"]) == 0
    assert faded.checkpoint.name in capsys.readouterr().out
    (tmp_path / "copy" / "checkpoints" / "best.safetensors").write_bytes(b"half")
    assert main(args) == 0
    out, err = capsys.readouterr()
    assert faded.checkpoint.name in out and "taking the latest" in err


def test_a_resumed_run_replaces_the_best_agent_by_a_better_one_alone(faded, tmp_path):
    shutil.copytree(faded.run_dir, tmp_path / "copy")
    config = resume_config(tmp_path / "copy", total_steps=3000, env=FADING)
    result = train(config)  # new environments: their first 150 steps are worth something again
    assert (result.best_return, result.best_step) == (2.0, faded.best_step)
    assert (tmp_path / "copy/checkpoints/best.safetensors").read_bytes() == faded.best.read_bytes()


def test_what_was_kept_after_the_checkpoint_of_a_killed_run_stands(faded, tmp_path):
    for name in ("kept", "gone"):
        shutil.copytree(faded.run_dir, tmp_path / name)
        tensors, state = load_state(faded.checkpoint)
        state["run"] |= {"best_return": 0.5, "best_step": 10}
        save_state(tmp_path / name / "checkpoints" / faded.checkpoint.name, tensors, state)
    (tmp_path / "gone/checkpoints/best.safetensors").unlink()
    found = [train(resume_config(tmp_path / name, total_steps=1520, env=FADING)) for name in ("kept", "gone")]
    assert (found[0].best_return, found[0].best_step) == (2.0, faded.best_step)
    assert (found[1].best_return, found[1].best_step) == (found[1].return_mean, found[1].steps) and found[
        1
    ].best.exists()


def test_keeping_the_best_agent_changes_nothing(tmp_path, monkeypatch):
    for name in ("with", "without"):
        if name == "without":
            monkeypatch.setattr("relax_rl.runs.callbacks.KeepBest.look", lambda self: None)
        train(small_run(tmp_path / name, FADING, total_steps=600, log_interval=50))
    (one, state), (other, other_state) = final_state(tmp_path / "with"), final_state(tmp_path / "without")
    assert state["agent"] == other_state["agent"] and state["run"]["best_return"] == 2.0
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_code_is_compiled_takes_effect_at_once(tmp_path, monkeypatch, capsys, number):
    def slow(*_, **__):
        os.kill(os.getpid(), number)
        time.sleep(30)

    monkeypatch.setattr("relax_rl.compute.compilation.compile_function", slow)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    started = time.monotonic()
    result = train(small_run(tmp_path / "run", compile="on", quiet=False))
    assert time.monotonic() - started < 15 and result.stopped_by == number.name
    assert 0 < result.steps <= 20 and result.checkpoint.exists() and result.agent.compiled_from is None
    out = capsys.readouterr().out
    assert "compiling the update" in out and f"{number.name} received: saving" in out


def test_compiling_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("relax_rl.compute.compilation._compile", lambda graph, inputs, key: graph)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    for quiet in (False, True):
        train(small_run(tmp_path / str(quiet), compile="on", quiet=quiet, total_steps=20))
        out = capsys.readouterr().out
        assert (out == "") == quiet and ("compiling the update" in out and "done in 0:0" in out) != quiet


def test_a_broken_number_is_of_the_same_step_after_a_resumption(tmp_path):
    config = small_run(tmp_path / "run", POISONED, "a2c", total_steps=4000, num_steps=3)
    for again in (False, True):
        with pytest.raises(EnvironmentFault, match="of nan in step 1 of its episode, expected"):
            train(resume_config(tmp_path / "run", env=POISONED) if again else config)
