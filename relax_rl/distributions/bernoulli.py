"""Independent bits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from relax_rl.distributions.checks import on_host, require_alike, require_numbers, require_params
from relax_rl.distributions.discrete import FAR, HIDDEN, divergence, every_combination
from relax_rl.distributions.noise import logistic_noise

__all__ = ["Bernoulli"]


@dataclass(frozen=True, eq=False)
class Bernoulli:
    """`P` independent bits at logits `params`, relaxed by a logistic variable.

    Samples are `[*, P]` of 0 and 1 in the type of `params`; z = logits + logistic noise, H(z) = 1[z > 0]. A logit of
    inf or -inf fixes a bit: its entropy and all of its derivatives are 0, and its z stands near 1000 or -1000.
    """

    params: Tensor

    def __post_init__(self) -> None:
        require_params(self)

    def with_params(self, params: Tensor) -> Bernoulli:
        return replace(self, params=params)

    @property
    def _locations(self) -> Tensor:
        """`[*, P]` of z: the logits, finite and constant where they are infinite."""
        return self.params.clamp(-FAR, FAR)

    def sample_noise(self, generator: torch.Generator | None = None) -> Tensor:
        require_numbers(self, finite=False)
        return logistic_noise(tuple(self.params.shape), generator, self.params.device)

    def relax(self, noise: Tensor) -> Tensor:
        return self._locations + noise

    def noise_of(self, z: Tensor) -> Tensor:
        return (z - self._locations).detach()

    def threshold(self, z: Tensor) -> Tensor:
        return (z > 0).to(self.params.dtype)

    def relax_given(self, sample: Tensor, noise: Tensor) -> Tensor:
        # With v = sigmoid(noise): log(v / ((1 - v)(1 - p)) + 1) for b = 1, -log(v / ((1 - v) p) + 1) for b = 0.
        sign = 2 * sample - 1
        return sign * F.softplus(noise + F.softplus(sign * self._locations))

    def noise_given(self, sample: Tensor, z: Tensor) -> Tensor:
        sign, size = 2 * sample - 1, z.detach().abs().clamp(min=torch.finfo(z.dtype).tiny)
        return size + torch.log(-torch.expm1(-size)) - F.softplus(sign * self._locations.detach())

    def relaxed_log_prob(self, z: Tensor) -> Tensor:
        x = z - self._locations
        return -(x + 2 * F.softplus(-x)).sum(-1)

    def log_prob(self, sample: Tensor) -> Tensor:
        """`[*]` log p(b).

        Raises:
            ValueError: when a number is below 0 or above 1; looks at a CPU's numbers alone.
        """
        _check_bits(sample)
        return F.logsigmoid((2 * sample - 1) * self.params).sum(-1)

    def score(self, sample: Tensor) -> Tensor:
        return sample - torch.sigmoid(self.params.detach())

    def entropy(self) -> Tensor:
        # -(1 - p) log(1 - p) - p log p: a sum of positive terms, so that nothing cancels where p is close to 0 or 1.
        x = self._locations
        return (torch.sigmoid(-x) * F.softplus(x) + torch.sigmoid(x) * F.softplus(-x)).sum(-1)

    def kl_divergence(self, other: Bernoulli) -> Tensor:
        """`[*]` KL(self || other) in nats; infinite where `other` fixes a bit that is not fixed alike here.

        Raises:
            ValueError: when the other is of another family or width.
        """
        require_alike(self, other)
        ones, zeros = (divergence(F.logsigmoid(s * self.params), F.logsigmoid(s * other.params)) for s in (1, -1))
        return (ones + zeros).sum(-1)

    def cdf(self, sample: Tensor) -> Tensor:
        """`[*, P]` the probability that each bit is at most what it is in `sample`."""
        _check_bits(sample)
        return torch.where(sample < 1, torch.sigmoid(-self.params), torch.ones_like(self.params))

    def mode(self) -> Tensor:
        return self.threshold(self.params)

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(self.params)

    def with_mean(self, mean: Tensor) -> Bernoulli:
        return self.with_params(torch.logit(mean))

    def soften(self, z: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        return torch.sigmoid(z / temperature)

    def pull_back(self, slope: Tensor, z: Tensor) -> Tensor:
        return slope * (z.abs() < HIDDEN)

    def conditional_weight(self, sample: Tensor, z_tilde: Tensor) -> Tensor:
        return -torch.expm1(-z_tilde.abs()) * torch.sigmoid((2 * sample - 1) * self.params.detach())

    def soften_slope(self, relaxed: Tensor, vector: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        return relaxed * (1 - relaxed) * vector / temperature

    def embed(self, sample: Tensor) -> Tensor:
        return sample

    def support(self) -> Tensor:
        """`[2^P, P]`: for few bits."""
        return every_combination([2] * self.params.shape[-1], self.params.device).to(self.params.dtype)


def _check_bits(sample: Tensor) -> None:
    if on_host(sample) and sample.numel():
        low, high = sample.detach().aminmax()
        if low < 0 or high > 1:
            raise ValueError(
                f"bits are numbers from 0 to 1, but the sample has {float(low if low < 0 else high):g}: give outcomes of "
                "the distribution"
            )
