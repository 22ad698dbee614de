"""What earlier versions wrote is read, played, scored and gone on with; see `tests/make_fixtures.py`."""

from __future__ import annotations

import csv
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import relax_rl
from relax_rl.cli import main
from relax_rl.errors import CheckpointError
from tests.old_artefacts import (
    FIXTURES,
    blank_figures,
    distance,
    expectations,
    newest,
    policy_and_value,
    settings,
    trained,
)
from tests.workers import run_workers

OLD = FIXTURES / "0.1.0"
RUNS = sorted(str(path.relative_to(FIXTURES)) for path in FIXTURES.glob("*/runs/*"))
NEUTRAL = {"surrogate_replay": 0, "surrogate_regression": 0.0, "advantage_scale": "none"}
CLASSES = {"a2c": "A2C", "reinforce": "Reinforce", "relax": "RELAX", "marginal": "Marginal", "lax": "LAX"}
MORE = 60
"""Steps that a run goes on for: one rollout or a few."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has a working folder of its own, and draws nothing."""
    monkeypatch.chdir(tmp_path)
    blank_figures(monkeypatch)


def copy_of(path: Path) -> Path:
    """A copy in the working folder, to be written to."""
    return Path(shutil.copytree(path, Path.cwd() / path.name))


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def go_on(run: Path, *more: str) -> int:
    """Resume a run for a few more steps; returns the step that it began at."""
    step = trained(run).steps
    assert main(["--resume", str(run), "--total-steps", str(step + MORE), "--quiet", *named(run), *more]) == 0
    return step


def named(run: Path) -> list[str]:
    """The environment of a run, named again if a module of the tests registers it."""
    env = json.loads((run / "config.json").read_text())["env"]["env"]
    return ["--env", env] if ":" in env else []


def assert_gone_on(run: Path, old: Path, step: int) -> None:
    """The rows are the old ones and some more, the newest checkpoint is of later, and the resumption is noted.

    The policy is a few small steps from the old one, and not from where that began.
    """
    before, after = lines(old / "progress.csv"), lines(run / "progress.csv")
    assert after[: len(before)] == before
    assert len(after) > len(before) and int(after[-1].split(",")[0]) == trained(run).steps >= step + MORE
    record = json.loads((run / "config.json").read_text())
    assert [entry["step"] for entry in record["resumed"]] == [step]
    kept = {
        name: value
        for name, value in settings(run).items()
        if name not in ("total_steps", "resume", "run_dir", "quiet")
    }
    assert kept.items() <= {**kept, **settings(old)}.items()
    agent = trained(old)
    fresh = type(agent)(agent.observation_space, agent.action_space, seed=agent.seed, config=agent.config)
    moved, learned = distance(agent, trained(run)), distance(agent, fresh)
    assert moved < 0.75 * learned, f"it has moved by {moved:.3f} after learning {learned:.3f}"


def test_there_is_a_run_of_every_kind() -> None:
    assert len(RUNS) >= 12
    assert {trained(path).name for path in (OLD / "runs").iterdir()} == set(CLASSES)
    assert {path.name for path in (OLD / "dropped").iterdir()} == set(NEUTRAL)
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file()) < 3_000_000
    kinds = {path.suffix for path in OLD.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".csv", ".md", ".safetensors"}, "nothing that can run code"


