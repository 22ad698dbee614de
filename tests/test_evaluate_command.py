"""The command `evaluate`."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest

from relax_rl.agents import ActorCritic
from relax_rl.cli import main
from relax_rl.commands.evaluate import evaluate_config
from relax_rl.compute.installation import install_line
from relax_rl.runs import RunFolder, write_config
from relax_rl.runs.checkpoints import CheckpointFolder
from relax_rl.settings.presets import preset_config


def evaluate(run, *args):
    assert main(["evaluate", str(run), *args]) == 0
    return json.loads((run / "evaluation.json").read_text())


def test_it_prints_and_writes_mean_and_standard_deviation(run, capsys):
    result = evaluate(run, "--episodes", "7", "--checkpoint", "latest")
    out, err = capsys.readouterr()
    assert err == ""
    assert len(result["returns"]) == len(result["lengths"]) == result["episodes"] == 7
    assert result["return_mean"] == pytest.approx(np.mean(result["returns"]))
    assert result["return_std"] == pytest.approx(np.std(result["returns"]))
    assert (result["env"], result["estimator"], result["deterministic"]) == ("CartPole-v1", "relax", True)
    assert result["step"] >= 200 and result["video"] is None
    printed = re.search(r"^return (\S+) ± (\S+) ", out, re.MULTILINE)
    assert float(printed[1]) == pytest.approx(result["return_mean"], abs=0.005)
    assert float(printed[2]) == pytest.approx(result["return_std"], abs=0.005)


def test_it_repeats_itself_and_heeds_its_seed(run):
    sampled = ["--no-deterministic", "--episodes", "5"]
    first = evaluate(run, *sampled)
    assert evaluate(run, *sampled) == first
    assert evaluate(run, *sampled, "--seed", "1")["returns"] != first["returns"]
    assert first["deterministic"] is False


def test_the_agent_can_be_chosen(run, capsys):
    latest = evaluate(run, "--episodes", "2", "--checkpoint", "latest")
    best = evaluate(run, "--episodes", "2", "--checkpoint", "best")
    assert best["checkpoint"].endswith("best.safetensors")
    path = str(CheckpointFolder(run / "checkpoints").newest_first()[0])
    assert evaluate(run, "--episodes", "2", "--checkpoint", path) == latest


def test_weights_alone_can_be_scored(run, tmp_path):
    latest = evaluate(run, "--episodes", "2", "--checkpoint", "latest")
    agent = ActorCritic.load(CheckpointFolder(run / "checkpoints").newest_first()[0])
    agent.save(tmp_path / "weights.safetensors", optimizer=False)
    found = evaluate(run, "--episodes", "2", "--checkpoint", str(tmp_path / "weights.safetensors"))
    assert found["returns"] == latest["returns"]


def test_a_damaged_newest_checkpoint_is_passed_over_and_left_alone(run, capsys):
    newest = run / "checkpoints" / "step_000000999.safetensors"
    newest.write_bytes(b"half")
    evaluate(run, "--episodes", "1", "--checkpoint", "latest")
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ") and newest.name in warning
    assert newest.exists()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--episodes", "0"], "episodes is 0"),
        (["--num-envs", "0"], "num_envs is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--device", "cuda:99"], "not available"),
        (["--checkpoint", "none.safetensors"], "none.safetensors does not exist"),
        (["--checkpoint", "best"], "no best checkpoint"),
        (["--episods", "3"], "did you mean --episodes"),
    ],
)
def test_mistakes_are_told_in_one_line(run, refused, args, expected):
    (run / "checkpoints" / "best.safetensors").unlink()
    assert expected in refused("evaluate", str(run), *args)
    assert not (run / "evaluation.json").exists()


def test_a_video(run, capsys):
    pytest.importorskip("moviepy")
    result = evaluate(run, "--episodes", "1", "--video", "--seed", "2")
    video = RunFolder(run).videos / f"step_{result['step']:09d}-seed_2.mp4"
    assert result["video"] == str(video) and video.stat().st_size > 0
    assert str(video) in capsys.readouterr().out


def test_scores_that_cannot_be_written_are_told(run, capsys):
    (run / "evaluation.json" / "in the way").mkdir(parents=True)
    assert main(["evaluate", str(run), "--episodes", "2"]) == 2
    out, err = capsys.readouterr()
    assert "\nreturn " in out and "written to" not in out
    assert err.startswith("error: cannot write ") and err.count("\n") == 1


def test_a_missing_extra_costs_no_time(run, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "moviepy.video.io.ffmpeg_writer", None)
    assert install_line("video") in refused("evaluate", str(run), "--video")
    assert not (run / "evaluation.json").exists()


@pytest.mark.parametrize(("env", "expected"), [("CartPole-v1", True), ("ALE/Pong-v5", False)])
def test_atari_is_played_with_sampled_actions(tmp_path, env, expected):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    write_config(folder, preset_config(env), {})

    def deterministic(*args):
        return evaluate_config([str(folder.path), *args], "x").deterministic

    assert deterministic() is expected
    assert deterministic("--deterministic") is True
    assert deterministic("--no-deterministic") is False
