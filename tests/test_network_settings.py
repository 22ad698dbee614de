"""Agents with the networks that settings name: old checkpoints, compiled code, acting, and surrogates of any curvature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from relax_rl.agents import AGENTS, RELAX, ActorCritic, Experience, NetworkParts
from relax_rl.agents.acting import HostNetwork, host_sampler
from relax_rl.agents.batch import Batch
from relax_rl.agents.compiled import Choice, choose
from relax_rl.agents.gradients import Objective, gradients
from relax_rl.agents.networks import Networks
from relax_rl.critics import ActionSurrogate, MLPSurrogate, surrogate_at
from relax_rl.distributions import Categorical
from relax_rl.errors import SettingsError
from relax_rl.networks.cnns import ImpalaCNN, NatureCNN
from relax_rl.networks.torsos import CombinedTorso, ImageTorso, ResidualMLP
from relax_rl.settings.config import AgentConfig, TrainConfig
from relax_rl.settings.fields import from_json, to_json
from relax_rl.settings.options import parse
from tests.fakes import TargetEnv
from tests.steps import BOX, DISCRETE, OBS, assert_alike, assert_same, rollout_for, shake, target_envs, trained

GRID = spaces.Box(0, 255, (7, 7, 3), np.uint8)
NEW = ("cnn", "layer_norm", "residual", "embed", "policy_keys", "critic_keys")


class GridEnv(TargetEnv):
    """A target environment of small images beside a choice, as MiniGrid's."""

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        super().__init__(action_space)
        self.observation_space = spaces.Dict({"direction": spaces.Discrete(4), "image": GRID})

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        return self._seen(obs), info

    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return self._seen(obs), *rest

    def _seen(self, obs: np.ndarray) -> dict[str, Any]:
        image = np.zeros(GRID.shape, np.uint8)
        image[self.t % 5 : self.t % 5 + 2, 3, 0] = 1 + 8 * obs[0]
        return {"direction": np.int64(self.t % 4), "image": image}


class ChoiceEnv(GridEnv):
    """The same without the image, beside two numbers."""

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        super().__init__(action_space)
        self.observation_space = spaces.Dict({"asked": spaces.Discrete(2), "where": spaces.Box(-1, 1, (2,))})

    def _seen(self, obs: np.ndarray) -> dict[str, Any]:
        return {"asked": np.int64(obs[0]), "where": 2 * obs.astype(np.float32) - 1}


def small(space: spaces.Space[Any] = GRID, kind: type[ActorCritic] = RELAX, **settings: Any) -> ActorCritic:
    return kind(space, DISCRETE, **{"hidden": (8,), "surrogate_hidden": (8,), "cnn_features": 8, **settings})


def test_a_checkpoint_from_before_keeps_its_small_images_flat() -> None:
    state = small(cnn="legacy", seed=3).state_dict()[1]
    assert small().state_dict()[1]["config"]["cnn"] == "auto"
    for name in NEW:
        del state["config"][name]
    old = ActorCritic.from_state(state, source="a file")
    assert (
        old.config.cnn == "legacy" and old.networks.on_host("policy") is not None and old.observations.shape == (147,)
    )
    assert_same(old.state_dict()[0], small(cnn="legacy", seed=3).state_dict()[0])
    settings = to_json(TrainConfig())
    del settings["agent"]["cnn"]
    assert from_json(TrainConfig, settings).agent.cnn == "legacy"
    assert AgentConfig().cnn == parse(TrainConfig, ["--embed", "4"], prog="train").agent.cnn == "auto"


@pytest.mark.parametrize(
    ("settings", "kind"),
    [({}, ImageTorso), ({"cnn": "impala"}, ImpalaCNN), ({"cnn": "none", "layer_norm": True}, ResidualMLP)],
)
def test_an_agent_has_the_network_that_is_named_and_comes_back_with_it(
    settings: dict[str, Any], kind: type[nn.Module], tmp_path: Any
) -> None:
    agent = small(**settings)
    shake(agent)
    agent.update(rollout_for(agent))
    assert isinstance(agent.policy.torso, kind) and agent.networks.shared_torso == (kind is not ResidualMLP)
    rollout = rollout_for(agent)
    agent.save(tmp_path / "agent")
    again = RELAX.load(tmp_path / "agent")
    assert_same(again.state_dict()[0], agent.state_dict()[0])
    agent.update(rollout), again.update(rollout)
    assert_same(again.state_dict()[0], agent.state_dict()[0])


