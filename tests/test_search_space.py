"""What is searched, as data: the file is read, its mistakes are told in one line, and choices may be lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from relax_rl.comparison.config import CompareConfig
from relax_rl.comparison.contestants import Contestant, read_contestant
from relax_rl.comparison.plan import Environment, Folder, own_config
from relax_rl.comparison.search_space import (
    PUBLISHED,
    check_peers,
    dimensions,
    read_space,
    searched_values,
)
from relax_rl.comparison.tuning import check, make_studies
from relax_rl.errors import SettingsError

ENV = Environment("CartPole-v1", total_steps=1000, threshold=475.0, id="CartPole-v1")
LR = {"own": "policy_lr", "low": 1e-5, "high": 1e-2, "scale": "log"}
CHOICES = [
    {"own": "hidden", "choices": [[8], [64, 64]]},
    {"own": "activation", "choices": ["tanh", "relu"]},
    {"own": "layer_norm", "choices": [False, True]},
    {"own": "num_envs", "choices": [4, 8, 16]},
    {"own": "critic_keys", "choices": [["a", "b"], ["a"]]},
]


def written(tmp_path: Path, *entries: object, **other: object) -> Path:
    path = tmp_path / "space.json"
    path.write_text(json.dumps({"settings": list(entries), **other}))
    return path


def test_choices_may_be_numbers_words_booleans_and_lists(tmp_path):
    space = {d.name: d for d in read_space(written(tmp_path, *CHOICES))}
    assert space["hidden"].categories == ("8", "64x64") and space["hidden"].setting("64x64") == [64, 64]
    assert space["hidden"].searched((64, 64)) == "64x64" and space["hidden"].searched((3,)) is None
    assert (space["layer_norm"].searched(True), space["activation"].searched("relu")) == (True, "relu")
    assert (space["num_envs"].searched(5), space["num_envs"].searched(100)) == (4, 16)
    assert searched_values({"hidden": (3,), "layer_norm": True}, {"hidden": space["hidden"]}) is None


def test_what_is_searched_is_what_is_trained(tmp_path):
    path = written(tmp_path, *CHOICES[:4], LR)
    config = CompareConfig(tune=6, tune_batch=6, tune_space=str(path))
    ((_, study),) = make_studies(config, [ENV], [read_contestant("a2c")], Folder(tmp_path / "it")).items()
    tasks = study.propose()
    assert len(tasks) == 6 and study._batch[0]["params"]["hidden"] == "64x64"
    for task, trial in zip(tasks, study._batch, strict=True):
        for name, value in trial["settings"].items():
            option, words = f"--{name.replace('_', '-')}", list(task.begin)
            if name == "hidden":
                at = words.index(option)
                assert words[at + 1 : at + 1 + len(value)] == [str(width) for width in value]
            elif name == "layer_norm":
                assert (option if value else "--no-layer-norm") in words
            else:
                assert f"{option}={value}" in words
        own_config(ENV, Contestant("a2c", "a2c", trial["settings"]))
    assert {json.dumps(trial["settings"].get("hidden")) for trial in study._batch} == {"null", "[8]", "[64, 64]"}


def test_a_search_begins_with_what_it_is_given(tmp_path):
    gamma = {"own": "gamma", "name": "one_minus_gamma", "one_minus": True, "low": 1e-3, "high": 0.1, "scale": "log"}
    rate = {"own": "surrogate_lr", "low": 1e-4, "high": 1e-2, "estimators": ["relax"]}
    starts = [{"policy_lr": 1e-3, "hidden": [8], "surrogate_lr": 1e-3}, {"one_minus_gamma": 0.01}, {"num_envs": 16}]
    path = written(tmp_path, LR, gamma, rate, *CHOICES[:4], starts=starts)
    config = CompareConfig(tune=6, tune_batch=3, tune_space=str(path))
    ((_, study),) = make_studies(config, [ENV], [read_contestant("a2c")], Folder(tmp_path / "it")).items()
    study.propose()
    first, second = (trial["settings"] for trial in study._batch[1:])
    assert (first["policy_lr"], first["hidden"], second["gamma"]) == (1e-3, [8], 0.99)
    assert set(first) == set(second) == set(study.space) and "surrogate_lr" not in first
    study.trials, study._batch = [{**trial, "score": 1.0} for trial in study._batch], []
    study.propose()
    assert study._batch[0]["settings"]["num_envs"] == 16
    assert all(trial["settings"] not in (first, second) for trial in study._batch)


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ([{"policy_lt": 1e-3}], "a start has 'policy_lt', which is not searched; did you mean policy_lr?"),
        ([{"policy_lr": 1.0}], "a start has policy_lr 1.0, expected numbers from 1e-05 to 0.01"),
        ([{"policy_lr": True}], "a start has policy_lr True, expected numbers"),
        ([{"hidden": [9]}], "a start has hidden '9', expected one of 8, 64x64"),
        ([{"layer_norm": 1}], "a start has layer_norm 1, expected one of False, True"),
        ([3], 'is not of the form {"starts": [{...}, ...]}'),
    ],
)
def test_mistakes_in_a_start(starts, expected, tmp_path):
    path = written(tmp_path, *CHOICES[:4], LR, starts=starts)
    with pytest.raises(SettingsError) as error:
        check(CompareConfig(tune=1, tune_space=str(path)), [read_contestant("a2c")])
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_comparison_keeps_its_space(tmp_path):
    path, folder = written(tmp_path, LR), Folder(tmp_path / "it")
    config = CompareConfig(tune=1, tune_space=str(path))
    make_studies(config, [ENV], [read_contestant("a2c")], folder)
    path.unlink()
    ((_, study),) = make_studies(config, [ENV], [read_contestant("a2c")], folder).items()
    assert list(study.space) == ["policy_lr"]
    check(CompareConfig(tune=1, tune_space=str(path), resume=str(folder.path)), [read_contestant("a2c")])


def test_who_has_nothing_that_is_searched_is_not_tuned(tmp_path):
    config = CompareConfig(
        tune=1, tune_space=str(written(tmp_path, {"own": "surrogate_lr", "low": 1e-4, "high": 1e-2}))
    )
    contestants = [read_contestant("relax"), read_contestant("relax:surrogate_lr=1e-3")]
    assert [label for _, label in make_studies(config, [ENV], contestants, Folder(tmp_path))] == ["relax"]
    with pytest.raises(SettingsError, match="no contestant has a setting that is searched"):
        check(config, contestants[1:])


def test_estimators_that_alone_have_a_setting(tmp_path):
    space = read_space(written(tmp_path, {**LR, "estimators": ["relax"], "name": "rate"}))
    assert [list(dimensions(read_contestant(kind), space)) for kind in ("relax", "auto", "a2c")] == [
        ["policy_lr"],
        ["policy_lr"],
        [],
    ]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"own": "policy_lt", "low": 0, "high": 1}, "unknown setting 'policy_lt'; did you mean policy_lr"),
        ({"own": "learning_rate", "low": 0, "high": 1}, "unknown setting 'learning_rate'; did you mean policy_lr?"),
        ({"own": "seed", "choices": [1, 2]}, "seed is no setting of an agent, which alone are searched"),
        ({"own": "networks", "choices": ["a:b"]}, "networks is no setting of an agent, which alone are searched"),
        ({"own": "logger", "choices": [["a:b"]]}, "logger is no setting of an agent"),
        ({"own": "policy_lr", "low": 1e-3}, "policy_lr: low and high are 0.001 and None, expected two rising numbers"),
        ({**LR, "low": 1.0}, "expected two rising numbers"),
        ({**LR, "low": 0}, "policy_lr: low is 0, expected a number above 0 on the scale log"),
        ({**LR, "scale": "log2"}, "policy_lr: scale is 'log2', expected linear or log"),
        ({**LR, "low": -1.0, "scale": "linear"}, "policy_lr is -1.0, expected above 0"),
        ({**LR, "lo": 1}, "unknown entry 'lo', expected some of name, own, sb3-a2c"),
        ({**LR, "choices": [0.1]}, "policy_lr has choices and low, expected choices alone"),
        ({"own": "num_steps", "low": 4.0, "high": 8.5, "whole": True}, "are 4.0 and 8.5, expected whole numbers"),
        (
            {"own": "num_steps", "low": 1, "high": 8},
            "num_steps takes whole numbers; expected whole beside low and high",
        ),
        ({"own": "gamma", "low": 0.1, "high": 2.0, "one_minus": True}, "gamma is -1.0, expected between 0 and 1"),
        ({"own": "gamma", "low": 0.1, "high": 0.2, "one_minus": 3}, "gamma: one_minus is 3, expected true or false"),
        ({"own": "activation", "choices": ["tanh", "gelu"]}, "activation is 'gelu', expected one of tanh, relu"),
        ({"own": "hidden", "choices": [[8, 0]]}, "hidden is [8, 0], expected at most 64 widths of at least 1"),
        ({"own": "layer_norm", "choices": ["maybe"]}, "layer_norm is 'maybe', expected true or false"),
        ({"own": "num_envs", "choices": [4, 4]}, "num_envs has the choice 4 twice"),
        ({"own": "num_envs", "choices": [{}]}, "choices is [{}], expected a list of numbers, words, booleans or lists"),
        ({**LR, "estimators": ["ppo"]}, "policy_lr: estimators is ['ppo'], expected some of relax, lax"),
        ({"name": "x", "low": 0, "high": 1}, "x names no setting, expected own, or any of sb3-a2c, sb3-ppo, sb3-sac"),
        ({"own": 3, "name": "x"}, "own is 3, expected a name"),
        (
            {"sb3-ppo": "n_epochs", "low": 1, "high": 2},
            "the entry of n_epochs has no name, expected one beside what is not own",
        ),
    ],
)
def test_mistakes_in_an_entry(entry, expected, tmp_path):
    with pytest.raises(SettingsError) as error:
        read_space(written(tmp_path, entry))
    assert expected in str(error.value) and str(error.value).startswith(f"tune_space {tmp_path}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is no JSON: "),
        ('{"settings": [{"own": "num_envs", "low": 1, "high": 1' + "0" * 400 + "}]}", "expected two rising numbers"),
        ("[" * 100_000, "is no JSON"),
        ("[]", 'is not of the form {"settings": [{...}, ...]}'),
        ('{"settings": []}', "is not of the form"),
        (json.dumps({"settings": [LR, LR]}), "policy_lr stands there twice, expected each setting once"),
        (json.dumps({"settings": [LR, {**LR, "name": "x"}]}), "policy_lr stands there twice"),
    ],
)
def test_mistakes_in_a_file(text, expected, tmp_path):
    path = tmp_path / "space.json"
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        read_space(path)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_arguments_of_peers_are_looked_at(tmp_path):
    pytest.importorskip("stable_baselines3")
    peer = Contestant("sb3-ppo", "sb3-ppo", peer=True)
    check_peers([peer], read_space(PUBLISHED))
    space = read_space(written(tmp_path, {"name": "x", "sb3-ppo": "n_epoch", "low": 1, "high": 2}))
    with pytest.raises(SettingsError, match=r"^sb3-ppo has no argument 'n_epoch'; did you mean n_epochs"):
        check_peers([peer], space)
    space = read_space(written(tmp_path, {"name": "x", "sb3-ppo": "n_epochs", "low": 1.5, "high": 4}))
    with pytest.raises(SettingsError, match=r"^n_epochs of sb3-ppo takes whole numbers; expected whole beside"):
        check_peers([peer], space)
    check_peers([read_contestant("a2c")], space)
