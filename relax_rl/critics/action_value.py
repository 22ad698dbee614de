"""What each of a few actions is worth: a head per action, and the surrogate that it is for relaxed ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from relax_rl.distributions import SlopedDistribution
from relax_rl.networks.torsos import mlp

__all__ = ["ActionValues"]


class ActionValues(nn.Module):
    """c^(s, a) = sum_i a_i h_i(s), a head h_i for each action: exact at one-hot actions, linear between them.

    A head per action is that of DQN (Mnih et al. 2015). The last layer starts at zero: a fresh one changes nothing.

    Args:
        num_features: length of the description of s, to which no gradient flows.
        num_actions: how many there are.
        hidden: widths of the hidden layers.
        activation: by name.
        layer_norm: normalise what enters each activation.
    """

    def __init__(
        self,
        num_features: int,
        num_actions: int,
        hidden: Sequence[int],
        activation: str = "tanh",
        *,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.layers = mlp(num_features, hidden, activation, layer_norm=layer_norm)
        self.head = nn.Linear(self.layers.num_features, num_actions)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def values(self, features: Tensor) -> Tensor:
        """`[*, n]` of all actions, from `[*, F]` features."""
        return F.linear(self.layers(features), self.head.weight, self.head.bias)

    def forward(self, features: Tensor, relaxed_action: Tensor) -> Tensor:
        """`[*]` values from `[*, F]` features and `[*, n]` relaxed actions."""
        return (self.values(features) * relaxed_action).sum(-1)

    def at(self, features: Tensor, dist: SlopedDistribution | None = None) -> _AtStates:
        """c^ of these states as the estimators take it, with its slope; see `surrogate_at`."""
        return _AtStates(self.values(features.detach()), dist)


class _AtStates:
    """c(z) = soften(z) . values, and its slope."""

    def __init__(self, values: Tensor, dist: SlopedDistribution | None) -> None:
        self._values, self._dist = values, dist

    def __call__(self, z: Tensor) -> Tensor:
        """`[*]` values from relaxed samples `[*, n]`; more dimensions may lead."""
        return (self._values * (z if self._dist is None else self._dist.soften(z))).sum(-1)

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """`[*]` c and `[*, n]` dc/dz; z is a constant."""
        z = z.detach()
        if self._dist is None:
            return self(z), self._values.expand_as(z)
        relaxed = self._dist.soften(z)
        value = (self._values * relaxed).sum(-1)
        return value, self._dist.soften_slope(relaxed, self._values.expand_as(relaxed), 1.0)
