"""The networks of an agent: policy, value function and surrogate, and what they make of observations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from relax_rl.agents.acting import HostNetwork, host_network
from relax_rl.critics import ActionSurrogate, ValueFunction
from relax_rl.errors import SettingsError
from relax_rl.networks.policies import Policy
from relax_rl.networks.spaces import ActionEncoder, ObservationEncoder
from relax_rl.networks.torsos import NatureCNN, make_torso
from relax_rl.settings.config import AgentConfig
from relax_rl.settings.naming import name_of, require_call

__all__ = ["NetworkFactory", "NetworkParts", "Networks", "Outputs", "make_networks"]


@dataclass(frozen=True)
class Outputs:
    """What the networks say of `B` observations, with its graph unless noted.

    Attributes:
        params: `[B, P]` parameters of the action distribution.
        value: `[B + K]` V, of the K observations that only bootstrap too.
        features: `[B, F]` description of the states for the surrogate, without graph.
    """

    params: Tensor
    value: Tensor
    features: Tensor


class Networks(nn.Module):
    """A policy, a value function and perhaps a surrogate; policy and value function may share the policy's torso.

    Args:
        policy: observations to parameters.
        value: observations to values; it shares the policy's torso if it holds the same module.
        surrogate: of `(features, relaxed actions)`, see `relax_rl.critics.surrogate_at`; None for none.
    """

    def __init__(self, policy: Policy, value: ValueFunction, surrogate: nn.Module | None = None) -> None:
        super().__init__()
        self.policy, self.value, self.surrogate = policy, value, surrogate
        self.shared_torso = value.torso is policy.torso
        self._on_host: dict[str, HostNetwork] = {}
        self._owners = {name: _owners(part) for name, part in self.parts().items()}

    @property
    def value_part(self) -> nn.Module:
        """What belongs to the value function alone."""
        return self.value.head if self.shared_torso else self.value

    def parts(self) -> dict[str, nn.Module]:
        """What is trained, by the name of its gradient and of its place in checkpoints."""
        parts: dict[str, nn.Module] = {"policy": self.policy, "value": self.value_part}
        return parts if self.surrogate is None else {**parts, "surrogate": self.surrogate}

    def parameters_of(self, name: str) -> list[Tensor]:
        """Of one of the parts, as they stand now: a call may exchange them. Walking through modules takes much longer."""
        return [owner[key] for owner, key in self._owners[name]]

    def forward(self, obs: Tensor, rows: int | None = None, torso_features: Tensor | None = None) -> Outputs:
        """Pass observations through policy and value function.

        Args:
            obs: `[B + K, ...]` normalised observations; the last K only bootstrap.
            rows: B; all by default.
            torso_features: `[B, F]` of the policy's torso on the first B, if they are known, with their graph.
        """
        rows = len(obs) if rows is None else rows
        features = self.policy.torso(obs[:rows]) if torso_features is None else torso_features
        if not self.shared_torso:
            return Outputs(self.policy.params(features), self.value.value(self.value.torso(obs)), obs[:rows])
        value = self.value.value(features)
        if len(obs) > rows:
            with torch.no_grad():  # the observations that only bootstrap take no part in the backward pass
                bootstrapping = self.value(obs[rows:])
            value = torch.cat([value, bootstrapping])
        return Outputs(self.policy.params(features), value, features.detach())

    @torch.no_grad()
    def without_graph(self, obs: Tensor, rows: int, policy_outputs: Tensor | None = None) -> Outputs:
        """The same without graph, by the cheapest way.

        Args:
            obs, rows: as for a call.
            policy_outputs: `[B, outputs]` of the policy's head on the first B, if they are known.
        """
        policy, value = self.on_host("policy"), self.on_host("value")
        if policy is None or value is None:
            return self.forward(obs, rows)
        said = policy.on_tensor(obs[:rows]) if policy_outputs is None else policy_outputs
        return Outputs(self.policy.params_from(said), value.on_tensor(obs).squeeze(-1), obs[:rows])

    def on_host(self, part: str) -> HostNetwork | None:
        """`policy` or `value` in NumPy, or None where it has to be torch."""
        module: Policy | ValueFunction = getattr(self, part)
        known = self._on_host.get(part)
        if known is None or not known.reads(module.head):
            known = host_network(module.torso, module.head)
            if known is not None:
                self._on_host[part] = known
        return known

    @property
    def is_image_network(self) -> bool:
        """Whether the policy reads a single image."""
        return isinstance(self.policy.torso, NatureCNN)


def _owners(part: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Where each parameter of a module stands, in the order of `part.parameters()`."""
    found = {
        id(parameter): (module._parameters, key)
        for module in part.modules()
        for key, parameter in module._parameters.items()
        if parameter is not None
    }
    return [found[id(parameter)] for parameter in part.parameters()]


@dataclass(frozen=True)
class NetworkParts:
    """What a factory of networks makes; heads and everything else are added to it.

    Attributes:
        policy_torso: encoded observations `[B, ...]` to features `[B, num_features]`, with that width as an attribute.
        value_torso: the value function's; the same module for a shared one.
        surrogate: features of the state and relaxed actions to `[*]` values, see `relax_rl.critics.surrogate_at`; None for
            the one of the settings.
    """

    policy_torso: Any
    value_torso: Any
    surrogate: nn.Module | None = None


NetworkFactory = Callable[[ObservationEncoder, ActionEncoder, AgentConfig], NetworkParts]
"""From both spaces and the settings to torsos, and perhaps a surrogate, with fresh weights drawn from torch's generator."""


def make_networks(
    observations: ObservationEncoder,
    actions: ActionEncoder,
    config: AgentConfig,
    *,
    surrogate: bool,
    factory: NetworkFactory | None = None,
) -> Networks:
    """Networks that fit some spaces: MLPs apart, or one Nature CNN if there are images among the observations.

    Args:
        observations, actions: of the spaces.
        config: widths, activations and initial deviations.
        surrogate: whether there is one.
        factory: makes the torsos, and perhaps the surrogate, in place of those.

    Raises:
        SettingsError: the factory is none.
    """
    new_torso = partial(
        make_torso,
        observations,
        hidden=config.hidden,
        activation=config.activation,
        cnn_features=config.cnn_features,
        precision=config.precision,
    )
    parts = None
    if factory is not None:
        require_call(factory, "networks", observations, actions, config)
        parts = factory(observations, actions, config)
        if not isinstance(parts, NetworkParts):
            raise SettingsError(f"networks {name_of(factory)} made {type(parts).__name__}, expected NetworkParts")
    policy = Policy(
        new_torso() if parts is None else parts.policy_torso,
        actions,
        log_std_init=config.log_std_init,
        ordinal_std_init=config.ordinal_std_init,
        state_dependent_std=config.state_dependent_std,
        squash=config.squash,
        beta=config.action_distribution == "beta",
    )
    if parts is None:
        images = any(leaf.kind == "image" for leaf in observations.leaves)
        value = ValueFunction(policy.torso if images else new_torso())
    else:
        value = ValueFunction(parts.value_torso)
    if not surrogate:
        return Networks(policy, value)
    if parts is not None and parts.surrogate is not None:
        return Networks(policy, value, parts.surrogate)
    num_features = policy.torso.num_features if value.torso is policy.torso else observations.shape[0]
    return Networks(
        policy,
        value,
        ActionSurrogate(num_features, sum(actions.sizes), config.surrogate_hidden, config.surrogate_activation),
    )
