"""Adam on groups of parameters, with a state by parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from relax_rl.compute.optimizers import Adam, FlatParameters

__all__ = ["GroupedAdam", "flat", "pieces"]


class GroupedAdam:
    """Adam (Kingma and Ba 2015) with a learning rate and a decay of its own for each group of parameters.

    Args:
        groups: the parameters of each, by the names that their moments are saved under; there may be none.
        lrs, decays: learning rate and L2 decay of each.
        betas: decays of the moments.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, nn.Parameter]],
        *,
        lrs: Sequence[float],
        decays: Sequence[float],
        betas: tuple[float, float],
    ) -> None:
        self._adams: dict[str, Adam] = {}
        self._names: dict[str, list[str]] = {}
        for i, (group, lr, decay) in enumerate(zip(groups, lrs, decays, strict=True)):
            if group:
                self._adams[f"{i}"] = Adam(FlatParameters(group.values()), lr=lr, betas=betas, decay=decay)
                self._names[f"{i}"] = list(group)

    @property
    def flats(self) -> list[FlatParameters]:
        """The parameters of all groups that have any."""
        return [adam.parameters for adam in self._adams.values()]

    def step(self, gradient: Tensor) -> None:
        """One step down the gradients of all groups, one after the other in one flat tensor."""
        parts = gradient.split([adam.mean.numel() for adam in self._adams.values()])
        for adam, part in zip(self._adams.values(), parts, strict=True):
            adam.step(part)

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and step counts: `0.mean.2` is of the parameter "2" of the first group."""
        state: dict[str, Tensor] = {}
        for key, adam in self._adams.items():
            for kind in ("mean", "square"):
                each = pieces(getattr(adam, kind), adam.parameters.parameters)
                state |= {f"{key}.{kind}.{name}": x for name, x in zip(self._names[key], each, strict=True)}
            state[f"{key}.count"] = torch.tensor(float(adam.steps))
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            KeyError, ValueError: it belongs to other parameters.
        """
        for key, adam in self._adams.items():
            moments = {k: flat([state[f"{key}.{k}.{name}"] for name in self._names[key]]) for k in ("mean", "square")}
            adam.load_state_dict({**moments, "steps": state[f"{key}.count"]})


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Several tensors as one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def pieces(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """`flat` undone: views of a vector, shaped like those tensors."""
    each = zip(vector.split([x.numel() for x in like]), like, strict=True)
    return [piece.view(x.shape) for piece, x in each]
