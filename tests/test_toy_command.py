"""The command `toy`: what it leaves in the run folder, what it says, and one line for every mistake."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from relax_rl.cli import main
from relax_rl.experiments.toy import figures, report
from relax_rl.experiments.toy import run as toy_run
from relax_rl.experiments.toy.config import ToyConfig
from relax_rl.experiments.toy.problem import Problem
from relax_rl.experiments.toy.training import median, train
from relax_rl.runs.displays import Display
from relax_rl.runs.folder import RunFolder

ROOT = Path(__file__).parent.parent
SMALL = ["--steps", "40", "--seeds", "3", "--log-interval", "10", "--draws", "20", "--quiet"]
TABLES = {"config.json", "toy.json", "toy.md", "curves.csv"}


def toy(folder: Path, *args: str) -> dict:
    assert main(["toy", *SMALL, *args, "--run-dir", str(folder)]) == 0
    return json.loads((folder / "toy.json").read_text())


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with REINFORCE alone. Tests must not write to it."""
    folder = tmp_path_factory.mktemp("toy") / "whole"
    toy(folder, "--estimators", "reinforce")
    return folder


def test_a_run_leaves_tables_and_figures(tmp_path, capsys):
    result = toy(tmp_path / "run")
    files = content(tmp_path / "run")
    assert set(files) == TABLES | {
        f"{name}.png" for name in ("expected_loss", "log_variance", "surrogate", "densities")
    }
    assert all(data.startswith(b"\x89PNG") for name, data in files.items() if name.endswith(".png"))
    assert set(result["estimators"]) == {"reinforce", "rebar", "relax"} and result["seeds"] == [0, 1, 2]
    settings = json.loads(files["config.json"])
    assert settings["target"] == 0.499 and settings["steps"] == 40 and "toy --steps 40" in settings["command"]
    out = capsys.readouterr().out
    assert "relax      loss 0.2" in out and "toy.md" in out


def test_the_tables_agree_with_the_curves(tmp_path):
    result = toy(tmp_path / "run", "--estimators", "reinforce", "rloo")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "run" / "curves.csv").read_text())))
    assert len(rows) == 2 * 3 * 5  # estimators, seeds, measurements after 0, 10, ..., 40 steps
    for name, entry in result["estimators"].items():
        own = [row for row in rows if row["estimator"] == name]
        last = sorted(float(row["theta"]) for row in own if row["step"] == "40")
        assert entry["theta"]["median"] == pytest.approx(last[1], rel=1e-6)
        late = sorted(float(row["log_variance"]) for row in own if int(row["step"]) >= 20)
        assert entry["log_variance"]["median"] == pytest.approx(late[4], rel=1e-6)
        assert all((row["log_variance_exact"] == "") == (name == "rloo") for row in own)
    table = (tmp_path / "run" / "toy.md").read_text()
    assert f"| reinforce | {result['estimators']['reinforce']['final_loss']['median']:.6f} |" in table
    (rloo,) = (line for line in table.splitlines() if line.startswith("| rloo |"))
    assert rloo.endswith("| none | 2 | none |")  # no quadrature, two evaluations of f, no bias


def test_the_same_command_gives_the_same_numbers(tmp_path):
    first, second = (toy(tmp_path / name, "--seed", "5") for name in ("one", "two"))
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert one["curves.csv"] == two["curves.csv"] and one["toy.md"] == two["toy.md"]
    for result in (first, second):
        for entry in result["estimators"].values():
            assert entry.pop("microseconds_per_step") > 0
    assert first == second and first["seeds"] == [5, 6, 7]


def test_a_fixed_theta_is_left_alone(tmp_path):
    result = toy(tmp_path / "run", "--fixed-theta", "0.3", "--estimators", "reinforce", "rebar", "relax", "nvil")
    assert set(content(tmp_path / "run")) == TABLES | {"log_variance.png", "surrogate.png", "densities.png"}
    for entry in result["estimators"].values():
        assert entry["theta"]["lower_quartile"] == entry["theta"]["upper_quartile"] == pytest.approx(0.3)
    assert result["estimators"]["relax"]["log_variance_floor"] == "-inf"
    assert -10 < result["estimators"]["rebar"]["log_variance_floor"] < 0
    assert "log_variance_floor" not in result["estimators"]["reinforce"]
    assert "| floor |" in (tmp_path / "run" / "toy.md").read_text()


def test_several_outcomes(tmp_path):
    result = toy(tmp_path / "run", "--outcomes", "4", "--estimators", "relax", "disarm", "enumerated")
    assert set(content(tmp_path / "run")) == TABLES | {"expected_loss.png", "log_variance.png"}
    assert len(result["values"]) == 4 and "4 outcomes" in (tmp_path / "run" / "toy.md").read_text()
    assert result["estimators"]["enumerated"]["log_variance"]["median"] == "-inf"
    # A gradient without noise descends; its variance of 0 is drawn nowhere.
    assert result["estimators"]["enumerated"]["theta"]["median"] < 0.75


