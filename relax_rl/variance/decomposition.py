"""Where the variance of a policy gradient comes from: trajectory, action and state (Tucker et al. 2018).

An agent's environment is brought back to the same states again and again: from each, several actions are tried, and
each of them is followed by independent continuations, as long as they would be in a rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from relax_rl.agents import ActorCritic
from relax_rl.agents.batch import Batch
from relax_rl.env_snapshots import ForkableEnv
from relax_rl.errors import SettingsError
from relax_rl.estimators.diagnostics import VarianceParts, variance_parts
from relax_rl.variance.gradient import REFERENCE, Contender

__all__ = ["EXACT_VALUE", "Tails", "decompose", "follow"]

EXACT_VALUE = "a2c, exact V"
"""What A2C would be if its value function were the true one."""

CONTINUATIONS = 2
_MEAN_GAP = 50
"""Steps between two states that are taken up, on average, so that they say different things."""


@dataclass(frozen=True)
class Tails:
    """What happened from S states on, A actions in each, C continuations of each action.

    Attributes:
        batch: `S * A` rows, one for each action, their advantage 0 and their return V(s).
        advantage: `[S, A, C]` generalised advantage estimates of each continuation, times the agent's scale.
        coordinates: `[S, P, D]` the gradient of each of a state's parameters with respect to theta, in an orthonormal
            basis of all of them: products of gradients in it are those in the space of theta.
    """

    batch: Batch
    advantage: Tensor
    coordinates: Tensor

    def gradients(self, contender: Contender) -> Tensor:
        """`[S, A, C, D]` the contender's policy gradient for each continuation.

        An estimate is affine in the advantage, with the score as its slope: asking once, at 0, lets the continuations
        of an action share the noise of a relaxation, which then counts with the action.
        """
        states, actions, _ = self.advantage.shape
        constant = contender.estimate(self.batch).view(states, actions, 1, -1)
        score = self.batch.score.view(states, actions, 1, -1)
        return (constant + self.advantage.unsqueeze(-1) * score) @ self.coordinates.unsqueeze(1)


def decompose(
    agent: ActorCritic,
    env: ForkableEnv,
    entrants: Sequence[Contender],
    *,
    num_states: int,
    num_actions: int = 4,
    seed: int = 0,
    progress: Callable[[int], Any] = lambda _: None,
) -> dict[str, VarianceParts]:
    """The parts of the variance of one row's gradient, by estimator, and by A2C with the true value function.

    Args:
        agent: acts, and learns nothing; its random stream goes on.
        env: an environment of its kind.
        entrants: one of them named "a2c".
        num_states: states of the policy's own trajectories.
        num_actions: tried in each, at least 3.
        seed: of episodes, of which states are taken, and of the environment's randomness after them.
        progress: told the number of states done so far.

    Raises:
        SettingsError: for fewer than 2 states or 3 actions.
    """
    if num_states < 2 or num_actions < 3:
        raise SettingsError(f"{num_states} states and {num_actions} actions in each, expected at least 2 and 3")
    tails = follow(agent, env, num_states=num_states, num_actions=num_actions, seed=seed, progress=progress)
    generator = torch.Generator().manual_seed(seed)
    draws = {entrant.name: tails.gradients(entrant) for entrant in entrants}
    parts = {name: variance_parts(found, generator=generator) for name, found in draws.items()}
    parts[EXACT_VALUE] = variance_parts(
        draws[REFERENCE], given_action=_given_action_with_exact_value(tails), generator=generator
    )
    return parts


def follow(
    agent: ActorCritic,
    env: ForkableEnv,
    *,
    num_states: int,
    num_actions: int,
    seed: int,
    progress: Callable[[int], Any] = lambda _: None,
) -> Tails:
    """Try actions in states that the policy visits, and see each of them through to the end of a rollout.

    The position of a state within a rollout is drawn, since the advantage of a late step looks ahead less far.
    """
    rng = np.random.default_rng(seed)
    theta = list(agent.policy.parameters())
    columns: dict[str, list[Tensor]] = {name: [] for name in ("obs", "noise", "action", "value", "params", "jacobian")}
    advantages = []
    for done, obs in enumerate(_visited(agent, env, num_states, rng), start=1):
        seen = agent.normalized(obs)
        params, value = agent.policy(seen), agent.value(seen).detach()
        rows = [torch.autograd.grad(x, theta, retain_graph=True) for x in params[0].unbind()]
        noise = agent.sample_noise(num_actions)
        action = agent.sample(obs.expand(num_actions, *obs.shape[1:]), noise)
        horizon = agent.config.num_steps - int(rng.integers(agent.config.num_steps))
        forks = [env.fork(int(rng.integers(2**31))) for _ in range(num_actions * CONTINUATIONS)]
        first = action.repeat_interleave(CONTINUATIONS, 0)
        advantages.append(_advantages(agent, forks, first, value, horizon).view(num_actions, CONTINUATIONS))
        for fork in forks:
            fork.close()
        jacobian = torch.stack([torch.cat([x.flatten() for x in row]) for row in rows])
        found = {"obs": seen, "params": params.detach(), "value": value}
        for name, x in found.items():
            columns[name].append(x.expand(num_actions, *x.shape[1:]))
        for name, x in (("noise", noise), ("action", action), ("jacobian", jacobian)):
            columns[name].append(x)
        progress(done)
    return _tails(agent, {name: torch.cat(x) for name, x in columns.items()}, torch.stack(advantages))


def _tails(agent: ActorCritic, columns: dict[str, Tensor], advantage: Tensor) -> Tails:
    rows, scale = len(columns["value"]), agent.advantage_scale
    jacobian = columns["jacobian"]
    with torch.no_grad():
        features = agent.policy.torso(columns["obs"]) if agent.shared_torso else columns["obs"]
    factor = 1.0 / scale.scale if scale is not None else 1.0
    batch = Batch(
        features=features,
        action=columns["action"].clone(),  # out of inference mode
        noise=columns["noise"],
        advantage=torch.zeros(rows, device=agent.device),
        return_=columns["value"],
        weight=torch.ones(rows, device=agent.device),
        dist=agent.policy.distribution(columns["params"].requires_grad_()),
        scale=factor,
    )
    # J' = Q R: the columns of R are the rows of J in the orthonormal basis Q.
    coordinates = torch.linalg.qr(jacobian.T, mode="r").R.T
    return Tails(batch, advantage * factor, coordinates.unflatten(0, (len(advantage), -1)))


def _visited(agent: ActorCritic, env: ForkableEnv, count: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """`[1, ...]` encoded observations of states of the policy's episodes; `env` then stands in them."""
    env.reset(int(rng.integers(2**31)))
    for _ in range(count):
        for _ in range(int(rng.integers(1, 2 * _MEAN_GAP))):
            if env.done:
                env.reset(int(rng.integers(2**31)))
            env.step(agent.predict(env.obs)[0])
        if env.done:
            env.reset(int(rng.integers(2**31)))
        yield _encoded(agent, env.obs)


