"""Distributions of `torch.distributions`, with the methods that the estimators ask for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from relax_rl.distributions.bernoulli import Bernoulli
from relax_rl.distributions.categorical import Categorical
from relax_rl.distributions.counts import Binomial, Geometric, NegativeBinomial, Poisson
from relax_rl.distributions.gaussian import DiagGaussian
from relax_rl.distributions.multi_categorical import MultiCategorical
from relax_rl.distributions.positive import Dirichlet, Gamma

__all__ = ["TorchDistribution", "from_torch"]

Made = Callable[[Tensor], td.Distribution]


def from_torch(source: td.Distribution | Made, params: Tensor | None = None) -> Any:
    """A distribution of this package that stands for one of `torch.distributions`; gradients reach the tensors it was made of.

    Rows are its `batch_shape`. Samples have a last dimension of numbers: those of a scalar distribution are `[*, 1]`, and `Independent(dist, 1)` makes
    vectors of its last batch dimension. Those of `Categorical` alone are indices `[*]`.

    Args:
        source: the distribution, or the function from `params` `[*, P]` to it, of batch shape `[*]`.
        params: where it is a function.

    Returns:
        For Bernoulli, categorical, count, normal, gamma and Dirichlet variables the class of this package, which knows a
        relaxation or a derivative of its own. For any other a `TorchDistribution`: REINFORCE and its kin for all of them,
        LAX and the pathwise gradient where it has `rsample`.

    Raises:
        TypeError: when it is neither a distribution nor a function with its `params`.
        ValueError: when the parameters behind it cannot be found: give a function of them.
    """
    if params is not None:
        if isinstance(source, td.Distribution) or not callable(source):
            raise TypeError("params are given: expected the function that makes a distribution of them beside it")
        return TorchDistribution(params, source)
    if not isinstance(source, td.Distribution):
        raise TypeError(
            f"expected a torch.distributions.Distribution, or a function and its params, not {_name(source)}"
        )
    known = _of_this_package(source)
    return TorchDistribution(*_taken_apart(source)) if known is None else known


@dataclass(frozen=True, eq=False)
class TorchDistribution:
    """The distribution that `make` makes of `params` `[*, P]`, of batch shape `[*]`.

    Noise is the state of a generator, from which the samples of the whole batch are drawn again, differentiable in
    `params` where `rsample` is: a vector of bytes, not one entry a row. torch.distributions takes no generator: for the
    time of a draw that of the device is put in its place.
    """

    params: Tensor
    make: Made

    def with_params(self, params: Tensor) -> TorchDistribution:
        return replace(self, params=params)

    @property
    def dist(self) -> td.Distribution:
        """The distribution itself, made anew."""
        return self.make(self.params)

    @property
    def reparameterized(self) -> bool:
        """Whether samples move with the parameters."""
        return bool(self.dist.has_rsample)

    @property
    def without_relaxation(self) -> str:
        """What to do where an estimator needs a relaxed sample given the outcome, for its message."""
        name = type(self.dist).__name__
        if self.reparameterized:
            return f"the outcomes of torch.distributions.{name} are continuous, take lax or reparameterized"
        return f"no relaxation of torch.distributions.{name} is known, take reinforce, nvil or rloo"

    def sample_noise(self, generator: torch.Generator | None = None) -> Tensor:
        device = self.params.device
        before = _state(device) if generator is None else generator.get_state()
        with _drawing_from(before, device):
            self.dist.sample()
            after = _state(device)
        if generator is None:
            _set_state(after, device)
        else:
            generator.set_state(after)
        return before

    def relax(self, noise: Tensor) -> Tensor:
        """The sample, differentiable in `params` where the distribution is reparameterized."""
        dist = self.dist
        with _drawing_from(noise, self.params.device):
            z = dist.rsample() if dist.has_rsample else dist.sample()
        return z if dist.event_shape else z.unsqueeze(-1)

    def threshold(self, z: Tensor) -> Tensor:
        return z

    def noise_of(self, z: Tensor) -> Tensor:
        """Raises ValueError: no generator's state is known for an outcome."""
        raise ValueError(
            f"the noise behind an outcome of {type(self.dist).__name__} is not known: keep the noise it was made of"
        )

    def log_prob(self, sample: Tensor) -> Tensor:
        dist = self.dist
        found: Tensor = dist.log_prob(sample if dist.event_shape else sample.squeeze(-1))
        return found

    def score(self, sample: Tensor) -> Tensor:
        with torch.enable_grad():
            here = self.with_params(self.params.detach().requires_grad_())
            (gradient,) = torch.autograd.grad(here.log_prob(sample.detach()).sum(), here.params)
        return gradient

    def entropy(self) -> Tensor:
        found: Tensor = self.dist.entropy()
        return found

    def kl_divergence(self, other: TorchDistribution) -> Tensor:
        """`[*]` KL(self || other) in nats, where torch.distributions knows it."""
        found: Tensor = td.kl_divergence(self.dist, other.dist)
        return found

    def mode(self) -> Tensor:
        dist = self.dist
        return dist.mode if dist.event_shape else dist.mode.unsqueeze(-1)

    def soften(self, z: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        return z

    def embed(self, sample: Tensor) -> Tensor:
        return sample


def _of_this_package(dist: Any) -> Any:
    """The class of this package for a scalar distribution, vectors of it, or categories; None where there is none."""
    vectors = type(dist) is td.Independent and dist.reinterpreted_batch_ndims == 1
    inner: Any = dist.base_dist if vectors else dist
    if type(inner) is td.Categorical:
        logits = inner.logits
        return (
            MultiCategorical(logits.flatten(-2), (logits.shape[-1],) * logits.shape[-2])
            if vectors
            else Categorical(logits)
        )
    if type(inner) is td.OneHotCategorical and not vectors:
        return Categorical(inner.logits, one_hot=True)
    if type(inner) is td.Dirichlet and not vectors:
        return Dirichlet(inner.concentration.log())
    if type(inner) not in _SCALAR:
        return None
    return _SCALAR[type(inner)](inner, (lambda x: x) if vectors else (lambda x: x.unsqueeze(-1)))


def _binomial(dist: Any, wide: Callable[[Tensor], Tensor]) -> Binomial | None:
    count = _one_number(dist.total_count)
    return None if count is None or count < 1 else Binomial(wide(dist.logits), int(count))


def _negative_binomial(dist: Any, wide: Callable[[Tensor], Tensor]) -> NegativeBinomial | None:
    learned = isinstance(dist.total_count, Tensor) and dist.total_count.requires_grad
    count = None if learned else _one_number(dist.total_count)
    return None if count is None else NegativeBinomial(wide(dist.logits), count)


def _one_number(x: Any) -> float | None:
    """The number that all of a tensor's entries are."""
    x = torch.as_tensor(x).detach().flatten()
    return float(x[0]) if len(x) and bool((x == x[0]).all()) else None


_SCALAR: dict[type, Callable[[Any, Callable[[Tensor], Tensor]], Any]] = {
    td.Bernoulli: lambda d, wide: Bernoulli(wide(d.logits)),
    td.Binomial: _binomial,
    td.Gamma: lambda d, wide: Gamma(torch.cat([wide(d.concentration).log(), wide(d.rate).log()], -1)),
    td.Geometric: lambda d, wide: Geometric(wide(d.logits)),
    td.NegativeBinomial: _negative_binomial,
    td.Normal: lambda d, wide: DiagGaussian(torch.cat([wide(d.loc), wide(d.scale).log()], -1)),
    td.Poisson: lambda d, wide: Poisson(wide(d.rate).log()),
}
"""What stands for distributions over single numbers."""

_PREFERRED = ("logits", "probs"), ("scale_tril", "covariance_matrix", "precision_matrix")
"""Names for the same parameters, of which a constructor takes one."""


def _taken_apart(dist: td.Distribution) -> tuple[Tensor, Made]:
    """The parameters `[*, P]` of a distribution, and the function that makes it of them."""
    rows = dist.batch_shape
    inner, reinterpreted = dist, 0
    while type(inner) is td.Independent:
        inner, reinterpreted = inner.base_dist, reinterpreted + inner.reinterpreted_batch_ndims
    learned = _parameters(inner)
    if not learned:
        name = type(inner).__name__
        raise ValueError(
            f"the parameters behind torch.distributions.{name} are not found: give a function of them, "
            f"from_torch(lambda params: {name}(...), params)"
        )
    known = inspect.signature(type(inner).__init__).parameters
    named = {x for names in _PREFERRED for x in names} | set(learned) | {"validate_args", "self"}
    constants = {name: getattr(inner, name) for name in known if name not in named and hasattr(inner, name)}
    shapes = {name: x.shape[len(rows) :] for name, x in learned.items()}
    params = torch.cat([x.reshape(*rows, -1) for x in learned.values()], -1)
    return params, partial(_made, type(inner), shapes, constants, reinterpreted)


def _made(
    family: Any, shapes: dict[str, torch.Size], constants: dict[str, Any], reinterpreted: int, params: Tensor
) -> td.Distribution:
    split = params.split([shape.numel() for shape in shapes.values()], -1)
    learned = {
        name: x.reshape((*params.shape[:-1], *shape)) for (name, shape), x in zip(shapes.items(), split, strict=True)
    }
    dist: td.Distribution = family(**learned, **constants, validate_args=False)
    return td.Independent(dist, reinterpreted, validate_args=False) if reinterpreted else dist


def _parameters(dist: td.Distribution) -> dict[str, Tensor]:
    """By the constructor's names, as the distribution was given them or makes them anew; each of `[*batch, ...]`."""
    known = inspect.signature(type(dist).__init__).parameters
    found: dict[str, Tensor] = {}
    for name, constraint in dist.arg_constraints.items():
        given = name in vars(dist) or type(getattr(type(dist), name, None)) is property
        value = getattr(dist, name) if given and name in known else None
        if isinstance(value, Tensor) and value.is_floating_point() and not getattr(constraint, "is_discrete", False):
            shape = dist.batch_shape + value.shape[value.dim() - constraint.event_dim :]
            try:
                found[name] = value.expand(shape)
            except RuntimeError:  # of another batch than the distribution's, as those of LogisticNormal
                continue
    for names in _PREFERRED:
        for name in [x for x in names if x in found][1:]:
            del found[name]
    return found


def _state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_state(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


@contextmanager
def _drawing_from(state: Tensor, device: torch.device) -> Iterator[None]:
    """Draw from this state of the generator of a device, which is put back afterwards."""
    kept = _state(device)
    _set_state(state, device)
    try:
        yield
    finally:
        _set_state(kept, device)


def _name(source: Any) -> str:
    return "a function without them" if callable(source) else type(source).__name__
