"""Control variates for the policy gradient of a frozen agent, beyond the one its surrogate is: what could be gained.

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
from torch import Tensor, nn
from torch.nn import functional as F

from relax_rl.agents import AGENTS, ActorCritic
from relax_rl.agents.batch import Batch, make_batch
from relax_rl.agents.estimated import Estimated
from relax_rl.agents.surrogate import SurrogateActorCritic
from relax_rl.distributions import Distribution, FiniteDistribution
from relax_rl.estimators.exact import every_outcome
from relax_rl.gradient_variance import FIT_MINIBATCH, FIT_ROWS, Fitting, fit_lr, fit_steps
from relax_rl.networks import MLP
from relax_rl.policies import Policy
from relax_rl.rollouts import Rollout, gae

__all__ = ["Dynamics", "Fitted", "RefittedValue", "Seen", "Surrogate", "ThroughPolicy", "policy_metric"]

PAIRS = 8
"""Antithetic pairs of actions that an expectation over continuous actions is taken from, apart from the action taken."""


@dataclass(frozen=True)
class Seen:
    """A rollout of the frozen agent, and how it looks to an update."""

    rollout: Rollout
    batch: Batch


class Fitted:
    """A control variate that is fitted first."""

    def see(self, seen: Seen) -> None:
        """Take in a rollout to be fitted on."""

    def fit(self) -> None:
        """Called once all of them were seen."""

    def estimates(self, seen: Seen) -> dict[str, Tensor]:
        """`[B, P]` gradients, by name."""
        raise NotImplementedError


class Surrogate(Fitted):
    """The package's own: c^ by the variance objective, at its own step, and at the later steps of the trajectory too.

    At a later step it is c^(s, a) - E_a c^(s, a) that is subtracted from the advantage: what later actions add to it by
    chance (Cheng et al. 2019).
    """

    def __init__(self, agent: ActorCritic, seed: int, rollouts: int) -> None:
        self.agent, self.twin = agent, _twin(agent, seed)
        self.fitting = Fitting(self.twin, rollouts)

    def see(self, seen: Seen) -> None:
        self.fitting(seen.batch)

    @torch.no_grad()
    def estimates(self, seen: Seen) -> dict[str, Tensor]:
        batch = seen.batch
        own = self._value(batch, batch.noise)
        by_chance = own - _expected(batch.dist, lambda noise: self._value(batch, noise), self.twin.generator)
        later = replace(batch, advantage=batch.advantage - _later(self.agent, seen, by_chance))
        return {
            "surrogate": self.twin.estimate(batch).grad,
            "surrogate, later steps too": self.twin.estimate(later).grad,
        }

    def _value(self, batch: Batch, noise: Tensor) -> Tensor:
        surrogate = self.twin.surrogate
        relaxed = batch.dist.soften(batch.dist.relax(noise), surrogate.temperature)
        value: Tensor = surrogate(batch.features, relaxed)
        return value


class ThroughPolicy(Fitted):
    """c^ by the variance of the policy's own gradient, row by row, instead of that at the distribution's parameters.

    With J a row's Jacobian of the parameters g is taken at, |J'g|^2 is what it minimises, and J J'g is pulled back.
    """

    def __init__(self, agent: ActorCritic, seed: int, rollouts: int) -> None:
        self.policy, self.twin = agent.policy, _twin(agent, seed)
        self.fitting = Fitting(self.twin, rollouts, estimate=self._through_policy)

    def see(self, seen: Seen) -> None:
        self.fitting(seen.batch)

    @torch.no_grad()
    def estimates(self, seen: Seen) -> dict[str, Tensor]:
        return {"surrogate, by the policy's gradient": self.twin.estimate(seen.batch).grad}

    def _through_policy(self, batch: Batch) -> Estimated:
        """The twin's estimate, with another way back to its surrogate."""
        found = self.twin.estimate(batch)
        metric = policy_metric(self.policy, batch.features)

        def to_surrogate(pull: Tensor) -> None:
            assert found.to_surrogate is not None
            found.to_surrogate((metric @ pull.unsqueeze(-1)).squeeze(-1))

        return replace(found, to_surrogate=to_surrogate)


def _twin(agent: ActorCritic, seed: int) -> SurrogateActorCritic:
    """RELAX or LAX on an agent's spaces and settings."""
    name = "lax" if agent.actions.kind == "gaussian" else "relax"
    twin = AGENTS[name](agent.observation_space, agent.action_space, seed=seed, config=agent.config)
    return cast(SurrogateActorCritic, twin)