def _advantages(
    agent: ActorCritic, forks: Sequence[gym.Env[Any, Any]], outcome: Tensor, value: Tensor, horizon: int
) -> Tensor:
    """`[M]` generalised advantage estimates of the first step, from M environments that all stand in one state.

    Args:
        outcome: `[M, ...]` of the action distribution, for the first step.
        value: `[1]` V of the state.
        horizon: steps until the rollout ends and V takes over.
    """
    config, scaler = agent.config, agent.reward_scaler
    scale = scaler.scale if scaler is not None else 1.0
    advantage = torch.zeros(len(forks), device=agent.device)
    alive, value, weight = torch.arange(len(forks)), value.expand(len(forks)), 1.0
    for _ in range(horizon):
        steps = [forks[i].step(a) for i, a in zip(alive.tolist(), agent.to_env(outcome.cpu().numpy()), strict=True)]
        reward, terminated, truncated = (torch.tensor([float(step[k]) for step in steps]) for k in (1, 2, 3))
        obs = torch.cat([_encoded(agent, step[0]) for step in steps])
        with torch.no_grad():
            following = agent.value(agent.normalized(obs))
        clipped = reward.clamp(-config.reward_clip, config.reward_clip).to(agent.device) * scale
        delta = clipped + config.gamma * following * (1.0 - terminated.to(agent.device)) - value
        advantage[alive] += weight * delta
        weight *= config.gamma * config.gae_lambda
        on = (terminated + truncated == 0).nonzero().squeeze(-1)
        if len(on) == 0:
            break
        alive, value, obs = alive[on], following[on], obs[on]
        outcome = agent.sample(obs, agent.sample_noise(len(on)))
    return advantage


def _encoded(agent: ActorCritic, obs: Any) -> Tensor:
    batch, _ = agent.observations.as_batch(obs)
    return torch.from_numpy(np.ascontiguousarray(agent.observations.encode(batch))).to(agent.device)


def _given_action_with_exact_value(tails: Tails) -> Tensor:
    """`[S]` E[(Q(s, a) - V(s))^2 |s|^2 | s] with the true Q and V, where A2C has its own V.

    V is estimated from the other actions. (A_x - V_1)(A_y - V_2) has four independent factors, so that no product
    holds a square of noise.
    """
    advantage = tails.advantage.double()
    score = tails.batch.score.view(*advantage.shape[:2], 1, -1) @ tails.coordinates.unsqueeze(1)
    means = advantage.mean(-1)
    first, second = means.roll(-1, 1), means.roll(-2, 1)
    x, y = advantage.unbind(-1)
    products = ((x - first) * (y - second) + (x - second) * (y - first)) / 2
    return (products * score.squeeze(2).square().sum(-1)).mean(1)
