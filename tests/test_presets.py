"""Presets: found by id, overridden by what is given, and valid for every family."""

from __future__ import annotations

import math

import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv

from relax_rl import A2C, LAX, RELAX, Marginal, Reinforce
from relax_rl.commands.train import train_config
from relax_rl.errors import SettingsError
from relax_rl.settings import recipes
from relax_rl.settings.config import AgentConfig, TrainConfig
from relax_rl.settings.fields import with_settings
from relax_rl.settings.presets import PRESETS, Override, Preset, find_preset, is_atari, preset_config, settings_for


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ("CartPole-v1", "classic-control"),
        ("Pendulum-v1", "classic-control"),
        ("LunarLander-v3", "box2d"),
        ("BipedalWalkerHardcore-v3", "box2d"),
        ("InvertedPendulum-v5", "mujoco"),
        ("HalfCheetah-v4", "mujoco"),
        ("ALE/Pong-v5", "atari"),
        ("BreakoutNoFrameskip-v4", "atari"),
        ("my_module:CartPole-v1", "classic-control"),
        ("CartPole", "classic-control"),
        ("my_module:Pendulum", "classic-control"),
        ("CartPoleLike-v1", "default"),
        ("CartPoleLike", "default"),
        ("Unheard-Of-v0", "default"),
    ],
)
def test_the_family_is_told_from_the_id(env, name):
    assert find_preset(env).name == name
    assert is_atari(env) == (name == "atari")


def _words(**given: object) -> list[str]:
    """Settings as words of the command line."""
    options = [
        [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])] for name, value in given.items()
    ]
    return [word for option in options for word in option]


def test_what_is_given_is_checked_together_with_the_preset() -> None:
    """The command line takes what a configuration from Python takes: a preset may bring what a setting asks for."""
    for env, given in {
        "LunarLander-v3": {"epochs": 6},
        "CartPole-v1": {"replay_targets": "anew"},
        "Foo-v1": {"soft_returns": True},
        "HalfCheetah-v5": {"surrogate_loss": "critic", "residual_weight": 0.5},
    }.items():
        found = train_config(_words(env=env, **given), "train")
        assert found.agent == preset_config(env, **given).agent
    assert preset_config("HalfCheetah-v5", "lax").agent.surrogate_scale == "fitted"
    assert found.agent.surrogate_scale == "one"
    with pytest.raises(SettingsError, match="epochs is 2 and clip_range, target_kl and kl_bound are inf"):
        train_config(["--env", "CartPole-v1", "--epochs", "2"], "train")


def test_every_preset_makes_a_valid_configuration():
    known = [(preset, pattern.replace("*", "1")) for preset in PRESETS for pattern in preset.environments]
    for preset, env in known:
        for estimator in ("auto", "relax", "lax", "marginal", "a2c", "reinforce"):
            config = preset_config(env, estimator, preset=preset.name)
            assert config.run.preset == preset.name
            assert config.run.estimator == estimator


@pytest.mark.parametrize(
    "env", ["CartPole-v1", "LunarLander-v3", "Acrobot-v1", "HalfCheetah-v5", "Hopper-v5", "Any-v0"]
)
def test_every_agent_takes_its_preset(env):
    observations, choices, numbers = spaces.Box(-1, 1, (3,)), spaces.Discrete(2), spaces.Box(-1, 1, (2,))
    for kind, action in ((A2C, choices), (RELAX, choices), (Marginal, choices), (Reinforce, choices), (LAX, numbers)):
        settings = {**settings_for(env, kind.name), "hidden": (4,)}
        if action is choices:
            settings |= recipes.CUT
        kind(observations, action, **settings)


@pytest.mark.parametrize(
    "given",
    [
        {"bins": 5},
        {"memory": "gru"},
        {"residual_weight": 0.5, "surrogate_loss": "critic"},
        {"action_distribution": "beta"},
        {"entropy_schedule": "linear"},
        {"scale_advantage": True},
        {"soft_returns": True, "entropy_coef": 0.01},
        {"kl_bound": math.inf, "clip_range": 0.2},
    ],
)
def test_what_is_given_has_its_place_in_every_preset(given):
    for preset in PRESETS:
        for pattern in preset.environments:
            env = pattern.replace("-v*", "-v1").replace("*", "Any-v1")
            config = preset_config(env, preset=preset.name, **given)
            assert train_config(_words(env=env, preset=preset.name, **given), "train").agent == config.agent
            assert not (config.env.bins and (config.agent.squash or config.agent.entropy_target is not None))
            assert all(getattr(config.env if name == "bins" else config.agent, name) == given[name] for name in given)


def test_mujoco_is_normalised_and_atari_clipped():
    mujoco = preset_config("InvertedPendulum-v5")
    assert mujoco.agent.normalize_obs and mujoco.agent.normalize_reward
    atari = preset_config("ALE/Pong-v5")
    assert (atari.env.num_envs, atari.agent.reward_clip, atari.run.threads) == (16, 1.0, 0)


