"""How estimators draw: at a detached copy of the parameters, so that nothing but `Estimate.backward` reaches theta."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from relax_rl.distributions import Distribution
from relax_rl.estimators.gradients import check_rows, score_function

__all__ = [
    "Draw",
    "Objective",
    "as_phi",
    "ask",
    "check_noise",
    "check_wrapped",
    "detached",
    "draw",
    "require",
    "require_moving",
    "require_temperature",
    "require_vectors",
    "score_of",
    "values_for",
]

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
    check_wrapped(dist)
    params = dist.params.detach()
    if num_samples is not None:
        params = params.expand(num_samples, *params.shape)
    return dist.with_params(params)


def score_of(dist: Distribution, sample: Tensor) -> Tensor:
    """`[*, P]` dlog p(b) / dparams, without graph: in closed form where the distribution knows it.

    Args:
        dist: with `[*, P]` parameters.
        sample: `[*, ...]` b.
    """
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
            noise, the noise is not that of these rows, or f does not give one number a row.
    """
    here, given = detached(dist, num_samples), noise
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
    check_noise(here, sample, noise=given)
    value = values_for(here, f.detach()) if isinstance(f, Tensor) else ask(f, here, sample)
    return Draw(here, noise, sample, value, z, score)


def check_noise(here: Distribution, outcome: Tensor, **given: Tensor | None) -> None:
    """Raises ValueError where noise that was given is of other rows than the parameters, or one entry of it would serve for several.

    Args:
        here: the distribution whose noise it is to be.
        outcome: a sample of it.
        given: noise by its name; None is none.
    """
    if hasattr(here, "without_relaxation"):  # whose noise is the state of a generator
        return
    rows = here.params.shape[:-1]
    for name, noise in given.items():
        if noise is None:
            continue
        alike = noise.shape[: len(rows)] == rows
        if alike and noise.dim() == here.params.dim() and noise.shape[-1] == 1 < here.params.shape[-1]:
            single = outcome.dim() == here.params.dim() and outcome.shape[-1] == 1
            alike = single or here.noise_of(here.relax(noise)).shape == noise.shape
        if not alike:
            raise ValueError(
                f"{name} has shape {list(noise.shape)}, which is not that of parameters {list(here.params.shape)}; see sample_noise"
            )


def require_temperature(temperature: Tensor | float) -> None:
    """Raises ValueError unless a temperature that is a number is above 0; of a tensor nothing is read."""
    if not isinstance(temperature, Tensor) and not temperature > 0.0:
        raise ValueError(f"temperature is {temperature:g}, expected above 0")


def values_for(dist: Distribution, value: Tensor, *outcomes: int) -> Tensor:
    """f's values, `[*outcomes, *]` with `dist.params` `[*, P]`; whole numbers and booleans in the type of the parameters.

    Raises:
        ValueError: when f does not give one number a row.
    """
    check_rows((*outcomes, *dist.params.shape[:-1]), f=value)
    return value if value.is_floating_point() else value.to(dist.params.dtype)


def ask(f: Callable[[Tensor], Tensor], dist: Distribution, sample: Tensor, *outcomes: int) -> Tensor:
    """f's values at a sample, as `values_for`; f gets the sample to itself, for what it does with it in place is no outcome."""
    return values_for(dist, f(sample.clone()), *outcomes)


def require_vectors(dist: Distribution) -> None:
    """Raises ValueError unless outcomes live in the space of their relaxation, where f can be asked between them."""
    check_wrapped(dist)
    if getattr(dist, "one_hot", True) is False:
        raise ValueError(
            f"f is asked at relaxed samples, which are vectors of probabilities: use {type(dist).__name__}(..., one_hot=True)"
        )


def require(dist: Distribution, method: str, estimator: str, instead: str) -> None:
    """Raises ValueError if the distribution lacks what the estimator needs."""
    check_wrapped(dist)
    if not hasattr(dist, method):
        if "relax" in method:
            instead = getattr(dist, "without_relaxation", instead)
        raise ValueError(f"{estimator} needs {method}, which {type(dist).__name__} lacks: {instead}")


def require_moving(dist: Distribution, estimator: str) -> None:
    """Raises ValueError if samples of the distribution do not move with its parameters, as some from elsewhere do not."""
    if getattr(dist, "reparameterized", True) is False:
        told = getattr(dist, "without_relaxation", "take an estimator by the score, such as reinforce")
        raise ValueError(f"{estimator} needs samples that move with the parameters: {told}")


def as_phi(phi: Tensor | Iterable[Tensor] | None) -> tuple[Tensor, ...] | None:
    """Parameters as a tuple; a generator such as `module.parameters()` is read once."""
    if phi is None:
        return None
    return (phi,) if isinstance(phi, Tensor) else tuple(phi)


_WRAPPERS = {
    "Bernoulli": "Bernoulli({}.logits)",
    "Categorical": "Categorical({}.logits)",
    "OneHotCategorical": "Categorical({}.logits, one_hot=True)",
    "RelaxedBernoulli": "Bernoulli({}.logits)",
    "RelaxedOneHotCategorical": "Categorical({}.logits, one_hot=True)",
    "Normal": "DiagGaussian(torch.cat([{0}.loc, {0}.scale.log()], -1))",
}
"""What stands for a class of `torch.distributions`, whose outcomes are the last dimension."""


def check_wrapped(dist: Any) -> None:
    """Raises TypeError for what has no `params`, as a distribution of `torch.distributions`."""
    if hasattr(dist, "params"):
        return
    inner, name = dist, "dist"
    while hasattr(inner, "base_dist") and type(inner).__name__ not in _WRAPPERS:
        inner, name = inner.base_dist, f"{name}.base_dist"
    kind = type(inner).__name__
    if type(inner).__module__.startswith("torch.distributions") and kind in _WRAPPERS:
        wrapped = _WRAPPERS[kind].format(name)
        raise TypeError(
            f"torch.distributions.{type(dist).__name__} lacks the relaxed sample that estimators need: wrap it as "
            f"relax_rl.distributions.{wrapped}"
        )
    hint = " (from_torch makes one of it)" if type(dist).__module__.startswith("torch.distributions") else ""
    raise TypeError(
        f"expected a distribution of relax_rl.distributions, or one that offers the same methods{hint}, not "
        f"{type(dist).__name__}"
    )
