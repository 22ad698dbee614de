"""Running statistics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from relax_rl import A2C
from relax_rl.agents.normalization import ObservationNormalizer, RewardScaler, RunningMoments
from relax_rl.envs import VectorEnvs
from relax_rl.errors import CheckpointError, SettingsError
from tests.fakes import DictEnv, golden_envs
from tests.steps import DISCRETE, target_envs


def test_moments_of_pieces_are_the_moments_of_the_whole() -> None:
    data = torch.randn(103, 3, generator=torch.Generator().manual_seed(0)) * 50 + 1000
    moments = RunningMoments((3,))
    for piece in data.split([1, 40, 0, 62]):
        moments.update(piece.numpy())
    np.testing.assert_allclose(moments.mean, data.double().mean(0))
    np.testing.assert_allclose(moments.var, data.double().var(0, unbiased=False))
    assert moments.count == 103


def test_the_observation_normalizer_starts_as_the_identity_and_then_standardizes() -> None:
    normalizer = ObservationNormalizer((2,))
    data = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    torch.testing.assert_close(normalizer(data), data)
    normalizer.update(data[None], torch.tensor([[True, True]]))
    torch.testing.assert_close(normalizer(data), torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    assert normalizer(torch.tensor([[1e9, 0.0]]))[0, 0] == 10.0


def test_a_constant_observation_does_not_blow_up() -> None:
    normalizer = ObservationNormalizer((1,))
    normalizer.update(torch.full((1, 8, 1), 3.0), torch.ones((1, 8), dtype=torch.bool))
    assert torch.equal(normalizer(torch.full((1, 1), 3.0)), torch.zeros(1, 1))


def test_the_reward_scale_is_that_of_the_discounted_return_cut_at_episode_ends() -> None:
    gamma, rng = 0.9, np.random.default_rng(0)
    rewards = rng.normal(size=(6, 2))
    ended = np.zeros((6, 2), bool)
    ended[2, 0] = True
    valid = np.ones((6, 2), bool)
    valid[3, 0] = False  # the row that autoreset makes up after the end
    returns, seen = np.zeros(2), []
    for t in range(6):
        for n in range(2):
            if valid[t, n]:
                returns[n] = gamma * returns[n] + rewards[t, n]
                seen.append(returns[n])
            if ended[t, n]:
                returns[n] = 0.0
    scaler = RewardScaler(gamma)
    assert scaler.scale == 1.0
    for part in (slice(0, 4), slice(4, 6)):  # returns go on across rollouts
        scaler.update(*(torch.from_numpy(x[part]) for x in (rewards, ended, valid)))
    assert math.isclose(scaler.scale, 1 / np.sqrt(np.var(seen) + 1e-8), rel_tol=1e-9)


def of_dicts(envs: VectorEnvs, **settings: Any) -> A2C:
    space, actions = envs.single_observation_space, envs.single_action_space
    return A2C(space, actions, hidden=(4,), num_steps=6, normalize_obs=True, **settings)


def test_the_parts_that_are_named_are_normalised_and_the_others_stay() -> None:
    with golden_envs(AutoresetMode.NEXT_STEP, env=DictEnv) as envs:
        agent = of_dicts(envs, normalize_keys=["place", "inner.clock"])
        agent.learn(envs, 60)
        encoded = torch.from_numpy(agent.observations.encode(envs.obs))
        seen = agent.normalized(encoded)
        begin, named = 0, []
        for leaf in agent.observations.leaves:
            columns = slice(begin, begin + leaf.size)
            begin += leaf.size
            same = torch.equal(seen[:, columns], encoded[:, columns])
            named += [] if same else [leaf.name]
        assert named == ["inner.clock", "place"] and agent.observations.leaves[0].kind == "image"
        assert encoded.max() > 10  # an image's pixel, which is not clipped
        np.testing.assert_allclose(agent.obs_normalizer.on_host(encoded.numpy()), seen.numpy(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(agent.unnormalized(seen), encoded, rtol=1e-4, atol=1e-4)
        chosen = of_dicts(envs, normalize_keys=("inner",)).obs_normalizer
        assert chosen is not None and chosen.chosen is not None and int(chosen.chosen.sum()) == 13
        assert of_dicts(envs).obs_normalizer is None  # as long as there is an image and nothing is named


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"normalize_keys": ("plaice",)}, "normalize_keys names 'plaice', expected vectors .*: inner.clock, .*, place"),
        ({"normalize_keys": ("camera",)}, "normalize_keys names 'camera'"),
        ({"normalize_keys": ("place",), "normalize_obs": False}, "expected normalize_obs beside it"),
    ],
)
def test_parts_that_cannot_be_normalised_are_told(settings: dict[str, Any], expected: str) -> None:
    with golden_envs(AutoresetMode.NEXT_STEP, env=DictEnv) as envs:
        space, actions = envs.single_observation_space, envs.single_action_space
    with pytest.raises(SettingsError, match=expected):
        A2C(space, actions, **{"normalize_obs": True, **settings})


def test_an_agent_whose_other_parts_are_normalised_does_not_fit() -> None:
    with golden_envs(AutoresetMode.NEXT_STEP, env=DictEnv) as envs:
        one, other = (of_dicts(envs, normalize_keys=(key,)) for key in ("place", "inner"))
    with pytest.raises(CheckpointError, match="its normalize_keys is"):
        other.load_state_dict(*one.state_dict())


def test_observations_and_values_come_back_in_their_own_units() -> None:
    envs = target_envs(DISCRETE, n=4)
    agent = A2C(envs.single_observation_space, DISCRETE, hidden=(8,), normalize_obs=True, normalize_reward=True)
    raw = torch.tensor([[0.2, 0.9], [1.0, 0.0]])
    assert torch.equal(agent.unnormalized(agent.normalized(raw)), raw)  # before anything was seen
    agent.learn(envs, 200)
    assert agent.reward_unit != 1.0 and not torch.equal(agent.normalized(raw), raw)
    torch.testing.assert_close(agent.unnormalized(agent.normalized(raw)), raw)
    with torch.no_grad():
        expected = agent.value(agent.normalized(raw)).numpy() / agent.reward_unit
    np.testing.assert_allclose(agent.predict_values(raw.numpy()), expected, rtol=1e-5)
    single = agent.predict_values(raw[0].numpy())
    assert isinstance(single, np.ndarray) and single.shape == () and float(single) == pytest.approx(float(expected[0]))
    with pytest.raises(SettingsError, match="has shape"):
        agent.predict_values(np.zeros(5, np.float32))


def test_values_in_raw_units_learn_the_raw_return() -> None:
    """A reward of 50 for ever is worth 50 / (1 - gamma), whatever rewards are divided by."""
    envs = target_envs(DISCRETE, n=4)
    step = envs.step

    def worth_fifty(action: Any) -> Any:
        found = step(action)
        found.reward[:] = 50.0
        return found

    envs.step = worth_fifty  # type: ignore[method-assign]
    agent = A2C(envs.single_observation_space, DISCRETE, hidden=(8,), gamma=0.5, value_lr=0.05, normalize_reward=True)
    agent.learn(envs, 2_400)
    assert agent.predict_values(np.eye(2, dtype=np.float32)) == pytest.approx([100.0, 100.0], rel=0.1)
