"""Where the variance of a policy gradient comes from: trajectory, action and state (Tucker et al. 2018).

An agent's environment is brought back to the same states again and again: from each, several actions are tried, and
each of them is followed by independent continuations, as long as they would be in a rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from relax_rl.agents import ActorCritic, Experience
from relax_rl.agents.estimates import a2c
from relax_rl.backends.snapshots import ForkableEnv
from relax_rl.compute.optimizers import learning
from relax_rl.errors import SettingsError
from relax_rl.estimators.diagnostics import VarianceParts, variance_parts
from relax_rl.networks.actions import action_rows
from relax_rl.variance.contenders import REFERENCE, Contender
from relax_rl.variance.gradient import MOST_BYTES
from relax_rl.variance.standing import History, Standing, encoded, mask_rows, sample_from

__all__ = ["EXACT_VALUE", "Tails", "decompose", "follow"]

EXACT_VALUE = "a2c, exact V"
"""What A2C would be if its value function were the true one."""

CONTINUATIONS = 2
_COPIES = 3
"""Of all gradients: they themselves, transposed, and what the decomposition works on."""
_MEAN_GAP = 50
"""Steps between two states that are taken up, on average, so that they say different things."""


@dataclass(frozen=True)
class Tails:
    """What happened from S states on, A actions in each, C continuations of each action.

    Attributes:
        experience: `S * A` rows, one for each action, their advantage 0 and their return V(s).
        dist: `[S * A, P]` their action distribution.
        advantage: `[S, A, C]` generalised advantage estimates of each continuation.
        coordinates: `[S, P, D]` the gradient of each of a state's parameters with respect to theta, in an orthonormal
            basis of all of them: products of gradients in it are those in the space of theta.
    """

    experience: Experience
    dist: Any
    advantage: Tensor
    coordinates: Tensor

    def gradients(self, contender: Contender) -> Tensor:
        """`[S, A, C, D]` the contender's policy gradient for each continuation.

        An estimate is affine in the advantage, with the score times its weight as the slope: asking once, at 0, lets the
        continuations of an action share the noise of a relaxation, which then counts with the action.
        """
        constant = contender.estimate(self.experience, self.dist).detach().view(*self.advantage.shape[:2], 1, -1)
        slope = contender.weight * self._score
        return (constant + self.advantage.unsqueeze(-1) * slope) @ self.coordinates.unsqueeze(1)

    def given_action_with_exact_value(self) -> Tensor:
        """`[S]` E[(Q(s, a) - V(s))^2 |s|^2 | s] with the true Q and V, where A2C has its own V.

        V is estimated from the other actions. (A_x - V_1)(A_y - V_2) has four independent factors, so that no product
        holds a square of noise.
        """
        score = self._score.squeeze(2) @ self.coordinates
        means = self.advantage.double().mean(-1)
        first, second = means.roll(-1, 1), means.roll(-2, 1)
        x, y = self.advantage.double().unbind(-1)
        products = ((x - first) * (y - second) + (x - second) * (y - first)) / 2
        return (products * score.square().sum(-1)).mean(1)

    @property
    def _score(self) -> Tensor:
        """`[S, A, 1, P]` dlog pi(a | s)."""
        of_ones = replace(self.experience, advantage=torch.ones_like(self.experience.advantage))
        return a2c(of_ones, self.dist).view(*self.advantage.shape[:2], 1, -1)


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
        progress: called with the number of states done so far.

    Raises:
        SettingsError: for fewer than 2 states or 3 actions.
    """
    if num_states < 2 or num_actions < 3:
        raise SettingsError(f"{num_states} states and {num_actions} actions in each, expected at least 2 and 3")
    tails = follow(agent, env, num_states=num_states, num_actions=num_actions, seed=seed, progress=progress)
    generator = torch.Generator().manual_seed(seed)
    draws = {entrant.name: tails.gradients(entrant) for entrant in entrants}
    parts = {name: variance_parts(found, generator=generator) for name, found in draws.items()}
    exact = tails.given_action_with_exact_value()
    return parts | {EXACT_VALUE: variance_parts(draws[REFERENCE], given_action=exact, generator=generator)}


