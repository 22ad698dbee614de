"""Surrogates for the policy gradient of a frozen agent: the package's own, and other ways to fit one or to build it.

All are fitted on rollouts that they are not measured on, and leave the gradient's mean as it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from relax_rl.agents.estimated import Estimated
from relax_rl.agents.surrogate import SurrogateActorCritic
from torch import Tensor, nn

from benchmarks.headroom_controls import PAIRS, Fitted, Seen, mean_over_actions, observations, of_later_steps
from benchmarks.policy_jacobian import gradient_of_groups, policy_metric
from relax_rl.agents import AGENTS, ActorCritic
from relax_rl.agents.batch import Batch
from relax_rl.critics import ActionSurrogate, relaxed_control
from relax_rl.distributions import SlopedDistribution
from relax_rl.rollouts import gae, successor_values
from relax_rl.variance.gradient import FIT_MINIBATCH, Fitting, rollouts_kept, some_rows

__all__ = [
    "FittedSurrogate",
    "LayerNormedSurrogate",
    "Regressed",
    "SampledMarginal",
    "Surrogate",
    "ThroughPolicy",
    "ThroughRollouts",
    "TwoHeads",
    "layer_normed",
]


class FittedSurrogate(Fitted):
    """RELAX's or LAX's estimate with a surrogate of its own.

    Args:
        name: of the estimate.
        twin: whose surrogate is fitted.
        rollouts: that there will be.
        estimate, draw: as for `Fitting`: what it is fitted by, the variance of the twin's own estimate by default.
    """

    def __init__(
        self,
        name: str,
        twin: SurrogateActorCritic,
        rollouts: int,
        *,
        estimate: Callable[[Batch], Estimated] | None = None,
        draw: Callable[[int, torch.Generator], Tensor] | None = None,
    ) -> None:
        self.name, self.twin = name, twin
        self.fitting = Fitting(twin, rollouts, estimate=estimate, draw=draw)

    def see(self, seen: Seen) -> None:
        self.fitting(seen.batch)

    @torch.no_grad()
    def estimates(self, seen: Seen) -> dict[str, Tensor]:
        return {self.name: self.twin.estimate(seen.batch).grad}


class Surrogate(FittedSurrogate):
    """The package's own: c^ by the variance objective, at its own step, and at the later steps of the trajectory too.

    At a later step it is c^(s, a) - E_a c^(s, a) that is subtracted from the advantage: what later actions add to it by
    chance (Cheng et al. 2019).
    """

    def __init__(self, agent: ActorCritic, seed: int, rollouts: int) -> None:
        super().__init__("surrogate", _twin(agent, seed), rollouts)
        self.agent = agent

    @torch.no_grad()
    def estimates(self, seen: Seen) -> dict[str, Tensor]:
        batch = seen.batch
        own = _control(self.twin, batch, batch.noise)
        by_chance = own - mean_over_actions(
            batch.dist, lambda noise: _control(self.twin, batch, noise), self.twin.generator
        )
        later = replace(batch, advantage=batch.advantage - of_later_steps(self.agent, seen, by_chance))
        return super().estimates(seen) | {f"{self.name}, later steps too": self.twin.estimate(later).grad}


class ThroughPolicy(FittedSurrogate):
    """c^ by the variance of the policy's own gradient, row by row, instead of that at the distribution's parameters.

    With J a row's Jacobian of the parameters g is taken at, |J'g|^2 is what it minimises, and J J'g is pulled back.
    """

    def __init__(self, agent: ActorCritic, seed: int, rollouts: int) -> None:
        name, twin = "surrogate, by the policy's gradient", _twin(agent, seed)
        super().__init__(name, twin, rollouts, estimate=self._through_policy)
        self.policy = agent.policy

    def _through_policy(self, batch: Batch) -> Estimated:
        """The twin's estimate, with another way back to its surrogate."""
        metric = policy_metric(self.policy, batch.features)
        return _by(self.twin.estimate(batch), lambda pull: (metric @ pull.unsqueeze(-1)).squeeze(-1))


