"""Generalised advantage estimation and the collection of rollouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from relax_rl.agents.returns import gae, n_step_returns, successor_values, vtrace
from relax_rl.agents.rollouts import Collector, Rollout
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


def experience(seed: int = 1, *, steps: int = 12, envs: int = 4) -> dict[str, np.ndarray]:
    """Rows with both endings and what NEXT_STEP autoreset makes up after them, whose numbers may be anything."""
    rng = np.random.default_rng(seed)
    terminated = rng.random((steps, envs)) < 0.15
    truncated = (rng.random((steps, envs)) < 0.15) & ~terminated
    valid = np.ones((steps, envs), bool)
    valid[1:] = ~(terminated | truncated)[:-1]
    terminated, truncated = terminated & valid, truncated & valid
    reward, value, next_value = (rng.normal(size=(steps, envs)) for _ in range(3))
    next_value[:-1] = np.where(truncated[:-1], next_value[:-1], value[1:])
    next_value[terminated | ~valid] = np.nan
    reward[~valid] = np.nan
    named = {"reward": reward, "value": value, "next_value": next_value}
    return named | {"terminated": terminated, "truncated": truncated, "valid": valid}


def tensors(named: dict[str, np.ndarray], *names: str) -> list[torch.Tensor]:
    return [torch.from_numpy(named[name]) for name in names]


ROWS = ("reward", "value", "next_value", "terminated", "truncated", "valid")


@pytest.mark.parametrize("n", [1, 2, 5, 12, 40])
def test_n_step_returns_are_the_sums_that_they_stand_for(n: int) -> None:
    x, gamma = experience(), 0.9
    expected = np.zeros((12, 4))
    for env in range(4):
        for start in range(12):
            for k in range(n):
                t = start + k
                if not x["valid"][start, env]:
                    break
                expected[start, env] += gamma**k * x["reward"][t, env]
                over = x["terminated"][t, env]
                if k == n - 1 or t == 11 or over or x["truncated"][t, env]:
                    expected[start, env] += 0.0 if over else gamma ** (k + 1) * x["next_value"][t, env]
                    break
    found = n_step_returns(*tensors(x, *(name for name in ROWS if name != "value")), n=n, gamma=gamma)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def vtrace_by_definition(x, log_ratio, gamma, lambda_, clips):  # type: ignore[no-untyped-def]
    """Sums over products of cut ratios, as in Espeholt et al. 2018, eq. 1, for the rows of one episode each."""
    rho_bar, c_bar, pg_bar = clips
    target, advantage = x["value"].copy(), np.zeros_like(x["value"])
    ratio = np.exp(log_ratio)
    steps, envs = target.shape

    def after(t, env):  # type: ignore[no-untyped-def]
        return 0.0 if x["terminated"][t, env] else x["next_value"][t, env]

    for env in range(envs):
        for start in range(steps):
            product = 1.0
            for t in range(start, steps):
                if not x["valid"][start, env]:
                    break
                delta = x["reward"][t, env] + gamma * after(t, env) - x["value"][t, env]
                target[start, env] += gamma ** (t - start) * product * min(rho_bar, ratio[t, env]) * delta
                product *= lambda_ * min(c_bar, ratio[t, env])
                if x["terminated"][t, env] or x["truncated"][t, env]:
                    break
        for t in range(steps):
            if x["valid"][t, env]:
                ends = t == steps - 1 or x["terminated"][t, env] or x["truncated"][t, env]
                following = after(t, env) if ends else target[t + 1, env]
                error = x["reward"][t, env] + gamma * following - x["value"][t, env]
                advantage[t, env] = min(pg_bar, ratio[t, env]) * error
    return target, advantage


@pytest.mark.parametrize(("lambda_", "clips"), [(1.0, (1.0, 1.0, 1.0)), (0.8, (1.5, 0.9, 5.0)), (0.0, (1.0, 1.0, 1.0))])
def test_v_trace_is_the_sum_of_the_paper(lambda_: float, clips: tuple[float, float, float]) -> None:
    x = experience(2)
    log_ratio = np.random.default_rng(3).normal(size=(12, 4))
    log_ratio[~x["valid"]] = np.nan
    named = dict(zip(("clip_rho", "clip_c", "clip_pg_rho"), clips, strict=True))
    found = vtrace(torch.from_numpy(log_ratio), *tensors(x, *ROWS), gamma=0.9, gae_lambda=lambda_, **named)
    target, advantage = vtrace_by_definition(x, log_ratio, 0.9, lambda_, clips)
    np.testing.assert_allclose(found.target.numpy(), target, atol=1e-12)
    np.testing.assert_allclose(found.advantage.numpy(), advantage, atol=1e-12)


def test_v_trace_on_policy_is_generalised_advantage_estimation() -> None:
    rows = tensors(experience(4), *ROWS)
    for lambda_ in (0.7, 1.0):
        advantage = gae(*rows, gamma=0.9, gae_lambda=lambda_)
        found = vtrace(torch.zeros(12, 4), *rows, gamma=0.9, gae_lambda=lambda_)
        torch.testing.assert_close(found.target, rows[1] + advantage)
    torch.testing.assert_close(found.advantage, advantage)


def columns(*rows: list[float]) -> torch.Tensor:
    """`[T, N]` of one list an environment."""
    return torch.tensor(rows, dtype=torch.float64).T


NOWHERE = torch.zeros(5, 2, dtype=torch.bool)
REWARD = columns([1.0, 0.0, -1.0, 0.0, 1.0], [0.5, 0.8, -0.7, 0.0, 2.1])
DISCOUNT = columns([0.5, 0.9, 1.0, 0.5, 0.8], [0.9, 0.5, 0.3, 0.8, 0.7])
NEXT = columns([3.0, 1.0, 5.0, -5.0, 3.0], [-1.7, 1.2, 2.3, 2.2, 2.7])


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (3, ([2.8, -3.15, 0.7, 1.7, 3.4], [1.2155, 0.714, 0.2576, 3.192, 3.99])),
        (5, ([1.315, 0.63, 0.7, 1.7, 3.4], [1.33592, 0.9288, 0.2576, 3.192, 3.99])),
        (7, ([1.315, 0.63, 0.7, 1.7, 3.4], [1.33592, 0.9288, 0.2576, 3.192, 3.99])),
    ],
)
def test_n_step_returns_have_the_numbers_that_rlax_publishes(n: int, expected: tuple[list[float], list[float]]) -> None:
    found = n_step_returns(REWARD, NEXT, NOWHERE, NOWHERE, ~NOWHERE, n=n, gamma=DISCOUNT)
    torch.testing.assert_close(found, columns(*expected))


def test_v_trace_has_the_numbers_that_rlax_publishes() -> None:
    """Of its vtrace_test.py; a discount of 0 is what it has of terminations."""
    acted = torch.tensor(
        [
            [[8.9, 0.7], [5.0, 1.0], [0.6, 0.1], [-0.9, -0.1]],
            [[0.3, -5.0], [1.0, -8.0], [0.3, 1.7], [4.7, 3.3]],
        ]
    )
    learns = torch.tensor(
        [
            [[0.4, 0.5], [9.2, 8.8], [0.7, 4.4], [7.9, 1.4]],
            [[1.0, 0.9], [1.0, -1.0], [-4.3, 8.7], [0.8, 0.3]],
        ]
    )
    action = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 1]]).unsqueeze(-1)
    log_ratio = (learns.log_softmax(-1) - acted.log_softmax(-1)).gather(-1, action).squeeze(-1).T.double()
    reward = columns([-1.3, -1.3, 2.3, 42.0], [1.3, 5.3, -3.3, -5.0])
    discount = columns([0.0, 0.89, 0.85, 0.99], [0.88, 1.0, 0.83, 0.95])
    value = columns([2.1, 1.1, -3.1, 0.0], [3.1, 0.1, -1.1, 7.4])
    following = torch.cat([value[1:], torch.tensor([[8.4, -1.2]]).double()])
    nowhere = NOWHERE[:4]
    found = vtrace(log_ratio, reward, value, following, nowhere, nowhere, ~nowhere, gamma=discount)
    error = columns([-1.6155143, -3.4973226, 1.8670533, 50.316002], [1.4662437, 3.6116405, -8.3327293e-5, -13.54])
    torch.testing.assert_close(found.target - value, error, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(found.advantage, error, rtol=1e-3, atol=1e-7)


def test_returns_take_values_with_a_graph_and_refuse_other_shapes() -> None:
    rows = tensors(experience(5), *ROWS)
    value = rows[1].clone().requires_grad_()
    assert torch.equal(gae(rows[0], value, *rows[2:], gamma=0.9, gae_lambda=0.9), gae(*rows, gamma=0.9, gae_lambda=0.9))
    found = vtrace(value * 0, rows[0], value, *rows[2:], gamma=0.9)
    assert not found.target.requires_grad and found.target.dtype == torch.float64
    with pytest.raises(ValueError, match=r"tensors of shapes .*, expected all of them \[T, N\]"):
        vtrace(torch.zeros(12), *rows, gamma=0.9)
    with pytest.raises(ValueError, match="n is 0, expected"):
        n_step_returns(rows[0], *rows[2:], n=0, gamma=0.9)


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


@pytest.mark.parametrize("kind", [torch.int64, torch.bool])
def test_rewards_of_whole_numbers_are_discounted_as_others_are(kind: torch.dtype) -> None:
    whole, value = (REWARD > 0).to(kind), NEXT.float()
    ends: dict[str, Any] = {"terminated": NOWHERE, "truncated": NOWHERE, "valid": ~NOWHERE}

    def found(reward: torch.Tensor) -> list[torch.Tensor]:
        corrected = vtrace(torch.zeros_like(value), reward, value, value, **ends, gamma=0.9)
        return [
            gae(reward, value, value, **ends, gamma=0.9, gae_lambda=0.8),
            n_step_returns(reward, value, **ends, n=3, gamma=0.9),
            *(corrected.target, corrected.advantage),
        ]

    for one, other in zip(found(whole), found(whole.float()), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other)
