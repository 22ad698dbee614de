"""The surrogate c_phi(s, a): the action-dependent control variate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from relax_rl.networks import MLP

__all__ = ["ActionSurrogate"]


class ActionSurrogate(nn.Module):
    """c^(s, a) = gain * net(features of s, relaxed action), the part of c_phi that depends on the action.

    The advantage already holds -V(s), so c_phi = V + c^ enters the estimators as c^ alone. The last layer starts at
    zero: a fresh surrogate changes nothing, and must earn its place by lowering the variance.

    Args:
        num_features: length of the description of s, to which no gradient flows.
        num_actions: length of the relaxed action.
        hidden: widths of the hidden layers.
        activation: name of a smooth activation: c's gradient in the action is what the estimators use, and its
            dependence on the action is all that phi can be trained through.
    """

    def __init__(self, num_features: int, num_actions: int, hidden: Sequence[int], activation: str = "tanh") -> None:
        super().__init__()
        self.layers = MLP(num_features + num_actions, hidden, activation)
        self.head = nn.Linear(self.layers.num_features, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.gain = nn.Parameter(torch.ones(()))
        self.log_temperature = nn.Parameter(torch.zeros(()))

    @property
    def temperature(self) -> Tensor:
        """Temperature at which discrete z are relaxed before they enter, learned with the rest of phi."""
        return self.log_temperature.exp()

    def forward(self, features: Tensor, relaxed_action: Tensor) -> Tensor:
        """`[B]` values from `[B, F]` features and `[B, A]` relaxed actions."""
        out: Tensor = self.head(self.layers(torch.cat([features, relaxed_action], -1)))
        return self.gain * out.squeeze(-1)
