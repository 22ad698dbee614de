"""What is checked of a distribution: shapes always, numbers where a look at them is cheap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["on_host", "require_alike", "require_numbers", "require_params"]


def on_host(x: Tensor) -> bool:
    """Whether a look at the numbers is cheap and possible: on a CPU, and neither compiled, traced nor transformed."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not (torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack())


def require_params(dist: Any, *, width: int | None = None, halves: str = "") -> None:
    """Check the parameters of a distribution that is being made; what they hold is not looked at.

    Args:
        dist: whose `params` are checked.
        width: of the last dimension; None for any.
        halves: what its two halves are, if it has two.

    Raises:
        TypeError: they are no tensor of floating-point numbers.
        ValueError: they have no last dimension, or one of another width.
    """
    params, family = dist.params, type(dist).__name__
    if not isinstance(params, Tensor) or not params.is_floating_point():
        what = str(params.dtype) if isinstance(params, Tensor) else type(params).__name__
        raise TypeError(f"params of {family} are {what}, expected a tensor of floating-point numbers")
    last = params.shape[-1] if params.dim() else 0
    if last == 0 or (width is not None and last != width) or (halves and last % 2):
        wanted = f"an even number, {halves}" if halves else width or "at least 1"
        raise ValueError(f"params of {family} have shape {tuple(params.shape)}, expected a last dimension of {wanted}")


def require_numbers(dist: Any, *, finite: bool = True) -> None:
    """Raises ValueError where a parameter is NaN, or, if they have to be finite, infinite; on a CPU, in eager code."""
    params = dist.params.detach()
    if not on_host(params):
        return
    good = params.isfinite() if finite else ~params.isnan()
    if not good.all():
        at = (~good).nonzero()[0].tolist()
        raise ValueError(
            f"params{at} of {type(dist).__name__} is {float(params[tuple(at)])}, expected "
            f"{'a finite number' if finite else 'a number'}; was a logarithm taken of a negative number, or has training diverged?"
        )


def require_alike(left: Any, right: Any, names: Sequence[str] = ()) -> None:
    """Raises ValueError unless two distributions are of one family, with equal widths and equal fields of these names."""
    told = [
        (type(each).__name__, each.params.shape[-1], *(getattr(each, name, None) for name in names))
        if hasattr(each, "params")
        else (type(each).__name__,)
        for each in (left, right)
    ]
    if told[0] != told[1]:
        ours, theirs = (" ".join(map(str, each)) for each in told)
        raise ValueError(f"two distributions are compared that are not of one family and width: {ours}, and {theirs}")