class ThroughRollouts(FittedSurrogate):
    """c^ by the variance of what an update applies: the policy's gradient summed over an environment's rollout.

    |sum_t J_t'g_t|^2 is what it minimises, over rollouts of single environments, which are independent of each other.
    """

    def __init__(self, agent: ActorCritic, seed: int, rollouts: int) -> None:
        name, twin = "surrogate, by rollouts' gradients", _twin(agent, seed)
        super().__init__(name, twin, rollouts, estimate=self._through_rollouts, draw=self._draw)
        self.policy = agent.policy
        self.steps, self.num_envs = agent.config.num_steps, 0

    def see(self, seen: Seen) -> None:
        self.num_envs = seen.rollout.num_envs
        super().see(seen)

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Rows of some environments' rollouts, one after the other."""
        count = rows // self.steps
        which = torch.randint(count, (max(1, FIT_MINIBATCH // self.steps),), generator=generator)
        first = which // self.num_envs * (self.steps * self.num_envs) + which % self.num_envs
        return (first[:, None] + self.num_envs * torch.arange(self.steps)).flatten()

    def _through_rollouts(self, batch: Batch) -> Estimated:
        def together(pull: Tensor) -> Tensor:
            groups = (x.unflatten(0, (-1, self.steps)) for x in (batch.features, pull))
            return gradient_of_groups(self.policy, *groups).flatten(0, 1) * batch.weight.unsqueeze(-1)

        return _by(self.twin.estimate(batch), together)


class SampledMarginal(FittedSurrogate):
    """LAX with the pathwise gradient of E_a c^(s, a) from actions drawn apart, PAIRS antithetic pairs for each row.

        g = (A - c^(s, a)) dlog pi(a | s) + mean_k dc^(s, a_k),    a_k = mu + sigma noise_k

    It is fitted by the variance of this estimate. For continuous actions.
    """

    def __init__(self, agent: ActorCritic, seed: int, rollouts: int) -> None:
        super().__init__("LAX, marginal over samples", _twin(agent, seed), rollouts, estimate=self.estimate)

    @torch.no_grad()
    def estimates(self, seen: Seen) -> dict[str, Tensor]:
        return {self.name: self.estimate(seen.batch).grad}

    @torch.no_grad()
    def estimate(self, batch: Batch) -> Estimated:
        """The estimate and the way back from it to phi."""
        dist, generator = cast(SlopedDistribution, batch.dist), self.twin.generator
        own = dist.relax(batch.noise)
        noise = [dist.sample_noise(generator) for _ in range(PAIRS)]
        z = torch.stack([own, *(dist.relax(sign * x) for x in noise for sign in (1.0, -1.0))])
        control = relaxed_control(self.twin.surrogate, dist, batch.features, z)
        apart = range(1, len(z))
        pathwise = torch.stack([dist.pull_back(control.slope[k], z[k]) for k in apart]).mean(0)

        @torch.no_grad()
        def to_surrogate(pull: Tensor, at_value: Tensor | None = None) -> None:
            weight, direction = torch.zeros_like(control.value), torch.zeros_like(control.slope)
            weight[0] = -(pull * batch.score).sum(-1) + (0.0 if at_value is None else at_value)
            direction[1:] = torch.stack([dist.push_forward(pull, z[k]) for k in apart]) / len(apart)
            control.add_gradient(weight, direction)

        signal = batch.advantage - control.value[0]
        return Estimated(signal.unsqueeze(-1) * batch.score + pathwise, to_surrogate, value=control.value[0])


class Regressed(FittedSurrogate):
    """c^ by regression on what an action was worth beyond V, with the variance objective beside it or without.

    The targets are Retrace's (Munos et al. 2016), of Q = V + c^ under the policy that acted, with the agent's lambda or,
    for expected SARSA, with 0; or the advantages themselves, whose V is all that they know.
    """

    def __init__(
        self,
        agent: ActorCritic,
        seed: int,
        rollouts: int,
        *,
        name: str,
        gae_lambda: float | None,
        variance: bool = False,
    ) -> None:
        super().__init__(name, _twin(agent, seed), rollouts, estimate=self._regressed, draw=self._draw)
        self.agent, self.gae_lambda, self.variance = agent, gae_lambda, variance
        self.kept: deque[Seen] = deque()
        self.target, self.index = torch.empty(0), torch.empty(0)

    def see(self, seen: Seen) -> None:
        self.kept.append(seen)
        while len(self.kept) > rollouts_kept(len(seen.batch.weight)):
            self.kept.popleft()
        self.target = torch.cat([self._targets(each) for each in self.kept])
        super().see(seen)

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        self.index = some_rows(rows, generator)
        return self.index

    def _regressed(self, batch: Batch) -> Estimated:
        """The twin's estimate, from which the regression's gradient goes to phi, beside its own or in place of it."""
        found, target = self.twin.estimate(batch), self.target[self.index]

        def to_surrogate(pull: Tensor, at_value: Tensor | None = None) -> None:
            if self.variance:
                assert found.to_surrogate is not None
                found.to_surrogate(pull, at_value)
            with torch.enable_grad():
                left = _control(self.twin, batch, batch.noise) - target
                (_mean(left.square(), batch) / _mean(batch.advantage.square(), batch)).backward()

        return replace(found, to_surrogate=to_surrogate)

    @torch.no_grad()
    def _targets(self, seen: Seen) -> Tensor:
        """`[B]` what c^ shall be, in the unit of the batch's advantages."""
        batch, rollout, agent = seen.batch, seen.rollout, self.agent
        if self.gae_lambda is None:
            return batch.advantage
        obs = observations(agent, seen)
        values = batch.scale * agent.value(obs)
        dist = batch.dist.with_params(agent.policy(obs))
        values += mean_over_actions(
            dist, lambda noise: _control_at(self.twin, obs, dist, noise), self.twin.generator, pairs=1
        )
        own = _control(self.twin, batch, batch.noise)
        shape = rollout.num_steps, rollout.num_envs
        body = len(own) + rollout.num_envs
        each = values[:body].view(-1, rollout.num_envs)
        reward = rollout.reward.clamp(-agent.config.reward_clip, agent.config.reward_clip)
        value_of_action = batch.scale * agent.value(obs[: len(own)]) + own
        beyond = gae(
            batch.scale * agent.reward_unit * reward,
            value_of_action.view(shape),
            successor_values(each, values[body:], rollout.final_index),
            rollout.terminated,
            rollout.truncated,
            rollout.valid,
            gamma=agent.config.gamma,
            gae_lambda=self.gae_lambda,
        )
        return own + beyond.flatten()


class TwoHeads(Fitted):
    """The mean of two surrogates, each fitted by the variance objective from another start and on other rows."""

    def __init__(self, agent: ActorCritic, seed: int, rollouts: int) -> None:
        self.heads = [FittedSurrogate(str(k), _twin(agent, 2 * seed + k), rollouts) for k in (1, 2)]

    def see(self, seen: Seen) -> None:
        for head in self.heads:
            head.see(seen)

    def estimates(self, seen: Seen) -> dict[str, Tensor]:
        found = [estimate for head in self.heads for estimate in head.estimates(seen).values()]
        return {"two surrogates": torch.stack(found).mean(0)}


def layer_normed(agent: ActorCritic, seed: int, rollouts: int) -> FittedSurrogate:
    """The package's own with layer normalisation before every activation of the surrogate."""
    twin = _twin(agent, seed)
    config, actions = twin.config, sum(twin.actions.sizes)
    twin.use_surrogate(
        LayerNormedSurrogate(twin.num_surrogate_features, actions, config.surrogate_hidden, config.surrogate_activation)
    )
    return FittedSurrogate("surrogate with LayerNorm", twin, rollouts)


class LayerNormedSurrogate(ActionSurrogate):
    """c^ with layer normalisation, whose slope and gradients are differentiated twice instead of written down."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        layers = cast(list[nn.Linear], list(self.layers.layers))
        self.norms = nn.ModuleList(nn.LayerNorm(layer.out_features) for layer in layers)

    def forward(self, features: Tensor, relaxed_action: Tensor) -> Tensor:
        x = torch.cat([features, relaxed_action], -1)
        for layer, norm in zip(self.layers.layers, self.norms, strict=True):
            x = self.layers.activation(norm(layer(x)))
        out: Tensor = self.head(x)
        return self.gain * out.squeeze(-1)

    def evaluate(self, features: Tensor, relaxed_action: Tensor) -> Any:
        with torch.enable_grad():
            at = relaxed_action.detach().requires_grad_()
            value = self(features, at)
            return _Graph(value, torch.autograd.grad(value.sum(), at, create_graph=True)[0], at)

    def add_gradient(self, at: Any, weight: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        phi = [x for name, x in self.named_parameters() if name != "log_temperature"]
        with torch.enable_grad():
            total = (at.value * weight).sum() + (at.slope * direction).sum()
            *found, back = torch.autograd.grad(total, [*phi, at.action], retain_graph=True, materialize_grads=True)
        for parameter, gradient in zip(phi, found, strict=True):
            assert parameter.grad is not None
            parameter.grad += gradient
        return back, at.slope.detach()


@dataclass(frozen=True)
class _Graph:
    """c^ and its slope at relaxed actions, with their graph."""

    value: Tensor
    slope: Tensor
    action: Tensor


def _twin(agent: ActorCritic, seed: int) -> SurrogateActorCritic:
    """RELAX or LAX on an agent's spaces and settings."""
    name = "lax" if agent.actions.kind == "gaussian" else "relax"
    twin = AGENTS[name](agent.observation_space, agent.action_space, seed=seed, config=agent.config)
    return cast(SurrogateActorCritic, twin)


def _by(found: Estimated, metric: Callable[[Tensor], Tensor]) -> Estimated:
    """An estimate whose surrogate learns what is pulled back through a metric."""

    def to_surrogate(pull: Tensor, at_value: Tensor | None = None) -> None:
        assert found.to_surrogate is not None
        found.to_surrogate(metric(pull), at_value)

    return replace(found, to_surrogate=to_surrogate)


def _control(twin: SurrogateActorCritic, batch: Batch, noise: Tensor) -> Tensor:
    """`[B]` c^ at the relaxed actions that noise makes."""
    return _control_at(twin, batch.features, batch.dist, noise)


def _control_at(twin: SurrogateActorCritic, features: Tensor, dist: Any, noise: Tensor) -> Tensor:
    surrogate = twin.surrogate
    dist = dist.with_params(dist.params.detach())
    value: Tensor = surrogate(features, dist.soften(dist.relax(noise), surrogate.temperature))
    return value


def _mean(x: Tensor, batch: Batch) -> Tensor:
    return (x * batch.weight).sum() / batch.weight.sum().clamp(min=1.0)
