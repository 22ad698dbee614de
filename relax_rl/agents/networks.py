"""The networks of an agent: policy, value function and surrogate, and what they make of observations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relax_rl.agents.acting import HostNetwork, host_network
from relax_rl.agents.memory import Memory, features_through_time
from relax_rl.compute.optimizers import learning
from relax_rl.critics import ValueFunction
from relax_rl.errors import SettingsError
from relax_rl.networks.cnns import ImpalaCNN, NatureCNN, SmallCNN
from relax_rl.networks.layers import is_exactly
from relax_rl.networks.memory import is_recurrent
from relax_rl.networks.policies import Policy

__all__ = ["Networks", "Outputs", "StateOf"]

StateOf = Literal["observation", "columns", "features"]
"""What a surrogate sees of a state beside a torso of its own policy's: the whole observation, the columns that the value
function sees, or the features of the value function's torso."""


@dataclass(frozen=True)
class Outputs:
    """What the networks say of `B` observations, with its graph unless noted.

    Attributes:
        params: `[B, P]` parameters of the action distribution.
        value: `[B + K]` V, of the K observations that only bootstrap too.
        features: `[B, F]` description of the states for the surrogate, without graph.
        logits: `[B, num]` of the distribution whose mean V is; None where V is learned itself.
    """

    params: Tensor
    value: Tensor
    features: Tensor
    logits: Tensor | None = None


