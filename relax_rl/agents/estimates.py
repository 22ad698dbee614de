"""The gradient estimates of all agents: one equation each, as a call into `relax_rl.estimators`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from relax_rl import estimators
from relax_rl.critics import surrogate_at
from relax_rl.errors import SettingsError
from relax_rl.networks.spaces import ActionEncoder

__all__ = [
    "A2C",
    "BUILT_IN",
    "LAX",
    "MARGINAL",
    "REINFORCE",
    "RELAX",
    "AgentEstimator",
    "Experience",
    "a2c",
    "check_estimator",
    "lax",
    "marginal",
    "reinforce",
    "relax",
]


@dataclass(frozen=True)
class Experience:
    """What an estimate sees: B rows of experience, as if the policy at hand had acted.

    Attributes:
        features: `[B, F]` description of the states for the surrogate, without graph.
        action: `[B, ...]` outcomes.
        noise: `[B, ...]` the base noise from which the policy makes each of them.
        advantage: `[B]` generalised advantage estimates, 0 where PPO clips.
        return_: `[B]` advantage + value, 0 where PPO clips.
        weight: `[B]` 1 for a transition, 0 for a row made up by autoreset.
        score: `[B, P]` dlog pi(a | s) at the distributions' parameters, where it is at hand.
        residual_weight: w, how much of what the surrogate leaves of the advantage multiplies the score; a number or a scalar.
        value: `[B]` V, which the advantage is taken against, where the surrogate is a critic of returns.
    """

    features: Tensor
    action: Tensor
    noise: Tensor
    advantage: Tensor
    return_: Tensor
    weight: Tensor
    score: Tensor | None = None
    residual_weight: Tensor | float = 1.0
    value: Tensor | None = None


Estimate = Callable[[Experience, Any, Any], Tensor]
"""(experience, action distribution, surrogate) -> `[B, P]` at `dist.params`, with the graph that leads to phi alone."""


def reinforce(x: Experience, dist: Any, surrogate: None = None) -> Tensor:
    """g = R dlog pi(a | s), with the lambda-return R (Williams 1992)."""
    return estimators.reinforce(x.return_, dist, noise=x.noise, sample=x.action, score=x.score).grad


def a2c(x: Experience, dist: Any, surrogate: nn.Module | None = None) -> Tensor:
    """g = A dlog pi(a | s) (Mnih et al. 2016)."""
    return estimators.reinforce(x.advantage, dist, noise=x.noise, sample=x.action, score=x.score).grad


def relax(x: Experience, dist: Any, surrogate: nn.Module) -> Tensor:
    """g = w (A - c^(s, z~)) dlog pi(a | s) + dc^(s, z) - w dc^(s, z~), z~ = z (Grathwohl et al. 2018, section 3.2; w = 1).

    The continuous part of a hybrid action, which z~ holds as it is, moves in c^(s, z) alone: LAX.
    """
    control = surrogate_at(surrogate, x.features, dist)
    return estimators.relax(x.advantage, dist, control, coupling="coupled", **_drawn(x)).grad


def lax(x: Experience, dist: Any, surrogate: nn.Module) -> Tensor:
    """g = w (A - c^(s, a)) dlog pi(a | s) + dc^(s, a), a = mu + sigma noise (Grathwohl et al. 2018, section 3; w = 1)."""
    control = surrogate_at(surrogate, x.features, dist)
    return estimators.lax(x.advantage, dist, control, **_drawn(x)).grad


def marginal(x: Experience, dist: Any, surrogate: nn.Module) -> Tensor:
    """g = w (A - c^(s, a)) dlog pi(a | s) + d sum_a' pi(a' | s) c^(s, a') (Gu et al. 2017, Q-Prop; Liu et al. 2018)."""
    control = surrogate_at(surrogate, x.features)
    return estimators.marginal(x.advantage, dist, control, **_drawn(x)).grad


def _drawn(x: Experience) -> dict[str, Any]:
    """What is at hand of the draws, and w."""
    return {"noise": x.noise, "sample": x.action, "score": x.score, "residual_weight": x.residual_weight}


DISCRETE = ("categorical", "multi_categorical", "bernoulli")
_KIND_NAMES = {"gaussian": "continuous", "hybrid": "hybrid"}


@dataclass(frozen=True, kw_only=True)
class AgentEstimator:
    """An estimate under the name by which settings and checkpoints know it; an agent is one of these and two networks.

    Attributes:
        name: of the estimator.
        estimate: see `Estimate`. It has to be affine in the advantage, with the score as its slope.
        action_kinds: what it is for.
        uses_surrogate: whether it is given a surrogate, which then learns to lower its variance.
        signal: what multiplies the score, and by whose sign PPO clips.
        most_actions: how many actions there may be, where it asks for each of them; None for no limit.
    """

    name: str
    estimate: Estimate
    action_kinds: tuple[str, ...] = (*DISCRETE, "gaussian", "hybrid")
    uses_surrogate: bool = False
    signal: Literal["advantage", "return_"] = "advantage"
    most_actions: int | None = None


RELAX = AgentEstimator(name="relax", estimate=relax, action_kinds=(*DISCRETE, "hybrid"), uses_surrogate=True)
LAX = AgentEstimator(name="lax", estimate=lax, action_kinds=("gaussian",), uses_surrogate=True)
MARGINAL = AgentEstimator(
    name="marginal", estimate=marginal, action_kinds=DISCRETE, uses_surrogate=True, most_actions=64
)
A2C = AgentEstimator(name="a2c", estimate=a2c)
REINFORCE = AgentEstimator(name="reinforce", estimate=reinforce, signal="return_")
BUILT_IN = (RELAX, LAX, MARGINAL, A2C, REINFORCE)


def check_estimator(estimator: AgentEstimator, actions: ActionEncoder) -> None:
    """Raises SettingsError if an estimator is not for such actions, or asks for each of too many."""
    if actions.kind not in estimator.action_kinds:
        other, kind = "lax" if actions.kind == "gaussian" else "relax", _KIND_NAMES.get(actions.kind, "discrete")
        raise SettingsError(
            f"estimator {estimator.name!r} does not fit {kind} actions; use {other!r} (or auto, a2c, reinforce)"
        )
    if estimator.most_actions is None or actions.kind == "gaussian":
        return
    count = 2 ** actions.sizes[0] if actions.kind == "bernoulli" else math.prod(actions.sizes)
    if count > estimator.most_actions:
        raise SettingsError(
            f"estimator {estimator.name!r} asks its surrogate at every action, and there are {count}, expected at most "
            f"{estimator.most_actions}; use 'relax'"
        )
