"""Masked choices: logits of -inf (and of inf, for bits), and those that are as good as that."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from relax_rl.distributions import Bernoulli, Categorical, MultiCategorical
from relax_rl.estimators import (
    ESTIMATORS,
    MovingAverage,
    enumerated,
    make_estimator,
    policy_gradient_loss,
    rebar,
    relax,
    relax_gradient,
)
from tests.estimator_cases import of_vector, seeded
from tests.oracles import assert_unbiased, collect, repeat
from tests.test_estimator_families import EVERYWHERE, FOR_BITS, FOR_WAYS, curved

INF, LEAST = math.inf, torch.finfo(torch.float32).min
MASKS = {"-inf": -INF, "finfo.min": LEAST, "-1e4": -1e4, "-300": -300.0}
DISTS: dict[str, Callable[[float], Any]] = {
    "ways": lambda m: Categorical(
        torch.tensor([[0.4, m, 0.1, -0.8], [m, 70.0, m, -70.0], [m, m, m, 0.3]]), one_hot=True
    ),
    "indices": lambda m: Categorical(torch.tensor([[0.4, m, 0.1, -0.8], [m, 0.3, -0.2, m]])),
    "factors": lambda m: MultiCategorical(
        torch.tensor([[0.3, 0.2, 0.1, -0.5, m], [m, 1.0, m, m, 0.4]]), (2, 3), one_hot=True
    ),
    "equal factors": lambda m: MultiCategorical(torch.tensor([[0.3, 0.2, m, -0.5, 0.4, m]]), (3, 3)),
    "bits": lambda m: Bernoulli(torch.tensor([[0.3, m, -m, -0.6], [-m, 60.0, 0.0, m]])),
}
SIZES = {"ways": (4,), "indices": (4,), "factors": (2, 3), "equal factors": (3, 3)}
DTYPES = [torch.float32, torch.float64]
every = pytest.mark.parametrize("kind", DISTS)
masks = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
types = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def dist_of(kind: str, mask: float, dtype: torch.dtype = torch.float32) -> Any:
    dist = DISTS[kind](mask)
    return dist.with_params(dist.params.to(dtype))


def masked(dist: Any) -> Tensor:
    """Where a logit can change nothing any more."""
    return dist.params.abs() >= 1e4


def draw_of(dist: Any, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    noise = dist.sample_noise(seeded(seed)).to(dist.params.dtype)
    z = dist.relax(noise)
    return noise, z, dist.threshold(z)


@every
@masks
@types
def test_values_and_both_derivatives_are_finite_and_zero_where_masked(
    kind: str, mask: float, dtype: torch.dtype
) -> None:
    dist = dist_of(kind, mask, dtype)
    noise, z, b = draw_of(dist)
    family = dist.with_params
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "relax": lambda p: family(p).relax(noise),
        "relax_given": lambda p: family(p).relax_given(b, noise),
        "soften": lambda p: family(p).soften(family(p).relax(noise), 0.3),
        "soften, given": lambda p: family(p).soften(family(p).relax_given(b, noise), 0.3),
        "log_prob": lambda p: family(p).log_prob(b),
        "relaxed_log_prob": lambda p: family(p).relaxed_log_prob(z),
        "entropy": lambda p: family(p).entropy(),
        "mean": lambda p: family(p).mean,
    }
    for name, function in functions.items():
        params = dist.params.clone().requires_grad_()
        value = function(params)
        (first,) = torch.autograd.grad((value + torch.tanh(value)).sum(), params, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), params)
        for tensor in (value, first, second):
            assert tensor.dtype == dtype and tensor.isfinite().all(), name
        assert not first[masked(dist)].any() and not second[masked(dist)].any(), name
    assert dist.score(b).isfinite().all() and not dist.score(b)[masked(dist)].any()
    assert not (torch.nan_to_num(dist.mean * dist.mean.log()))[masked(dist)].any()


@every
@masks
def test_no_masked_choice_is_drawn_and_the_others_have_their_probabilities(kind: str, mask: float) -> None:
    dist = dist_of(kind, mask)
    many = dist.with_params(dist.params.expand(2_000, *dist.params.shape))
    noise, z, b = draw_of(many)
    seen = many.embed(b)
    allowed = dist.params > 0 if kind == "bits" else ~masked(dist)
    assert torch.equal(seen[:, masked(dist)], (allowed.float() * torch.ones_like(seen))[:, masked(dist)])
    mode = dist.embed(dist.mode())
    assert torch.equal(mode[masked(dist)], allowed[masked(dist)].float())
    given = many.relax_given(b, many.sample_noise(seeded(2)))
    assert torch.equal(many.threshold(given), b)
    torch.testing.assert_close(many.relax(many.noise_of(z)), z)
    torch.testing.assert_close(many.relax_given(b, many.noise_given(b, z)), z, rtol=1e-3, atol=1e-3)
    assert noise.isfinite().all() and many.noise_of(given).isfinite().all()


@every
def test_the_rest_is_the_distribution_of_the_choices_that_are_left(kind: str) -> None:
    dist = dist_of(kind, -INF, torch.float64)
    _, _, b = draw_of(dist)
    entropy, log_prob = torch.zeros(len(dist.params)).double(), torch.zeros(len(dist.params)).double()
    chosen = dist.embed(b)
    for row, logits in enumerate(dist.params):
        parts = logits.split(SIZES[kind]) if kind in SIZES else [torch.stack([x, 0 * x.nan_to_num()]) for x in logits]
        places = chosen[row].split(SIZES[kind]) if kind in SIZES else [torch.stack([x, 1 - x]) for x in chosen[row]]
        for part, place in zip(parts, places, strict=True):
            if part.isposinf().any():
                continue
            left = F.log_softmax(part[part.isfinite()], 0)
            entropy[row] -= (left.exp() * left).sum()
            log_prob[row] += left[place[part.isfinite()].argmax()]
    torch.testing.assert_close(dist.entropy(), entropy)
    torch.testing.assert_close(dist.log_prob(b), log_prob)
    if kind == "ways":
        impossible = torch.eye(4, dtype=torch.float64)[[1, 0, 2]]
        assert torch.equal(dist.log_prob(impossible).exp(), torch.zeros(3, dtype=torch.float64))


@every
@masks
@types
def test_slopes_are_pulled_back_as_autograd_does(kind: str, mask: float, dtype: torch.dtype) -> None:
    dist = dist_of(kind, mask, dtype)
    noise, z, b = draw_of(dist)
    slope, params = torch.randn(z.shape, generator=seeded(3)).to(dtype), dist.params.clone().requires_grad_()
    (expected,) = torch.autograd.grad(dist.with_params(params).relax(noise), params, slope)
    torch.testing.assert_close(dist.pull_back(slope, z), expected)
    fresh = dist.sample_noise(seeded(4)).to(dtype)
    z_tilde = dist.relax_given(b, fresh)
    (expected,) = torch.autograd.grad(dist.with_params(params).relax_given(b, fresh), params, slope)
    found = dist.pull_back(dist.conditional_weight(b, z_tilde) * slope, z)
    torch.testing.assert_close(found, expected)
    assert not found[masked(dist)].any()
    relaxed = dist.soften(z, 0.3)
    assert dist.soften_slope(relaxed, slope, 0.3).isfinite().all()


# Estimators


def options_for(name: str, rows: int, weight: Tensor) -> dict[str, Any]:
    given: dict[str, Any] = {
        "surrogate": lambda z: weight * (curved(z) + 0.01 * z.sum(-1)),
        "baseline": torch.zeros(rows, dtype=weight.dtype),
        "average": MovingAverage(),
    }
    options = {need: given[need] for need in ESTIMATORS[name].needs}
    if name == "rebar":
        options |= {"eta": weight, "temperature": torch.tensor(0.5, dtype=weight.dtype, requires_grad=True)}
    return options


CASES = [
    (name, kind)
    for name, info in ESTIMATORS.items()
    for kind, outcomes in (("bits", "bits"), ("ways", "categories"), ("factors", "factors"))
    if outcomes in info.outcomes
]


@pytest.mark.parametrize("name, kind", CASES, ids=[f"{name}-{kind}" for name, kind in CASES])
@masks
@types
def test_estimates_are_finite_and_zero_where_masked(name: str, kind: str, mask: float, dtype: torch.dtype) -> None:
    dist = dist_of(kind, mask, dtype)
    variants: list[dict[str, Any]] = [{}]
    if name in ("relax", "rebar"):
        variants += [{"coupling": "coupled"}, {"num_conditional": 3}]
    for more in variants:
        weight = torch.tensor(0.7, dtype=dtype, requires_grad=True)
        options = options_for(name, len(dist.params), weight) | more
        make = make_estimator(name, generator=seeded(5), **options)
        params = dist.params.clone().requires_grad_()
        estimate = make(of_vector, dist.with_params(params))
        assert estimate.grad.isfinite().all() and not estimate.grad[masked(dist)].any()
        assert estimate.value.isfinite().all()
        trained = [x for x in options.values() if isinstance(x, Tensor) and x.requires_grad] or [weight]
        loss = estimate.loss()
        assert loss.isfinite()
        (of_loss, *of_phi) = torch.autograd.grad(loss, [params, *trained], retain_graph=True, allow_unused=True)
        torch.testing.assert_close(of_loss, estimate.grad.detach() / len(dist.params))
        assert not of_loss[masked(dist)].any()
        assert all(x is None or x.isfinite().all() for x in of_phi)
        assert name not in ("relax", "rebar", "dlax", "marginal") or any(x is not None and x.any() for x in of_phi)
        estimate.backward()
        torch.testing.assert_close(params.grad, of_loss)


def left_gradient(dist: Any, f: Callable[[Tensor], Tensor]) -> Tensor:
    """`[P]` the gradient of E[f] over the outcomes that are left, 0 where masked; of the first row."""
    row = dist.params[0].double()
    leaf = row[row.isfinite()].requires_grad_()
    full = torch.zeros_like(row).masked_scatter(row.isfinite(), leaf)
    sizes = (1,) * len(row) if isinstance(dist, Bernoulli) else getattr(dist, "nvec", (len(row),))
    expected = torch.zeros(()).double()
    for choice in itertools.product((0, 1), repeat=len(row)):
        b, log_prob, possible = torch.tensor(choice).double(), torch.zeros(()).double(), True
        for logits, place, infinite in zip(full.split(sizes), b.split(sizes), row.split(sizes), strict=True):
            if isinstance(dist, Bernoulli):
                fixed = not infinite.isfinite().all()
                possible &= not fixed or bool((place > 0) == (infinite > 0))
                log_prob = log_prob + (0.0 if fixed else F.logsigmoid((2 * place - 1) * logits).sum())
            else:
                possible &= float(place.sum()) == 1 and bool(infinite[place.argmax()].isfinite())
                if possible:
                    log_prob = (
                        log_prob + F.log_softmax(torch.where(infinite.isfinite(), logits, -1e3), 0)[place.argmax()]
                    )
        if possible:
            expected = expected + log_prob.exp() * f(b)
    (gradient,) = torch.autograd.grad(expected, leaf)
    return torch.zeros_like(row).masked_scatter(row.isfinite(), gradient)


UNBIASED = [
    *[(kind, name, make) for name, make in EVERYWHERE.items() for kind in ("bits", "ways", "factors")],
    *[("bits", name, make) for name, make in FOR_BITS.items()],
    *[("ways", name, make) for name, make in FOR_WAYS.items()],
]


@pytest.mark.parametrize("kind, name, make", UNBIASED, ids=[f"{name}-{kind}" for kind, name, _ in UNBIASED])
def test_the_expected_estimate_is_the_gradient_of_what_is_left(kind: str, name: str, make: Any) -> None:
    dist, generator = dist_of(kind, -INF), seeded(6)
    exact = left_gradient(dist, of_vector)
    assert exact.abs().sum() > 0.1 and not exact[masked(dist)[0]].any()
    rows = 500_000 if name == "dlax" else 125_000
    assert_unbiased(collect(lambda n: make(repeat(dist, n), generator).grad, rows), exact, power=0.05)


@pytest.mark.parametrize("kind", ["bits", "ways", "factors"])
def test_enumeration_is_exact_whatever_f_says_of_impossible_outcomes(kind: str) -> None:
    dist = dist_of(kind, -INF, torch.float64)
    first = dist.with_params(dist.params[:1])

    def of_possible(b: Tensor) -> Tensor:
        possible = (b * first.mean + (1 - b) * (1 - first.mean) if kind == "bits" else 1 - b * (first.mean == 0)).all(
            -1
        )
        return torch.where(possible, of_vector(b), math.nan)

    estimate = enumerated(of_possible, first)
    torch.testing.assert_close(estimate.grad[0], left_gradient(dist, of_vector))
    assert estimate.value.isfinite().all()


def test_the_general_way_agrees_for_a_distribution_without_slopes() -> None:
    dist = dist_of("ways", -INF, torch.float64)
    noise, fresh = (dist.sample_noise(seeded(k)).double() for k in (7, 8))
    found = relax(of_vector, dist, curved, noise=noise, conditional_noise=fresh).grad
    at = lambda p: dist.with_params(p)  # noqa: E731
    b = dist.threshold(dist.relax(noise))
    controls = (lambda p: curved(at(p).relax(noise))), (lambda p: curved(at(p).relax_given(b, fresh)))
    general = relax_gradient(of_vector(b), lambda p: at(p).log_prob(b), *controls, dist.params)
    torch.testing.assert_close(found, general)


def test_a_policy_with_masked_actions_learns_the_others() -> None:
    theta = torch.zeros(4, requires_grad=True)
    mask = torch.tensor([[True, True, False, True], [True, False, False, True]]).repeat(40, 1)
    logits = torch.where(mask, theta.expand(80, 4), -INF)
    action = mask.float().multinomial(1, generator=seeded(9)).squeeze(-1)
    loss = policy_gradient_loss(
        torch.randn(80), Categorical(logits), action, curved, old_log_prob=-torch.ones(80), clip=0.2
    )
    (loss + Categorical(logits).entropy().mean()).backward()
    assert loss.isfinite() and theta.grad is not None and theta.grad.isfinite().all()
    assert theta.grad[2] == 0 and theta.grad[0] != 0


@pytest.mark.parametrize("name", [n for n, k in CASES if k == "ways"])
@pytest.mark.parametrize("worst", [-INF, INF, math.nan])
def test_a_row_without_a_possible_choice_is_refused_in_one_line(name: str, worst: float) -> None:
    params = torch.tensor([[0.1, 0.2], [worst, worst if worst < 0 else 0.0]])
    make = make_estimator(name, **options_for(name, 2, torch.tensor(0.5)))
    with pytest.raises(ValueError, match=r"^logits\[1\] allow no outcome: .*$"):
        make(of_vector, Categorical(params, one_hot=True))


def test_a_factor_without_a_possible_choice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^logits\[0, 1\] allow no outcome"):
        rebar(of_vector, MultiCategorical(torch.tensor([[0.0, 0.0, -INF, -INF, -INF]]), (2, 3), one_hot=True))