@pytest.mark.parametrize("name", RUNS)
def test_an_agent_acts_as_it_did(name: str) -> None:
    run = FIXTURES / name
    told = expectations(run)
    agent = trained(run)
    for actions, deterministic in ((told["sampled"], False), (told["deterministic"], True)):
        found, state = agent.predict(told["obs"], deterministic=deterministic)
        assert state is None and found.dtype == actions.dtype and found.shape == actions.shape
        if actions.dtype.kind == "f":
            np.testing.assert_allclose(found, actions, rtol=0, atol=1e-6)
        else:
            np.testing.assert_array_equal(found, actions)
    single, _ = agent.predict(told["obs"][0], deterministic=True)
    np.testing.assert_allclose(single, told["deterministic"][0], rtol=0, atol=1e-6)
    params, values = policy_and_value(agent, told["obs"])
    np.testing.assert_allclose(params, told["params"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(values, told["values"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CLASSES)
def test_a_checkpoint_is_loaded_by_its_own_class_alone(name: str) -> None:
    path = newest(OLD / "runs" / name)
    own = getattr(relax_rl, CLASSES[name])
    agent = own.load(path)
    assert type(agent) is own and agent.steps >= 400 and agent.updates > 10 and agent.config.hidden == (8,)
    other = relax_rl.LAX if name != "lax" else relax_rl.RELAX
    with pytest.raises(CheckpointError, match=f"'{name}' agent"):
        other.load(path)


@pytest.mark.parametrize("name", RUNS)
def test_a_loaded_agent_is_saved_with_all_it_had(name: str) -> None:
    """The temperature that surrogates learned in 0.1.0 aside: their second parameter, and so in Adam's averages."""
    run = FIXTURES / name
    trained(run).save("agent.safetensors")
    before, after = load_file(newest(run)), load_file("agent.safetensors")
    if before.pop("surrogate.log_temperature", None) is not None:
        for average in ("surrogate_optimizer.mean", "surrogate_optimizer.square"):
            before[average] = np.delete(before[average], 1)
    assert before.keys() <= after.keys()
    for key, x in before.items():
        np.testing.assert_array_equal(after[key], x, key)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_evaluated(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_of(FIXTURES / name)
    assert main(["evaluate", str(run), "--episodes", "1", *named(run)]) == 0
    told = json.loads((run / "evaluation.json").read_text())
    assert told["step"] == trained(run).steps and told["estimator"] == trained(run).name
    assert told["checkpoint"] == str(newest(run)) and len(told["returns"]) == told["episodes"] == 1
    assert "deterministic actions" in capsys.readouterr().out


def test_the_best_and_earlier_checkpoints_are_evaluated() -> None:
    run = copy_of(OLD / "runs" / "a2c")
    first = min((run / "checkpoints").glob("step_*"))
    for which in ("best", str(first)):
        assert main(["evaluate", str(run), "--episodes", "1", "--checkpoint", which]) == 0
        told = json.loads((run / "evaluation.json").read_text())
        assert told["step"] < trained(run).steps


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_gone_on_with(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    old = FIXTURES / name
    run = copy_of(old)
    step = go_on(run)
    assert_gone_on(run, old, step)
    assert capsys.readouterr().err == ""


def test_evaluations_during_training_go_on() -> None:
    run = copy_of(OLD / "runs" / "a2c")
    go_on(run, "--total-steps", "650")
    before, after = lines(OLD / "runs/a2c/evaluation.csv"), lines(run / "evaluation.csv")
    assert after[: len(before)] == before and len(after) > len(before)


@pytest.mark.parametrize("name", ["relax", "lax"])
def test_the_variance_of_a_run_is_measured(name: str) -> None:
    run = copy_of(OLD / "runs" / name)
    few = ["--batches", "3", "--fit-batches", "1", "--states", "2", "--actions", "3"]
    assert main(["variance", str(run), *few]) == 0
    assert name in json.dumps(json.loads((run / "variance.json").read_text()))


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_run_with_a_setting_of_the_past_is_refused_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_of(OLD / "dropped" / name)
    value = settings(run)[name]
    assert value != NEUTRAL[name]
    assert all(settings(path)[name] == NEUTRAL[name] for path in (OLD / "runs").iterdir())
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for arguments in (["--resume", str(run)], ["evaluate", str(run)], ["variance", str(run)]):
        assert main(arguments) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and f"{name} is {value!r}, but" in told
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    with pytest.raises(CheckpointError, match=f"{name} is {value!r}"):
        relax_rl.ActorCritic.load(newest(run))


def resume_in_a_worker(rank: int, run: str, total_steps: int) -> int:
    return main(["--resume", run, "--total-steps", str(total_steps), "--quiet"])


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_of_two_workers_goes_on_with_one_or_two(count: int) -> None:
    run = copy_of(OLD / "torchrun")
    step = trained(run).steps
    if count == 1:
        go_on(run)
    else:
        work = partial(resume_in_a_worker, run=str(run), total_steps=step + MORE)
        assert run_workers(count, work) == [("done", 0)] * count
    assert_gone_on(run, OLD / "torchrun", step)


@pytest.mark.parametrize("name", ["relax", "nvil"])
def test_an_autoencoder_goes_on_and_is_evaluated(name: str) -> None:
    pytest.importorskip("sklearn")
    run, old = copy_of(OLD / "vae" / name), OLD / "vae" / name
    assert main(["vae", "--resume", str(run), "--steps", "250", "--quiet"]) == 0
    before, after = lines(old / "progress.csv"), lines(run / "progress.csv")
    assert after[: len(before)] == before and len(after) == len(before) + 1
    rows = list(csv.DictReader(after))
    bounds = {int(row["step"]): float(row["valid_bound"]) for row in rows}
    assert bounds[50] + 0.4 < bounds[200] < bounds[250] + 0.3, "it has begun anew"
    earlier, later = (json.loads((path / "evaluation.json").read_text()) for path in (old, run))
    assert (earlier["step"], later["step"]) == (200, 250) and earlier["bounds"].keys() == later["bounds"].keys()
    assert all(later["bounds"][part] > bound - 1 for part, bound in earlier["bounds"].items())


def test_the_toy_problem_is_told_in_the_same_tables(capsys: pytest.CaptureFixture[str]) -> None:
    old = copy_of(OLD / "toy")
    record = json.loads((old / "config.json").read_text())
    assert main(["toy", "--run-dir", str(old), "--quiet"]) == 2
    assert "already holds" in capsys.readouterr().err
    _, *arguments = record["command"].split()[1:]
    assert main(["toy", *arguments[: arguments.index("--run-dir")], "--run-dir", "new"]) == 0
    for name in ("toy.md", "curves.csv"):
        assert (heading := [line for line in lines(old / name) if "estimator" in line])
        assert heading == [line for line in lines(Path("new") / name) if "estimator" in line]
    one, other = (json.loads((path / "toy.json").read_text()) for path in (old, Path("new")))
    assert one.keys() <= other.keys() and one["seeds"] == other["seeds"]
    for name, entry in one["estimators"].items():
        assert entry.keys() <= other["estimators"][name].keys()
        assert entry["theta"]["median"] == pytest.approx(other["estimators"][name]["theta"]["median"], abs=0.05)


def test_half_a_comparison_is_finished() -> None:
    folder = copy_of(OLD / "compare")
    runs = OLD / "compare" / "runs"
    (ended,) = (path.parent.name for path in runs.glob("*/outcome.json"))
    (stopped,) = {path.name for path in runs.iterdir()} - {ended}
    assert main(["compare", "--resume", str(folder), "--quiet"]) == 0
    assert {path.name for path in (folder / "runs").iterdir()} == {
        f"CartPole-v1-{label}-s{seed}" for label in ("few", "a2c") for seed in (0, 1)
    }
    for name in ("progress.csv", "episodes.csv", "config.json"):
        assert lines(folder / "runs" / ended / name) == lines(runs / ended / name), "it was not to be repeated"
    before, after = lines(runs / stopped / "episodes.csv"), lines(folder / "runs" / stopped / "episodes.csv")
    assert len(after) > len(before) > 1 and after[: len(before)] == before
    result = json.loads((folder / "comparison.json").read_text())
    summary = result["environments"]["CartPole-v1"]["contestants"]
    assert result["failures"] == [] and list(summary) == ["few", "a2c"]
    assert all([run["seed"] for run in entry["runs"]] == [0, 1] for entry in summary.values())
    assert main(["evaluate", str(folder / "runs" / ended), "--episodes", "1"]) == 0
