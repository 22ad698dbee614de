"""EnvPool beside Gymnasium: the same starts, steps, rewards and ends, or a refusal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import registry
from gymnasium.vector import AutoresetMode
from scipy.stats import ks_2samp

from relax_rl.backends import envpool as env_pool
from relax_rl.backends.creation import find_spec
from relax_rl.backends.envpool import DIFFERENT, SAME_BUT_FOR_THE_ENGINE, SAME_TO_ROUNDING, EnvPoolVectorEnv
from relax_rl.envs import Episode, Step, VectorEnvs, make_envs
from relax_rl.errors import SettingsError

pytest.importorskip("envpool", reason="needs the extra envpool")

NEEDS = {"box2d": "Box2D", "mujoco": "mujoco"}
"""The package that a family of Gymnasium's needs."""


def need(env_id: str) -> None:
    for family, module in NEEDS.items():
        if f".{family}" in str(registry[env_id].entry_point):
            pytest.importorskip(module, reason=f"needs the extra {family}")


@contextmanager
def alone(env_id: str) -> Iterator[Any]:
    """Gymnasium's own environment, without a time limit."""
    env = gym.make(env_id, disable_env_checker=True).unwrapped
    env.reset(seed=0)
    yield env
    env.close()


def random_actions(envs: VectorEnvs, rng: np.random.Generator) -> np.ndarray:
    space = envs.single_action_space
    if isinstance(space, gym.spaces.Discrete):
        return rng.integers(0, space.n, envs.num_envs)
    return rng.uniform(space.low, space.high, (envs.num_envs, *space.shape)).astype(space.dtype)


# Classic control: every transition, by itself


def classic_state(env_id: str, obs: np.ndarray) -> np.ndarray:
    if env_id.startswith("Acrobot"):
        return np.array([np.arctan2(obs[1], obs[0]), np.arctan2(obs[3], obs[2]), obs[4], obs[5]], np.float64)
    return obs.astype(np.float64)


