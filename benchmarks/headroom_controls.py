"""Control variates for the policy gradient of a frozen agent that are no surrogates: what could be gained.

All are fitted on rollouts that they are not measured on, and all but the refitted V leave the gradient's mean as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn
from torch.nn import functional as F

from relax_rl.agents import ActorCritic
from relax_rl.agents.batch import Batch, make_batch
from relax_rl.critics import ValueFunction
from relax_rl.distributions import Distribution, FiniteDistribution
from relax_rl.envs import VectorEnvs
from relax_rl.estimators.exact import every_outcome
from relax_rl.rollouts import Rollout, gae
from relax_rl.variance.gradient import fit_lr, fit_steps, rollouts_kept, some_rows

__all__ = [
    "PAIRS",
    "Clock",
    "Dynamics",
    "Fitted",
    "HorizonAwareValue",
    "RefittedValue",
    "Seen",
    "mean_over_actions",
    "observations",
    "of_later_steps",
]

PAIRS = 8
"""Pairs of actions, antithetic if they are continuous, that an expectation over actions is taken from."""


@dataclass(frozen=True)
class Seen:
    """A rollout of the frozen agent, and how it looks to an update.

    Attributes:
        elapsed: `[(T + 1) N + K]` steps since the start of the episode, of all observations and then of the final ones.
    """

    rollout: Rollout
    batch: Batch
    elapsed: Tensor


class Clock:
    """Counts the steps of each environment's episode from one rollout to the next, from its reset on."""

    def __init__(self, envs: VectorEnvs) -> None:
        self.resets_in_next_step = envs.autoreset_mode is AutoresetMode.NEXT_STEP
        self.now = torch.zeros(envs.num_envs)

    def __call__(self, rollout: Rollout) -> Tensor:
        """`Seen.elapsed` of the rollout that follows the last one."""
        resets = ~rollout.valid if self.resets_in_next_step else rollout.terminated | rollout.truncated
        times = [self.now]
        for reset in resets:
            times.append(torch.where(reset, 0.0, times[-1] + 1.0))
        self.now = times[-1]
        elapsed = torch.stack(times)
        at, which = rollout.final_index.unbind(1)
        return torch.cat([elapsed.flatten(), elapsed[at, which] + 1.0])


class Fitted:
    """A control variate that is fitted first."""

    def see(self, seen: Seen) -> None:
        """Take in a rollout to be fitted on."""

    def fit(self) -> None:
        """Called once all of them were seen."""

    def estimates(self, seen: Seen) -> dict[str, Tensor]:
        """`[B, P]` gradients, by name."""
        raise NotImplementedError


