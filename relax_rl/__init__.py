"""relax_rl: reinforcement-learning agents with low-variance, unbiased policy gradients (RELAX, LAX, A2C, REINFORCE).

The public names are imported when they are first used, so that importing the package stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from relax_rl.agents import A2C, LAX, RELAX, ActorCritic, Marginal, Reinforce
    from relax_rl.backends.checks import check_env
    from relax_rl.envs import make_envs
    from relax_rl.runs.training import train
    from relax_rl.runs.zoo import load_zoo
    from relax_rl.settings.config import AgentConfig, EnvConfig, RunConfig, TrainConfig
    from relax_rl.settings.presets import settings_for

_HOMES = {
    "A2C": "relax_rl.agents",
    "LAX": "relax_rl.agents",
    "RELAX": "relax_rl.agents",
    "ActorCritic": "relax_rl.agents",
    "Marginal": "relax_rl.agents",
    "Reinforce": "relax_rl.agents",
    "AgentConfig": "relax_rl.settings.config",
    "EnvConfig": "relax_rl.settings.config",
    "RunConfig": "relax_rl.settings.config",
    "TrainConfig": "relax_rl.settings.config",
    "check_env": "relax_rl.backends.checks",
    "load_zoo": "relax_rl.runs.zoo",
    "make_envs": "relax_rl.envs",
    "settings_for": "relax_rl.settings.presets",
    "train": "relax_rl.runs.training",
}

__all__ = [
    "A2C",
    "LAX",
    "RELAX",
    "ActorCritic",
    "AgentConfig",
    "EnvConfig",
    "Marginal",
    "Reinforce",
    "RunConfig",
    "TrainConfig",
    "check_env",
    "load_zoo",
    "make_envs",
    "settings_for",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