def swings(env_id: str, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Actions that reach the goal now and then."""
    if env_id.startswith("CartPole"):
        return rng.integers(0, 2, len(obs))
    faster = obs[:, 4] < 0 if env_id.startswith("Acrobot") else obs[:, 1] > 0
    if env_id.startswith("MountainCarContinuous"):
        return np.where(faster, 1, -1)[:, None] * rng.uniform(0.5, 1, (len(obs), 1)).astype(np.float32)
    return np.where(rng.random(len(obs)) < 0.9, 2 * faster, rng.integers(0, 3, len(obs)))


@pytest.mark.parametrize(
    ("env_id", "limit"),
    [
        ("CartPole-v0", 30),
        ("CartPole-v1", 30),
        ("MountainCar-v0", 130),
        ("MountainCarContinuous-v0", 110),
        ("Acrobot-v1", 90),
    ],
)
def test_every_transition_of_classic_control_is_gymnasiums(env_id: str, limit: int) -> None:
    """From what the agent saw, Gymnasium's step leads to the successor, reward and flags that were reported."""
    rng = np.random.default_rng(0)
    with alone(env_id) as env, make_envs(env_id, num_envs=12, vectorization="envpool", max_episode_steps=limit) as envs:
        lengths = np.zeros(12, int)
        ends = {"terminated": 0, "truncated": 0, "made up": 0}
        for t in range(400):
            step = envs.step(swings(env_id, envs.obs, rng))
            lengths = np.where(step.valid, lengths + 1, 0)
            np.testing.assert_array_equal(step.truncated, (lengths == limit) & ~step.terminated)
            ends["terminated"] += int(step.terminated.sum())
            ends["truncated"] += int(step.truncated.sum())
            ends["made up"] += int((~step.valid).sum())
            for row in np.flatnonzero(step.valid)[:: 1 if step.terminated.any() else 5]:
                env.state = classic_state(env_id, step.obs[row])
                obs, reward, terminated, _, _ = env.step(step.action[row])
                np.testing.assert_allclose(step.next_obs[row], obs, rtol=2e-5, atol=2e-5, err_msg=f"step {t}")
                assert step.reward[row] == pytest.approx(reward, rel=1e-5)
                assert step.terminated[row] == terminated
                if env_id.startswith("CartPole"):
                    env.steps_beyond_terminated = None
    assert ends["terminated"] >= 5 and ends["truncated"] >= 5
    assert ends["terminated"] + ends["truncated"] - 12 <= ends["made up"] <= ends["terminated"] + ends["truncated"]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MountainCar-v0", "Acrobot-v1"])
def test_episodes_of_classic_control_start_as_gymnasiums_do(env_id: str) -> None:
    with alone(env_id) as env:
        theirs = np.stack([env.reset(seed=seed)[0] for seed in range(1000)])
    with make_envs(env_id, num_envs=1000, vectorization="envpool") as envs:
        for theirs_column, column in zip(theirs.T, envs.obs.T, strict=True):
            assert ks_2samp(theirs_column, column).pvalue > 1e-4


# MuJoCo: whole trajectories


def mujoco_state(env_id: str, obs: np.ndarray, env: Any) -> tuple[np.ndarray, np.ndarray]:
    """Positions and speeds behind an observation; the place along the track, which nothing depends on, is 0."""
    nq, nv = env.model.nq, env.model.nv
    if env_id.startswith("InvertedPendulum"):
        return obs[:2], obs[2:4]
    if env_id.startswith("InvertedDouble"):
        return np.append(obs[:1], np.arctan2(obs[1:3], obs[3:5])), obs[5:8]
    if env_id.startswith("Reacher"):
        env.goal = obs[4:6].copy()
        return np.append(np.arctan2(obs[2:4], obs[:2]), obs[4:6]), np.append(obs[6:8], [0, 0])
    if env_id.startswith("Pusher"):
        moved = env.init_qpos.copy()
        moved[7:11] = 0
        env.set_state(moved, np.zeros(nv))
        things = [obs[17:19] - env.get_body_com("object")[:2], obs[20:22] - env.get_body_com("goal")[:2]]
        moved[:7], moved[7:9], moved[9:11] = obs[:7], things[0][::-1], things[1][::-1]  # their slides: y, then x
        return moved, np.append(obs[7:14], np.zeros(4))
    unseen = nq + nv - len(obs) if len(obs) < nq + nv else 2
    return np.append(np.zeros(unseen), obs[: nq - unseen]), obs[nq - unseen : nq - unseen + nv]


def start_alike(env_id: str, env: Any, obs: np.ndarray) -> None:
    """Puts Gymnasium's simulator into the state of a fresh episode."""
    import mujoco

    qpos, qvel = mujoco_state(env_id, obs, env)
    mujoco.mj_resetData(env.model, env.data)
    env.set_state(qpos, qvel)


EXACT = [env_id for env_id in SAME_TO_ROUNDING if "mujoco" in str(registry[env_id].entry_point)]


@pytest.mark.parametrize("env_id", EXACT)
def test_trajectories_of_mujoco_are_gymnasiums_to_rounding(env_id: str) -> None:
    """Starts, 30 steps, rewards (single precision in EnvPool) and ends; the next episodes, too."""
    need(env_id)
    logging.getLogger("mujoco").setLevel(logging.ERROR)
    rng = np.random.default_rng(0)
    episodes = steps = 0
    with alone(env_id) as env, make_envs(env_id, num_envs=2, vectorization="envpool", max_episode_steps=30) as envs:
        start_alike(env_id, env, envs.obs[0])
        while steps < 40:
            step = envs.step(random_actions(envs, rng))
            if not step.valid[0]:
                start_alike(env_id, env, envs.obs[0])
                continue
            obs, reward, terminated, _, _ = env.step(step.action[0])
            np.testing.assert_allclose(step.next_obs[0], obs, rtol=1e-8, atol=1e-8)
            assert step.reward[0] == pytest.approx(reward, rel=1e-5, abs=1e-5)
            assert step.terminated[0] == terminated
            episodes += int(step.terminated[0] or step.truncated[0])
            steps += 1
    assert episodes >= 1


@pytest.mark.parametrize("env_id", SAME_BUT_FOR_THE_ENGINE)
def test_tasks_with_other_contacts_start_and_move_alike(env_id: str) -> None:
    """MuJoCo 4 resolves contacts otherwise than EnvPool's 3.6; starts, spaces and a first step still agree."""
    need(env_id)
    with alone(env_id) as env, make_envs(env_id, num_envs=1, vectorization="envpool") as envs:
        start_alike(env_id, env, envs.obs[0])
        np.testing.assert_allclose(env._get_obs(), envs.obs[0], rtol=1e-9, atol=1e-9)
        step = envs.step(random_actions(envs, np.random.default_rng(1)))
        obs, reward, *_ = env.step(step.action[0])
        np.testing.assert_allclose(step.next_obs[0], obs, rtol=2e-3, atol=2e-2)
        assert step.reward[0] == pytest.approx(reward, rel=1e-3, abs=1e-3)


# Box2D: the reward, and whole episodes in distribution


def lander_potential(obs: np.ndarray) -> np.ndarray:
    return (
        -100 * np.hypot(obs[:, 0], obs[:, 1])
        - 100 * np.hypot(obs[:, 2], obs[:, 3])
        - 100 * np.abs(obs[:, 4])
        + 10 * obs[:, 6]
        + 10 * obs[:, 7]
    )


def test_the_lunar_lander_is_paid_as_gymnasiums_is() -> None:
    """The change of the potential less the fuel; -100 for a crash."""
    need("LunarLander-v3")
    fuel = np.array([0, 0.03, 0.3, 0.03])
    rng = np.random.default_rng(0)
    crashes = 0
    with make_envs("LunarLander-v3", num_envs=8, vectorization="envpool") as envs:
        for _ in range(300):
            step = envs.step(rng.integers(0, 4, 8))
            on = step.valid & ~step.terminated
            expected = lander_potential(step.next_obs) - lander_potential(step.obs) - fuel[step.action]
            np.testing.assert_allclose(step.reward[on], expected[on], atol=2e-4)
            assert set(step.reward[step.terminated]) <= {-100.0, 100.0}
            crashes += int(step.terminated.sum())
    assert crashes > 10


@pytest.mark.parametrize(
    ("env_id", "limit"),
    [
        ("LunarLander-v3", 1000),
        ("LunarLanderContinuous-v3", 1000),
        ("BipedalWalker-v3", 60),
        ("BipedalWalkerHardcore-v3", 60),
    ],
)
def test_episodes_of_box2d_have_gymnasiums_returns_and_lengths(env_id: str, limit: int) -> None:
    """Their random numbers cannot be shared, so that distributions are compared."""
    need(env_id)
    found = []
    for vectorization in ("envpool", "sync"):
        rng = np.random.default_rng(0)
        kwargs = {"vectorization": vectorization, "max_episode_steps": limit}
        with make_envs(env_id, num_envs=32, **kwargs) as envs:
            rows: list[list[Episode]] = [[] for _ in range(32)]
            while min(map(len, rows)) < 2:
                step = envs.step(random_actions(envs, rng))
                ended = np.flatnonzero(step.terminated | step.truncated)
                for row, episode in zip(ended, envs.drain_episodes(), strict=True):
                    rows[row].append(episode)
        # the same number from each environment, since those that finish first are the short ones
        found.append([episode for row in rows for episode in row[:2]])
    for name in ("return_", "length"):
        ours, theirs = ([getattr(episode, name) for episode in episodes] for episodes in found)
        assert ks_2samp(ours, theirs).pvalue > 1e-3
        assert abs(np.mean(ours) - np.mean(theirs)) < 4 * np.hypot(np.std(ours), np.std(theirs)) / np.sqrt(64)


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
    with pytest.raises(SettingsError, match=r'pip install "relax-rl\[envpool\]"'):
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
            f"EnvPool {release} has other tasks than 1.2.5, which is needed; pip install --upgrade envpool"
            if refused
            else None
        )


def test_other_registrations_of_games_and_options_of_a_reset_are_not_taken() -> None:
    assert not env_pool._is_atari(find_spec("PongNoFrameskip-v4"))
    with pytest.raises(SettingsError, match="options"):
        EnvPoolVectorEnv(find_spec("CartPole-v1"), 1, num_threads=1).reset(options={"reset_mask": np.array([True])})
