"""Several processes that learn together: the same steps as one, common decisions, and what happens when one is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relax_rl.agents import A2C, AGENTS, ActorCritic
from relax_rl.compute import distributed
from relax_rl.compute.serialization import load_state
from relax_rl.envs import make_envs
from relax_rl.errors import SettingsError, TrainingDiverged, WorkerLost
from relax_rl.runs.training import resume_config, train
from relax_rl.settings.config import TrainConfig
from relax_rl.settings.fields import with_settings
from tests.steps import small_run
from tests.workers import run_workers

NORMALIZED = {"normalize_obs": True, "normalize_reward": True}
EPOCHS = {"epochs": 3, "minibatch_size": 13, "clip_range": 0.2, "target_kl": 3e-5}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "relax": ("CartPole-v1", "relax", {**NORMALIZED, "entropy_coef": 0.01, "lr_schedule": "linear"}),
    "relax, several steps of c": ("CartPole-v1", "relax", {"surrogate_steps": 3, "surrogate_scale": "fitted"}),
    "lax": ("Pendulum-v1", "lax", NORMALIZED),
    "a2c": ("CartPole-v1", "a2c", {**NORMALIZED, "optimizer": "rmsprop"}),
    "relax, epochs": ("CartPole-v1", "relax", {**NORMALIZED, **EPOCHS}),
    "lax, epochs": ("Pendulum-v1", "lax", {**NORMALIZED, **EPOCHS}),
    "relax, epochs, fitted": (
        "CartPole-v1",
        "relax",
        {**NORMALIZED, **EPOCHS, "surrogate_steps": 2, "surrogate_scale": "fitted"},
    ),
    "relax, epochs, critic over bins": (
        "CartPole-v1",
        "relax",
        {
            **NORMALIZED,
            "epochs": 2,
            "minibatch_size": 13,
            "kl_bound": 2e-3,
            "surrogate_loss": "critic",
            "critic_loss": "hl_gauss",
            "residual_weight": "adaptive",
            "soft_returns": True,
            "entropy_target": 0.9,
            "value_replay": 1,
            "replay_targets": "anew",
        },
    ),
    "lax, adaptive": ("Pendulum-v1", "lax", {"surrogate_loss": "critic", "residual_weight": "adaptive"}),
    "relax, critic": (
        "CartPole-v1",
        "relax",
        {**NORMALIZED, "surrogate_loss": "critic", "surrogate_steps": 2, "value_replay": 1},
    ),
    "relax, epochs, normalised": ("CartPole-v1", "relax", {**NORMALIZED, **EPOCHS, "normalize_advantage": True}),
    "relax, epochs, scaled": (
        "CartPole-v1",
        "relax",
        {**NORMALIZED, **EPOCHS, "scale_advantage": True, "entropy_coef": 0.01},
    ),
    "relax, value replay": ("CartPole-v1", "relax", {**NORMALIZED, "value_replay": 2}),
    "relax, epochs, memory": ("CartPole-v1", "relax", {**NORMALIZED, **EPOCHS, "memory": "gru", "memory_size": 8}),
    "a2c, memory": ("CartPole-v1", "a2c", {**NORMALIZED, "memory": "lstm", "memory_size": 8}),
    "relax, bounded": (
        "CartPole-v1",
        "relax",
        {**NORMALIZED, "epochs": 3, "minibatch_size": 13, "kl_bound": 2e-3, "entropy_target": 0.9, "policy_lr": 0.01},
    ),
    "lax, bounded by a penalty, memory": (
        "Pendulum-v1",
        "lax",
        {
            **NORMALIZED,
            **EPOCHS,
            "kl_bound": 1e-4,
            "kl_form": "penalty",
            "kl_schedule": "linear",
            "entropy_target": -0.5,
            "squash": True,
            "memory": "gru",
            "memory_size": 8,
        },
    ),
    "a2c, epochs, hl_gauss": ("CartPole-v1", "a2c", {**NORMALIZED, **EPOCHS, "critic_loss": "hl_gauss"}),
    "relax, epochs, targets anew": (
        "CartPole-v1",
        "relax",
        {**NORMALIZED, **EPOCHS, "value_replay": 2, "replay_targets": "anew"},
    ),
    "a2c, epochs, value replay": ("CartPole-v1", "a2c", {**NORMALIZED, **EPOCHS, "value_replay": 2}),
}
COLUMNS, STEPS, UPDATES = 6, 5, 12


def learned(case: str, workers: distributed.Workers) -> dict[str, Any]:
    """What an agent is after some updates on its share of six environments."""
    env, estimator, settings = CASES[case]
    num_envs = COLUMNS // workers.count
    first_env = workers.rank * num_envs
    with make_envs(env, num_envs=num_envs, seed=3, vectorization="sync", first_env=first_env) as envs:
        agent = AGENTS[estimator](
            envs.single_observation_space,
            envs.single_action_space,
            seed=workers.rank,  # the state of the first one counts
            hidden=(16,),
            surrogate_hidden=(16,),
            num_steps=STEPS,
            compile="off",
            **settings,
        )
        agent.join(workers)
        episodes: list[tuple[float, int]] = []
        epochs: list[float] = []

        def listen(agent: ActorCritic, info: Any) -> bool:
            episodes.extend((episode.return_, episode.length) for episode in info.episodes)
            epochs.append(float(info.metrics.get("policy/epochs", 1.0)))
            return info.updates < UPDATES

        agent.learn(envs, 10**6, [listen])
    tensors, state = agent.state_dict()
    # Rollouts for V are each worker's own.
    arrays = {name: x.numpy().copy() for name, x in tensors.items() if not name.startswith("value_replay.")}
    counters = {name: state[name] for name in ("steps", "episodes", "updates")}
    return {"tensors": arrays, "counters": counters, "episodes": sorted(episodes), "epochs": epochs}


def parts_of(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All parameters of a network as one vector, every other tensor as one of its own."""
    parts: dict[str, list[np.ndarray]] = {}
    for name, x in tensors.items():
        part = name.split(".")[0]
        parts.setdefault(part if part in ("policy", "value", "surrogate") else name, []).append(x.ravel())
    return {part: np.concatenate(found).astype(np.float64) for part, found in parts.items()}


