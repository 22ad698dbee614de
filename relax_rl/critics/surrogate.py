"""The surrogate c_phi(s, a): the action-dependent control variate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relax_rl.critics.activations import DERIVATIVES
from relax_rl.networks import MLP

__all__ = ["ActionSurrogate", "Evaluation"]


@dataclass(frozen=True)
class Evaluation:
    """c^ and its slope at some rows, without graph, with what its gradient in phi needs.

    Attributes:
        value: `[n]` c^.
        slope: `[n, A]` dc^/da.
        outputs: of every layer, `[n, width]`, the input first.
        slopes: of the activations, `[n, width]`.
        inputs: of the activations, `[n, width]`.
    """

    value: Tensor
    slope: Tensor
    outputs: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]


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
        """Values and slopes from `[n, F]` features and `[n, A]` relaxed actions."""
        outputs, inputs, slopes = [torch.cat([features, relaxed_action], -1)], [], []
        for layer in self._layers():
            inputs.append(torch.addmm(layer.bias, outputs[-1], layer.weight.T))
            outputs.append(self.layers.activation(inputs[-1]))
            slopes.append(self.derivatives.first(inputs[-1], outputs[-1]))
        bias = self.head.bias.expand(len(features))  # by itself, addmv makes one row of none
        value = self.gain * torch.addmv(bias, outputs[-1], self.head.weight[0])
        back = (self.gain * self.head.weight).expand_as(outputs[-1])
        for number, layer in reversed(list(enumerate(self._layers()))):
            back = (back * slopes[number]) @ (layer.weight if number else layer.weight[:, self.num_features :])
        slope = back if slopes else back[:, self.num_features :]
        return Evaluation(value, slope, tuple(outputs), tuple(slopes), tuple(inputs))

    @torch.no_grad()
    def add_gradient(self, at: Evaluation, weight: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Add the gradient of sum(weight c^ + direction . dc^/da) in phi, but for the temperature, to `.grad`.

        A pass forward along the direction, and one backward through both passes.

        Args:
            at: where.
            weight: `[n]`.
            direction: `[n, A]`.

        Returns:
            The gradients of the same sum at the relaxed actions and at `direction`, both `[n, A]`.
        """
        layers, features = self._layers(), self.num_features
        moved = [nn.functional.pad(direction, (features, 0))]  # how each layer's output moves along the direction
        at_inputs = []
        for layer, slope in zip(layers, at.slopes, strict=True):
            first = len(moved) == 1
            at_inputs.append(direction @ layer.weight[:, features:].T if first else moved[-1] @ layer.weight.T)
            moved.append(at_inputs[-1] * slope)
        out = self.head.weight[0]
        self._add_to_head(at, weight, moved[-1])
        back, back_moved = (self.gain * weight).unsqueeze(-1) * out, (self.gain * out).expand_as(moved[-1])
        for number in reversed(range(len(layers))):
            layer, slope = layers[number], at.slopes[number]
            back_moved_in = back_moved * slope
            curved = self.derivatives.second(at.inputs[number], at.outputs[number + 1], back_moved, back_moved_in)
            back = torch.addcmul(back * slope, at_inputs[number], curved)
            back_moved = back_moved_in
            assert layer.weight.grad is not None and layer.bias.grad is not None
            layer.weight.grad.addmm_(back.T, at.outputs[number]).addmm_(back_moved.T, moved[number])
            layer.bias.grad.add_(back.sum(0))
            columns = layer.weight if number else layer.weight[:, features:]
            back, back_moved = back @ columns, back_moved @ columns
        return (back, back_moved) if layers else (back[:, features:], back_moved[:, features:])

    def _add_to_head(self, at: Evaluation, weight: Tensor, moved: Tensor) -> None:
        out, bias, gain = self.head.weight, self.head.bias, self.gain
        assert out.grad is not None and bias.grad is not None and gain.grad is not None
        at_out = torch.mv(at.outputs[-1].T, weight) + moved.sum(0)
        total = weight.sum()
        out.grad[0].add_(gain * at_out)
        bias.grad.add_(gain * total)
        gain.grad.add_(torch.dot(at_out, out[0]) + total * bias[0])

    def _layers(self) -> list[nn.Linear]:
        return list(self.layers.layers)  # type: ignore[arg-type]
