"""Distribution functions of counts: incomplete gamma and beta functions with both tails, in float64 and without graph."""

from __future__ import annotations

import torch
from torch import Tensor

from relax_rl.distributions.checks import on_host

__all__ = ["beta_tails", "gamma_tails"]

_TERMS = 1000
_UNSEEN_TERMS = 300
"""Where no look at the numbers says when to stop."""
_CLOSE = 1e-14


@torch.no_grad()
def gamma_tails(a: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """P(a, x) and Q(a, x) = 1 - P(a, x), the regularised incomplete gamma functions; each to its own digits."""
    return torch.special.gammainc(a, x), torch.special.gammaincc(a, x)


@torch.no_grad()
def beta_tails(a: Tensor, b: Tensor, log_x: Tensor, log_y: Tensor) -> tuple[Tensor, Tensor]:
    """I_x(a, b) and 1 - I_x(a, b), the regularised incomplete beta functions; the smaller one to its own digits.

    The continued fraction 8.17.22 of the Digital Library of Mathematical Functions, by Lentz's method, on that side of the
    mean where it converges fast: in the order of sqrt(max(a, b)) terms.

    Args:
        a, b: above 0.
        log_x, log_y: logarithms of x and of 1 - x.
    """
    below = log_x.exp() < (a + 1.0) / (a + b + 2.0)
    a, b = torch.where(below, a, b), torch.where(below, b, a)
    log_x, log_y = torch.where(below, log_x, log_y), torch.where(below, log_y, log_x)
    log_front = a * log_x + b * log_y + torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b) - a.log()
    small = (log_front.exp() * _fraction(a, b, log_x.exp())).clamp(0.0, 1.0)
    return torch.where(below, small, 1.0 - small), torch.where(below, 1.0 - small, small)


def _fraction(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """a B(a, b) I_x(a, b) / (x^a (1 - x)^b), whose denominators stay above 0 on this side of the mean."""
    c = torch.ones_like(x)
    d = 1.0 / (1.0 - (a + b) * x / (a + 1.0))
    h = d
    seen = on_host(x)
    for m in range(1, _TERMS if seen else _UNSEEN_TERMS):
        even = m * (b - m) * x / ((a + (2 * m - 1)) * (a + 2 * m))
        d, c = 1.0 / (1.0 + even * d), 1.0 + even / c
        h = h * d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + (2 * m + 1)))
        d, c = 1.0 / (1.0 + odd * d), 1.0 + odd / c
        ratio = d * c
        h = h * ratio
        if seen and bool(((ratio - 1.0).abs() < _CLOSE).all()):
            break
    return h
