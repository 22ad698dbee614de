"""Records of experience, and how they are collected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import Env, spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from relax_rl.agents.memory import Memory
from relax_rl.compute.clocks import Watch, unwatched
from relax_rl.envs import Episode, Step, VectorEnvs, make_envs
from relax_rl.errors import EnvironmentFault, SettingsError, TrainingDiverged

__all__ = ["Collector", "Rollout", "require_envs"]


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
        mask: `[T, N, W]` bool, what could be chosen on each observation, as rows of `ActionMasks`; None where all could.
        memory: where episodes begin, and what recurrent networks remembered at the first step; None without.
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
    mask: Tensor | None = None
    memory: Memory | None = None

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
        leaf_at: names the leaf of the observations that an entry of an encoded one belongs to.
        on_step: told of every step of the environments.
    """

    def __init__(
        self,
        envs: VectorEnvs,
        encode: Callable[[Any], np.ndarray],
        to_env: Callable[[np.ndarray], np.ndarray],
        num_steps: int,
        *,
        watch: Watch = unwatched,
        leaf_at: Callable[[int], str] = lambda column: "obs",
        on_step: Callable[[Step], object] | None = None,
    ) -> None:
        self.envs, self.encode, self.to_env, self.num_steps = envs, encode, to_env, num_steps
        self.watch, self.leaf_at, self.on_step = watch, leaf_at, on_step

    def collect(
        self,
        sample: Callable[..., Tensor],
        noise: Tensor,
        *,
        on_host: Callable[..., np.ndarray] | None = None,
    ) -> Rollout:
        """One rollout.

        Args:
            sample: (encoded observations `[N, ...]`, noise `[N, ...]`) -> outcomes `[N, ...]`; where the environments have
                masks, with these `[N, W]` as a third argument.
            noise: `[T, N, ...]` base noise, one row a step.
            on_host: the same in NumPy; takes the place of `sample`.

        Raises:
            EnvironmentFault: if a reward, or an observation that something depends on, is not finite.
        """
        envs, steps, num_envs = self.envs, self.num_steps, self.envs.num_envs
        first = self.encode(envs.obs)
        obs = np.empty((steps + 1, *first.shape), first.dtype)
        obs[0] = first
        reward = np.empty((steps, num_envs), np.float32)
        terminated, truncated, valid = (np.empty((steps, num_envs), np.bool_) for _ in range(3))
        count = _EpisodeSteps(envs.episode_steps, valid, terminated, truncated, envs.autoreset_mode)
        action: np.ndarray | None = None
        final_obs, final_index = [], []
        obs_tensor = torch.from_numpy(obs)
        mask = None if envs.action_mask is None else np.empty((steps, *envs.action_mask.shape), np.bool_)
        masks = () if mask is None else (_masks(envs, mask),)
        if on_host is None:
            act = _on_host(sample, obs_tensor[:-1], noise, *masks)
        else:
            act = map(on_host, obs[:-1], noise.cpu().numpy(), *masks)
        for t, outcome in enumerate(act):
            try:
                taken = self.to_env(outcome)
            except TrainingDiverged:
                self._require_finite(count, reward[:t], obs[: t + 1])  # what is no number makes no action
                raise
            self.watch("env")
            step = envs.step(taken)
            if self.on_step is not None:
                self.on_step(step)
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
        self._require_finite(count, reward, obs, zip(final_obs, final_index, strict=True))
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
            mask=None if mask is None else torch.from_numpy(mask),
        )

    def _require_finite(
        self,
        count: _EpisodeSteps,
        reward: np.ndarray,
        obs: np.ndarray,
        final: Iterable[tuple[np.ndarray, np.ndarray]] = (),
    ) -> None:
        """Name the first number that is not finite.

        Args:
            count: which steps of their episodes the rows are.
            reward: `[t, N]`.
            obs: `[t + 1, N, ...]` encoded, flat if they are floats; rows that nothing depends on hold zeros.
            final: last observations `[k, ...]` of truncated episodes, and `[k, 2]` which.

        Raises:
            EnvironmentFault: there is one.
        """
        if not np.isfinite(reward).all():
            t, n = np.argwhere(~np.isfinite(reward))[0]
            raise self._fault(f"a reward of {reward[t, n]}", count.before(t, n) + 1, n)
        if obs.dtype.kind != "f":
            return
        if not np.isfinite(obs).all():
            t, n, column = np.argwhere(~np.isfinite(obs))[0]
            raise self._fault(
                f"{obs[t, n, column]} in the observation {self.leaf_at(int(column))!r}", count.before(t, n), n
            )
        for last, index in final:
            if not np.isfinite(last).all():
                k, column = np.argwhere(~np.isfinite(last))[0]
                told = f"{last[k, column]} in the last observation {self.leaf_at(int(column))!r} of a truncated episode"
                raise self._fault(told, count.before(*index[k]) + 1, index[k, 1])

    def _fault(self, what: str, step: int, env: int) -> EnvironmentFault:
        when = f"in step {step} of its episode" if step else "at its reset"
        return EnvironmentFault(
            f"environment {self.envs.first_env + env} of {self.envs.env_id} gave {what} {when}, expected a finite number "
            "in float32; mend the environment"
        )


