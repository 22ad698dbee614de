"""Surrogates for the policy gradient of a frozen agent: the package's own, and other ways to fit one or to build it.

All are fitted on rollouts that they are not measured on, and leave the gradient's mean as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from benchmarks.headroom_controls import PAIRS, Control, RolloutData, mean_over_actions, of_later_steps
from relax_rl.agents import ActorCritic, Experience
from relax_rl.agents.estimates import LAX, RELAX
from relax_rl.critics import surrogate_at
from relax_rl.estimators import control_variate_gradient
from relax_rl.networks.policies import Policy
from relax_rl.networks.torsos import MLP
from relax_rl.variance.contenders import fresh_surrogate
from relax_rl.variance.fitting import MINIBATCH, fit_surrogate, relative_variance, some_rows, variance_of_a2c

__all__ = ["LayerNormedSurrogate", "SampledMarginal", "Surrogate", "ThroughRollouts", "policy_gradients", "surrogates"]


class Surrogate(Control):
    """RELAX's or LAX's estimate with a surrogate of its own.

    Args:
        name: of the estimate.
        agent: the frozen one.
        seed: of the surrogate, the rows it is fitted on and their noise.
        rollouts: that there will be.
        net: the surrogate, where it is not one like the package's own.
    """

    def __init__(
        self, name: str, agent: ActorCritic, seed: int, rollouts: int, *, net: nn.Module | None = None
    ) -> None:
        self.name, self.agent = name, agent
        self.net = fresh_surrogate(agent, seed) if net is None else net
        self.generator = torch.Generator().manual_seed(seed)
        options = {"rollouts": rollouts, "generator": self.generator, "draw": self.draw}
        self.fit = fit_surrogate(agent.policy, self.net, self.loss, **options)

    def estimate(self, x: Experience, dist: Any) -> Tensor:
        """`[B, P]` the estimate, with the graph that leads to the surrogate."""
        return (LAX if self.agent.actions.kind == "gaussian" else RELAX).estimate(x, dist, self.net)

    def loss(self, x: Experience, dist: Any) -> Tensor:
        """What the surrogate is fitted by: the variance of the estimate, as in an agent."""
        return relative_variance(self.estimate)(x, dist)

    def draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Numbers of the rows of a step."""
        return some_rows(rows, generator)

    def control(self, x: Experience, dist: Any) -> Callable[[Tensor], Tensor]:
        """c^ at the states of some experience, as a function of noise."""
        at = surrogate_at(self.net, x.features, dist)
        return lambda noise: at(dist.relax(noise))

    def learn(self, data: RolloutData) -> None:
        self.fit(data.x, data.dist)

    def estimates(self, data: RolloutData) -> dict[str, Tensor]:
        return {self.name: self.estimate(data.x, data.dist).detach()}


class WithLaterSteps(Surrogate):
    """The package's own, at its own step, and at the later steps of the trajectory too.

    At a later step it is c^(s, a) - E_a c^(s, a) that is subtracted from the advantage: what later actions add to it by
    chance (Cheng et al. 2019).
    """

    def estimates(self, data: RolloutData) -> dict[str, Tensor]:
        x, control = data.x, self.control(data.x, data.dist)
        with torch.no_grad():
            by_chance = control(x.noise) - mean_over_actions(data.dist, control, self.generator)
        later = replace(x, advantage=x.advantage - of_later_steps(self.agent, data, by_chance))
        return super().estimates(data) | {f"{self.name}, later steps too": self.estimate(later, data.dist).detach()}


class ThroughPolicy(Surrogate):
    """c^ by the variance of the policy's own gradient J'g, row by row, instead of that of g at the distribution's parameters."""

    steps = 1

    def loss(self, x: Experience, dist: Any) -> Tensor:
        pull = self.estimate(x, dist) * x.weight.unsqueeze(-1)
        squares = policy_gradients(self.agent.policy, x.features, pull, self.steps).square().sum()
        return squares / (x.weight.sum() * variance_of_a2c(x, dist))


