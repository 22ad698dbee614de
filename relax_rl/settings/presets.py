"""Presets: good settings per family of environments, put under what the user sets.

A preset is a list of overrides; each may hold for some environments or estimators only, later ones win. Environments
are told by their ids, so that this module imports nothing heavy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from relax_rl.errors import SettingsError, did_you_mean, shown
from relax_rl.settings import recipes
from relax_rl.settings.config import AgentConfig, TrainConfig
from relax_rl.settings.fields import with_settings
from relax_rl.settings.synonyms import meant

__all__ = [
    "PRESETS",
    "Override",
    "Preset",
    "find_preset",
    "has_version",
    "is_atari",
    "preset_base",
    "preset_config",
    "same_env",
    "settings_for",
]


@dataclass(frozen=True, kw_only=True)
class Override:
    """`settings` by name, for the environments that match."""

    settings: Mapping[str, Any]
    env: str = "*"
    """Shell pattern of the ids."""
    binned: bool | None = None
    """True: only where continuous actions are cut into bins; False: only where they are not."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings for a family of environments."""

    name: str
    """What `--preset` knows it by."""
    environments: tuple[str, ...]
    """Shell patterns of the ids it is for."""
    overrides: tuple[Override, ...] = ()
    """Later ones win."""

    def settings(self, env: str, estimator: str = "auto", *, bins: int = 0) -> dict[str, Any]:
        """Settings by name for one environment and estimator, and for that many bins of its actions."""
        env_id = _without_module(env)
        result: dict[str, Any] = {}
        for override in self.overrides:
            if fnmatchcase(env_id, override.env) and override.binned in (None, bool(bins)):
                result.update(override.settings)
        if estimator == "reinforce":  # which has no advantages
            result.pop("normalize_advantage", None)
        return result


_BODIES = [
    "Ant",
    "HalfCheetah",
    "Hopper",
    "Humanoid",
    "HumanoidStandup",
    "InvertedDoublePendulum",
    "InvertedPendulum",
    "Pusher",
    "Reacher",
    "Swimmer",
    "Walker2d",
]

PRESETS: tuple[Preset, ...] = (
    Preset(
        name="classic-control",
        environments=("CartPole-v*", "Acrobot-v*", "MountainCar-v*", "MountainCarContinuous-v*", "Pendulum-v*"),
        overrides=(
            Override(settings=recipes.CLASSIC),
            Override(env="CartPole-v*", settings={"value_replay": 2}),
            Override(env="Acrobot-v*", settings=recipes.ACROBOT),
            Override(env="MountainCar-v*", settings={"num_envs": 16, "gamma": 0.99}),
            Override(env="MountainCarContinuous-v*", settings=recipes.short_passes(gamma=0.999)),
            Override(env="Pendulum-v*", settings=recipes.PENDULUM),
            Override(env="Pendulum-v*", binned=True, settings=recipes.CUT),
        ),
    ),
    Preset(
        name="box2d",
        environments=("LunarLander-v*", "LunarLanderContinuous-v*", "BipedalWalker-v*", "BipedalWalkerHardcore-v*"),
        overrides=(
            Override(settings={"num_envs": 16, "lr_schedule": "linear", **recipes.NORMALIZED}),
            Override(env="LunarLander*", settings={"total_steps": 500_000, **recipes.LUNAR}),
            Override(env="LunarLander-v*", settings=recipes.LANDER),
            Override(env="LunarLanderContinuous*", settings={"log_std_init": -0.5}),
            Override(env="BipedalWalker*", settings={"total_steps": 5_000_000, "num_steps": 8}),
        ),
    ),
    Preset(
        name="mujoco",
        environments=tuple(f"{body}-v*" for body in _BODIES),
        overrides=(
            Override(settings={"num_envs": 8, "num_steps": 16, "total_steps": 1_000_000, **recipes.NORMALIZED}),
            Override(env="InvertedPendulum-v*", settings=recipes.short_passes(gamma=0.98)),
            *(
                Override(env=f"{body}-v*", settings=recipes.LOCOMOTION)
                for body in ("Ant", "HalfCheetah", "Hopper", "InvertedDoublePendulum", "Walker2d")
            ),
            Override(
                env="InvertedDoublePendulum-v*",
                settings={"num_steps": 128, "minibatch_size": 256, "log_std_init": 0.0},
            ),
            *(
                Override(env=f"{body}-v*", binned=False, settings=recipes.WALKER)
                for body in ("HalfCheetah", "Hopper", "Walker2d")
            ),
            Override(env="Hopper-v*", binned=False, settings={"num_steps": 128, "normalize_advantage": True}),
            Override(env="Ant-v*", binned=False, settings={"num_steps": 128}),
            Override(
                env="HalfCheetah-v*",
                binned=True,
                settings={"gamma": 0.98, "gae_lambda": 0.92, "ordinal_std_init": 0.4},
            ),
            Override(env="Swimmer-v*", settings={"gamma": 0.9999}),
        ),
    ),
    Preset(
        name="atari",
        environments=("ALE/*", "*NoFrameskip-v4", "*Deterministic-v4"),
        overrides=(
            Override(
                settings={
                    "num_envs": 16,
                    "num_steps": 5,
                    "total_steps": 10_000_000,
                    "policy_lr": 7e-4,
                    "value_lr": 7e-4,
                    "surrogate_lr": 7e-4,
                    "optimizer": "rmsprop",
                    "entropy_coef": 0.01,
                    "reward_clip": 1.0,
                    "threads": 0,
                    "log_interval": 10_000,
                    "checkpoint_interval": 250_000,
                }
            ),
        ),
    ),
    Preset(name="default", environments=("*",), overrides=(Override(settings=recipes.UNTOLD),)),
)
"""In order of precedence; the last one is for environments that no other preset knows."""

