"""How estimators draw: at a detached copy of the parameters, so that nothing but `Estimate.backward` reaches theta."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from relax_rl.distributions import Distribution
from relax_rl.estimators.gradients import check_rows, score_function

__all__ = ["Draw", "Objective", "as_phi", "detached", "draw", "require", "require_vectors", "score_of"]

D = TypeVar("D", bound=Distribution)

Objective = Callable[[Tensor], Tensor] | Tensor
"""f: a function of a batch of samples, or its `[*]` values already known for the sample that `noise` gives."""


@dataclass(frozen=True)
class Draw(Generic[D]):
    """One outcome for every row, or `[K, *]` of them.

    Attributes:
        dist: the distribution at its parameters, without the graph behind them.
        noise: the base noise of the sample.
        sample: b = H(z), without graph.
        value: f(b), with the graph of f's own dependence on theta.
        known_z: the relaxed sample, where it had to be made for the outcome.
        known_score: dlog p(b) / dparams, where it is at hand.
    """

    dist: D
    noise: Tensor
    sample: Tensor
    value: Tensor
    known_z: Tensor | None = None
    known_score: Tensor | None = None

    @property
    def z(self) -> Tensor:
        """The relaxed sample, without graph."""
        return self.dist.relax(self.noise) if self.known_z is None else self.known_z

    def through_z(self, surrogate: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """c(z) as a function of the parameters, z = T(params, noise)."""
        return lambda params: surrogate(self.dist.with_params(params).relax(self.noise))

    @property
    def score(self) -> Tensor:
        """`[*, P]` dlog p(b) / dparams, without graph."""
        return score_of(self.dist, self.sample) if self.known_score is None else self.known_score


def detached(dist: D, num_samples: int | None = None) -> D:
    """`dist` without the graph behind its parameters `[*, P]`; `[K, *, P]` for K independent samples of each row."""
    params = dist.params.detach()
    if num_samples is not None:
        params = params.expand(num_samples, *params.shape)
    return dist.with_params(params)


def score_of(dist: Distribution, sample: Tensor) -> Tensor:
    """`[*, P]` dlog p(b) / dparams, without graph: in closed form where the distribution knows it."""
    if hasattr(dist, "score"):
        return dist.score(sample)
    return score_function(lambda params: dist.with_params(params).log_prob(sample), dist.params)


def draw(
    f: Objective,
    dist: D,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    num_samples: int | None = None,
    sample: Tensor | None = None,
    score: Tensor | None = None,
) -> Draw[D]:
    """Sample, and ask f.

    Args:
        f: a function of the samples, or its values for the sample that `noise` gives; the graph of given values is not
            followed.
        noise: the base noise of the sample; drawn from `generator` by default.
        num_samples: K for `[K, *]` samples.
        sample: the sample that `noise` gives, where it is at hand.
        score: `[*, P]` dlog p(sample) / dparams, where it is at hand.

    Raises:
        ValueError: when f is given by its values but the noise of the sample is not, a sample is given without its
            noise, or f does not give one number a row.
    """
    here = detached(dist, num_samples)
    if noise is None:
        if isinstance(f, Tensor):
            raise ValueError("f is given by its values: pass the noise of the sample that they belong to")
        if sample is not None:
            raise ValueError("a sample is given: pass the noise that it was made from")
        noise = here.sample_noise(generator)
    z = None
    if sample is None:
        z = here.relax(noise)
        sample = here.threshold(z)
    value = f.detach() if isinstance(f, Tensor) else f(sample)
    check_rows(here.params.shape[:-1], f=value)
    return Draw(here, noise, sample, value, z, score)


def require_vectors(dist: Distribution) -> None:
    """Raises ValueError unless outcomes live in the space of their relaxation, where f can be asked between them."""
    if getattr(dist, "one_hot", True) is False:
        raise ValueError(
            f"f is asked at relaxed samples, which are vectors of probabilities: use {type(dist).__name__}(..., one_hot=True)"
        )


def require(dist: Distribution, method: str, estimator: str, instead: str) -> None:
    """Raises ValueError if the distribution lacks what the estimator needs."""
    if not hasattr(dist, method):
        raise ValueError(f"{estimator} needs {method}, which {type(dist).__name__} lacks: {instead}")


def as_phi(phi: Tensor | Iterable[Tensor] | None) -> tuple[Tensor, ...] | None:
    """Parameters as a tuple; a generator such as `module.parameters()` is read once."""
    if phi is None:
        return None
    return (phi,) if isinstance(phi, Tensor) else tuple(phi)
