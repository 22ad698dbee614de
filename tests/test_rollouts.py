"""Generalised advantage estimation and the collection of rollouts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from relax_rl.agents.rollouts import Collector, Rollout, gae, successor_values
from tests.fakes import golden_envs


def by_definition(reward, value, next_value, terminated, truncated, valid, gamma, lambda_):  # type: ignore[no-untyped-def]
    """The defining sum over deltas, written forwards: A_t = sum_k (gamma lambda)^k delta_{t+k} up to the episode's end."""
    steps, envs = reward.shape
    out = np.zeros((steps, envs))
    for n in range(envs):
        for t in range(steps):
            if not valid[t, n]:
                continue
            for k in range(t, steps):
                delta = reward[k, n] + gamma * next_value[k, n] * (not terminated[k, n]) - value[k, n]
                out[t, n] += (gamma * lambda_) ** (k - t) * delta
                if terminated[k, n] or truncated[k, n]:
                    break
    return out


@pytest.mark.parametrize(("gamma", "lambda_"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("made_up_rows", [True, False])
def test_gae_is_the_sum_of_discounted_deltas_within_an_episode(
    gamma: float, lambda_: float, made_up_rows: bool
) -> None:
    rng = np.random.default_rng(1)
    reward, value, next_value = (rng.normal(size=(12, 4)) for _ in range(3))
    terminated = rng.random((12, 4)) < 0.15
    truncated = (rng.random((12, 4)) < 0.15) & ~terminated
    valid = np.ones((12, 4), bool)
    if made_up_rows:  # as NEXT_STEP autoreset has them
        valid[1:] = ~(terminated | truncated)[:-1]
    terminated &= valid
    truncated &= valid
    got = gae(
        *(torch.from_numpy(x) for x in (reward, value, next_value, terminated, truncated, valid)),
        gamma=gamma,
        gae_lambda=lambda_,
    )
    expected = by_definition(reward, value, next_value, terminated, truncated, valid, gamma, lambda_)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)


def test_successor_values_come_from_the_next_row_except_where_an_episode_was_cut_off() -> None:
    value = torch.arange(8.0).reshape(4, 2)
    got = successor_values(value, torch.tensor([100.0]), torch.tensor([[1, 0]]))
    assert got.tolist() == [[2.0, 3.0], [100.0, 5.0], [6.0, 7.0]]
    assert value[2, 0] == 4.0
    assert torch.equal(successor_values(value, torch.empty(0), torch.empty(0, 2, dtype=torch.long)), value[1:])


def collect(mode: AutoresetMode, num_steps: int, num_rollouts: int) -> list[Rollout]:
    """Rollouts of two golden environments under a policy that does not matter."""
    envs = golden_envs(mode, n=2)
    collector = Collector(envs, lambda obs: np.asarray(obs, np.float32), lambda action: action, num_steps)
    noise = torch.zeros(num_steps, 2, 1)
    try:
        return [
            collector.collect(lambda obs, _: torch.zeros(len(obs), dtype=torch.long), noise)
            for _ in range(num_rollouts)
        ]
    finally:
        envs.close()


def transitions(rollouts: list[Rollout]) -> list[tuple[object, ...]]:
    """(obs, reward, terminated, truncated, true successor) of every valid row of the first environment."""
    found: list[tuple[object, ...]] = []
    for rollout in rollouts:
        final = {tuple(i.tolist()): x for i, x in zip(rollout.final_index, rollout.final_obs, strict=True)}
        for t in range(rollout.num_steps):
            if rollout.valid[t, 0]:
                ends = bool(rollout.terminated[t, 0])
                successor = final.get((t, 0), rollout.obs[t + 1, 0])
                row = (rollout.reward[t, 0].item(), ends, bool(rollout.truncated[t, 0]))
                # After a termination nothing is bootstrapped: whatever stands in the next row does not count.
                found.append((tuple(rollout.obs[t, 0].tolist()), *row, None if ends else tuple(successor.tolist())))
    return found


def test_rollouts_hold_the_same_transitions_under_every_autoreset_mode() -> None:
    reference = transitions(collect(AutoresetMode.DISABLED, 5, 8))
    assert any(row[2] for row in reference)
    assert any(row[3] for row in reference)
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        got = transitions(collect(mode, 5, 8))
        shared = min(len(got), len(reference))
        assert shared > 25
        assert got[:shared] == reference[:shared]


def test_the_last_observation_of_a_rollout_is_the_first_of_the_next() -> None:
    first, second = collect(AutoresetMode.NEXT_STEP, 3, 2)
    assert torch.equal(first.obs[-1], second.obs[0])
    assert first.obs.shape[0] == 4
    assert first.reward.dtype == torch.float32
