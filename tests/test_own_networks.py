"""Networks of the user's own: what acts is what learns, what is frozen stays so, and what cannot learn is refused."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from relax_rl.agents import A2C, RELAX, ActorCritic, NetworkParts
from relax_rl.agents.acting import acts_on_host
from relax_rl.agents.compiled import CompiledGradients
from relax_rl.compute.serialization import save_state
from relax_rl.critics import ActionSurrogate
from relax_rl.errors import CheckpointError, SettingsError
from relax_rl.networks.cnns import NatureCNN
from relax_rl.networks.memory import MemoryTorso
from relax_rl.networks.spaces import ObservationEncoder
from relax_rl.networks.torsos import MLP, CombinedTorso, Selection
from tests.steps import DISCRETE, OBS, assert_alike, rollout_for, shake, target_envs, weights

PIXELS = spaces.Box(0, 255, (40, 40, 1), np.uint8)


class Scaled(MLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(0.01 * x)


class Selected(Selection):
    def select(self, obs: Tensor) -> Tensor:
        return 0.01 * super().select(obs)


class Remembering(MemoryTorso):
    def encode(self, obs: Tensor) -> Tensor:
        return super().encode(0.01 * obs)


class Dimmed(NatureCNN):
    def forward(self, obs: Tensor) -> Tensor:
        return 0.01 * super().forward(obs)


def spectral() -> MLP:
    torso = MLP(3, (4,), "tanh")
    parametrizations.spectral_norm(torso.layers[0])
    return torso


def hooked() -> MLP:
    torso = MLP(3, (4,), "tanh")
    torso.register_forward_hook(lambda module, given, said: 0.01 * said)
    return torso


def smooth() -> MLP:
    torso = MLP(3, (4,), "tanh")
    torso.activation = nn.GELU()
    return torso


def made(torso: Callable[[], Any], space: spaces.Space[Any] = OBS, kind: type[ActorCritic] = A2C) -> ActorCritic:
    return kind(space, DISCRETE, networks=lambda *_: NetworkParts(torso(), torso()), seed=0)


@pytest.mark.parametrize(
    "torso",
    [lambda: Scaled(3, (4,), "tanh"), spectral, hooked, smooth, lambda: Selected(MLP(2, (4,), "tanh"), [(0, 2)])],
    ids=["subclass", "parametrized", "hooked", "another activation", "selection"],
)
def test_what_acts_is_what_learns(torso: Callable[[], Any]) -> None:
    agent, obs = made(torso), torch.randn(5, 3)
    agent.policy.eval()
    assert agent.networks.on_host("policy") is None and agent.networks.on_host("value") is None
    with torch.no_grad():
        torch.testing.assert_close(agent.networks.without_graph(obs, 5).params, agent.policy(obs))
    assert made(lambda: MLP(3, (4,), "tanh")).networks.on_host("policy") is not None


@pytest.mark.parametrize(
    "torso",
    [
        lambda: Remembering(MLP(3, (4,), "tanh"), "gru", 4),
        lambda: MemoryTorso(Scaled(3, (4,), "tanh"), "gru", 4),
        lambda: MemoryTorso(spectral(), "lstm", 4),
    ],
)
def test_a_memory_acts_as_it_learns(torso: Callable[[], Any]) -> None:
    assert not acts_on_host(torso(), 2)
    assert acts_on_host(MemoryTorso(MLP(3, (4,), "tanh"), "gru", 4), 2)


def test_an_image_network_acts_as_it_learns() -> None:
    def spectral_cnn() -> NatureCNN:
        torso = NatureCNN((1, 40, 40), 8)
        parametrizations.spectral_norm(torso.linear[0])
        return torso

    for torso in (lambda: Dimmed((1, 40, 40), 8), spectral_cnn):
        assert not made(torso, PIXELS).networks.is_image_network
    assert made(lambda: NatureCNN((1, 40, 40), 8), PIXELS).networks.is_image_network


class Frozen(nn.Module):
    """A part that stays as it is, and one that learns."""

    num_features = 4

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.layer = encoder, nn.Linear(4, 4)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.layer(torch.tanh(self.encoder(obs))))


def encoder_of(observations: Any) -> nn.Module:
    return nn.Linear(observations.shape[0], 4).requires_grad_(False)


def frozen(observations: Any, *_: Any) -> NetworkParts:
    return NetworkParts(Frozen(encoder_of(observations)), Frozen(encoder_of(observations)))


def frozen_in_both(observations: Any, *_: Any) -> NetworkParts:
    encoder = encoder_of(observations)
    return NetworkParts(Frozen(encoder), Frozen(encoder))


@pytest.mark.parametrize("factory", [frozen, frozen_in_both])
@pytest.mark.parametrize("compile", ["off", "on"])
def test_what_is_frozen_stays_so(factory: Any, compile: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relax_rl.compute.compilation._compile", lambda graph, inputs, key: graph)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    with target_envs(DISCRETE, n=4) as envs:
        agent = RELAX(envs.single_observation_space, DISCRETE, networks=factory, seed=0, num_steps=5, compile=compile)
        shake(agent)
        before = weights(agent)
        agent.learn(envs, 60)
        assert (agent.learner.compiled is not None) == (compile == "on")
    after = weights(agent)
    stays = {name for name in after if "encoder" in name}
    assert len(stays) == 4
    for name, x in after.items():
        assert torch.equal(before[name], x) == (name in stays), name
    rollout = rollout_for(agent)
    agent.save(tmp_path / "agent")
    again = ActorCritic.load(tmp_path / "agent", networks=factory)
    assert not any(x.requires_grad for name, x in again.policy.named_parameters() if "encoder" in name)
    agent.update(rollout), again.update(rollout)
    assert_alike(again, agent)


def test_compiled_code_takes_frozen_numbers_as_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relax_rl.compute.compilation._compile", lambda graph, inputs, key: deepcopy(graph))
    agents = [RELAX(OBS, DISCRETE, networks=frozen, seed=0) for _ in range(2)]
    agents[0].learner.compiled = CompiledGradients(agents[0].networks, agents[0].learner.flat)
    agents[0].update(rollout_for(agents[0]))
    with torch.no_grad():
        agents[1].policy.torso.encoder.weight.mul_(3.0)
    rollout = rollout_for(agents[1])
    agents[0].load_state_dict(*agents[1].state_dict())
    for agent in agents:
        agent.update(rollout)
    assert_alike(*agents)


BESIDE = spaces.Dict({"cam": spaces.Box(0, 255, (40, 40, 3), np.uint8), "v": spaces.Box(-1, 1, (2,))})


def leaf_by_leaf(surrogate: bool, *given: Any) -> NetworkParts:
    observations, actions, _ = given
    torsos = [CombinedTorso(observations.leaves, (6,), "tanh", 8) for _ in range(2)]
    size = observations.shape[0], sum(actions.sizes)
    return NetworkParts(*torsos, ActionSurrogate(*size, (4,)) if surrogate else None)


def test_the_surrogate_is_told_features_where_critics_see_images(tmp_path: Any) -> None:
    agent = RELAX(BESIDE, DISCRETE, networks=partial(leaf_by_leaf, False), surrogate_hidden=(4,))
    obs = torch.rand(3, *agent.observations.shape)
    assert agent.networks(obs).features.shape == (3, 6)
    whole = RELAX(BESIDE, DISCRETE, networks=partial(leaf_by_leaf, True))
    assert whole.networks(obs).features.shape == (3, 40 * 40 * 3 + 2)
    # What an earlier version wrote: the surrogate of all numbers, under the name of a factory without one of its own.
    tensors, state = whole.state_dict()
    state = {**state, "networks": agent.networks_from, "config": agent.state_dict()[1]["config"]}
    save_state(tmp_path / "agent", tensors, {"agent": state})
    with pytest.raises(CheckpointError, match=r"size mismatch for layers.*surrogate=ActionSurrogate") as caught:
        ActorCritic.load(tmp_path / "agent", networks=partial(leaf_by_leaf, False))
    assert "\n" not in str(caught.value)


class Wide(nn.Linear):
    num_features: Any = 4


class Narrow(Wide):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :2]


def with_width(width: Any) -> Any:
    torso = Wide(3, 4)
    torso.num_features = width
    return lambda *_: NetworkParts(torso, torso)


def sharing(*_: Any) -> NetworkParts:
    encoder = nn.Linear(3, 4)
    return NetworkParts(Frozen(encoder), Frozen(encoder))


def sharing_with_surrogate(*_: Any) -> NetworkParts:
    torso = Wide(3, 4)
    return NetworkParts(torso, torso, nn.ModuleList([torso]))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (with_width(None), r"policy_torso\.num_features is None"),
        (with_width(2.5), r"num_features is 2\.5"),
        (lambda *_: NetworkParts(Wide(3, 4), nn.Linear(3, 4)), r"value_torso\.num_features is None"),
        (sharing, "policy_torso and value_torso have parameters in common; expected a torso each, the same module"),
        (sharing_with_surrogate, "policy_torso and surrogate have parameters in common"),
        (
            lambda *_: NetworkParts(Wide(5, 4), Wide(3, 4)),
            "policy_torso cannot read observations of 3 numbers: mat1 and mat2",
        ),
        (
            lambda *_: NetworkParts(Wide(3, 4), Narrow(3, 4)),
            r"value_torso makes \(2, 2\) of two observations, expected \(2, 4\)",
        ),
        (nn.Linear(3, 4), "networks is a Linear, expected a function that makes NetworkParts"),
        (lambda *_: NetworkParts(Wide(3, 4), Wide(3, 4), nn.Identity()), "the surrogate has no parameter that learns"),
    ],
)
def test_parts_that_cannot_learn_are_refused(factory: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        RELAX(OBS, DISCRETE, networks=factory)


def test_encoders_of_no_leaf_and_choices_without_numbers_are_refused() -> None:
    space = spaces.Dict({"cell": spaces.Discrete(4), "v": spaces.Box(-1, 1, (2,))})
    leaves = ObservationEncoder(space, embed=True).leaves
    with pytest.raises(SettingsError, match="'cel', which is no leaf; did you mean cell"):
        CombinedTorso(leaves, (4,), "tanh", 8, embed=2, encoders={"cel": Wide(1, 4)})
    with pytest.raises(SettingsError, match="embed is 0, and cell has choices"):
        CombinedTorso(leaves, (4,), "tanh", 8)
    assert CombinedTorso(leaves, (4,), "tanh", 8, encoders={"cell": Wide(1, 4)}).num_features == 4
