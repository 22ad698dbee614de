"""Options: read from a dataclass, with every mistake told in one line."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from gymnasium import spaces

from relax_rl.agents import A2C
from relax_rl.cli import main
from relax_rl.commands.evaluate import EvaluateConfig
from relax_rl.comparison.config import CompareConfig
from relax_rl.errors import SettingsError
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.settings.config import EnvConfig, TrainConfig
from relax_rl.settings.fields import check, from_json, from_text, settings_of, to_json, with_settings
from relax_rl.settings.options import parse
from relax_rl.settings.synonyms import SYNONYMS


def read(*args, default=None):
    return parse(TrainConfig, args, default=default, prog="prog train", description="Train.")


def test_nothing_given_is_the_default():
    assert read() == TrainConfig()
    default = with_settings(TrainConfig(), {"gamma": 0.5, "hidden": (3,)})
    assert read(default=default) == default


def test_every_setting_of_every_section_is_an_option():
    config = read(
        "--env", "A-v0", "--total_steps", "9e0", "--hidden", "64", "32", "--normalize-obs", "--stop-at-return=3.5"
    )
    expected = {"env": "A-v0", "total_steps": 9, "hidden": (64, 32), "normalize_obs": True, "stop_at_return": 3.5}
    assert config == with_settings(TrainConfig(), expected)


def test_what_is_given_wins_even_if_it_is_the_plain_default():
    default = with_settings(TrainConfig(), {"normalize_obs": True, "num_envs": 16})
    assert read("--no-normalize-obs", "--num-envs", "8", default=default) == TrainConfig()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--num-env", "3"], "unknown option --num-env; did you mean --num-envs"),
        (["--zzz"], "unknown option --zzz"),
        (["CartPole-v1"], "unrecognized arguments: CartPole-v1; did you mean --env CartPole-v1; see"),
        (["--num-envs", "0"], "num_envs is 0, expected at least 1"),
        (["--num-envs", "-3"], "num_envs is -3, expected at least 1"),
        (["--seed", "9223372036854775808"], "seed is 9223372036854775808, expected at most 9,223,372,036,854,775,807"),
        (["--num-envs", "1.5"], "--num-envs: '1.5' is not a whole number"),
        (["--num-envs", "inf"], "--num-envs: 'inf' is not a whole number"),
        (["--num-envs", "many"], "--num-envs: 'many' is not a whole number"),
        (["--num-envs"], "--num-envs"),
        (["--gamma", "high"], "--gamma: 'high' is not a number"),
        (["--gamma", "nan"], "gamma is nan"),
        (["--estimator", "relx"], "'relx'.*relax"),
        (["--squash", "True"], "True"),
        (["stray"], "stray"),
        (["--hidden", "64", "0"], "hidden is"),
        (["--log-std-init", "100"], "log_std_init is 100.0, expected between -20 and 20"),
    ],
)
def test_mistakes_are_told_in_one_line(args, expected, capsys):
    with pytest.raises(SettingsError, match=expected) as error:
        read(*args)
    assert "\n" not in str(error.value)
    assert not any(sign in str(error.value) for sign in "│╭╰─")
    assert capsys.readouterr() == ("", "")


def test_help_shows_the_docstrings_and_the_defaults(capsys):
    with pytest.raises(SystemExit) as leaving:
        read("--help", default=with_settings(TrainConfig(), {"num_envs": 37}))
    assert leaving.value.code == 0
    out = capsys.readouterr().out
    assert "Environments stepped side by side. (default: 37)" in out
    for name in ("env", "estimator", "total-steps", "num-envs", "num-steps", "seed", "device", "run-dir", "resume"):
        assert f"--{name} " in out
    assert "--stop-at-return " in out


def test_help_is_there_for_whoever_names_what_is_not(capsys):
    for args in (["--resume", "nowhere"], ["evaluate", "nowhere"]):
        assert main([*args, "--help"]) == 0
        out, err = capsys.readouterr()
        assert "OPTIONS" in out and not err


def test_help_fetches_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "zoo:CartPole-v1", "--help"]) == 0
    assert "OPTIONS" in capsys.readouterr().out and not list(tmp_path.iterdir())


@dataclass(frozen=True)
class Inner:
    """Inside."""

    depth: int = 1
    """How deep."""


@dataclass(frozen=True)
class Outer:
    """Outside."""

    mode: Literal["a", "b"] = "a"
    """Which."""
    inner: Inner = field(default_factory=Inner)


def test_any_dataclass_will_do():
    config = parse(Outer, ["--mode", "b", "--depth", "4"], prog="x", description="X.")
    assert config == Outer("b", Inner(4))


@dataclass(frozen=True)
class Named:
    """With something that has to be given."""

    run: str
    """What to look at,
    in two lines."""
    share: float | None = None
    """Part of it, 50% say."""
    kinds: tuple[Literal["x", "y"], ...] = ()
    """Which."""

    def __post_init__(self) -> None:
        check(self)


def test_what_has_to_be_given(capsys):
    def parsed(*args):
        return parse(Named, args, prog="p", description="N.")

    assert parsed("here") == Named("here") == parsed("--kinds", "--share", "None", "here")
    assert parsed("--kinds", "x", "y", "--share", "0.5", "--", "here") == Named("here", 0.5, ("x", "y"))
    with pytest.raises(SettingsError, match="RUN is missing: What to look at, in two lines; see p --help"):
        parsed("--share", "1")
    with pytest.raises(SettingsError, match="--kinds: invalid choice: 'z'"):
        parsed("here", "--kinds", "x", "z")
    with pytest.raises(SystemExit):
        parsed("--help")
    out = " ".join(capsys.readouterr().out.split())
    assert "usage: p [-h] [OPTIONS] RUN" in out and "50% say. --kinds" in out and "None" not in out and "{x,y}" in out


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            ["gap=100", "lidar=false", "name=two words", "path=a=b"],
            {"gap": 100, "lidar": False, "name": "two words", "path": "a=b"},
        ),
        (
            ["on=True", "off=False", "none=None", "size=[1, 2.5]"],
            {"on": True, "off": False, "none": None, "size": [1, 2.5]},
        ),
        (['{"a": {"b": [1, null]}}'], {"a": {"b": [1, None]}}),
        (['{"a": 1}', "b=2"], {"a": 1, "b": 2}),
    ],
)
def test_settings_of_somebody_elses_are_pairs_or_json(given: list[str], expected: dict[str, Any]) -> None:
    assert parse(TrainConfig, ["--env-kwargs", *given, "--seed", "3"], prog="train").env.env_kwargs == expected
    written = json.dumps(to_json(TrainConfig(env=EnvConfig(env_kwargs=expected))))
    assert from_json(TrainConfig, json.loads(written)).env.env_kwargs == expected


@pytest.mark.parametrize("wrong", ["gap", "=1", '{"a": 1', "{1}"])
def test_what_is_neither_is_refused(wrong: str) -> None:
    with pytest.raises(SettingsError, match="is not name=value, or JSON"):
        parse(TrainConfig, ["--env-kwargs", wrong], prog="train")


@pytest.mark.parametrize("wrong", [{"df": object()}, {1: 2}, {"x": float("nan")}, "x=1", 3])
def test_only_what_json_has_words_for_is_kept(wrong: Any) -> None:
    with pytest.raises(SettingsError, match="expected a dictionary of values that JSON has words for"):
        EnvConfig(env_kwargs=wrong)


def test_numbers_below_zero_are_values_however_they_are_written() -> None:
    for text, value in (("-0.5", -0.5), ("-5e-1", -0.5), ("-.5", -0.5), ("-2", -2.0), ("-1E+0", -1.0)):
        assert parse(TrainConfig, ["--log-std-init", text], prog="train").agent.log_std_init == value


def test_names_of_leaves_stand_side_by_side() -> None:
    assert parse(TrainConfig, ["--drop-keys", "text", "inner.x"], prog="train").env.drop_keys == ("text", "inner.x")
    assert from_text(tuple[str, ...], "text+inner.x") == ("text", "inner.x")


def help_at(columns, kind, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        parse(kind, ["--help"], prog="prog train")
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", [TrainConfig, VaeConfig, CompareConfig])
def test_every_option_stands_in_one_section(kind, monkeypatch, capsys):
    listed = [name for names in kind.SECTIONS.values() for name in names.split()]
    assert sorted(listed) == sorted(settings_of(kind))
    out = help_at(80, kind, monkeypatch, capsys)
    headings = [line.rstrip(":") for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == list(kind.SECTIONS)
    assert max(len(names.split()) for names in kind.SECTIONS.values()) <= 13


def test_what_everyone_sets_comes_first(monkeypatch, capsys):
    first = help_at(80, TrainConfig, monkeypatch, capsys).split("rollouts and returns:")[0]
    told = [line.split()[0] for line in first.splitlines() if line.startswith("  --")]
    named = "env estimator total-steps seed num-envs stop-at-return preset resume run-dir device"
    assert told == [f"--{name}" for name in named.split()]


@pytest.mark.parametrize(("columns", "widest"), [(80, 78), (100, 98), (200, 110)])
def test_help_is_as_wide_as_reads_well_and_breaks_no_option(columns, widest, monkeypatch, capsys):
    out = help_at(columns, TrainConfig, monkeypatch, capsys)
    lines = out.splitlines()
    assert max(map(len, lines)) <= widest
    assert not [line for line in lines if line.endswith("-") and line.rpartition(" ")[2].startswith("--")]
    assert "over, --total-steps may" in " ".join(out.split())


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("--learning-rate", "--policy-lr"),
        ("--algo=ppo", "--estimator"),
        ("--n_envs", "--num-envs"),
        ("--n-steps", "--num-steps"),
        ("--n-epochs", "--epochs"),
        ("--update-epochs", "--epochs"),
        ("--ent-coef", "--entropy-coef"),
        ("--vf-coef", "--value-coef"),
        ("--clip-coef", "--clip-range"),
        ("--total-timesteps", "--total-steps"),
        ("--env-id", "--env"),
        ("--no-track", "--tensorboard"),
        ("--cuda", "--device"),
        ("--batch-size", "--minibatch-size"),
    ],
)
def test_names_of_others_get_the_option_that_answers_to_them(theirs, ours):
    with pytest.raises(SettingsError, match=f"^unknown option --[a-z-]+; did you mean {ours}\\?$"):
        read(theirs, "3")


@pytest.mark.parametrize(
    ("theirs", "told"),
    [
        ("--num-minibatches", "--minibatch-size counts rows, those of a rollout over the number of minibatches"),
        ("--clip-vloss", "V is not clipped here"),
        ("--ortho-init", "layers begin orthogonal, the policy's last one with --policy-head-scale"),
        ("--use-sde", "this exploration is not here"),
    ],
)
def test_names_that_no_option_answers_to_are_told_what_there_is_instead(theirs, told):
    with pytest.raises(SettingsError, match=f"^unknown option {theirs}; {told}$"):
        read(theirs, "3")
    name = theirs.removeprefix("--").replace("-", "_")
    with pytest.raises(SettingsError, match=f"^unknown setting '{name}'; {told.replace('--', '').replace('-', '.')}$"):
        A2C(spaces.Box(-1, 1, (2,)), spaces.Discrete(2), **{name: 3})


def test_every_name_of_others_leads_somewhere():
    known = {**settings_of(TrainConfig), **settings_of(VaeConfig), **settings_of(EvaluateConfig)}
    for theirs, ours in SYNONYMS.items():
        assert set(ours) <= known.keys() and theirs not in settings_of(TrainConfig)
    with pytest.raises(SettingsError, match="did you mean --lr"):
        parse(VaeConfig, ["--learning-rate", "1"], prog="p")
    with pytest.raises(SettingsError, match="unknown setting 'learning_rate'; did you mean policy_lr"):
        with_settings(TrainConfig(), {"learning_rate": 1.0})


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("estimator", "the estimator is the class"),
        ("n_envs", "make_envs(ID, num_envs=...) takes it"),
        ("total_timesteps", "learn(envs, total_steps) takes it"),
        ("verbose", "learn(envs, steps) prints nothing"),
        ("tensorboard_log", "learn(envs, steps) writes nothing"),
        ("policy_kwargs", "did you mean hidden?"),
        ("learning_rate", "did you mean policy_lr?"),
    ],
)
def test_an_agent_says_where_settings_of_environments_and_runs_go(name: str, told: str) -> None:
    with pytest.raises(SettingsError, match=f"unknown setting '{name}'; {re.escape(told)}"):
        A2C(spaces.Box(-1, 1, (2,)), spaces.Discrete(2), **{name: 1})
