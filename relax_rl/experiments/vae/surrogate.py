"""The free part r of a surrogate: a network of the image and the relaxed bits, with its derivatives written out.

RELAX needs r and dr/dz at every step, and from them the gradient in r's own parameters of

    S = sum_rows weight r(z) + direction . dr/dz

which is what training on the variance comes to. S is a number and its tangent, so that one pass forward with tangents
and one pass backward give its gradient; differentiating a gradient twice would do the same work in many more steps.
`relax_rl.critics.closed_form` does the like for c in its last inputs; here the gradients of wide first layers stay in
memory of their own, and the products that ReLU's missing curvature saves are not taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from relax_rl.critics.activations import DERIVATIVES
from relax_rl.networks import ACTIVATIONS

__all__ = ["ResidualNetwork", "SurrogateActivation"]

SurrogateActivation = Literal["relu", "tanh", "silu"]


@dataclass(frozen=True)
class _Pass:
    """What a forward pass leaves behind, layer by layer.

    Attributes:
        outputs, slopes: the activation and its derivative.
        deltas: dr/d(pre-activation).
        kept: pre-activation and dr/d(output), if the activation's second derivative needs them.
    """

    context: Tensor
    z: Tensor
    outputs: list[Tensor]
    slopes: list[Tensor]
    deltas: list[Tensor]
    kept: list[tuple[Tensor, Tensor]]


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
        self._activation, self._derivatives = ACTIVATIONS[activation], DERIVATIVES[activation]
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
        entering: list[Tensor] = []
        outputs: list[Tensor] = []
        for layer in range(len(self.biases)):
            if layer:
                a = torch.addmm(self.biases[layer], outputs[-1], self.inner[layer - 1].t())
            entering.append(a)
            outputs.append(self._activation(a))
        slopes = [self._derivatives.first(a, h) for a, h in zip(entering, outputs, strict=True)]
        sensitivities: list[Tensor] = [self.out]
        deltas = [slopes[-1] * self.out]
        for layer in range(len(self.biases) - 1, 0, -1):
            sensitivities.insert(0, deltas[0] @ self.inner[layer - 1])
            deltas.insert(0, sensitivities[0] * slopes[layer - 1])
        kept = list(zip(entering, sensitivities, strict=True)) if self._derivatives.needs_input else []
        self._pass = _Pass(context, z, outputs, slopes, deltas, kept)
        return outputs[-1] @ self.out, deltas[0] @ self.of_z

    @torch.no_grad()
    def add_gradient(self, weight: Tensor, direction: Tensor) -> None:
        """Add dS/dparameters at the last call's inputs to `.grad`.

        Args:
            weight: `[B]` of r.
            direction: `[B, P]` of dr/dz.
        """
        at, derivatives = self._pass, self._derivatives
        assert at is not None, "nothing was evaluated yet"
        weight = weight.unsqueeze(-1)
        tangents = [direction @ self.of_z.t()]  # of the pre-activations, along `direction`
        moved = [tangents[0] * at.slopes[0]]
        for layer in range(1, len(self.biases)):
            tangents.append(moved[-1] @ self.inner[layer - 1].t())
            moved.append(tangents[-1] * at.slopes[layer])
        _add_vector(self.out, (moved[-1] + weight * at.outputs[-1]).sum(0))
        # dS/d(pre-activation) is weight * delta, and what the curvature of this layer and of those above it adds.
        extra: Tensor | None = None
        for layer in range(len(self.biases) - 1, -1, -1):
            delta = at.deltas[layer]
            if extra is not None:
                extra = (extra @ self.inner[layer]).mul_(at.slopes[layer])
            if derivatives.second is not None:
                curved = derivatives.second(at.outputs[layer], delta, *(at.kept[layer] if at.kept else ()))
                curved = curved.mul_(tangents[layer]).mul_(derivatives.second_factor)
                extra = curved if extra is None else extra.add_(curved)
            through = weight * delta if extra is None else extra + weight * delta
            _add_vector(self.biases[layer], through.sum(0))
            if layer:
                inputs = torch.cat([at.outputs[layer - 1], moved[layer - 1]])
                self._add(self.inner[layer - 1], torch.cat([through, delta]).t(), inputs)
            else:
                self._add(self.of_z, torch.cat([through, delta]).t(), torch.cat([at.z, direction]))
                self._add(self.of_context, through.t(), at.context)

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