def learn_all(rank: int) -> dict[str, dict[str, Any]]:
    with distributed.joined(timeout=60.0) as workers:
        assert workers.rank == rank
        return {case: learned(case, workers) for case in CASES}


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    return {case: learned(case, distributed.ALONE) for case in CASES}


@pytest.fixture(scope="module", params=[2, 3])
def together(request: pytest.FixtureRequest) -> list[dict[str, dict[str, Any]]]:
    answers = run_workers(request.param, learn_all)
    assert [kind for kind, _ in answers] == ["done"] * request.param, answers
    return [found for _, found in answers]


@pytest.mark.parametrize("case", CASES)
def test_workers_take_the_steps_of_a_single_one(case: str, alone: Any, together: Any) -> None:
    expected, found = alone[case], together[0][case]
    assert found["counters"] == expected["counters"]
    assert found["counters"]["updates"] == UPDATES and found["counters"]["steps"] > 300
    assert found["epochs"] == expected["epochs"]
    assert [length for _, length in found["episodes"]] == [length for _, length in expected["episodes"]]
    np.testing.assert_allclose([r for r, _ in found["episodes"]], [r for r, _ in expected["episodes"]], rtol=1e-5)
    assert found["tensors"].keys() == expected["tensors"].keys()
    for part, x in parts_of(expected["tensors"]).items():
        assert np.linalg.norm(parts_of(found["tensors"])[part] - x) <= 1e-5 * np.linalg.norm(x), part


@pytest.mark.parametrize("case", CASES)
def test_all_workers_are_the_same_bit_for_bit(case: str, together: Any) -> None:
    first = together[0][case]
    for other in together[1:]:
        assert other[case]["counters"] == first["counters"] and other[case]["episodes"] == first["episodes"]
        for name, x in first["tensors"].items():
            np.testing.assert_array_equal(other[case]["tensors"][name], x, name)


def test_the_cases_say_something(alone: Any) -> None:
    assert alone["a2c"]["counters"]["episodes"] > 5
    stopped = [alone[case]["epochs"] for case in ("relax, epochs", "lax, epochs")]
    assert all(min(epochs) >= 1.0 and max(epochs) <= 3.0 for epochs in stopped)
    assert any(len(set(epochs)) > 1 for epochs in stopped)  # the trust region ended some epochs early, and not all


