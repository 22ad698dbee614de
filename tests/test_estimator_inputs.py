"""What users hand to estimators: constants, whole numbers, half precision, distributions of torch, second derivatives."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as td

from relax_rl import distributions
from relax_rl.distributions import Bernoulli, Categorical, DiagGaussian, Gamma, MultiCategorical, Ordinal, Poisson
from relax_rl.estimators import (
    ESTIMATORS,
    MovingAverage,
    concrete,
    enumerated,
    make_estimator,
    only_to,
    policy_gradient_loss,
    rebar,
    reinforce,
    reinmax,
    relax,
    straight_through,
    vimco,
)
from tests.estimator_cases import seeded

ROWS = 6
DISTS: dict[str, Any] = {
    "bits": Bernoulli(torch.linspace(-1.0, 1.0, 18).reshape(ROWS, 3)),
    "categories": Categorical(torch.linspace(-1.0, 1.0, 18).reshape(ROWS, 3), one_hot=True),
    "factors": MultiCategorical(torch.linspace(-1.0, 1.0, 30).reshape(ROWS, 5), (2, 3), one_hot=True),
    "continuous": DiagGaussian(torch.linspace(-1.0, 1.0, 24).reshape(ROWS, 4)),
    "counts": Poisson(torch.linspace(-1.0, 1.0, 18).reshape(ROWS, 3)),
    "ranks": Ordinal(torch.linspace(-1.0, 1.0, 18).reshape(ROWS, 3)),
    "positive": Gamma(torch.linspace(-1.0, 1.0, 24).reshape(ROWS, 4)),
}
CASES = [(name, kind) for name, info in ESTIMATORS.items() for kind in DISTS if kind in info.outcomes]
every = pytest.mark.parametrize("name, kind", CASES, ids=[f"{name}-{kind}" for name, kind in CASES])
CONSTANTS: dict[str, Any] = {
    "zeros": lambda x: torch.zeros(x.shape[:-1]),
    "of rows": lambda x: torch.arange(ROWS, dtype=torch.float32).expand(x.shape[:-1]),
    "whole": lambda x: torch.full(x.shape[:-1], 3),
    "trained": lambda x: torch.ones((), requires_grad=True).expand(x.shape[:-1]),
}
constant = pytest.mark.parametrize("c", CONSTANTS.values(), ids=CONSTANTS)


def smooth(x: Tensor) -> Tensor:
    return torch.sin(2 * x[..., 0]) * (1 + x[..., -1])


def make(name: str, surrogate: Any = smooth, **options: Any) -> Any:
    given = {"surrogate": surrogate, "baseline": torch.zeros(ROWS), "average": MovingAverage()}
    needed = {need: given[need] for need in ESTIMATORS[name].needs}
    return make_estimator(name, generator=seeded(1), **needed, **options)


# Constants and whole numbers


@every
@constant
def test_a_constant_f_has_the_gradient_of_its_score_alone(name: str, kind: str, c: Any) -> None:
    dist, info = DISTS[kind], ESTIMATORS[name]
    estimate = make(name, surrogate=CONSTANTS["zeros"])(c, dist)
    assert estimate.grad.shape == dist.params.shape and estimate.grad.isfinite().all()
    if info.differentiable and name not in ("muprop", "rebar", "rodeo", "double-cv", "rejection", "dreg"):
        assert not estimate.grad.any()
    # RODEO's operator on h times the score leaves noise of mean 0, as published.
    if name in ("enumerated", "rloo", "arm", "disarm", "arms", "double-cv", "muprop", "rebar"):
        torch.testing.assert_close(estimate.grad.detach(), torch.zeros_like(dist.params), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["relax", "dlax", "lax", "marginal"])
@constant
def test_a_constant_surrogate_is_a_baseline(name: str, c: Any) -> None:
    kind = "continuous" if name == "lax" else "bits"
    noise = DISTS[kind].sample_noise(seeded(2))
    plain = make("reinforce", noise=noise)(smooth, DISTS[kind])
    found = make(name, surrogate=c, noise=noise)(smooth, DISTS[kind])
    if name != "dlax":
        score = DISTS[kind].score(plain.sample)
        expected = plain.grad - c(score).unsqueeze(-1) * score
        torch.testing.assert_close(found.grad.detach(), expected.detach(), rtol=1e-5, atol=1e-5)
    found.loss()


def test_what_moves_without_a_gradient_is_no_constant() -> None:
    """Taken for one, a detached surrogate would bias the estimate in silence."""
    for name, info in ESTIMATORS.items():
        dist = DISTS[info.outcomes[0]]
        if info.differentiable:
            for f in (lambda x: smooth(x).detach(), lambda x: (x > 0.5).sum(-1)):
                with pytest.raises(RuntimeError, match="has no gradient there"):
                    make(name)(f, dist)
        if "surrogate" in info.needs and name != "marginal":
            with pytest.raises(RuntimeError, match="has no gradient there"):
                make(name, surrogate=lambda z: smooth(z).detach())(smooth, dist)
    scale = torch.ones((), requires_grad=True)
    with pytest.raises(RuntimeError, match="has no gradient there"):
        rebar(lambda b: smooth(b).detach(), DISTS["bits"], eta=scale)
    halves = Bernoulli(torch.zeros(1, 2, requires_grad=True))
    for alike in (lambda b: (b[..., 0] - b[..., 1]).square(), lambda b: b.sum(-1)):  # at b and 1 - b, and at 1/2
        for name in ("straight-through", "muprop"):
            with pytest.raises(RuntimeError, match="has no gradient there"):
                make(name)(lambda b, f=alike: f(b.detach()), halves)


@every
def test_whole_numbers_and_booleans_are_values_in_the_type_of_the_parameters(name: str, kind: str) -> None:
    if ESTIMATORS[name].differentiable:
        return
    dist = DISTS[kind].with_params(DISTS[kind].params.double())
    whole = make(name)(lambda b: (3 * b[..., 0] + b[..., -1] > 1).long() * 2, dist)
    number = make(name)(lambda b: (3 * b[..., 0] + b[..., -1] > 1).double() * 2, dist)
    yes = make(name)(lambda b: 3 * b[..., 0] + b[..., -1] > 1, dist)
    assert whole.value.dtype == whole.grad.dtype == yes.value.dtype == torch.float64
    torch.testing.assert_close(whole.grad, number.grad)
    whole.loss()


def test_a_number_in_place_of_a_tensor_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^f gives a float, but a tensor \[6\] of one number a row is needed$"):
        relax(lambda b: 1.0, DISTS["bits"], smooth)  # type: ignore[arg-type, return-value]


def test_every_estimator_takes_a_generator() -> None:
    for name in ESTIMATORS:
        make(name)
    torch.testing.assert_close(
        enumerated(smooth, DISTS["bits"], generator=seeded(1)).grad, enumerated(smooth, DISTS["bits"]).grad
    )


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_temperatures_are_above_zero(wrong: float) -> None:
    for name in ("concrete", "straight-through-gumbel", "gumbel-rao", "rebar"):
        with pytest.raises(ValueError, match=rf"temperature is {wrong:g}, expected above 0"):
            make(name, temperature=wrong)(smooth, DISTS["bits"])


def test_vimco_knows_two_averages() -> None:
    with pytest.raises(ValueError, match="average is 'harmonic', expected 'geometric' or 'arithmetic'"):
        vimco(smooth, DISTS["bits"], average="harmonic")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(ROWS, 1), (1, 3), (3,), (), (ROWS + 1, 3)])
def test_noise_of_other_rows_or_of_fewer_entries_is_not_shared(shape: tuple[int, ...]) -> None:
    dist = Bernoulli(torch.zeros(ROWS, 3, requires_grad=True))
    for estimate in (reinforce, concrete, straight_through, partial(relax, surrogate=smooth)):
        with pytest.raises((ValueError, RuntimeError), match=r"noise has shape|size of tensor"):
            estimate(smooth, dist, noise=torch.zeros(shape))
    noise = dist.sample_noise(seeded(0))
    with pytest.raises((ValueError, RuntimeError), match=r"conditional_noise has shape|size of tensor"):
        relax(smooth, dist, smooth, noise=noise, conditional_noise=torch.zeros(shape))
    with pytest.raises((ValueError, RuntimeError), match=r"noise has shape|size of tensor"):
        relax(torch.zeros(ROWS), dist, smooth, noise=torch.zeros(shape), sample=dist.threshold(dist.relax(noise)))
    ranks = Ordinal(torch.zeros(ROWS, 4, requires_grad=True))  # which have one number behind several parameters
    noise = ranks.sample_noise(seeded(0))
    found = reinforce(lambda b: b[..., 0].float(), ranks, noise=noise).grad

    def of_row(params: Tensor, noise: Tensor) -> Tensor:
        return reinforce(lambda b: b[..., 0].float(), Ordinal(params), noise=noise).grad

    torch.testing.assert_close(torch.func.vmap(of_row)(ranks.params.detach(), noise), found)


@every
def test_no_rows_have_a_loss_of_zero(name: str, kind: str) -> None:
    full = DISTS[kind]
    empty = full.with_params(full.params[:0].clone().requires_grad_())
    if {"baseline", "average"} & set(ESTIMATORS[name].needs):
        return
    scale = torch.ones((), requires_grad=True)
    found = make(name, surrogate=lambda z: scale * smooth(z))(lambda b: smooth(b.float()), empty)
    assert found.grad.shape == empty.params.shape and float(found.loss().detach()) == 0.0
    found.loss().backward()


def test_reinmax_takes_no_temperature_below_one() -> None:
    """As its authors' code: below 1 the shifted probabilities are no step of second order."""
    with pytest.raises(ValueError, match=r"temperature is 0\.5, expected at least 1"):
        reinmax(smooth, DISTS["bits"], temperature=0.5)