def follow(
    agent: ActorCritic,
    env: ForkableEnv,
    *,
    num_states: int,
    num_actions: int,
    seed: int,
    progress: Callable[[int], Any] = lambda _: None,
) -> Tails:
    """Try actions in states that the policy visits, see each of them through to the end of a rollout; returns what follows.

    The position of a state within a rollout is drawn, since the advantage of a late step looks ahead less far, and the
    gradient of a policy with a memory goes back further.

    Args:
        agent, env, num_states, num_actions, seed, progress: as in `decompose`.
    """
    rng = np.random.default_rng(seed)
    theta = learning(agent.policy)
    size = _COPIES * 4 * num_states * agent.policy.num_params * sum(x.numel() for x in theta)
    if size > MOST_BYTES:
        raise SettingsError(
            f"the gradients of what {num_states} states give take {size / 2**30:.1f} GiB; use at most "
            f"{num_states * MOST_BYTES // size} states"
        )
    of_states, advantages, jacobians = [], [], []
    for done, history in enumerate(_visited(agent, env, num_states, rng), start=1):
        place = int(rng.integers(agent.config.num_steps))
        found, state = history.outputs(place)
        rows = [torch.autograd.grad(x, theta, retain_graph=True) for x in found.params[0].unbind()]
        jacobians += [torch.cat([x.flatten() for x in row]) for row in rows]
        value, mask = found.value.detach(), mask_rows([env.mask] * num_actions, agent)
        action, noise = sample_from(agent, found.params.expand(num_actions, -1), mask)
        forks = [env.fork(int(rng.integers(2**31))) for _ in range(num_actions * CONTINUATIONS)]
        first, standing = action.repeat_interleave(CONTINUATIONS, 0), (value, state)
        reached = _advantages(agent, env, forks, first, *standing, agent.config.num_steps - place)
        advantages.append(reached.view(num_actions, CONTINUATIONS))
        for fork in forks:
            fork.close()
        alike = (x.detach().expand(num_actions, *x.shape[1:]) for x in (found.features, value, found.params))
        of_states.append((action, noise, *alike, *(() if mask is None else (mask,))))
        progress(done)
    action, noise, features, value, params, *masks = (torch.cat(column) for column in zip(*of_states, strict=True))
    experience = Experience(features, action, noise, torch.zeros_like(value), value, torch.ones_like(value))
    # J' = Q R: the columns of R are the rows of J in the orthonormal basis Q.
    coordinates = torch.linalg.qr(torch.stack(jacobians, 1), mode="r").R.T
    coordinates = coordinates.unflatten(0, (num_states, -1))
    return Tails(experience, agent.policy.distribution(params, *masks), torch.stack(advantages), coordinates)


def _visited(agent: ActorCritic, env: ForkableEnv, count: int, rng: np.random.Generator) -> Iterator[History]:
    """The history of states of the policy's episodes; `env` then stands in them."""
    history, state = History(agent), None

    def begin() -> None:
        nonlocal state
        history.see(env.reset(int(rng.integers(2**31))), begins=True)
        state = None

    begin()
    for _ in range(count):
        for _ in range(int(rng.integers(1, 2 * _MEAN_GAP))):
            if env.done:
                begin()
            action, state = agent.predict(env.obs, state, action_masks=env.mask)
            env.step(action)
            history.see(env.obs, begins=False)
        if env.done:
            begin()
        yield history


def _advantages(
    agent: ActorCritic,
    env: ForkableEnv,
    forks: Sequence[gym.Env[Any, Any]],
    outcome: Tensor,
    value: Tensor,
    state: Tensor,
    horizon: int,
) -> Tensor:
    """`[M]` generalised advantage estimates of the first step, from M environments that all stand in one state.

    Args:
        env: whose forks they are.
        outcome: `[M, ...]` of the action distribution, for the first step.
        value: `[1]` V of the state.
        state: `[1, S]` of the agent's memory after its observation.
        horizon: steps until the rollout ends and V takes over.
    """
    config = agent.config
    advantage = torch.zeros(len(forks), dtype=torch.float32, device=agent.device)
    alive, value, weight = torch.arange(len(forks)), value.expand(len(forks)), 1.0
    state = state.expand(len(forks), -1)
    for _ in range(horizon):
        actions = action_rows(agent.to_env(outcome.cpu().numpy()), len(alive))
        steps = [forks[i].step(a) for i, a in zip(alive.tolist(), actions, strict=True)]
        reward, terminated, truncated = (
            torch.tensor([float(step[k]) for step in steps], dtype=torch.float32) for k in (1, 2, 3)
        )
        obs = torch.cat([encoded(agent, step[0]) for step in steps])
        found, state = Standing(obs, state).outputs(agent)
        reward = reward.clamp(-config.reward_clip, config.reward_clip).to(agent.device) * agent.reward_unit
        delta = reward + config.gamma * found.value * (1.0 - terminated.to(agent.device)) - value
        advantage[alive] += weight * delta
        weight *= config.gamma * config.gae_lambda
        on = (terminated + truncated == 0).nonzero().squeeze(-1)
        if len(on) == 0:
            break
        mask = mask_rows([env.mask_of(steps[i][0], steps[i][4]) for i in on.tolist()], agent)
        alive, value, state = alive[on], found.value[on], state[on]
        outcome, _ = sample_from(agent, found.params[on], mask)
    return advantage
