"""q(s, a) as the mean of a distribution over bins: a distribution for each of a few actions, or one with the action as input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relax_rl.critics.action_value import ActionValues
from relax_rl.critics.bins import Bins
from relax_rl.critics.distributional import OverBins
from relax_rl.critics.surrogate import surrogate_at
from relax_rl.distributions import Distribution
from relax_rl.networks.torsos import mlp

__all__ = ["DistributionalActionValue", "DistributionalActionValues", "relative_to"]


class DistributionalActionValues(OverBins, ActionValues):
    """q(s, a) = sum_i a_i q_i(s), each q_i the mean of a distribution of its own: exact at one-hot actions, linear between.

    A head per action, as in `ActionValues`, of logits over bins (Farebrother et al. 2024).

    Args:
        num_features: length of the description of s, to which no gradient flows.
        num_actions: how many there are.
        hidden: widths of the hidden layers.
        activation: by name.
        bins: in units.
        layer_norm: normalise what enters each activation.
    """

    called = "surrogate"

    def __init__(
        self,
        num_features: int,
        num_actions: int,
        hidden: Sequence[int],
        activation: str = "tanh",
        *,
        bins: Bins,
        layer_norm: bool = False,
    ) -> None:
        super().__init__(num_features, num_actions * bins.num, hidden, activation, layer_norm=layer_norm)
        self._begin(self.head, bins)

    def values(self, features: Tensor) -> Tensor:
        """`[*, n]` of all actions, from `[*, F]` features."""
        return self.from_outputs(self._logits(features))

    def regressed(self, features: Tensor, action: Tensor) -> Tensor:
        """`[*, num]` logits of one-hot actions `[*, n]`, which the loss is taken at."""
        taken: Tensor = (self._logits(features) * action.unsqueeze(-1)).sum(-2)
        return taken

    def _logits(self, features: Tensor) -> Tensor:
        """`[*, n, num]`"""
        logits: Tensor = super().values(features).unflatten(-1, (-1, self.bins.num))
        return logits


class DistributionalActionValue(OverBins, nn.Module):
    """q(s, a) = unit * sum_k p_k(s, a) centre_k, with the action, embedded or relaxed, as an input of the network.

    The distribution of Farebrother et al. (2024), differentiable in the action.

    Args:
        num_features: length of the description of s, to which no gradient flows.
        num_actions: length of the relaxed action.
        hidden: widths of the hidden layers.
        activation: name of a smooth activation: q's gradient in the action is what the estimators use.
        bins: in units.
        layer_norm: normalise what enters each activation.
    """

    called = "surrogate"

    def __init__(
        self,
        num_features: int,
        num_actions: int,
        hidden: Sequence[int],
        activation: str = "tanh",
        *,
        bins: Bins,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.layers = mlp(num_features + num_actions, hidden, activation, layer_norm=layer_norm)
        self.head = nn.Linear(self.layers.num_features, bins.num)
        self._begin(self.head, bins)

    def forward(self, features: Tensor, relaxed_action: Tensor) -> Tensor:
        """`[*]` values from `[*, F]` features and `[*, A]` relaxed actions."""
        return self.from_outputs(self.regressed(features, relaxed_action))

    def regressed(self, features: Tensor, action: Tensor) -> Tensor:
        """`[*, num]` logits, which the loss is taken at."""
        logits: Tensor = self.head(self.layers(torch.cat([features, action], -1)))
        return logits


def relative_to(surrogate: Any, value: Tensor | None) -> Any:
    """The control variate of an advantage: a critic of returns less the value that the advantage is taken against.

    Args:
        surrogate: what estimates are given; returned as it is unless it is a distribution over bins.
        value: `[B]` V of the states.

    Returns:
        c(s, a) = q(s, a) - V(s), for `surrogate_at`.
    """
    return surrogate if value is None or not isinstance(surrogate, OverBins) else _Relative(surrogate, value)


class _Relative:
    def __init__(self, critic: Any, value: Tensor) -> None:
        self._critic, self._value = critic, value.detach()

    def __call__(self, features: Tensor, relaxed_action: Tensor) -> Tensor:
        found: Tensor = self._critic(features, relaxed_action) - self._value
        return found

    def at(self, features: Tensor, dist: Distribution | None = None) -> Callable[[Tensor], Tensor]:
        control = surrogate_at(self._critic, features, dist)
        if hasattr(control, "value_and_slope"):
            return _Lowered(control, self._value)
        return lambda z: control(z) - self._value


class _Lowered:
    """c - V with the slope of c."""

    def __init__(self, control: Any, value: Tensor) -> None:
        self._control, self._value = control, value

    def __call__(self, z: Tensor) -> Tensor:
        found: Tensor = self._control(z) - self._value
        return found

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = self._control.value_and_slope(z)
        return value - self._value, slope