# Types, shapes and ranges of distributions


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_factors_of_unequal_sizes_and_bits_live_in_every_type(dtype: torch.dtype) -> None:
    for dist in DISTS.values():
        here = dist.with_params(dist.params.to(dtype))
        z = here.relax(here.sample_noise(seeded(3)).to(dtype))
        sample = here.threshold(z)
        assert sample.dtype == dtype
        if hasattr(here, "relax_given"):
            loose = {torch.float16: 1e-2, torch.bfloat16: 5e-2}.get(dtype, 1e-5)
            torch.testing.assert_close(here.entropy().float(), dist.entropy(), rtol=loose, atol=loose)
            assert here.relax_given(sample, here.sample_noise(seeded(4)).to(dtype)).isfinite().all()
            assert here.mean.isfinite().all() and here.log_prob(sample).isfinite().all()
    bits = Bernoulli(torch.zeros(3, 2, dtype=dtype))
    assert bits.threshold(bits.relax(bits.sample_noise())).dtype == dtype, "noise is float32"


def test_log_probabilities_of_many_samples_broadcast() -> None:
    params = torch.randn(5, 6, generator=seeded(5))
    sample = torch.randint(3, (4, 5, 2), generator=seeded(6))
    categorical, factors, bits = Categorical(params), MultiCategorical(params, (3, 3)), Bernoulli(params)
    pairs = [(categorical, sample[..., 0]), (factors, sample), (bits, (sample > 0).float().repeat(1, 1, 3))]
    for dist, b in pairs:
        expected = torch.stack([dist.log_prob(x) for x in b])
        torch.testing.assert_close(dist.log_prob(b), expected)
        torch.testing.assert_close(dist.score(b), torch.stack([dist.score(x) for x in b]))
        one = dist.with_params(params[0])
        torch.testing.assert_close(one.log_prob(b), torch.stack([repeated(one, 5).log_prob(x) for x in b]))
    assert categorical.log_prob(torch.tensor(2)).shape == (5,)
    with pytest.raises(RuntimeError, match="shape"):
        categorical.log_prob(torch.zeros(3, dtype=torch.int64))


