"""Recipes of presets: settings by name that go well together, with the tasks that they were found on.

How each was chosen, and from what, is in `benchmarks/README.md`.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = [
    "ACROBOT",
    "CLASSIC",
    "CUT",
    "LANDER",
    "LOCOMOTION",
    "LUNAR",
    "NORMALIZED",
    "PENDULUM",
    "UNTOLD",
    "WALKER",
    "short_passes",
]

NORMALIZED = {"normalize_obs": True, "normalize_reward": True, "value_lr": 3e-3, "surrogate_lr": 3e-3}
CLASSIC = {"num_envs": 8, "num_steps": 5, "gamma": 0.98, "gae_lambda": 0.8, **NORMALIZED}


def _passes(
    num_steps: int, minibatch_size: int, *, epochs: int, gamma: float, gae_lambda: float, lr: float
) -> dict[str, Any]:
    """Several passes over a rollout, within PPO's trust region."""
    shape = {"num_steps": num_steps, "minibatch_size": minibatch_size, "epochs": epochs}
    rates = {"policy_lr": lr, "value_lr": lr, "surrogate_lr": 1e-3, "lr_schedule": "linear"}
    trust = {"clip_range": 0.2, "surrogate_scale": "fitted"}
    return {**NORMALIZED, **shape, "gamma": gamma, "gae_lambda": gae_lambda, **rates, **trust}


def short_passes(gamma: float) -> dict[str, Any]:
    """Passes over rollouts of four environments, for small tasks."""
    return {"num_envs": 4, **_passes(64, 64, epochs=10, gamma=gamma, gae_lambda=0.95, lr=1e-3)}


def _bounded(kl_bound: float, *, gamma: float, gae_lambda: float, lr: float) -> dict[str, Any]:
    """Several passes over a rollout, within a bound of the divergence from its policy, at constant rates unless these are changed."""
    shape = {"num_envs": 8, "num_steps": 128, "minibatch_size": 128, "epochs": 8}
    rates = {"policy_lr": lr, "value_lr": lr, "surrogate_lr": lr, "lr_schedule": "constant"}
    trust = {"clip_range": math.inf, "kl_bound": kl_bound, "surrogate_scale": "fitted"}
    return {**NORMALIZED, **shape, "gamma": gamma, "gae_lambda": gae_lambda, **rates, **trust}


ACROBOT = {"num_envs": 16, **_passes(32, 128, epochs=4, gamma=0.99, gae_lambda=0.94, lr=1e-3)}
_SQUASHED = {
    "squash": True,
    "log_std_init": -0.5,
    "entropy_target": -0.5,
    "critic_loss": "hl_gauss",
    "layer_norm": True,
    "activation": "silu",
}
PENDULUM = {**_bounded(0.05, gamma=0.9, gae_lambda=0.95, lr=1e-3), **_SQUASHED}
CUT = {"squash": False, "entropy_target": None}
"""What has no place where actions are cut into bins."""
LUNAR = _passes(128, 128, epochs=8, gamma=0.999, gae_lambda=0.98, lr=5e-4)
LANDER = {
    **_bounded(0.02, gamma=0.999, gae_lambda=0.98, lr=3e-4),
    "normalize_advantage": True,
    "critic_layer_norm": "on",
    "hidden": (256, 256),
    "activation": "silu",
    "entropy_coef": 1e-5,
    "entropy_schedule": "linear",
}
LOCOMOTION = {"log_std_init": -1.0, **_passes(64, 64, epochs=10, gamma=0.99, gae_lambda=0.95, lr=3e-4)}
WALKER = {
    **_bounded(0.05, gamma=0.99, gae_lambda=0.95, lr=3e-4),
    **_SQUASHED,
    "num_steps": 64,
    "hidden": (256, 256),
    "lr_schedule": "linear",
    "kl_schedule": "linear",
}
UNTOLD = {**LOCOMOTION, "surrogate_lr": 3e-4, "entropy_coef": 3e-3, "entropy_schedule": "linear"}
"""Where nothing is known of a task but its spaces: level with the best of `benchmarks/results/run_off.md`."""
