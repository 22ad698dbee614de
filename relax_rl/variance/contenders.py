"""The estimators whose variance is measured: those that fit an agent's actions, with surrogates as they are and fitted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from relax_rl.agents import AGENTS, ActorCritic
from relax_rl.agents.batch import Batch
from relax_rl.agents.estimates import MARGINAL, AgentEstimator, Experience, a2c, check_estimator
from relax_rl.agents.factory import NetworkFactory, make_networks
from relax_rl.agents.networks import Outputs
from relax_rl.critics import OverBins, relative_to, surrogate_at
from relax_rl.errors import SettingsError
from relax_rl.variance.fitting import fit_surrogate, relative_variance

__all__ = ["REFERENCE", "STATE_PART", "Contender", "contenders", "experience_of", "fresh_surrogate"]

REFERENCE = "a2c"
"""The estimator that the others are measured against."""

STATE_PART = "state part"
"""Added to the name of a contender that takes its surrogate for a baseline of the state alone."""

_ACTIONS_AVERAGED = 16
_WEIGHTS = (0.0, 0.3, 1.0)
"""Residual weights that a critic is measured at beside its own."""


@dataclass(frozen=True)
class Contender:
    """A way to estimate an agent's gradient.

    Attributes:
        name: what it is called in results.
        estimate: experience and action distribution to `[B, P]` gradients at the distribution's parameters, affine in
            the advantage with `weight` times the score as its slope.
        fit: trains its surrogate, if it has one that is to be trained, on the experience of a rollout.
        weight: of the advantage; other than 1 where the estimate is biased towards its surrogate.
    """

    name: str
    estimate: Callable[[Experience, Any], Tensor]
    fit: Callable[[Experience, Any], None] | None = None
    weight: float = 1.0


def experience_of(agent: ActorCritic, batch: Batch, outputs: Outputs) -> tuple[Experience, Any]:
    """What an estimate sees of an agent's batch and its networks' outputs on it: experience and action distribution."""
    seen = outputs.features, batch.action, batch.noise, batch.advantage, batch.return_, batch.weight
    experience = Experience(*seen, value=batch.return_ - batch.advantage)
    return experience, agent.policy.distribution(outputs.params.detach(), batch.mask)


def contenders(
    agent: ActorCritic, *, fit_batches: int, seed: int = 0, networks: NetworkFactory | None = None
) -> list[Contender]:
    """The estimators that fit the agent's actions, each with a surrogate of its own where it has one.

    After each of these stands the same surrogate averaged over actions, as a baseline of the state: what the first
    gains beyond it is owed to the dependence on the action, the rest makes up for errors of V.

    Args:
        agent: whose surrogate, if it has one, enters as it stands, as much of it as in an update; one that is a critic
            at other residual weights too.
        fit_batches: rollouts of the frozen policy on which surrogates will be trained for further contenders, which
            start from the agent's own surrogate if it is of their kind, else from nothing; 0 leaves them out.
        seed: of fresh surrogates and of the noise of relaxations.
        networks: the factory that the agent was made with, if that is the user's own.
    """
    found = [Contender(name, _with(AGENTS[name].estimator, None)) for name in ("reinforce", REFERENCE)]
    if (own := agent.networks.surrogate) is not None:
        eta = 1.0 if agent.control_scale is None else agent.control_scale.value
        weights = [_residual_weight(agent)]
        if agent.config.surrogate_loss == "critic":
            weights += [w for w in _WEIGHTS if w not in weights]
        found += [_weighed(agent, own, w, eta) for w in weights]
        _, state_part = _with_state_part(agent.name, agent.estimator, own, seed)
        found.append(replace(state_part, estimate=_scaled(state_part.estimate, eta)))
    elif agent.name not in [each.name for each in found]:  # somebody's own, without a surrogate
        found.append(Contender(agent.name, _with(agent.estimator, None)))
    for name, kind in AGENTS.items() if fit_batches else ():
        with suppress(SettingsError):  # of estimators for other actions, or for fewer
            check_estimator(kind.estimator, agent.actions)
            if kind.estimator.uses_surrogate:
                surrogate = copy.deepcopy(own) if own and name == agent.name else fresh_surrogate(agent, seed, networks)
                found += _fitted(agent, kind.estimator, surrogate, fit_batches, seed)
    return found


def fresh_surrogate(agent: ActorCritic, seed: int, networks: NetworkFactory | None = None) -> nn.Module:
    """The surrogate that an agent of this seed with the same spaces and settings begins with, in the agent's unit of returns;
    of networks of somebody's own with their factory, since it reads what their torsos give."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        spaces = agent.observations, agent.actions
        surrogate = make_networks(*spaces, agent.config, surrogate=True, factory=networks).surrogate
    assert surrogate is not None
    if isinstance(surrogate, OverBins) and isinstance(agent.value, OverBins):
        surrogate.unit.copy_(agent.value.unit)
    return surrogate.to(agent.device)


