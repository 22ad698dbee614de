"""Running statistics."""

from __future__ import annotations

import math

import numpy as np
import torch

from relax_rl.agents.normalization import ObservationNormalizer, RewardScaler, RunningMoments


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
