"""Functions of tensors recorded as CUDA graphs, whose kernels are launched all at once instead of one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Recording", "others_like"]

_WARM_UP = 3
"""Calls before the recording, in which libraries choose their algorithms and take their memory."""


class Recording:
    """A function as it was recorded: the same kernels on the same memory at every call.

    Whatever it decides by Python or by numbers on the host stands as it was when it was recorded; calling it with
    `others_like` its examples tells whether that makes a difference.

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


def others_like(examples: Sequence[Tensor]) -> list[Tensor]:
    """Inputs that differ from these in every place, for which whole numbers, images and masks are what they should be."""
    return [x.flip(0) if x.dim() else x + 0.5 for x in examples]
