"""The agents: one actor-critic base, and one way each to form its gradient."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces

from relax_rl.agents.a2c import A2C, Reinforce
from relax_rl.agents.base import ActorCritic
from relax_rl.agents.callback import UpdateInfo
from relax_rl.agents.lax import LAX
from relax_rl.agents.marginal import Marginal
from relax_rl.agents.relax import RELAX
from relax_rl.errors import SettingsError, did_you_mean
from relax_rl.spaces import ActionEncoder

__all__ = ["A2C", "AGENTS", "LAX", "RELAX", "ActorCritic", "Marginal", "Reinforce", "UpdateInfo", "resolve_estimator"]

AGENTS: dict[str, type[ActorCritic]] = {agent.name: agent for agent in (RELAX, LAX, Marginal, A2C, Reinforce)}
"""Agents by the name of their gradient estimator."""


def resolve_estimator(name: str, action_space: spaces.Space[Any]) -> str:
    """The estimator to use: `auto` becomes relax for discrete actions and lax for continuous ones.

    Raises:
        SettingsError: if there is no such estimator, or it does not fit the action space.
    """
    kind = ActionEncoder(action_space).kind
    if name == "auto":
        return "lax" if kind == "gaussian" else "relax"
    if name not in AGENTS:
        raise SettingsError(
            f"unknown estimator {name!r}, expected one of {', '.join(AGENTS)}{did_you_mean(name, AGENTS)}"
        )
    AGENTS[name].check_action_kind(kind)
    return name
