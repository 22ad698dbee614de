"""Figures: written, readable, and indifferent to gaps."""

from __future__ import annotations

import math

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from relax_rl.errors import RelaxRLError
from relax_rl.runs.plotting import Curve, plot_curves


@pytest.fixture
def axes(monkeypatch):
    """The axes of the figures drawn, in order."""
    drawn = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self.axes[0]), savefig(self, *a, **k)))
    return drawn


def test_a_learning_curve(tmp_path, axes):
    curves = [
        Curve(steps=[0, 1000, 2000], returns=[math.nan, 20.0, 30.0], label="training"),
        Curve(steps=[1500], returns=[25.0], label="evaluation", points=True),
    ]
    plot_curves(tmp_path / "a.png", curves, title="CartPole-v1 · relax · seed 0", threshold=475.0)
    assert imread(tmp_path / "a.png").shape[:2] == (540, 960)
    (drawn,) = axes
    assert drawn.get_title() == "CartPole-v1 · relax · seed 0"
    assert "steps" in drawn.get_xlabel() and "return" in drawn.get_ylabel()
    training, evaluation, threshold = drawn.get_lines()
    assert list(training.get_xdata()) == [1000, 2000] and list(training.get_ydata()) == [20.0, 30.0]
    assert evaluation.get_marker() == "o"
    assert threshold.get_ydata()[0] == 475.0
    assert [text.get_text() for text in drawn.get_legend().get_texts()] == ["training", "evaluation", "solved at 475"]


def test_a_single_point_and_none_at_all_can_be_drawn(tmp_path, axes):
    plot_curves(tmp_path / "a.png", [Curve(steps=[5], returns=[1.0], label="x")], title="t")
    plot_curves(tmp_path / "b.png", [Curve(steps=[5], returns=[math.nan], label="x")], title="t")
    assert axes[0].get_lines()[0].get_marker() == "o"
    assert (tmp_path / "b.png").stat().st_size > 0
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(RelaxRLError, match="cannot write"):
        plot_curves(tmp_path / "none" / "a.png", [Curve(steps=[1], returns=[1.0], label="x")], title="t")


@pytest.mark.parametrize("steps", [[40], [2_000], [5, 10, 15], [2_000 * i for i in range(1, 1_001)]])
@pytest.mark.parametrize("finished", [False, True])
def test_the_axis_of_steps_is_that_of_the_run(tmp_path, axes, steps, finished):
    returns = [float(i) if finished else math.nan for i in range(len(steps))]
    plot_curves(tmp_path / "a.png", [Curve(steps=steps, returns=returns, label="x")], title="t")
    (drawn,) = axes
    low, high = drawn.get_xlim()
    assert low == 0 and steps[-1] <= high <= 1.1 * steps[-1]
    ticks = [tick.get_text() for tick in drawn.get_xticklabels()]
    assert len(ticks) >= 3 and not any(text.endswith("m") for text in ticks)
    told = [text.get_text() for text in drawn.texts]
    assert told == ([] if finished else ["no episode has finished yet"])
    assert len(drawn.get_yticks()) > 0 or not finished


def test_a_threshold_keeps_its_number_where_nothing_has_finished(tmp_path, axes):
    curve = Curve(steps=[40], returns=[math.nan], label="x")
    plot_curves(tmp_path / "a.png", [curve], title="t", threshold=475.0)
    (drawn,) = axes
    assert drawn.texts and len(drawn.get_yticks()) > 2