def repeated(dist: Any, rows: int) -> Any:
    return dist.with_params(dist.params.expand(rows, -1))


@pytest.mark.parametrize("wrong", [2.0, -1.0, torch.inf])
def test_a_bit_beyond_zero_and_one_has_no_probability(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"^bits are numbers from 0 to 1, but the sample has .*"):
        Bernoulli(torch.zeros(2)).log_prob(torch.tensor([0.0, wrong]))
    assert Bernoulli(torch.zeros(2)).log_prob(torch.tensor([0.0, 0.5])).isfinite(), "relaxed bits are asked too"
    assert Bernoulli(torch.zeros(0, 2)).log_prob(torch.zeros(0, 2)).shape == (0,)
    assert Bernoulli(torch.zeros(2)).log_prob(torch.tensor([True, False])).isfinite()


# Distributions of torch


FOREIGN: dict[str, tuple[Any, Any]] = {
    "Bernoulli": (td.Bernoulli(logits=torch.zeros(6, 3)), Bernoulli(torch.zeros(6, 3))),
    "Independent": (td.Independent(td.Bernoulli(logits=torch.zeros(6, 3)), 1), Bernoulli(torch.zeros(6, 3))),
    "Categorical": (td.Categorical(logits=torch.zeros(6, 3)), Categorical(torch.zeros(6, 3) - torch.tensor(3.0).log())),
    "OneHotCategorical": (
        td.OneHotCategorical(logits=torch.zeros(6, 3)),
        Categorical(torch.zeros(6, 3) - torch.tensor(3.0).log(), one_hot=True),
    ),
    "Normal": (td.Normal(torch.zeros(6, 2), torch.ones(6, 2)), DiagGaussian(torch.zeros(6, 4))),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_distribution_of_torch_is_refused_with_what_to_wrap_it_as(name: str, kind: str) -> None:
    dist, wrapped = FOREIGN[kind]
    with pytest.raises(
        TypeError, match=r"^torch.distributions.\w+ lacks .*: wrap it as relax_rl.distributions"
    ) as error:
        make(name)(smooth, dist)
    advice = str(error.value).split("wrap it as relax_rl.")[1]
    made = eval(advice, {"distributions": distributions, "torch": torch, "dist": dist})
    assert type(made) is type(wrapped) and getattr(made, "one_hot", None) == getattr(wrapped, "one_hot", None)
    torch.testing.assert_close(made.params, wrapped.params)


def test_anything_else_is_told_what_is_expected() -> None:
    for wrong in (td.Gamma(torch.ones(6), torch.ones(6)), torch.zeros(6, 3), None):
        with pytest.raises(TypeError, match=r"^expected a distribution of relax_rl.distributions, .* not \w+$"):
            relax(smooth, wrong, smooth)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="wrap it as"):
        policy_gradient_loss(torch.zeros(6), FOREIGN["Bernoulli"][0], torch.zeros(6, 3), smooth)


# Second derivatives


def test_second_derivatives_through_phi_are_refused_and_first_ones_are_as_before() -> None:
    scale = torch.tensor(0.7, requires_grad=True)
    penalty = torch.tensor(2.0, requires_grad=True)

    def variance(phi: list[Tensor] | None) -> Tensor:
        return relax(
            smooth, DISTS["bits"], lambda z: scale.square() * smooth(z), phi=phi, generator=seeded(7)
        ).variance_loss()

    for loss in (variance([scale]), only_to([scale], scale.pow(3)), penalty * variance([scale])):
        (gradient,) = torch.autograd.grad(loss, scale, create_graph=True)
        with pytest.raises(RuntimeError, match="has no second derivative: leave phi out"):
            torch.autograd.grad(gradient + scale.square(), scale)
    (once,) = torch.autograd.grad(variance([scale]), scale)
    (twice,) = torch.autograd.grad(variance(None), scale, create_graph=True)
    torch.testing.assert_close(once, twice.detach())
    assert torch.autograd.grad(twice, scale)[0].abs() > 0
    curvature = torch.func.grad(torch.func.grad(lambda x: only_to([x], x.pow(3))))
    with pytest.raises(RuntimeError, match="has no second derivative"):
        curvature(torch.tensor(1.0))
