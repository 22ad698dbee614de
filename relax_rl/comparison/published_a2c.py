"""What rl-baselines3-zoo publishes for Stable-Baselines3's A2C."""

from __future__ import annotations

from typing import Any

from relax_rl.comparison.peer import ATARI_DEPARTURE, ZOO, Peer, other_version

__all__ = ["A2C_PEERS"]

_A2C = f"{ZOO}/c6c209e7d487635f0b835fb916ec4468142b28ff/hyperparams/a2c.yml"

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


def _a2c_mujoco(env: str, entry: str, *, steps: int = 1_000_000, departure: str = "", **settings: Any) -> Peer:
    return Peer(
        env=env,
        algo="sb3-a2c",
        total_steps=steps,
        normalize=True,
        settings=settings,
        source=f"{_A2C} ({entry})",
        departure=departure or other_version("4"),
    )


A2C_PEERS = (
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
        departure=other_version("2"),
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
        departure=ATARI_DEPARTURE,
    ),
)
