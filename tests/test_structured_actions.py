"""Dict and Tuple action spaces: one row of an outcome, actions nested like the space, agents that learn in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from torch.fx.experimental.proxy_tensor import make_fx

from benchmarks.docks import DOCKS
from relax_rl import A2C, LAX, RELAX, ActorCritic, Marginal, Reinforce, make_envs
from relax_rl.agents import resolve_estimator
from relax_rl.backends.batches import action_checker
from relax_rl.cli import main
from relax_rl.distributions import Beta, DiagGaussian, MultiCategorical, Product, TanhGaussian
from relax_rl.envs import VectorEnvs
from relax_rl.errors import SettingsError, TrainingDiverged
from relax_rl.networks.actions import action_encoder, action_rows
from relax_rl.networks.policies import Policy
from relax_rl.networks.torsos import MLP
from relax_rl.runs.evaluation import evaluate
from tests.old_artefacts import blank_figures

OBS = spaces.Box(-1, 1, (2,), np.float32)
NESTED = spaces.Dict(
    {
        "lamp": spaces.MultiBinary(2),
        "gear": spaces.Discrete(3, start=5),
        "arm": spaces.Tuple((spaces.Box(-2, 2, (2, 1), np.float32), spaces.MultiDiscrete([2, 4], start=[1, 0]))),
        "speed": spaces.Box(0, 1, (1,), np.float64),
    }
)


class Anything(gym.Env[Any, Any]):
    """Takes actions of a space, and ends after three steps; pays nothing."""

    observation_space = OBS

    def __init__(self, space: spaces.Space[Any] = NESTED) -> None:
        self.action_space = space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is outside {self.action_space}"
        self.steps += 1
        return np.full(2, self.steps / 3, np.float32), float(self.steps), self.steps == 3, False, {}


def equal(left: Any, right: Any) -> bool:
    """Whether two nested actions are the same."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(np.array_equal(left, right) and np.asarray(left).dtype == np.asarray(right).dtype)


@pytest.mark.parametrize(
    ("space", "kind", "sizes"),
    [
        # keys of a dictionary are sorted: the arm and the speed give numbers, the arm, the gear and the lamps choices
        (NESTED, "hybrid", (3, 2, 4, 3, 2, 2)),
        (spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (2,)))), "hybrid", (2, 3)),
        (spaces.Tuple((spaces.MultiBinary(2), spaces.Box(-1, 1, (2,)))), "hybrid", (2, 2, 2)),
        (spaces.Tuple((spaces.Discrete(3), spaces.MultiDiscrete([2, 4]))), "multi_categorical", (3, 2, 4)),
        (spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(2))), "multi_categorical", (3, 2, 2)),
        (spaces.Dict({"a": spaces.MultiBinary(2), "b": spaces.MultiBinary([2, 2])}), "bernoulli", (6,)),
        (
            spaces.Dict({"a": spaces.Box(-1, 1, ()), "b": spaces.Dict({"c": spaces.Box(0, 9, (2, 2))})}),
            "gaussian",
            (5,),
        ),
    ],
)
def test_parts_of_one_kind_are_one_distribution(space: Any, kind: str, sizes: tuple[int, ...]) -> None:
    encoder = action_encoder(space)
    assert (encoder.kind, encoder.sizes) == (kind, sizes)
    torch.manual_seed(0)
    policy = Policy(MLP(2, (8,), "tanh"), encoder)
    dist = policy.distribution(policy(torch.randn(30, 2)))
    outcome = dist.threshold(dist.relax(dist.sample_noise(torch.Generator().manual_seed(0))))
    for single in action_rows(encoder.to_env(outcome.detach().numpy()), 30):
        assert space.contains(single)


