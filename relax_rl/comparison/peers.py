"""Stable-Baselines3's A2C and PPO with the settings that rl-baselines3-zoo publishes for each environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

from relax_rl.errors import SettingsError
from relax_rl.presets import find_preset

__all__ = ["PEERS", "Peer", "check_installed", "planned_steps", "published", "with_overrides"]

ALGORITHMS = {"sb3-a2c": "A2C", "sb3-ppo": "PPO"}
"""Class in stable_baselines3, by the name of the peer."""

_ZOO = "https://github.com/DLR-RM/rl-baselines3-zoo/blob"
_A2C = f"{_ZOO}/c6c209e7d487635f0b835fb916ec4468142b28ff/hyperparams/a2c.yml"
_PPO = f"{_ZOO}/208b6fdf3a9aa24de44b2e068c6e5f6a07d97fcc/hyperparams/ppo.yml"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One published setting; whatever is not named in it is Stable-Baselines3's own default.

    Attributes:
        env: the environment it is used for; "*" stands for all that have none of their own.
        algo: name of the peer.
        total_steps: that the entry trains for, over which its linear schedules fall to zero.
        source: where it is published, with the name of the entry.
        num_envs: environments stepped side by side.
        policy: class of the policy.
        normalize: VecNormalize of observations and rewards, with the algorithm's gamma.
        atari: the wrapper and the four stacked frames of Atari games.
        linear: settings that fall linearly to zero, by their first value (`lin_...` in the zoo).
        settings: constant keyword arguments of the algorithm.
        policy_kwargs: of the policy; classes by their names.
        departure: what differs from the published entry, and why.
    """

    env: str
    algo: str
    total_steps: int
    source: str
    num_envs: int = 1
    policy: str = "MlpPolicy"
    normalize: bool = False
    atari: bool = False
    linear: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    policy_kwargs: Mapping[str, Any] = field(default_factory=dict)
    departure: str = "none"


def _version(version: str) -> str:
    return f"published for version {version} of the environment"


_ATARI = (
    "published for the NoFrameskip-v4 games; where an id has frame skipping of its own it is left to the wrapper, and its "
    "sticky actions stay"
)
_SDE = {
    "ent_coef": 0.0,
    "max_grad_norm": 0.5,
    "n_steps": 8,
    "gae_lambda": 0.9,
    "vf_coef": 0.4,
    "gamma": 0.99,
    "use_rms_prop": True,
    "normalize_advantage": False,
    "use_sde": True,
}
"""What the tuned entries of a2c.yml for continuous actions have in common."""
_SDE_POLICY = {"log_std_init": -2, "ortho_init": False}
_WIDE = {
    "log_std_init": -2,
    "ortho_init": False,
    "activation_fn": "ReLU",
    "net_arch": {"pi": [256, 256], "vf": [256, 256]},
}


def _a2c_mujoco(env: str, entry: str, *, steps: int = 1_000_000, departure: str = "", **settings: Any) -> Peer:
    return Peer(
        env=env,
        algo="sb3-a2c",
        total_steps=steps,
        normalize=True,
        settings=settings,
        source=f"{_A2C} ({entry})",
        departure=departure or _version("4"),
    )


