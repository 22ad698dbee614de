"""The adapter: the same transitions from every kind of vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from relax_rl.envs import Episode, VectorEnvs, make_envs
from relax_rl.errors import SettingsError
from tests.fakes import BufferReusingEnv, DictEnv, GoldenEnv, TupleEnv, golden_envs, vector_of

MODES = tuple(AutoresetMode)
Transition = tuple[np.ndarray, int, float, np.ndarray, bool, bool]


def flat(obs: Any, row: int) -> np.ndarray:
    """One row of a nested batch as one vector."""
    if isinstance(obs, dict):
        return np.concatenate([flat(part, row) for part in obs.values()])
    if isinstance(obs, tuple):
        return np.concatenate([flat(part, row) for part in obs])
    return np.ravel(obs[row]).astype(np.float64)


def choose(obs: Any, rows: int) -> np.ndarray:
    """An action that depends on nothing but the observation."""
    return np.array([int(flat(obs, row).sum()) % 2 for row in range(rows)])


def collect(envs: VectorEnvs, steps: int) -> list[list[Transition]]:
    """The valid transitions of each environment."""
    seen: list[list[Transition]] = [[] for _ in range(envs.num_envs)]
    for _ in range(steps):
        step = envs.step(choose(envs.obs, envs.num_envs))
        for row in np.flatnonzero(step.valid):
            seen[row].append(
                (
                    flat(step.obs, row),
                    int(step.action[row]),
                    float(step.reward[row]),
                    flat(step.next_obs, row),
                    bool(step.terminated[row]),
                    bool(step.truncated[row]),
                )
            )
    return seen


def played_alone(env: gym.Env, steps: int) -> list[Transition]:
    """The transitions of one environment in a plain loop, terminated winning over truncated."""

    def seen(obs: Any) -> np.ndarray:
        batch = gym.vector.utils.concatenate(
            env.observation_space, [obs], gym.vector.utils.create_empty_array(env.observation_space, 1)
        )
        return flat(batch, 0).copy()

    transitions = []
    obs = seen(env.reset()[0])
    for _ in range(steps):
        action = int(obs.sum()) % 2
        found, reward, terminated, truncated, _ = env.step(action)
        next_obs = seen(found)
        transitions.append((obs, action, float(reward), next_obs, terminated, truncated and not terminated))
        obs = seen(env.reset()[0]) if terminated or truncated else next_obs
    return transitions


def assert_same(found: Sequence[Transition], expected: Sequence[Transition]) -> None:
    assert len(found) <= len(expected)
    for number, (one, other) in enumerate(zip(found, expected, strict=False)):
        for left, right in zip(one, other, strict=True):
            np.testing.assert_array_equal(left, right, err_msg=f"transition {number}")


@pytest.mark.parametrize("env", [GoldenEnv, DictEnv, TupleEnv])
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("mode", MODES)
def test_every_autoreset_mode_yields_the_transitions_of_a_plain_loop(mode, kind, env):
    """Autoreset shows in nothing but made-up rows: last observations are true, both flags become terminated."""
    steps = 40
    with golden_envs(mode, kind, env) as envs:
        found = collect(envs, steps)
    for index, transitions in enumerate(found):
        assert_same(transitions, played_alone(env(index), steps))
        assert len(transitions) >= 25
        if mode is not AutoresetMode.NEXT_STEP:
            assert len(transitions) == steps


@pytest.mark.parametrize("mode", MODES)
def test_returns_are_sums_of_raw_rewards_and_lengths_count_real_steps(mode):
    """The reset row of NEXT_STEP counts for nothing; under SAME_STEP no episode is a step short."""
    with golden_envs(mode, n=1) as envs:
        collect(envs, 40)
        episodes = envs.drain_episodes()
        assert envs.drain_episodes() == []
    alone = played_alone(GoldenEnv(), 40)
    expected, rewards = [], []
    for _, _, reward, _, terminated, truncated in alone:
        rewards.append(reward)
        if terminated or truncated:
            expected.append(Episode(sum(rewards), len(rewards)))
            rewards = []
    assert len(episodes) >= 10
    assert episodes == expected[: len(episodes)]


def test_whatever_an_environment_reports_on_the_row_it_makes_up_is_dropped():
    class Sloppy(SyncVectorEnv):
        def step(self, actions):
            resetting = self._autoreset_envs
            obs, reward, terminated, truncated, infos = super().step(actions)
            return obs, reward + 50 * resetting, terminated | resetting, truncated | resetting, infos

    with VectorEnvs(Sloppy([lambda: GoldenEnv(cycle=((2, "truncated"),))])) as envs:
        steps = [envs.step(np.array([0])) for _ in range(6)]
        assert envs.drain_episodes() == [Episode(10.0, 2), Episode(210.0, 2)]
    assert [bool(step.valid[0]) for step in steps] == [True, True, False] * 2
    for step in steps[2::3]:
        assert (step.reward[0], step.terminated[0], step.truncated[0]) == (0.0, False, False)


def test_an_end_on_the_last_row_of_a_rollout_masks_the_first_row_of_the_next():
    """The mask is kept by the environments, not by the rollout that happens to be collected."""
    with golden_envs(AutoresetMode.NEXT_STEP, n=1) as envs:
        rollouts = [[envs.step(np.array([0])) for _ in range(3)] for _ in range(2)]
    assert rollouts[0][-1].terminated[0]
    assert not rollouts[1][0].valid[0]
    np.testing.assert_array_equal(rollouts[0][-1].next_obs, [[0, 0, 3]])
    np.testing.assert_array_equal(rollouts[1][1].obs, [[0, 1, 0]])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("ending", ["terminated", "truncated", "both"])
def test_episodes_of_a_single_step(mode, kind, ending):
    """A time limit of 1: every valid row is an end, and successor and next start are not mixed up."""
    factories = [lambda i=i: GoldenEnv(i, cycle=((1, ending),)) for i in range(2)]
    with VectorEnvs(vector_of(factories, mode, kind)) as envs:
        found = collect(envs, 9)
        assert len(envs.drain_episodes()) == sum(len(transitions) for transitions in found)
    for index, transitions in enumerate(found):
        assert_same(transitions, played_alone(GoldenEnv(index, cycle=((1, ending),)), 9))
        assert len(transitions) == (5 if mode is AutoresetMode.NEXT_STEP else 9)
        assert all(row[4] != row[5] for row in transitions), "an end is either terminated or truncated"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_arrays_that_were_handed_out_are_never_written_again(mode, kind, copy):
    """Vector environments that return their own buffers (copy=False) would rewrite the rollout."""
    with golden_envs(mode, kind, copy=copy) as envs:
        steps, copies = [], []
        action = np.zeros(envs.num_envs, int)
        for _ in range(12):
            action[:] = choose(envs.obs, envs.num_envs)
            step = envs.step(action)
            fields = [step.obs, step.action, step.reward, step.next_obs, step.terminated, step.truncated, step.valid]
            steps.append(fields)
            copies.append([array.copy() for array in fields])
        envs.reset()
    for fields, before in zip(steps, copies, strict=True):
        for array, copied in zip(fields, before, strict=True):
            np.testing.assert_array_equal(array, copied)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_an_environment_that_reuses_its_observation_array_is_read_in_time(mode, kind):
    with golden_envs(mode, kind, BufferReusingEnv) as envs:
        found = collect(envs, 30)
    for index, transitions in enumerate(found):
        assert_same(transitions, played_alone(GoldenEnv(index), 30))


@pytest.mark.filterwarnings("ignore:.*share an object")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_same_step_keeps_last_observations_of_an_environment_that_reuses_its_array(kind):
    """Without a copy, the reset within the same step would overwrite the last observation."""
    id_ = "tests.fakes:relax_rl_fakes/BufferReusing-v0"
    with make_envs(id_, num_envs=2, vectorization=kind, autoreset_mode="SAME_STEP") as envs:
        found = collect(envs, 30)
    for transitions in found:
        assert_same(transitions, played_alone(GoldenEnv(), 30))


def test_a_last_observation_that_same_step_has_already_lost_is_an_error_not_a_wrong_number():
    with (
        golden_envs(AutoresetMode.SAME_STEP, env=BufferReusingEnv) as envs,
        pytest.raises(SettingsError, match="use NEXT_STEP"),
    ):
        collect(envs, 5)


def test_same_step_without_last_observations_is_refused():
    class Forgetful(SyncVectorEnv):
        def step(self, actions):
            obs, reward, terminated, truncated, _ = super().step(actions)
            return obs, reward, terminated, truncated, {}

    with (
        VectorEnvs(Forgetful([GoldenEnv], autoreset_mode=AutoresetMode.SAME_STEP)) as envs,
        pytest.raises(SettingsError, match="no final_obs"),
    ):
        collect(envs, 5)


def test_disabled_resets_finished_environments_alone_with_a_mask_of_its_own():
    """Gymnasium pops reset_mask out of the caller's dictionary: every reset must bring a new one."""
    given: list[dict[str, Any] | None] = []

    class Recorded(SyncVectorEnv):
        def reset(self, *, seed=None, options=None):
            given.append(options)
            return super().reset(seed=seed, options=None if options is None else dict(options))

    factories = [lambda: GoldenEnv(cycle=((2, "terminated"),)), lambda: GoldenEnv(1, cycle=((3, "truncated"),))]
    with VectorEnvs(Recorded(factories, autoreset_mode=AutoresetMode.DISABLED)) as envs:
        for _ in range(4):
            envs.step(np.array([0, 0]))
        np.testing.assert_array_equal(envs.obs, [[0, 2, 0], [1, 1, 1]])
    resets = [options["reset_mask"].tolist() for options in given if options is not None]
    assert resets == [[True, False], [False, True], [True, False]]
    assert len({id(options) for options in given if options is not None}) == 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_seeded_reset_right_after_an_end_starts_afresh(mode, kind):
    """A pending autoreset must not reach into the episodes that an explicit reset has just begun."""
    with golden_envs(mode, kind) as envs:
        while not (envs.step(choose(envs.obs, 3)).terminated.any()):
            pass
        first = envs.reset(seed=4)
        np.testing.assert_array_equal(first[:, 2], 0)
        step = envs.step(np.zeros(3, int))
        assert step.valid.all()
        np.testing.assert_array_equal(step.next_obs[:, 2], 1)
        np.testing.assert_array_equal(step.next_obs[:, 1], first[:, 1])


