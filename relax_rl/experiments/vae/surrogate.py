"""The free part r of a surrogate: a network of the image and the relaxed bits, with its derivatives written out.

RELAX needs r and dr/dz at every step, and from them the gradient in r's own parameters of

    S = sum_rows weight r(z) + direction . dr/dz

which is what training on the variance comes to. S is a number and its tangent, so that one pass forward with tangents
and one pass backward give its gradient; differentiating a gradient twice would do the same work in many more steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["ResidualNetwork", "SurrogateActivation"]

SurrogateActivation = Literal["relu", "tanh", "silu"]


def _relu(a: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    return a.clamp(min=0.0), (a > 0).to(a.dtype), None


def _tanh(a: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    h = torch.tanh(a)
    slope = 1 - h * h
    return h, slope, -2 * h * slope


def _silu(a: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    s = torch.sigmoid(a)
    h = a * s
    spread = s * (1 - s)
    return h, s + a * spread, spread * (2 + a * (1 - 2 * s))


_ACTIVATIONS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]] = {
    "relu": _relu,
    "tanh": _tanh,
    "silu": _silu,
}
"""The activation with its first and second derivative; None where that is zero."""


@dataclass(frozen=True)
class _Pass:
    """What a forward pass leaves behind, layer by layer.

    Attributes:
        outputs, slopes, curvatures: the activation and its derivatives.
        sensitivities, deltas: dr/d(output) and dr/d(pre-activation).
    """

    context: Tensor
    z: Tensor
    outputs: list[Tensor]
    slopes: list[Tensor]
    curvatures: list[Tensor | None]
    sensitivities: list[Tensor]
    deltas: list[Tensor]


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
        self._activation = _ACTIVATIONS[activation]
        gain = math.sqrt(2.0) if activation != "tanh" else 1.0

        def matrix(rows: int, columns: int, inputs: int) -> nn.Parameter:
            bound = gain * math.sqrt(3.0 / inputs)
            return nn.Parameter(torch.empty(rows, columns).uniform_(-bound, bound, generator=generator))

        self.of_context = matrix(width, context, context + size)
        self.of_z = matrix(width, size, context + size)
        self.inner = nn.ParameterList(matrix(width, width, width) for _ in range(depth - 1))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(depth))
        self.out = nn.Parameter(torch.zeros(width))
        self._pass: _Pass | None = None
        self._memory: dict[int, Tensor] = {}

    @torch.no_grad()
    def forward(self, context: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """r `[B]` and dr/dz `[B, P]`, without graph; remembered for `add_gradient`."""
        a = torch.addmm(self.biases[0], context, self.of_context.t()).addmm_(z, self.of_z.t())
        outputs: list[Tensor] = []
        slopes: list[Tensor] = []
        curvatures: list[Tensor | None] = []
        for layer in range(len(self.biases)):
            if layer:
                a = torch.addmm(self.biases[layer], outputs[-1], self.inner[layer - 1].t())
            output, slope, curvature = self._activation(a)
            outputs.append(output)
            slopes.append(slope)
            curvatures.append(curvature)
        sensitivities: list[Tensor] = [self.out]
        deltas = [slopes[-1] * self.out]
        for layer in range(len(self.biases) - 1, 0, -1):
            sensitivities.insert(0, deltas[0] @ self.inner[layer - 1])
            deltas.insert(0, sensitivities[0] * slopes[layer - 1])
        self._pass = _Pass(context, z, outputs, slopes, curvatures, sensitivities, deltas)
        return outputs[-1] @ self.out, deltas[0] @ self.of_z

    @torch.no_grad()
    def add_gradient(self, weight: Tensor, direction: Tensor) -> None:
        """Add dS/dparameters at the last call's inputs to `.grad`.

        Args:
            weight: `[B]` of r.
            direction: `[B, P]` of dr/dz.
        """
        kept = self._pass
        assert kept is not None, "nothing was evaluated yet"
        weight = weight.unsqueeze(-1)
        tangents = [direction @ self.of_z.t()]  # of the pre-activations, along `direction`
        moved = [tangents[0] * kept.slopes[0]]
        for layer in range(1, len(self.biases)):
            tangents.append(moved[-1] @ self.inner[layer - 1].t())
            moved.append(tangents[-1] * kept.slopes[layer])
        _add_vector(self.out, (moved[-1] + weight * kept.outputs[-1]).sum(0))
        # dS/d(pre-activation) is weight * delta, and what the curvature of this layer and of those above it adds.
        extra: Tensor | None = None
        for layer in range(len(self.biases) - 1, -1, -1):
            delta, curvature = kept.deltas[layer], kept.curvatures[layer]
            if extra is not None:
                extra = (extra @ self.inner[layer]).mul_(kept.slopes[layer])
            if curvature is not None:
                curved = curvature.mul(tangents[layer]).mul_(kept.sensitivities[layer])
                extra = curved if extra is None else extra.add_(curved)
            through = weight * delta if extra is None else extra + weight * delta
            _add_vector(self.biases[layer], through.sum(0))
            if layer:
                inputs = torch.cat([kept.outputs[layer - 1], moved[layer - 1]])
                self._add(self.inner[layer - 1], torch.cat([through, delta]).t(), inputs)
            else:
                self._add(self.of_z, torch.cat([through, delta]).t(), torch.cat([kept.z, direction]))
                self._add(self.of_context, through.t(), kept.context)

    def _add(self, parameter: Tensor, left: Tensor, right: Tensor) -> None:
        """Add left @ right to the gradient, in memory that stays the network's own: fresh pages are not free."""
        if parameter.grad is not None:
            parameter.grad.addmm_(left, right)
            return
        key = id(parameter)
        if key not in self._memory or self._memory[key].shape != parameter.shape:
            self._memory[key] = torch.empty_like(parameter, requires_grad=False)
        parameter.grad = torch.mm(left, right, out=self._memory[key])


def _add_vector(parameter: Tensor, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