_A2C_PEERS = (
    Peer(
        env="CartPole-v1",
        algo="sb3-a2c",
        num_envs=8,
        total_steps=500_000,
        settings={"ent_coef": 0.0},
        source=f"{_A2C} (CartPole-v1)",
    ),
    Peer(
        env="Acrobot-v1",
        algo="sb3-a2c",
        num_envs=16,
        total_steps=500_000,
        normalize=True,
        settings={"ent_coef": 0.0},
        source=f"{_A2C} (Acrobot-v1)",
    ),
    Peer(
        env="MountainCar-v0",
        algo="sb3-a2c",
        num_envs=16,
        total_steps=1_000_000,
        normalize=True,
        settings={"ent_coef": 0.0},
        source=f"{_A2C} (MountainCar-v0)",
    ),
    Peer(
        env="MountainCarContinuous-v0",
        algo="sb3-a2c",
        num_envs=4,
        total_steps=100_000,
        normalize=True,
        settings={"n_steps": 100, "ent_coef": 0.0, "use_sde": True, "sde_sample_freq": 16},
        policy_kwargs={"log_std_init": 0.0, "ortho_init": False},
        source=f"{_A2C} (MountainCarContinuous-v0)",
    ),
    Peer(
        env="Pendulum-v1",
        algo="sb3-a2c",
        num_envs=8,
        total_steps=1_000_000,
        normalize=True,
        linear={"learning_rate": 7e-4},
        settings={**_SDE, "gamma": 0.9},
        policy_kwargs=_SDE_POLICY,
        source=f"{_A2C} (Pendulum-v1)",
    ),
    Peer(
        env="LunarLander-v3",
        algo="sb3-a2c",
        num_envs=8,
        total_steps=200_000,
        linear={"learning_rate": 0.00083},
        settings={"gamma": 0.995, "n_steps": 5, "ent_coef": 0.00001},
        source=f"{_A2C} (LunarLander-v2)",
        departure=_version("2"),
    ),
    Peer(
        env="LunarLanderContinuous-v3",
        algo="sb3-a2c",
        num_envs=4,
        total_steps=5_000_000,
        normalize=True,
        linear={"learning_rate": 7e-4},
        settings=_SDE,
        policy_kwargs=_SDE_POLICY,
        source=f"{_A2C} (LunarLanderContinuous-v3)",
    ),
    Peer(
        env="BipedalWalker-v3",
        algo="sb3-a2c",
        num_envs=16,
        total_steps=5_000_000,
        normalize=True,
        linear={"learning_rate": 0.00096},
        settings=_SDE,
        policy_kwargs=_SDE_POLICY,
        source=f"{_A2C} (BipedalWalker-v3)",
    ),
    _a2c_mujoco("HalfCheetah-v5", "HalfCheetah-v4"),
    _a2c_mujoco("Ant-v5", "Ant-v4"),
    _a2c_mujoco("Hopper-v5", "Hopper-v4"),
    _a2c_mujoco("Walker2d-v5", "Walker2d-v4"),
    _a2c_mujoco("Humanoid-v5", "Humanoid-v4", steps=2_000_000),
    _a2c_mujoco("Swimmer-v5", "Swimmer-v4", gamma=0.9999),
    *(
        _a2c_mujoco(env, "HalfCheetah-v4", departure=f"no entry for {env.split('-')[0]}; that of the MuJoCo tasks")
        for env in ("InvertedPendulum-v5", "InvertedDoublePendulum-v5", "Reacher-v5")
    ),
    Peer(
        env="atari",
        algo="sb3-a2c",
        num_envs=16,
        total_steps=10_000_000,
        policy="CnnPolicy",
        atari=True,
        settings={"ent_coef": 0.01, "vf_coef": 0.25},
        policy_kwargs={"optimizer_class": "RMSpropTFLike", "optimizer_kwargs": {"eps": 1e-5}},
        source=f"{_A2C} (atari)",
        departure=_ATARI,
    ),
)


def _ppo_mujoco(env: str, entry: str, *, wide: bool = True, steps: int = 1_000_000, **settings: Any) -> Peer:
    return Peer(
        env=env,
        algo="sb3-ppo",
        total_steps=steps,
        normalize=True,
        settings=settings,
        policy_kwargs=_WIDE if wide else {},
        source=f"{_PPO} ({entry})",
        departure=_version(entry[-1]),
    )


_LUNAR_PPO = {"n_steps": 1024, "batch_size": 64, "gae_lambda": 0.98, "gamma": 0.999, "n_epochs": 4, "ent_coef": 0.01}

