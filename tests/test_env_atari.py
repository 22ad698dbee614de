"""Atari: lives, native and classic code, sticky actions, raw scores."""

from __future__ import annotations

from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from relax_rl.envs import Episode, VectorEnvs, make_envs
from relax_rl.errors import SettingsError
from relax_rl.networks.spaces import ObservationEncoder
from tests.fakes import LivesEnv, vector_of

gym.register_envs(ale_py)

MODES = tuple(AutoresetMode)


@pytest.mark.parametrize("lingers", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_lost_life_ends_an_episode_for_learning_and_nothing_else(mode, kind, lingers):
    """The game goes on, no row is made up, and return and length are those of the whole game."""
    factories = [lambda: LivesEnv(lives=(2,), life_length=2, lingers=lingers)] * 2
    with VectorEnvs(vector_of(factories, mode, kind), life_loss_terminal=True) as envs:
        steps = [envs.step(np.zeros(2, int)) for _ in range(12)]
        episodes = envs.drain_episodes()
    seen = [
        (float(step.obs[0, 0]), float(step.next_obs[0, 0]), bool(step.terminated[0])) for step in steps if step.valid[0]
    ]
    game = [(0.0, 1.0, False), (1.0, 2.0, True), (2.0, 3.0, False), (3.0, 4.0, True)] + [(4.0, 5.0, True)] * lingers
    assert len(seen) >= 8
    assert seen == (game * 4)[: len(seen)]
    assert set(episodes) == {Episode(float(len(game)), len(game))}
    made_up = 0 if mode is not AutoresetMode.NEXT_STEP else len(episodes) // 2
    assert sum(not step.valid[0] for step in steps) == made_up


@pytest.mark.parametrize("mode", MODES)
def test_fewer_lives_in_the_next_game_are_no_lost_life(mode):
    """A game cut off with three lives left, followed by a game of two: that is a truncation and a fresh start."""
    with VectorEnvs(
        vector_of([lambda: LivesEnv(lives=(3, 2), life_length=9, limit=2)], mode), life_loss_terminal=True
    ) as envs:
        steps = [envs.step(np.zeros(1, int)) for _ in range(9)]
    truncated = [bool(step.truncated[0]) for step in steps if step.valid[0]]
    assert truncated == ([False, True] * 5)[: len(truncated)]
    assert not any(step.terminated[0] for step in steps)  # nor does a made-up row lose a life


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_a_life_lost_in_the_step_that_is_cut_off_is_terminated(mode):
    with VectorEnvs(vector_of([lambda: LivesEnv(life_length=2, limit=2)], mode), life_loss_terminal=True) as envs:
        steps = [envs.step(np.zeros(1, int)) for _ in range(2)]
        assert steps[1].terminated[0] and not steps[1].truncated[0]
        assert envs.drain_episodes() == [Episode(2.0, 2)]


def test_lives_count_for_nothing_unless_asked_for():
    with VectorEnvs(SyncVectorEnv([LivesEnv])) as envs:
        assert [bool(envs.step(np.zeros(1, int)).terminated[0]) for _ in range(6)] == [False] * 5 + [True]


def test_an_action_outside_an_atari_game_is_refused_where_ale_would_wait_for_ever():
    with make_envs("ALE/Pong-v5", num_envs=2) as envs:
        for bad in ([0, 6], [0, -1], [0]):
            with pytest.raises(SettingsError, match="action"):
                envs.step(np.array(bad))
        assert envs.step(np.array([0, 5], np.int8)).action.dtype == np.int64


def test_the_last_atari_built_does_not_decide_the_mode_of_all():
    """ale-py writes the mode into metadata that every vector environment of the process shares."""
    with short_atari("NEXT_STEP") as first, short_atari("SAME_STEP") as second:
        assert first.vector_env.metadata is second.vector_env.metadata
        again = VectorEnvs(first.vector_env)
        assert again.autoreset_mode is AutoresetMode.NEXT_STEP
        assert second.autoreset_mode is AutoresetMode.SAME_STEP


def atari_actions(envs: VectorEnvs, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, envs.single_action_space.n, envs.num_envs)


def test_native_atari_has_the_usual_frames_and_raw_scores():
    """ale-py clips rewards unless told otherwise, and hides the score for good: a pellet is worth 10."""
    with make_envs("ALE/MsPacman-v5", num_envs=2) as envs:
        assert (envs.vectorization, envs.obs.shape, envs.obs.dtype) == ("native", (2, 4, 84, 84), np.uint8)
        assert ObservationEncoder(envs.single_observation_space).is_image
        rng = np.random.default_rng(0)
        rewards = np.concatenate([envs.step(atari_actions(envs, rng)).reward for _ in range(120)])
    assert rewards.dtype == np.float64 and rewards.max() >= 10


@pytest.mark.parametrize(
    "setting", ["reward_clipping", "episodic_life", "life_loss_info", "batch_size", "repeat_action_probability"]
)
def test_atari_settings_that_would_break_the_adapter_are_refused(setting):
    with pytest.raises(SettingsError, match=f"does not take '{setting}' here"):
        make_envs("ALE/Pong-v5", num_envs=2, **{setting: 1})


def test_an_atari_vector_that_answers_in_arrival_order_is_refused():
    with pytest.raises(SettingsError, match="batch_size is 1, expected 2"):
        VectorEnvs(ale_py.AtariVectorEnv("pong", 2, batch_size=1))


def test_sticky_actions_are_what_was_asked_for():
    """The registered id repeats actions with probability 0.25, the class with 0: the setting always decides."""

    def play(sticky_actions: float) -> np.ndarray:
        rng = np.random.default_rng(0)
        with make_envs("ALE/Pong-v5", num_envs=2, seed=5, sticky_actions=sticky_actions) as envs:
            return np.stack([envs.step(atari_actions(envs, rng)).next_obs for _ in range(30)])

    plain = ale_py.AtariVectorEnv("pong", 2, repeat_action_probability=0.0)
    with VectorEnvs(plain, seed=5) as envs:
        rng = np.random.default_rng(0)
        expected = np.stack([envs.step(atari_actions(envs, rng)).next_obs for _ in range(30)])
    np.testing.assert_array_equal(play(0.0), expected)
    assert not np.array_equal(play(0.25), expected)


def test_native_atari_goes_by_the_cores_that_the_process_may_use(monkeypatch):
    """ale-py counts the cores of the host and knows nothing of the share a container gets."""
    seen: list[int] = []

    def record(*args: Any, **kwargs: Any) -> None:
        seen.append(kwargs["num_threads"])
        raise gym.error.Error("recorded")

    monkeypatch.setattr(gym, "make_vec", record)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    for settings in ({"num_envs": 2}, {"num_envs": 5}, {"num_envs": 2, "num_threads": 1}):
        with pytest.raises(SettingsError, match="recorded"):
            make_envs("ALE/Pong-v5", **settings)
    assert seen == [2, 4, 1]  # one more than cores, so that a long frame leaves none idle


def short_atari(mode: str) -> VectorEnvs:
    return make_envs("ALE/Pong-v5", num_envs=3, seed=2, autoreset_mode=mode, max_num_frames_per_episode=60)


def test_native_atari_gives_the_same_transitions_under_next_step_and_same_step():
    """SAME_STEP's last observations are dense, without a mask, and garbage for unfinished environments."""
    seen = {}
    for mode in ("NEXT_STEP", "SAME_STEP"):
        with short_atari(mode) as envs:
            counts, rows = np.zeros(3, int), [[] for _ in range(3)]
            for _ in range(70):
                step = envs.step(counts % 4)
                counts += step.valid
                for row in np.flatnonzero(step.valid):
                    rows[row].append(
                        [
                            array[row]
                            for array in (step.obs, step.reward, step.next_obs, step.terminated, step.truncated)
                        ]
                    )
            assert envs.vectorization == "native"
            seen[mode] = (rows, envs.drain_episodes())
    next_step, same_step = seen["NEXT_STEP"], seen["SAME_STEP"]
    assert 6 <= len(next_step[1]) <= len(same_step[1])
    for left_rows, right_rows in zip(next_step[0], same_step[0], strict=True):
        assert len(left_rows) < len(right_rows) == 70
        assert sum(row[4] for row in left_rows) >= 2, "no game was cut off"
        for left, right in zip(left_rows, right_rows, strict=False):
            for one, other in zip(left, right, strict=True):
                np.testing.assert_array_equal(one, other)


def test_atari_cannot_be_reset_by_hand_natively_and_is_stepped_one_by_one():
    """AtariVectorEnv raises on DISABLED."""
    with pytest.raises(SettingsError, match="NEXT_STEP, not DISABLED"):
        make_envs("ALE/Pong-v5", num_envs=2, vectorization="native", autoreset_mode="DISABLED")
    with make_envs("ALE/Pong-v5", num_envs=1, autoreset_mode="DISABLED") as envs:
        assert envs.vectorization == "sync" and envs.obs.shape == (1, 4, 84, 84)


def test_a_seeded_reset_of_native_atari_right_after_an_end_starts_afresh():
    with short_atari("NEXT_STEP") as envs:
        started = envs.obs
        while not envs.step(np.zeros(3, int)).truncated.any():
            pass
        np.testing.assert_array_equal(envs.reset(2), started)
        assert envs.step(np.zeros(3, int)).valid.all()


def test_a_lost_life_in_native_atari_does_not_restart_the_game():
    """ale-py's own episodic_life starts a new game; here the game goes on and its score is that of all lives."""
    raw = gym.make_vec(
        "ALE/Breakout-v5", 2, life_loss_info=True, reward_clipping=False, repeat_action_probability=0.25, num_threads=1
    )
    with make_envs("ALE/Breakout-v5", num_envs=2, seed=1) as envs:
        raw_seeds = np.random.SeedSequence(1).generate_state(2) >> 1
        raw.reset(seed=raw_seeds.astype(np.int64))
        rng = np.random.default_rng(0)
        lost, made_up, score, games = 0, 0, np.zeros(2), []
        for _ in range(260):
            action = rng.integers(0, 4, 2)
            obs, _, terminated, truncated, infos = raw.step(action)
            step = envs.step(action)
            np.testing.assert_array_equal(step.next_obs, obs)
            np.testing.assert_array_equal(step.terminated, terminated)
            np.testing.assert_array_equal(step.truncated, truncated)
            score += step.reward
            lost += int((terminated & (infos["lives"] > 0)).sum())
            made_up += int((~step.valid).sum())
            for row in np.flatnonzero(terminated & (infos["lives"] == 0)):
                games.append(score[row])
                score[row] = 0.0
        episodes = envs.drain_episodes()
    raw.close()
    assert lost >= 8, "too few lives were lost to tell"
    assert len(games) >= 2
    assert [episode.return_ for episode in episodes] == games
    assert len(episodes) - 2 <= made_up <= len(episodes)
    assert min(episode.length for episode in episodes) > 40, "an episode is a game, not a life"


def test_atari_without_native_code_goes_through_the_same_preprocessing():
    """NoFrameskip ids: four frames per step, four frames stacked, empty before the first; lives end no game."""
    with make_envs("BreakoutNoFrameskip-v4", num_envs=1, sticky_actions=0.0) as envs:
        assert (envs.vectorization, envs.obs.shape, envs.obs.dtype) == ("sync", (1, 4, 84, 84), np.uint8)
        assert not envs.obs[0, :3].any() and envs.obs[0, 3].any()
        before = envs.vector_env.get_attr("ale")[0].getEpisodeFrameNumber()
        envs.step(np.zeros(1, int))
        assert envs.vector_env.get_attr("ale")[0].getEpisodeFrameNumber() == before + 4
        rng = np.random.default_rng(0)
        terminations = 0
        while not (episodes := envs.drain_episodes()):
            terminations += bool(envs.step(rng.integers(0, 4, 1)).terminated[0])
    assert terminations == 5 and len(episodes) == 1


def test_sticky_actions_reach_single_atari_environments():
    """The id v4 promises none: the setting decides."""
    for sticky_actions in (0.0, 0.25):
        with make_envs("PongNoFrameskip-v4", num_envs=1, sticky_actions=sticky_actions) as envs:
            ale = envs.vector_env.get_attr("ale")[0]
            assert ale.getFloat("repeat_action_probability") == pytest.approx(sticky_actions)
