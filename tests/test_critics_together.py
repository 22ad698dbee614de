"""Every option of the critics at once: on vectors, images and under masks, with a memory, compiled and gone on with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from relax_rl.agents import AGENTS, ActorCritic
from relax_rl.envs import VectorEnvs
from relax_rl.errors import SettingsError
from relax_rl.networks.cnns import SmallCNN
from tests.fakes import ImageEnv, vector_of
from tests.masked import MaskedEnv
from tests.steps import BOX, DISCRETE, OBS, assert_alike, assert_same, shake, target_envs, trained

SMALL: dict[str, Any] = {"hidden": (8,), "surrogate_hidden": (8,), "num_steps": 5}
EVERYTHING: dict[str, Any] = {
    **SMALL,
    "critic_loss": "hl_gauss",
    "critic_bins": 21,
    "surrogate_loss": "critic",
    "residual_weight": "adaptive",
    "soft_returns": True,
    "epochs": 2,
    "minibatch_size": 8,
    "kl_bound": 0.01,
    "entropy_target": 0.5,
    "normalize_reward": True,
}
REPLAYED: dict[str, Any] = {**EVERYTHING, "value_replay": 2, "replay_targets": "anew"}
TOLD = ("surrogate/residual_weight", "surrogate/clipped", "value/clipped", "losses/action_value", "policy/kl_exact")


def test_compiled_steps_are_those_of_eager_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relax_rl.compute.compilation._compile", lambda graph, inputs, key: graph)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    told: tuple[list[Any], list[Any]] = ([], [])
    compiled, eager = (
        trained("lax", updates=3, compile=how, told=rows, **{**REPLAYED, "minibatch_size": 10})
        for how, rows in zip(("on", "off"), told, strict=True)
    )
    assert compiled.learner.compiled is not None
    assert_alike(compiled, eager)
    for ours, theirs in zip(*told, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4, nan_ok=True) and set(TOLD) <= set(ours)
        assert all(np.isfinite(ours[name]) for name in TOLD)


def gone_on_with(agent: ActorCritic, make: Any, tmp_path: Any) -> None:
    """Assert that an agent learns, and that what is loaded of it takes the same steps, bit for bit."""
    shake(agent)
    with make() as envs:
        agent.learn(envs, 3 * 5 * envs.num_envs)
    agent.save(tmp_path / "agent")
    again = ActorCritic.load(tmp_path / "agent")
    if agent.reward_scaler is not None:
        agent.reward_scaler.returns = np.zeros(0)  # of episodes, which begin anew where environments do
    states = []
    for one in (agent, again):
        with make() as envs:
            if one.networks.recurrent:
                one.env_memory = type(one.env_memory)()
            one.learn(envs, 2 * 5 * envs.num_envs)
        states.append(one.state_dict()[0])
        assert all(torch.isfinite(x).all() for x in states[-1].values())
    assert_same(*states)


@pytest.mark.parametrize(
    ("estimator", "settings"),
    [
        ("relax", REPLAYED),
        ("marginal", REPLAYED),
        ("lax", {**EVERYTHING, "memory": "gru", "memory_size": 6}),
        ("marginal", {**REPLAYED, "soft_returns": False, "scale_advantage": True}),
    ],
)
def test_agents_are_gone_on_with_bit_for_bit(estimator: str, settings: dict[str, Any], tmp_path: Any) -> None:
    space = BOX if estimator == "lax" else DISCRETE
    with target_envs(space, n=4) as envs:
        agent = AGENTS[estimator](envs.single_observation_space, space, seed=0, compile="off", **settings)
    gone_on_with(agent, lambda: target_envs(space, n=4), tmp_path)


@pytest.mark.parametrize("kind", ["discrete", "multi_discrete", "multi_binary"])
def test_they_learn_under_masks(kind: str, tmp_path: Any) -> None:
    def make() -> VectorEnvs:
        return VectorEnvs(vector_of([lambda i=i: MaskedEnv(i, kind) for i in range(3)], AutoresetMode.NEXT_STEP))

    with make() as envs:
        agent = AGENTS["relax"](envs.single_observation_space, envs.single_action_space, compile="off", **REPLAYED)
    gone_on_with(agent, make, tmp_path)


@pytest.mark.parametrize("settings", [{}, {"share_torso": "off"}])
def test_they_learn_from_images(settings: dict[str, Any], tmp_path: Any) -> None:
    def make() -> VectorEnvs:
        return target_envs(DISCRETE, n=4, env=ImageEnv)

    with make() as envs:
        space = envs.single_observation_space
        agent = AGENTS["relax"](space, DISCRETE, compile="off", cnn="small", **{**REPLAYED, **settings})
    assert any(isinstance(each, SmallCNN) for each in agent.networks.modules())
    gone_on_with(agent, make, tmp_path)


def test_a_memory_and_a_replay_are_refused_together_before_anything_is_learned() -> None:
    with pytest.raises(SettingsError, match="value_replay is 2, expected 0 beside a memory") as caught:
        AGENTS["relax"](OBS, DISCRETE, **REPLAYED, memory="gru")
    assert "\n" not in str(caught.value)