_PPO_PEERS = (
    Peer(
        env="CartPole-v1",
        algo="sb3-ppo",
        num_envs=8,
        total_steps=100_000,
        linear={"learning_rate": 0.001, "clip_range": 0.2},
        settings={
            "n_steps": 32,
            "batch_size": 256,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "n_epochs": 20,
            "ent_coef": 0.0,
        },
        source=f"{_PPO} (CartPole-v1)",
    ),
    Peer(
        env="Acrobot-v1",
        algo="sb3-ppo",
        num_envs=16,
        total_steps=1_000_000,
        normalize=True,
        settings={"n_steps": 256, "gae_lambda": 0.94, "gamma": 0.99, "n_epochs": 4, "ent_coef": 0.0},
        source=f"{_PPO} (Acrobot-v1)",
    ),
    Peer(
        env="MountainCar-v0",
        algo="sb3-ppo",
        num_envs=16,
        total_steps=1_000_000,
        normalize=True,
        settings={"n_steps": 16, "gae_lambda": 0.98, "gamma": 0.99, "n_epochs": 4, "ent_coef": 0.0},
        source=f"{_PPO} (MountainCar-v0)",
    ),
    Peer(
        env="MountainCarContinuous-v0",
        algo="sb3-ppo",
        total_steps=20_000,
        normalize=True,
        settings={
            "batch_size": 256,
            "n_steps": 8,
            "gamma": 0.9999,
            "learning_rate": 7.77e-05,
            "ent_coef": 0.00429,
            "clip_range": 0.1,
            "n_epochs": 10,
            "gae_lambda": 0.9,
            "max_grad_norm": 5,
            "vf_coef": 0.19,
            "use_sde": True,
        },
        policy_kwargs={"log_std_init": -3.29, "ortho_init": False},
        source=f"{_PPO} (MountainCarContinuous-v0)",
    ),
    Peer(
        env="Pendulum-v1",
        algo="sb3-ppo",
        num_envs=4,
        total_steps=100_000,
        settings={
            "n_steps": 1024,
            "gae_lambda": 0.95,
            "gamma": 0.9,
            "n_epochs": 10,
            "ent_coef": 0.0,
            "learning_rate": 1e-3,
            "clip_range": 0.2,
            "use_sde": True,
            "sde_sample_freq": 4,
        },
        source=f"{_PPO} (Pendulum-v1)",
    ),
    Peer(
        env="LunarLander-v3",
        algo="sb3-ppo",
        num_envs=16,
        total_steps=1_000_000,
        settings=_LUNAR_PPO,
        source=f"{_PPO} (LunarLander-v2)",
        departure=_version("2"),
    ),
    Peer(
        env="LunarLanderContinuous-v3",
        algo="sb3-ppo",
        num_envs=16,
        total_steps=1_000_000,
        settings=_LUNAR_PPO,
        source=f"{_PPO} (LunarLanderContinuous-v3)",
    ),
    Peer(
        env="BipedalWalker-v3",
        algo="sb3-ppo",
        num_envs=32,
        total_steps=5_000_000,
        normalize=True,
        settings={
            "n_steps": 2048,
            "batch_size": 64,
            "gae_lambda": 0.95,
            "gamma": 0.999,
            "n_epochs": 10,
            "ent_coef": 0.0,
            "learning_rate": 3e-4,
            "clip_range": 0.18,
        },
        source=f"{_PPO} (BipedalWalker-v3)",
    ),
    _ppo_mujoco(
        "InvertedPendulum-v5",
        "InvertedPendulum-v2",
        wide=False,
        batch_size=64,
        n_steps=32,
        gamma=0.999,
        learning_rate=0.000222425,
        ent_coef=1.37976e-07,
        clip_range=0.4,
        n_epochs=5,
        gae_lambda=0.9,
        max_grad_norm=0.3,
        vf_coef=0.19816,
    ),
    _ppo_mujoco(
        "InvertedDoublePendulum-v5",
        "InvertedDoublePendulum-v2",
        wide=False,
        batch_size=512,
        n_steps=128,
        gamma=0.98,
        learning_rate=0.000155454,
        ent_coef=1.05057e-06,
        clip_range=0.4,
        n_epochs=10,
        gae_lambda=0.8,
        max_grad_norm=0.5,
        vf_coef=0.695929,
    ),
    _ppo_mujoco(
        "HalfCheetah-v5",
        "HalfCheetah-v4",
        batch_size=64,
        n_steps=512,
        gamma=0.98,
        learning_rate=2.0633e-05,
        ent_coef=0.000401762,
        clip_range=0.1,
        n_epochs=20,
        gae_lambda=0.92,
        max_grad_norm=0.8,
        vf_coef=0.58096,
    ),
    _ppo_mujoco(
        "Hopper-v5",
        "Hopper-v4",
        batch_size=32,
        n_steps=512,
        gamma=0.999,
        learning_rate=9.80828e-05,
        ent_coef=0.00229519,
        clip_range=0.2,
        n_epochs=5,
        gae_lambda=0.99,
        max_grad_norm=0.7,
        vf_coef=0.835671,
    ),
    _ppo_mujoco(
        "Walker2d-v5",
        "Walker2d-v4",
        wide=False,
        batch_size=32,
        n_steps=512,
        gamma=0.99,
        learning_rate=5.05041e-05,
        ent_coef=0.000585045,
        clip_range=0.1,
        n_epochs=20,
        gae_lambda=0.95,
        max_grad_norm=1,
        vf_coef=0.871923,
    ),
    _ppo_mujoco(
        "Humanoid-v5",
        "Humanoid-v4",
        steps=10_000_000,
        batch_size=256,
        n_steps=512,
        gamma=0.95,
        learning_rate=3.56987e-05,
        ent_coef=0.00238306,
        clip_range=0.3,
        n_epochs=5,
        gae_lambda=0.9,
        max_grad_norm=2,
        vf_coef=0.431892,
    ),
    _ppo_mujoco(
        "Reacher-v5",
        "Reacher-v2",
        wide=False,
        batch_size=32,
        n_steps=512,
        gamma=0.9,
        learning_rate=0.000104019,
        ent_coef=7.52585e-08,
        clip_range=0.3,
        n_epochs=5,
        gae_lambda=1.0,
        max_grad_norm=0.9,
        vf_coef=0.950368,
    ),
    _ppo_mujoco("Ant-v5", "Ant-v4", wide=False),
    Peer(
        env="Swimmer-v5",
        algo="sb3-ppo",
        num_envs=4,
        total_steps=1_000_000,
        normalize=True,
        settings={
            "gamma": 0.9999,
            "n_steps": 1024,
            "batch_size": 256,
            "learning_rate": 6e-4,
            "gae_lambda": 0.98,
        },
        source=f"{_PPO} (Swimmer-v4)",
        departure=_version("4"),
    ),
    Peer(
        env="atari",
        algo="sb3-ppo",
        num_envs=8,
        total_steps=10_000_000,
        policy="CnnPolicy",
        atari=True,
        linear={"learning_rate": 2.5e-4, "clip_range": 0.1},
        settings={"n_steps": 128, "n_epochs": 4, "batch_size": 256, "vf_coef": 0.5, "ent_coef": 0.01},
        source=f"{_PPO} (atari)",
        departure=_ATARI,
    ),
)

