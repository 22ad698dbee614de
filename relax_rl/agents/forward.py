"""Policy and value function as an agent holds them, and what they make of a rollout."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from relax_rl.agents.acting import HostNetwork, host_network
from relax_rl.config import AgentConfig
from relax_rl.critics import ValueFunction
from relax_rl.networks import NatureCNN, make_torso
from relax_rl.policies import Policy
from relax_rl.rollouts import Rollout
from relax_rl.spaces import ActionEncoder, ObservationEncoder

__all__ = ["Networks"]


class Networks:
    """A policy and a value function, on one torso if there are images among the observations.

    Attributes:
        policy, value: the modules; with a shared torso `value` reads through that of the policy.
        shared_torso: whether they share it.
        value_part: what belongs to the value function alone.
    """

    def __init__(
        self, observations: ObservationEncoder, actions: ActionEncoder, config: AgentConfig, device: torch.device
    ) -> None:
        new_torso = partial(
            make_torso,
            observations,
            hidden=config.hidden,
            activation=config.activation,
            cnn_features=config.cnn_features,
        )
        torso = new_torso()
        self.policy = Policy(
            torso,
            actions,
            log_std_init=config.log_std_init,
            state_dependent_std=config.state_dependent_std,
            squash=config.squash,
        ).to(device)
        self.shared_torso = any(leaf.kind == "image" for leaf in observations.leaves)
        self.value = ValueFunction(torso if self.shared_torso else new_torso()).to(device)
        self.value_part: nn.Module = self.value.head if self.shared_torso else self.value
        self._on_host: dict[type[nn.Module], HostNetwork] = {}
        self._kept: tuple[Rollout, list[Tensor]] | None = None

    def sampler(self, kept: list[Tensor]) -> partial[Tensor] | None:
        """`(obs, noise) -> outcomes` that puts what the convolutions make of each observation, with its graph, into `kept`.

        None if there are no convolutions, which are most of the work where they are.
        """
        if not isinstance(self.policy.torso, NatureCNN):
            return None
        return partial(self._sample, self.policy.torso, kept)

    def _sample(self, torso: NatureCNN, kept: list[Tensor], obs: Tensor, noise: Tensor) -> Tensor:
        kept.append(torso.convolved(obs.to(noise.device)))
        with torch.no_grad():
            dist = self.policy.distribution(self.policy.params(torso.after_convolutions(kept[-1])))
            return dist.threshold(dist.relax(noise))

    def keep(self, rollout: Rollout, kept: list[Tensor]) -> None:
        """Keep convolutions for the update of this very rollout, which then need not repeat them."""
        self._kept = rollout, kept

    def forget(self) -> None:
        """Called when the parameters change."""
        self._kept = None

    def convolved(self, rollout: Rollout) -> Tensor | None:
        """`[T N, S]` what was kept for this rollout, if anything."""
        return torch.cat(self._kept[1]) if self._kept is not None and self._kept[0] is rollout else None

    def on_host(self, module: Policy | ValueFunction) -> HostNetwork | None:
        """One of the two in NumPy, or None where it has to be torch."""
        known = self._on_host.get(type(module))
        if known is None or not known.reads(module.head):
            known = host_network(module.torso, module.head)
            if known is not None:
                self._on_host[type(module)] = known
        return known

    def without_graph(self, obs: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """What a call without `convolved` gives, without graph."""
        policy, value = self.on_host(self.policy), self.on_host(self.value)
        with torch.no_grad():
            if policy is None or value is None:
                return self(obs, rows)
            return self.policy.params_from(policy.on_tensor(obs[:rows])), value.on_tensor(obs).squeeze(-1), obs[:rows]

    def __call__(self, obs: Tensor, rows: int, convolved: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Pass observations through both networks.

        Args:
            obs: `[B + K, ...]` normalised observations; the last K only bootstrap.
            rows: B.
            convolved: of the first B, if it is known.

        Returns:
            Parameters of the action distribution `[B, P]`, values `[B + K]`, and a description of the first B states
            `[B, F]` without graph.
        """
        if not self.shared_torso:
            return self.policy(obs[:rows]), self.value(obs), obs[:rows]
        torso = self.policy.torso
        if convolved is not None and isinstance(torso, NatureCNN):
            features = torso.after_convolutions(convolved)
        else:
            features = torso(obs[:rows])
        with torch.no_grad():  # the observations that only bootstrap take no part in the backward pass
            beyond = self.value(obs[rows:])
        return self.policy.params(features), torch.cat([self.value.value(features), beyond]), features.detach()
