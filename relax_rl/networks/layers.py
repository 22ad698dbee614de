"""What layers are made of: activations and initial weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ACTIVATIONS", "is_exactly", "orthogonal", "tanh"]

_MANY = 8192
"""Elements from which three passes of cheap operations beat one of `torch.tanh` on a CPU."""


class _Tanh(torch.autograd.Function):
    """tanh x = 2 sigmoid(2 x) - 1, to 2e-7: on a CPU PyTorch's sigmoid is far cheaper than its tanh."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.sigmoid(2.0 * x).mul_(2.0).sub_(1.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(grad, y)  # type: ignore[no-any-return]


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent, by the cheapest way for its size."""
    if torch.compiler.is_compiling() or x.numel() < _MANY or x.is_cuda:
        return torch.tanh(x)
    if not (x.requires_grad and torch.is_grad_enabled()):
        return _Tanh.forward(x)
    result: Tensor = _Tanh.apply(x)
    return result


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": tanh, "relu": F.relu, "silu": F.silu, "elu": F.elu}


LayerT = TypeVar("LayerT", nn.Linear, nn.Conv2d)
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def is_exactly(module: Any, *kinds: type[ModuleT]) -> TypeGuard[ModuleT]:
    """Whether a module computes what one of these classes does: no subclass, no parametrized weights, no hook, no call of its own.

    What has a cheaper way round `forward` takes it for such modules alone.
    """
    own = getattr(module, "_forward_hooks", None) or getattr(module, "_forward_pre_hooks", None)
    return type(module) in kinds and not own and "forward" not in vars(module)


def orthogonal(layer: LayerT, gain: float) -> LayerT:
    """Orthogonal weights at `gain` and zero bias, in place; returns the layer."""
    nn.init.orthogonal_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
