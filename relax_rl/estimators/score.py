"""Score-function estimators and their baselines: REINFORCE, RLOO, NVIL, VIMCO, SimpleMuProp and MuProp."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from relax_rl.distributions import Distribution, FiniteDistribution
from relax_rl.estimators.draws import Objective, draw, require, require_vectors, values_for
from relax_rl.estimators.estimate import Estimate
from relax_rl.estimators.gradients import reinforce_gradient, value_and_gradient

__all__ = [
    "MovingAverage",
    "check_num_samples",
    "leave_one_out",
    "mean_gradient",
    "muprop",
    "nvil",
    "nvil_signal",
    "others_mean",
    "reinforce",
    "rloo",
    "vimco",
    "vimco_signal",
]


class MovingAverage:
    """Exponential moving mean and variance of f, held by the caller and not by the estimators.

    Args:
        decay: weight of the past; the start is not biased towards zero (as in Adam).
    """

    def __init__(self, decay: float = 0.9) -> None:
        self.decay = decay
        self._weight = self._mean = self._square = 0.0

    @property
    def mean(self) -> float:
        """0 until a batch was seen."""
        return self._mean / self._weight if self._weight else 0.0

    @property
    def std(self) -> float:
        """0 until a batch was seen."""
        variance = self._square / self._weight - self.mean**2 if self._weight else 0.0
        return math.sqrt(max(0.0, variance))

    def update(self, value: Tensor) -> None:
        """Take in a batch of values, after the estimate that used the mean: the mean must not know the sample."""
        if not value.numel():
            return
        value = value.detach().double()
        self._weight = self.decay * self._weight + 1.0 - self.decay
        self._mean = self.decay * self._mean + (1.0 - self.decay) * float(value.mean())
        self._square = self.decay * self._square + (1.0 - self.decay) * float(value.square().mean())


def reinforce(
    f: Objective,
    dist: Distribution,
    *,
    baseline: Tensor | float = 0.0,
    noise: Tensor | None = None,
    sample: Tensor | None = None,
    score: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Score-function estimate g = (f(b) - baseline) dlog p(b) (Williams 1992).

    Args:
        f: a function of the samples, or its `[*]` values (`noise` is needed then).
        dist: distribution with `[*, P]` parameters.
        baseline: a number or `[*]`, independent of the sample: a constant, `MovingAverage.mean`, a network's output for
            the input of each row (the variance loss then trains the network; `nvil` fits it to f).
        noise: the base noise of the sample; drawn from `generator` by default.
        sample: the sample that `noise` gives, where it is at hand.
        score: `[*, P]` its dlog p(b) / dparams, where it is at hand.
        generator: of the noise; torch's global one by default.

    Returns:
        the estimate, from one sample a row; its `value` is f(b).

    Raises:
        ValueError: when f is given by its values but the noise of the sample is not, or f or the baseline does not give
            one number a row.
    """
    drawn = draw(f, dist, noise=noise, generator=generator, sample=sample, score=score)
    value = drawn.value.detach()
    _check_baseline(baseline, value)
    signal = value - baseline if isinstance(baseline, Tensor) or baseline else value
    grad = reinforce_gradient(signal, None, drawn.dist.params, score=drawn.score)
    return Estimate(drawn.sample, drawn.value, grad, dist.params)