@dataclass(frozen=True)
class _EpisodeSteps:
    """Which steps of their episodes the rows of a rollout are, as the environments count them.

    Attributes:
        first: `[N]` steps taken before the first row.
        valid, terminated, truncated: `[T, N]` of the rollout.
        mode: how the environments reset.
    """

    first: np.ndarray
    valid: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    mode: AutoresetMode

    def before(self, t: int, n: int) -> int:
        """Steps that an environment had taken in its episode when the observation of row t was made; 0 at a reset."""
        taken = int(self.first[n])
        for row in range(t):
            over = self.mode is not AutoresetMode.NEXT_STEP and (self.terminated[row, n] or self.truncated[row, n])
            taken = taken + 1 if self.valid[row, n] and not over else 0
        return taken


def _on_host(
    sample: Callable[..., Tensor], obs: Tensor, noise: Tensor, *masks: Iterator[np.ndarray]
) -> Iterator[np.ndarray]:
    """Outcomes step by step, each of the observations and the masks that are there by then."""
    for obs_t, noise_t, *mask in zip(obs.unbind(), noise.unbind(), *masks, strict=True):
        yield sample(obs_t, noise_t, *map(torch.from_numpy, mask)).cpu().numpy()


def _masks(envs: VectorEnvs, out: np.ndarray) -> Iterator[np.ndarray]:
    """The environments' masks step by step, as they are when they are asked for; written to `out` `[T, N, W]`."""
    for row in out:
        row[:] = envs.action_mask
        yield row


def require_envs(
    envs: Any, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], seed: int | Sequence[int] = 0
) -> VectorEnvs:
    """Environments of the spaces that an agent was made for.

    Args:
        envs: `VectorEnvs`, as they are; one of Gymnasium's environments or vector environments is reset, and seen through them.
        observation_space, action_space: of the agent.
        seed: of the reset.

    Raises:
        SettingsError: these are none, or of other spaces.
    """
    if isinstance(envs, Env | VectorEnv):
        envs = make_envs(envs, seed=seed)
    if not isinstance(envs, VectorEnvs):
        raise SettingsError(
            f"the environments are {type(envs).__name__}, expected VectorEnvs, or an environment of Gymnasium; use "
            "relax_rl.make_envs(ID)"
        )
    for ours, theirs in (
        (observation_space, envs.single_observation_space),
        (action_space, envs.single_action_space),
    ):
        if ours != theirs:
            raise SettingsError(f"the agent was made for the space {ours}, these environments have {theirs}")
    return envs