_DECIDE: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("memory", lambda memory: memory != "none", "value_replay"),
    ("residual_weight", lambda weight: weight != 1.0, "surrogate_scale"),
    ("action_distribution", lambda kind: kind != "gaussian", "squash"),
    ("entropy_target", lambda target: target is not None, "entropy_schedule"),
    ("share_torso", lambda shared: shared == "on", "critic_layer_norm"),
    ("share_torso", lambda shared: shared == "on", "critic_hidden"),
    ("entropy_schedule", lambda schedule: schedule != "constant", "entropy_target"),
    ("kl_bound", lambda bound: bound in (math.inf, "inf"), "kl_schedule"),
    ("scale_advantage", bool, "normalize_advantage"),
    ("soft_returns", bool, "normalize_advantage"),
)
"""Settings that are given, at which of their values, and what of a preset goes with none of these and is left out."""


def find_preset(env: str, preset: str = "auto") -> Preset:
    """The preset of that name.

    Args:
        env, preset: as in `settings_for`.

    Raises:
        SettingsError: there is no preset of that name, or `env` is no name.
    """
    if not isinstance(env, str):
        raise SettingsError(
            f"env is {shown(env)}, expected the id of an environment; register a class by gymnasium.register(ID, CLASS) first"
        )
    names = [known.name for known in PRESETS]
    if preset == "none":
        return Preset(name="none", environments=("*",))
    if preset == "auto":
        return next(known for known in PRESETS if any(fnmatchcase(_without_module(env), p) for p in known.environments))
    if preset not in names:
        expected = ["auto", "none", *names]
        raise SettingsError(
            f"unknown preset {preset!r}, expected one of {', '.join(expected)}{did_you_mean(preset, expected)}"
        )
    return PRESETS[names.index(preset)]


def is_atari(env: str) -> bool:
    """Whether an id is that of an Atari game."""
    return find_preset(env).name == "atari"


def settings_for(
    env: str, estimator: str = "auto", *, preset: str = "auto", bins: int = 0, **settings: Any
) -> dict[str, Any]:
    """The preset's settings of the agent, as keyword arguments: `RELAX(obs, actions, **settings_for("CartPole-v1"))`.

    Args:
        env: Gymnasium id.
        estimator: by name.
        preset: by name; "auto" for the one made for the environment, "none" for none.
        bins: as in `make_envs`.
        settings: of the agent, over the preset's; what of the preset does not go with them is left out.

    Returns:
        Values by the names of fields of `AgentConfig`.

    Raises:
        SettingsError: there is no preset of that name, or agents have no such setting.
    """
    known = {f.name for f in fields(AgentConfig)}
    for name in settings:
        if name not in known:
            raise SettingsError(f"unknown setting {shown(name)} of agents{meant(name, known)}")
    of_preset = _beside(find_preset(env, preset).settings(env, estimator, bins=bins), settings)
    return {name: value for name, value in of_preset.items() if name in known} | settings


def preset_config(env: str, estimator: str = "auto", *, preset: str = "auto", **settings: Any) -> TrainConfig:
    """`TrainConfig` from a preset, with single settings over it: `preset_config("CartPole-v1", seed=3)`.

    Args:
        env, estimator, preset: as in `settings_for`.
        settings: fields of `RunConfig`, `EnvConfig` and `AgentConfig`, by name.

    Raises:
        SettingsError: an unknown preset or setting, or a value that a setting cannot have.
    """
    return with_settings(preset_base(env, estimator, preset=preset, given=settings), settings)


def preset_base(env: str, estimator: str, *, preset: str, given: Mapping[str, Any]) -> TrainConfig:
    """A preset's configuration, less the settings of it that conflict with what is `given`, which is yet to be put over it.

    Args:
        env, estimator, preset, given: as `env`, `estimator`, `preset` and `settings` in `preset_config`.

    Raises:
        SettingsError: there is no preset of that name.
    """
    found = find_preset(env, preset)
    base = with_settings(TrainConfig(), {"env": env, "estimator": estimator, "preset": found.name})
    return with_settings(base, _beside(found.settings(env, estimator, bins=given.get("bins", 0)), given))


def _beside(of_preset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's settings less those that conflict with what is given."""
    dropped = {other for name, decides, other in _DECIDE if name in given and decides(given[name])}
    return {name: value for name, value in of_preset.items() if name not in dropped}


def _without_module(env: str) -> str:
    """`module:EnvId` without the module, and with a `-v` that any version follows where it has none."""
    name = env.rpartition(":")[2]
    return name if has_version(name) else f"{name}-v"


def has_version(env: str) -> bool:
    """Whether an id says which version of an environment it means."""
    return re.search(r"-v\d+$", env) is not None


def same_env(one: str, other: str) -> bool:
    """Whether two ids can mean one environment: equal, or but for a version that only one of them names."""
    names = [re.sub(r"-v\d+$", "", env) for env in (one, other)]
    return one == other or (names[0] == names[1] and has_version(one) != has_version(other))
