"""What users see stays: options and what they mean, files of a run, public names and signatures.

What is written out here is frozen. The rest is compared with `surface.json` of the first version: additions pass, and
what is taken away must be listed in `REMOVED`, in `CHANGELOG.md` and in `docs/moving.md`.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import relax_rl
from relax_rl.cli import main
from relax_rl.envs import VectorEnvs, make_envs
from tests.old_artefacts import FIXTURES, blank_figures, settings
from tests.surface import options, public_names, signatures

ROOT = Path(__file__).parent.parent
RECORDED = json.loads((FIXTURES / "0.1.0" / "surface.json").read_text())

TRAIN_OPTIONS = {
    "--env",
    "--estimator",
    "--total-steps",
    "--num-envs",
    "--num-steps",
    "--seed",
    "--device",
    "--run-dir",
    "--stop-at-return",
    "--resume",
    "--preset",
}
FIRST_COLUMNS = ["step", "episodes", "return_mean", "seconds", "steps_per_second", "length_mean"]
EVALUATION_COLUMNS = ["step", "episodes", "return_mean", "return_std", "length_mean", "seconds"]
NAMES = {
    "relax_rl": "A2C LAX RELAX ActorCritic AgentConfig EnvConfig Marginal Reinforce RunConfig TrainConfig make_envs settings_for train",
    "relax_rl.agents": "A2C AGENTS LAX RELAX ActorCritic Marginal Reinforce UpdateInfo resolve_estimator",
}
REMOVED: dict[str, set[str]] = {
    "options": {
        "train --advantage-scale",
        "train --surrogate-regression",
        "train --surrogate-replay",
    },
    "names": {
        "relax_rl.critics.RelaxedControl",
        "relax_rl.critics.relaxed_control",
    },
    "signatures": {
        "relax_rl.AgentConfig(advantage_scale)",
        "relax_rl.AgentConfig(surrogate_regression)",
        "relax_rl.AgentConfig(surrogate_replay)",
        "relax_rl.critics.ActionSurrogate.add_gradient",
        "relax_rl.critics.ActionSurrogate.evaluate",
        "relax_rl.critics.RelaxedControl",
        "relax_rl.critics.RelaxedControl.add_gradient",
        "relax_rl.critics.relaxed_control",
        "relax_rl.distributions.Bernoulli.push_forward",
        "relax_rl.distributions.Bernoulli.soften_curvature",
        "relax_rl.distributions.Categorical.push_forward",
        "relax_rl.distributions.Categorical.soften_curvature",
        "relax_rl.distributions.DiagGaussian.push_forward",
        "relax_rl.distributions.MultiCategorical.push_forward",
        "relax_rl.distributions.MultiCategorical.soften_curvature",
        "relax_rl.distributions.SlopedDistribution.push_forward",
        "relax_rl.distributions.SlopedRelaxation.push_forward",
        "relax_rl.distributions.SlopedRelaxation.soften_curvature",
        "relax_rl.distributions.TanhGaussian.push_forward",
    },
}
"""What was taken away on purpose: `train --option`, `module.name`, `module.name(parameter)`."""

TINY = ["--hidden", "8", "--surrogate-hidden", "8", "--no-tensorboard", "--quiet"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has a working folder of its own, and draws nothing."""
    monkeypatch.chdir(tmp_path)
    blank_figures(monkeypatch)


def rows(path: str | Path) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def scores(run: str) -> list[list[str]]:
    """The columns of `progress.csv` that do not tell time."""
    return [
        [row[name] for name in ("step", "episodes", "return_mean", "length_mean")]
        for row in rows(f"{run}/progress.csv")
    ]


def train(run: str, *arguments: str, steps: int = 200) -> dict[str, Any]:
    """Train a tiny agent; returns every setting that its run tells."""
    few = ["--total-steps", str(steps), "--num-envs", "2", "--num-steps", "10", "--log-interval", "40", *TINY]
    assert main([*few, "--preset", "none", "--estimator", "a2c", *arguments, "--run-dir", run]) == 0
    return settings(Path(run))


# The command line


def test_the_options_of_a_run_mean_what_they_did(capsys: pytest.CaptureFixture[str]) -> None:
    given = {"env": "CartPole-v1", "estimator": "reinforce", "total_steps": 200, "num_envs": 4, "num_steps": 10}
    given |= {"seed": 7, "device": "cpu", "run_dir": "run", "stop_at_return": 1000.0, "preset": "classic-control"}
    arguments = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert set(arguments[::2]) | {"--resume"} == TRAIN_OPTIONS
    assert main(["train", *arguments, *TINY, "--log-interval", "1"]) == 0
    found = settings(Path("run"))
    assert {name: found[name] for name in given} == given
    steps = [int(row["step"]) for row in rows("run/progress.csv")]
    # Four environments, ten steps each; the first one after an episode is made up and does not count.
    assert all(30 <= later - before <= 40 for before, later in zip([0, *steps], steps, strict=False))
    assert 200 <= steps[-1] < 240 and "all steps taken" in capsys.readouterr().out
    assert set(options("train")) >= TRAIN_OPTIONS


