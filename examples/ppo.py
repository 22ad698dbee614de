"""A plain proximal policy optimisation in one file: `python examples/ppo.py --env CartPole-v1`.

`ppo_relax.py` is the same file with RELAX for its policy gradient: compare the two.
"""

from __future__ import annotations

import argparse
from collections import deque

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

GAMMA, LAMBDA, CLIP, EPOCHS = 0.98, 0.8, 0.2, 5


def network(inputs: int, outputs: int) -> nn.Sequential:
    """Two tanh layers of 64."""
    return nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))


def advantages(rewards: Tensor, values: Tensor, over: Tensor) -> Tensor:
    """Generalised advantage estimates `[T, N]`; values are `[T + 1, N]`, `over` ends an episode."""
    advantage, last = torch.zeros_like(rewards), torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + GAMMA * values[t + 1] * (1 - over[t]) - values[t]
        last = delta + GAMMA * LAMBDA * (1 - over[t]) * last
        advantage[t] = last
    return advantage


def main() -> None:
    """Train on any environment with vector observations and discrete actions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    envs = gymnasium.make_vec(options.env, 8, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
    size = int(np.prod(envs.single_observation_space.shape))
    choices = int(envs.single_action_space.n)
    policy, value = network(size, choices), network(size, 1)
    optimizer = torch.optim.Adam([*policy.parameters(), *value.parameters()], lr=1e-3)
    returns: deque[float] = deque(maxlen=100)
    running = np.zeros(8)
    obs = torch.as_tensor(envs.reset(seed=options.seed)[0], dtype=torch.float32)

    for update in range(1, options.steps // 256 + 1):
        rollout_obs, actions, rewards, over = [obs], [], [], []
        for _ in range(32):
            with torch.no_grad():
                action = torch.distributions.Categorical(logits=policy(obs)).sample()
            found, reward, terminated, truncated, infos = envs.step(action.numpy())
            done = terminated | truncated
            running += reward
            returns.extend(running[done].tolist())
            running[done] = 0.0
            reward = torch.as_tensor(reward / 10, dtype=torch.float32)
            if (
                truncated.any()
            ):  # a time limit is no end: the value of the true last observation stands for what follows
                last = torch.as_tensor(np.stack(list(infos["final_obs"][truncated])), dtype=torch.float32)
                reward[truncated] += GAMMA * value(last).detach().squeeze(-1)
            obs = torch.as_tensor(found, dtype=torch.float32)
            rollout_obs.append(obs)
            actions.append(action)
            rewards.append(reward)
            over.append(torch.as_tensor(done, dtype=torch.float32))

        all_obs = torch.stack(rollout_obs)
        with torch.no_grad():
            values = value(all_obs).squeeze(-1)
            advantage = advantages(torch.stack(rewards), values, torch.stack(over)).flatten()
            target = advantage + values[:-1].flatten()
            batch, action = all_obs[:-1].flatten(0, 1), torch.stack(actions).flatten()
            old_log_prob = torch.distributions.Categorical(logits=policy(batch)).log_prob(action)
        for rows in (part for _ in range(EPOCHS) for part in torch.randperm(256).split(64)):
            dist = Categorical(logits=policy(batch[rows]))
            ratio = torch.exp(dist.log_prob(action[rows]) - old_log_prob[rows])
            gain = torch.minimum(ratio * advantage[rows], ratio.clamp(1 - CLIP, 1 + CLIP) * advantage[rows])
            value_loss = (value(batch[rows]).squeeze(-1) - target[rows]).square().mean()
            optimizer.zero_grad()
            (-gain.mean() + 0.5 * value_loss).backward()
            optimizer.step()
        if update % 80 == 0:
            print(f"step {256 * update:>7,}  return {np.mean(returns) if returns else float('nan'):6.1f}", flush=True)


if __name__ == "__main__":
    main()
