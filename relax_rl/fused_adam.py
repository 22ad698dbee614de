"""The kernel behind every Adam of this package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["fused_adam_"]


@torch.no_grad()
def fused_adam_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    count: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float = 1e-8,
    decay: float = 0.0,
) -> None:
    """One step of Adam (Kingma and Ba 2015, algorithm 1) in one kernel, in place: the numbers of `torch.optim.Adam(fused=True)`.

    torch's optimiser prepares each of its steps in Python, which for small networks takes longer than the kernel.

    Args:
        parameters, gradients, means, squares: contiguous tensors of one device, in the same order; the last two are the
            moving averages of the gradient and of its square.
        count: steps taken, this one included, as a float32 scalar on the same device.
        lr: learning rate.
        betas: decays of the two averages.
        eps: added to the root of the second.
        decay: L2 decay of parameters, added to their gradients.
    """
    torch._fused_adam_(
        list(parameters),
        list(gradients),
        list(means),
        list(squares),
        [],
        [count] * len(parameters),
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=decay,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )
