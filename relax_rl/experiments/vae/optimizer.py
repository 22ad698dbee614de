"""Adam for parameters with two learning rates, with its state as tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from relax_rl.fused_adam import fused_adam_

__all__ = ["FusedAdam"]


class FusedAdam:
    """Adam (Kingma and Ba 2015): the numbers of `torch.optim.Adam(fused=True)`, without what a step of that costs in Python.

    A parameter without a gradient is left alone. Parameters are contiguous.

    Args:
        parameters: what it steps.
        lr: learning rate.
        betas: decays of the moments.
        decay: L2 decay of parameters, added to their gradients.
        decayed: those that it applies to; none by default.
        decayed_lr: learning rate of these, if it is another.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99999),
        decay: float = 0.0,
        decayed: Iterable[nn.Parameter] = (),
        decayed_lr: float | None = None,
    ) -> None:
        self.betas = betas
        chosen = {id(parameter) for parameter in decayed}
        every = list(parameters)
        self._groups = [
            _Group([p for p in every if id(p) in chosen], lr if decayed_lr is None else decayed_lr, decay),
            _Group([p for p in every if id(p) not in chosen], lr, 0.0),
        ]

    @torch.no_grad()
    def step(self) -> None:
        """One step down the gradients, which are dropped."""
        for group in self._groups:
            group.step(self.betas)

    def state_dict(self) -> dict[str, Tensor]:
        """The moments and step counts."""
        return {f"{i}.{name}": value for i, group in enumerate(self._groups) for name, value in group.state().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            ValueError: it belongs to other parameters.
        """
        own = self.state_dict()
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise ValueError("an optimiser's state belongs to other parameters")
        for name, value in own.items():
            value.copy_(state[name])


class _Group:
    """Parameters with one learning rate, one decay and one count of steps: a parameter that never had a gradient has zero moments."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, decay: float) -> None:
        self.parameters, self.lr, self.decay = parameters, lr, decay
        self.means = [
            torch.zeros_like(p, requires_grad=False, memory_format=torch.contiguous_format) for p in parameters
        ]
        self.squares = [
            torch.zeros_like(p, requires_grad=False, memory_format=torch.contiguous_format) for p in parameters
        ]
        self.count = torch.zeros((), device=parameters[0].device if parameters else None)

    def step(self, betas: tuple[float, float]) -> None:
        # The kernel walks through memory: a gradient in another layout would move the wrong entries.
        rows = [
            (parameter, parameter.grad.contiguous(), mean, square)
            for parameter, mean, square in zip(self.parameters, self.means, self.squares, strict=True)
            if parameter.grad is not None
        ]
        if not rows:
            return
        self.count += 1
        parameters, gradients, means, squares = zip(*rows, strict=True)
        fused_adam_(parameters, gradients, means, squares, self.count, lr=self.lr, betas=betas, decay=self.decay)
        for parameter in parameters:
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        named = {"mean": self.means, "square": self.squares}
        state = {f"{name}.{i}": tensor for name, tensors in named.items() for i, tensor in enumerate(tensors)}
        return {**state, "count": self.count}
