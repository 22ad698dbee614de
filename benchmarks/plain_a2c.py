"""A2C as a plain PyTorch loop in one file, the way CleanRL writes its algorithms: for measuring speed beside it.

Gymnasium's SyncVectorEnv, two networks of two layers of 64, generalised advantages, one RMSprop step per rollout through
autograd. Nothing else: no statistics, no logging, no checkpoints, and the rows that autoreset makes up count like any
other, as in CleanRL.
"""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

__all__ = ["PlainA2C"]


def layer(inputs: int, outputs: int, gain: float = math.sqrt(2)) -> nn.Linear:
    """A linear layer, orthogonal, with zero bias."""
    made = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(made.weight, gain)
    nn.init.zeros_(made.bias)
    return made


def network(inputs: int, outputs: int, gain: float) -> nn.Sequential:
    """Two hidden layers of 64 with tanh."""
    return nn.Sequential(layer(inputs, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, outputs, gain))


class PlainA2C:
    """Learner and environments together.

    Args:
        env: Gymnasium id with vector observations.
        num_envs: N.
        num_steps: T, steps per update.
        lr: learning rate.
    """

    def __init__(self, env: str, *, num_envs: int, num_steps: int, lr: float = 7e-4, seed: int = 0) -> None:
        torch.manual_seed(seed)
        makers = [lambda: gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make(env)) for _ in range(num_envs)]
        self.envs = gymnasium.vector.SyncVectorEnv(makers)
        self.num_steps, self.gamma, self.gae_lambda = num_steps, 0.99, 0.95
        inputs = int(np.prod(self.envs.single_observation_space.shape or ()))
        space = self.envs.single_action_space
        self.discrete = isinstance(space, gymnasium.spaces.Discrete)
        outputs = int(space.n) if isinstance(space, gymnasium.spaces.Discrete) else int(np.prod(space.shape or ()))
        self.actor, self.critic = network(inputs, outputs, 0.01), network(inputs, 1, 1.0)
        self.log_std = nn.Parameter(torch.zeros(outputs))
        self.parameters = [*self.actor.parameters(), *self.critic.parameters()]
        if not self.discrete:
            self.parameters.append(self.log_std)
        self.optimizer = torch.optim.RMSprop(self.parameters, lr=lr, alpha=0.99, eps=1e-5)
        obs, _ = self.envs.reset(seed=seed)
        self.obs = torch.as_tensor(obs, dtype=torch.float32)
        self.done = torch.zeros(num_envs)

    def distribution(self, obs: Tensor) -> Distribution:
        """pi(. | s)"""
        out = self.actor(obs)
        return Categorical(logits=out) if self.discrete else Independent(Normal(out, self.log_std.exp()), 1)

    def train(self, steps: int) -> None:
        """That many more environment steps, in whole rollouts."""
        for _ in range(math.ceil(steps / (self.num_steps * self.envs.num_envs))):
            self.update()

    def update(self) -> None:
        """One rollout and one step on it."""
        observations, actions, rewards, dones, values = [], [], [], [], []
        for _ in range(self.num_steps):
            with torch.no_grad():
                action = self.distribution(self.obs).sample()
                values.append(self.critic(self.obs).squeeze(-1))
            observations.append(self.obs)
            actions.append(action)
            dones.append(self.done)
            taken = action.numpy()
            if isinstance(self.envs.single_action_space, gymnasium.spaces.Box):
                taken = np.clip(taken, self.envs.single_action_space.low, self.envs.single_action_space.high)
            obs, reward, terminated, truncated, _ = self.envs.step(taken)
            rewards.append(torch.as_tensor(reward, dtype=torch.float32))
            self.obs = torch.as_tensor(obs, dtype=torch.float32)
            self.done = torch.as_tensor(terminated | truncated, dtype=torch.float32)
        with torch.no_grad():
            next_value = self.critic(self.obs).squeeze(-1)
        self.step(
            torch.stack(observations),
            torch.stack(actions),
            self.advantages(rewards, dones, values, next_value),
            torch.stack(values),
        )

    def advantages(
        self, rewards: list[Tensor], dones: list[Tensor], values: list[Tensor], next_value: Tensor
    ) -> Tensor:
        """`[T, N]` generalised advantage estimates."""
        found, last = [], torch.zeros_like(next_value)
        for t in reversed(range(self.num_steps)):
            done = dones[t + 1] if t + 1 < self.num_steps else self.done
            after = values[t + 1] if t + 1 < self.num_steps else next_value
            delta = rewards[t] + self.gamma * after * (1 - done) - values[t]
            last = delta + self.gamma * self.gae_lambda * (1 - done) * last
            found.append(last)
        return torch.stack(found[::-1])

    def step(self, obs: Tensor, action: Tensor, advantage: Tensor, value: Tensor) -> None:
        """Policy gradient and regression of V, through autograd."""
        obs, action, advantage, value = (x.flatten(0, 1) for x in (obs, action, advantage, value))
        policy_loss = -(advantage * self.distribution(obs).log_prob(action)).mean()
        value_loss = (self.critic(obs).squeeze(-1) - (advantage + value)).square().mean()
        self.optimizer.zero_grad()
        (policy_loss + 0.5 * value_loss).backward()
        nn.utils.clip_grad_norm_(self.parameters, 0.5)
        self.optimizer.step()

    def close(self) -> None:
        """Ends the environments."""
        self.envs.close()
