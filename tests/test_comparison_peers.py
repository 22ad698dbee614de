"""Stable-Baselines3 as a command that leaves a run folder, and goes on with one."""

from __future__ import annotations

import json
import os
import signal
import zipfile
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from relax_rl.comparison import peer_training
from relax_rl.comparison.peer_envs import make_peer_envs
from relax_rl.comparison.peer_training import PeerConfig, main, make_peer, train_peer
from relax_rl.comparison.peers import published, with_bins
from relax_rl.comparison.results import read_run
from relax_rl.comparison.task import Task, outcome_of
from relax_rl.errors import SettingsError
from relax_rl.runs.folder import RunFolder
from relax_rl.runs.loggers import read_csv


def test_peers_on_cut_actions(tmp_path):
    run = tmp_path / "run"
    args = ["--env=Pendulum-v1", "--algo=sb3-ppo", "--bins=5", "--total-steps=64", "--set", "n_steps=16", "n_epochs=1"]
    assert main([*args, f"--run-dir={run}"]) == 0
    peer = json.loads((run / "config.json").read_text())["peer"]
    assert "cut into 5 bins per dimension, without its state-dependent exploration" in peer["departure"]
    assert "use_sde" not in peer["settings"] and peer["settings"]["gamma"] == 0.9
    plain = published("Pendulum-v1", "sb3-ppo")
    assert with_bins(plain, 0) == plain


@pytest.mark.parametrize(("side", "flat"), [(7, True), (84, False)])
def test_small_grids_are_numbers_and_not_images(side, flat):
    """An MLP would get the values of a grid, from 0 to 10, divided by 255."""
    peer = replace(published(f"{__name__}:Grid", "sb3-ppo"), settings={"n_steps": 64})
    envs = make_peer_envs(peer, 0, env_kwargs={"side": side})
    model = make_peer(peer, envs, 0)
    obs = model.policy.obs_to_tensor(envs.reset())[0]
    assert envs.observation_space.shape == ((side * side * 3,) if flat else (side, side, 3))
    seen = model.policy.extract_features(obs) if flat else None
    assert seen is None or (seen.shape == (1, side * side * 3) and float(seen.max()) == 10.0)
    envs.close()


class Grid(gym.Env):
    """Sees numbers of what lies on its cells."""

    action_space = spaces.Discrete(2)

    def __init__(self, side):
        self.observation_space = spaces.Box(0, 255, (side, side, 3), np.uint8)

    def reset(self, **_):
        return np.full(self.observation_space.shape, 10, np.uint8), {}

    def step(self, action):
        return self.reset()[0], 1.0, True, False, {}


@pytest.mark.parametrize("algo", ["sb3-a2c", "sb3-ppo"])
def test_a_peer_that_is_stopped_goes_on(tmp_path, algo, monkeypatch):
    """Parameters, optimiser, running statistics, counters and last episodes come back; tables go on from the checkpoint."""
    run, seen = tmp_path / "run", {}
    step, restore = peer_training._Run._on_step, peer_training._Run.restore

    def stop(self) -> bool:
        if self.model.num_timesteps == 150 * self.model.n_envs + self.model.n_envs:
            os.kill(os.getpid(), signal.SIGTERM)
        goes_on = step(self)
        if not goes_on:
            seen["before"] = _everything(self.model), dict(self.state)
        return goes_on

    def remember(self, model, state) -> None:
        restore(self, model, state)
        seen["after"] = _everything(model), list(self.returns)

    monkeypatch.setattr(peer_training._Run, "_on_step", stop)
    options = {"n_steps=8", "n_epochs=2", "batch_size=32"} if algo == "sb3-ppo" else set()
    args = [
        "--env=gymnasium:Acrobot-v1",
        f"--algo={algo}",
        "--total-steps=6000",
        "--set",
        "learning_rate=0.01",
        *options,
    ]
    more = ["--log-interval=500", "--checkpoint-interval=1000", f"--run-dir={run}"]
    assert main([*args, *more]) == 143
    step_saved = int(max(run.glob("checkpoints/*.zip")).stem[5:])
    assert 2300 < step_saved <= 2416 and len(list(run.glob("checkpoints/*.zip"))) == 2
    monkeypatch.setattr(peer_training._Run, "_on_step", step)
    monkeypatch.setattr(peer_training._Run, "restore", remember)
    assert main([f"--resume={run}"]) == 2  # a module that only a file names is not imported
    assert main([f"--resume={run}", args[0]]) == 0
    (before, state), (after, returns) = seen["before"], seen["after"]
    assert before.keys() == after.keys() and len(before) > 20
    for name, value in before.items():
        close = 0.05 if name.startswith("normalization") else 0.0  # what a rollout in progress has brought is in it
        np.testing.assert_allclose(after[name], value, rtol=close, atol=close, err_msg=name)
    assert state["step"] == step_saved and returns == state["returns"]
    progress, episodes = read_csv(run / "progress.csv"), read_csv(run / "episodes.csv")
    assert progress["step"] == sorted(set(progress["step"])) and progress["step"][-1] >= 6000
    assert progress["seconds"] == sorted(progress["seconds"]) and len(progress["step"]) >= 12
    assert episodes["step"] == sorted(episodes["step"]) and len(episodes["step"]) == progress["episodes"][-1] > 0
    assert [entry["step"] for entry in json.loads((run / "config.json").read_text())["resumed"]] == [step_saved]


