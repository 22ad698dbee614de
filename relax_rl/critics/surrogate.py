"""The surrogate c_phi(s, a): the action-dependent control variate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from relax_rl.critics.activations import DERIVATIVES
from relax_rl.critics.closed_form import Evaluation, Layers, evaluate, gradient
from relax_rl.networks import MLP

__all__ = ["ActionSurrogate"]


class ActionSurrogate(nn.Module):
    """c^(s, a) = gain * net(features of s, relaxed action), the part of c_phi that depends on the action.

    The advantage already holds -V(s), so c_phi = V + c^ enters the estimators as c^ alone. The last layer starts at
    zero: a fresh surrogate changes nothing, and must earn its place by lowering the variance.

    An estimate needs c^ and dc^/da, and the gradient of its variance is linear in both. `evaluate` and `add_gradient`
    give that in closed form, at a fraction of the cost of differentiating a graph twice.

    Args:
        num_features: length of the description of s, to which no gradient flows.
        num_actions: length of the relaxed action.
        hidden: widths of the hidden layers.
        activation: name of a smooth activation: c's gradient in the action is what the estimators use, and its
            dependence on the action is all that phi can be trained through.
    """

    def __init__(self, num_features: int, num_actions: int, hidden: Sequence[int], activation: str = "tanh") -> None:
        super().__init__()
        self.num_features = num_features
        self.layers = MLP(num_features + num_actions, hidden, activation)
        self.derivatives = DERIVATIVES[activation]
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

    @torch.no_grad()
    def evaluate(self, features: Tensor, relaxed_action: Tensor) -> Evaluation:
        """Values and slopes, without graph, from `[n, F]` features and `[n, A]` relaxed actions."""
        return evaluate(self._layers(), torch.cat([features, relaxed_action], -1), self.num_features)

    @torch.no_grad()
    def add_gradient(self, at: Evaluation, weight: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Add the gradient of sum(weight c^ + direction . dc^/da) in phi, but for the temperature, to `.grad`.

        Args:
            at: where.
            weight: `[n]`.
            direction: `[n, A]`.

        Returns:
            The gradients of the same sum at the relaxed actions and at `direction`, both `[n, A]`.
        """
        layers, head, gain = self._layers(), self.head, self.gain
        found = gradient(layers, at, weight, direction)
        of_gain = torch.dot(found.out_weight[0], head.weight[0]) + torch.dot(found.out_bias, head.bias)
        torch._foreach_add_(
            [_grad(x) for x in (*layers.weights, *layers.biases, head.weight, head.bias, gain)],
            [*found.weights, *found.biases, gain * found.out_weight, gain * found.out_bias, of_gain],
        )
        first = layers.weights[0] if layers.weights else layers.out_weight
        return found.back @ first[:, self.num_features :], at.slope

    def _layers(self) -> Layers:
        """The network as tensors, its output times the gain."""
        hidden: list[nn.Linear] = list(self.layers.layers)  # type: ignore[arg-type]
        weights, biases = [layer.weight for layer in hidden], [layer.bias for layer in hidden]
        out_weight, out_bias = self.gain * self.head.weight, self.gain * self.head.bias
        return Layers(weights, biases, out_weight, out_bias, self.layers.activation, self.derivatives)


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
