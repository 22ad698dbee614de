"""The run folder and its config.json."""

from __future__ import annotations

import json
import math

import pytest

from relax_rl.errors import CheckpointError, RelaxRLError, SettingsError
from relax_rl.runs import RunFolder, default_run_dir, read_config, write_config, write_json
from relax_rl.runs.record import known_env, resumed_config
from relax_rl.settings.config import AgentConfig, EnvConfig, TrainConfig
from relax_rl.settings.fields import with_settings
from relax_rl.settings.presets import preset_config


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


def test_config_round_trip(folder):
    config = preset_config("ALE/Pong-v5", hidden=(32, 16), stop_at_return=3, max_grad_norm=math.inf)
    write_config(folder, config, {"command": "x"})
    assert read_config(folder) == config
    record = json.loads(folder.config.read_text())
    assert record["run"]["preset"] == "atari"
    assert record["agent"]["max_grad_norm"] == "inf"
    assert record["command"] == "x"
    assert {"python", "torch", "gymnasium", "numpy", "relax_rl"} <= record["versions"].keys()
    assert "Infinity" not in folder.config.read_text()


def test_a_folder_with_a_run_is_refused(folder):
    write_config(folder, TrainConfig(), {})
    (folder.checkpoints / "step_000000001.safetensors").touch()
    with pytest.raises(SettingsError, match=r"already holds a run.*--resume"):
        folder.create()


def test_an_empty_folder_is_taken(folder):
    folder.create()
    assert folder.checkpoints.is_dir()


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RelaxRLError, match="cannot write") as error:
        RunFolder(tmp_path / "file" / "run").create()
    assert "\n" not in str(error.value)


def test_default_folders_never_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "NOW")
    first = default_run_dir("ALE/Pong-v5", "relax", "s3")
    assert str(first) == "runs/ALE-Pong-v5-relax-s3-NOW" and first.is_dir()
    second = default_run_dir("ALE/Pong-v5", "relax", "s3")
    assert second != first and second.name == f"{first.name}-2"
    assert default_run_dir("module:Env-v0", "a2c", "s0").name == "module-Env-v0-a2c-s0-NOW"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "no section"),
        ('{"run": 3, "env": {}, "agent": {}}', "not a JSON object"),
        ('{"run": {}, "env": {"num_envs": "many"}, "agent": {}}', "num_envs is 'many', expected int"),
        ('{"run": {}, "env": {}, "agent": {"gamma": "x"}}', "settings that this relax_rl cannot take"),
        ('{"run": {}, "env": {}, "agent": {"magic": 1}}', "unknown setting 'magic'"),
    ],
)
def test_a_damaged_config_is_told_in_one_line(folder, content, expected):
    folder.config.write_text(content)
    with pytest.raises(CheckpointError, match=expected) as error:
        read_config(folder)
    assert "\n" not in str(error.value)


def test_no_run(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_config(RunFolder(tmp_path / "none"))
    with pytest.raises(CheckpointError, match="holds no run"):
        read_config(RunFolder(tmp_path))


def test_settings_missing_from_an_older_run_take_their_defaults_or_what_they_were(folder):
    folder.config.write_text('{"run": {"seed": 4}, "env": {}, "agent": {}}')
    before = {**EnvConfig.BEFORE, **AgentConfig.BEFORE}
    assert before == {"action_masks": "off", "cnn": "legacy", "rescale_actions": False}
    assert read_config(folder) == with_settings(TrainConfig(), {"seed": 4, **before})


def test_only_some_settings_may_change_on_resuming():
    saved = preset_config("CartPole-v1", "relax")
    changed = {
        "total_steps": 9,
        "stop_at_return": 1.0,
        "quiet": True,
        "threads": 2,
        "device": "auto",
        "eval_interval": 5,
        "num_envs": 3,
        "profile": True,
        "worker_timeout": 5.0,
    }
    wanted = {**changed, "resume": "x", "run_dir": "x"}
    assert resumed_config(saved, with_settings(saved, {**wanted, "estimator": "auto"})) == with_settings(saved, wanted)
    for name, value in {"gamma": 0.5, "num_steps": 3, "estimator": "a2c", "seed": 1, "hidden": (8,)}.items():
        with pytest.raises(SettingsError, match=f"--{name.replace('_', '-')} is .* may change"):
            resumed_config(saved, with_settings(saved, {name: value}))
    with pytest.raises(CheckpointError, match="trained on CartPole-v1"):
        resumed_config(saved, with_settings(saved, {"env": "Acrobot-v1"}))


def test_an_environment_may_be_named_again_without_its_version():
    saved = preset_config("module:Task-v3", "a2c")
    assert resumed_config(saved, with_settings(saved, {"env": "module:Task"})) == saved
    assert known_env(saved.env, "module:Task") == saved.env == known_env(saved.env, "module:Task-v3")
    for other in ("module:Task-v2", "other:Task", "module:Task-v"):
        with pytest.raises(CheckpointError, match="trained on module:Task-v3"):
            resumed_config(saved, with_settings(saved, {"env": other}))
        with pytest.raises(SettingsError, match="trained on 'module:Task-v3'"):
            known_env(saved.env, other)


def test_json_is_strict(tmp_path):
    write_json(tmp_path / "a.json", {"a": [math.inf, -math.inf, math.nan, 1.5], "b": (1, None), "path": tmp_path})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    content = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert content == {"a": ["inf", "-inf", "nan", 1.5], "b": [1, None], "path": str(tmp_path)}
