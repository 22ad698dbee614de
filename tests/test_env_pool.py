"""EnvPool behind the adapter: ends, seeds, arrays and games as elsewhere, and which tasks are taken or refused."""

from __future__ import annotations

import re

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from relax_rl.backends import envpool as env_pool
from relax_rl.backends.envpool import DIFFERENT, SAME_BUT_FOR_THE_ENGINE, SAME_TO_ROUNDING, EnvPoolVectorEnv
from relax_rl.backends.registry import find_spec
from relax_rl.compute.installation import install_line, typed
from relax_rl.envs import Episode, Step, VectorEnvs, make_envs
from relax_rl.errors import SettingsError
from tests.fakes import need

pytest.importorskip("envpool", reason="needs the extra envpool")

# Ends, seeds, arrays


def test_a_final_state_at_the_time_limit_is_terminated_where_envpool_says_truncated() -> None:
    import envpool

    def falls(limit: int) -> Step:
        with make_envs("CartPole-v1", num_envs=1, vectorization="envpool", seed=0, max_episode_steps=limit) as envs:
            while not ((step := envs.step(np.ones(1, int))).terminated | step.truncated)[0]:
                pass
            assert envs.drain_episodes()[0].return_ == envs.vector_env._elapsed[0]
            return step

    with make_envs("CartPole-v1", num_envs=1, vectorization="envpool", seed=0) as envs:
        steps = 1
        while not envs.step(np.ones(1, int)).terminated[0]:
            steps += 1
        seeds = [int(word) >> 1 for word in np.random.SeedSequence(0).generate_state(1)]
    raw = envpool.make_gymnasium("CartPole-v1", num_envs=1, seed=seeds, max_episode_steps=steps)
    raw.reset()
    flags = [raw.step(np.ones(1, np.int32))[2:4] for _ in range(steps)][-1]
    assert not flags[0][0] and flags[1][0], "EnvPool itself tells the two ends apart; the limit can be left to it"
    assert falls(steps).terminated[0] and not falls(steps).truncated[0]
    assert falls(steps - 1).truncated[0]


def test_the_number_of_threads_changes_nothing() -> None:
    """Each environment has a random stream of its own."""
    need("LunarLander-v3")
    played = []
    for threads in (1, 3):
        env = EnvPoolVectorEnv(find_spec("LunarLander-v3"), 6, num_threads=threads, max_episode_steps=40)
        with VectorEnvs(env, seed=4) as envs:
            rng = np.random.default_rng(0)
            played.append(np.stack([envs.step(rng.integers(0, 4, 6)).next_obs for _ in range(100)]))
    np.testing.assert_array_equal(*played)


def test_a_reset_in_the_middle_takes_back_pending_ends() -> None:
    with make_envs("CartPole-v1", num_envs=3, vectorization="envpool", max_episode_steps=5, seed=2) as envs:
        started = envs.obs
        for _ in range(5):
            step = envs.step(np.array([0, 1, 0]))
        assert step.truncated.all()
        np.testing.assert_array_equal(envs.reset(2), started)
        assert envs.step(np.zeros(3, int)).valid.all()
        second = envs.reset()
        assert not np.array_equal(second, started)
        assert envs.step(np.zeros(3, int)).valid.all()


def test_arrays_that_were_handed_out_are_never_written_again() -> None:
    for env_id in ("CartPole-v1", "ALE/Breakout-v5"):
        with make_envs(env_id, num_envs=2, vectorization="envpool") as envs:
            steps = [envs.step(np.zeros(2, int)) for _ in range(3)]
            before = [(step.obs.copy(), step.next_obs.copy()) for step in steps]
            for _ in range(30):
                envs.step(np.ones(2, int))
        for step, (obs, next_obs) in zip(steps, before, strict=True):
            np.testing.assert_array_equal(step.obs, obs)
            np.testing.assert_array_equal(step.next_obs, next_obs)


@pytest.mark.parametrize("env_id", [*SAME_TO_ROUNDING, *SAME_BUT_FOR_THE_ENGINE, "ALE/MsPacman-v5"])
def test_spaces_and_thresholds_are_gymnasiums_and_fit_what_envpool_gives(env_id: str) -> None:
    if not env_id.startswith("ALE/"):
        need(env_id)
    with make_envs(env_id, num_envs=1, vectorization="envpool") as envs:
        assert envs.vectorization == "envpool" and envs.autoreset_mode is AutoresetMode.NEXT_STEP
        assert envs.solve_threshold == find_spec(env_id).reward_threshold
        space, given = envs.single_observation_space, envs.obs[0]
        assert (given.shape, given.dtype) == (space.shape, space.dtype)
        theirs = envs.vector_env._pool.action_space
        if isinstance(theirs, gym.spaces.Box):
            np.testing.assert_allclose(theirs.low, envs.single_action_space.low)
            np.testing.assert_allclose(theirs.high, envs.single_action_space.high)
        else:
            assert theirs.n == envs.single_action_space.n
        with make_envs(env_id, num_envs=1, vectorization="native" if env_id.startswith("ALE/") else "sync") as other:
            assert space == other.single_observation_space
            assert envs.single_action_space == other.single_action_space


# Atari


