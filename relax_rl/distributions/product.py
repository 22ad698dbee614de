"""Several distributions side by side, of continuous and of discrete outcomes alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from relax_rl.distributions.checks import require_params
from relax_rl.distributions.from_torch import TorchDistribution

__all__ = ["Product"]


@dataclass(frozen=True, eq=False)
class _Part:
    """One factor, and how many entries of each vector are its own.

    Attributes:
        family: one of its kind; the parameters do not matter.
        params, noise, relaxed, embedded: entries of its parameters, base noise, relaxed sample and embedded outcome.
        sample: entries of its outcome, None for a single number without a dimension of its own.
        dtype: of its outcome.
    """

    family: Any
    params: int
    noise: int
    relaxed: int
    embedded: int
    sample: int | None
    dtype: torch.dtype

    @property
    def discrete(self) -> bool:
        return hasattr(self.family, "relax_given")

    @property
    def sloped(self) -> bool:
        """Whether the derivatives of z, and of z~ where there is one, are known."""
        return hasattr(self.family, "pull_back") and (not self.discrete or hasattr(self.family, "conditional_weight"))


def _part(dist: Any) -> _Part:
    """How the vectors of a distribution are built, found out on one draw at parameters of 0."""
    if isinstance(dist, TorchDistribution):
        raise ValueError(
            f"torch.distributions.{type(dist.dist).__name__} cannot be a factor, for its noise is the state of a generator "
            "and not one entry a row: make it a draw of a StochasticGraph"
        )
    family = dist.with_params(torch.zeros((1, dist.params.shape[-1]), dtype=dist.params.dtype, device="cpu"))
    noise = family.sample_noise(torch.Generator())
    z = family.relax(noise)
    sample = family.threshold(z)
    return _Part(
        family=family,
        params=family.params.shape[-1],
        noise=noise.shape[-1],
        relaxed=z.shape[-1],
        embedded=family.embed(sample).shape[-1],
        sample=sample.shape[-1] if sample.dim() == 2 else None,
        dtype=sample.dtype,
    )


@dataclass(frozen=True, eq=False)
class Product:
    """Independent factors; `params`, noise, z and samples are those of one factor after the other, in one vector.

    Samples are `[*, S]` in the type of `params`, whole numbers among them. A factor of continuous outcomes is its own
    relaxed sample: z~ given b is b itself there and stands still, so that

        RELAX   g = (f(b) - c(z~)) dlog p(b) + dc(z) - dc(z~),    z~ = (x, z~_d) where z = (x, z_d) and b = (x, H(z_d))

    is LAX in the continuous factors and RELAX in the discrete ones, in one estimate with one surrogate of all of them. It is
    unbiased by the argument for either: given x, z~_d is a z_d given b; and x moves with the parameters in c(z) alone.

    Orders, subsets and ranks are factors as any other; they do not know the derivatives of z~ in closed form, and a product
    with one of them takes them from a graph, as their own estimates do.

    Make it by `Product.of`.

    Args:
        params: `[*, P]`.
        parts: how the vectors are built; `with_params` hands it on.
    """

    params: Tensor
    parts: tuple[_Part, ...]

    def __post_init__(self) -> None:
        require_params(self, width=sum(part.params for part in self.parts))

    @classmethod
    def of(cls, *factors: Any) -> Product:
        """The product of some distributions of this package, or of others that have the same methods.

        Raises:
            ValueError: when there is none, their parameters `[*, P]` lead with other dimensions, or one of them is of
                torch.distributions, whose noise is not one entry a row.
        """
        rows = {tuple(factor.params.shape[:-1]) for factor in factors}
        if len(rows) != 1:
            told = ", ".join(str(tuple(factor.params.shape)) for factor in factors) or "none"
            raise ValueError(f"the factors' parameters have shapes {told}, expected alike but for the last dimension")
        return cls(torch.cat([factor.params for factor in factors], -1), tuple(_part(factor) for factor in factors))

    def with_params(self, params: Tensor) -> Product:
        return replace(self, params=params)

    @property
    def factors(self) -> tuple[Any, ...]:
        """The distributions, each at its own entries of `params`; made anew, with the graph if there is one now."""
        split = self.params.split([part.params for part in self.parts], -1)
        return tuple(part.family.with_params(own) for part, own in zip(self.parts, split, strict=True))

    @property
    def sloped(self) -> bool:
        """Whether the derivatives of the relaxation are known of every factor: `pull_back` and `conditional_weight`."""
        return all(part.sloped for part in self.parts)

    @property
    def one_hot(self) -> bool:
        """Whether outcomes are vectors in the space of their relaxation."""
        return all(getattr(factor, "one_hot", True) for factor in self.factors)

    def sample_noise(self, generator: torch.Generator | None = None) -> Tensor:
        return torch.cat([factor.sample_noise(generator) for factor in self.factors], -1)

    def relax(self, noise: Tensor) -> Tensor:
        return self._each("relax", self._noises(noise))

    def noise_of(self, z: Tensor) -> Tensor:
        return self._each("noise_of", self._relaxed(z))

    def threshold(self, z: Tensor) -> Tensor:
        return self._joined(f.threshold(own) for f, own in zip(self.factors, self._relaxed(z), strict=True))

    def relax_given(self, sample: Tensor, noise: Tensor) -> Tensor:
        """z~; its continuous entries are the sample's."""
        return self._given(sample, self._noises(noise), lambda f, b, own: f.relax_given(b, own), lambda part, b, own: b)

    def noise_given(self, sample: Tensor, z: Tensor) -> Tensor:
        """The noise from which `relax_given` makes z; 0 for continuous entries, which ask for none."""
        return self._given(
            sample,
            self._relaxed(z),
            lambda f, b, own: f.noise_given(b, own),
            lambda part, b, own: own.new_zeros((*own.shape[:-1], part.noise)),
        )

    def relaxed_log_prob(self, z: Tensor) -> Tensor:
        """`[*]` log-density of z, up to a term without `params` where a continuous outcome is squashed."""
        every = zip(self.parts, self.factors, self._relaxed(z), strict=True)
        return _sum(f.relaxed_log_prob(own) if part.discrete else f.log_prob(own) for part, f, own in every)

    def log_prob(self, sample: Tensor) -> Tensor:
        """`[*]` the sum of those of the factors."""
        return _sum(f.log_prob(b) for f, b in zip(self.factors, self.samples(sample), strict=True))

    def score(self, sample: Tensor) -> Tensor:
        return self._each("score", self.samples(sample))

    def entropy(self) -> Tensor:
        return _sum(factor.entropy() for factor in self.factors)

    def kl_divergence(self, other: Product) -> Tensor:
        """`[*]` KL(self || other) in nats, the sum over factors.

        Raises:
            ValueError: when the other is of other factors.
        """
        theirs = other.factors if isinstance(other, Product) else (other,)
        if len(theirs) != len(self.factors):
            raise ValueError(f"two products are compared of {len(self.factors)} and of {len(theirs)} factors")
        return _sum(f.kl_divergence(g) for f, g in zip(self.factors, theirs, strict=True))

    def cdf(self, sample: Tensor) -> Tensor:
        """`[*, S]` for each entry of an outcome (each choice) the probability that it is at most what it is here."""
        return self._joined(f.cdf(b) for f, b in zip(self.factors, self.samples(sample), strict=True))

    def mode(self) -> Tensor:
        return self._joined(factor.mode() for factor in self.factors)

    def soften(self, z: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        return self._each("soften", self._relaxed(z), temperature)

    def embed(self, sample: Tensor) -> Tensor:
        return self._each("embed", self.samples(sample))

    def pull_back(self, slope: Tensor, z: Tensor) -> Tensor:
        every = zip(self.factors, self._relaxed(slope), self._relaxed(z), strict=True)
        return torch.cat([f.pull_back(own, at) for f, own, at in every], -1)

    def conditional_weight(self, sample: Tensor, z_tilde: Tensor) -> Tensor:
        return self._given(
            sample,
            self._relaxed(z_tilde),
            lambda f, b, own: f.conditional_weight(b, own),
            lambda part, b, own: torch.zeros_like(own),
        )

    def soften_slope(self, relaxed: Tensor, vector: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        softened = relaxed.split([part.embedded for part in self.parts], -1)
        every = zip(self.factors, softened, self._relaxed(vector), strict=True)
        return torch.cat([f.soften_slope(own, along, temperature) for f, own, along in every], -1)

    @property
    def mean(self) -> Tensor:
        """`[*, F]` E[embed(b)].

        Raises:
            ValueError: when a factor is continuous.
        """
        self._require_finite("mean")
        return torch.cat([factor.mean for factor in self.factors], -1)

    def with_mean(self, mean: Tensor) -> Product:
        self._require_finite("with_mean")
        split = mean.split([part.embedded for part in self.parts], -1)
        made = [f.with_mean(own).params for f, own in zip(self.factors, split, strict=True)]
        return self.with_params(torch.cat(made, -1))

    def support(self) -> Tensor:
        """`[M, S]` every outcome of one distribution: for few and small factors.

        Raises:
            ValueError: when a factor is continuous.
        """
        self._require_finite("support")
        tables = [f.support() for f in self.factors]
        chosen = torch.cartesian_prod(*(torch.arange(len(table), device=table.device) for table in tables))
        chosen = chosen.reshape(-1, len(tables))
        return self._joined(table[chosen[:, k]] for k, table in enumerate(tables))

    def samples(self, sample: Tensor) -> tuple[Tensor, ...]:
        """The outcomes of the factors, each in its own shape and type, of `[*, S]`."""
        split = sample.split([1 if part.sample is None else part.sample for part in self.parts], -1)
        return tuple(
            (own.squeeze(-1) if part.sample is None else own).to(part.dtype if part.discrete else own.dtype)
            for part, own in zip(self.parts, split, strict=True)
        )

    def _joined(self, samples: Any) -> Tensor:
        """`[*, S]` of outcomes of the factors, in the type of `params`."""
        every = zip(self.parts, samples, strict=True)
        dtype = self.params.dtype
        return torch.cat([(x.unsqueeze(-1) if part.sample is None else x).to(dtype) for part, x in every], -1)

    def _noises(self, noise: Tensor) -> tuple[Tensor, ...]:
        return tuple(noise.split([part.noise for part in self.parts], -1))

    def _relaxed(self, z: Tensor) -> tuple[Tensor, ...]:
        return tuple(z.split([part.relaxed for part in self.parts], -1))

    def _each(self, method: str, split: Sequence[Tensor], *more: Any) -> Tensor:
        """What a method of the factors makes of their own entries, joined."""
        made = [getattr(f, method)(own, *more) for f, own in zip(self.factors, split, strict=True)]
        return torch.cat(made, -1)

    def _given(
        self,
        sample: Tensor,
        split: Sequence[Tensor],
        discrete: Callable[[Any, Tensor, Tensor], Tensor],
        continuous: Callable[[_Part, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """What each factor, by its kind, makes of its outcome and of its own entries of another vector, joined."""
        every = zip(self.parts, self.factors, self.samples(sample), split, strict=True)
        return torch.cat(
            [discrete(f, b, own) if part.discrete else continuous(part, b, own) for part, f, b, own in every], -1
        )

    def _require_finite(self, method: str) -> None:
        for part in self.parts:
            if not part.discrete or not hasattr(type(part.family), method):
                raise ValueError(
                    f"the outcomes of a product with {type(part.family).__name__} cannot be listed: take an estimator that "
                    "samples"
                )


def _sum(terms: Any) -> Tensor:
    total: Tensor = torch.stack(list(terms)).sum(0)
    return total
