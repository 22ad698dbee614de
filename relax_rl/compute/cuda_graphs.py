"""Functions of tensors recorded as CUDA graphs, whose kernels are launched all at once instead of one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Recording", "same_numbers"]

_WARM_UP = 3
"""Calls before the recording, in which libraries choose their algorithms and take their memory."""
_TOLERANCE = 0.01
"""Of the norm of an output, far above the rounding of sums in another order."""


class Recording:
    """A function as it was recorded: the same kernels on the same memory at every call.

    Whatever it decides by Python or by numbers on the host stands as it was when it was recorded; `same_numbers` tells
    whether that makes a difference.

    Args:
        function: of tensors on one GPU, without gradients and without waiting for the device.
        examples: of its arguments; later ones have these shapes.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], examples: Sequence[Tensor]) -> None:
        self._inputs = [x.detach().clone() for x in examples]
        with torch.no_grad(), torch.cuda.device(self._inputs[0].device):
            here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UP):
                    function(*self._inputs)
            here.wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._outputs = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the function gives for these inputs; nobody else's."""
        for place, x in zip(self._inputs, inputs, strict=True):
            place.copy_(x)
        self._graph.replay()
        return tuple(x.clone() for x in self._outputs)


def same_numbers(
    found: Callable[..., tuple[Tensor, ...]], function: Callable[..., tuple[Tensor, ...]], examples: Sequence[Tensor]
) -> bool:
    """Whether two functions agree, to rounding, at inputs that differ from these in every place.

    Args:
        found, function: of tensors.
        examples: of their arguments.
    """
    # Upside down, whole numbers, images and masks are still what they should be.
    others = [x.flip(0) if x.dim() else x + 0.5 for x in examples]
    with torch.no_grad():
        return all(_alike(x, y) for x, y in zip(found(*others), function(*others), strict=True))


def _alike(found: Tensor, expected: Tensor) -> bool:
    finite = torch.isfinite(expected)
    if not torch.equal(finite, torch.isfinite(found)):
        return False
    x, y = (torch.where(finite, each, 0.0).double() for each in (found, expected))
    return bool((x - y).norm() <= _TOLERANCE * y.norm())
