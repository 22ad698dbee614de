"""Records of experience, how they are collected, and generalised advantage estimation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from relax_rl.compute.clocks import Watch, unwatched

if TYPE_CHECKING:
    from relax_rl.envs import Episode, VectorEnvs

__all__ = ["Collector", "Rollout", "gae", "successor_values"]


@dataclass(frozen=True)
class Rollout:
    """`T` steps of `N` environments, on the host.

    Attributes:
        obs: `[T + 1, N, ...]` encoded observations that actions were chosen on; the last row starts the next rollout.
        action: `[T, N, ...]` outcomes of the action distribution (before any mapping to the environment's space).
        noise: `[T, N, ...]` base noise that each action was made from.
        reward: `[T, N]` raw rewards.
        terminated, truncated: `[T, N]` how an episode ended at this step, as in Gymnasium.
        valid: `[T, N]` False on the rows that NEXT_STEP autoreset makes up: not transitions, without weight anywhere.
        final_obs: `[K, ...]` true last observations of truncated episodes whose successor row shows a new episode.
        final_index: `[K, 2]` (t, n) of each `final_obs`.
        episodes: the episodes that ended during the rollout, with raw returns.
    """

    obs: Tensor
    action: Tensor
    noise: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    final_obs: Tensor
    final_index: Tensor
    episodes: tuple[Episode, ...] = ()

    @property
    def num_steps(self) -> int:
        return self.reward.shape[0]

    @property
    def num_envs(self) -> int:
        return self.reward.shape[1]


class Collector:
    """Steps environments with a policy and hands out rollouts.

    Args:
        envs: the environments; they are not reset here.
        encode: batch of raw observations -> `[N, ...]` array.
        to_env: outcomes of the action distribution as an array -> actions of the environment.
        num_steps: T.
        watch: told when acting and when stepping begins.
    """

    def __init__(
        self,
        envs: VectorEnvs,
        encode: Callable[[Any], np.ndarray],
        to_env: Callable[[np.ndarray], np.ndarray],
        num_steps: int,
        *,
        watch: Watch = unwatched,
    ) -> None:
        self.envs, self.encode, self.to_env, self.num_steps = envs, encode, to_env, num_steps
        self.watch = watch

    def collect(
        self,
        sample: Callable[[Tensor, Tensor], Tensor],
        noise: Tensor,
        *,
        on_host: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    ) -> Rollout:
        """One rollout.

        Args:
            sample: (encoded observations `[N, ...]`, noise `[N, ...]`) -> outcomes `[N, ...]`.
            noise: `[T, N, ...]` base noise, one row a step.
            on_host: the same in NumPy; takes the place of `sample`.
        """
        envs, steps, num_envs = self.envs, self.num_steps, self.envs.num_envs
        first = self.encode(envs.obs)
        obs = np.empty((steps + 1, *first.shape), first.dtype)
        obs[0] = first
        reward = np.empty((steps, num_envs), np.float32)
        terminated, truncated, valid = (np.empty((steps, num_envs), np.bool_) for _ in range(3))
        action: np.ndarray | None = None
        final_obs, final_index = [], []
        obs_tensor = torch.from_numpy(obs)
        if on_host is None:
            act = _on_host(sample, obs_tensor[:-1], noise)
        else:
            act = map(on_host, obs[:-1], noise.cpu().numpy())
        for t, outcome in enumerate(act):
            taken = self.to_env(outcome)
            self.watch("env")
            step = envs.step(taken)
            self.watch("act")
            if action is None:
                action = np.empty((steps, *outcome.shape), outcome.dtype)
            action[t] = outcome
            reward[t], terminated[t], truncated[t], valid[t] = step.reward, step.terminated, step.truncated, step.valid
            obs[t + 1] = self.encode(envs.obs)
            if step.next_obs is not envs.obs and step.truncated.any():
                ends = np.flatnonzero(step.truncated)
                final_obs.append(self.encode(step.next_obs)[ends])
                final_index.append(np.stack([np.full_like(ends, t), ends], 1))
        return Rollout(
            obs=obs_tensor,
            action=torch.from_numpy(action),
            noise=noise.cpu(),
            reward=torch.from_numpy(reward),
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            valid=torch.from_numpy(valid),
            final_obs=torch.from_numpy(np.concatenate(final_obs) if final_obs else obs[:0, 0]),
            final_index=torch.from_numpy(np.concatenate(final_index) if final_index else np.empty((0, 2), np.int64)),
            episodes=tuple(envs.drain_episodes()),
        )


def _on_host(sample: Callable[[Tensor, Tensor], Tensor], obs: Tensor, noise: Tensor) -> Iterator[np.ndarray]:
    """Outcomes step by step, each of the observations that are there by then."""
    for obs_t, noise_t in zip(obs.unbind(), noise.unbind(), strict=True):
        yield sample(obs_t, noise_t).cpu().numpy()


def successor_values(value: Tensor, final_value: Tensor, final_index: Tensor) -> Tensor:
    """V of the true successor of every step.

    Args:
        value: `[T + 1, N]` V at the observations of a rollout.
        final_value: `[K]` V at its `final_obs`.
        final_index: `[K, 2]` where they belong.

    Returns:
        `[T, N]`
    """
    next_value = value[1:]
    if final_index.shape[0] == 0:
        return next_value
    next_value = next_value.clone()
    next_value[final_index[:, 0], final_index[:, 1]] = final_value
    return next_value


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), cut at the ends of episodes.

        delta_t = r_t + gamma V(s_{t+1}) (1 - terminated_t) - V(s_t)
        A_t     = delta_t + gamma lambda (1 - terminated_t)(1 - truncated_t) A_{t+1}

    A truncated episode bootstraps from its true last observation; a row that is not valid has advantage 0.

    Args:
        reward, value, next_value: `[T, N]` r_t, V(s_t) and V of the true successor.
        terminated, truncated, valid: `[T, N]` booleans.

    Returns:
        `[T, N]` advantages.
    """
    # On the host: for arrays as small as these NumPy's calls cost a third of torch's.
    r, v, next_v, over, cut, ok = (x.cpu().numpy() for x in (reward, value, next_value, terminated, truncated, valid))
    delta = (r + np.where(over, 0.0, gamma * next_v) - v) * ok
    decay = (gamma * gae_lambda) * (ok & ~over & ~cut)
    advantage = np.empty_like(v)
    last = np.zeros_like(v[0])
    for t in range(len(v) - 1, -1, -1):
        last = delta[t] + decay[t] * last
        advantage[t] = last
    return torch.from_numpy(advantage).to(value.device)
