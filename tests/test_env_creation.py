"""Making environments: what can be asked for, and clear words when it cannot be had."""

from __future__ import annotations

import math
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from relax_rl.backends.registry import find_spec
from relax_rl.compute.installation import install_line, typed
from relax_rl.envs import Episode, VectorEnvs, make_envs
from relax_rl.errors import SettingsError


def test_native_vector_code_is_taken_where_it_exists_and_can_do_what_is_asked():
    """Native CartPole knows NEXT_STEP alone; options go to native code as they are, to the others by vector_kwargs."""
    with make_envs("CartPole-v1", num_envs=2, max_episode_steps=4) as envs:
        assert (envs.vectorization, envs.autoreset_mode) == ("native", AutoresetMode.NEXT_STEP)
        assert (envs.env_id, envs.solve_threshold, envs.num_envs) == ("CartPole-v1", 475.0, 2)
        steps = [envs.step(np.array([0, 1])) for _ in range(5)]
        assert steps[3].truncated.all() and not steps[4].valid.any()
    for mode in (AutoresetMode.SAME_STEP, "DISABLED"):
        with make_envs("CartPole-v1", num_envs=2, autoreset_mode=mode, max_episode_steps=4) as envs:
            assert envs.vectorization == "sync"
            steps = [envs.step(np.array([0, 1])) for _ in range(5)]
            assert steps[3].truncated.all() and steps[4].valid.all()


def test_native_cartpole_refuses_to_be_reset_by_hand():
    """It ignores reset_mask and would reset every environment."""
    with pytest.raises(SettingsError, match="NEXT_STEP, not DISABLED"):
        make_envs("CartPole-v1", num_envs=2, vectorization="native", autoreset_mode="DISABLED")
    env = gym.make_vec("CartPole-v1", 2)
    env.metadata = {**env.metadata, "autoreset_mode": AutoresetMode.DISABLED}
    with pytest.raises(SettingsError, match="native CartPole cannot autoreset by DISABLED"):
        VectorEnvs(env)


def test_native_cartpole_reports_double_precision_rewards_and_one_kind_of_end():
    """Its rewards are single precision and both its flags may be True at once."""
    with make_envs("CartPole-v1", num_envs=1, seed=0) as envs:
        falls = 1
        while not envs.step(np.ones(1, int)).terminated[0]:
            falls += 1
    raw = gym.make_vec("CartPole-v1", 1, max_episode_steps=falls)
    with make_envs("CartPole-v1", num_envs=1, seed=0, max_episode_steps=falls) as envs:
        raw.reset(seed=envs.vector_env.np_random_seed)
        for _ in range(falls):
            _, _, terminated, truncated, _ = raw.step(np.ones(1, int))
            step = envs.step(np.ones(1, int))
        assert terminated[0] and truncated[0]
        assert step.terminated[0] and not step.truncated[0]
        assert step.reward.dtype == np.float64
        assert envs.drain_episodes() == [Episode(float(falls), falls)]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_any_registered_id_with_settings_of_its_own(vectorization):
    """A tuple stays a tuple on its way to the environment, and the module that registers the id is imported."""
    id_ = "tests.fakes:relax_rl_fakes/Keyword-v0"
    with make_envs(id_, num_envs=2, vectorization=vectorization, size=(5, 6)) as envs:
        assert envs.env_id == id_ and envs.vectorization == vectorization and envs.solve_threshold is None
        assert envs.vector_env.get_attr("size") == ((5, 6), (5, 6))


def test_the_threshold_of_a_registration_is_known():
    with make_envs("tests.fakes:relax_rl_fakes/Golden-v0", num_envs=1) as envs:
        assert envs.solve_threshold == 7.0


def test_a_name_without_version_means_the_highest():
    assert find_spec("CartPole").id == "CartPole-v1"
    with make_envs("MountainCar", num_envs=1) as envs:
        assert envs.env_id == "MountainCar-v0"


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("CartPole-v9", "CartPole-v1"),
        ("cartpole-v1", "CartPole-v1"),
        ("CartPoel-v1", "CartPole-v1"),
        ("LunarLander-v2", "LunarLander-v3"),
        ("Breakout-v5", "ALE/Breakout-v5"),
        ("ALE/Pog-v5", "ALE/Pong-v5"),
        ("HalfCheetah-v9", "HalfCheetah-v5"),
    ],
)
def test_an_unknown_environment_is_answered_with_near_names(wrong, near):
    with pytest.raises(SettingsError, match="unknown environment") as caught:
        make_envs(wrong)
    named = str(caught.value).split("did you mean ")[1].rstrip("?").split(", ")
    assert near == named[0]
    assert all(name in gym.registry for name in named)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *((wrong, "expected a Gymnasium id such as CartPole-v1") for wrong in ("", ":", "Zzzzyx-v0", "a/b/c/d", "-v1")),
        *((wrong, r"cannot import .* PYTHONPATH") for wrong in ("no_such_module:Env-v0", "no.such:Env-v0")),
        ("tests/fakes.py:Env-v0", "is no name of a module; did you mean tests.fakes:Env-v0?"),
        *((wrong, "is no name of a module") for wrong in ("a:b:Env-v0", ".fakes:Env-v0", "my env:Env-v0")),
    ],
)
def test_a_name_like_no_other_is_answered_with_what_is_expected(wrong, message):
    with pytest.raises(SettingsError, match=message) as caught:
        make_envs(wrong)
    assert "\n" not in str(caught.value)