def test_independent_noise(tmp_path):
    result = toy(tmp_path / "run", "--coupling", "independent", "--estimators", "rebar", "--fixed-theta", "0.5")
    entry = result["estimators"]["rebar"]
    assert "log_variance_floor" not in entry and entry["log_variance_exact"] is not None


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--estimators", "relaks"], "unknown estimator 'relaks'; did you mean relax"),
        (["--target", "2"], "target is 2.0, expected a number from 0 to 1"),
        (["--seed-count", "3"], "unknown option --seed-count; did you mean"),
        (["--steps", "many"], "many"),
        (["--outcomes", "3", "--estimators", "arms"], "estimator 'arms' is for bits"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, capsys, args, expected):
    assert main(["toy", *args, "--run-dir", str(tmp_path / "run")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and expected in err
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_refused(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    before = content(tmp_path / "run")
    assert main(["toy", *SMALL, "--run-dir", str(tmp_path / "run")]) == 2
    assert "already holds a run; choose another --run-dir" in capsys.readouterr().err
    assert content(tmp_path / "run") == before


def test_a_folder_that_cannot_be_made_is_told_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["toy", "--steps", "1000000", "--run-dir", str(tmp_path / "file" / "run")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_divergence_is_told(tmp_path, capsys):
    args = ["--surrogate-lr", "1e200", "--estimators", "relax", "--run-dir", str(tmp_path / "run")]
    assert main(["toy", *SMALL, *args]) == 2
    assert "relax: a gradient is not a finite number after step 10; lower --lr" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(tmp_path, capsys, monkeypatch, number, named):
    class Signals(Display):
        def update(self, step, status):
            if step == 10:
                signal.raise_signal(number)

    monkeypatch.setattr(toy_run, "make_display", lambda *_, **__: Signals())
    monkeypatch.chdir(tmp_path)
    assert main(["toy", "--steps", "2000", *(["--run-dir", "run"] if named else [])]) == 128 + number
    assert capsys.readouterr() == ("", f"error: interrupted by {number.name}, nothing was written\n")
    assert not [left for left in tmp_path.rglob("*") if left != tmp_path / "runs"]


def test_a_folder_that_is_worked_in_is_left_alone(tmp_path, capsys):
    with RunFolder(tmp_path / "run").locked():
        assert main(["toy", *SMALL, "--run-dir", str(tmp_path / "run")]) == 2
        assert "is being worked on" in capsys.readouterr().err


def test_help_is_fast_and_needs_no_torch():
    code = (
        "import sys\nfrom relax_rl.cli import main\nassert main(['toy', '--help']) == 0\n"
        "assert not {'torch', 'matplotlib', 'scipy'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert run.returncode == 0, run.stderr
    for option in ("--target", "--estimators", "--steps", "--seeds", "--run-dir"):
        assert option in run.stdout


def test_medians_of_what_is_not_finite():
    assert median(torch.tensor([1.0, 2.0, 4.0, 5.0])) == 3.0
    assert median(torch.full((4,), -math.inf)) == -math.inf
    assert median(torch.tensor([-math.inf, -math.inf, 1.0, 2.0])) == -math.inf


def test_figures_of_many_estimators_and_other_thetas():
    config = ToyConfig(steps=4, seeds=2, log_interval=2, draws=5, target=0.2)
    problem = Problem(0.2)
    runs = {name: train(name, problem, config, theta=0.2) for name in ("rebar", "relax", "dlax")}
    known = report.floors(problem, 0.2, list(runs), coupling="coupled")
    assert known["relax"] == known["dlax"] == 0 < known["rebar"]
    assert report.floors(Problem(0.2, 3), 0.2, list(runs), coupling="coupled") == {}
    for png in (
        figures.variance_figure(runs, "fixed", known),
        figures.surrogate_figure(runs, problem, 0.2),
        figures.progress_figure(runs, Problem(0.5), "no best outcome"),
        figures.densities_figure(0.05, 1),
    ):
        assert png.startswith(b"\x89PNG") and len(png) > 10_000


@pytest.mark.parametrize("reached", ["toy.json", "curves.csv", "densities.png", "config.json"])
def test_a_run_that_was_killed_while_it_wrote_is_made_again_by_the_same_command(whole, tmp_path, monkeypatch, reached):
    replace = os.replace

    def kill(source, target):
        if Path(target).name == reached:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", kill)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # nobody is left to clear up
    assert main(["toy", *SMALL, "--estimators", "reinforce", "--run-dir", str(tmp_path / "run")]) == 130
    monkeypatch.undo()
    assert list((tmp_path / "run").glob(".*.tmp"))
    toy(tmp_path / "run", "--estimators", "reinforce")
    assert content(tmp_path / "run").keys() == content(whole).keys()
    assert content(tmp_path / "run")["curves.csv"] == content(whole)["curves.csv"]
