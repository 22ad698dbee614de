"""The surrogate c_phi(s, a): the action-dependent control variate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relax_rl.critics.activations import DERIVATIVES
from relax_rl.critics.closed_form import Layers
from relax_rl.critics.mlp_surrogate import MLPSurrogate
from relax_rl.distributions import Distribution, SlopedDistribution
from relax_rl.networks.torsos import MLP

__all__ = ["ActionSurrogate", "surrogate_at"]


class ActionSurrogate(nn.Module):
    """c^(s, a) = gain * net(features of s, relaxed action), the part of c_phi that depends on the action.

    The advantage already holds -V(s), so c_phi = V + c^ enters the estimators as c^ alone. The last layer starts at
    zero: a fresh surrogate changes nothing, and must earn its place by lowering the variance. The learned gain lets all of
    it shrink at once where it does not (`benchmarks/results/ablation` shows what is lost without).

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
        self.derivatives = DERIVATIVES[activation]
        self.head = nn.Linear(self.layers.num_features, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, features: Tensor, relaxed_action: Tensor) -> Tensor:
        """`[*]` values from `[*, F]` features and `[*, A]` relaxed actions."""
        out: Tensor = self.head(self.layers(torch.cat([features, relaxed_action], -1)))
        return self.gain * out.squeeze(-1)

    def at(self, features: Tensor, dist: SlopedDistribution | None = None) -> MLPSurrogate:
        """c^ of these states as the estimators take it, with its slope in closed form; see `surrogate_at`."""
        hidden: list[nn.Linear] = list(self.layers.layers)  # type: ignore[arg-type]
        weights, biases = [layer.weight for layer in hidden], [layer.bias for layer in hidden]
        out_weight, out_bias = self.gain * self.head.weight, self.gain * self.head.bias
        layers = Layers(weights, biases, out_weight, out_bias, self.layers.activation, self.derivatives)
        return MLPSurrogate(layers, dist, features)


def surrogate_at(
    surrogate: nn.Module, features: Tensor, dist: Distribution | None = None
) -> Callable[[Tensor], Tensor]:
    """c^ of some states, as a function of relaxed samples z or of embedded actions.

    Args:
        surrogate: a module of `(features, relaxed action)` with any curvature; one that has `at` brings its slope.
        features: `[B, F]` description of the states, to which no gradient flows.
        dist: of the actions, whose `soften` makes relaxed actions of z; none where embedded actions will come.

    Returns:
        From `[*, B, ...]` to `[*, B]`.
    """
    at: Any = getattr(surrogate, "at", None)
    if at is not None:
        closed: Callable[[Tensor], Tensor] = at(features, dist)
        return closed
    features = features.detach()

    def control(z: Tensor) -> Tensor:
        relaxed = z if dist is None else dist.soften(z)
        value: Tensor = surrogate(features.expand(*relaxed.shape[:-1], -1), relaxed)
        return value

    return control
