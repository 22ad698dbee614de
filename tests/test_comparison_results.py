"""Runs read from their folders, what is summarised of them, the report and the figures."""

from __future__ import annotations

import csv
import json
import math
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from relax_rl.comparison import figures, report
from relax_rl.comparison.config import CompareConfig, write_settings
from relax_rl.comparison.frozen_variance import choose_snapshots
from relax_rl.comparison.process import last_row
from relax_rl.comparison.report import markdown
from relax_rl.comparison.results import _standings, aggregate, read_run, read_variances, summarise
from relax_rl.comparison.statistics import improvement
from relax_rl.comparison.task import read_outcome
from relax_rl.comparison.task_scores import curve_mean
from relax_rl.errors import CheckpointError


def write_run(folder: Path, returns: list[float], *, length: int = 10, status: str = "finished") -> Path:
    """A run of one environment whose every episode takes `length` steps, at 100 steps a second, a row every 20 episodes."""
    folder.mkdir(parents=True)
    with (folder / "episodes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "return", "length")])
        csv.writer(file).writerows(((k + 1) * length, r, length) for k, r in enumerate(returns))
    with (folder / "progress.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("step", "episodes", "return_mean", "seconds"))
        writer.writerow((length // 2, 0, "", length / 200))
        for k in range(20, len(returns) + 1, 20):
            writer.writerow((k * length, k, np.mean(returns[max(0, k - 100) : k]), k * length / 100))
    (folder / "outcome.json").write_text(json.dumps({"status": status, "error": "too large"}))
    return folder


def ramp(count: int, slope: float) -> list[float]:
    return [slope * k for k in range(count)]


@pytest.fixture
def runs(tmp_path):
    """Two contestants with four runs each: one climbs to 199, half of the other only to 99."""
    found = {}
    for label, slopes in {"quick": (1.0, 1.0, 1.0, 1.0), "slow": (0.5, 0.5, 0.9, 1.0)}.items():
        folders = [write_run(tmp_path / f"{label}-{k}", ramp(200, slope)) for k, slope in enumerate(slopes)]
        found[label] = [read_run(folder, k) for k, folder in enumerate(folders)]
    return found


def test_a_run_is_solved_where_its_window_reaches_the_threshold(tmp_path):
    run = read_run(write_run(tmp_path / "run", ramp(200, 1.0)), 0)
    # The mean of episodes k-99..k with returns k is k - 49.5.
    solved = run.solved(100.0)
    assert (solved.episodes, solved.steps) == (151, 1510) and solved.seconds == pytest.approx(15.1)
    assert run.solved(49.5).episodes == 100, "a full window at the earliest"
    assert run.solved(-10.0).episodes == 100
    assert run.solved(149.6).steps == math.inf
    assert run.final == 149.5 and run.speed == pytest.approx(100.0)


def test_fewer_episodes_than_a_window(tmp_path):
    run = read_run(write_run(tmp_path / "run", ramp(40, 1.0)), 0)
    assert run.final == 19.5 and run.solved(0.0).steps == math.inf


def test_curves_are_unknown_before_the_first_episode_and_go_on_after_the_end(tmp_path):
    run = read_run(write_run(tmp_path / "run", ramp(40, 1.0)), 0)
    at = run.at_steps(np.array([5.0, 200.0, 300.0, 400.0, 4000.0]))
    assert math.isnan(at[0]) and at[1:].tolist() == [9.5, 14.5, 19.5, 19.5]
    assert run.at_seconds(np.array([3.0])).tolist() == [14.5]


def test_runs_that_have_not_ended_or_have_no_episode(tmp_path):
    assert read_run(tmp_path / "nothing", 0) is None
    assert read_run(write_run(tmp_path / "failed", ramp(40, 1.0), status="failed"), 0) is None
    assert read_run(write_run(tmp_path / "empty", []), 0) is None
    assert read_run(write_run(tmp_path / "diverged", ramp(40, 1.0), status="diverged"), 0).status == "diverged"


def test_a_run_that_diverges_before_its_first_row_counts(tmp_path):
    folder = write_run(tmp_path / "run", ramp(15, 1.0), status="diverged")
    (folder / "progress.csv").write_text("")
    (folder / "outcome.json").write_text(json.dumps({"status": "diverged", "error": "inf", "seconds": 3.0}))
    run = read_run(folder, 0)
    assert (run.final, run.speed, run.solved(0.0).steps) == (7.0, 50.0, math.inf)
    (folder / "episodes.csv").unlink()
    assert read_run(folder, 0) is None


def test_the_summary_of_an_environment(runs):
    summary = summarise(runs, total_steps=2000, threshold=100.0)
    quick, slow = summary["contestants"]["quick"], summary["contestants"]["slow"]
    assert quick["final"] == {"value": 149.5, "low": 149.5, "high": 149.5}
    assert slow["final"]["value"] == pytest.approx((74.75 + 134.55) / 2), "the lowest and the highest run are dropped"
    assert quick["solved"]["solved"] == 4 and slow["solved"]["solved"] == 2
    assert quick["solved"]["steps"]["median"]["value"] == 1510
    assert slow["solved"]["steps"]["median"]["value"] == math.inf, "half of the runs have not got there"
    assert slow["solved"]["episodes"]["fraction"]["solved"] == pytest.approx([0, 0.25, 0.5, 0.5])
    (pair,) = summary["improvement"]
    assert (pair["x"], pair["y"], pair["value"]) == ("quick", "slow", 0.875)
    curve = quick["curve"]
    assert len(curve["steps"]) == len(curve["iqm"]) == 200 and curve["iqm"][-1] == 149.5
    assert curve["iqm"][:2] == [0.0, 0.5]


def test_contestants_without_runs_are_left_out(runs):
    summary = summarise({**runs, "crashed": []}, total_steps=2000, threshold=None)
    assert list(summary["contestants"]) == ["quick", "slow"]
    assert summary["contestants"]["quick"]["solved"] is None
    empty = summarise({"crashed": []}, total_steps=2000, threshold=None)
    assert empty["contestants"] == {} and empty["improvement"] == []


def test_environments_are_averaged(runs):
    summary = summarise(runs, total_steps=2000, threshold=None)
    swapped = summarise({"quick": runs["slow"], "slow": runs["quick"]}, total_steps=2000, threshold=None)
    assert aggregate({"A": summary}) is None
    found = aggregate({"A": summary, "B": swapped})
    assert found["improvement"][0]["value"] == pytest.approx(0.5)


def test_the_mean_of_a_curve(tmp_path):
    folder = write_run(tmp_path / "run", [5.0] * 100)
    assert curve_mean(folder, 1000) == pytest.approx(5.0)
    folder = write_run(tmp_path / "ramp", ramp(100, 1.0))
    # The mean of returns 0..k is k/2 after 10 (k + 1) steps; the last one counts to the end of the budget.
    inside = [0.0] + [k / 2 for k in range(99) for _ in (0, 1)] + [99 / 2]
    assert curve_mean(folder, 1000) == pytest.approx(np.mean(inside), abs=1e-9)
    assert curve_mean(folder, 1000, last=0.2) == pytest.approx(np.mean(inside[-40:]), abs=1e-9)
    assert curve_mean(folder, 2000) == pytest.approx((sum(k / 2 for k in range(100)) + 100 * 99 / 2) / 200)
    assert curve_mean(write_run(tmp_path / "bad", ramp(40, 1.0), status="diverged"), 1000) is None
    assert curve_mean(tmp_path / "nothing", 1000) is None


@pytest.mark.parametrize("where", ["checkpoints", "snapshots"])
def test_snapshots_are_chosen_by_progress(tmp_path, where):
    """Comparisons of version 0.1 have them in a folder of their own from the start."""

    def steps(paths) -> list[int]:
        return sorted(int(path.stem[5:]) for path in paths)

    for name, returns, expected in (
        ("rising", [0.0] * 100 + [100.0] * 200, [1400, 1600, 1800]),
        ("flat", [1.0] * 300, [800, 1600, 2400]),
    ):
        folder = write_run(tmp_path / name, returns)
        (folder / "checkpoints").mkdir()
        (folder / where).mkdir(exist_ok=True)
        for step in range(200, 3001, 200):
            (folder / where / f"step_{step:09d}.safetensors").touch()
        chosen = choose_snapshots(folder)
        assert list(chosen) == ["early", "midway", "late"] and steps(chosen.values()) == expected
        assert steps((folder / "snapshots").iterdir()) == expected
        assert steps((folder / "checkpoints").iterdir()) == ([2800, 3000] if where == "checkpoints" else [])
        assert choose_snapshots(folder) == chosen, "a choice stands"
    assert choose_snapshots(write_run(tmp_path / "empty", [1.0] * 300)) == {}


RATIO = {"value": 0.4, "low": 0.3, "high": 0.6}
VARIANCE = {
    "estimator": "a2c",
    "batches": 10,
    "rows_per_batch": 40,
    "fit_batches": 5,
    "squared_gradient_norm": 0.01,
    "applied": {
        "reinforce": {"ratio": {"value": 300.0, "low": 200.0, "high": "inf"}},
        "a2c": {"ratio": {"value": 1.0, "low": 1.0, "high": 1.0}, "variance": {"value": 0.02}, "squared_bias": None},
        "relax, w = 0": {"ratio": RATIO, "squared_bias": {"value": 0.005, "low": 0.004, "high": 0.006}},
        "relax, fitted": {"ratio": RATIO},
    },
}


def make_result(runs) -> dict:
    summary = summarise(runs, total_steps=2000, threshold=100.0)
    about = {"kind": "a2c", "preset": "classic-control", "settings": {"gamma": 0.9}, "peer": None, "tuning": None}
    trials = [
        {"number": 0, "settings": {}, "params": {}, "score": 10.0},
        {"number": 1, "settings": {"policy_lr": 0.00123456}, "params": {}, "score": 20.0},
    ]
    peer = {"source": "zoo (CartPole-v1)", "departure": "none"}
    tuned = {**about, "kind": "sb3-a2c", "peer": peer, "tuning": {"steps": 500, "seeds": [7], "trials": trials}}
    return {
        "options": {"seeds": 4, "first_seed": 0, "stop_when_solved": False},
        "commands": ["compare --seeds 4"],
        "num_workers": 1,
        "cores": 2,
        "failures": [{"run": "A-slow-s9", "status": "failed", "error": "out of luck"}],
        "contestants": {"A": {"quick": about, "slow": tuned}},
        "environments": {"A": summary, "B": summarise({"quick": []}, total_steps=5, threshold=None)},
        "aggregate": aggregate({"A": summary, "B": summary}),
        "variance": {"A": {"early": {"step": 100, **VARIANCE}}, "B": {}},
    }


def test_the_report_says_it_all(runs):
    text = markdown(make_result(runs))
    cells = "149.5 [149.5, 149.5] | 4 of 4 | 1,510 [1,510, 1,510] | 151 [151, 151] | 15.1 [15.1, 15.1] | 100"
    assert f"| quick | 4 | {cells} |" in text
    slow = next(line for line in text.splitlines() if line.startswith("| slow |"))
    assert "| 2 of 4 | beyond [" in slow and slow.count("|") == 9
    assert "- A-slow-s9: failed: out of luck" in text
    assert "| P(quick > slow) | **0.88 [" in text and "averaged over A, B" in text
    assert "| relax, w = 0 | 0.4 [0.3, 0.6] + 0.25 |" in text
    assert "| relax, fitted | 0.4 [0.3, 0.6] |" in text and "| reinforce | 300 [200, inf] |" in text
    assert "with gamma 0.9" in text and "zoo (CartPole-v1); departures: none" in text
    assert "best, number 1, mean of the curve 20.0 (untuned 10.0): policy_lr 0.00123456" in text
    assert "No run has ended with a score." in text and "where a run ends" not in text
    stopped = make_result(runs)
    stopped["options"]["stop_when_solved"] = True
    assert "solved at a mean return of 100, where a run ends." in markdown(stopped)


def test_the_report_says_who_went_far_beyond_the_steps(runs):
    result = make_result(runs)
    assert "Steps to the end of the last rollout" not in markdown(result)
    summary = result["environments"]["A"]
    (label, entry), *_ = summary["contestants"].items()
    entry["runs"][0]["steps"] = 1.05 * summary["total_steps"]
    told = (
        f"Steps to the end of the last rollout, which final scores count: {label} {1.05 * summary['total_steps']:,.0f}."
    )
    assert told in markdown(result)


def test_the_report_tells_of_rungs_and_of_several_tasks(runs):
    result = make_result(runs)
    trials = [
        {"number": 0, "settings": {}, "params": {}, "score": 0.5, "reached": [{}, {}]},
        {"number": 1, "settings": {"hidden": [8, 8]}, "params": {}, "score": 0.75, "reached": [{}, {}]},
        {"number": 2, "settings": {"gamma": 0.5}, "params": {}, "score": 0.9, "reached": [{}]},
    ]
    result["contestants"]["A"]["slow"]["tuning"] = {
        "steps": {"A": 500, "B": 1000},
        "seeds": [7, 8],
        "rungs": [0.25, 1.0],
        "trials": trials,
    }
    assert (
        "tuned over all environments: 3 trials of 500 steps of A, 1,000 steps of B, 3 to 0.25, 2 to 1 on seeds 7, 8; best, "
        "number 1, normalised mean of the curves 0.750 (untuned 0.500): hidden [8, 8]"
    ) in markdown(result)


def test_every_figure_of_the_report_can_be_drawn(runs, tmp_path):
    result = make_result(runs)
    summary, style = result["environments"]["A"], figures.styles(["quick", "slow"])
    figures.plot_curves(tmp_path / "curves.png", "A", summary, style)
    figures.plot_solved(tmp_path / "solved.png", "A", summary, style)
    figures.plot_scores(tmp_path / "scores.png", "A", summary, style)
    figures.plot_improvement(tmp_path / "improvement.png", "A", summary["improvement"])
    figures.plot_variance(tmp_path / "variance.png", "A", result["variance"]["A"])
    for name in ("curves", "solved", "scores", "improvement", "variance"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_pairs_of_many_contestants_stand_in_a_square(tmp_path):
    labels = [f"c{k}" for k in range(7)]
    scores = {label: [float(k), k + 0.5, k + 2.0] for k, label in enumerate(labels)}
    pairs = [
        {"x": x, "y": y, "runs": 4, **asdict(improvement([(scores[x], scores[y])]))}
        for place, x in enumerate(labels)
        for y in labels[place + 1 :]
    ]
    head, _, *rows, _, below = report._pairs(pairs)
    assert head == "| P(row > column) | 1 | 2 | 3 | 4 | 5 | 6 | 7 |" and "interval" in below
    # 0, 0.5, 2 against 1, 1.5, 3: one of three is above two of three, and the other way round.
    assert rows[0].startswith("| 1: c0 |  | 0.22 |") and rows[1].startswith("| 2: c1 | 0.78 |  | 0.22 |")
    assert rows[6].startswith("| 7: c6 | **1.00** | **1.00** |")
    few = report._pairs([{**pair, "runs": 3} for pair in pairs])
    assert not any("**" in row for row in few), "three runs are too few to be certain"
    figures.plot_improvement(tmp_path / "square.png", "A", pairs)
    assert (tmp_path / "square.png").read_bytes().startswith(b"\x89PNG")


def test_runs_that_stop_at_the_threshold_are_compared_by_their_steps(tmp_path):
    """However far beyond it the last rollout took them; those that do not get there come after, by their scores."""
    late = [0.0] * 80 + ramp(80, 3.0)
    returns = {"quick": ramp(110, 1.0), "slow": late, "low": ramp(200, 0.2), "lower": ramp(200, 0.1)}
    runs = {label: [read_run(write_run(tmp_path / label, own), 0)] for label, own in returns.items()}
    for stops, expected in ((True, ["quick", "slow", "low", "lower"]), (False, ["slow", "quick", "low", "lower"])):
        summary = summarise(runs, total_steps=2000, threshold=50.0, stops=stops)
        better = [pair["x"] if pair["value"] == 1.0 else pair["y"] for pair in summary["improvement"]]
        assert sorted(returns, key=better.count, reverse=True) == expected
        both = aggregate({"A": summary, "B": summary}, stops=stops)
        assert [pair["value"] for pair in both["improvement"]] == [pair["value"] for pair in summary["improvement"]]
    figures.plot_improvement(tmp_path / "improvement.png", "A", summary["improvement"], stops=True)
    assert (tmp_path / "improvement.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_whose_score_is_unknown_is_neither_ahead_nor_behind():
    unknown, low = ({"solved": {"steps": math.inf}, "final": final} for final in (math.nan, 1.0))
    found = _standings({"x": {"runs": [unknown]}, "y": {"runs": [low]}}, stops=True)
    assert math.isnan(found["x"][0]) and found["y"] == [0.0]


def test_pairs_of_few_contestants_have_their_intervals():
    """Also one that is certain beyond a doubt; of a single run there is none."""
    pairs = [
        {"x": "a", "y": "b", "runs": runs, "value": value, "low": low, "high": 1.0}
        for runs, value, low in ((4, 1.0, 1.0), (4, 0.7, 0.5), (3, 1.0, 1.0), (1, 1.0, 1.0))
    ]
    head, _, *rows, _, below = report._pairs(pairs)
    assert head == "| pair | probability of improvement |" and below.startswith("Bold, with at least 4 runs of each")
    assert [row.split(" | ")[1].rstrip(" |") for row in rows] == [
        "**1.00 [1.00, 1.00]**",
        "0.70 [0.50, 1.00]",
        "1.00 [1.00, 1.00]",
        "1.00",
    ]


def test_contestants_can_be_told_apart():
    style = figures.styles([f"contestant {k}" for k in range(25)])
    assert len({(each["color"], str(each["linestyle"])) for each in style.values()}) == 25


@pytest.mark.parametrize(
    "spoilt",
    [
        {"status": 20.5},
        {"status": "diverged"},
        {"status": "diverged", "error": None, "seconds": 1.0},
        {"status": "diverged", "error": "x", "seconds": "long"},
        {},
        [],
    ],
)
def test_an_outcome_that_cannot_be_read_is_none(tmp_path, spoilt):
    (tmp_path / "outcome.json").write_text(json.dumps(spoilt))
    assert read_outcome(tmp_path) is None and read_run(tmp_path, 0) is None


DAMAGE = {
    "episodes.csv": [
        None,
        "garbage\nmore\n",
        "return,length\n1,2\n",
        "step,return\n",
        "step,return\n1,\n",
        "step,return\nx,y\n",
    ],
    "progress.csv": [None, "", "step,return_mean\n1,2\n", "step,seconds\n1,\n"],
}


@pytest.mark.filterwarnings("ignore:.*holds no numbers")
@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in DAMAGE.items() for text in texts])
def test_a_run_that_has_ended_and_cannot_be_read_is_told(tmp_path, name, text):
    folder = write_run(tmp_path / "run", ramp(40, 1.0))
    (folder / "outcome.json").write_text(json.dumps({"status": "finished", "steps": 400, "episodes": 40}))
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    with pytest.raises(CheckpointError, match=f"run has ended, but .*{name} cannot be read: .*to train it anew"):
        read_run(folder, 0)


def test_a_table_that_is_gone_is_told_of_a_run_that_has_finished_alone(tmp_path):
    folder = write_run(tmp_path / "run", ramp(40, 1.0))
    (folder / "episodes.csv").unlink()
    with pytest.raises(CheckpointError, match="has no rows"):
        read_run(folder, 0)
    (folder / "outcome.json").write_text(json.dumps({"status": "diverged", "error": "too large"}))
    assert read_run(folder, 0) is None


APPLIED = {"variance": {"value": 2.0}, "ratio": {"value": 1.0, "low": "-inf", "high": "inf"}, "squared_bias": None}
MEASURED = {
    "estimator": "a2c", "step": 5, "batches": 3, "fit_batches": 1, "rows_per_batch": 8, "squared_gradient_norm": 1.0,
    "applied": {"a2c": APPLIED},
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"applied": None},
        {"applied": []},
        {"applied": {}},
        {"applied": {"relax": APPLIED}},
        {"applied": {"a2c": {"ratio": APPLIED["ratio"]}}},
        {"applied": {"a2c": {**APPLIED, "ratio": {"value": 1.0, "low": "low", "high": 2.0}}}},
        {"applied": {"a2c": {**APPLIED, "squared_bias": {"low": 1.0}}}},
        {"step": "5"},
        {"squared_gradient_norm": None},
    ],
)
def test_a_measurement_that_is_none_is_left_out(tmp_path, change):
    (tmp_path / "a.json").write_text(json.dumps(MEASURED))
    (tmp_path / "b.json").write_text(json.dumps({**MEASURED, **change}))
    (tmp_path / "c.json").write_text('{"a": 1}')
    assert read_variances({name: tmp_path / f"{name}.json" for name in "abc"}) == {"a": MEASURED}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in its file system")
def test_results_that_are_no_files_are_none_at_once(tmp_path):
    for name in ("outcome.json", "progress.csv", "variance.json"):
        os.mkfifo(tmp_path / name)
    assert read_outcome(tmp_path) is None and last_row(tmp_path / "progress.csv") == {}
    assert read_variances({"early": tmp_path / "variance.json"}) == {}


@pytest.mark.parametrize("header", [b"\xff\xfe", b"step,x\r", b"step," + b"x" * 200_000])
def test_a_table_that_is_none_has_no_last_row(tmp_path, header):
    (tmp_path / "progress.csv").write_bytes(header + b"\n1,x\n")
    assert last_row(tmp_path / "progress.csv") == {}


@pytest.mark.parametrize("commands", [None, 5, "compare", {"a": 1}])
def test_commands_of_earlier_sessions_that_are_none_are_left_out(tmp_path, commands):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"options": {}, "commands": commands}))
    assert write_settings(path, CompareConfig(), "compare --resume run") == ["compare --resume run"]


