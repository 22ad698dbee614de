"""Control variates for the policy gradient of a frozen agent that are no surrogates: what could be gained.

All are fitted on rollouts that they are not measured on, and all but the refitted V leave the gradient's mean as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relax_rl.agents import ActorCritic, Experience
from relax_rl.agents.batch import Batch, make_batch
from relax_rl.agents.estimates import a2c
from relax_rl.agents.returns import gae
from relax_rl.agents.rollouts import Rollout
from relax_rl.estimators import control_variate_gradient
from relax_rl.estimators.exact import every_outcome
from relax_rl.variance.fitting import Fit

__all__ = ["PAIRS", "Control", "Dynamics", "RefittedValue", "RolloutData", "mean_over_actions", "of_later_steps"]

PAIRS = 8
"""Pairs of actions, antithetic if they are continuous, that an expectation over actions is taken from."""


@dataclass(frozen=True)
class RolloutData:
    """A rollout of the frozen agent, and how it looks to an update.

    Attributes:
        x, dist: what estimates see of it.
        params: `[B, P]` of the distribution, with their graph.
        obs: `[(T + 1) N + K, ...]` all observations, then the final ones, normalised.
    """

    rollout: Rollout
    batch: Batch
    x: Experience
    dist: Any
    params: Tensor
    obs: Tensor


class Control:
    """A control variate that is fitted first."""

    def learn(self, data: RolloutData) -> None:
        """Take in a rollout to be fitted on."""
        raise NotImplementedError

    def estimates(self, data: RolloutData) -> dict[str, Tensor]:
        """`[B, P]` gradients by name, once all rollouts to be fitted on were data."""
        raise NotImplementedError


class Dynamics(Control):
    """A learned model of the environment's next step, and through it what V says of an action:

        d(s, a) = r^(s, a) + gamma (1 - end^(s, a)) V(s'^(s, a)) - V(s)

    The model depends on no policy, so that all there is can be learned from for ever.
    """

    def __init__(self, agent: ActorCritic, seed: int, *, width: int = 256, epochs: int = 20) -> None:
        self.agent, self.epochs = agent, epochs
        self.rows: list[tuple[Tensor, ...]] = []
        self.generator = torch.Generator().manual_seed(seed)
        state = agent.observations.shape[0]
        sizes = (state + sum(agent.actions.sizes), width, width, state + 2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.net = nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])

    def learn(self, data: RolloutData) -> None:
        rollout, keep, before = data.rollout, data.rollout.valid.flatten(), data.x.features
        body = len(before) + rollout.num_envs
        after = data.obs[rollout.num_envs : body].clone()
        after[rollout.final_index @ torch.tensor([rollout.num_envs, 1])] = data.obs[body:]
        change_and_reward = torch.cat([after - before, rollout.reward.view(-1, 1)], 1)
        columns = torch.cat([before, self._asked(data.dist, data.x.action)], 1), change_and_reward
        self.rows.append(tuple(x[keep] for x in (*columns, rollout.terminated.flatten().float())))

    def estimates(self, data: RolloutData) -> dict[str, Tensor]:
        if self.rows:
            self._fit()
        x, dist = data.x, data.dist

        def worth(action: Tensor) -> Tensor:
            return self._value(x, self._asked(dist, action))

        params = dist.params.detach().requires_grad_()
        here = dist.with_params(params)
        if _finite(dist):
            outcomes, probs = every_outcome(here)
            through = (probs * torch.stack([worth(outcome).detach() for outcome in outcomes])).sum(0)
        else:
            through = worth(here.relax(x.noise))
        (pathwise,) = torch.autograd.grad(through.sum(), params)
        with torch.no_grad():
            own, mean = worth(x.action), through.detach()
            if not _finite(dist):
                mean = mean_over_actions(dist, lambda noise: worth(dist.relax(noise)), self.generator)
            later, score = x.advantage - of_later_steps(self.agent, data, own - mean), dist.score(x.action)
            return {
                "dynamics": control_variate_gradient(x.advantage, own, pathwise, score),
                "dynamics, state part": (x.advantage - mean).unsqueeze(-1) * score,
                "dynamics, later steps too": control_variate_gradient(later, own, pathwise, score),
            }

    @torch.no_grad()
    def explained(self, data: RolloutData) -> tuple[Tensor, Tensor]:
        """`[B]` one-step temporal differences under V, as they were and as the model predicts them."""
        predicted = self._value(data.x, self._asked(data.dist, data.x.action))
        return _under(self.agent, data, self.agent.value, 0.0).advantage, predicted

    def _fit(self) -> None:
        inputs, target, ended = (torch.cat(column) for column in zip(*self.rows, strict=True))
        self.rows.clear()
        self.shift, self.spread = target.mean(0), target.std(0) + 1e-6
        target = (target - self.shift) / self.spread
        optimizer = torch.optim.Adam(self.net.parameters(), 1e-3)
        batches = self.epochs * -(-len(inputs) // 256)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, batches)
        for _ in range(self.epochs):
            for index in torch.randperm(len(inputs), generator=self.generator).split(256):
                out = self.net(inputs[index])
                loss = F.mse_loss(out[:, :-1], target[index]) * target.shape[1]
                loss = loss + F.binary_cross_entropy_with_logits(out[:, -1], ended[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

    def _value(self, x: Experience, action: Tensor) -> Tensor:
        """`[B]` d at embedded actions `[B, A]`, in the unit of the advantages."""
        agent, state = self.agent, x.features
        out = self.net(torch.cat([state, action], 1))
        change_and_reward = self.shift + self.spread * out[:, :-1]
        after = agent.config.gamma * torch.sigmoid(-out[:, -1]) * agent.value(state + change_and_reward[:, :-1])
        worth: Tensor = agent.reward_unit * change_and_reward[:, -1] + after - agent.value(state)
        return worth

    def _asked(self, dist: Any, action: Tensor) -> Tensor:
        """`[B, A]` what the model sees of actions: continuous ones as the environment takes them."""
        if _finite(dist):
            return cast(Tensor, dist.embed(action)).to(torch.float32)
        space: Any = self.agent.action_space
        low, high = (torch.as_tensor(bound.reshape(-1), dtype=action.dtype) for bound in (space.low, space.high))
        return action.clamp(low, high)


class RefittedValue(Control):
    """A2C with V trained on at the frozen policy. Its gradient may have another mean: V is part of the return.

    Args:
        agent, seed, rollouts: as of a surrogate.
    """

    def __init__(self, name: str, agent: ActorCritic, seed: int, rollouts: int) -> None:
        self.name, self.agent, self.value = name, agent, copy.deepcopy(agent.value)
        generator = torch.Generator().manual_seed(seed)
        self.fit = Fit(self.value, self._loss, rollouts=rollouts, generator=generator)

    def learn(self, data: RolloutData) -> None:
        batch = _under(self.agent, data, self.value, self.agent.config.gae_lambda)
        self.fit(batch.obs, batch.return_, batch.weight)

    def estimates(self, data: RolloutData) -> dict[str, Tensor]:
        advantage = _under(self.agent, data, self.value, self.agent.config.gae_lambda).advantage
        return {self.name: a2c(replace(data.x, advantage=advantage), data.dist)}

    def _loss(self, obs: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        error: Tensor = self.value(obs) - target
        return (error.square() * weight).mean()


@torch.no_grad()
def _under(agent: ActorCritic, data: RolloutData, value: nn.Module, gae_lambda: float) -> Batch:
    """A rollout with the advantages and returns that another value function, or another lambda, gives it."""
    batch, config = data.batch, replace(agent.config, gae_lambda=gae_lambda)
    options: dict[str, Any] = {"config": config, "shard": batch.shard, "reward_scale": agent.reward_unit}
    return make_batch(data.rollout, batch.obs, value(data.obs), **options)


def _finite(dist: Any) -> bool:
    return hasattr(dist, "support")


def mean_over_actions(dist: Any, value: Callable[[Tensor], Tensor], generator: torch.Generator) -> Tensor:
    """`[B]` mean of value(noise) over noise drawn apart from that of the actions taken."""
    total = torch.zeros(dist.params.shape[:-1])
    for _ in range(PAIRS):
        noise = dist.sample_noise(generator)
        total += value(noise) + value(dist.sample_noise(generator) if _finite(dist) else -noise)
    return total / (2 * PAIRS)


def of_later_steps(agent: ActorCritic, data: RolloutData, by_chance: Tensor) -> Tensor:
    """`[B]` sum_{l > 0} (gamma lambda)^l x_{t+l} within episodes, of x `[B]` with mean zero given the state."""
    rollout, config = data.rollout, agent.config
    x = by_chance.view(rollout.num_steps, rollout.num_envs)
    nothing, cuts = torch.zeros_like(x), (rollout.terminated, rollout.truncated, rollout.valid)
    along = gae(x, nothing, nothing, *cuts, gamma=config.gamma, gae_lambda=config.gae_lambda)
    return (along - x * rollout.valid).flatten()
