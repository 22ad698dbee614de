"""The free part r of a surrogate: a network of the context of a layer and of its relaxed bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from relax_rl.critics.activations import DERIVATIVES
from relax_rl.critics.closed_form import Evaluation, Layers, evaluate, gradient
from relax_rl.experiments.vae.controls import Control
from relax_rl.networks.torsos import ACTIVATIONS

__all__ = ["Evaluated", "ResidualNetwork", "SurrogateActivation"]

SurrogateActivation = Literal["relu", "tanh", "silu"]


class ResidualNetwork(nn.Module):
    """r(context, z): `[B, C]`, `[B, P]` -> `[B]`. Its last layer starts at zero, and so does r.

    Args:
        context: C, what is given beside z.
        size: P.
        depth: hidden layers.
        width: of each.
        activation: relu as published, or a smooth one.
        generator: of the initial weights.
    """

    def __init__(
        self,
        context: int,
        size: int,
        *,
        depth: int = 4,
        width: int = 200,
        activation: SurrogateActivation = "relu",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.kind = activation
        gain = math.sqrt(2.0) if activation != "tanh" else 1.0

        def matrix(rows: int, columns: int, inputs: int) -> nn.Parameter:
            bound = gain * math.sqrt(3.0 / inputs)
            return nn.Parameter(torch.empty(rows, columns).uniform_(-bound, bound, generator=generator))

        self.of_context = matrix(width, context, context + size)
        self.of_z = matrix(width, size, context + size)
        self.inner = nn.ParameterList(matrix(width, width, width) for _ in range(depth - 1))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(depth))
        self.out = nn.Parameter(torch.zeros(width))

    @torch.no_grad()
    def evaluate(self, context: Tensor, z: Tensor) -> Evaluated:
        """r at rows of a context and of relaxed bits, without graph."""
        weights = [torch.cat([self.of_context, self.of_z], 1), *self.inner]
        activation, derivatives = ACTIVATIONS[self.kind], DERIVATIVES[self.kind]
        out_weight, out_bias = self.out.unsqueeze(0), self.out.new_zeros(1)
        layers = Layers(weights, list(self.biases), out_weight, out_bias, activation, derivatives)
        return Evaluated(layers, evaluate(layers, torch.cat([context, z], -1), context.shape[-1]))


@dataclass(frozen=True)
class Evaluated:
    """r at some rows, with what its gradient needs."""

    layers: Layers
    at: Evaluation

    @property
    def control(self) -> Control:
        """r, the same for all bits of a row, and its slope."""
        return Control(self.at.value.unsqueeze(-1), self.at.slope)

    @torch.no_grad()
    def gradient(self, weight: Tensor, direction: Tensor) -> list[Tensor]:
        """The gradient of sum(weight r + direction . dr/dz) at the parameters of the network, in their order.

        Args:
            weight: `[B]`.
            direction: `[B, P]`.
        """
        found = gradient(self.layers, self.at, weight, direction)
        first, *inner = found.weights
        features = first.shape[1] - direction.shape[1]
        return [first[:, :features], first[:, features:], found.out_weight[0], *inner, *found.biases]