def test_a_registration_that_only_says_it_is_gone_names_its_successor():
    """MuJoCo v2 and v3 are registered, and raise."""
    with pytest.raises(SettingsError, match="HalfCheetah-v3 is gone; use HalfCheetah-v5"):
        make_envs("HalfCheetah-v3", num_envs=1)


@pytest.mark.parametrize(
    ("env", "entry", "reason", "advice"),
    [
        ("LunarLander-v3", "entry_point", "Box2D is not installed", install_line("box2d")),
        ("InvertedPendulum-v5", "entry_point", "No module named 'mujoco'", install_line("mujoco")),
        ("PongNoFrameskip-v4", "entry_point", "No module named 'cv2'", install_line("atari-wrappers")),
        (
            "phys2d/CartPole-v1",
            "vector_entry_point",
            "No module named 'jax'",
            f'{typed("pip")} install "gymnasium[jax]"',
        ),
        ("Acrobot-v1", "entry_point", "No module named 'odd'", "No module named 'odd'"),
    ],
)
@pytest.mark.parametrize("error", [ImportError, gym.error.DependencyNotInstalled])
def test_a_missing_package_is_answered_with_what_to_install(monkeypatch, env, entry, reason, advice, error):
    def make_vec(spec, *args, **kwargs):
        raise error(f"{reason}\nand much more")

    monkeypatch.setattr(gym, "make_vec", make_vec)
    with pytest.raises(SettingsError, match="not installed") as caught:
        make_envs(env, num_envs=1)
    assert advice in str(caught.value) and env in str(caught.value) and "\n" not in str(caught.value)


def test_atari_without_ale_py_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(SettingsError, match="pip install ale-py"):
        make_envs("ALE/Pong-v5")


def test_a_setting_that_an_environment_does_not_have_is_refused():
    for vectorization in ("native", "sync"):
        with pytest.raises(SettingsError, match=r"does not take these settings.*wings"):
            make_envs("CartPole-v1", vectorization=vectorization, wings=2)
        with pytest.raises(SettingsError, match=r"does not take these settings.*'n_envs'.*; did you mean num_envs\?"):
            make_envs("CartPole-v1", vectorization=vectorization, n_envs=2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_envs": 0}, "num_envs is 0, expected at least 1"),
        ({"num_envs": 2.5}, r"num_envs is 2\.5, expected int"),
        ({"first_env": -1}, "first_env is -1, expected a whole number from 0"),
        ({"sticky_actions": 1.0}, r"sticky_actions is 1\.0, expected at least 0\.0 and below 1"),
        ({"sticky_actions": math.nan}, r"sticky_actions is nan, expected at least 0\.0 and below 1"),
        ({"vectorization": "threads"}, "vectorization is 'threads', expected auto, native, envpool, sync or async"),
        ({"autoreset_mode": "NEVER"}, "autoreset_mode is 'NEVER', expected one of NEXT_STEP, SAME_STEP, DISABLED"),
        ({"env": "Acrobot-v1", "vectorization": "native"}, "has no native vector code"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(kwargs, message):
    with pytest.raises(SettingsError, match=message):
        make_envs(**{"env": "CartPole-v1", **kwargs})


def test_native_only_environments_cannot_be_stepped_one_by_one(monkeypatch):
    spec = gym.envs.registration.EnvSpec(
        "OnlyNative-v0", vector_entry_point="gymnasium.envs.classic_control:CartPoleVectorEnv"
    )
    monkeypatch.setitem(gym.registry, spec.id, spec)
    with pytest.raises(SettingsError, match="native vector code only"):
        make_envs(spec.id, vectorization="sync")


@pytest.mark.parametrize(
    ("wrong", "near"), [("Golden-v1", "Golden-v0"), ("golden-v0", "Golden-v0"), ("Pioson-v0", "Poisoned-v0")]
)
def test_a_mistyped_id_of_a_module_is_answered_with_what_the_module_registers(wrong, near):
    with pytest.raises(SettingsError, match="unknown environment") as caught:
        make_envs(f"tests.fakes:relax_rl_fakes/{wrong}")
    named = str(caught.value).split("did you mean ")[1].rstrip("?").split(", ")
    assert named[0] == f"tests.fakes:relax_rl_fakes/{near}"
    assert all(name.startswith("tests.fakes:relax_rl_fakes/") for name in named)


@pytest.mark.parametrize("body", ["raise SystemExit(3)", "1 / 0", "x = ("])
def test_a_module_that_cannot_be_imported_is_told_in_one_line(tmp_path, monkeypatch, body):
    (tmp_path / "breaks_at_import.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match="'breaks_at_import' cannot be imported"):
        make_envs("breaks_at_import:Env-v0")


def test_an_environment_that_cannot_be_made_says_which():
    def broken():
        raise RuntimeError("no licence")

    gym.register("relax_rl_fakes/Broken-v0", broken)
    with pytest.raises(SettingsError, match=r"^relax_rl_fakes/Broken-v0 cannot be made: RuntimeError: no licence$"):
        make_envs("relax_rl_fakes/Broken-v0", num_envs=1)
