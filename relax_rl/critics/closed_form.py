"""A network of linear layers with one output: its slope in the input, and the gradient of both in the weights.

An estimate needs c and dc/da, and the gradient of its variance is linear in both. What is computed here by hand is what
differentiating a graph twice would compute, at a fraction of the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from relax_rl.critics.activations import Derivatives

__all__ = ["Evaluation", "Gradient", "Layers", "evaluate", "forward", "gradient"]


@dataclass(frozen=True)
class Layers:
    """Hidden layers, each followed by the activation, and the output.

    Attributes:
        weights, biases: of the hidden layers, `[width, width before]` and `[width]`.
        out_weight, out_bias: of the output, `[1, width]` and `[1]`.
        activation: of the hidden layers.
        derivatives: of the activation.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    out_weight: Tensor
    out_bias: Tensor
    activation: Callable[[Tensor], Tensor]
    derivatives: Derivatives


@dataclass(frozen=True)
class Evaluation:
    """c and its slope at some rows, with what its gradient in the weights needs.

    Attributes:
        value: `[n]` c.
        slope: `[n, A]` dc/da, a being the last A entries of the input.
        outputs: of every hidden layer, `[n, width]`, the input first.
        slopes: of the activations, `[n, width]`.
        back_inputs: dc at the input of every activation, `[n, width]`.
        kept: the input of every activation and dc at its output, if its second derivative needs them.
    """

    value: Tensor
    slope: Tensor
    outputs: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]
    back_inputs: tuple[Tensor, ...]
    kept: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class Gradient:
    """Of a scalar, in what its names say of `Layers`."""

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    out_weight: Tensor
    out_bias: Tensor


def forward(layers: Layers, x: Tensor) -> Tensor:
    """`[*]` c at `[*, F + A]` inputs, for autograd."""
    for weight, bias in zip(layers.weights, layers.biases, strict=True):
        x = layers.activation(F.linear(x, weight, bias))
    return F.linear(x, layers.out_weight, layers.out_bias).squeeze(-1)


def evaluate(layers: Layers, x: Tensor, num_features: int) -> Evaluation:
    """c at `[n, F + A]` inputs, and its slope in the last A of each."""
    derivatives, inputs = layers.derivatives, []
    outputs, slopes = [x], []
    for weight, bias in zip(layers.weights, layers.biases, strict=True):
        entering = torch.addmm(bias, outputs[-1], weight.t())
        outputs.append(layers.activation(entering))
        slopes.append(derivatives.first(entering, outputs[-1]))
        if derivatives.needs_input:
            inputs.append(entering)
    out = layers.out_weight
    value = torch.addmv(layers.out_bias.expand(x.shape[0]), outputs[-1], out[0])  # a single bias makes one row of none
    back, back_inputs, kept = out, [], []
    for number in reversed(range(len(slopes))):
        back_inputs.append(back * slopes[number])
        if derivatives.needs_input:
            kept.append((inputs[number], back))
        back = (
            back_inputs[-1] @ layers.weights[number] if number else _to_actions(back_inputs[-1], layers, num_features)
        )
    slope = back if slopes else out[:, num_features:].expand(len(x), -1)
    return Evaluation(value, slope, tuple(outputs), tuple(slopes), tuple(back_inputs[::-1]), tuple(kept[::-1]))


def gradient(layers: Layers, at: Evaluation, weight: Tensor, direction: Tensor) -> Gradient:
    """The gradient of sum(weight c + direction . dc/da) in the weights.

    A pass forward along the direction, and one backward through both passes.

    Args:
        layers: the network.
        at: where.
        weight: `[n]`.
        direction: `[n, A]`.
    """
    features, last, derivatives = at.outputs[0].shape[-1] - direction.shape[-1], len(at.slopes) - 1, layers.derivatives
    moved, at_inputs = [F.pad(direction, (features, 0)) if not layers.weights else direction], []
    for number, slope in enumerate(at.slopes):
        columns = layers.weights[number] if number else layers.weights[0][:, features:]
        at_inputs.append(moved[-1] @ columns.t())
        moved.append(at_inputs[-1] * slope)  # how each layer's output moves along the direction
    out_weight = torch.addmv(moved[-1].sum(0), at.outputs[-1].t(), weight).unsqueeze(0)
    back, weights, biases = weight.unsqueeze(-1), [], []
    for number in reversed(range(len(at.slopes))):
        output, back_input = at.outputs[number + 1], at.back_inputs[number]
        if derivatives.second is None:  # without curvature the way back is that of c itself
            back = weight.unsqueeze(-1) * back_input
        else:
            # `back_input` of the last layer is its slope, times the output's weight.
            back = back * (back_input if number == last else at.slopes[number])
            curved = derivatives.second(output, back_input, *(at.kept[number] if at.kept else ()))
            back = torch.addcmul(back, at_inputs[number], curved, value=derivatives.second_factor)
        biases.append(back.sum(0))
        if number:
            weights.append((back.t() @ at.outputs[number]).addmm_(back_input.t(), moved[number]))
            back = back if derivatives.second is None else back @ layers.weights[number]
        else:
            # The input is narrow, and a product with few columns is fastest the other way round.
            weights.append((at.outputs[0].t() @ back).t())
            weights[-1][:, features:].add_((direction.t() @ back_input).t())
    return Gradient(weights[::-1], biases[::-1], out_weight, weight.sum().unsqueeze(0))


def _to_actions(back_input: Tensor, layers: Layers, num_features: int) -> Tensor:
    """`[n, A]` from the first activation's input to the actions; so laid out, a product with few columns is fast."""
    return F.linear(back_input, layers.weights[0][:, num_features:].t().contiguous())