def test_large_images_get_what_they_got() -> None:
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    new, old = small(space, cnn="auto", cnn_features=8), small(space, cnn="legacy", cnn_features=8)
    assert isinstance(new.policy.torso, NatureCNN) and str(new.networks) == str(old.networks)
    assert_same(new.state_dict()[0], old.state_dict()[0])
    for name, value in {"critic_hidden": (32,), "critic_layer_norm": "on"}.items():
        with pytest.raises(SettingsError, match=f"{name} is .*, but V reads a large image, whose CNN has neither"):
            small(space, cnn_features=8, share_torso="off", **{name: value})


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        (GridEnv, {}),
        (GridEnv, {"embed": 2, "value_replay": 1}),
        (GridEnv, {"policy_keys": ("image",), "epochs": 2, "minibatch_size": 8, "clip_range": 0.2}),
    ],
)
def test_a_dict_of_a_small_image_and_a_choice_is_learned_from_leaf_by_leaf(env: Any, settings: dict[str, Any]) -> None:
    agent = trained("relax", env=env, normalize_obs=True, updates=2, **settings)
    assert isinstance(agent.value.torso, CombinedTorso)
    chosen = None if agent.obs_normalizer is None else agent.obs_normalizer.chosen
    assert (None if chosen is None else chosen.sum()) == (None if "embed" in settings else 4)
    assert agent.networks.shared_torso == ("policy_keys" not in settings)
    assert not agent.networks.reads_large_images


def test_a_small_cnn_learns_what_the_image_asks_for() -> None:
    told: list[Any] = []
    trained("a2c", env=GridEnv, updates=100, told=told, policy_lr=1e-2, value_lr=1e-2, gamma=0.0, hidden=(16,))
    assert np.mean([row["return_mean"] for row in told[-3:]]) > 7.0 > told[1]["return_mean"]  # by chance 3.3 of 10


def shared(observations: Any, actions: Any, config: Any) -> NetworkParts:
    torso = ResidualMLP(observations.shape[0], (8,), "tanh", layer_norm=True)
    return NetworkParts(torso, torso)


