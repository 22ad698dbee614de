"""Outcomes between bounds: the beta distribution, unimodal on (0, 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from relax_rl.distributions.checks import require_alike, require_numbers, require_params
from relax_rl.distributions.gamma_variables import TRIES, accepted, proposals, proposed_for

__all__ = ["Beta"]


@dataclass(frozen=True, eq=False)
class Beta:
    """Independent beta variables; `params` is `[*, 2 D]`, and the concentrations are alpha, beta = 1 + softplus(params).

    Both are above 1, so that the density has one mode and is 0 at the bounds (Chou et al. 2017). Samples are `[*, D]`
    within (0, 1), and their own relaxed sample.

    x = g / (g + h) with gamma variables g and h, each the first of a few proposals that is accepted (Marsaglia and Tsang
    2000); noise `[*, 24 D]` is what the proposals are made of. A sample so made jumps where another proposal is accepted,
    and its derivative is not that of the outcome's law. What `relax` and `pull_back` give is the implicit derivative

        dx / dalpha = -(dF(x) / dalpha) / p(x),

    of the sample that x = F^-1(u) would be (Figurnov et al. 2018), with F and p the distribution function and the density:
    it depends on the sample alone. A second derivative in `params` there is none; estimators and the gradient of their
    variance need none.
    """

    params: Tensor

    def __post_init__(self) -> None:
        require_params(self, halves="of alpha and then of beta")

    def with_params(self, params: Tensor) -> Beta:
        return replace(self, params=params)

    @property
    def concentrations(self) -> tuple[Tensor, Tensor]:
        """alpha and beta, each `[*, D]`."""
        alpha, beta = (1.0 + F.softplus(self.params)).chunk(2, -1)
        return alpha, beta

    @property
    def mean(self) -> Tensor:
        """`[*, D]`"""
        alpha, beta = self.concentrations
        return alpha / (alpha + beta)

    def sample_noise(self, generator: torch.Generator | None = None) -> Tensor:
        require_numbers(self)
        like = self.params
        return proposals((*like.shape[:-1], like.shape[-1] // 2, 2), like, generator).flatten(-4)

    def relax(self, noise: Tensor) -> Tensor:
        x = self._sample(noise)
        if not self.params.requires_grad:
            return x
        slopes = torch.cat(self._slopes(x), -1) * (self.params - self.params.detach())
        return x + sum(slopes.chunk(2, -1))

    @torch.no_grad()
    def _sample(self, noise: Tensor) -> Tensor:
        concentration = torch.stack(self.concentrations, -1)  # [*, D, 2]
        gamma, _ = accepted(concentration, noise.unflatten(-1, (-1, 2, TRIES, 2)))
        return _inside(gamma[..., 0] / gamma.sum(-1))

    @torch.no_grad()
    def noise_of(self, z: Tensor) -> Tensor:
        """Noise of which the first proposals, accepted whatever they are, make the gamma variables x and 1 - x in proportion."""
        concentration = torch.stack(self.concentrations, -1)
        gamma = torch.stack([z, 1.0 - z], -1) * concentration.sum(-1, keepdim=True)
        return proposed_for(concentration, gamma).flatten(-4)

    def threshold(self, z: Tensor) -> Tensor:
        return z

    def log_prob(self, sample: Tensor) -> Tensor:
        alpha, beta = self.concentrations
        return ((alpha - 1) * sample.log() + (beta - 1) * torch.log1p(-sample) - _log_beta(alpha, beta)).sum(-1)

    @torch.no_grad()
    def score(self, sample: Tensor) -> Tensor:
        alpha, beta = self.concentrations
        total = torch.digamma(alpha + beta)
        of_alpha = sample.log() - torch.digamma(alpha) + total
        of_beta = torch.log1p(-sample) - torch.digamma(beta) + total
        return torch.cat([of_alpha, of_beta], -1) * torch.sigmoid(self.params)

    def entropy(self) -> Tensor:
        alpha, beta = self.concentrations
        terms = (alpha - 1) * torch.digamma(alpha) + (beta - 1) * torch.digamma(beta)
        return (_log_beta(alpha, beta) - terms + (alpha + beta - 2) * torch.digamma(alpha + beta)).sum(-1)

    def kl_divergence(self, other: Beta) -> Tensor:
        """`[*]` KL(self || other) in nats.

        Raises:
            ValueError: when the other is of another family or width.
        """
        require_alike(self, other)
        # In float64, where there is one: what is left of these terms is smaller than their rounding where both are narrow.
        wide = self.params.dtype if self.params.device.type == "mps" else torch.float64
        here, there = (each.with_params(each.params.to(wide)) for each in (self, other))
        (alpha, beta), (alpha2, beta2) = here.concentrations, there.concentrations
        terms = (alpha - alpha2) * torch.digamma(alpha) + (beta - beta2) * torch.digamma(beta)
        total = (alpha2 - alpha + beta2 - beta) * torch.digamma(alpha + beta)
        found = (_log_beta(alpha2, beta2) - _log_beta(alpha, beta) + terms + total).sum(-1)
        return found.to(self.params.dtype)

    @torch.no_grad()
    def cdf(self, sample: Tensor) -> Tensor:
        """`[*, D]` for each dimension the probability of a sample of at most this much, without graph."""
        alpha, beta = self.concentrations
        density = torch.exp((alpha - 1) * sample.log() + (beta - 1) * torch.log1p(-sample) - _log_beta(alpha, beta))
        left, tail, _, _ = _tail(sample, alpha, beta)
        return torch.where(left, density * tail, 1.0 - density * tail)

    def mode(self) -> Tensor:
        """The mean, the customary deterministic action: the densest point may be a bound, however much lies elsewhere."""
        return self.mean

    def soften(self, z: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """`[*, D]` within (-1, 1), as surrogates see it."""
        return 2.0 * z - 1.0

    def pull_back(self, slope: Tensor, z: Tensor) -> Tensor:
        of_alpha, of_beta = self._slopes(z)
        return torch.cat([slope * of_alpha, slope * of_beta], -1)

    def soften_slope(self, relaxed: Tensor, vector: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        return 2.0 * vector

    def embed(self, sample: Tensor) -> Tensor:
        return 2.0 * sample - 1.0

    @torch.no_grad()
    def _slopes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """dx / dparams, of both halves `[*, D]`, without graph."""
        alpha, beta = self.concentrations
        left, _, of_own, of_other = _tail(x, alpha, beta)
        of_alpha, of_beta = torch.where(left, -of_own, of_other), torch.where(left, -of_other, of_own)
        first, second = torch.sigmoid(self.params).chunk(2, -1)
        return of_alpha * first, of_beta * second


def _inside(x: Tensor) -> Tensor:
    """Away from 0 and 1, where a density may be 0 and its logarithm infinite."""
    edge = torch.finfo(x.dtype).eps
    return x.clamp(edge, 1.0 - edge)


def _log_beta(alpha: Tensor, beta: Tensor) -> Tensor:
    return torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)


_NODES, _SPAN, _REACH, _NEWTON = 32, 2.7, 22.0, 2


def _tail(x: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Integrals of the density p, in units of p(x), from x to the bound that its mode does not lie before.

    With y the distance of x from that bound, a the concentration that belongs to it and b the other one, t = y exp(-s)
    makes of them integrals over s > 0 of a function that falls, log-concave, from 1:

        w(s) = p(t) t / (p(x) y) = exp(-a s) (1 + y (1 - exp(-s)) / (1 - y))^(b - 1).

    The tanh-sinh rule, up to where Newton's method finds w(s) = e^-22, is right to 4e-6 for concentrations from 1.002 to
    1000.

    Returns:
        whether the bound is 0; the integrals of p, of dp / da and of dp / db.
    """
    left = x * (alpha + beta - 2.0) < alpha - 1.0
    y = torch.where(left, x, 1.0 - x)
    a, b = torch.where(left, alpha, beta), torch.where(left, beta, alpha)
    ratio = y / (1.0 - y)
    end = (_REACH + (b - 1.0) * torch.log1p(ratio)) / a
    for _ in range(_NEWTON):  # from above, where a concave function is left in no step
        decay = torch.exp(-end)
        grown = 1.0 + ratio * (1.0 - decay)
        end = end - ((b - 1.0) * grown.log() - a * end + _REACH) / ((b - 1.0) * ratio * decay / grown - a)
    nodes, weights = _rule(x)
    s = end.unsqueeze(-1) * nodes
    other = torch.log1p(-ratio.unsqueeze(-1) * torch.expm1(-s))  # log((1 - t) / (1 - y))
    w = (end * y).unsqueeze(-1) * weights * torch.exp((b - 1.0).unsqueeze(-1) * other - a.unsqueeze(-1) * s)
    total = torch.digamma(a + b)
    at_a, at_b = y.log() - torch.digamma(a) + total, torch.log1p(-y) - torch.digamma(b) + total
    of_a, of_b = (w * (at_a.unsqueeze(-1) - s)).sum(-1), (w * (at_b.unsqueeze(-1) + other)).sum(-1)
    return left, w.sum(-1), of_a, of_b


def _rule(like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights `[32]` of an integral from 0 to 1: tanh-sinh, made on the device itself."""
    t = torch.linspace(-_SPAN, _SPAN, _NODES, dtype=like.dtype, device=like.device)
    inner = 0.5 * math.pi * t.sinh()
    weights = (0.5 * math.pi * _SPAN / (_NODES - 1)) * t.cosh() / inner.cosh().square()
    return 0.5 * (1.0 + inner.tanh()), weights