def test_every_entry_of_an_outcome_goes_to_its_place() -> None:
    outcome = np.array([[0.5, -9.0, 0.25, 1, 3, 2, 0, 1], [-0.5, 1.0, 7.0, 0, 0, 0, 1, 1]], np.float32)
    expected = {
        "arm": (np.array([[[0.5], [-2]], [[-0.5], [1]]], np.float32), np.array([[2, 3], [1, 0]])),
        "gear": np.array([7, 5]),
        "lamp": np.array([[0, 1], [1, 1]], np.int8),
        "speed": np.array([[0.25], [1.0]]),
    }
    encoder = action_encoder(NESTED)
    assert equal(encoder.to_env(outcome), expected)
    squashed = encoder.to_env(outcome * [0.5, 0.1, 0.1, 1, 1, 1, 1, 1], squashed=True)
    np.testing.assert_allclose(squashed["arm"][0].ravel(), [0.5, -1.8, -0.5, 0.2], rtol=1e-6)
    with pytest.raises(TrainingDiverged):
        encoder.to_env(np.full((1, 8), np.nan, np.float32))
    with pytest.raises(SettingsError, match=r"shape \(2, 7\), expected \('N', 8\)"):
        encoder.to_env(outcome[:, 1:])
    with pytest.raises(SettingsError, match="outside the choices"):
        encoder.to_env(outcome + np.eye(1, 8, 5, dtype=np.float32))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Text(3)}), "Text.* is not supported; expected Discrete"),
        (spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 5, (2,), np.int64))), "is not supported"),
        (spaces.Dict({}), "offers no action"),
        (spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (0,)))), "offers no action"),
    ],
)
def test_other_parts_are_refused_in_one_line(space: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        action_encoder(space)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({}, DiagGaussian),
        ({"squash": True}, TanhGaussian),
        ({"beta": True}, Beta),
        ({"state_dependent_std": True}, DiagGaussian),
    ],
)
def test_a_hybrid_policy_is_a_product(settings: dict[str, Any], number: Any) -> None:
    encoder = action_encoder(NESTED)
    torch.manual_seed(0)
    policy = Policy(MLP(2, (8,), "tanh"), encoder, log_std_init=-0.5, ordinal_std_init=0.4, **settings)
    with torch.no_grad():
        policy.head.weight.mul_(0.0)
    params = policy(torch.randn(7, 2))
    assert params.shape == (7, 2 * 3 + 13) == (7, policy.num_params)
    dist = policy.distribution(params)
    assert isinstance(dist, Product)
    numbers, choices = dist.factors
    assert type(numbers) is number and type(choices) is MultiCategorical and choices.nvec == (2, 4, 3, 2, 2)
    if number is not Beta:
        assert torch.equal(numbers.mean, torch.zeros(7, 3)) and torch.equal(numbers.log_std, torch.full((7, 3), -0.5))
    probs = choices.log_probs[0].exp()
    assert probs[1, 1] > 10 * probs[1, 0] and (probs[2, :3] - 1 / 3).abs().max() < 1e-6  # only MultiDiscrete is ordered


def test_which_estimators_fit() -> None:
    discrete, bits = spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(2))), spaces.Tuple((spaces.MultiBinary(2),))
    numbers = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Box(-1, 1, (1,))})
    found = [resolve_estimator("auto", space) for space in (NESTED, discrete, bits, numbers)]
    assert found == ["relax", "relax", "relax", "lax"]
    assert [resolve_estimator(name, NESTED) for name in ("relax", "a2c", "reinforce")] == ["relax", "a2c", "reinforce"]
    assert resolve_estimator("marginal", discrete) == resolve_estimator("marginal", bits) == "marginal"
    for name in ("lax", "marginal"):
        with pytest.raises(SettingsError, match=f"'{name}' does not fit hybrid actions; use 'relax'"):
            resolve_estimator(name, NESTED)
    with pytest.raises(SettingsError, match="'relax' does not fit continuous actions; use 'lax'"):
        resolve_estimator("relax", numbers)
    with pytest.raises(SettingsError, match="squash needs a Box action space"):
        A2C(OBS, discrete, squash=True)
    with pytest.raises(SettingsError, match="'beta' needs finite action bounds"):
        A2C(OBS, spaces.Tuple((spaces.Discrete(3), spaces.Box(-np.inf, 1, (1,)))), action_distribution="beta")


def test_actions_of_the_wrong_structure_are_refused() -> None:
    check = action_checker(NESTED, 2)
    right = action_encoder(NESTED).to_env(np.zeros((2, 8), np.float32))
    assert equal(check(right), right)
    wrong = (
        (right["arm"], r"actions are tuple, expected a dictionary of arrays by arm, gear, lamp, speed"),
        ({**right, "more": 1}, "expected a dictionary"),
        ({**right, "arm": right["arm"][:1]}, "actions are 1 parts, expected a tuple of 2 arrays"),
        ({**right, "arm": 3}, "actions are int, expected a tuple"),
        ({**right, "gear": np.array([5, 8])}, "outside Discrete"),
        ({**right, "speed": np.array([[0.5], [np.nan]])}, "outside Box"),
        ({**right, "lamp": np.zeros((2, 3), np.int8)}, "of shape"),
    )
    for action, message in wrong:
        with pytest.raises(SettingsError, match=message):
            check(action)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("kind", [RELAX, A2C, Reinforce])
