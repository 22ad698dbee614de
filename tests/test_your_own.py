"""What a user brings: an estimator, networks, a backend and loggers, by object and by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor, nn

from relax_rl import A2C, ActorCritic, TrainConfig, estimators, train
from relax_rl.agents import AGENTS, AgentEstimator, Experience, NetworkParts, register, resolve_estimator
from relax_rl.commands.main import main
from relax_rl.envs import make_envs
from relax_rl.errors import CheckpointError, SettingsError
from relax_rl.runs.training import resume_config
from relax_rl.settings.fields import with_settings

HERE = "tests.test_your_own"


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    """Estimators of these tests are not measured by those of others."""
    before = dict(AGENTS)
    yield
    AGENTS.clear()
    AGENTS.update(before)


def twice(x: Experience, dist: Any, surrogate: nn.Module | None = None) -> Tensor:
    return estimators.reinforce(2.0 * x.advantage, dist, noise=x.noise, sample=x.action).grad


TWICE = AgentEstimator(name="twice", estimate=twice)


class Torso(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = 5
        self.layer, self.norm = nn.Linear(size, 5), nn.LayerNorm(5)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.relu(self.norm(self.layer(obs)))


def apart(observations: Any, actions: Any, config: Any) -> NetworkParts:
    return NetworkParts(Torso(observations.shape[0]), Torso(observations.shape[0]))


class Surrogate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Bilinear(5, 2, 1)

    def forward(self, features: Tensor, relaxed_action: Tensor) -> Tensor:
        value: Tensor = torch.tanh(self.net(features.contiguous(), relaxed_action)).squeeze(-1)
        return value


def with_surrogate(observations: Any, actions: Any, config: Any) -> NetworkParts:
    torso = Torso(observations.shape[0])
    return NetworkParts(torso, torso, Surrogate())


def backend(env: str, *, num_envs: int, **kwargs: Any) -> Any:
    return gym.make_vec(env, num_envs=num_envs, vectorization_mode="sync", **kwargs)


def config(path: Path, **settings: Any) -> TrainConfig:
    plain = {"run_dir": str(path), "total_steps": 300, "num_envs": 4, "tensorboard": False, "quiet": True}
    return with_settings(TrainConfig(), {**plain, "log_interval": 100, **settings})


def test_a_run_of_somebodys_own_goes_on_and_is_loaded(tmp_path: Path) -> None:
    own: dict[str, Any] = {"estimator": TWICE, "networks": apart}
    first = train(config(tmp_path / "run", normalize_obs=True), **own)
    assert isinstance(first.agent, register(TWICE)) and isinstance(first.agent.policy.torso, Torso)
    second = train(resume_config(tmp_path / "run", total_steps=600, quiet=True), **own)
    assert second.steps >= 600 > first.steps
    loaded = ActorCritic.load(second.checkpoint, networks=apart)
    assert loaded.name == "twice" and loaded.steps == second.steps
    with pytest.raises(CheckpointError, match=rf"networks of .* are those of {HERE}:apart; name them again"):
        ActorCritic.load(second.checkpoint)
    with pytest.raises(CheckpointError, match="not those of"):
        ActorCritic.load(second.checkpoint, networks=with_surrogate)
    with pytest.raises(SettingsError, match="networks of this run"):
        train(resume_config(tmp_path / "run", total_steps=900, quiet=True), estimator=TWICE)


def test_the_command_line_takes_names_and_asks_for_them_again(
    tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    names = ["--estimator", f"{HERE}:TWICE", "--networks", f"{HERE}:apart"]
    of_run = ["--backend", f"{HERE}:backend", "--num-envs", "3", "--no-tensorboard"]
    assert main(["--total-steps", "200", "--run-dir", run, *of_run, *names, "--stop-at-step", "100"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"--resume {run} {' '.join(names)} --vectorization {HERE}:backend" in told
    assert f"evaluate {run} {' '.join(names)} go on" in told
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["run"]["estimator"] == f"{HERE}:TWICE" and saved["env"]["vectorization"] == f"{HERE}:backend"
    again = ["--resume", run, "--total-steps", "400", "--quiet"]
    for left_out in ("estimator", "networks", "vectorization"):
        given = {"estimator": f"{HERE}:TWICE", "networks": f"{HERE}:apart", "vectorization": f"{HERE}:backend"}
        del given[left_out]
        told = [part for name, value in given.items() for part in (f"--{name}", value)]
        error = refused(*again, *told)
        assert f"{left_out} of this run is" in error and "name it again" in error
    assert main([*again, *names, "--backend", f"{HERE}:backend"]) == 0
    assert main(["evaluate", run, "--episodes", "1", *names]) == 0
    assert "name them again" in refused("evaluate", run, "--episodes", "1")


def test_whatever_looks_at_an_agent_takes_names(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(tmp_path / "run")
    names = ["--estimator", f"{HERE}:TWICE", "--networks", f"{HERE}:with_surrogate"]
    assert main(["--total-steps", "200", "--run-dir", run, "--no-tensorboard", "--quiet", *names]) == 0
    pushed: list[Any] = []
    monkeypatch.setattr("relax_rl.commands.push.push_to_hub", lambda *_, networks, **__: pushed.append(networks))
    looking = (
        ["export", run, "--format", "torch"],
        ["variance", run, "--batches", "2", "--fit-batches", "2", "--states", "2"],
        ["evaluate", run, "--episodes", "1"],
    )
    for command in looking:
        AGENTS.pop("twice", None)
        error = refused(*command, *names[2:])
        assert error.rstrip().endswith(f"name it again if you trust it: --estimator {HERE}:TWICE")
    for command in (*looking, ["push", run, "me/mine"]):
        AGENTS.pop("twice", None)
        assert main([*command, *names]) == 0
        assert "twice" in AGENTS
    assert pushed == [with_surrogate] and (tmp_path / "run" / "policy.pt2").is_file()
    measured = json.loads((tmp_path / "run" / "variance.json").read_text())["applied"]
    assert {"a2c", "twice", "relax, fitted"} <= set(measured)


HEARD: list[tuple[str, Any]] = []


class Notes:
    def __init__(self, config: TrainConfig) -> None:
        HEARD.append(("begun", config.run.run_dir))

    def log(self, step: int, metrics: Any) -> None:
        HEARD.append(("log", step))

    def close(self) -> None:
        HEARD.append(("closed", None))


def test_loggers_by_name_are_never_taken_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    HEARD.clear()
    run, logger = str(tmp_path / "run"), ["--logger", f"{HERE}:Notes"]
    words = ["--total-steps", "200", "--num-envs", "4", "--log-interval", "100", "--no-tensorboard"]
    assert main([*words, "--run-dir", run, *logger]) == 0
    assert HEARD[0] == ("begun", run) and HEARD[-1] == ("closed", None) and HEARD[-2][1] >= 200
    capsys.readouterr()
    before = len(HEARD)
    assert main(["--resume", run, "--total-steps", "400", "--quiet"]) == 0
    assert len(HEARD) == before
    (warned,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "this run had loggers that hear nothing of what follows" in warned
    assert warned.endswith(f"name them again for that: --logger {HERE}:Notes")
    assert main(["--resume", run, "--total-steps", "600", "--quiet", *logger]) == 0
    assert HEARD[before] == ("begun", run)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["logger"] == [f"{HERE}:Notes"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:x", "cannot be imported"),
        ("./tests/test_your_own.py:TWICE", f"; did you mean {HERE}:TWICE?"),
        (f"{HERE}:nothing", "has no 'nothing'"),
        ("os:getcwd", "cannot be called as it has to be"),
    ],
)
def test_names_that_name_nothing(name: str, message: str, refused: Callable[..., str], tmp_path: Path) -> None:
    for option in ("--estimator", "--networks", "--backend", "--logger"):
        assert message in refused(option, name, "--total-steps", "10", "--run-dir", str(tmp_path / "run"), "--quiet")
    assert not (tmp_path / "run").exists()


def leaves(*_: Any, **__: Any) -> Any:
    sys.exit(0)


def test_code_that_calls_sys_exit_is_no_success(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    called = f"sys.exit(0) was called in {__file__}, line "
    made = {"logger": "SystemExit: 0", "wrapper": "SystemExit: 0"}
    for option in ("estimator", "networks", "backend", *made):
        small = ["--total-steps", "10", "--run-dir", str(tmp_path / option), "--quiet", "--no-tensorboard"]
        assert "'leaving:x' cannot be imported (SystemExit: 0)" in refused(f"--{option}", "leaving:x", *small)
        assert made.get(option, called) in refused(f"--{option}", f"{HERE}:leaves", *small)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (twice, r"is a function, expected AgentEstimator\(name=..., estimate=a function\)"),
        (
            AgentEstimator(name="odd", estimate=twice, action_kinds=("discrete",)),
            "'odd' has 'discrete', expected some of cat",
        ),
    ],
)
def test_what_is_no_estimator_is_told(wrong: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        train(config(tmp_path / "run"), estimator=wrong)
    assert "odd" not in AGENTS and not (tmp_path / "run").exists()


def test_an_id_is_no_config() -> None:
    wrong: Any = "CartPole-v1"
    with pytest.raises(SettingsError, match=r"config is a str, .* preset_config\(ID\)"):
        train(wrong)


def test_a_name_belongs_to_one_estimator() -> None:
    with pytest.raises(SettingsError, match="another estimator of the name 'a2c'"):
        register(AgentEstimator(name="a2c", estimate=twice))
    assert register(A2C.estimator) is A2C
    assert resolve_estimator(f"{HERE}:TWICE", gym.spaces.Discrete(2)) == "twice"


@pytest.mark.parametrize("factory", [apart, with_surrogate])
def test_relax_learns_with_networks_of_any_kind(factory: Any, tmp_path: Path) -> None:
    settings = {"estimator": "relax", "surrogate_hidden": (4,), "value_replay": 1}
    agent = train(config(tmp_path / "run", **settings), networks=factory).agent
    before = {name: x.clone() for name, x in agent.state_dict()[0].items() if name.startswith("surrogate.")}
    assert before and agent.networks.shared_torso == (factory is with_surrogate)
    again = train(resume_config(tmp_path / "run", total_steps=500, quiet=True), networks=factory).agent
    assert any(not torch.equal(x, again.state_dict()[0][name]) for name, x in before.items())


@pytest.mark.parametrize("given", [{"frame_stack": 2}, {"sticky_actions": 0.0}])
def test_what_own_code_for_games_is_not_told_is_refused(given: dict[str, Any]) -> None:
    pytest.importorskip("ale_py")
    with pytest.raises(
        SettingsError, match=f"{next(iter(given))} is given, but your own vector code makes ALE/Pong-v5"
    ):
        make_envs("ALE/Pong-v5", num_envs=2, vectorization=f"{HERE}:backend", **given)