def alone_and_then_together(rank: int) -> dict[str, Any]:
    """An agent whose steps were compiled as long as it was alone, after some steps with another one."""
    with make_envs("CartPole-v1", num_envs=2, seed=rank, vectorization="sync") as envs:
        agent = A2C(envs.single_observation_space, envs.single_action_space, seed=rank, hidden=(4,), num_steps=5)
        agent.learn(envs, 30)
        told: dict[str, Any] = {"compiled": [agent.learner.compiled is not None, agent.compiled_from]}
        with distributed.joined(timeout=60.0) as workers:
            agent.join(workers)
            agent.learn(envs, 60)
            told["compiled"] += [agent.learner.compiled is not None, agent.compiled_from]
            told["steps"] = agent.steps
            parameters = {name: x.detach().numpy().copy() for name, x in agent.networks.named_parameters()}
        forced = A2C(envs.single_observation_space, envs.single_action_space, compile="on", num_steps=5)
        forced.learner.workers = workers
        with pytest.raises(SettingsError, match="it is for a single process"):
            forced.learn(envs, 10)
    return {**told, "parameters": parameters}


def test_steps_that_were_compiled_alone_are_averaged_once_others_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relax_rl.compute.compilation._compile", lambda graph, inputs, key: graph)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    monkeypatch.setattr("relax_rl.agents.compiled._COST", 0.0)
    one, other = done(run_workers(2, alone_and_then_together))
    assert one["compiled"] == other["compiled"] == [True, 0, False, None]
    assert one["steps"] == other["steps"] >= 90
    for name, x in one["parameters"].items():
        np.testing.assert_array_equal(x, other["parameters"][name], name)


# Runs


def config_of(path: Path, **settings: Any) -> TrainConfig:
    return small_run(path, "CartPole-v1", "relax", num_envs=2, **settings)


def run_of(config: Any, callback: Any, rank: int) -> dict[str, Any]:
    """Train in one of the workers; returns what can be said of it elsewhere."""
    result = train(config, callbacks=[partial(callback, rank)] if callback else [])
    assert result.agent.learner.compiled is None, "compiled code does not average over workers"
    told = {name: getattr(result, name) for name in ("steps", "episodes", "stopped_by", "run_dir", "checkpoint")}
    return {**told, "pid": os.getpid()}


def done(answers: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    assert {kind for kind, _ in answers} == {"done"}, answers
    return [found for _, found in answers]


def test_a_run_is_written_once_and_goes_on_with_other_numbers_of_workers(tmp_path: Path) -> None:
    path = tmp_path / "run"
    settings = {"log_interval": 100, "checkpoint_interval": 200, "eval_interval": 200, "eval_episodes": 2}
    one, other = done(run_workers(2, partial(run_of, config_of(path, **settings), None)))
    del one["pid"], other["pid"]
    assert one == other and one["stopped_by"] == "total_steps" and one["checkpoint"].exists()
    names = {entry.name for entry in path.iterdir()}
    tables = {"progress.csv", "episodes.csv", "evaluation.csv"}
    assert names == {".lock", "config.json", *tables, "learning_curve.png", "checkpoints"}
    steps = [int(line.split(",")[0]) for line in (path / "progress.csv").read_text().splitlines()[1:]]
    assert steps == sorted(set(steps)) and steps[-1] == one["steps"]
    found = done(run_workers(3, partial(run_of, resume_config(path, total_steps=700, quiet=True), None)))
    assert found[0]["steps"] >= 700 and found[0]["episodes"] >= one["episodes"]
    result = train(resume_config(path, total_steps=900, num_envs=4, quiet=True))
    assert result.steps >= 900
    record = json.loads((path / "config.json").read_text())
    assert [entry["step"] for entry in record["resumed"]] == [one["steps"], found[0]["steps"]]
    steps = [int(line.split(",")[0]) for line in (path / "progress.csv").read_text().splitlines()[1:]]
    assert steps == sorted(set(steps)) and steps[-1] == result.steps


def on_the_second(what: Any, rank: int, agent: ActorCritic, info: Any) -> Any:
    return what(info) if rank == 1 and info.updates == 4 else None


def kill_with(number: int, info: Any) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("settings", "callback", "stopped_by"),
    [
        ({}, partial(on_the_second, partial(kill_with, signal.SIGTERM)), "SIGTERM"),
        ({}, partial(on_the_second, lambda info: False), "callback"),
        ({"stop_at_return": 10.0}, None, "return"),
    ],
    ids=["a signal", "a callback", "the mean return of all"],
)
def test_what_ends_one_worker_ends_them_all_with_a_checkpoint(
    tmp_path: Path, settings: dict[str, Any], callback: Any, stopped_by: str
) -> None:
    config = config_of(tmp_path / "run", total_steps=10**5, **settings)
    found = done(run_workers(2, partial(run_of, config, callback)))
    assert [answer["stopped_by"] for answer in found] == [stopped_by, stopped_by]
    assert found[0]["steps"] == found[1]["steps"] and found[0]["checkpoint"].exists()
    assert found[0]["steps"] < 150 if callback else 100 <= found[0]["episodes"] == found[1]["episodes"] < 130


