"""Policy and value function as an agent holds them, and what they make of a rollout."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from relax_rl.agents.acting import HostNetwork, HostSampler, host_network
from relax_rl.critics import ValueFunction
from relax_rl.host import retire_threads
from relax_rl.networks import NatureCNN, after_last_layer, make_torso
from relax_rl.policies import Policy
from relax_rl.rollouts import Rollout
from relax_rl.settings.config import AgentConfig
from relax_rl.spaces import ActionEncoder, ObservationEncoder

__all__ = ["ImageSampler", "Networks"]


class ImageSampler:
    """Outcomes of a policy on images; the update that follows need not repeat what the torso makes of them.

    Args:
        policy: on a Nature CNN; its parameters must stay as they are meanwhile.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy, self.torso = policy, cast(NatureCNN, policy.torso)
        self._layer = self.torso.last_layer()
        self._convolved: list[Tensor] = []
        self._features: list[Tensor] = []

    def __call__(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Outcomes `[N, ...]` for images `[N, C, H, W]` and base noise `[N, ...]`."""
        convolved = self.torso.convolved(obs.to(noise.device))
        with torch.no_grad():
            features = after_last_layer(convolved, self._layer)
            dist = self.policy.distribution(self.policy.params(features))
            outcome = dist.threshold(dist.relax(noise))
        self._convolved.append(convolved)
        self._features.append(features)
        if torch.get_num_threads() > 1:
            retire_threads()  # environments with threads of their own come next
        return outcome

    def recalled(self) -> Tensor:
        """`[T N, F]` the torso's features of all images so far, with their graph."""
        return self.torso.recalled(torch.cat(self._convolved), self._layer, torch.cat(self._features))


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
            precision=config.precision,
        )
        torso = new_torso()
        self.policy = Policy(
            torso,
            actions,
            log_std_init=config.log_std_init,
            ordinal_std_init=config.ordinal_std_init,
            state_dependent_std=config.state_dependent_std,
            squash=config.squash,
        ).to(device)
        self.shared_torso = any(leaf.kind == "image" for leaf in observations.leaves)
        self.value = ValueFunction(torso if self.shared_torso else new_torso()).to(device)
        self.value_part: nn.Module = self.value.head if self.shared_torso else self.value
        self._on_host: dict[type[nn.Module], HostNetwork] = {}
        self._kept: tuple[Rollout, ImageSampler | HostSampler] | None = None

    def sampler(self) -> ImageSampler | None:
        """What acts on images and keeps what the torso makes of them; None for other observations."""
        return ImageSampler(self.policy) if isinstance(self.policy.torso, NatureCNN) else None

    def keep(self, rollout: Rollout, sampler: ImageSampler | HostSampler) -> None:
        """Keep the sampler that acted for the update of this very rollout."""
        self._kept = rollout, sampler

    def forget(self) -> None:
        """Called when the parameters change."""
        self._kept = None

    def recalled(self, rollout: Rollout) -> Tensor | None:
        """What the sampler that acted can recall, if it was kept for this rollout.

        Returns:
            Of images `[T N, F]` the torso's features with their graph; else `[T N, outputs]` of the policy's network,
            without graph.
        """
        return self._kept[1].recalled() if self._kept is not None and self._kept[0] is rollout else None

    def on_host(self, module: Policy | ValueFunction) -> HostNetwork | None:
        """One of the two in NumPy, or None where it has to be torch."""
        known = self._on_host.get(type(module))
        if known is None or not known.reads(module.head):
            known = host_network(module.torso, module.head)
            if known is not None:
                self._on_host[type(module)] = known
        return known

    def without_graph(self, obs: Tensor, rows: int, recalled: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What a call without `features` gives, without graph, but with the observations as the states' description.

        Args:
            obs, rows: as there.
            recalled: `[B, outputs]` of the policy's network on the first B, if they are known.
        """
        policy, value = self.on_host(self.policy), self.on_host(self.value)
        with torch.no_grad():
            if policy is None or value is None:
                params, values, _ = self(obs, rows)
                return params, values, obs[:rows]
            said = policy.on_tensor(obs[:rows]) if recalled is None else recalled
            return self.policy.params_from(said), value.on_tensor(obs).squeeze(-1), obs[:rows]

    def __call__(self, obs: Tensor, rows: int, features: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Pass observations through both networks.

        Args:
            obs: `[B + K, ...]` normalised observations; the last K only bootstrap.
            rows: B.
            features: the torso's, of the first B, if they are known.

        Returns:
            Parameters of the action distribution `[B, P]`, values `[B + K]`, and a description of the first B states
            `[B, F]` without graph.
        """
        if not self.shared_torso:
            return self.policy(obs[:rows]), self.value(obs), obs[:rows]
        if features is None:
            features = self.policy.torso(obs[:rows])
        with torch.no_grad():  # the observations that only bootstrap take no part in the backward pass
            beyond = self.value(obs[rows:])
        return self.policy.params(features), torch.cat([self.value.value(features), beyond]), features.detach()