def _fitted(
    agent: ActorCritic, estimator: AgentEstimator, surrogate: nn.Module, rollouts: int, seed: int
) -> list[Contender]:
    """An estimate whose surrogate is trained first, and its state part."""
    loss = relative_variance(_with(estimator, surrogate))
    generator = torch.Generator(agent.device).manual_seed(seed)
    fit = fit_surrogate(agent.policy, surrogate, loss, rollouts=rollouts, generator=generator)
    whole, state_part = _with_state_part(f"{estimator.name}, fitted", estimator, surrogate, seed)
    return [replace(whole, fit=fit), state_part]


def _residual_weight(agent: ActorCritic) -> float:
    """That of an update; 1 for agents that have none."""
    learned, given = agent.learner.residual_weight, agent.config.residual_weight
    return learned.value if learned is not None else given if isinstance(given, float | int) else 1.0


def _weighed(agent: ActorCritic, surrogate: nn.Module, weight: float, eta: float) -> Contender:
    """The agent's own estimate at a residual weight."""
    estimate = _with(agent.estimator, surrogate)
    name = agent.name if weight == _residual_weight(agent) else f"{agent.name}, w = {weight:g}"
    at_weight = _scaled(lambda x, dist: estimate(replace(x, residual_weight=weight), dist), eta)
    return Contender(name, at_weight, weight=1.0 + eta * (weight - 1.0))


def _with(estimator: AgentEstimator, surrogate: nn.Module | None) -> Callable[[Experience, Any], Tensor]:
    return lambda x, dist: estimator.estimate(x, dist, relative_to(surrogate, x.value))


def _scaled(estimate: Callable[[Experience, Any], Tensor], eta: float) -> Callable[[Experience, Any], Tensor]:
    """With a fraction of the surrogate."""
    return lambda x, dist: torch.lerp(a2c(x, dist), estimate(x, dist), eta)


def _with_state_part(name: str, estimator: AgentEstimator, surrogate: nn.Module, seed: int) -> list[Contender]:
    """An estimate, and the surrogate's mean over actions as a baseline: g = (A - E_a c^(s, a)) dlog pi(a | s)."""

    @torch.no_grad()
    def state_part(x: Experience, dist: Any) -> Tensor:
        embedded = estimator is MARGINAL  # which asks c^ at actions, the others at relaxed ones
        control = surrogate_at(relative_to(surrogate, x.value), x.features, None if embedded else dist)
        # Drawn apart from the actions taken, so that nothing is biased, and alike at every call, so that the estimate is
        # affine in the advantage.
        generator = torch.Generator(x.advantage.device).manual_seed(seed + 1)
        draws = (dist.relax(dist.sample_noise(generator)) for _ in range(_ACTIONS_AVERAGED))
        each = (control(dist.embed(dist.threshold(z)) if embedded else z) for z in draws)
        return a2c(replace(x, advantage=x.advantage - sum(each) / _ACTIONS_AVERAGED), dist)

    return [Contender(name, _with(estimator, surrogate)), Contender(f"{name}, {STATE_PART}", state_part)]
