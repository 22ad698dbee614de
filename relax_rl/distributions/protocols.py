"""What the estimators ask of a distribution. A new one plugs in by offering these methods; it inherits nothing.

Shapes: `params` is `[*, P]`; every leading dimension counts independent distributions, and a sample, noise or
relaxed sample has one entry for each of them.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch
from torch import Tensor

__all__ = ["Distribution", "FiniteDistribution", "RelaxedDistribution", "SlopedDistribution", "SlopedRelaxation"]

Self = TypeVar("Self", bound="Distribution")


class Distribution(Protocol):
    """A family at unconstrained parameters, with a reparameterised sample behind each outcome."""

    @property
    def params(self) -> Tensor:
        """`[*, P]` unconstrained parameters."""

    def with_params(self: Self, params: Tensor) -> Self:
        """The same family at other parameters `[*, P]`."""

    def sample_noise(self, generator: torch.Generator | None = None) -> Tensor:
        """`[*, ...]` standard noise for one sample of each, on the device of `params`; by torch's global generator if none is given."""

    def relax(self, noise: Tensor) -> Tensor:
        """`[*, ...]` z, differentiable in `params`."""

    def noise_of(self, z: Tensor) -> Tensor:
        """`[*, ...]` the noise from which `relax` makes z: its inverse, without graph."""

    def threshold(self, z: Tensor) -> Tensor:
        """`[*, ...]` b = H(z), the outcome; z itself where outcomes are continuous."""

    def log_prob(self, sample: Tensor) -> Tensor:
        """`[*]` log p(b) (log-density for continuous outcomes); rows of samples and of `params` broadcast."""

    def score(self, sample: Tensor) -> Tensor:
        """`[*, P]` dlog p(b) / dparams in closed form, without graph."""

    def entropy(self) -> Tensor:
        """`[*]` entropy in nats."""

    def mode(self) -> Tensor:
        """`[*, ...]` the most probable outcome."""

    def soften(self, z: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """`[*, F]` a relaxed outcome: z through a softmax or sigmoid for discrete outcomes, so that it is bounded."""

    def embed(self, sample: Tensor) -> Tensor:
        """`[*, F]` an outcome in the space of `soften`, which comes close to it as the temperature falls."""


class RelaxedDistribution(Distribution, Protocol):
    """A distribution of discrete outcomes, whose z can be sampled given b."""

    def relax_given(self, sample: Tensor, noise: Tensor) -> Tensor:
        """`[*, ...]` z~ ~ p(z | b), differentiable in `params`; its noise is independent of the one behind b."""

    def noise_given(self, sample: Tensor, z: Tensor) -> Tensor:
        """`[*, ...]` the noise from which `relax_given` makes z for this outcome: its inverse, without graph."""

    def relaxed_log_prob(self, z: Tensor) -> Tensor:
        """`[*]` log-density of z."""


class FiniteDistribution(RelaxedDistribution, Protocol):
    """A discrete distribution whose outcomes can be listed."""

    @property
    def mean(self) -> Tensor:
        """`[*, F]` E[embed(b)], the probabilities."""

    def with_mean(self: Self, mean: Tensor) -> Self:
        """The same family with this `mean` `[*, F]`."""

    def support(self) -> Tensor:
        """`[M, ...]` every outcome of one distribution, as samples."""


class SlopedDistribution(Distribution, Protocol):
    """A distribution that has the derivatives of its relaxation in closed form.

    With them an estimate and the gradient of its variance need no graph.
    """

    def pull_back(self, slope: Tensor, z: Tensor) -> Tensor:
        """`[*, P]` (dz/dparams)' slope, in closed form: from slopes `[*, ...]` in z = relax(noise) to the parameters."""

    def soften_slope(self, relaxed: Tensor, vector: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """`[*, F]` S vector with S = dsoften(z)/dz, a symmetric matrix, at relaxed = soften(z)."""


class SlopedRelaxation(SlopedDistribution, RelaxedDistribution, Protocol):
    """The same for discrete outcomes."""

    def conditional_weight(self, sample: Tensor, z_tilde: Tensor) -> Tensor:
        """`[*, ...]` what each entry of dz~/dparams is of that of dz/dparams, the noise of z~ = relax_given(sample, noise) held.

        So `pull_back(weight * slope)` is that of z~.
        """
