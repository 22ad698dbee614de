"""Adam in one kernel for all parameters, with its state as tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

__all__ = ["FusedAdam"]


class FusedAdam:
    """Adam (Kingma and Ba 2015): the numbers of `torch.optim.Adam(fused=True)`, without what a step of that costs in Python.

    A parameter without a gradient is left alone.

    Args:
        parameters: what it steps.
        lr: learning rate.
        betas: decays of the moments.
        decay: L2 decay of parameters, added to their gradients.
        decayed: those that it applies to; none by default.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99999),
        decay: float = 0.0,
        decayed: Iterable[nn.Parameter] = (),
    ) -> None:
        self.lr, self.betas = lr, betas
        chosen = {id(parameter) for parameter in decayed} if decay else set()
        every = list(parameters)
        self._groups = [
            _Group([p for p in every if id(p) in chosen], decay),
            _Group([p for p in every if id(p) not in chosen], 0.0),
        ]

    @torch.no_grad()
    def step(self) -> None:
        """One step down the gradients, which are dropped."""
        for group in self._groups:
            group.step(self.lr, self.betas)

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
    """Parameters with one decay."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.means = [torch.zeros_like(p, requires_grad=False) for p in parameters]
        self.squares = [torch.zeros_like(p, requires_grad=False) for p in parameters]
        self.steps = [torch.zeros((), device=p.device) for p in parameters]

    def step(self, lr: float, betas: tuple[float, float]) -> None:
        rows = [
            (p, p.grad, mean, square, count)
            for p, mean, square, count in zip(self.parameters, self.means, self.squares, self.steps, strict=True)
            if p.grad is not None
        ]
        if not rows:
            return
        parameters, grads, means, squares, counts = (list(column) for column in zip(*rows, strict=True))
        adam(
            parameters,
            grads,
            means,
            squares,
            [],
            counts,
            fused=True,
            amsgrad=False,
            beta1=betas[0],
            beta2=betas[1],
            lr=lr,
            weight_decay=self.decay,
            eps=1e-8,
            maximize=False,
        )
        for parameter in parameters:
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        named = {"mean": self.means, "square": self.squares, "steps": self.steps}
        return {f"{name}.{i}": tensor for name, tensors in named.items() for i, tensor in enumerate(tensors)}
