"""Standard noise, and the Gumbel-max construction that several families share."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "gumbel_log_density",
    "gumbel_noise",
    "gumbels_given_argmax",
    "logistic_noise",
    "noise_given_gumbels",
]


def _open_uniform(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Uniform float64 in the open interval (0, 1); MPS has no float64 and falls back to float32."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    u = torch.rand(shape, dtype=dtype, generator=generator, device=device)
    return u.clamp(min=torch.finfo(dtype).eps / 2)


def gumbel_noise(
    shape: tuple[int, ...], generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """`[*]` standard Gumbel noise in float32, -log E with E ~ Exp(1): no value is infinite.

    Args:
        shape: `[*]`.
        generator: torch's global one by default.
        device: where the noise is drawn, that of the generator.
    """
    return _open_uniform(shape, generator, torch.device(device)).neg_().log1p_().neg_().log_().neg_().float()


def logistic_noise(
    shape: tuple[int, ...], generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """`[*]` standard logistic noise in float32, log u - log(1 - u): no value is infinite.

    Args:
        shape, generator, device: as in `gumbel_noise`.
    """
    u = _open_uniform(shape, generator, torch.device(device))
    return (u.log() - torch.log1p(-u)).float()


def gumbels_given_argmax(log_probs: Tensor, index: Tensor, gumbel: Tensor) -> Tensor:
    """Gumbels at locations log p_i, given that the largest stands at `index` (last dimension).

    The largest of them is a Gumbel at location logsumexp(log p) = 0, whatever its index. The others are Gumbels
    truncated at it: z_i = -log(E_i / p_i + E_b) with E = exp(-gumbel) standard exponentials, which is
    g_b - softplus(g_b - g_i - log p_i).
    """
    index = index.unsqueeze(-1)
    top = gumbel.gather(-1, index)
    # Rounding can lift a truncated Gumbel onto the largest one: measured from just below it, so that H(z~) = b.
    below = torch.nextafter(top, torch.full_like(top, -math.inf))
    rest = below - F.softplus((top - gumbel) - log_probs)
    return rest.scatter(-1, index, top.to(rest.dtype))


def noise_given_gumbels(log_probs: Tensor, index: Tensor, z: Tensor) -> Tensor:
    """The Gumbel noise from which `gumbels_given_argmax` makes z, whose largest entry stands at `index`."""
    index = index.unsqueeze(-1)
    top = z.gather(-1, index)
    gap = (top - z).clamp(min=torch.finfo(z.dtype).tiny)
    rest = top - log_probs - (gap + torch.log(-torch.expm1(-gap)))
    return rest.scatter(-1, index, top.to(rest.dtype))


def gumbel_log_density(x: Tensor) -> Tensor:
    """Log-density of standard Gumbel noise, element by element."""
    return -x - torch.exp(-x)
