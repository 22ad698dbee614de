"""Positive numbers and shares: gamma and Dirichlet variables.

The logarithm of a gamma variable of a small concentration has a standard deviation of about 1 / concentration, and numbers below 1e-38 are that number in
float32: at a concentration of 0.1 two in ten thousand are, at 0.05 one in a hundred, at 0.02 one in six, and estimates by
the score are biased there. In float64 it is one in a million at 0.02.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from relax_rl.distributions.checks import require_alike, require_numbers, require_params
from relax_rl.distributions.gamma_variables import TRIES, accepted, proposals, proposed_for

__all__ = ["Dirichlet", "Gamma"]


def _gamma_noise(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """`[*shape, 13]` flattened by one: proposals for a gamma variable at a concentration above 1, and what lowers it by 1."""
    boost = torch.empty((*shape, 1), device=like.device, dtype=like.dtype).exponential_(generator=generator)
    return torch.cat([proposals(shape, like, generator).flatten(-2), boost], -1).flatten(-2)


def _log_gammas(concentration: Tensor, noise: Tensor) -> Tensor:
    """`[*, D]` logarithms of gamma variables: G(a) = G(a + 1) U^(1 / a), which any concentration a > 0 allows."""
    noise = noise.unflatten(-1, (-1, 2 * TRIES + 1))
    gamma, _ = accepted(concentration + 1.0, noise[..., :-1].unflatten(-1, (TRIES, 2)))
    return gamma.log() - noise[..., -1] / concentration


def _noise_for(concentration: Tensor, gamma: Tensor) -> Tensor:
    """Noise of which `_log_gammas` makes the logarithms of these gamma variables."""
    first = proposed_for(concentration + 1.0, gamma).flatten(-2)
    return torch.cat([first, torch.zeros_like(first[..., :1])], -1).flatten(-2)


@torch.library.custom_op("relax_rl::gamma_slope", mutates_args=())
def _gamma_slope(x: Tensor, concentration: Tensor, total: Tensor) -> Tensor:
    """torch's implicit derivatives, as one operation of graphs and of maps: of gamma variables where `total` is empty, and
    of the shares in a Dirichlet variable of this total concentration."""
    known = torch.float64 if x.dtype == torch.float64 else torch.float32  # torch has them for no others
    at, a, of_all = (each.to(known).contiguous() for each in (x, concentration, total))
    found: Tensor = torch._dirichlet_grad(at, a, of_all) if total.numel() else torch._standard_gamma_grad(a, at)
    return found.to(x.dtype)


@_gamma_slope.register_fake
def _(x: Tensor, concentration: Tensor, total: Tensor) -> Tensor:
    return torch.empty_like(x)


@_gamma_slope.register_vmap
def _(info: Any, dims: Any, *tensors: Tensor) -> tuple[Tensor, int]:
    moved = [x if dim is None else x.movedim(dim, 0) for x, dim in zip(tensors, dims, strict=True)]
    of_gamma = not moved[2].numel()
    same = torch.broadcast_tensors(*moved[: 2 if of_gamma else 3])
    return _gamma_slope(*same, moved[2]) if of_gamma else _gamma_slope(*same), 0


@dataclass(frozen=True, eq=False)
class Gamma:
    """Independent gamma variables; `params` is `[*, 2 D]`, log concentrations and then log rates.

    Samples are `[*, D]`, above 0, and their own relaxed sample. Noise `[*, 13 D]` is what proposals are made of; a sample
    so made jumps where another proposal is accepted. What `relax` and `pull_back` give is the implicit derivative
    -(dF(x) / da) / p(x) at the sample (Figurnov et al. 2018), which is torch's, right to 4 digits or so, and depends on the
    sample alone. A second derivative in `params` there is none; estimators need none.
    """

    params: Tensor

    def __post_init__(self) -> None:
        require_params(self, halves="log concentrations and then log rates")

    def with_params(self, params: Tensor) -> Gamma:
        return replace(self, params=params)

    @property
    def concentration(self) -> Tensor:
        """`[*, D]`"""
        return self.params.chunk(2, -1)[0].exp()

    @property
    def rate(self) -> Tensor:
        """`[*, D]`"""
        return self.params.chunk(2, -1)[1].exp()

    @property
    def mean(self) -> Tensor:
        """`[*, D]`"""
        log_concentration, log_rate = self.params.chunk(2, -1)
        return (log_concentration - log_rate).exp()

    def sample_noise(self, generator: torch.Generator | None = None) -> Tensor:
        require_numbers(self)
        return _gamma_noise((*self.params.shape[:-1], self.params.shape[-1] // 2), self.params, generator)

    def relax(self, noise: Tensor) -> Tensor:
        with torch.no_grad():
            log_rate = self.params.chunk(2, -1)[1]
            x = (_log_gammas(self.concentration, noise) - log_rate).exp().clamp(min=torch.finfo(noise.dtype).tiny)
        if not self.params.requires_grad:
            return x
        slopes = self._slopes(x)
        of_concentration, of_rate = (slopes * (self.params - self.params.detach())).chunk(2, -1)
        return x + of_concentration + of_rate

    def noise_of(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            return _noise_for(self.concentration, z * self.rate)

    def threshold(self, z: Tensor) -> Tensor:
        return z

    def log_prob(self, sample: Tensor) -> Tensor:
        a, log_rate = self.concentration, self.params.chunk(2, -1)[1]
        log_x = sample.log() + log_rate  # of the sample in units of its scale
        return (a * log_x - log_x.exp() - torch.lgamma(a) - sample.log()).sum(-1)

    def score(self, sample: Tensor) -> Tensor:
        a, log_rate = self.concentration.detach(), self.params.detach().chunk(2, -1)[1]
        log_x = sample.log() + log_rate
        return torch.cat([a * (log_x - torch.digamma(a)), a - log_x.exp()], -1)

    def entropy(self) -> Tensor:
        a, log_rate = self.concentration, self.params.chunk(2, -1)[1]
        return (a - log_rate + torch.lgamma(a) + (1.0 - a) * torch.digamma(a)).sum(-1)

    def kl_divergence(self, other: Gamma) -> Tensor:
        """`[*]` KL(self || other) in nats.

        Raises:
            ValueError: when the other is of another family or width.
        """
        require_alike(self, other)
        a, b, log_ratio = self.concentration, other.concentration, (other.params - self.params).chunk(2, -1)[1]
        of_shape = (a - b) * torch.digamma(a) - torch.lgamma(a) + torch.lgamma(b)
        return (of_shape - b * log_ratio + a * torch.expm1(log_ratio)).sum(-1)

    def cdf(self, sample: Tensor) -> Tensor:
        """`[*, D]` for each number the probability of at most this much, without graph."""
        below: Tensor = torch.special.gammainc(self.concentration.detach(), sample.detach() * self.rate.detach())
        return below

    def mode(self) -> Tensor:
        return (self.concentration - 1.0).clamp(min=0.0) / self.rate

    def soften(self, z: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        return z

    def embed(self, sample: Tensor) -> Tensor:
        return sample

    def pull_back(self, slope: Tensor, z: Tensor) -> Tensor:
        return torch.cat([slope, slope], -1) * self._slopes(z)

    def soften_slope(self, relaxed: Tensor, vector: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        return vector

    def _slopes(self, x: Tensor) -> Tensor:
        """`[*, 2 D]` dx / dparams, entry by entry."""
        with torch.no_grad():
            a, rate = self.concentration, self.rate
            each = torch.broadcast_tensors(x * rate, a)
            return torch.cat([_gamma_slope(*each, x.new_empty(0)) * a / rate, -x], -1)


@dataclass(frozen=True, eq=False)
class Dirichlet:
    """Shares that sum to 1; `params` is `[*, K]`, log concentrations.

    Samples are `[*, K]` and their own relaxed sample: gamma variables over their sum. Noise is `[*, 13 K]`, and the
    derivative is the implicit one, torch's, as with `Gamma`.
    """

    params: Tensor

    def __post_init__(self) -> None:
        require_params(self)

    def with_params(self, params: Tensor) -> Dirichlet:
        return replace(self, params=params)

    @property
    def concentration(self) -> Tensor:
        """`[*, K]`"""
        return self.params.exp()

    @property
    def mean(self) -> Tensor:
        """`[*, K]`"""
        return self.params.softmax(-1)

    def sample_noise(self, generator: torch.Generator | None = None) -> Tensor:
        require_numbers(self)
        return _gamma_noise(tuple(self.params.shape), self.params, generator)

    def relax(self, noise: Tensor) -> Tensor:
        with torch.no_grad():
            x = _log_gammas(self.concentration, noise).softmax(-1).clamp(min=torch.finfo(noise.dtype).tiny)
        if not self.params.requires_grad:
            return x
        slopes = self._slopes(x)
        # dx_i = sum_k (1[i = k] - x_i) s_k dparams_k: what a share gains, all of them give in proportion.
        moved = slopes * (self.params - self.params.detach())
        return x + (moved - x * moved.sum(-1, keepdim=True))

    def noise_of(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            return _noise_for(self.concentration, z * self.concentration.sum(-1, keepdim=True))

    def threshold(self, z: Tensor) -> Tensor:
        return z

    def log_prob(self, sample: Tensor) -> Tensor:
        a = self.concentration
        return ((a - 1.0) * sample.log() - torch.lgamma(a)).sum(-1) + torch.lgamma(a.sum(-1))

    def score(self, sample: Tensor) -> Tensor:
        a = self.concentration.detach()
        return a * (sample.log() - torch.digamma(a) + torch.digamma(a.sum(-1, keepdim=True)))

    def entropy(self) -> Tensor:
        a = self.concentration
        total = a.sum(-1)
        normaliser = torch.lgamma(a).sum(-1) - torch.lgamma(total)
        return normaliser + (total - a.shape[-1]) * torch.digamma(total) - ((a - 1.0) * torch.digamma(a)).sum(-1)

    def kl_divergence(self, other: Dirichlet) -> Tensor:
        """`[*]` KL(self || other) in nats.

        Raises:
            ValueError: when the other is of another family or width.
        """
        require_alike(self, other)
        a, b = self.concentration, other.concentration
        log_ratio = torch.digamma(a) - torch.digamma(a.sum(-1, keepdim=True))
        terms = torch.lgamma(b) - torch.lgamma(a) + (a - b) * log_ratio
        return terms.sum(-1) + torch.lgamma(a.sum(-1)) - torch.lgamma(b.sum(-1))

    def mode(self) -> Tensor:
        """The mean, the customary choice: the densest point may be on the border, however much lies elsewhere."""
        return self.mean

    def soften(self, z: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        return z

    def embed(self, sample: Tensor) -> Tensor:
        return sample

    def pull_back(self, slope: Tensor, z: Tensor) -> Tensor:
        return (slope - (z * slope).sum(-1, keepdim=True)) * self._slopes(z)

    def soften_slope(self, relaxed: Tensor, vector: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        return vector

    def _slopes(self, x: Tensor) -> Tensor:
        """`[*, K]` what each share gains with its own parameter, before all of them give in proportion."""
        with torch.no_grad():
            a = self.concentration
            slopes: Tensor = _gamma_slope(*torch.broadcast_tensors(x, a, a.sum(-1, keepdim=True))) * a
            return slopes