def test_a_preset_knows_of_bins():
    whole, cut = preset_config("HalfCheetah-v5", "a2c"), preset_config("HalfCheetah-v5", "a2c", bins=7)
    assert (whole.agent.ordinal_std_init, cut.agent.ordinal_std_init, cut.env.bins) == (math.inf, 0.4, 7)
    assert settings_for("HalfCheetah-v5", "relax", bins=7) == settings_for("HalfCheetah-v5", "a2c", bins=7)
    assert preset_config("HalfCheetah-v5", "a2c", bins=7, ordinal_std_init=1.0).agent.ordinal_std_init == 1.0


def test_agents_are_compared_on_equal_settings():
    for env in ("CartPole-v1", "LunarLander-v3", "ALE/Pong-v5"):
        assert settings_for(env, "relax") == settings_for(env, "a2c")
    assert settings_for("InvertedPendulum-v5", "lax") == settings_for("InvertedPendulum-v5", "a2c")


def test_settings_for_are_those_of_the_agent_alone():
    settings = settings_for("ALE/Pong-v5", "relax")
    assert settings["reward_clip"] == 1.0
    assert "num_envs" not in settings and "threads" not in settings
    assert AgentConfig(**settings).reward_clip == 1.0


def test_none_takes_the_plain_defaults():
    config = preset_config("ALE/Pong-v5", preset="none")
    plain = with_settings(TrainConfig(), {"env": "ALE/Pong-v5"})
    assert config == plain
    assert settings_for("ALE/Pong-v5", preset="none") == {}


def test_single_settings_win_over_the_preset():
    config = preset_config("ALE/Pong-v5", num_envs=3, reward_clip=2.0, seed=5)
    assert (config.env.num_envs, config.agent.reward_clip, config.run.seed) == (3, 2.0, 5)
    assert config.agent.entropy_coef == 0.01


def test_later_overrides_win_where_they_match():
    preset = Preset(
        name="x",
        environments=("*",),
        overrides=(
            Override(settings={"gamma": 0.9, "num_envs": 2}),
            Override(env="A-*", settings={"gamma": 0.8}),
            Override(env="A-*", binned=True, settings={"gamma": 0.6}),
        ),
    )
    assert preset.settings("B-v0", "relax") == {"gamma": 0.9, "num_envs": 2}
    assert preset.settings("m:A-v0", "relax") == {"gamma": 0.8, "num_envs": 2}
    assert preset.settings("B-v0", "relax", bins=7) == preset.settings("B-v0", "relax")
    assert preset.settings("A-v0", "lax", bins=7)["gamma"] == 0.6


def test_settings_that_no_agent_has_are_told():
    with pytest.raises(SettingsError, match="unknown setting 'gama' of agents; did you mean gamma"):
        settings_for("CartPole-v1", gama=0.9)


def test_an_unknown_name_is_told_with_near_ones():
    with pytest.raises(SettingsError, match=r"unknown preset 'atar'.*did you mean atari"):
        find_preset("CartPole-v1", "atar")


def test_a_class_is_no_id():
    with pytest.raises(SettingsError, match=r"^env is .*, expected the id of an environment; register a class by"):
        preset_config(CartPoleEnv)


@pytest.mark.parametrize(
    ("env", "agent", "settings"),
    [
        ("CartPole-v1", RELAX, {"memory": "gru"}),
        ("CartPole-v1", RELAX, {"gamma": 0.9}),
        ("LunarLander-v3", RELAX, {"soft_returns": True}),
        ("Pendulum-v1", LAX, {"action_distribution": "beta"}),
        ("Hopper-v5", LAX, {"kl_bound": math.inf, "clip_range": 0.2}),
    ],
)
def test_settings_of_a_preset_make_way_for_those_that_are_given(env, agent, settings):
    actions = spaces.Box(-1, 1, (2,)) if agent is LAX else spaces.Discrete(4)
    made = agent(spaces.Box(-1, 1, (3,)), actions, **settings_for(env, **settings))
    assert made.config == preset_config(env, agent.name, **settings).agent
    assert {name: getattr(made.config, name) for name in settings} == settings
    assert settings_for(env) != settings_for(env, **settings)


ALONE = {"entropy_target": 0.5, "share_torso": "on", "soft_returns": True, "scale_advantage": True, "memory": "gru"}
ALONE |= {"surrogate_loss": "critic", "critic_loss": "hl_gauss", "value_replay": 0, "kl_bound": 0.1, "clip_range": 0.1}
TOGETHER = {"soft_returns": {"entropy_coef": 0.01, "entropy_schedule": "constant"}}


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize(
    "env", ["CartPole-v1", "LunarLander-v3", "Hopper-v5", "HalfCheetah-v5", "Own-v0", "Pendulum-v1"]
)
def test_one_setting_alone_is_at_odds_with_no_preset(env, name):
    given = {name: ALONE[name], **TOGETHER.get(name, {})}
    config = preset_config(env, **given).agent
    assert {each: getattr(config, each) for each in given} == given
