"""Policies and critics that see different leaves of an observation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from relax_rl.agents import A2C, LAX, RELAX, ActorCritic, NetworkParts
from relax_rl.agents.acting import SelectingHostNetwork, host_sampler
from relax_rl.critics import ActionSurrogate
from relax_rl.errors import CheckpointError, SettingsError
from relax_rl.networks.torsos import MLP, Selection
from tests.fakes import TargetEnv
from tests.steps import BOX, DISCRETE, assert_same, rollout_for, shake, trained

SPACE = spaces.Dict(
    {
        "arm": spaces.Dict({"angle": spaces.Box(-1, 1, (2,)), "force": spaces.Box(-1, 1, (3,))}),
        "mode": spaces.Discrete(4),
        "wind": spaces.Box(-1, 1, (1,)),
    }
)
SEEN = ("arm.angle", "mode")
"""By the policy; columns 0, 1 and 5 to 8 of ten."""
OF_POLICY, OF_CRITIC = [0, 1, 5, 6, 7, 8], [2, 3, 4, 9]


def made(kind: type[ActorCritic] = RELAX, space: spaces.Space[Any] = SPACE, **settings: Any) -> ActorCritic:
    small = {"hidden": (8,), "surrogate_hidden": (8,), "policy_keys": SEEN, "critic_keys": ("arm.force", "wind")}
    agent = kind(space, BOX if kind is LAX else DISCRETE, **{**small, **settings})
    shake(agent)
    return agent


def moved(obs: torch.Tensor, columns: list[int]) -> torch.Tensor:
    """The same observations with other numbers in some columns."""
    other = obs.clone()
    other[:, columns] = torch.randn(len(obs), len(columns))
    return other


def test_each_network_sees_its_own_leaves_and_no_other() -> None:
    torch.manual_seed(0)
    agent, obs = made(), torch.randn(5, 10)
    networks, before = agent.networks, agent.networks(obs)
    of_policy, of_critic = networks(moved(obs, OF_CRITIC)), networks(moved(obs, OF_POLICY))
    assert torch.equal(of_policy.params, before.params) and not torch.allclose(of_critic.params, before.params)
    assert torch.equal(of_critic.value, before.value) and not torch.allclose(of_policy.value, before.value)
    assert torch.equal(before.features, obs[:, OF_CRITIC])
    assert isinstance(agent.surrogate, ActionSurrogate) and agent.surrogate.layers.layers[0].in_features == 4 + 3
    assert isinstance(agent.policy.torso, Selection) and agent.policy.torso.num_features == 8


def test_critics_that_see_all_are_told_all() -> None:
    agent, obs = made(critic_keys=()), torch.randn(5, 10)
    assert type(agent.value.torso) is MLP and torch.equal(agent.networks(obs).features, obs)
    both = made(critic_keys=SEEN)
    assert not both.networks.shared_torso
    torch.testing.assert_close(both.networks(obs).features, obs[:, OF_POLICY])


@pytest.mark.parametrize("kind", [RELAX, LAX])
@pytest.mark.parametrize("normalize_obs", [False, True])
def test_acting_in_numpy_gives_the_outcomes_of_torch(kind: type[ActorCritic], normalize_obs: bool) -> None:
    agent = made(kind, normalize_obs=normalize_obs)
    agent.update(rollout_for(agent))
    network = agent.networks.on_host("policy")
    assert isinstance(network, SelectingHostNetwork)
    sampler = host_sampler(agent.policy, network, agent.obs_normalizer)
    assert sampler is not None
    for rows in (1, 700):
        obs, noise = torch.randn(rows, 10), agent.sample_noise(rows)
        found = torch.from_numpy(sampler(obs.numpy(), noise.numpy()))
        torch.testing.assert_close(found, agent.sample(obs, noise), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        known, graph = agent.networks.without_graph(obs, 600), agent.networks(obs, 600)
    for name in ("params", "value", "features"):
        torch.testing.assert_close(getattr(known, name), getattr(graph, name), rtol=1e-5, atol=1e-5)


def only(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What the policy sees."""
    return {"arm": {"angle": batch["arm"]["angle"]}, "mode": batch["mode"]}


