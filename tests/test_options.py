"""Options: read from a dataclass, with every mistake told in one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from relax_rl.errors import SettingsError
from relax_rl.settings.config import TrainConfig
from relax_rl.settings.fields import check, with_settings
from relax_rl.settings.options import parse


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
        (["--num-envs", "0"], "num_envs is 0, expected at least 1"),
        (["--num-envs", "-3"], "num_envs is -3, expected at least 1"),
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
    with pytest.raises(SettingsError, match="RUN is missing: What to look at, in two lines"):
        parsed("--share", "1")
    with pytest.raises(SettingsError, match="--kinds: invalid choice: 'z'"):
        parsed("here", "--kinds", "x", "z")
    with pytest.raises(SystemExit):
        parsed("--help")
    out = " ".join(capsys.readouterr().out.split())
    assert "usage: p [-h] [OPTIONS] RUN" in out and "50% say. --kinds" in out and "None" not in out and "{x,y}" in out