def nvil(
    f: Objective,
    dist: Distribution,
    baseline: Tensor,
    average: MovingAverage,
    *,
    active: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """NVIL (Mnih and Gregor 2014): an input-dependent baseline fitted to f, centring and variance normalisation.

        g = (f(b) - mean - baseline(x)) / max(1, std) dlog p(b)

    with the moving mean and standard deviation of f - baseline before this batch, which `average` takes in afterwards.
    The division rescales the whole gradient; with `std` at most 1 the estimate is unbiased.

    Args:
        f, dist, noise, generator: as in `reinforce`.
        baseline: `[*]` the baseline network's output for the input of each row.
        average: moving statistics of f - baseline.
        active: `[*]` booleans, the rows that count, in the gradient, in what `average` takes in and in what is fitted; all by
            default.

    Returns:
        the estimate; its `fit_loss` is the mean squared error of mean + baseline.

    Raises:
        ValueError: as `reinforce`.
    """
    drawn = draw(f, dist, noise=noise, generator=generator)
    value = drawn.value.detach()
    signal, fit_loss = nvil_signal(value, baseline, average.mean, average.std)
    if active is not None:
        signal = torch.where(active, signal, torch.zeros_like(signal))
        value, baseline = value[active], baseline[active]
        _, fit_loss = nvil_signal(value, baseline, average.mean)
    grad = reinforce_gradient(signal, None, drawn.dist.params, score=drawn.score)
    average.update(value - baseline)
    return Estimate(drawn.sample, drawn.value, grad, dist.params, fit_loss=fit_loss)


def nvil_signal(
    value: Tensor, baseline: Tensor, mean: Tensor | float, std: Tensor | float | None = None
) -> tuple[Tensor, Tensor]:
    """NVIL's learning signal for values of f that are known.

    Args:
        value: `[*]` f(b).
        baseline: `[*]` prediction of value - mean, with the graph to what is fitted.
        mean: moving mean of f - baseline, without this batch.
        std: its moving standard deviation, which divides the signal where it is above 1; None for no division.

    Returns:
        `[*]` the signal, without graph, and the mean squared error of mean + baseline, a scalar.
    """
    error = value.detach() - mean - baseline
    signal = error.detach()
    if std is not None:
        signal = signal / (std.clamp(min=1.0) if isinstance(std, Tensor) else max(1.0, std))
    return signal, error.square().sum() / max(1, error.numel())


def rloo(
    f: Callable[[Tensor], Tensor],
    dist: Distribution,
    *,
    num_samples: int = 2,
    generator: torch.Generator | None = None,
) -> Estimate:
    """REINFORCE with a leave-one-out baseline (Salimans and Knowles 2014; Kool et al. 2019).

        g = 1/K sum_k (f(b_k) - mean_{j != k} f(b_j)) dlog p(b_k)

    Args:
        f: a function of samples `[K, *, ...]`.
        dist: distribution with `[*, P]` parameters.
        num_samples: K, at least 2.
        generator: of the draws; torch's global one by default.

    Returns:
        the estimate, from samples `[K, *, ...]`; its `value` is the mean of f over K.

    Raises:
        ValueError: when there is nothing to leave out, or f does not give one number a row.
    """
    check_num_samples(num_samples)
    drawn = draw(f, dist, generator=generator, num_samples=num_samples)
    signal = leave_one_out(drawn.value.detach())
    grad = reinforce_gradient(signal, None, drawn.dist.params, score=drawn.score).mean(0)
    return Estimate(drawn.sample, drawn.value.mean(0), grad, dist.params)


def leave_one_out(value: Tensor) -> Tensor:
    """`[K, *]` values of K independent samples, each less the mean of the others: RLOO's learning signal."""
    return (value - value.mean(0)) * (len(value) / (len(value) - 1))


def others_mean(x: Tensor) -> Tensor:
    """`[K, ...]`: for each entry the mean of all others."""
    return (x.sum(0) - x) / (len(x) - 1)


def vimco(
    log_weight: Callable[[Tensor], Tensor],
    dist: Distribution,
    *,
    num_samples: int = 5,
    average: Literal["geometric", "arithmetic"] = "geometric",
    generator: torch.Generator | None = None,
) -> Estimate:
    """VIMCO estimate (Mnih and Rezende 2016) of the gradient of a multi-sample bound.

        L = log 1/K sum_k w(b_k)
        g = sum_k (L - L_{-k}) dlog p(b_k),    L_{-k}: w(b_k) replaced by a mean of the other weights

    The bound's own dependence on theta through log w, sum_k w_k / sum_j w_j dlog w(b_k), is in `value`.

    Args:
        log_weight: log w, a function of samples `[K, *, ...]`.
        dist: distribution with `[*, P]` parameters, from which the b_k come.
        num_samples: K, at least 2.
        average: mean of the other weights that stands in for w(b_k).
        generator: of the draws; torch's global one by default.

    Returns:
        the estimate; its `value` is the bound L.

    Raises:
        ValueError: with fewer than two samples, or when log_weight does not give one number a row.
    """
    check_num_samples(num_samples)
    drawn = draw(log_weight, dist, generator=generator, num_samples=num_samples)
    signal = vimco_signal(drawn.value.detach(), average)
    grad = reinforce_gradient(signal, None, drawn.dist.params, score=drawn.score).sum(0)
    bound = torch.logsumexp(drawn.value, 0) - math.log(num_samples)
    return Estimate(drawn.sample, bound, grad, dist.params)


def vimco_signal(log_w: Tensor, average: Literal["geometric", "arithmetic"] = "geometric") -> Tensor:
    """VIMCO's learning signal L - L_{-k}, `[K, *]` from log-weights `[K, *]` of K samples."""
    if average not in ("geometric", "arithmetic"):
        raise ValueError(f"average is {average!r}, expected 'geometric' or 'arithmetic'")
    others = _others(log_w)
    stand_in = others.mean(1) if average == "geometric" else torch.logsumexp(others, 1) - math.log(len(log_w) - 1)
    without = torch.logsumexp(torch.cat([others, stand_in.unsqueeze(1)], 1), 1)
    return torch.logsumexp(log_w, 0) - without


def muprop(
    f: Callable[[Tensor], Tensor],
    dist: FiniteDistribution,
    *,
    eta: Tensor | float = 1.0,
    slope: Tensor | float = 1.0,
    baseline: Tensor | float = 0.0,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """MuProp (Gu et al. 2016): f's first-order Taylor expansion at the mean mu as control variate.

        g = (f(b) - eta f(mu) - slope f'(mu)(b - mu) - baseline) dlog p(b) + slope f'(mu) dmu

    With `slope=0` this is SimpleMuProp, which asks f for no derivative.

    Args:
        f: a function of samples and of their mean; differentiable unless `slope` is 0.
        dist: `Bernoulli`, or a categorical with `one_hot`.
        eta, slope: scales of the two terms, learned by the variance loss if they require a gradient.
        baseline: a number or `[*]`, independent of the sample.
        noise: the base noise of the sample; drawn from `generator` by default.
        generator: of the noise; torch's global one by default.

    Returns:
        the estimate, from one sample a row; its `value` is f(b).

    Raises:
        ValueError: when the samples are indices, between which f is not defined, or have no mean; when f does not give
            one number a row.
    """
    require_vectors(dist)
    require(dist, "support", "muprop", "its control variate is the expansion at the mean of a discrete outcome")
    drawn = draw(f, dist, noise=noise, generator=generator)
    here, sample, mean = drawn.dist, drawn.sample, drawn.dist.mean
    if isinstance(slope, Tensor) or slope != 0.0:
        f_mean, derivative = value_and_gradient(f, mean)
    else:
        f_mean, derivative = f(mean), torch.zeros_like(mean)
    f_mean = values_for(here, f_mean)
    linear = (derivative * (sample - mean)).sum(-1)
    _check_baseline(baseline, drawn.value)
    centred = drawn.value.detach() - eta * f_mean.detach() - slope * linear - baseline
    factor = slope.unsqueeze(-1) if isinstance(slope, Tensor) and slope.dim() else slope
    grad = reinforce_gradient(centred, None, here.params, score=drawn.score)
    grad = grad + factor * mean_gradient(here, derivative)
    phi = tuple(x for x in (eta, slope, baseline) if isinstance(x, Tensor) and x.requires_grad)
    return Estimate(sample, drawn.value, grad, dist.params, phi)


def mean_gradient(dist: FiniteDistribution, slope: Tensor) -> Tensor:
    """`[*, P]` slope . dmu / dparams, for a constant `slope` `[*, P]` at the mean mu of vectors."""
    _, gradient = value_and_gradient(lambda params: (dist.with_params(params).mean * slope).sum(-1), dist.params)
    return gradient


def _check_baseline(baseline: Tensor | float, value: Tensor) -> None:
    """Raises ValueError unless a baseline has a number for each of the `[*]` values, or one for several of them."""
    if not isinstance(baseline, Tensor):
        return
    last = value.shape[max(value.dim() - baseline.dim(), 0) :]
    if baseline.dim() > value.dim() or any(n not in (1, m) for n, m in zip(baseline.shape, last, strict=True)):
        raise ValueError(
            f"baseline has shape {tuple(baseline.shape)}, expected a number or one for each row: {tuple(value.shape)}"
        )


def check_num_samples(num_samples: int, least: int = 2) -> None:
    """Raises ValueError where an estimator of several samples is given too few."""
    if num_samples < least:
        raise ValueError(f"num_samples is {num_samples}, expected at least {least}")


def _others(x: Tensor) -> Tensor:
    """`[K, *]` -> `[K, K - 1, *]`: for each k, the entries but the k-th."""
    count = len(x)
    row = torch.arange(count, device=x.device).unsqueeze(1)
    column = torch.arange(count - 1, device=x.device)
    return x[column + (column >= row)]