@pytest.mark.parametrize(
    ("estimator", "settings"),
    [
        ("relax", {"layer_norm": True, "residual": True, "hidden": (8, 8)}),
        ("lax", {"policy_keys": ("asked",), "critic_keys": ("where",), "value_replay": 1}),
        ("marginal", {"policy_keys": ("where",), "embed": 3, "normalize_obs": True}),
        ("a2c", {"networks": shared}),
        ("relax", {"env": GridEnv}),
        ("marginal", {"env": GridEnv, "policy_keys": ("image",)}),
    ],
)
def test_compiled_code_takes_the_steps_of_eager_code(
    estimator: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relax_rl.compute.compilation._compile", lambda graph, inputs, key: graph)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    settings = {"env": ChoiceEnv, **settings}
    compiled, eager = (trained(estimator, compile=how, updates=2, **settings) for how in ("on", "off"))
    assert compiled.learner.compiled is not None and eager.learner.compiled is None
    assert_alike(compiled, eager)


def test_small_images_are_compiled_sooner_than_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager convolutions of a minibatch take several times what an MLP takes, whatever their size."""
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    passes: Any = {"num_steps": 64, "minibatch_size": 64, "epochs": 10, "clip_range": 0.2}
    found = [
        choose(agent.config, agent.networks, workers=1, total_steps=100_000, num_envs=8)
        for agent in (small(**passes), small(cnn="none", **passes), small(cnn="impala", **passes))
    ]
    assert found[0] is Choice.COMPILED and found[1] is not Choice.COMPILED and found[2] is Choice.EAGER


def test_large_convolutions_are_not_compiled_on_a_cpu_and_it_is_said_why() -> None:
    for settings in ({"cnn": "impala"}, {"cnn": "impala", "policy_keys": ("image",)}):
        with target_envs(DISCRETE, n=2, env=GridEnv) as envs:
            agent = small(envs.single_observation_space, compile="on", **settings)
            with pytest.raises(SettingsError, match="convolutions on large images gain nothing"):
                agent.learn(envs, 10)


def test_acting_stays_in_numpy_for_the_plain_mlp_alone() -> None:
    plain, normalised = small(OBS), small(OBS, layer_norm=True)
    assert type(plain.networks.on_host("policy")) is HostNetwork
    assert normalised.networks.on_host("policy") is None
    assert host_sampler(normalised.policy, None, None) is None


def test_networks_of_somebodys_own_get_small_images_flat_unless_a_cnn_is_named() -> None:
    for cnn, shape in (("auto", (147,)), ("small", (3, 7, 7))):
        seen: list[Any] = []

        def factory(observations: Any, actions: Any, config: Any, seen: list[Any] = seen) -> NetworkParts:
            seen.append(observations.shape)
            torsos = [nn.Sequential(nn.Flatten(), nn.Linear(147, 4)) for _ in range(2)]
            for torso in torsos:
                torso.num_features = 4  # type: ignore[assignment]
            return NetworkParts(*torsos)

        agent = small(cnn=cnn, networks=factory)
        assert agent.observations.shape == seen[0] == shape
    plain = small(cnn="small", networks=lambda *_: NetworkParts(*(ImpalaCNN((3, 7, 7), 5) for _ in range(2))))
    shake(plain)
    assert "policy/entropy" in plain.update(rollout_for(plain))  # the surrogate is told V's features


# Surrogates


class Wrapped(nn.Module):
    """The same numbers as a surrogate with a closed form, by the general way."""

    def __init__(self, inner: ActionSurrogate) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, features: Tensor, relaxed_action: Tensor) -> Tensor:
        value: Tensor = self.inner(features, relaxed_action)
        return value


class Waves(nn.Module):
    """A surrogate with curvature that no closed form here knows."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.scale = nn.Bilinear(3, 3, 4), nn.Parameter(torch.ones(4))

    def forward(self, features: Tensor, relaxed_action: Tensor) -> Tensor:
        x = self.net(features.contiguous(), relaxed_action.contiguous())
        return (self.scale * torch.sin(x) * (1 + x.square()).log()).sum(-1)


def rows_of(agent: ActorCritic) -> Batch:
    """Rows of made-up experience."""
    shake(agent)
    return agent.batch(rollout_for(agent))[0]


@pytest.mark.parametrize("estimator", ["relax", "lax", "marginal"])
def test_the_general_way_gives_the_gradients_of_the_closed_form(estimator: str) -> None:
    agent = AGENTS[estimator](OBS, BOX if estimator == "lax" else DISCRETE, hidden=(8,), surrogate_hidden=(8,))
    batch, own = rows_of(agent), agent.surrogate
    assert isinstance(own, ActionSurrogate)
    closed, general = (
        gradients(
            Networks(agent.policy, agent.value, surrogate), batch, Objective(agent.estimator, ("policy", "surrogate"))
        ).of
        for surrogate in (own, Wrapped(own))
    )
    for name, found in closed.items():
        assert any(x.abs().max() > 1e-3 for x in found)
        for ours, theirs in zip(found, general[name], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("estimator", ["relax", "lax", "marginal"])
def test_a_surrogate_of_any_curvature_learns_by_the_slope_of_its_variance(estimator: str) -> None:
    torch.manual_seed(0)
    actions = spaces.Box(-1, 1, (3,)) if estimator == "lax" else DISCRETE
    agent = AGENTS[estimator](OBS, actions, hidden=(8,), surrogate_hidden=(8,))
    batch = rows_of(agent)
    params, surrogate = agent.policy(batch.obs).detach().double(), Waves().double()
    action = batch.action.double() if estimator == "lax" else batch.action
    rows = (batch.obs, action, batch.noise, batch.advantage, batch.return_, batch.weight)
    experience = Experience(*(x.double() if x.is_floating_point() else x for x in rows))

    def loss() -> Tensor:
        dist = agent.policy.distribution(params.clone().requires_grad_())
        return agent.estimator.estimate(experience, dist, surrogate).square().sum()

    weights = list(surrogate.parameters())
    slopes = torch.autograd.grad(loss(), weights)
    for weight, slope in zip(weights, slopes, strict=True):
        direction, both = torch.randn_like(weight), []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight += step * direction
            both.append(loss().item())
            with torch.no_grad():
                weight -= step * direction
        numeric = (both[0] - both[1]) / 2e-5
        assert abs(numeric) > 1e-3 and (slope * direction).sum().item() == pytest.approx(numeric, rel=1e-5)


class Doubled(ActionSurrogate):
    def forward(self, features: Tensor, relaxed_action: Tensor) -> Tensor:
        return 2.0 * super().forward(features, relaxed_action)


def test_the_closed_form_is_taken_only_where_it_is_that_of_the_surrogate() -> None:
    torch.manual_seed(0)
    features, dist = torch.randn(4, 3), Categorical(torch.randn(4, 2))
    z, plain, replaced = torch.randn(4, 2), ActionSurrogate(3, 2, (5,)), ActionSurrogate(3, 2, (5,))
    replaced.layers = ResidualMLP(5, (5,), "tanh", layer_norm=True)
    for surrogate, closed in ((plain, True), (Doubled(3, 2, (5,)), False), (replaced, False), (Waves(), False)):
        nn.init.normal_(next(reversed(list(surrogate.parameters()))))
        if isinstance(surrogate, ActionSurrogate):
            nn.init.normal_(surrogate.head.weight)
        if isinstance(surrogate, Waves):
            surrogate.net = nn.Bilinear(3, 2, 4)
        control = surrogate_at(surrogate, features, dist)
        assert isinstance(control, MLPSurrogate) == closed
        torch.testing.assert_close(control(z), surrogate(features, dist.soften(z)))
