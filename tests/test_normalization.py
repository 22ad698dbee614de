"""Running statistics."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from relax_rl import A2C, RELAX, ActorCritic
from relax_rl.agents.normalization import ObservationNormalizer, RewardScaler, RunningMoments
from relax_rl.envs import VectorEnvs, make_envs
from relax_rl.errors import CheckpointError, SettingsError
from relax_rl.networks.spaces import ObservationEncoder
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


def test_returns_do_not_go_on_in_episodes_that_begin() -> None:
    scaler, ones = RewardScaler(0.5), torch.ones(1, 3, dtype=torch.float64)
    ended, valid = torch.zeros(1, 3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    scaler.update(ones, ended, valid)
    scaler.begin(np.array([True, False, True]))
    scaler.update(ones, ended, valid)
    assert scaler.returns.tolist() == [1.0, 1.5, 1.0]
    # Other environments than those of the last call, as many of them.
    agent: ActorCritic | None = None
    for _ in range(2):
        with make_envs("CartPole-v1", num_envs=2, seed=0) as envs:
            seen = envs.single_observation_space, envs.single_action_space
            agent = agent or RELAX(*seen, normalize_reward=True, num_steps=4, hidden=(8,))
            agent.learn(envs, 8)
            assert agent.reward_scaler is not None
            assert agent.reward_scaler.returns.tolist() == pytest.approx([1 + 0.99 + 0.99**2 + 0.99**3] * 2)


@pytest.mark.parametrize("reward", [0.0, 0.1])
def test_the_first_rare_reward_is_not_divided_by_a_spread_of_nothing(reward: float) -> None:
    scaler, ended, valid = RewardScaler(0.0), torch.zeros(40, 8, dtype=torch.bool), torch.ones(40, 8, dtype=torch.bool)
    rewards = torch.full((40, 8), reward, dtype=torch.float64)
    scaler.update(rewards, ended, valid)
    assert scaler.scale == 1.0
    rewards[:4] += 1.0
    scaler.update(rewards, ended, valid)
    assert math.isclose(scaler.scale, 1 / math.sqrt(0.05 * 0.95), rel_tol=1e-4)


def test_no_reward_that_was_seen_is_scaled_beyond_ten() -> None:
    scaler, ended, valid = RewardScaler(0.0), torch.zeros(50, 8, dtype=torch.bool), torch.ones(50, 8, dtype=torch.bool)
    rewards = torch.zeros(50, 8, dtype=torch.float64)
    rewards[7, 3] = -0.5
    rewards[9, 1] = math.inf  # of a row that is none
    valid[9, 1] = False
    scaler.update(rewards, ended, valid)
    assert scaler.scale == 20.0 < 1 / math.sqrt(float(scaler.moments.var))
    again = RewardScaler(0.0)
    again.load_state_dict(scaler.state_dict())
    assert (again.scale, again.largest) == (20.0, 0.5)
    before = {name: x for name, x in scaler.state_dict().items() if name != "largest"}
    again.load_state_dict(before)  # as versions saved it that did not look
    again.update(rewards, ended, valid)
    assert again.scale > 20.0 and "largest" not in again.state_dict()


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
        every = of_dicts(envs).obs_normalizer
        assert every is not None and every.chosen is not None and int(every.chosen.sum()) == 16  # all but the image


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


def test_a_feature_that_was_constant_jumps_to_the_clip_when_it_moves() -> None:
    """The definition of VecNormalize and Gymnasium, and of every result here: nothing but 1e-8 is added to a variance."""
    normalizer = ObservationNormalizer((1,))
    normalizer.update(torch.full((1, 8, 1), 3.0), torch.ones((1, 8), dtype=torch.bool))
    assert normalizer(torch.full((1, 1), 3.01))[0, 0] == 10.0
    normalizer.update(torch.full((1, 8, 1), 3.01), torch.ones((1, 8), dtype=torch.bool))
    assert 0.9 < normalizer(torch.full((1, 1), 3.01))[0, 0] < 1.1


def test_vectors_are_normalised_and_images_beside_them_are_not() -> None:
    normalizer = ObservationNormalizer((4,), chosen=np.array([True, False, False, True]))
    data = torch.tensor([[1.0, 200.0, 7.0, -5.0], [3.0, 100.0, 9.0, -9.0]])
    torch.testing.assert_close(normalizer(data), data)
    normalizer.update(data[None], torch.tensor([[True, True]]))
    assert normalizer.moments.mean[[0, 3]].tolist() == [2.0, -7.0]
    expected = torch.tensor([[-1.0, 200.0, 7.0, 1.0], [1.0, 100.0, 9.0, -1.0]])
    torch.testing.assert_close(normalizer(data), expected)
    torch.testing.assert_close(torch.from_numpy(normalizer.on_host(data.numpy())), expected)
    far = torch.tensor([[1e9, 1e9, -1e9, -1e9]])
    assert normalizer(far).tolist() == [[10.0, 1e9, -1e9, -10.0]]


class Clock(gym.Env):
    """Observes the time since an offset, in one of two states, and asks for the action of that name.

    Args:
        offset: of the time.
        dtype: of the observation.
        image: whether there is one beside it.
    """

    action_space = spaces.Discrete(2)

    def __init__(self, offset: float, dtype: type = np.float64, image: bool = False) -> None:
        self.offset, self.dtype, self.image, self.t = offset, dtype, image, 0
        clock = spaces.Box(-np.inf, np.inf, (2,), dtype)
        self.observation_space = spaces.Dict({"clock": clock, "image": IMAGE}) if image else clock

    def see(self) -> object:
        self.state = int(self.np_random.integers(2))
        clock = np.array([self.offset + 0.5 * self.state, self.state], self.dtype)
        return {"clock": clock, "image": np.full((36, 36, 1), 9, np.uint8)} if self.image else clock * [1, 0]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.see(), {}

    def step(self, action):
        self.t += 1
        reward = float(action == self.state)
        return self.see(), reward, False, self.t == 20, {}


IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)


def clocks(*of: object) -> VectorEnvs:
    return VectorEnvs(SyncVectorEnv([lambda: Clock(*of)] * 4), seed=0)


def learned(envs: VectorEnvs, steps: int, **settings: object) -> ActorCritic:
    found = envs.single_observation_space, envs.single_action_space
    agent = A2C(*found, hidden=(8,), num_steps=10, normalize_obs=True, cnn_features=4, **settings)
    return agent.learn(envs, steps)


def test_digits_far_from_zero_are_kept(tmp_path) -> None:
    offset = 1.7e9
    agent = learned(clocks(offset), 2_000, gamma=0.0, policy_lr=3e-2)
    told = np.array([[offset, 0.0], [offset + 0.5, 0.0]])
    agent.save(tmp_path / "agent")
    for each in (agent, ActorCritic.load(tmp_path / "agent")):
        assert each.predict(told, deterministic=True)[0].tolist() == [0, 1]


def test_what_float32_holds_is_not_shifted() -> None:
    space = spaces.Dict({"clock": spaces.Box(-np.inf, np.inf, (2,), np.float64), "small": spaces.Box(0, 9e9, (1,))})
    encoder = ObservationEncoder(space)
    batch = {"clock": np.array([[1.7e9, 60_000.0]]), "small": np.array([[8e9]], np.float32)}
    shift = encoder.shift_for(batch)
    assert shift is not None and shift.tolist() == [1.7e9, 0.0, 0.0]
    later = {"clock": np.array([[1.7e9 + 0.25, 1.0]]), "small": np.array([[8e9]], np.float32)}
    np.testing.assert_array_equal(encoder.encode(later, shift=shift), np.array([[0.25, 1.0, 8e9]], np.float32))
    assert encoder.shift_for({**batch, "clock": np.array([[3.0, -100.0]])}) is None
    with clocks(3.0) as envs:
        agent = learned(envs, 100)
    assert agent.obs_normalizer is not None and agent.obs_normalizer.shift is None
    assert "obs_shift" not in agent.state_dict()[1]


def test_a_shift_that_makes_no_sense_is_refused() -> None:
    with clocks(1.7e9) as envs:
        agent = learned(envs, 100)
    tensors, state = agent.state_dict()
    assert len(state["obs_shift"]) == 2
    for wrong in ([1.0], [1.0, math.inf], [10**400, 0.0], "x", {}, [[1.0, 2.0]]):
        with pytest.raises(CheckpointError, match="does not fit this agent"):
            agent.load_state_dict(tensors, {**state, "obs_shift": wrong})


def test_an_agent_says_whether_it_normalises() -> None:
    with clocks(3.0, np.float32, True) as envs:
        agent = learned(envs, 100)
        mean = agent.obs_normalizer.moments.mean
        assert mean.shape == (2 + 36 * 36,) and 3.0 < mean[0] < 3.5 and agent.config.normalize_obs
    alone = A2C(IMAGE, spaces.Discrete(2), normalize_obs=True, cnn_features=4)
    assert alone.obs_normalizer is None and not alone.config.normalize_obs
    assert not alone.state_dict()[1]["config"]["normalize_obs"]


def test_one_of_a_time_when_nothing_beside_an_image_was_normalised_stays_so(tmp_path) -> None:
    from relax_rl.compute.serialization import load_state, save_state

    with clocks(3.0, np.float32, True) as envs:
        found = envs.single_observation_space, envs.single_action_space
        agent = A2C(*found, hidden=(8,), cnn_features=4).learn(envs, 40)
        agent.save(tmp_path / "agent")
        tensors, state = load_state(tmp_path / "agent")
        del state["agent"]["normalizes"]
        state["agent"]["config"]["normalize_obs"] = True  # as it was asked for then
        save_state(tmp_path / "old", tensors, state)
        old = ActorCritic.load(tmp_path / "old")
        assert old.obs_normalizer is None and not old.config.normalize_obs
        np.testing.assert_array_equal(*(each.act(envs.obs, deterministic=True) for each in (old, agent)))
        old.learn(envs, 40)


def test_the_clip_and_the_floor_under_the_deviation_are_settings() -> None:
    rows = torch.tensor([[0.0, 1.0], [4.0, 1.0 + 2e-6]])  # deviations of 2 and of next to nothing
    cases: list[tuple[dict[str, float], tuple[float, float]]] = [
        ({}, (1.0, 0.01)),
        ({"floor": 0.1}, (1.0, 1e-5)),
        ({"clip": 0.5, "floor": 8.0}, (0.25, 1.25e-7)),
    ]
    for how, expected in cases:
        normalizer = ObservationNormalizer((2,), **how)
        normalizer.update(rows.unsqueeze(0), torch.ones(1, 2, dtype=torch.bool))
        assert normalizer(rows)[1].tolist() == pytest.approx(expected, rel=0.1)
        np.testing.assert_array_equal(normalizer.on_host(rows.numpy()), normalizer(rows))
    far = normalizer(rows + 100.0)
    assert far.max() == 0.5
    agent = A2C(spaces.Box(-1, 1, (2,)), DISCRETE, normalize_obs=True, obs_clip=3.0, obs_std_floor=0.5)
    assert agent.obs_normalizer is not None and agent.obs_normalizer.clip == 3.0 and agent.obs_normalizer._floor == 0.5