class ThroughRollouts(ThroughPolicy):
    """c^ by the variance of what an update applies: the policy's gradient summed over an environment's rollout.

    |sum_t J_t'g_t|^2 is what it minimises, over rollouts of single environments, which are independent of each other.
    """

    num_envs = 0

    def learn(self, data: RolloutData) -> None:
        self.steps, self.num_envs = data.rollout.num_steps, data.rollout.num_envs
        super().learn(data)

    def draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Rows of some environments' rollouts, one after the other."""
        which = torch.randint(rows // self.steps, (max(1, MINIBATCH // self.steps),), generator=generator)
        first = which // self.num_envs * (self.steps * self.num_envs) + which % self.num_envs
        return (first[:, None] + self.num_envs * torch.arange(self.steps)).flatten()


class SampledMarginal(Surrogate):
    """LAX with the pathwise gradient of E_a c^(s, a) from actions drawn apart, PAIRS antithetic pairs for each row.

        g = (A - c^(s, a)) dlog pi(a | s) + mean_k dc^(s, a_k),    a_k = mu + sigma noise_k

    For continuous actions.
    """

    def estimate(self, x: Experience, dist: Any) -> Tensor:
        noise = [dist.sample_noise(self.generator) for _ in range(PAIRS)]
        z = torch.stack([dist.relax(e) for e in (x.noise, *noise, *(-e for e in noise))]).detach()
        control: Any = surrogate_at(self.net, x.features, dist)
        value, slope = control.value_and_slope(z)
        pathwise = dist.pull_back(slope[1:], z[1:]).mean(0)
        return control_variate_gradient(x.advantage, value[0], pathwise, dist.score(x.action))


class Regressed(Surrogate):
    """c^ by least squares on the advantage."""

    def loss(self, x: Experience, dist: Any) -> Tensor:
        left = self.control(x, dist)(x.noise) - x.advantage
        return (left.square() @ x.weight) / (x.advantage.square() @ x.weight)


class TwoSurrogates(Control):
    """The mean of two surrogates, each fitted by the variance objective from another start and on other rows."""

    def __init__(self, name: str, agent: ActorCritic, seed: int, rollouts: int) -> None:
        self.name, self.both = name, [Surrogate(name, agent, 2 * seed + k, rollouts) for k in (1, 2)]

    def learn(self, data: RolloutData) -> None:
        for each in self.both:
            each.learn(data)

    def estimates(self, data: RolloutData) -> dict[str, Tensor]:
        return {self.name: torch.stack([each.estimates(data)[self.name] for each in self.both]).mean(0)}


class LayerNormedSurrogate(nn.Module):
    """c^ with layer normalisation before every activation, whose slope is differentiated instead of written down."""

    def __init__(self, inputs: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        self.layers = MLP(inputs, hidden, activation)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in hidden)
        self.head = nn.Linear(self.layers.num_features, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, features: Tensor, relaxed_action: Tensor) -> Tensor:
        """`[*]` values from `[*, F]` features and `[*, A]` relaxed actions."""
        x = torch.cat([features, relaxed_action], -1)
        for layer, norm in zip(self.layers.layers, self.norms, strict=True):
            x = self.layers.activation(norm(layer(x)))
        return self.gain * cast(Tensor, self.head(x)).squeeze(-1)


def surrogates(agent: ActorCritic, seed: int, rollouts: int) -> list[Control]:
    """Every surrogate that is tried."""
    config, inputs = agent.config, agent.observations.shape[0] + sum(agent.actions.sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        normed = LayerNormedSurrogate(inputs, config.surrogate_hidden, config.surrogate_activation)
    kinds = {
        "surrogate": WithLaterSteps,
        "surrogate, by the policy's gradient": ThroughPolicy,
        "surrogate, by rollouts' gradients": ThroughRollouts,
        "regression on the advantage": Regressed,
        "two surrogates": TwoSurrogates,
    }
    if agent.actions.kind == "gaussian":
        kinds["LAX, marginal over samples"] = SampledMarginal
    found: list[Control] = [kind(name, agent, seed, rollouts) for name, kind in kinds.items()]
    return [*found, Surrogate("surrogate with LayerNorm", agent, seed, rollouts, net=normed)]


def policy_gradients(policy: Policy, obs: Tensor, pull: Tensor, steps: int) -> Tensor:
    """`[G, |theta|]` sum_t J_t'x_t over groups of `steps` rows, J_t a row's Jacobian of the distribution's parameters.

    Args:
        policy: whose weights J is taken at.
        obs: `[G * steps, D]` normalised observations.
        pull: `[G * steps, P]` x, whose graph is kept.
        steps: rows of a group.
    """
    theta = {name: x.detach() for name, x in policy.named_parameters()}

    def of_group(obs: Tensor, pull: Tensor) -> Tensor:
        (found,) = vjp(lambda theta: functional_call(policy, theta, (obs,)), theta)[1](pull)
        return torch.cat([x.flatten() for x in found.values()])

    return vmap(of_group)(obs.unflatten(0, (-1, steps)), pull.unflatten(0, (-1, steps)))