def batch_of(size: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arm = {name: rng.normal(size=(size, n)).astype(np.float32) for name, n in (("angle", 2), ("force", 3))}
    return {"arm": arm, "mode": rng.integers(0, 4, size), "wind": rng.normal(size=(size, 1)).astype(np.float32)}


@pytest.mark.parametrize("settings", [{}, {"normalize_obs": True, "normalize_keys": ("arm",)}, {"embed": 2}])
def test_an_exported_policy_needs_only_what_it_sees(settings: dict[str, Any], tmp_path: Path) -> None:
    agent = made(LAX, **settings)
    if not settings.get("embed"):
        agent.update(rollout_for(agent))
    agent.save(tmp_path / "policy", optimizer=False)
    exported = ActorCritic.load(tmp_path / "policy", optimizer=False)
    batch = batch_of(6)
    expected = agent.predict(batch, deterministic=True)[0]
    np.testing.assert_allclose(exported.predict(only(batch), deterministic=True)[0], expected, atol=1e-6)
    single = {"arm": {"angle": batch["arm"]["angle"][2]}, "mode": batch["mode"][2]}
    np.testing.assert_allclose(exported.predict(single, deterministic=True)[0], expected[2], atol=1e-6)
    broken = {**batch, "wind": np.full((6, 1), np.nan, np.float32)}
    np.testing.assert_allclose(exported.act(broken, deterministic=True), expected, atol=1e-6)
    for_critic = {"arm": {"force": batch["arm"]["force"]}, "wind": batch["wind"]}
    np.testing.assert_allclose(exported.predict_values(for_critic), agent.predict_values(batch), atol=1e-6)
    with pytest.raises(SettingsError, match=r"no leaf 'mode'"):
        exported.predict({"arm": {"angle": batch["arm"]["angle"]}})
    with pytest.raises(SettingsError, match=r"no leaf 'wind'"):
        exported.predict_values({"arm": batch["arm"]})


def test_parts_of_a_tuple_are_named_by_their_places() -> None:
    space = spaces.Tuple((spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (3,))))
    agent = made(LAX, space, policy_keys=("1",), critic_keys=("0",))
    both = (np.zeros((1, 2), np.float32), np.ones((1, 3), np.float32))
    expected = agent.predict(both, deterministic=True)[0]
    np.testing.assert_array_equal(agent.predict({"1": both[1]}, deterministic=True)[0], expected)
    assert agent.policy_observations.space == spaces.Dict({"1": space[1]})


def test_images_that_the_critic_alone_sees_have_no_part_in_the_policy(tmp_path: Path) -> None:
    space = spaces.Dict({"map": spaces.Box(0, 255, (9, 9, 3), np.uint8), "x": spaces.Box(-1, 1, (2,))})
    agent = made(RELAX, space, policy_keys=("x",), critic_keys=("map",))
    assert [name for name, _ in agent.policy.torso.torso.named_parameters()] == ["layers.0.weight", "layers.0.bias"]
    rollout = rollout_for(agent)
    outputs = agent.networks(rollout.obs.flatten(0, 1))
    assert outputs.features.shape == (28, 8) and not outputs.features.requires_grad
    torch.testing.assert_close(outputs.features, agent.value.torso(rollout.obs.flatten(0, 1)).detach())
    before = {name: x.clone() for name, x in agent.state_dict()[0].items()}
    agent.update(rollout)
    changed = {name.split(".")[0] for name, x in agent.state_dict()[0].items() if not torch.equal(x, before[name])}
    assert {"policy", "value", "surrogate"} <= changed
    agent.save(tmp_path / "agent")
    assert_same(RELAX.load(tmp_path / "agent").state_dict()[0], agent.state_dict()[0])
    assert agent.predict({"x": np.zeros(2, np.float32)})[0].shape == ()


class SecretEnv(TargetEnv):
    """Pays by a secret that is shown beside what is not worth knowing; actions do not matter."""

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        super().__init__(action_space)
        self.observation_space = spaces.Dict({"dull": spaces.Box(0, 1, (2,)), "secret": spaces.Box(0, 1, (2,))})

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        self.shown = {"dull": np.zeros(2, np.float32), "secret": obs}
        return self.shown, info

    def step(self, action: Any) -> Any:
        pays = float(self.shown["secret"][0])
        obs, _, *rest = super().step(action)
        self.shown = {"dull": np.zeros(2, np.float32), "secret": obs}
        return self.shown, pays, *rest


def test_a_critic_that_sees_the_secret_explains_the_returns() -> None:
    explained = {}
    for keys in (("secret",), ("dull",)):
        told: list[Any] = []
        fast = {"gamma": 0.0, "value_lr": 3e-2, "compile": "off"}
        trained("a2c", env=SecretEnv, updates=60, told=told, policy_keys=("dull",), critic_keys=keys, **fast)
        explained[keys] = told[-1]["value/explained_variance"]
    assert explained["secret",] > 0.9 and explained["dull",] < 0.1


def apart(observations: Any, actions: Any, config: Any) -> NetworkParts:
    sizes = (observations.only(keys).shape[0] for keys in (config.policy_keys, config.critic_keys))
    return NetworkParts(*(MLP(size, (7,), "relu") for size in sizes))


def shared(observations: Any, actions: Any, config: Any) -> NetworkParts:
    torso = MLP(6, (7,), "relu")
    return NetworkParts(torso, torso)


def test_networks_of_somebodys_own_see_the_leaves_that_are_named() -> None:
    torch.manual_seed(0)
    agent = made(networks=apart)
    obs = torch.randn(5, 10)
    before = agent.networks(obs)
    assert torch.equal(agent.networks(moved(obs, OF_CRITIC)).params, before.params)
    assert torch.equal(before.features, obs[:, OF_CRITIC])
    assert made(networks=shared, critic_keys=SEEN).networks.shared_torso
    with pytest.raises(SettingsError, match=r"shared share a torso, and policy_keys and critic_keys name different"):
        made(networks=shared)


def test_what_is_seen_belongs_to_the_agent() -> None:
    agent = made(A2C)
    tensors, state = agent.state_dict()
    with pytest.raises(CheckpointError, match="its policy_keys is"):
        made(A2C, policy_keys=("arm.angle", "arm.force")).load_state_dict(tensors, state)
    with pytest.raises(
        SettingsError, match=r"critic_keys names 'rain', expected leaves .*: arm.angle, arm.force, mode"
    ):
        made(A2C, critic_keys=("rain",))