def poison(rank: int, agent: ActorCritic, info: Any) -> None:
    if rank == 1 and info.updates == 4:
        agent.learner.flat["policy"].data.fill_(float("nan"))


def test_a_nan_in_one_worker_ends_them_all_alike(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", total_steps=10**6, checkpoint_interval=30)
    answers = run_workers(2, partial(run_of, config, poison))
    lines = {str(error) for kind, error in answers if kind == "raised" and isinstance(error, TrainingDiverged)}
    assert len(lines) == 1 and len(answers) == 2
    (line,) = lines
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    assert line.endswith(f"the last good checkpoint is {newest}") and "\n" not in line


def fail(info: Any) -> None:
    raise ValueError("the simulator is gone\nfor good")


def stand_still(info: Any) -> None:
    time.sleep(6.0)


@pytest.mark.parametrize(
    ("what", "second", "reason"),
    [
        (partial(kill_with, signal.SIGKILL), "died", "a worker was killed or can no longer be reached"),
        (fail, "raised", "worker 1 of 2 stopped (ValueError: the simulator is gone)"),
        (stand_still, "raised", "a worker has not answered for 2 s"),
    ],
)
def test_a_lost_worker_ends_the_run_in_one_line_and_the_rest_goes_on(
    tmp_path: Path, what: Any, second: str, reason: str
) -> None:
    path = tmp_path / "run"
    config = config_of(path, total_steps=10**6, checkpoint_interval=30, worker_timeout=2.0)
    answers = run_workers(2, partial(run_of, config, partial(on_the_second, what)))
    kind, error = answers[0]
    newest = sorted((path / "checkpoints").iterdir())[-1]
    assert kind == "raised" and isinstance(error, WorkerLost)
    assert str(error) == f"{reason}; the last checkpoint is {newest}; go on with --resume {path}"
    assert answers[1][0] == second
    _, saved = load_state(newest)
    result = train(resume_config(path, total_steps=saved["agent"]["steps"] + 40))
    assert result.stopped_by == "total_steps"


def test_different_settings_are_refused(tmp_path: Path) -> None:
    def work(rank: int) -> dict[str, Any]:
        return run_of(config_of(tmp_path / "run", seed=rank), None, rank)

    answers = run_workers(2, work)
    assert all(isinstance(error, SettingsError) and "different settings" in str(error) for _, error in answers)
    assert sorted(error.already_printed for _, error in answers) == [False, True]
    assert not (tmp_path / "run").exists()


def test_a_command_started_anew_goes_on_with_its_run(tmp_path: Path) -> None:
    path = tmp_path / "run"
    anew = {"TORCHELASTIC_MAX_RESTARTS": "1"}
    first = done(run_workers(2, partial(run_of, config_of(path), None)))
    config = config_of(path, total_steps=600)
    found = done(run_workers(2, partial(run_of, config, None), environ=anew))
    assert found[0]["steps"] >= 600
    record = json.loads((path / "config.json").read_text())
    assert [entry["step"] for entry in record["resumed"]] == [first[0]["steps"]]
    nowhere = with_settings(config, {"run_dir": None})
    answers = run_workers(2, partial(run_of, nowhere, None), environ=anew)
    assert all(isinstance(error, SettingsError) and "--run-dir" in str(error) for _, error in answers)


CRASHING = """
import os, signal, sys
from relax_rl import agents, cli

learn = agents.ActorCritic.learn

def crashing(agent, envs, total_steps, callbacks=(), **rest):
    def crash(agent, info):
        if info.updates == 5 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
    return learn(agent, envs, total_steps, [*callbacks, crash], **rest)

agents.ActorCritic.learn = crashing
sys.exit(cli.main())
"""


def test_torchrun_starts_a_run_anew_after_a_crash(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(CRASHING)
    options = "--num-envs 2 --hidden 8 --surrogate-hidden 8 --total-steps 200 --checkpoint-interval 20 --no-tensorboard"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    found = subprocess.run(
        [*command, str(script), *options.split(), "--run-dir", "run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    errors = [line for line in found.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "the last checkpoint is run/checkpoints/step_" in errors[0]
    assert found.stdout.count("all steps taken") == 1 and "resumed at step" in found.stdout
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert len(record["resumed"]) == 1 and record["resumed"][0]["step"] >= 60