def test_atari_in_envpool_shows_and_pays_what_ale_does() -> None:
    """Frame by frame over several lives, without no-ops, so that both start alike."""
    cv2 = pytest.importorskip("cv2", reason="needs the extra atari-wrappers")
    import ale_py

    vector = EnvPoolVectorEnv(find_spec("ALE/Breakout-v5"), 1, num_threads=1)
    vector._settings |= {"noop_max": 1, "use_fire_reset": False}
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(ale_py.roms.get_rom_path("breakout"))
    ale.reset_game()
    ale.act(0)
    actions = ale.getMinimalActionSet()
    rng = np.random.default_rng(0)
    lost, score, lives = 0, 0.0, ale.lives()
    with VectorEnvs(vector, life_loss_terminal=True) as envs:
        assert not envs.obs[0, :3].any() and envs.obs[0, 3].any()
        for t in range(900):
            choice = int(rng.integers(len(actions)))
            frames, reward = [], 0
            for _ in range(4):
                reward += ale.act(actions[choice])
                frames.append(ale.getScreenGrayscale())
            step = envs.step(np.array([choice]))
            seen = cv2.resize(np.maximum(*frames[-2:]), (84, 84), interpolation=cv2.INTER_AREA)
            if not ale.game_over():
                np.testing.assert_array_equal(step.next_obs[0, 3], seen)
            assert step.next_obs[0, 0].any() == (t >= 2)
            assert step.reward[0] == reward
            assert step.terminated[0] == (ale.lives() < lives)
            lost += int(step.terminated[0])
            score, lives = score + reward, ale.lives()
            if ale.game_over():
                break
        assert lost == 5
        assert envs.drain_episodes() == [Episode(score, t + 1)]
        assert not envs.step(np.zeros(1, int)).valid[0] and not envs.obs[0, :3].any()


def test_sticky_actions_and_the_time_limit_of_games_reach_envpool() -> None:
    for sticky_actions in (0.0, 0.25):
        with make_envs("ALE/Pong-v5", num_envs=1, vectorization="envpool", sticky_actions=sticky_actions) as envs:
            assert envs.vector_env._pool.config["repeat_action_probability"] == pytest.approx(sticky_actions)
            assert envs.vector_env._limit == 27_000
    vector = EnvPoolVectorEnv(find_spec("ALE/Pong-v5"), 2, num_threads=1, max_episode_steps=7)
    with VectorEnvs(vector) as envs:
        steps = [envs.step(np.zeros(2, int)) for _ in range(9)]
    assert steps[6].truncated.all() and not steps[7].valid.any() and steps[8].valid.all()
    assert not steps[7].next_obs[:, :3].any() and not steps[8].next_obs[:, :2].any() and steps[8].next_obs[:, 2].any()


# What is chosen, and what is refused


@pytest.mark.parametrize(
    ("env_id", "settings", "chosen"),
    [
        ("LunarLander-v3", {"num_envs": 8}, "envpool"),
        ("HalfCheetah-v5", {"num_envs": 8}, "envpool"),
        ("LunarLander-v3", {"num_envs": 2}, "sync"),
        ("LunarLander-v3", {"num_envs": 8, "enable_wind": True}, "sync"),
        ("LunarLander-v3", {"num_envs": 8, "autoreset_mode": "SAME_STEP"}, "sync"),
        ("CartPole-v1", {"num_envs": 8}, "native"),
        ("ALE/Pong-v5", {"num_envs": 8}, "native"),
        ("Pendulum-v1", {"num_envs": 8}, "sync"),
        ("Ant-v5", {"num_envs": 8}, "sync"),
    ],
)
def test_auto_takes_envpool_where_it_is_the_same_task_and_pays(env_id: str, settings: dict, chosen: str) -> None:
    if not env_id.startswith("ALE/"):
        need(env_id)
    with make_envs(env_id, **settings) as envs:
        assert envs.vectorization == chosen


@pytest.mark.parametrize(
    ("env_id", "settings", "reason"),
    [
        *((env_id, {}, f"EnvPool's {env_id} is another task: it {why}") for env_id, why in DIFFERENT.items()),
        ("LunarLander-v3", {"enable_wind": True}, "EnvPool does not take 'enable_wind' for LunarLander-v3"),
        ("LunarLander-v3", {"autoreset_mode": "DISABLED"}, "EnvPool autoresets by NEXT_STEP, not DISABLED"),
        ("CliffWalking-v1", {}, "CliffWalking-v1 is not known to be the same task in EnvPool"),
        ("tests.fakes:relax_rl_fakes/Golden-v0", {}, "is not known to be the same task in EnvPool"),
    ],
)
def test_another_task_is_refused(env_id: str, settings: dict, reason: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_envs(env_id, num_envs=8, vectorization="envpool", **settings)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_an_environment_registered_under_a_known_name_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = gym.envs.registration.EnvSpec("MountainCar-v0", entry_point="tests.fakes:GoldenEnv")
    assert "not known to be the same" in str(env_pool.why_not_envpool(spec))


def test_without_envpool_auto_takes_gymnasium_and_asking_for_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(env_pool, "find_module", lambda name: None)
    with make_envs("Acrobot-v1", num_envs=8) as envs:
        assert envs.vectorization == "sync"
    with pytest.raises(SettingsError, match=re.escape(install_line("envpool"))):
        make_envs("Acrobot-v1", num_envs=8, vectorization="envpool")


def test_releases_with_other_tasks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = find_spec("Acrobot-v1")
    for release, refused in (
        ("1.1.9", True),
        ("0.8.4", True),
        ("1.2.5", False),
        ("1.10.0", False),
        ("1.3.0rc1", False),
    ):
        monkeypatch.setattr(env_pool, "version", lambda name, release=release: release)
        reason = env_pool.why_not_envpool(spec)
        assert reason == (
            f"EnvPool {release} has other tasks than 1.2.5, which is needed; {typed('pip')} install --upgrade envpool"
            if refused
            else None
        )


def test_other_registrations_of_games_and_options_of_a_reset_are_not_taken() -> None:
    assert not env_pool._is_atari(find_spec("PongNoFrameskip-v4"))
    with pytest.raises(SettingsError, match="options"):
        EnvPoolVectorEnv(find_spec("CartPole-v1"), 1, num_threads=1).reset(options={"reset_mask": np.array([True])})
