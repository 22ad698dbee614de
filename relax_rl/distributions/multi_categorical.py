"""Several categoricals side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from relax_rl.distributions.checks import require_alike, require_params
from relax_rl.distributions.discrete import (
    FAR,
    broadcast_rows,
    check_possible,
    cumulative,
    divergence,
    every_combination,
    one_hot,
    visible,
)
from relax_rl.distributions.noise import (
    gumbel_log_density,
    gumbel_noise,
    gumbels_given_argmax,
    noise_given_gumbels,
)

__all__ = ["MultiCategorical"]


@dataclass(frozen=True, eq=False)
class MultiCategorical:
    """`K` independent categoricals with `nvec[k]` outcomes each.

    `params`, z and noise are `[*, sum(nvec)]`, factor after factor. Samples are int64 `[*, K]`, or with `one_hot` one
    one-hot vector after the other, `[*, sum(nvec)]` in the type of `params`. A logit of -inf masks a choice, as for
    `Categorical`.
    """

    params: Tensor
    nvec: tuple[int, ...]
    one_hot: bool = False

    def __post_init__(self) -> None:
        require_params(self, width=sum(self.nvec))

    def with_params(self, params: Tensor) -> MultiCategorical:
        return replace(self, params=params)

    @property
    def _equal(self) -> bool:
        return all(n == self.nvec[0] for n in self.nvec)

    def _pad(self, flat: Tensor, fill: float) -> Tensor:
        """`[*, sum(nvec)]` -> `[*, K, max(nvec)]`, missing outcomes filled."""
        width = max(self.nvec)
        if self._equal:
            return flat.reshape(*flat.shape[:-1], len(self.nvec), width)
        return torch.stack([F.pad(x, (0, width - x.shape[-1]), value=fill) for x in flat.split(self.nvec, -1)], -2)

    def _flat(self, padded: Tensor) -> Tensor:
        """`[*, K, max(nvec)]` -> `[*, sum(nvec)]`."""
        if self._equal:
            return padded.flatten(-2)
        return torch.cat([padded[..., k, :n] for k, n in enumerate(self.nvec)], -1)

    @property
    def log_probs(self) -> Tensor:
        """`[*, K, max(nvec)]` normalised log-probabilities, -inf for missing and for masked choices."""
        return F.log_softmax(self._pad(self.params, -math.inf), dim=-1)

    @property
    def _locations(self) -> Tensor:
        """`[*, K, max(nvec)]` of z: the log-probabilities, finite and constant where they are -inf."""
        return self.log_probs.clamp(min=-FAR)

    def require_possible(self) -> None:
        """Raises ValueError where every choice of a factor is masked, as sampling does; on a CPU, in eager code."""
        check_possible(self._pad(self.params, -math.inf))

    def sample_noise(self, generator: torch.Generator | None = None) -> Tensor:
        self.require_possible()
        return gumbel_noise(tuple(self.params.shape), generator, self.params.device)

    def relax(self, noise: Tensor) -> Tensor:
        return self._flat(self._locations) + noise

    def noise_of(self, z: Tensor) -> Tensor:
        return (z - self._flat(self._locations)).detach()

    def threshold(self, z: Tensor) -> Tensor:
        return self._sample(self._pad(z, -math.inf).argmax(-1))

    def relax_given(self, sample: Tensor, noise: Tensor) -> Tensor:
        return self._flat(gumbels_given_argmax(self._locations, self._index(sample), self._pad(noise, 0.0)))

    def noise_given(self, sample: Tensor, z: Tensor) -> Tensor:
        locations, padded = self._locations.detach(), self._pad(z.detach(), -FAR)
        return self._flat(noise_given_gumbels(locations, self._index(sample), padded))

    def relaxed_log_prob(self, z: Tensor) -> Tensor:
        return gumbel_log_density(z - self._flat(self._locations)).sum(-1)

    def log_prob(self, sample: Tensor) -> Tensor:
        index, log_probs = broadcast_rows(self._index(sample), self.log_probs)
        return log_probs.gather(-1, index.unsqueeze(-1)).squeeze(-1).sum(-1)

    def score(self, sample: Tensor) -> Tensor:
        return (self.embed(sample) - self.mean).detach()

    def entropy(self) -> Tensor:
        log_probs = self._locations
        return -(log_probs.exp() * log_probs).sum((-2, -1))

    def kl_divergence(self, other: MultiCategorical) -> Tensor:
        """`[*]` KL(self || other) in nats, the sum over factors; infinite as for `Categorical`.

        Raises:
            ValueError: when the other is of another family or has other factors, or a factor of either leaves no choice.
        """
        require_alike(self, other, ("nvec",))
        self.require_possible()
        other.require_possible()
        return divergence(self.log_probs, other.log_probs).sum((-2, -1))

    def cdf(self, sample: Tensor) -> Tensor:
        """`[*, K]` for each factor the probability of this choice or one before it."""
        return cumulative(self.log_probs.exp(), self._index(sample))

    def mode(self) -> Tensor:
        return self.threshold(self.params)

    @property
    def mean(self) -> Tensor:
        return self._flat(self.log_probs.exp())

    def with_mean(self, mean: Tensor) -> MultiCategorical:
        return self.with_params(mean.log())

    def soften(self, z: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        return self._flat(F.softmax(self._pad(z / temperature, -math.inf), dim=-1))

    def pull_back(self, slope: Tensor, z: Tensor) -> Tensor:
        slope = visible(slope, z)
        return slope - self.mean.detach() * self._sum(slope)

    def conditional_weight(self, sample: Tensor, z_tilde: Tensor) -> Tensor:
        return -torch.expm1(z_tilde - self._sum(z_tilde * self.embed(sample)))

    def soften_slope(self, relaxed: Tensor, vector: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        weighted = relaxed * vector
        return (weighted - relaxed * self._sum(weighted)) / temperature

    def embed(self, sample: Tensor) -> Tensor:
        return sample if self.one_hot else self._one_hot(sample)

    def support(self) -> Tensor:
        """`[M, ...]` with M = prod(nvec): for few and small factors."""
        return self._sample(every_combination(self.nvec, self.params.device))

    def _sum(self, x: Tensor) -> Tensor:
        """`[*, sum(nvec)]` for each entry the sum over its factor."""
        if self._equal:
            padded = self._pad(x, 0.0)
            return self._flat(padded.sum(-1, keepdim=True).expand_as(padded))
        parts = [part.sum(-1, keepdim=True).expand_as(part) for part in x.split(self.nvec, -1)]
        return torch.cat(parts, -1)

    def _one_hot(self, index: Tensor) -> Tensor:
        return self._flat(one_hot(index, max(self.nvec), self.params.dtype))

    def _sample(self, index: Tensor) -> Tensor:
        return self._one_hot(index) if self.one_hot else index

    def _index(self, sample: Tensor) -> Tensor:
        return self._pad(sample, -1.0).argmax(-1) if self.one_hot else sample
