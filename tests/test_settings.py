"""Settings: one reader for JSON, keyword arguments, the command line and NumPy; what may change when a run goes on."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch

from relax_rl.errors import SettingsError
from relax_rl.settings.config import TrainConfig
from relax_rl.settings.fields import (
    check,
    check_resumable,
    flat,
    from_json,
    of_the_call,
    setting,
    to_json,
    with_settings,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inside."""

    DROPPED: ClassVar[dict[str, object]] = {"gain": 1.0, "memory": 0, "norm": math.inf}

    count: int = setting(3, least=1, resumable=True)
    share: float = setting(0.5, least=0.0, most=1.0)
    rate: float = setting(1e-3, above=0.0)
    offset: float = 0.0
    limit: float = setting(math.inf, above=0.0, finite=False)
    widths: tuple[int, ...] = setting((8,), least=1, fits=bool)
    mode: Literal["a", "b", "c"] = "a"
    name: Literal["x", "y"] = setting("x", open=True)
    folder: str | None = setting(None, of_the_call=True)
    target: float | None = setting(None, least=0.0, below=1.0, resumable=True)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Outside."""

    inner: Inner = field(default_factory=Inner)
    quiet: bool = setting(False, resumable=True, of_the_call=True)

    def __post_init__(self) -> None:
        check(self)


def test_every_value_gets_its_type():
    found = Inner(
        count=np.int64(4),
        share=np.float32(0.25),
        rate=1,
        limit="inf",
        widths=[16, np.int32(8), 4.0],
        folder=Path("a") / "b",
        target=torch.tensor(0.5),
    )
    assert found == Inner(count=4, share=0.25, rate=1.0, widths=(16, 8, 4), folder="a/b", target=0.5)
    kinds = {name: type(value) for name, value in flat(found).items()}
    assert (kinds["count"], kinds["share"], kinds["rate"], kinds["limit"]) == (int, float, float, float)
    assert all(type(width) is int for width in found.widths)
    assert type(Outer(quiet=np.bool_(True)).quiet) is bool
    json.dumps(to_json(found))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count is 0, expected at least 1"),
        ({"count": 1.5}, "count is 1.5, expected int"),
        ({"count": True}, "count is True, expected int"),
        ({"count": "3"}, "count is '3', expected int"),
        ({"count": math.inf}, "count is inf, expected int"),
        ({"count": None}, "count is None, expected int"),
        ({"share": 1.5}, "share is 1.5, expected between 0 and 1"),
        ({"share": np.float64("nan")}, "share is nan, expected between 0 and 1"),
        ({"rate": 0.0}, "rate is 0.0, expected above 0"),
        ({"rate": math.inf}, "rate is inf, expected above 0"),
        ({"limit": math.nan}, "limit is nan, expected above 0"),
        ({"share": math.inf}, "share is inf, expected between 0 and 1$"),
        ({"offset": -math.inf}, "offset is -inf, expected a number, and finite"),
        ({"limit": "high"}, "limit is 'high', expected float"),
        ({"widths": (8, 0)}, r"widths is \(8, 0\), expected at least 1"),
        ({"widths": ()}, r"widths is \(\), expected"),
        ({"widths": 8}, "widths is 8, expected"),
        ({"widths": ["wide"]}, "widths is 'wide', expected int"),
        ({"mode": "d"}, "mode is 'd', expected a, b or c"),
        ({"name": 3}, "name is 3, expected x or y"),
        ({"folder": 3}, "folder is 3, expected str"),
        ({"target": 1.0}, "target is 1.0, expected at least 0.0 and below 1"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(wrong, message):
    with pytest.raises(SettingsError, match=message) as told:
        Inner(**wrong)
    assert "\n" not in str(told.value)
    with pytest.raises(SettingsError, match=message):
        from_json(Outer, {"inner": wrong})
    with pytest.raises(SettingsError, match=message):
        with_settings(Outer(), wrong)


def test_a_name_beside_the_choices_is_taken_where_the_choices_are_open():
    assert Inner(name="mine").name == "mine"


def test_settings_come_back_from_json():
    config = Outer(inner=Inner(widths=(3, 4), target=0.25, limit=2.0), quiet=True)
    assert from_json(Outer, json.loads(json.dumps(to_json(config)))) == config
    assert from_json(Outer, {"inner": {"limit": "inf", "count": 7}}) == Outer(inner=Inner(count=7))
    for damaged, message in (({"magic": 1}, "unknown setting 'magic'"), ({"inner": 3}, "not a JSON object")):
        with pytest.raises(SettingsError, match=message):
            from_json(Outer, damaged)


def test_a_dropped_setting_is_taken_where_it_did_nothing():
    for neutral in ({"gain": 1.0}, {"gain": 1}, {"memory": 0}, {"norm": "inf"}, {"norm": math.inf}):
        assert from_json(Inner, {**neutral, "count": 5}) == Inner(count=5)
    for name, value in (("gain", 0.5), ("memory", 2), ("norm", 1.0)):
        with pytest.raises(SettingsError, match=f"{name} is {value}, but this relax_rl no longer has") as told:
            from_json(Outer, {"inner": {name: value}})
        assert "\n" not in str(told.value)


def test_settings_are_replaced_by_name_in_whichever_section():
    assert with_settings(Outer(), {"count": 9, "quiet": True}) == Outer(inner=Inner(count=9), quiet=True)
    assert with_settings(Inner(), {}) == Inner()
    with pytest.raises(SettingsError, match="unknown setting 'cuont'; did you mean count"):
        with_settings(Outer(), {"cuont": 1})


def test_what_may_change_when_a_run_goes_on():
    saved = Outer(inner=Inner(folder="old", target=0.5))
    check_resumable(saved, with_settings(saved, {"count": 9, "quiet": True, "folder": "new", "target": None}))
    expected = (
        "--mode is 'b', but the run to resume has 'a', and only --count, --quiet, --target may change; start a new"
    )
    with pytest.raises(SettingsError, match=expected):
        check_resumable(saved, with_settings(saved, {"mode": "b"}))
    with pytest.raises(SettingsError, match=r"the comparison to go on with has .* start a new comparison"):
        check_resumable(saved, with_settings(saved, {"share": 0.1}), what="comparison to go on with")
    assert of_the_call(saved) == {"folder": None, "quiet": False}


@pytest.mark.parametrize(
    ("name", "kind"), [("gamma", "float"), ("num_steps", "int"), ("normalize_obs", "bool"), ("estimator", ".*relax")]
)
def test_arrays_are_no_numbers(name, kind):
    for array in (np.array([0.9, 0.99]), torch.ones(2)):
        with pytest.raises(SettingsError, match=rf"^{name} is an array of shape \(2,\), expected {kind}"):
            with_settings(TrainConfig(), {name: array})
