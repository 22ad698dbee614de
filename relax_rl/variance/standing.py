"""Where environments stand as a frozen agent sees them: observation, memory, and what may be chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relax_rl.agents import ActorCritic
from relax_rl.agents.memory import Memory
from relax_rl.agents.networks import Networks, Outputs
from relax_rl.networks.memory import RecurrentTorso, last_state

__all__ = ["History", "Standing", "encoded", "mask_rows", "sample_from"]


@dataclass(frozen=True)
class Standing:
    """M environments, each in the middle of an episode.

    Attributes:
        obs: `[M, ...]` encoded observations.
        state: `[M, S]` of the policy, then of a value function with a memory of its own, before these; S = 0 without memory.
    """

    obs: Tensor
    state: Tensor

    @torch.no_grad()
    def outputs(self, agent: ActorCritic) -> tuple[Outputs, Tensor]:
        """What the networks say of the observations, without graph, and the states `[M, S]` after them."""
        networks, seen = agent.networks, agent.normalized(self.obs)
        if not networks.recurrent:
            return networks(seen), self.state
        memory = Memory(self.state, torch.zeros((1, len(seen)), dtype=torch.bool, device=seen.device))
        return networks(seen, memory=memory), _after(networks, seen, self.state)


class History:
    """The present episode of one environment, as far as the agent remembers it.

    Args:
        agent: who sees it.
    """

    def __init__(self, agent: ActorCritic) -> None:
        self._agent, self._rows = agent, list[Tensor]()

    def see(self, obs: Any, *, begins: bool) -> None:
        """The next observation, the first of an episode or a later one."""
        if begins or not self._agent.networks.recurrent:
            self._rows.clear()
        self._rows.append(encoded(self._agent, obs))

    def outputs(self, place: int) -> tuple[Outputs, Tensor]:
        """What the networks say of the last observation `[1, ...]`, and the states `[1, S]` after it.

        Args:
            place: of the observation in its rollout: gradients go back through as many rows before it, and not beyond
                the episode's first.
        """
        agent, networks = self._agent, self._agent.networks
        seen = agent.normalized(torch.cat(self._rows))
        state = seen.new_zeros((1, sum(networks.state_sizes)))
        if not networks.recurrent:
            return networks(seen), state
        cut = max(0, len(seen) - 1 - place)
        before = _after(networks, seen[:cut], state) if cut else state
        starts = torch.zeros((len(seen) - cut, 1), dtype=torch.bool, device=seen.device)
        found = networks(seen[cut:], memory=Memory(before, starts))
        last = Outputs(found.params[-1:], found.value[-1:], found.features[-1:])
        return last, _after(networks, seen[cut:], before)


def encoded(agent: ActorCritic, obs: Any) -> Tensor:
    """`[1, ...]` one raw observation as the agent encodes it, on its device."""
    batch, _ = agent.observations.as_batch(obs)
    return torch.from_numpy(np.ascontiguousarray(agent.encode(batch))).to(agent.device)


def sample_from(agent: ActorCritic, params: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Outcomes `[M, ...]` of the policy at parameters `[M, P]` under masks `[M, W]`, and the noise `[M, ...]` that made them."""
    noise = agent.sample_noise(len(params))
    with torch.no_grad():
        dist = agent.policy.distribution(params.detach(), mask)
        return dist.threshold(dist.relax(noise)), noise


def mask_rows(masks: Sequence[np.ndarray | None], agent: ActorCritic) -> Tensor | None:
    """`[M, W]` masks of M observations of one kind of environment; None where it has none."""
    rows = [mask for mask in masks if mask is not None]
    return torch.from_numpy(np.stack(rows)).to(agent.device) if rows else None


@torch.no_grad()
def _after(networks: Networks, seen: Tensor, state: Tensor) -> Tensor:
    """`[M, S]` the states after T observations `[T M, ...]` of M environments, `state` being those before."""
    starts = torch.zeros((len(seen) // len(state), len(state)), dtype=torch.bool, device=seen.device)
    torsos = networks.policy.torso, networks.value.torso
    parts = zip(torsos, state.split(networks.state_sizes, -1), strict=True)
    return torch.cat(
        [
            last_state(torso, seen, x, starts) if isinstance(torso, RecurrentTorso) and x.shape[1] else x
            for torso, x in parts
        ],
        -1,
    )
