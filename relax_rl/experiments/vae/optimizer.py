"""Adam for parameters with two learning rates, with its state as tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from relax_rl.fused_adam import fused_adam_

__all__ = ["FusedAdam"]


class FusedAdam:
    """Adam (Kingma and Ba 2015) on gradients that are handed in: the numbers of `torch.optim.Adam(fused=True)`.

    Args:
        parameters: what it steps, contiguous.
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
        chosen, every = {id(parameter) for parameter in decayed}, list(parameters)
        places = [[i for i, p in enumerate(every) if (id(p) in chosen) == wanted] for wanted in (True, False)]
        options = [(lr if decayed_lr is None else decayed_lr, decay), (lr, 0.0)]
        self._groups = [_Group(every, each, *option) for each, option in zip(places, options, strict=True)]

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step down the gradients of all parameters, in their order."""
        for group in self._groups:
            group.step(gradients, self.betas)

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
    """Parameters with one learning rate, one decay and one count of steps."""

    def __init__(self, every: Sequence[nn.Parameter], places: Sequence[int], lr: float, decay: float) -> None:
        self.places, self.parameters, self.lr, self.decay = places, [every[i] for i in places], lr, decay
        plain = torch.contiguous_format
        self.means = [torch.zeros_like(p, requires_grad=False, memory_format=plain) for p in self.parameters]
        self.squares = [torch.zeros_like(mean) for mean in self.means]
        self.count = torch.zeros((), device=self.parameters[0].device if places else None)

    def step(self, gradients: Sequence[Tensor], betas: tuple[float, float]) -> None:
        if not self.places:
            return
        self.count += 1
        # The kernel walks through memory: a gradient in another layout would move the wrong entries.
        own = [gradients[i].contiguous() for i in self.places]
        fused_adam_(
            self.parameters, own, self.means, self.squares, self.count, lr=self.lr, betas=betas, decay=self.decay
        )

    def state(self) -> dict[str, Tensor]:
        named = {"mean": self.means, "square": self.squares}
        state = {f"{name}.{i}": tensor for name, tensors in named.items() for i, tensor in enumerate(tensors)}
        return {**state, "count": self.count}
