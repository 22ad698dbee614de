"""The command `variance`."""

from __future__ import annotations

import json

import pytest
import torch

from relax_rl.cli import main
from relax_rl.runs.training import train
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
        (["--fit-batches", "-1"], "fit_batches is -1, expected at least 0"),
        (["--batches", "100000000"], "use at most"),
        (["--checkpoint", "none.safetensors"], "none.safetensors does not exist"),
    ],
)
def test_mistakes_are_told_in_one_line(run, args, message, refused):
    assert message in refused("variance", str(run), *args)
    assert not (run / "variance.json").exists()
