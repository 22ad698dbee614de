"""One-hot vectors and lists of outcomes, made on the device of what they belong to and without a value on the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["every_combination", "one_hot"]


def one_hot(index: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """`[*]` indices -> `[*, count]` rows of the identity."""
    return (index.unsqueeze(-1) == torch.arange(count, device=index.device)).to(dtype)


def every_combination(sizes: Sequence[int], device: torch.device) -> Tensor:
    """`[prod(sizes), len(sizes)]` every choice of one index below each size; the last one moves fastest."""
    axes = torch.meshgrid(*(torch.arange(size, device=device) for size in sizes), indexing="ij")
    return torch.stack(axes, -1).reshape(-1, len(sizes))