class Dynamics(Fitted):
    """A learned model of the environment's next step, and through it what V says of an action:

        d(s, a) = r^(s, a) + gamma (1 - end^(s, a)) V(s'^(s, a)) - V(s)

    The model depends on no policy, so that all there is can be learned from for ever.
    """

    def __init__(self, agent: ActorCritic, seed: int, *, width: int = 256, epochs: int = 20) -> None:
        self.agent, self.width, self.epochs, self.seed = agent, width, epochs, seed
        self.rows: list[tuple[Tensor, ...]] = []
        self.generator = torch.Generator().manual_seed(seed)

    def see(self, seen: Seen) -> None:
        rollout, keep = seen.rollout, seen.rollout.valid.flatten()
        successor = rollout.obs[1:].clone()
        for (t, n), obs in zip(rollout.final_index.tolist(), rollout.final_obs, strict=True):
            successor[t, n] = obs
        after = self.agent.normalized(successor.flatten(0, 1))
        columns = (
            seen.batch.features,
            self._asked(seen.batch.dist, seen.batch.action),
            after - seen.batch.features,
            rollout.reward.flatten(),
            rollout.terminated.flatten().to(after.dtype),
        )
        self.rows.append(tuple(x[keep] for x in columns))

    def fit(self) -> None:
        state, action, change, reward, ended = (torch.cat(column) for column in zip(*self.rows, strict=True))
        self.rows.clear()
        self.shift, self.spread = change.mean(0), change.std(0) + 1e-6
        self.reward_shift, self.reward_spread = reward.mean(), reward.std() + 1e-6
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            sizes = (state.shape[1] + action.shape[1], self.width, self.width, state.shape[1] + 2)
            layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.net = nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])
        target = torch.cat(
            [(change - self.shift) / self.spread, ((reward - self.reward_shift) / self.reward_spread)[:, None]], 1
        )
        inputs = torch.cat([state, action], 1)
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

    def estimates(self, seen: Seen) -> dict[str, Tensor]:
        batch, dist = seen.batch, seen.batch.dist
        params = dist.params.detach().requires_grad_()
        here = dist.with_params(params)
        with torch.enable_grad():
            if _finite(dist):
                expected = self._expected_outcome(batch, cast(FiniteDistribution, here))
                back = torch.autograd.grad(expected.sum(), params)[0]
            else:
                along = self._value(batch, self._asked(dist, here.relax(batch.noise)))
                back = torch.autograd.grad(along.sum(), params)[0]
        with torch.no_grad():
            own = self._value(batch, self._asked(dist, batch.action))
            mean = (
                expected.detach()
                if _finite(dist)
                else mean_over_actions(
                    dist, lambda x: self._value(batch, self._asked(dist, dist.relax(x))), self.generator
                )
            )
            left = batch.advantage - of_later_steps(self.agent, seen, own - mean)
            score = batch.score
            return {
                "dynamics": (batch.advantage - own).unsqueeze(-1) * score + back,
                "dynamics, state part": (batch.advantage - mean).unsqueeze(-1) * score,
                "dynamics, later steps too": (left - own).unsqueeze(-1) * score + back,
            }

    def explained(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """`[B]` one-step temporal differences under V, as they were and as the model predicts them."""
        with torch.no_grad():
            predicted = self._value(seen.batch, self._asked(seen.batch.dist, seen.batch.action))
            values = self.agent.value(observations(self.agent, seen))
        return _under(self.agent, seen, values, gae_lambda=0.0).advantage, predicted

    def _value(self, batch: Batch, action: Tensor) -> Tensor:
        """d at `[B, F]` states and `[B, A]` embedded actions, in the unit of the batch's advantages."""
        agent, state = self.agent, batch.features
        out = self.net(torch.cat([state, action], 1))
        reward = self.reward_shift + self.reward_spread * out[:, -2]
        unit = agent.reward_scaler.scale if agent.reward_scaler is not None else 1.0
        after = agent.value(state + self.shift + self.spread * out[:, :-2])
        going_on = torch.sigmoid(-out[:, -1])
        worth: Tensor = unit * reward + agent.config.gamma * going_on * after - agent.value(state)
        return batch.scale * worth

    def _expected_outcome(self, batch: Batch, dist: FiniteDistribution) -> Tensor:
        """E_a d, differentiable in the parameters."""
        outcomes, probs = every_outcome(dist)
        each = torch.stack([self._value(batch, self._asked(dist, outcome)).detach() for outcome in outcomes])
        return (probs * each).sum(0)

    def _asked(self, dist: Distribution, action: Tensor) -> Tensor:
        """`[B, A]` what the model sees of actions: continuous ones as the environment takes them."""
        if _finite(dist):
            return dist.embed(action).to(torch.float32)
        space = cast(spaces.Box, self.agent.action_space)
        low, high = (torch.as_tensor(x.reshape(-1), dtype=action.dtype) for x in (space.low, space.high))
        return action.clamp(low, high)


class RefittedValue(Fitted):
    """A2C with V trained on at the frozen policy. Its gradient may have another mean: V is part of the return."""

    name = "V refitted"

    def __init__(self, agent: ActorCritic, seed: int, rollouts: int) -> None:
        self.agent, self.rollouts, self.seen = agent, rollouts, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.value = self.make_value()
        self.optimizer = torch.optim.Adam(self.value.parameters())
        self.kept: list[tuple[Tensor, ...]] = []

    def make_value(self) -> nn.Module:
        """V, as it is at first."""
        return copy.deepcopy(self.agent.value)

    def inputs(self, seen: Seen) -> Tensor:
        """`[(T + 1) N + K, ...]` what V is asked at, in the order of `observations`."""
        return observations(self.agent, seen)

    def see(self, seen: Seen) -> None:
        inputs, batch = self.inputs(seen), self._batch(seen)
        rows = len(batch.weight)
        self.kept = [*self.kept, (inputs[:rows], batch.return_, batch.weight)][-rollouts_kept(rows) :]
        asked, target, weight = (torch.cat(column) for column in zip(*self.kept, strict=True))
        self.optimizer.param_groups[0]["lr"] = fit_lr(self.seen, self.rollouts)
        self.seen += 1
        for _ in range(fit_steps(rows, self.rollouts)):
            index = some_rows(len(asked), self.generator)
            loss = ((self.value(asked[index]) - target[index]).square() * weight[index]).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def estimates(self, seen: Seen) -> dict[str, Tensor]:
        return {self.name: self._batch(seen).a2c_gradient}

    @torch.no_grad()
    def _batch(self, seen: Seen) -> Batch:
        """The rollout as it looks under this V."""
        return _under(self.agent, seen, self.value(self.inputs(seen)), gae_lambda=self.agent.config.gae_lambda)


class HorizonAwareValue(RefittedValue):
    """The same with a V that knows how many steps the time limit leaves (Tucker et al. 2018)."""

    name = "V refitted, horizon-aware"

    def __init__(self, agent: ActorCritic, seed: int, rollouts: int, *, horizon: int) -> None:
        self.horizon = horizon
        super().__init__(agent, seed, rollouts)

    def make_value(self) -> nn.Module:
        return _HorizonAware(copy.deepcopy(self.agent.value))

    def inputs(self, seen: Seen) -> Tensor:
        """With 1 - gamma^(H - t), t steps into an episode of at most H, as last column."""
        left = (self.horizon - seen.elapsed).clamp(min=0.0)
        share = 1.0 - self.agent.config.gamma**left
        return torch.cat([super().inputs(seen), share[:, None]], 1)


class _HorizonAware(nn.Module):
    """V(s, t) = r(s) (1 - gamma^(H - t)) / (1 - gamma) + V'(s), the factor 1 / (1 - gamma) being part of r."""

    def __init__(self, value: ValueFunction) -> None:
        super().__init__()
        self.value = value
        self.rate = nn.Linear(value.torso.num_features, 1)
        nn.init.zeros_(self.rate.weight)
        nn.init.zeros_(self.rate.bias)

    def forward(self, x: Tensor) -> Tensor:
        features, share = self.value.torso(x[:, :-1]), x[:, -1]
        rate: Tensor = self.rate(features).squeeze(-1)
        return self.value.value(features) + share * rate


def observations(agent: ActorCritic, seen: Seen) -> Tensor:
    """`[(T + 1) N + K, ...]` all observations of a rollout, then the final ones, normalised."""
    return agent.normalized(torch.cat([seen.rollout.obs.flatten(0, 1), seen.rollout.final_obs]))


def _under(agent: ActorCritic, seen: Seen, values: Tensor, *, gae_lambda: float) -> Batch:
    """A rollout with the advantages and returns that other values of its observations, or another lambda, give it."""
    batch = seen.batch
    return make_batch(
        seen.rollout,
        batch.dist,
        values,
        batch.features,
        config=replace(agent.config, gae_lambda=gae_lambda),
        reward_scale=agent.reward_unit,
        scale=batch.scale,
    )


def _finite(dist: Distribution) -> bool:
    return hasattr(dist, "support")


def mean_over_actions(
    dist: Distribution, value: Callable[[Tensor], Tensor], generator: torch.Generator, *, pairs: int = PAIRS
) -> Tensor:
    """`[B]` mean of value(noise) over noise drawn apart from that of the actions taken."""
    total = torch.zeros(dist.params.shape[:-1])
    for _ in range(pairs):
        noise = dist.sample_noise(generator)
        other = dist.sample_noise(generator) if _finite(dist) else -noise
        total += value(noise) + value(other)
    return total / (2 * pairs)


def of_later_steps(agent: ActorCritic, seen: Seen, by_chance: Tensor) -> Tensor:
    """`[B]` sum_{l > 0} (gamma lambda)^l x_{t+l} within episodes, of x `[B]` with mean zero given the state."""
    rollout = seen.rollout
    x = by_chance.view(rollout.num_steps, rollout.num_envs)
    nothing = torch.zeros_like(x)
    config = agent.config
    along = gae(
        x,
        nothing,
        nothing,
        rollout.terminated,
        rollout.truncated,
        rollout.valid,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
    )
    return along.flatten() - by_chance * rollout.valid.flatten()