class Networks(nn.Module):
    """A policy, a value function and perhaps a surrogate; policy and value function may share the policy's torso.

    Attributes:
        shared_torso: whether they do.
        state_sizes: numbers that the policy, and a value function's torso of its own, remember of an environment.
        recurrent: whether one of them remembers anything.

    Args:
        policy: observations to parameters.
        value: observations to values; it shares the policy's torso if it holds the same module.
        surrogate: of `(features, relaxed actions)`, see `relax_rl.critics.surrogate_at`; None for none.
        state: what of a state it is told; the features of a torso that policy and value function share come before that.
    """

    def __init__(
        self,
        policy: Policy,
        value: ValueFunction,
        surrogate: nn.Module | None = None,
        *,
        state: StateOf = "observation",
    ) -> None:
        super().__init__()
        self.policy, self.value, self.surrogate, self._state = policy, value, surrogate, state
        self.shared_torso = value.torso is policy.torso
        of_policy, of_value = (torso.state_size if is_recurrent(torso) else 0 for torso in (policy.torso, value.torso))
        self.state_sizes = (of_policy, 0 if self.shared_torso else of_value)
        self.recurrent = any(self.state_sizes)
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
        """What learns of one of the parts, as it stands now: a call may exchange it. Walking through modules takes much longer."""
        return [owner[key] for owner, key in self._owners[name]]

    def forward(
        self,
        obs: Tensor,
        rows: int | None = None,
        torso_features: Tensor | None = None,
        *,
        memory: Memory | None = None,
    ) -> Outputs:
        """Pass observations through policy and value function.

        Args:
            obs: `[B + K, ...]` normalised observations; the last K only bootstrap.
            rows: B; all by default.
            torso_features: `[B, F]` of the policy's torso on the first B, if they are known, with their graph.
            memory: of recurrent networks: where the sequences of the first rows begin; then the rest of its rows, and the
                last observations of truncated episodes.
        """
        rows = len(obs) if rows is None else rows
        if self.recurrent:
            return self._through_time(obs, rows, memory)
        features = self.policy.torso(obs[:rows]) if torso_features is None else torso_features
        if not self.shared_torso:
            seen = self.value.torso(obs)
            value, logits = self._valued(seen, rows)
            return Outputs(self.policy.params(features), value, self._told(obs[:rows], seen[:rows]), logits)
        value, logits = self._valued(features, rows)
        if len(obs) > rows:
            with torch.no_grad():  # the observations that only bootstrap take no part in the backward pass
                bootstrapping = self.value(obs[rows:])
            value = torch.cat([value, bootstrapping])
        return Outputs(self.policy.params(features), value, features.detach(), logits)

    def _valued(self, features: Tensor, rows: int) -> tuple[Tensor, Tensor | None]:
        """`[B + K]` V, and the logits of the first rows where it is the mean of a distribution."""
        if self.value.bins is None:
            return self.value.value(features), None
        outputs = self.value.outputs(features)
        return self.value.from_outputs(outputs), outputs[:rows]

    def _through_time(self, obs: Tensor, rows: int, memory: Memory | None) -> Outputs:
        """The same for recurrent networks."""
        if memory is None:
            raise SettingsError("the networks have a memory, expected some without: leave --memory at none for this")
        of_policy, of_value = memory.state.split(self.state_sizes, -1)
        seen = features_through_time(self.value.torso, obs, of_policy if self.shared_torso else of_value, memory)
        if self.shared_torso:
            features = seen[:rows]
            of_state = features.detach()
        else:
            acted = memory.first(rows // len(memory.state)) if len(memory.state) else memory
            features = features_through_time(self.policy.torso, obs[:rows], of_policy, acted)
            of_state = self._told(obs[:rows], seen[:rows])
        value, logits = self._valued(seen, rows)
        return Outputs(self.policy.params(features), value, of_state, logits)

    @torch.no_grad()
    def without_graph(self, obs: Tensor, rows: int, policy_outputs: Tensor | None = None) -> Outputs:
        """The same without graph, by the cheapest way.

        Args:
            obs, rows: as for a call.
            policy_outputs: `[B, outputs]` of the policy's head on the first B, if they are known.
        """
        policy, value = self.on_host("policy"), self.on_host("value")
        if policy is None or value is None or self.shared_torso:
            return self.forward(obs, rows)
        said = policy.on_tensor(obs[:rows]) if policy_outputs is None else policy_outputs
        values = self.value.from_outputs(value.on_tensor(obs))
        return Outputs(self.policy.params_from(said), values, self._told(obs[:rows]))

    def extra_repr(self) -> str:
        return "" if self._state == "observation" else f"state={self._state}"

    def _told(self, obs: Tensor, seen: Tensor | None = None) -> Tensor:
        """`[B, F]` what the surrogate is told of observations, and of what the value function's torso makes of them."""
        if self._state == "observation":
            return obs
        if self._state == "columns":
            found: Tensor = self.value.torso.select(obs)  # type: ignore[operator]
            return found
        assert seen is not None
        return seen.detach()

    @torch.no_grad()
    def told(self, obs: Tensor) -> Tensor:
        """`[B, F]` what the surrogate is told of normalised observations `[B, ...]`, by the torsos as they stand."""
        if self.shared_torso or self._state not in ("observation", "columns"):
            features: Tensor = self.value.torso(obs)
            return features
        return self._told(obs)

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
    def reads_large_images(self) -> bool:
        """Whether large images are read: by a CNN for them, or by convolutions of somebody's own that policy and V share."""
        if any(isinstance(each, NatureCNN | ImpalaCNN) for each in self.modules()):
            return True
        small = {id(each) for cnn in self.modules() if isinstance(cnn, SmallCNN) for each in cnn.modules()}
        own = (each for each in self.modules() if isinstance(each, nn.Conv1d | nn.Conv2d | nn.Conv3d))
        return self.shared_torso and any(id(each) not in small for each in own)

    @property
    def is_image_network(self) -> bool:
        """Whether the policy reads a single image by a Nature CNN as it is built in."""
        torso = self.policy.torso
        return is_exactly(torso, NatureCNN) and all(
            is_exactly(layer, nn.Sequential, nn.Conv2d, nn.Linear, nn.ReLU, nn.Flatten)
            for layer in torso.modules()
            if layer is not torso
        )


def _owners(part: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Where each parameter of a module that learns stands, in the order of `learning(part)`."""
    found = {
        id(parameter): (module._parameters, key)
        for module in part.modules()
        for key, parameter in module._parameters.items()
        if parameter is not None
    }
    return [found[id(parameter)] for parameter in learning(part)]
