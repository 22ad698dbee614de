"""Acting with a memory: step by step, through a rollout, and from one rollout to the next."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relax_rl.agents.acting import HostMemoryNetwork, acts_on_host, host_sampler
from relax_rl.agents.memory import Memory
from relax_rl.agents.networks import Networks
from relax_rl.agents.rollouts import Collector, Rollout
from relax_rl.envs import VectorEnvs
from relax_rl.errors import SettingsError, shown
from relax_rl.networks.memory import RecurrentTorso, last_state
from relax_rl.settings.config import AgentConfig

__all__ = ["EnvMemory", "check_memory", "collect_with_memory", "step_with_memory"]


class EnvMemory:
    """The states `[N, S]` that the episodes of some environments have reached: a rollout goes on where the last one ended."""

    def __init__(self) -> None:
        self._envs: weakref.ref[Any] | None = None
        self._state: Tensor | None = None

    def of(self, envs: Any, size: int, device: torch.device) -> Tensor:
        """Zeros for environments other than those of the last call of `keep`."""
        if self._state is not None and self._envs is not None and self._envs() is envs:
            return self._state
        return torch.zeros((envs.num_envs, size), device=device)

    def keep(self, envs: Any, state: Tensor) -> None:
        """Remember the states of these environments, and of no others."""
        self._envs, self._state = weakref.ref(envs), state


class _Acting:
    """Outcomes of a recurrent policy, which forgets where an episode begins.

    Attributes:
        state: `[N, S]` of the policy, after the last call.
    """

    def __init__(self, actor: Any, state: Tensor, starts: _Starts) -> None:
        self._actor, self.state, self._starts = actor, state, starts

    def __call__(self, obs: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
        """Outcomes `[N, ...]` for encoded observations `[N, ...]`, base noise `[N, ...]` and what is allowed `[N, W]`."""
        policy = self._actor.policy
        begins = torch.from_numpy(self._starts())
        with torch.no_grad():
            params, self.state = policy_step(self._actor, obs, self.state, begins)
            dist = policy.distribution(params, None if mask is None else mask.to(params.device))
            outcome: Tensor = dist.threshold(dist.relax(noise))
            return outcome


class _Starts:
    """Says `[N]` where an episode begins with the present observations, and keeps what it has said."""

    def __init__(self, envs: VectorEnvs) -> None:
        self._envs = envs
        self.known: list[np.ndarray] = []

    def __call__(self) -> np.ndarray:
        begins: np.ndarray = self._envs.steps_taken() == 0
        self.known.append(begins)
        return begins


def policy_step(actor: Any, obs: Tensor, state: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """`[N, P]` parameters of the actions, and the policy's state `[N, S]` after the observations.

    Args:
        actor: whose policy.
        obs: `[N, ...]` encoded.
        state: `[N, S]` before them.
        starts: `[N]` where they begin an episode.
    """
    torso: Any = actor.policy.torso
    seen = actor.normalized(obs.to(actor.device))
    if not isinstance(torso, RecurrentTorso):  # the value function alone remembers
        return actor.policy(seen), state
    state = torch.where(starts.to(state.device).unsqueeze(-1), 0.0, state)
    features, state = torso.step(seen, state)
    return actor.policy.params(features), state


def step_with_memory(
    actor: Any, obs: Tensor, state: Any, starts: Any, mask: Tensor | None, *, deterministic: bool
) -> tuple[Tensor, np.ndarray]:
    """Outcomes `[N, ...]`, and the policy's state after them.

    Args:
        actor: whose policy.
        obs: `[N, ...]` encoded.
        state: `[N, S]` before them; None for zeros.
        starts: `[N]` where they begin an episode; None for nowhere.
        mask: `[N, W]` what is allowed.
        deterministic: the mode in place of a sample.

    Raises:
        SettingsError: the state or the beginnings are not of N environments, or the state is not finite.
    """
    num, size = len(obs), actor.networks.state_sizes[0]
    try:
        before = np.zeros((num, size), np.float32) if state is None else np.asarray(state, np.float32)
    except (TypeError, ValueError):
        raise SettingsError(
            f"the state is {shown(state)}, expected what `predict` returned; None begins anew"
        ) from None
    begins = np.zeros(num, np.bool_) if starts is None else np.asarray(starts, np.bool_).reshape(-1)
    if before.shape != (num, size):
        raise SettingsError(f"the state has shape {before.shape}, expected {(num, size)}; None begins anew")
    if not np.isfinite(before).all():
        raise SettingsError("the state holds what is not a finite number; None begins anew")
    if begins.shape != (num,):
        raise SettingsError(f"episode_start has {len(begins)} entries, expected {num}, one for each observation")
    noise = None if deterministic else actor.sample_noise(num)
    with torch.no_grad():
        told = torch.from_numpy(before).to(actor.device)
        params, after = policy_step(actor, obs, told, torch.from_numpy(begins))
        dist = actor.policy.distribution(params, mask)
        outcome = dist.mode() if noise is None else dist.threshold(dist.relax(noise))
    return outcome, after.cpu().numpy()


def collect_with_memory(actor: Any, known: EnvMemory, collector: Collector, noise: Tensor) -> Rollout:
    """A rollout with its `Memory`; the states at its end are kept for the next one.

    Args:
        actor: acts, and has the value function whose memory goes along.
        known: the states that the environments' episodes have reached.
        collector, noise: as for `Collector.collect`.
    """
    networks, envs = actor.networks, collector.envs
    state = known.of(envs, sum(networks.state_sizes), actor.device)
    of_policy, of_value = state.split(networks.state_sizes, -1)
    starts_of, policy = _Starts(envs), networks.policy
    acting, network, on_host = _Acting(actor, of_policy, starts_of), None, None
    if acts_on_host(policy.torso, envs.num_envs):
        network = HostMemoryNetwork(policy.torso, policy.head, of_policy, starts_of)
        on_host = host_sampler(policy, network, actor.obs_normalizer)
    rollout = collector.collect(acting, noise, on_host=on_host)
    reached = acting.state if network is None or on_host is None else network.state
    starts_of()  # of the last row, which no action is chosen on
    starts = torch.from_numpy(np.stack(starts_of.known))
    if networks.state_sizes[1]:
        torso: Any = networks.value.torso
        seen = actor.normalized(rollout.obs[:-1].flatten(0, 1).to(actor.device))
        of_value = last_state(torso, seen, of_value, starts[:-1].to(actor.device))
    known.keep(envs, torch.cat([reached, of_value], -1))
    return replace(rollout, memory=Memory(state, starts, rollout.final_index))


def check_memory(networks: Networks, config: AgentConfig) -> None:
    """Raises SettingsError for settings that do not go with a memory."""
    if networks.recurrent and config.value_replay:
        raise SettingsError(
            f"value_replay is {config.value_replay}, expected 0 beside a memory: earlier rollouts have states of earlier "
            "networks"
        )
