"""Networks of the user's own: what acts is what learns, what is frozen stays so, and what cannot learn is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from relax_rl.agents import A2C, ActorCritic, NetworkParts
from relax_rl.agents.acting import acts_on_host
from relax_rl.networks.memory import MemoryTorso
from relax_rl.networks.torsos import MLP, NatureCNN, Selection
from tests.steps import DISCRETE, OBS

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
