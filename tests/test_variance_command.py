"""The command `variance`."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from relax_rl.cli import main
from relax_rl.commands.variance import _show
from relax_rl.estimators.diagnostics import Interval, VarianceParts
from relax_rl.runs.training import train
from relax_rl.variance.figure import plot_variances
from relax_rl.variance.gradient import AppliedVariance
from tests.steps import small_run

QUICK = ("--batches", "4", "--fit-batches", "3", "--states", "4")


def measure(run, *args):
    assert main(["variance", str(run), *QUICK, *args]) == 0
    return json.loads((run / "variance.json").read_text())


def test_it_prints_writes_and_draws_all_estimators(run, capsys):
    result = measure(run)
    out, err = capsys.readouterr()
    assert err == ""
    kinds = ["relax", "relax, fitted", "marginal, fitted"]
    names = ["reinforce", "a2c", *(name for kind in kinds for name in (kind, f"{kind}, state part"))]
    assert list(result["applied"]) == names
    assert list(result["parts"]) == [*names, "a2c, exact V"]
    assert all(name in out for name in result["parts"]) and "variance.png" in out
    assert result["applied"]["a2c"]["ratio"]["value"] == pytest.approx(1.0)
    for parts in result["parts"].values():
        assert parts["total"]["value"] == pytest.approx(
            sum(parts[name]["value"] for name in ("trajectory", "action", "state")), rel=1e-6
        )
    assert (run / "variance.png").read_bytes().startswith(b"\x89PNG")


def test_it_repeats_itself_and_heeds_its_seed(run):
    first = measure(run)
    assert measure(run) == first
    assert measure(run, "--seed", "1")["applied"] != first["applied"]


def test_parts_and_fits_can_be_left_out(run, capsys):
    result = measure(run, "--states", "0", "--fit-batches", "0")
    assert result["parts"] is None and "no parts: not asked for" in capsys.readouterr().out
    assert list(result["applied"]) == ["reinforce", "a2c", "relax", "relax, state part"]


def test_what_is_biased_is_told(tmp_path, capsys):
    path = tmp_path / "run"
    train(small_run(path, "CartPole-v1", total_steps=40, surrogate_loss="critic", residual_weight=0.0))
    result = measure(path, "--states", "0", "--fit-batches", "0")
    out, err = capsys.readouterr()
    told = {name: found["squared_bias"] for name, found in result["applied"].items()}
    assert {name for name, bias in told.items() if bias} == {"relax", "relax, w = 0.3"} and err == ""
    assert f"{told['relax']['value']:.3g} [" in out and "squared bias" in out


@pytest.mark.parametrize(
    ("settings", "states", "reason"),
    [
        ({"soft_returns": True, "entropy_coef": 0.01}, 4, "soft returns count an entropy in every reward"),
        ({}, 10_000_000, "of what 10000000 states give take"),
    ],
)
def test_why_there_are_no_parts(tmp_path, settings, states, reason):
    path = tmp_path / "run"
    train(small_run(path, "CartPole-v1", total_steps=40, **settings))
    result = measure(path, "--states", str(states))
    assert result["parts"] is None and reason in result["parts_left_out"] and result["applied"]


def test_games_have_no_parts(tmp_path, capsys):
    path = tmp_path / "run"
    train(small_run(path, "ALE/Pong-v5", cnn_features=8, num_envs=1, total_steps=10))
    result = measure(path)
    assert result["parts"] is None and "cannot be had again" in result["parts_left_out"]
    assert "no parts: the state of ALE/Pong-v5 cannot be had again" in capsys.readouterr().out
    assert all(torch.isfinite(torch.tensor(found["variance"]["value"])) for found in result["applied"].values())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--batches", "1"], "batches is 1, expected at least 2"),
        (["--states", "1"], "states is 1, expected at least 2, or 0 to leave the parts out"),
        (["--actions", "2"], "actions is 2, expected at least 3"),
        (["--fit-batches", "-1"], "fit_batches is -1, expected 0 or above"),
        (["--batches", "100000000"], "use at most"),
        (["--checkpoint", "none.safetensors"], "none.safetensors does not exist"),
    ],
)
def test_mistakes_are_told_in_one_line(run, args, message, refused):
    assert message in refused("variance", str(run), *args)
    assert not (run / "variance.json").exists()


def made_up(scale):
    interval = lambda value: Interval(value * scale, 0.8 * value * scale, 1.3 * value * scale)  # noqa: E731
    names = ["reinforce", "a2c", "relax, fitted", "marginal, fitted, state part"]
    applied = {name: AppliedVariance(interval(1.0), interval(1.0)) for name in names}
    parts = {
        name: VarianceParts(*map(interval, (0.1, 0.4, 0.5, 1.0) if name != "reinforce" else (1e4, 1e4, 1e4, 3e4)))
        for name in names
    }
    return applied, parts


@pytest.mark.parametrize("scale", [1.0, 1e-7, 1e9])
def test_every_label_of_the_figure_stands_whole(tmp_path, monkeypatch, scale):
    drawn = []
    monkeypatch.setattr("relax_rl.variance.figure.write_figure", lambda path, figure: drawn.append(figure))
    plot_variances(tmp_path / "a.png", *made_up(scale), title="CartPole-v1 · relax · 12,003 steps")
    (figure,) = drawn
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    panels = [axes.get_tightbbox() for axes in figure.axes]
    for box in panels:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    assert panels[0].x1 <= panels[1].x0
    assert all(axes.xaxis.get_offset_text().get_text() in ("", "1e0") for axes in figure.axes[1:])


def test_no_number_of_the_tables_is_cut_in_a_narrow_pipe(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    applied, parts = ({name: asdict(each) for name, each in found.items()} for found in made_up(1e-3))
    few = {"env": "E", "estimator": "relax", "checkpoint": "c", "batches": 3, "rows_per_batch": 4, "states": 2}
    _show({**few, "actions": 3, "squared_gradient_norm": 0.1, "applied": applied, "parts": parts})
    out = capsys.readouterr().out
    assert "\u2026" not in out and "marginal, fitted, state part" in out
    row = next(line for line in out.splitlines() if line.startswith("a2c ") and "±" in line)
    assert row.split("  ")[-1].strip() == "1.00 ± 0.25"