@torch.no_grad()
def policy_metric(policy: Policy, obs: Tensor) -> Tensor:
    """`[B, P, P]` J J' of the distribution's parameters at every row, J their Jacobian at the policy's weights.

    Args:
        policy: a tanh MLP, with a free standard deviation if it is continuous.
        obs: `[B, D]` normalised observations.
    """
    torso = cast(MLP, policy.torso)
    layers = cast(list[nn.Linear], list(torso.layers))
    inputs = [obs]
    for layer in layers:
        inputs.append(torso.activation(F.linear(inputs[-1], layer.weight, layer.bias)))
    outputs = policy.head.out_features
    slope = torch.eye(outputs).expand(len(obs), outputs, outputs)  # of every output at a layer's result
    metric = torch.zeros(len(obs), policy.num_params, policy.num_params)
    metric[:, outputs:, outputs:] = torch.eye(policy.num_params - outputs)
    for layer, x in zip([policy.head, *reversed(layers)], reversed(inputs), strict=True):
        metric[:, :outputs, :outputs] += (slope @ slope.mT) * (1.0 + x.square().sum(-1))[:, None, None]
        slope = (slope @ layer.weight) * (1.0 - x.square())[:, None, :]
    return metric


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
                else _expected(dist, lambda x: self._value(batch, self._asked(dist, dist.relax(x))), self.generator)
            )
            left = batch.advantage - _later(self.agent, seen, own - mean)
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
        return _under(self.agent, seen, self.agent.value, gae_lambda=0.0).advantage, predicted

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

    def __init__(self, agent: ActorCritic, seed: int, rollouts: int) -> None:
        self.agent, self.rollouts, self.seen = agent, rollouts, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.value = copy.deepcopy(agent.value)
        self.optimizer = torch.optim.Adam(self.value.parameters())
        self.kept: list[tuple[Tensor, ...]] = []

    def see(self, seen: Seen) -> None:
        batch = self._batch(seen)
        rows = len(batch.weight)
        self.kept = [*self.kept, (batch.features, batch.return_, batch.weight)][-max(1, FIT_ROWS // rows) :]
        features, target, weight = (torch.cat(column) for column in zip(*self.kept, strict=True))
        self.optimizer.param_groups[0]["lr"] = fit_lr(self.seen, self.rollouts)
        self.seen += 1
        for _ in range(fit_steps(rows, self.rollouts)):
            index = torch.randint(len(features), (FIT_MINIBATCH,), generator=self.generator)
            loss = ((self.value(features[index]) - target[index]).square() * weight[index]).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def estimates(self, seen: Seen) -> dict[str, Tensor]:
        return {"V refitted": self._batch(seen).a2c_gradient}

    def _batch(self, seen: Seen) -> Batch:
        """The rollout as it looks under this V."""
        return _under(self.agent, seen, self.value, gae_lambda=self.agent.config.gae_lambda)


def _under(agent: ActorCritic, seen: Seen, value: Callable[[Tensor], Tensor], *, gae_lambda: float) -> Batch:
    """A rollout with the advantages and returns that another V or lambda gives it."""
    rollout, batch = seen.rollout, seen.batch
    with torch.no_grad():
        values = value(agent.normalized(torch.cat([rollout.obs.flatten(0, 1), rollout.final_obs])))
    return make_batch(
        rollout,
        batch.dist,
        values,
        batch.features,
        config=replace(agent.config, gae_lambda=gae_lambda),
        reward_scale=agent.reward_unit,
        scale=batch.scale,
    )


def _finite(dist: Distribution) -> bool:
    return hasattr(dist, "support")


def _expected(dist: Distribution, value: Callable[[Tensor], Tensor], generator: torch.Generator) -> Tensor:
    """`[B]` mean of value(noise) over noise drawn apart from that of the actions taken."""
    total = torch.zeros(dist.params.shape[:-1])
    for _ in range(PAIRS):
        noise = dist.sample_noise(generator)
        other = dist.sample_noise(generator) if _finite(dist) else -noise
        total += value(noise) + value(other)
    return total / (2 * PAIRS)


def _later(agent: ActorCritic, seen: Seen, by_chance: Tensor) -> Tensor:
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
