"""The free part r of a surrogate: a network of the context of a layer and of its relaxed bits."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from relax_rl.critics.activations import DERIVATIVES
from relax_rl.critics.closed_form import Layers
from relax_rl.critics.mlp_surrogate import MLPSurrogate
from relax_rl.networks.torsos import ACTIVATIONS

__all__ = ["ResidualNetwork", "SurrogateActivation"]

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

    def given(self, context: Tensor) -> MLPSurrogate:
        """r as a function of z, for rows of a context."""
        layers = Layers(
            [torch.cat([self.of_context, self.of_z], 1), *self.inner],
            list(self.biases),
            self.out.unsqueeze(0),
            self.out.new_zeros(1),
            ACTIVATIONS[self.kind],
            DERIVATIVES[self.kind],
        )
        return MLPSurrogate(layers, features=context)
