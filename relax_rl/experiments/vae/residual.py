"""The free part r of a surrogate: a network of the context of a layer and of its relaxed bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from relax_rl.critics.activations import DERIVATIVES
from relax_rl.critics.closed_form import Layers, evaluate, gradient
from relax_rl.experiments.vae.controls import Control
from relax_rl.networks.torsos import ACTIVATIONS

__all__ = ["ResidualNetwork"]


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
        activation: Literal["relu", "tanh", "silu"] = "relu",
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
    def evaluate(self, context: Tensor, z: Tensor) -> tuple[Control, Callable[[Tensor, Tensor], list[Tensor]]]:
        """r at rows of a context and of relaxed bits, without graph.

        Returns:
            r, the same for all bits of a row, with its slope; and a function of a weight `[B]` and a direction `[B, P]`,
            the gradient of sum(weight r + direction . dr/dz) at the parameters of the network, in their order.
        """
        weights, features = [torch.cat([self.of_context, self.of_z], 1), *self.inner], context.shape[-1]
        activation, derivatives = ACTIVATIONS[self.kind], DERIVATIVES[self.kind]
        out_weight, out_bias = self.out.unsqueeze(0), self.out.new_zeros(1)
        layers = Layers(weights, list(self.biases), out_weight, out_bias, activation, derivatives)
        at = evaluate(layers, torch.cat([context, z], -1), features)

        @torch.no_grad()
        def pull_back(weight: Tensor, direction: Tensor) -> list[Tensor]:
            found = gradient(layers, at, weight, direction)
            first, *inner = found.weights
            return [first[:, :features], first[:, features:], found.out_weight[0], *inner, *found.biases]

        return Control(at.value.unsqueeze(-1), at.slope), pull_back