def test_agents_learn_act_and_are_saved(kind: type[ActorCritic], mode: AutoresetMode, tmp_path: Path) -> None:
    with VectorEnvs(SyncVectorEnv([Anything] * 2, autoreset_mode=mode)) as envs:
        agent = kind(envs.single_observation_space, envs.single_action_space, hidden=(8,), num_steps=6)
        before = [x.clone() for x in agent.policy.parameters()]
        agent.learn(envs, 30)
        assert all(not torch.equal(x, y) for x, y in zip(agent.policy.parameters(), before, strict=True))
        agent.save(tmp_path / "agent.safetensors")
        loaded = ActorCritic.load(tmp_path / "agent.safetensors")
        assert loaded.action_space == NESTED and type(loaded) is kind
        single, batch = np.array([0.3, -0.2], np.float32), envs.obs
        for deterministic in (True, False):
            action, _ = agent.predict(single, deterministic=deterministic)
            assert NESTED.contains(action) and list(action) == list(NESTED.spaces)
            assert equal(action, loaded.predict(single, deterministic=deterministic)[0])
            for row in action_rows(agent.predict(batch, deterministic=deterministic)[0], 2):
                assert NESTED.contains(row)
        scores = evaluate(agent, envs, episodes=3, seed=0, deterministic=True)
        assert scores is not None and scores.returns == (6.0, 6.0, 6.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"squash": True},
        {"action_distribution": "beta"},
        {"state_dependent_std": True},
        {"epochs": 2, "clip_range": 0.2, "minibatch_size": 5, "surrogate_scale": "fitted", "entropy_coef": 0.01},
    ],
)
def test_relax_learns_with_every_kind_of_number(settings: dict[str, Any]) -> None:
    with VectorEnvs(SyncVectorEnv([Anything] * 2)) as envs:
        agent = RELAX(envs.single_observation_space, envs.single_action_space, hidden=(8,), num_steps=6, **settings)
        assert agent.surrogate is not None
        before = agent.surrogate.head.weight.clone()  # type: ignore[union-attr]
        agent.learn(envs, 40)
        assert not torch.equal(agent.surrogate.head.weight, before)  # type: ignore[union-attr, arg-type]
        assert NESTED.contains(agent.predict(np.zeros(2, np.float32))[0])


def test_spaces_of_one_kind_take_its_agents() -> None:
    numbers = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Box(0, 9, (1,))})
    choices = spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(2)))
    for kind, space, family in (
        (LAX, numbers, DiagGaussian),
        (Marginal, choices, MultiCategorical),
        (RELAX, choices, MultiCategorical),
    ):
        with VectorEnvs(SyncVectorEnv([lambda s=space: Anything(s)] * 2)) as envs:  # type: ignore[misc]
            agent = kind(OBS, space, hidden=(8,), num_steps=6).learn(envs, 30)
            assert type(agent.policy.distribution(torch.zeros(1, agent.policy.num_params))) is family
            assert space.contains(agent.predict(np.zeros(2, np.float32))[0])
    assert action_encoder(spaces.Tuple((spaces.MultiBinary(3),))).kind == "bernoulli"


def test_workers_take_nested_actions() -> None:
    with VectorEnvs(AsyncVectorEnv([Anything] * 2)) as envs:
        actions = action_encoder(NESTED).to_env(np.zeros((2, 8), np.float32))
        step = envs.step(actions)
        assert equal(step.action, actions) and step.reward.tolist() == [1.0, 1.0]


def test_a_run_is_trained_played_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blank_figures(monkeypatch)
    few = ["--total-steps", "80", "--num-envs", "2", "--num-steps", "10", "--hidden", "4", "--surrogate-hidden", "4"]
    assert main(["train", "--env", DOCKS, *few, "--no-tensorboard", "--quiet", "--run-dir", "run"]) == 0
    assert main(["--resume", "run", "--env", DOCKS, "--total-steps", "120", "--quiet"]) == 0
    assert main(["evaluate", "run", "--env", DOCKS, "--episodes", "1"]) == 0
    sizes = ["--batches", "2", "--fit-batches", "1", "--states", "2", "--actions", "3"]
    assert main(["variance", "run", "--env", DOCKS, *sizes]) == 0


def test_a_small_task_with_hybrid_actions_is_solved() -> None:
    settings: dict[str, Any] = {"num_steps": 16, "gamma": 0.95, "gae_lambda": 0.9, "hidden": (32, 32)}
    rates = {"policy_lr": 1e-2, "value_lr": 1e-2, "surrogate_lr": 3e-3}
    with make_envs(DOCKS, num_envs=16, seed=0) as envs:
        agent = RELAX(envs.single_observation_space, envs.single_action_space, seed=0, **settings, **rates)
        returns: list[float] = []

        def solved(_: ActorCritic, info: Any) -> bool:
            returns.extend(episode.return_ for episode in info.episodes)
            return len(returns) < 200 or float(np.mean(returns[-200:])) < 0.6

        agent.learn(envs, 30_000, solved)
    assert np.mean(returns[-200:]) >= 0.6 > 0.2 > np.mean(returns[:200])


def test_a_hybrid_policy_of_beta_variables_can_be_traced() -> None:
    """What compiled code is made of gives the same numbers at other parameters."""
    agent = RELAX(OBS, NESTED, hidden=(8,), action_distribution="beta")
    noise = agent.sample_noise(5)

    def sampled(params: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        dist: Any = agent.policy.distribution(params)
        z = dist.relax(noise)
        return torch.cat([z, dist.score(dist.threshold(z)), dist.pull_back(torch.ones_like(z), z)], -1)

    params = torch.randn(5, agent.policy.num_params, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(make_fx(sampled)(params, noise)(params + 1, noise), sampled(params + 1, noise))
