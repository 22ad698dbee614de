"""Parameters laid out flat, and optimisers on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from relax_rl.errors import SettingsError

__all__ = [
    "OPTIMIZERS",
    "Adam",
    "FlatParameters",
    "GroupedAdam",
    "Optimizer",
    "RMSprop",
    "clip_scale",
    "flat",
    "learning",
    "pieces",
]


class FlatParameters:
    """Parameters as views of one tensor, each in its own layout in memory, or row by row where it has gaps.

    Clipping, the optimiser's step and averaging over processes then cost a few kernels instead of a few per parameter,
    which for small networks is most of their time.

    Attributes:
        data: the tensor that holds them all.
        parameters: its views.

    Raises:
        SettingsError: the parameters are of several types.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._sizes = [parameter.numel() for parameter in self.parameters]
        if len(types := {parameter.dtype for parameter in self.parameters}) > 1:
            raise SettingsError(
                f"parameters are of {' and '.join(sorted(map(str, types)))}, expected one type for all of a network"
            )
        self._orders = []
        self.data = self.parameters[0].detach().new_empty(sum(self._sizes))
        for parameter, place in zip(self.parameters, self.data.split(self._sizes), strict=True):
            dense = _is_dense(parameter)
            self._orders.append(_order_in_memory(parameter) if dense else None)
            view = place.as_strided(parameter.shape, parameter.stride()) if dense else place.view(parameter.shape)
            view.copy_(parameter.detach())
            parameter.data = view

    def __deepcopy__(self, memo: dict[int, Any]) -> FlatParameters:
        """Of the copied parameters, which would be no views otherwise."""
        return FlatParameters(deepcopy(self.parameters, memo))

    def hold(self) -> bool:
        """Whether the parameters are still views of `data`."""
        pairs = zip(self.parameters, self.data.split(self._sizes), strict=True)
        return all(x.data_ptr() == place.data_ptr() for x, place in pairs if place.numel())

    def flatten(self, gradients: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
        """One gradient a parameter as one tensor, laid out like `data`; written to `out` if that is given."""
        pieces = zip(gradients, self._orders, strict=True)
        laid_out = [x if order is None else x.permute(order) for x, order in pieces]
        if out is not None:
            return torch.cat([x.reshape(-1) for x in laid_out], out=out)
        flat: Tensor = torch._C._nn.flatten_dense_tensors(laid_out)
        return flat

    def unflatten(self, data: Tensor) -> list[Tensor]:
        """The parameters in a tensor that is laid out like `data`, as leaves that ask for a gradient."""
        leaves = []
        for parameter, order, piece in zip(self.parameters, self._orders, data.split(self._sizes), strict=True):
            if order is None:
                leaf = piece.detach().view(parameter.shape)
            else:
                back = [order.index(dim) for dim in range(len(order))]
                leaf = piece.detach().view([parameter.shape[dim] for dim in order]).permute(back)
            leaves.append(leaf.requires_grad_())
        return leaves


def _is_dense(parameter: Tensor) -> bool:
    """Whether its numbers lie in memory without gaps, and each for itself: what is a slice of a larger tensor does not."""
    step = 1
    for stride, size in sorted(zip(parameter.stride(), parameter.shape, strict=True)):
        if size > 1 and stride != step:
            return False
        step *= size
    return True


def _order_in_memory(parameter: Tensor) -> list[int] | None:
    """Dimensions as they lie in memory, outermost first (channels last for convolutions); None if that is their order."""
    order = sorted(range(parameter.dim()), key=parameter.stride, reverse=True)
    return None if order == list(range(parameter.dim())) else order


def learning(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module but for those that are frozen, `requires_grad_(False)`."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def clip_scale(norm: Tensor, max_norm: float) -> Tensor:
    """What a gradient of this norm is multiplied by so that its norm is `max_norm` at most."""
    return (max_norm / norm).clamp(max=1.0)


class Optimizer(Protocol):
    """Steps one `FlatParameters` down a gradient."""

    def step(self, gradient: Tensor, factor: float = 1.0) -> None:
        """One step, with the learning rate times `factor`; `gradient` is laid out like the parameters' `data`."""

    def state_dict(self) -> dict[str, Tensor]:
        """The state as tensors."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave; ValueError if it belongs to other parameters."""


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1): the numbers of `torch.optim.Adam(fused=True)`, in one kernel on one tensor.

    torch's optimiser prepares each of its steps in Python, which for small networks takes longer than the kernel.

    Args:
        parameters: what moves.
        lr: learning rate.
        betas: decays of the averages of the gradient and of its square.
        eps: added to the root of the second.
        decay: L2 decay of the parameters, added to their gradients.
    """

    def __init__(
        self,
        parameters: FlatParameters,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        decay: float = 0.0,
    ) -> None:
        self.parameters, self.lr, self.betas, self.eps, self.decay = parameters, lr, betas, eps, decay
        self.steps = 0
        self.mean, self.square = torch.zeros_like(parameters.data), torch.zeros_like(parameters.data)
        self._count = torch.zeros((), dtype=torch.float32, device=parameters.data.device)

    @torch.no_grad()
    def step(self, gradient: Tensor, factor: float = 1.0) -> None:
        self.steps += 1
        torch._fused_adam_(
            [self.parameters.data],
            [gradient],
            [self.mean],
            [self.square],
            [],
            [self._count.fill_(self.steps)],
            lr=self.lr * factor,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.decay,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "square": self.square, "steps": torch.tensor(self.steps, dtype=torch.int64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        _require(state, "mean", "square", "steps")
        _restore(self.mean, state["mean"])
        _restore(self.square, state["square"])
        self.steps = int(state["steps"])


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
        self._sizes = [adam.mean.numel() for adam in self._adams.values()]

    @property
    def flats(self) -> list[FlatParameters]:
        """The parameters of all groups that have any."""
        return [adam.parameters for adam in self._adams.values()]

    def step(self, gradient: Tensor) -> None:
        """One step down the gradients of all groups, one after the other in one flat tensor."""
        for adam, part in zip(self._adams.values(), gradient.split(self._sizes), strict=True):
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


class RMSprop:
    """RMSprop (Tieleman and Hinton 2012) with the constants A2C is usually run with; as `torch.optim.RMSprop`."""

    def __init__(self, parameters: FlatParameters, *, lr: float, decay: float = 0.99, eps: float = 1e-5) -> None:
        self.parameters, self.lr, self.decay, self.eps = parameters, lr, decay, eps
        self.square = torch.zeros_like(parameters.data)
        self._denominator = torch.empty_like(parameters.data)

    @torch.no_grad()
    def step(self, gradient: Tensor, factor: float = 1.0) -> None:
        self.square.mul_(self.decay).addcmul_(gradient, gradient, value=1.0 - self.decay)
        denominator = torch.sqrt(self.square, out=self._denominator).add_(self.eps)
        self.parameters.data.addcdiv_(gradient, denominator, value=-self.lr * factor)

    def state_dict(self) -> dict[str, Tensor]:
        return {"square": self.square}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        _require(state, "square")
        _restore(self.square, state["square"])


OPTIMIZERS = {"adam": Adam, "rmsprop": RMSprop}
"""By the names that settings know."""


def _require(state: Mapping[str, Tensor], *names: str) -> None:
    if state.keys() != set(names):
        raise ValueError(f"an optimiser's state holds {', '.join(sorted(state))}, expected {', '.join(sorted(names))}")


def _restore(target: Tensor, source: Tensor) -> None:
    if target.shape != source.shape:
        raise ValueError(f"an optimiser's state is for {source.numel()} parameters, there are {target.numel()}")
    target.copy_(source)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Several tensors as one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def pieces(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """`flat` undone: views of a vector, shaped like those tensors."""
    each = zip(vector.split([x.numel() for x in like]), like, strict=True)
    return [piece.view(x.shape) for piece, x in each]