def test_workers_without_shared_memory_keep_a_pending_autoreset_and_the_mask_says_so():
    """AsyncVectorEnv(shared_memory=False) hides a second reset in the first step after an explicit one."""
    with golden_envs(AutoresetMode.NEXT_STEP, "async", n=1, shared_memory=False) as envs:
        for _ in range(3):
            envs.step(np.array([0]))
        envs.reset()
        step = envs.step(np.array([1]))
        assert not step.valid[0] and step.reward[0] == 0.0
        np.testing.assert_array_equal(step.next_obs, [[0, 2, 0]])
        assert envs.step(np.array([1])).valid[0]


def test_a_reset_forgets_unfinished_episodes_and_keeps_finished_ones():
    with golden_envs(AutoresetMode.SAME_STEP, n=1) as envs:
        for _ in range(5):
            envs.step(np.array([0]))
        envs.reset()
        assert envs.drain_episodes() == [Episode(30.0, 3), Episode(100.0, 1)]
        for _ in range(2):
            envs.step(np.array([0]))
        assert envs.drain_episodes() == [Episode(610.0, 2)]


def test_frames_come_from_environments_made_for_it():
    """Native Atari and environments without a render mode have none; a single synchronous one records."""
    with make_envs("CartPole-v1", num_envs=1, vectorization="sync", render_mode="rgb_array") as envs:
        (frame,) = envs.render()
        assert frame.ndim == 3 and frame.shape[-1] == 3 and frame.dtype == np.uint8
    with make_envs("ALE/Pong-v5", num_envs=1, render_mode="rgb_array") as envs:
        assert envs.vectorization == "sync"
        assert envs.render()[0].shape == (210, 160, 3)
    with make_envs("ALE/Pong-v5", num_envs=1) as envs, pytest.raises(SettingsError, match="renders no frames"):
        envs.render()


def test_where_nothing_renders_the_advice_is_not_what_was_done():
    id_ = "tests.fakes:relax_rl_fakes/Golden-v0"
    with make_envs(id_, num_envs=1, vectorization="sync") as envs:
        with pytest.raises(SettingsError, match='make it with render_mode="rgb_array" and vectorization "sync"'):
            envs.render()
        envs.vector_env.envs[0].unwrapped.render_mode = envs.vector_env.render_mode = "rgb_array"
        envs.vector_env.render = lambda: (None,)
        with pytest.raises(
            SettingsError, match="renders no frames; render_mode 'rgb_array' gives none, and render_modes"
        ):
            envs.render()