def _everything(model) -> dict[str, np.ndarray]:
    """Parameters, state of the optimiser, and running statistics."""
    found = {f"policy.{name}": value.numpy().copy() for name, value in model.policy.state_dict().items()}
    for key, entry in model.policy.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{key}.{name}": np.array(value) for name, value in entry.items()}
    statistics = model.get_vec_normalize_env()
    for name in ("obs_rms", "ret_rms"):
        rms = getattr(statistics, name)
        found |= {f"normalization.{name}.{part}": np.array(getattr(rms, part)) for part in ("mean", "var", "count")}
    return found


def test_sac_goes_on_from_its_parameters_with_an_empty_memory(tmp_path) -> None:
    run = tmp_path / "run"
    options = ["--set", "learning_starts=100", "batch_size=8", "buffer_size=1000", "gradient_steps=1", "train_freq=10"]
    args = ["--env=Pendulum-v1", "--algo=sb3-sac", "--total-steps=300", "--checkpoint-interval=100", *options]
    assert main([*args, f"--run-dir={run}"]) == 0
    (run / "checkpoints" / "step_000000300.zip").unlink()
    assert main([f"--resume={run}"]) == 0
    record = json.loads((run / "config.json").read_text())
    assert record["peer"]["algo"] == "sb3-sac" and [entry["step"] for entry in record["resumed"]] == [200]
    assert read_csv(run / "progress.csv")["step"][-1] == 300


def test_sac_refuses_choices_in_one_line(tmp_path, capsys) -> None:
    assert main(["--env=CartPole-v1", "--algo=sb3-sac", "--total-steps=64", f"--run-dir={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err.startswith("error: sb3-sac takes continuous actions (Box), not Discrete(2)")


def test_a_peer_is_gone_on_with_by_the_id_without_its_version():
    saved = PeerConfig(env="module:Task-v3")
    for name in ("module:Task", "module:Task-v3"):
        assert peer_training._known(saved, PeerConfig(env=name)) == saved
    with pytest.raises(SettingsError, match="name it again if you trust it"):
        peer_training._known(saved, PeerConfig(env="module:Task-v2"))


def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys):
    config = PeerConfig(env="CartPole-v1", total_steps=400, checkpoint_interval=200, run_dir=str(tmp_path / "run"))
    assert train_peer(config) is None
    older, newest = sorted((tmp_path / "run" / "checkpoints").iterdir())
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 255
    newest.write_bytes(data)
    assert main([f"--resume={tmp_path / 'run'}"]) == 0
    assert "is damaged; trying the one before it" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["resumed"][0]["step"] == int(older.stem[5:])
    with zipfile.ZipFile(max((tmp_path / "run" / "checkpoints").glob("*.zip"))) as archive:
        assert json.loads(archive.read("relax_rl.json"))["step"] >= 400


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--algo=sb3-dqn"], "algo is 'sb3-dqn', expected one of sb3-a2c, sb3-ppo, sb3-sac"),
        (["--total-steps=0"], "total_steps is 0, expected at least 1"),
        (["--set", "gamma=high"], "expected name=value with values in JSON"),
        (["--resume=nowhere"], "run nowhere does not exist"),
    ],
)
def test_mistakes_are_told_in_one_line(args, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith("error: ") and expected in err


def test_a_folder_of_ours_is_no_peers(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"run": {}}')
    assert main([f"--resume={tmp_path}"]) == 2 and "is no peer's, or damaged" in capsys.readouterr().err
    assert main([f"--run-dir={tmp_path}"]) == 2 and "already holds a run" in capsys.readouterr().err


def test_schedules_end_at_zero() -> None:
    """Also where the last rollout goes on beyond the steps that they were made for."""
    falling = peer_training._linear_to_zero(0.5)
    assert [falling(remaining) for remaining in (1.0, 0.5, 0.0, -0.3)] == [0.5, 0.25, 0.0, 0.0]


def test_a_peer_that_falls_apart_has_diverged(tmp_path, capsys):
    args = ["--env=CartPole-v1", "--algo=sb3-ppo", "--total-steps=4000", "--set", "n_steps=64", "learning_rate=1e30"]
    assert main([*args, f"--run-dir={tmp_path / 'run'}"]) == 2
    log = tmp_path / "log"
    log.write_text(capsys.readouterr().err)
    assert log.read_text() == "error: a weight is not finite after 512 steps\n"
    task = Task(name="run", folder="run", begin=(), resume=(), total_steps=4000)
    assert outcome_of(task, tmp_path, 2, log, 1.0)["status"] == "diverged"
    assert read_run(tmp_path / "run", 0).end[0] == 512.0, "it counts with its last score"


def test_an_error_of_the_environment_is_no_divergence(tmp_path, monkeypatch):
    monkeypatch.setattr(peer_training._Run, "_on_step", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["--env=CartPole-v1", "--total-steps=100", f"--run-dir={tmp_path / 'run'}"])


def test_a_checkpoint_whose_state_is_none_is_passed_over_and_a_folder_in_use_is_told(tmp_path, capsys):
    config = PeerConfig(env="CartPole-v1", total_steps=400, checkpoint_interval=200, run_dir=str(tmp_path / "run"))
    assert train_peer(config) is None
    older, newest = sorted((tmp_path / "run" / "checkpoints").iterdir())
    with zipfile.ZipFile(newest, "w") as archive:
        archive.writestr("relax_rl.json", "{}")
    with RunFolder(tmp_path / "run").locked():
        assert main([f"--resume={tmp_path / 'run'}"]) == 2
        assert "is being worked on" in capsys.readouterr().err
    assert main([f"--resume={tmp_path / 'run'}"]) == 0
    assert f"{newest} is damaged; trying the one before it" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["resumed"][0]["step"] == int(older.stem[5:])
