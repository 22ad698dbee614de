"""The way back through a graph, for gradients that are known at its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["pull_back"]


def pull_back(
    outputs: Sequence[Tensor], gradients: Sequence[Tensor], inputs: Iterable[Tensor], *, keep_graph: bool = False
) -> list[Tensor]:
    """Gradients at `inputs` of what has these `gradients` at `outputs`; zeros at what no output depends on.

    As `torch.autograd.grad(outputs, inputs, gradients, materialize_grads=True)`, straight from the engine: torch's own way
    there imports its symbolic shapes to compare those of outputs and gradients, half a second of a run's start.

    Raises:
        ValueError: if a gradient has another shape than its output.
    """
    for output, gradient in zip(outputs, gradients, strict=True):
        if output.shape != gradient.shape:
            raise ValueError(f"the gradient has shape {list(gradient.shape)}, the output {list(output.shape)}")
    at = tuple(inputs)
    found = torch.autograd.Variable._execution_engine.run_backward(
        tuple(outputs), tuple(gradients), keep_graph, False, at, allow_unreachable=True, accumulate_grad=False
    )
    return [torch.zeros_like(x) if gradient is None else gradient for x, gradient in zip(at, found, strict=True)]
