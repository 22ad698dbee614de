"""The value function's widths and normalisation apart from the policy's, and torsos that are shared or not as asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from relax_rl.agents import A2C, LAX, RELAX, ActorCritic, NetworkParts
from relax_rl.errors import SettingsError
from relax_rl.networks.torsos import MLP, ResidualMLP
from relax_rl.settings.config import AgentConfig
from tests.steps import DISCRETE, OBS, assert_alike, assert_same, rollout_for, shake, trained, weights

GRID = spaces.Box(0, 255, (7, 7, 3), np.uint8)
SMALL: dict[str, Any] = {"hidden": (8,), "surrogate_hidden": (8,), "cnn_features": 8}


def agent_for(space: spaces.Space[Any] = OBS, kind: type[ActorCritic] = RELAX, **settings: Any) -> ActorCritic:
    return kind(space, DISCRETE, seed=0, **{**SMALL, **settings})


def widths(torso: Any) -> list[int]:
    return [layer.out_features for layer in torso.layers]


def test_the_critic_has_widths_and_normalisation_of_its_own() -> None:
    agent = agent_for(critic_hidden=(12, 5), critic_layer_norm="on")
    assert widths(agent.policy.torso) == [8] and type(agent.policy.torso) is MLP
    assert widths(agent.value.torso) == [12, 5] and isinstance(agent.value.torso, ResidualMLP)
    assert [norm.normalized_shape for norm in agent.value.torso.norms] == [(12,), (5,)]
    plain = agent_for(layer_norm=True, critic_layer_norm="off")
    assert type(plain.value.torso) is MLP and isinstance(plain.policy.torso, ResidualMLP)
    alike = agent_for(layer_norm=True)
    assert str(alike.value.torso) == str(alike.policy.torso)


@pytest.mark.parametrize("actions", [DISCRETE, spaces.Box(-1, 1, (2,))])
@pytest.mark.parametrize("loss", ["variance", "critic", "hl_gauss"])
def test_surrogates_are_normalised_before_their_activations(actions: Any, loss: str) -> None:
    settings: dict[str, Any] = {"surrogate_hidden": (8, 6), "surrogate_layer_norm": True}
    settings |= {"surrogate_loss": "critic"} if loss != "variance" else {}
    settings |= {"critic_loss": "hl_gauss"} if loss == "hl_gauss" else {}
    agent = (RELAX if actions is DISCRETE else LAX)(OBS, actions, seed=0, **settings)
    assert [norm.normalized_shape for norm in agent.surrogate.layers.norms] == [(8,), (6,)]
    shake(agent)
    before = {name: value.detach().clone() for name, value in agent.surrogate.layers.norms.named_parameters()}
    agent.update(rollout_for(agent))
    assert len(before) == 4
    assert not any(torch.equal(value, before[name]) for name, value in agent.surrogate.layers.norms.named_parameters())


@pytest.mark.parametrize(
    "settings", [{"critic_hidden": (8,)}, {"critic_layer_norm": "off"}, {"share_torso": "off"}, {"share_torso": "auto"}]
)
def test_what_is_said_twice_changes_nothing(settings: dict[str, Any]) -> None:
    assert_same(weights(agent_for(**settings)), weights(agent_for()))


@pytest.mark.parametrize(
    ("settings", "memory"),
    [({"critic_hidden": (12,)}, "none"), ({"share_torso": "on"}, "none"), ({"share_torso": "on"}, "gru")],
)
def test_it_learns_and_is_gone_on_with(settings: dict[str, Any], memory: str, tmp_path: Any) -> None:
    agent = trained("relax", updates=2, memory=memory, **settings)
    rollout = rollout_for(agent)
    agent.save(tmp_path / "agent")
    again = ActorCritic.load(tmp_path / "agent")
    assert again.networks.shared_torso == ("share_torso" in settings)
    assert_same(again.state_dict()[0], agent.state_dict()[0])
    if memory == "none":
        agent.update(rollout), again.update(rollout)
        assert_same(again.state_dict()[0], agent.state_dict()[0])


def test_a_shared_torso_learns_from_both_and_tells_the_surrogate_its_features() -> None:
    agent, obs = agent_for(share_torso="on"), torch.randn(5, 3)
    assert agent.value.torso is agent.policy.torso
    outputs = agent.networks(obs)
    torch.testing.assert_close(outputs.features, agent.policy.torso(obs))
    torch.testing.assert_close(outputs.value, agent.value(obs))
    before = weights(agent)
    shake(agent)
    agent.update(rollout_for(agent))
    assert not torch.equal(before["policy.torso.layers.0.weight"], agent.policy.torso.layers[0].weight)
    alone, idle = (agent_for(kind=A2C, share_torso="on", value_coef=coef, max_grad_norm=1e9) for coef in (0.0, 1.0))
    for each in (alone, idle):
        each.update(rollout_for(each))
    assert not torch.equal(alone.policy.torso.layers[0].weight, idle.policy.torso.layers[0].weight)


def test_images_are_read_apart_where_that_is_asked_for() -> None:
    together, apart = agent_for(GRID), agent_for(GRID, share_torso="off", critic_hidden=(12,))
    assert together.networks.shared_torso and not apart.networks.shared_torso
    assert widths(apart.value.torso.trunk) == [12] and widths(apart.policy.torso.trunk) == [8]
    for agent in (together, apart):
        shake(agent)
        assert "policy/entropy" in agent.update(rollout_for(agent))


@pytest.mark.parametrize(
    "settings",
    [
        {"share_torso": "on"},
        {"critic_hidden": (12, 6), "critic_layer_norm": "on"},
        {"surrogate_layer_norm": True},
        {"surrogate_layer_norm": True, "surrogate_loss": "critic", "critic_loss": "hl_gauss"},
    ],
)
def test_compiled_steps_are_those_of_eager_code(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relax_rl.compute.compilation._compile", lambda graph, inputs, key: graph)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    compiled, eager = (trained("relax", updates=2, compile=how, **settings) for how in ("on", "off"))
    assert compiled.learner.compiled is not None
    assert_alike(compiled, eager)


@pytest.mark.parametrize("settings", [{"critic_hidden": (9,)}, {"critic_layer_norm": "on"}])
def test_one_torso_has_one_shape(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=f"{next(iter(settings))} is .* set share_torso off"):
        AgentConfig(share_torso="on", **settings)
    with pytest.raises(SettingsError, match="set share_torso off"):
        agent_for(GRID, **settings)
    AgentConfig(share_torso="on", critic_hidden=(64, 64), critic_layer_norm="off")


def own(observations: Any, actions: Any, config: Any) -> NetworkParts:
    torso = MLP(observations.shape[0], (7,), "relu")
    return NetworkParts(torso, torso)


def test_networks_of_ones_own_share_as_they_say() -> None:
    agent = agent_for(networks=own, critic_loss="hl_gauss", critic_bins=5, share_torso="on")
    assert agent.networks.shared_torso and agent.value.head.out_features == 5
    shake(agent)
    assert "value/clipped" in agent.update(rollout_for(agent))
    with pytest.raises(SettingsError, match="share_torso is 'off', but networks of your own share"):
        agent_for(networks=own, share_torso="off")


def test_a_torso_is_not_shared_by_what_sees_different_leaves() -> None:
    space = spaces.Dict({"a": OBS, "b": OBS})
    with pytest.raises(SettingsError, match="policy and value function share a torso, and policy_keys"):
        agent_for(space, policy_keys=("a",), share_torso="on")