PEERS: tuple[Peer, ...] = (*_A2C_PEERS, *_PPO_PEERS)


def published(env: str, algo: str) -> Peer:
    """The setting that is published for an environment, or what is taken where there is none.

    The stand-in is the library's own defaults with eight environments, for images with its convolutional policy not
    chosen: environments with images other than Atari games have no stand-in and are refused when they are made.
    """
    env_id = env.rpartition(":")[2]
    entry = "atari" if find_preset(env).name == "atari" else env_id
    for peer in PEERS:
        if (peer.env, peer.algo) == (entry, algo):
            return replace(peer, env=env)
    return Peer(
        env=env,
        algo=algo,
        num_envs=8,
        total_steps=1_000_000,
        source="none",
        departure="no published entry for this environment; the library's defaults with 8 environments are taken",
    )


def with_overrides(peer: Peer, overrides: Mapping[str, Any]) -> Peer:
    """The peer with keyword arguments of the algorithm replaced; one on a schedule keeps it, from another first value."""
    linear = {name: overrides.get(name, value) for name, value in peer.linear.items()}
    constant = {name: value for name, value in overrides.items() if name not in linear}
    return replace(peer, linear=linear, settings={**peer.settings, **constant})


def planned_steps(peer: Peer, total_steps: int) -> tuple[Peer, int]:
    """The steps that a peer trains for in a comparison of `total_steps`, and the peer with that noted.

    With linear schedules the published length counts: nothing is learned once they have reached zero. A longer one is
    cut, and its schedules with it.
    """
    steps = min(peer.total_steps, total_steps) if peer.linear else total_steps
    if steps == peer.total_steps:
        return peer, steps
    how = "its schedules fall to zero over these" if peer.linear else "no schedule depends on them"
    note = f"{steps:,} steps instead of {peer.total_steps:,} ({how})"
    known = "" if peer.departure == "none" else f"{peer.departure}; "
    return replace(peer, departure=known + note), steps


def check_installed() -> None:
    """Raises:
    SettingsError: Stable-Baselines3 is missing.
    """
    if find_spec("stable_baselines3") is None:
        raise SettingsError("--peers needs Stable-Baselines3, which is missing: pip install 'relax-rl[compare]'")