def test_the_seed_decides_the_run() -> None:
    for run, seed in (("one", "3"), ("same", "3"), ("other", "4")):
        assert train(run, "--seed", seed)["seed"] == int(seed)
    assert scores("one") == scores("same") != scores("other")


def test_train_is_the_default_command_and_underscores_are_dashes() -> None:
    assert (
        main(["train", "--env=CartPole-v1", "--total_steps", "20", "--num_envs", "1", *TINY, "--run_dir", "run"]) == 0
    )
    found = settings(Path("run"))
    assert (found["total_steps"], found["num_envs"], found["estimator"], found["device"]) == (20, 1, "relax", "cpu")


def test_training_stops_at_a_return(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("run", "--stop-at-return", "0", "--num-envs", "16", steps=10**6)["stop_at_return"] == 0.0
    last = rows("run/progress.csv")[-1]
    assert 100 <= int(last["episodes"]) < 200 and "reached a mean return of 0" in capsys.readouterr().out


def test_a_run_is_resumed() -> None:
    train("run", steps=100)
    before = scores("run")
    assert main(["--resume", "run", "--total-steps", "160", "--quiet"]) == 0
    after = scores("run")
    assert after[: len(before)] == before and int(after[-1][0]) >= 160 > int(before[-1][0])
    assert main(["--resume", "run", "--total-steps", "300", "--seed", "5"]) == 2


@pytest.mark.parametrize(
    ("preset", "normalised", "gamma"), [("auto", True, 0.98), ("classic-control", True, 0.98), ("none", False, 0.99)]
)
def test_presets_lie_under_what_is_given(preset: str, normalised: bool, gamma: float) -> None:
    found = train("run", "--preset", preset, steps=20)
    assert found["preset"] == ("classic-control" if preset == "auto" else preset)
    assert (found["normalize_obs"], found["gamma"], found["num_envs"]) == (normalised, gamma, 2)


@pytest.mark.parametrize("estimator", ["relax", "lax", "marginal", "a2c", "reinforce"])
def test_every_estimator_is_known_by_its_name(estimator: str) -> None:
    env = "Pendulum-v1" if estimator == "lax" else "CartPole-v1"
    assert train("run", "--env", env, "--estimator", estimator, steps=20)["estimator"] == estimator


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--device", "cuda:99", "device 'cuda:99' is not available"),
        ("--env", "CartPol-v1", "did you mean CartPole-v1"),
        ("--estimator", "relux", "'relux'"),
        ("--preset", "atar", "unknown preset 'atar'"),
        ("--resume", "nowhere", "nowhere"),
        ("--nonsense", "1", "unknown option --nonsense"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    option: str, value: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([option, value]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith("error: ") and expected in err


def test_the_commands() -> None:
    assert list(RECORDED["options"]) == ["train", "evaluate", "variance", "toy", "compare", "vae"]


@pytest.mark.parametrize("command", RECORDED["options"])
def test_no_option_is_lost(command: str) -> None:
    known, recorded = set(options(command)), set(RECORDED["options"][command])
    removed = {name.split()[1] for name in REMOVED["options"] if name.split()[0] == command}
    assert len(recorded) >= 7 and recorded - known == removed
    assert not removed & TRAIN_OPTIONS or command != "train"


@pytest.mark.parametrize(
    "arguments",
    [["train_agent.py", "--version"], ["-m", "relax_rl", "--version"]],
    ids=["train_agent.py", "python -m relax_rl"],
)
def test_the_launchers(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"relax_rl {relax_rl.__version__}\n", "")


def test_the_installed_program(capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r'^relax-rl = "([\w.]+):(\w+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    assert getattr(import_module(found[1]), found[2])(["--version"]) == 0
    assert capsys.readouterr().out == f"relax_rl {relax_rl.__version__}\n"


def test_the_throughput_benchmark_is_called_as_before() -> None:
    pytest.importorskip("stable_baselines3")
    command = [sys.executable, "-m", "benchmarks.throughput", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for option in ("--rounds", "--matches", "--device {cpu,cuda}", "--dry-run"):
        assert option in done.stdout


# The folder of a run


def test_the_files_of_a_run() -> None:
    train("run", "--tensorboard", "--eval-interval", "100", "--eval-episodes", "1", "--profile")
    names = {path.name for path in Path("run").iterdir()}
    assert {"config.json", "progress.csv", "evaluation.csv", "learning_curve.png", "checkpoints"} <= names
    assert {"profile.md", "profile.json"} <= names and any(name.startswith("events.out.tfevents.") for name in names)
    checkpoints = {path.name for path in Path("run/checkpoints").iterdir()}
    last = rows("run/progress.csv")[-1]["step"]
    assert checkpoints == {f"step_{int(last):09d}.safetensors", "best.safetensors"}
    record = json.loads(Path("run/config.json").read_text())
    assert {"run", "env", "agent", "versions", "command"} <= record.keys()
    few = ["--batches", "3", "--fit-batches", "0", "--states", "0"]
    assert main(["evaluate", "run", "--episodes", "1"]) == 0 and main(["variance", "run", *few]) == 0
    added = {path.name for path in Path("run").iterdir()} - names
    assert added == {"evaluation.json", "variance.json", "variance.png"}


def test_the_first_columns() -> None:
    train("run", "--eval-interval", "100", "--eval-episodes", "1")
    header = list(rows("run/progress.csv")[0])
    assert header[: len(FIRST_COLUMNS)] == FIRST_COLUMNS and "policy/entropy" in header
    assert list(rows("run/evaluation.csv")[0])[: len(EVALUATION_COLUMNS)] == EVALUATION_COLUMNS


def test_what_a_run_returns() -> None:
    sections = {"env": relax_rl.EnvConfig(num_envs=2), "agent": relax_rl.AgentConfig(hidden=(8,))}
    run = relax_rl.RunConfig(total_steps=50, run_dir="run", estimator="a2c", tensorboard=False, quiet=True)
    result = relax_rl.train(relax_rl.TrainConfig(run=run, **sections))
    assert isinstance(result.agent, relax_rl.A2C) and result.run_dir == Path("run") and result.checkpoint.exists()
    assert result.steps >= 50 and result.episodes >= 0 and result.stopped_by == "total_steps" and not result.solved
    assert result.return_mean != result.return_mean or result.return_mean > 0


# The library


@pytest.mark.parametrize("module", RECORDED["names"])
def test_no_public_name_is_lost(module: str) -> None:
    recorded, known = set(RECORDED["names"][module]), set(public_names()[module])
    removed = {name.rpartition(".")[2] for name in REMOVED["names"] if name.rpartition(".")[0] == module}
    assert recorded - known == removed
    for name in known:
        assert hasattr(import_module(module), name)
    if module in NAMES:
        assert set(NAMES[module].split()) == recorded and not removed
    assert len(recorded) >= 6


def lost(old: list[str], new: list[str]) -> set[str]:
    """Parameters by which a call that was right is right no more: gone, moved, without their default, or newly asked for."""
    positions = {name.rstrip("="): place for place, name in enumerate(_positional(new))}
    given = {name.rstrip("="): name for name in new}
    gone = {name.rstrip("=") for name in old if name.rstrip("=") not in given}
    moved = {
        name.rstrip("=") for place, name in enumerate(_positional(old)) if positions.get(name.rstrip("=")) != place
    }
    needed = {name for name in new if not name.endswith("=") and name[0] != "*" and name not in old}
    return gone - {"*"} | {name for name in moved if not name.startswith("*")} | needed


def _positional(parameters: list[str]) -> list[str]:
    return parameters[: next((place for place, name in enumerate(parameters) if name[0] == "*"), len(parameters))]


def test_signatures_still_take_what_they_took() -> None:
    known, found = signatures(), set()
    for name, parameters in RECORDED["signatures"].items():
        found |= {f"{name}({parameter})" for parameter in lost(parameters, known[name])} if name in known else {name}
    assert found == REMOVED["signatures"]
    names = {
        "relax_rl.estimators.relax",
        "relax_rl.RELAX.predict",
        "relax_rl.make_envs",
        "relax_rl.envs.VectorEnvs.step",
    }
    assert names <= RECORDED["signatures"].keys()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("f dist * noise=", "f dist * noise= other=", set()),
        ("f dist * noise=", "f dist noise=", set()),
        ("f dist * noise=", "f dist *", {"noise"}),
        ("f dist", "dist f", {"f", "dist"}),
        ("f dist=", "f dist", {"dist"}),
        ("f dist", "f * dist", {"dist"}),
        ("f", "f more", {"more"}),
    ],
)
def test_what_counts_as_lost(old: str, new: str, expected: set[str]) -> None:
    assert lost(old.split(), new.split()) == expected


def test_environments_are_made_and_stepped() -> None:
    with make_envs("CartPole-v1", num_envs=3, seed=1, vectorization="sync") as envs:
        assert isinstance(envs, VectorEnvs) and envs.num_envs == 3 and envs.env_id == "CartPole-v1"
        step = envs.step(envs.vector_env.action_space.sample())
        for name in ("obs", "action", "reward", "next_obs", "terminated", "truncated", "valid"):
            assert len(getattr(step, name)) == 3
        assert envs.obs.shape == (3, 4) and envs.drain_episodes() == []
        agent = relax_rl.RELAX(envs.single_observation_space, envs.single_action_space, seed=0, hidden=(8,))
        assert agent.learn(envs, 30) is agent and agent.steps >= 30 and agent.act(envs.obs).shape == (3,)


def test_removals_are_told() -> None:
    for document in ("CHANGELOG.md", "docs/moving.md"):
        text = (ROOT / document).read_text()
        for name in set().union(*REMOVED.values()):
            assert re.split(r"[ .(]", name.rstrip(")"))[-1] in text, f"{document} does not tell of {name}"