def test_one_figure_that_cannot_be_drawn_is_a_warning_and_the_others_are_drawn(runs, tmp_path, monkeypatch):
    def broken(*args: object, **kwargs: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr(figures, "plot_scores", broken)
    with pytest.warns(UserWarning, match=r"^the figure A-scores\.png could not be drawn: no ink$"):
        figures.draw_all(make_result(runs), lambda env, what: tmp_path / f"{env}-{what}.png")
    names = {path.name for path in tmp_path.glob("*.png")}
    assert {"A-curves.png", "A-solved.png", "A-improvement.png", "A-variance.png", "all-improvement.png"} == names


def test_names_of_contestants_are_shown_as_they_are(runs, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_finish", lambda path, figure, *told: drawn.append(figure))
    named = {"_quick": runs["quick"], "$_$": runs["slow"]}
    summary = summarise(named, total_steps=2_000, threshold=100.0)
    figures.plot_curves(tmp_path / "x.png", "A", summary, figures.styles(list(named)))
    (figure,) = drawn
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][:2] == [" _quick", r"\$_\$"]
    figure.canvas.draw()


def test_a_bias_stands_beside_its_variance(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_finish", lambda path, figure, *told: drawn.append((figure, told)))
    figures.plot_variance(tmp_path / "x.png", "A", {"early": {"step": 100, **VARIANCE}})
    (figure, told), biased = drawn[0], VARIANCE["applied"]["relax, w = 0"]
    whole = biased["ratio"]["value"] + biased["squared_bias"]["value"] / VARIANCE["applied"]["a2c"]["variance"]["value"]
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert [float(line.get_xdata()[0]) for line in hollow] == [pytest.approx(whole)]
    assert told[-1].endswith("hollow: with the squared bias")


def test_a_variance_that_is_unknown_everywhere_has_a_figure(tmp_path):
    stages = {"early": {**json.loads(json.dumps(VARIANCE)), "step": 100}}
    for entry in stages["early"]["applied"].values():
        entry["ratio"] = dict.fromkeys(("value", "low", "high"), "nan")
    figures.plot_variance(tmp_path / "x.png", "A", stages)
    assert (tmp_path / "x.png").exists()


def test_without_a_pair_there_is_no_section_on_all_environments(runs):
    result = make_result(runs)
    result["aggregate"]["improvement"] = []
    assert "All environments" not in markdown(result)
