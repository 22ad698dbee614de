"""A policy as one graph of tensors: from raw observations to actions of the environment, for other programs to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from relax_rl.agents.actor import Actor
from relax_rl.agents.recurrence import policy_step
from relax_rl.networks.actions import num_continuous, unit_scale
from relax_rl.networks.tensors import action_parts, leaf_in_torch, torch_dtype

__all__ = ["ExportedPolicy"]


class ExportedPolicy(nn.Module):
    """What `predict(deterministic=True)` computes, normalisation, masks, memory and bounds of actions included.

    Called with the `inputs` in order, it returns the `outputs` in order, all of them tensors `[N, ...]`:

    - a leaf of the observations that the policy sees, `obs` where there is just one, in the dtype of its space; one that is
      called like another input or output is `obs.NAME`;
    - `action_mask` `[N, W]` bool as rows of `ActionMasks`, where actions are choices; all True allows everything;
    - with a memory `state` `[N, S]` float32, zeros at first, and `episode_start` `[N]` bool, where it is forgotten;

    and back come `action`, or one `action.NAME` for each part of a Dict or Tuple, in the dtype of its space; `params` `[N, P]`, the
    parameters of the action distribution, to sample from (logits, of which masked ones are -inf; means and log standard
    deviations); and with a memory `next_state` `[N, S]`.

    Args:
        agent: whose policy, on the CPU; its weights and statistics are read as they are.

    Attributes:
        inputs, outputs: names.

    Raises:
        SettingsError: for an array of the spaces whose numbers torch does not have.
    """

    def __init__(self, agent: Actor) -> None:
        super().__init__()
        self._agent, self.policy = agent, agent.policy
        seen = {leaf.name for leaf in agent.policy_observations.leaves}
        self._leaves: list[tuple[str, Callable[[Tensor], Tensor] | int]] = []
        self._spaces: dict[str, spaces.Space[Any]] = {}
        for leaf, space, encode in agent.observations.parts():
            known = leaf.name in seen
            self._leaves.append((leaf.name, leaf_in_torch(leaf, space, encode) if known else leaf.size))
            if known:
                self._spaces[leaf.name] = space
        self._masks = agent.masks is not None
        self._size = agent.networks.state_sizes[0]
        normalizer = agent.obs_normalizer
        shift = None if normalizer is None else normalizer.shift
        self._shift = None if shift is None else torch.from_numpy(np.asarray(shift, np.float64))
        self._parts = action_parts(agent.actions, stretched=agent.config.squash or self.policy.beta)
        rest = [*(["action_mask"] * self._masks), *(["state", "episode_start"] * bool(self._size))]
        self.outputs = [*(part.name for part in self._parts), "params", *(["next_state"] * bool(self._size))]
        self.inputs = [*_apart(self._spaces, (*rest, *self.outputs)), *rest]

    def examples(self, count: int = 3) -> tuple[Tensor, ...]:
        """Inputs for `count` observations, zeros where nothing else is needed."""
        found = [
            torch.from_numpy(np.stack([np.asarray(space.sample())] * count)).to(torch_dtype(name, space))
            for name, space in self._spaces.items()
        ]
        if self._masks:
            assert self._agent.masks is not None
            found.append(torch.ones((count, self._agent.masks.width), dtype=torch.bool))
        if self._size:
            found += [torch.zeros((count, self._size)), torch.zeros(count, dtype=torch.bool)]
        return tuple(found)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        count = len(self._spaces)
        given = dict(zip(self.inputs[count:], inputs[count:], strict=True))
        obs = self._encoded(dict(zip(self._spaces, inputs[:count], strict=True)), inputs[0].shape[0])
        if self._size:
            params, state = policy_step(self._agent, obs, given["state"], given["episode_start"])
        else:
            params, state = self.policy(self._agent.normalized(obs)), None
        params = self.policy.masked(params, given.get("action_mask"))
        outcome = self.policy.distribution(params).mode()
        numbers = self._in_unit(outcome)
        actions = [part.make(numbers if part.continuous else outcome) for part in self._parts]
        return (*actions, params, *([] if state is None else [state]))

    def _encoded(self, given: dict[str, Tensor], count: int) -> Tensor:
        """`[N, ...]` as `Actor.encoded` gives it."""
        if self._agent.observations.is_image:
            ((name, encode),) = self._leaves
            assert callable(encode)
            return encode(given[name])
        parts = [
            torch.zeros((count, encode)) if isinstance(encode, int) else encode(given[name]).reshape(count, -1)
            for name, encode in self._leaves
        ]
        if self._shift is None:
            return torch.cat([part.to(torch.float32) for part in parts], -1)
        return (torch.cat([part.to(torch.float64) for part in parts], -1) - self._shift).to(torch.float32)

    def _in_unit(self, outcome: Tensor) -> Tensor:
        """The outcome's numbers as `to_env` is given them: between -1 and 1 where they are stretched onto the bounds."""
        config, actions = self._agent.config, self._agent.actions
        count = num_continuous(actions)
        if not count:
            return outcome
        numbers = outcome[:, :count] if actions.kind == "hybrid" else outcome
        scale = unit_scale(actions) if config.rescale_actions and not config.squash and not self.policy.beta else None
        if config.squash:
            numbers = torch.tanh(numbers)
        elif self.policy.beta:
            numbers = 2.0 * numbers - 1.0
        elif scale is not None:
            numbers = torch.from_numpy(scale.middle) + torch.from_numpy(scale.half) * numbers.to(torch.float64)
        return numbers


def _apart(leaves: Iterable[str], taken: Iterable[str]) -> list[str]:
    """The names of leaves, in their order, none of which is taken."""
    leaves, known = list(leaves), set(taken)
    others = known | set(leaves)
    found = []
    for name in leaves:
        if name in known:
            while name in others:
                name = f"obs.{name}"
            others.add(name)
        found.append(name)
    return found
