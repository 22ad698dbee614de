"""One of several outcomes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from relax_rl.distributions.checks import require_alike, require_params
from relax_rl.distributions.discrete import (
    broadcast_rows,
    cumulative,
    divergence,
    one_hot,
    visible,
)
from relax_rl.distributions.gumbel_perturbed import GumbelPerturbed
from relax_rl.distributions.noise import (
    gumbels_given_argmax,
    noise_given_gumbels,
)

__all__ = ["Categorical"]


@dataclass(frozen=True, eq=False)
class Categorical(GumbelPerturbed):
    """One of `P` outcomes, relaxed by the Gumbel-max construction.

    z and noise are `[*, P]`, z = log_softmax(logits) + Gumbel noise, H = argmax. Samples are int64 `[*]`, or with
    `one_hot` the rows of the identity `[*, P]` in the type of `params`, for an f that is defined between the outcomes.
    A logit of -inf masks a choice: its probability, its entropy and all of its derivatives are 0, and its z stands
    near -1000.
    """

    params: Tensor
    one_hot: bool = False

    def __post_init__(self) -> None:
        require_params(self)

    def with_params(self, params: Tensor) -> Categorical:
        return replace(self, params=params)

    def threshold(self, z: Tensor) -> Tensor:
        return self._sample(z.argmax(-1))

    def relax_given(self, sample: Tensor, noise: Tensor) -> Tensor:
        return gumbels_given_argmax(self._locations, self._index(sample), noise)

    def noise_given(self, sample: Tensor, z: Tensor) -> Tensor:
        return noise_given_gumbels(self._locations.detach(), self._index(sample), z.detach())

    def log_prob(self, sample: Tensor) -> Tensor:
        index, log_probs = broadcast_rows(self._index(sample), self.log_probs)
        return log_probs.gather(-1, index.unsqueeze(-1)).squeeze(-1)

    def score(self, sample: Tensor) -> Tensor:
        index, minus_probs = broadcast_rows(self._index(sample), -F.softmax(self.params.detach(), dim=-1))
        index = index.unsqueeze(-1)
        return minus_probs.scatter_add(-1, index, torch.ones_like(index, dtype=minus_probs.dtype))

    def entropy(self) -> Tensor:
        log_probs = self._locations
        return -(log_probs.exp() * log_probs).sum(-1)

    def kl_divergence(self, other: Categorical) -> Tensor:
        """`[*]` KL(self || other) in nats; infinite where `other` masks a choice that is possible here.

        Raises:
            ValueError: when the other is of another family or width, or a row of either leaves no choice.
        """
        require_alike(self, other)
        self.require_possible()
        other.require_possible()
        return divergence(self.log_probs, other.log_probs).sum(-1)

    def cdf(self, sample: Tensor) -> Tensor:
        """`[*]` the probability of this choice or one before it."""
        return cumulative(self.mean, self._index(sample))

    def mode(self) -> Tensor:
        return self._sample(self.params.argmax(-1))

    @property
    def mean(self) -> Tensor:
        return F.softmax(self.params, dim=-1)

    def with_mean(self, mean: Tensor) -> Categorical:
        return self.with_params(mean.log())

    def soften(self, z: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        return F.softmax(z / temperature, dim=-1)

    def pull_back(self, slope: Tensor, z: Tensor) -> Tensor:
        slope = visible(slope, z)
        return slope - self.mean.detach() * _sum(slope)

    def conditional_weight(self, sample: Tensor, z_tilde: Tensor) -> Tensor:
        return -torch.expm1(z_tilde - z_tilde.amax(-1, keepdim=True))  # the largest entry is that of the outcome

    def soften_slope(self, relaxed: Tensor, vector: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        weighted = relaxed * vector
        return (weighted - relaxed * _sum(weighted)) / temperature

    def embed(self, sample: Tensor) -> Tensor:
        return sample if self.one_hot else self._one_hot(sample)

    def support(self) -> Tensor:
        return self._sample(torch.arange(self.params.shape[-1], device=self.params.device))

    def _one_hot(self, index: Tensor) -> Tensor:
        return one_hot(index, self.params.shape[-1], self.params.dtype)

    def _sample(self, index: Tensor) -> Tensor:
        return self._one_hot(index) if self.one_hot else index

    def _index(self, sample: Tensor) -> Tensor:
        return sample.argmax(-1) if self.one_hot else sample


def _sum(x: Tensor) -> Tensor:
    return x.sum(-1, keepdim=True)
