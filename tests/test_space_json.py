"""Spaces survive JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gymnasium import spaces

from relax_rl.errors import CheckpointError
from relax_rl.networks.space_json import space_from_json, space_to_json

SPACES = [
    spaces.Box(-1, 1, (3,)),
    spaces.Box(np.array([-np.inf, 0.0]), np.array([np.inf, 2.5]), dtype=np.float64),
    spaces.Box(0, 255, (4, 84, 84), np.uint8),
    spaces.Discrete(4, start=-2),
    spaces.MultiDiscrete([[2, 3], [4, 5]]),
    spaces.MultiBinary([2, 3]),
    spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Tuple([spaces.Box(0, 1, (2,)), spaces.MultiBinary(3)])}),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_space_comes_back_equal(space: spaces.Space) -> None:
    assert space_from_json(json.loads(json.dumps(space_to_json(space)))) == space


def test_the_gymnasium_of_last_year_reads_choices_too(monkeypatch: pytest.MonkeyPatch) -> None:
    new = spaces.Discrete.__init__
    monkeypatch.setattr(
        spaces.Discrete, "__init__", lambda self, n, seed=None, start=0: new(self, n, seed, start)
    )  # 1.2's
    assert space_from_json(space_to_json(spaces.Discrete(4, start=-2))) == spaces.Discrete(4, start=-2)


def test_an_image_space_takes_little_room() -> None:
    assert len(json.dumps(space_to_json(spaces.Box(0, 255, (4, 84, 84), np.uint8)))) < 200


@pytest.mark.parametrize("data", [{}, {"type": "Text"}, {"type": "Discrete", "n": -1, "start": 0}, [], {"type": "Box"}])
def test_a_description_that_makes_no_sense_is_refused_in_one_line(data: object) -> None:
    with pytest.raises(CheckpointError) as caught:
        space_from_json(data)
    assert "\n" not in str(caught.value)


def test_an_unknown_space_has_no_json_form() -> None:
    with pytest.raises(TypeError, match="Text"):
        space_to_json(spaces.Text(3))
