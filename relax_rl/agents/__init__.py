"""The agents: one actor-critic, and an estimate of its gradient each."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces

from relax_rl.agents import estimates
from relax_rl.agents.agent import ActorCritic, Callback
from relax_rl.agents.estimates import AgentEstimator, Experience, check_estimator
from relax_rl.agents.factory import NetworkParts
from relax_rl.agents.listening import Listener
from relax_rl.agents.returns import VTrace, gae, n_step_returns, vtrace
from relax_rl.agents.statistics import UpdateInfo
from relax_rl.errors import SettingsError, did_you_mean
from relax_rl.networks.actions import action_encoder
from relax_rl.settings.naming import is_own, named, require_call

__all__ = [
    "A2C",
    "AGENTS",
    "LAX",
    "RELAX",
    "ActorCritic",
    "AgentEstimator",
    "Callback",
    "Experience",
    "Listener",
    "Marginal",
    "NetworkParts",
    "Reinforce",
    "UpdateInfo",
    "VTrace",
    "gae",
    "learn_of",
    "n_step_returns",
    "register",
    "resolve_estimator",
    "vtrace",
]


class RELAX(ActorCritic):
    """Actor-critic whose gradient subtracts c^(s, z~) and puts back its reparameterised gradient.

        g = (A - c^(s, z~)) dlog pi(a | s) + dc^(s, z) - dc^(s, z~)

    (Grathwohl et al. 2018, section 3.2, with the advantage A for f.) The noise of z~ is coupled with that of z (Tucker et al.
    2017, appendix): z~ is z, and only moves otherwise with the parameters, so that c^ is asked once. For discrete,
    multi-discrete and binary actions, and for those beside continuous ones, which it treats as LAX does.
    """

    estimator = estimates.RELAX


class LAX(ActorCritic):
    """Actor-critic whose gradient subtracts c^(s, a) and puts back its reparameterised gradient.

        g = (A - c^(s, a)) dlog pi(a | s) + dc^(s, a),    a = mu + sigma noise with the noise of the action taken

    (Grathwohl et al. 2018, section 3, with the advantage A for f.) For continuous actions.
    """

    estimator = estimates.LAX


class Marginal(ActorCritic):
    """Actor-critic that subtracts c^(s, a) and puts back the exact gradient of its expectation.

        g = (A - c^(s, a)) dlog pi(a | s) + d sum_a' pi(a' | s) c^(s, a')

    The action-dependent baseline of small action sets (Gu et al. 2017, Q-Prop; Liu et al. 2018): c^ is asked at every action,
    so that no noise of a relaxation is added. For discrete, multi-discrete and binary actions of few combinations.

    Raises:
        SettingsError: when there are more than 64 combinations.
    """

    estimator = estimates.MARGINAL


class A2C(ActorCritic):
    """Advantage actor-critic (Mnih et al. 2016) with generalised advantage estimation: g = A dlog pi(a | s)."""

    estimator = estimates.A2C


class Reinforce(ActorCritic):
    """REINFORCE (Williams 1992): g = R dlog pi(a | s) with the lambda-return R and no baseline.

    V serves only to bootstrap where a rollout cuts an episode; `gae_lambda=1` gives the observed return up to there.
    """

    estimator = estimates.REINFORCE


AGENTS: dict[str, type[ActorCritic]] = {agent.name: agent for agent in (RELAX, LAX, Marginal, A2C, Reinforce)}
"""Agents by the name of their gradient estimator."""


def register(estimator: AgentEstimator) -> type[ActorCritic]:
    """The agent of an estimator of somebody's own; from here on its name is known as those of `AGENTS` are.

    Args:
        estimator: with a name of its own.

    Returns:
        The class of the agent.

    Raises:
        SettingsError: another estimator has that name, it is for actions of an unknown kind, or it is something else.
    """
    if not isinstance(estimator, AgentEstimator):
        raise SettingsError(
            f"the estimator is a {type(estimator).__name__}, expected AgentEstimator(name=..., estimate=a function)"
        )
    kinds = AgentEstimator.action_kinds
    if unknown := [kind for kind in estimator.action_kinds if kind not in kinds]:
        raise SettingsError(
            f"action_kinds of estimator {estimator.name!r} has {unknown[0]!r}, expected some of {', '.join(kinds)}"
        )
    known = AGENTS.get(estimator.name)
    if known is None:
        known = AGENTS[estimator.name] = type(estimator.name, (ActorCritic,), {"estimator": estimator})
    elif known.estimator != estimator:
        raise SettingsError(f"there is another estimator of the name {estimator.name!r}; give yours another one")
    return known


def learn_of(name: str) -> str:
    """Import and register an estimator of the user's own; returns the name by which it is known then.

    Args:
        name: `module:name` of an `AgentEstimator`, or of a function of (experience, distribution, surrogate) that estimates.

    Raises:
        SettingsError: there is none.
    """
    found = named(name, "estimator")
    if not isinstance(found, AgentEstimator):
        require_call(found, "estimator", "experience", "distribution", "surrogate")
        found = AgentEstimator(name=name.partition(":")[2], estimate=found, uses_surrogate=True)
    return register(found).name


def resolve_estimator(name: str, action_space: spaces.Space[Any]) -> str:
    """The estimator to use for an action space.

    Args:
        name: of `AGENTS`; or "auto", which becomes lax for continuous actions, and relax for discrete and hybrid ones; or
            `module:name`, as for `learn_of`.
        action_space: of a single environment.

    Returns:
        Its name in `AGENTS`.

    Raises:
        SettingsError: if there is no such estimator, or it does not fit the action space.
    """
    actions = action_encoder(action_space)
    if name == "auto":
        return "lax" if actions.kind == "gaussian" else "relax"
    if is_own(name):
        name = learn_of(name)
    if name not in AGENTS:
        raise SettingsError(
            f"unknown estimator {name!r}, expected one of {', '.join(AGENTS)}{did_you_mean(name, AGENTS)}"
        )
    check_estimator(AGENTS[name].estimator, actions)
    return name
