"""Every estimator against exact gradients: unbiased ones within z-tests that see 1%, biased ones off as theory says."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from relax_rl.distributions import Bernoulli, Categorical, DiagGaussian, Distribution, MultiCategorical
from relax_rl.estimators import (
    Estimate,
    MovingAverage,
    arm,
    arms,
    concrete,
    disarm,
    dlax,
    double_cv,
    enumerated,
    gumbel_rao,
    lax,
    marginal,
    muprop,
    nvil,
    rebar,
    reinforce,
    reinmax,
    relax,
    relaxed_objective,
    reparameterized,
    rloo,
    rodeo,
    straight_through,
    vimco,
)
from tests.estimator_cases import of_vector, seeded
from tests.oracles import assert_unbiased, collect, exact_gradient, gradient_by_quadrature, rejects, repeat

MILLION = 1_000_000


def of_normal(z: Tensor) -> Tensor:
    return 0.5 * (z[..., 0] - 1) ** 2 + torch.sin(z[..., 0] * z[..., 1]) - z[..., 1] - 0.5


BITS = Bernoulli(torch.tensor([[0.3, -0.6, 0.9]]))
WAYS = Categorical(torch.tensor([[0.4, -0.3, 0.1, -0.8]]), one_hot=True)
FACTORS = MultiCategorical(torch.tensor([[0.3, -0.2, 0.1, -0.5, 0.4]]), (2, 3), one_hot=True)
RARE_BITS = Bernoulli(torch.tensor([[4.0, -0.6, -3.0]]))
RARE_WAYS = Categorical(torch.tensor([[3.0, -2.0, 0.0]]), one_hot=True)
NORMAL = DiagGaussian(torch.tensor([[0.5, -0.3, -0.2, -0.6]]))
FAMILIES: dict[str, Any] = {"bits": BITS, "ways": WAYS, "factors": FACTORS}
RARE: dict[str, Any] = {"bits": RARE_BITS, "ways": RARE_WAYS}


def curved(z: Tensor) -> Tensor:
    """A surrogate that knows nothing of f."""
    return 0.4 * torch.tanh(z).sum(-1) - 0.3 * torch.sin(z[..., 0]) * torch.tanh(z[..., 1])


Estimator = Callable[[Any, torch.Generator], Estimate]


def nvil_(dist: Any, generator: torch.Generator) -> Estimate:
    average = MovingAverage()
    average.update(torch.tensor([0.1, 0.3, -0.2]))
    baseline = torch.full(dist.params.shape[:-1], 0.1)
    return nvil(of_vector, dist, baseline, average, generator=generator)


EVERYWHERE: dict[str, Estimator] = {
    "reinforce": lambda d, g: reinforce(of_vector, d, baseline=0.2, generator=g),
    "nvil": nvil_,
    "rloo 2": lambda d, g: rloo(of_vector, d, generator=g),
    "rloo 4": lambda d, g: rloo(of_vector, d, num_samples=4, generator=g),
    "muprop": lambda d, g: muprop(of_vector, d, generator=g),
    "muprop, scaled": lambda d, g: muprop(of_vector, d, eta=0.4, slope=-0.7, baseline=0.3, generator=g),
    "simple muprop": lambda d, g: muprop(of_vector, d, slope=0.0, generator=g),
    "relax": lambda d, g: relax(of_vector, d, curved, generator=g),
    "relax, coupled": lambda d, g: relax(of_vector, d, curved, coupling="coupled", generator=g),
    "relax, 3 conditional": lambda d, g: relax(of_vector, d, curved, num_conditional=3, generator=g),
    "relax, c = f + r": lambda d, g: relax(of_vector, d, relaxed_objective(of_vector, d, 0.5, curved), generator=g),
    "rebar": lambda d, g: rebar(of_vector, d, generator=g),
    "rebar, coupled": lambda d, g: rebar(of_vector, d, eta=0.7, temperature=0.3, coupling="coupled", generator=g),
    "dlax": lambda d, g: dlax(of_vector, d, curved, generator=g),
    "marginal": lambda d, g: marginal(of_vector, d, curved, generator=g),
}
FOR_BITS: dict[str, Estimator] = {
    "arm": lambda d, g: arm(of_vector, d, generator=g),
    "disarm": lambda d, g: disarm(of_vector, d, generator=g),
    "arms 2": lambda d, g: arms(of_vector, d, num_samples=2, generator=g),
    "arms 3": lambda d, g: arms(of_vector, d, num_samples=3, generator=g),
    "arms 6": lambda d, g: arms(of_vector, d, num_samples=6, generator=g),
    "double cv 2": lambda d, g: double_cv(of_vector, d, generator=g),
    "double cv 4": lambda d, g: double_cv(of_vector, d, num_samples=4, alpha=0.6, generator=g),
    "rodeo 2": lambda d, g: rodeo(of_vector, d, generator=g),
    "rodeo 3": lambda d, g: rodeo(
        of_vector, d, num_samples=3, h=lambda f, x: torch.tanh(f + 0.5 * x), alpha=0.7, beta=-0.2, generator=g
    ),
}
FOR_WAYS: dict[str, Estimator] = {"disarm": FOR_BITS["disarm"]}
UNBIASED = [
    *[(family, name, make) for name, make in EVERYWHERE.items() for family in FAMILIES],
    *[("bits", name, make) for name, make in FOR_BITS.items()],
    *[("ways", name, make) for name, make in FOR_WAYS.items()],
]


def of_rows(make: Estimator, dist: Any, rows: int, seed: int = 1) -> Any:
    generator = seeded(seed)
    return collect(lambda n: make(repeat(dist, n), generator).grad, rows)


@pytest.mark.parametrize("family, name, make", UNBIASED, ids=[f"{name}-{family}" for family, name, _ in UNBIASED])
def test_unbiased(family: str, name: str, make: Estimator) -> None:
    dist = FAMILIES[family]
    exact = exact_gradient(dist, of_vector)
    rows = 2 * MILLION if name == "dlax" else MILLION // 2
    assert_unbiased(of_rows(make, dist, rows), exact, power=0.02)


# DLAX's noise hides everything where outcomes are rare.
WHERE_RARE = [case for case in UNBIASED if case[0] in RARE and case[1] != "dlax"]


@pytest.mark.parametrize("family, name, make", WHERE_RARE, ids=[f"{name}-{family}" for family, name, _ in WHERE_RARE])
def test_unbiased_where_outcomes_are_rare(family: str, name: str, make: Estimator) -> None:
    del name
    dist = RARE[family]
    assert_unbiased(of_rows(make, dist, MILLION // 4), exact_gradient(dist, of_vector), power=0.1)


@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_estimators_of_continuous_outcomes(scale: float) -> None:
    """RLOO, LAX and the pathwise gradient, for continuous outcomes."""
    makes: dict[str, Estimator] = {
        "rloo": lambda d, g: rloo(of_normal, d, num_samples=3, generator=g),
        "lax": lambda d, g: lax(of_normal, d, lambda z: scale * curved(z), generator=g),
        "reparameterized": lambda d, g: reparameterized(of_normal, d, generator=g),
    }
    exact = gradient_by_quadrature(NORMAL, of_normal)
    for make in makes.values():
        assert_unbiased(of_rows(make, NORMAL, MILLION), exact, power=0.03)


@pytest.mark.parametrize("family", FAMILIES)
def test_enumeration_is_exact(family: str) -> None:
    dist = FAMILIES[family]
    double = dist.with_params(dist.params.double())
    estimate = enumerated(of_vector, double)
    torch.testing.assert_close(estimate.grad[0], exact_gradient(double, of_vector))
    samples = reinforce(of_vector, repeat(dist, MILLION // 2), generator=seeded(3)).value.double()
    error = float(samples.std()) / len(samples) ** 0.5
    assert abs(float(samples.mean()) - float(estimate.value)) < 4 * error


@pytest.mark.parametrize("average", ["geometric", "arithmetic"])
@pytest.mark.parametrize("num_samples", [2, 3])
def test_vimco_estimates_the_gradient_of_the_multi_sample_bound(average: Any, num_samples: int) -> None:
    dist = Bernoulli(torch.tensor([[0.5, -0.7]]))

    def log_weight(b: Tensor) -> Tensor:
        return 1.2 * b[..., 0] - 1.5 * b[..., 1] + 1.1 * b.prod(-1)

    params = dist.params[0].double().requires_grad_()
    table = dist.support()
    log_probs = dist.with_params(params.expand(4, 2)).log_prob(table.double())
    weights = log_weight(table.double()).exp()
    bound = torch.zeros((), dtype=torch.float64)
    for choice in itertools.product(range(4), repeat=num_samples):
        index = torch.tensor(choice)
        bound = bound + log_probs[index].sum().exp() * weights[index].mean().log()
    (exact,) = torch.autograd.grad(bound, params)
    make: Estimator = lambda d, g: vimco(log_weight, d, num_samples=num_samples, average=average, generator=g)  # noqa: E731
    assert_unbiased(of_rows(make, dist, MILLION), exact, power=0.02)
    values = vimco(log_weight, repeat(dist, MILLION // 2), num_samples=num_samples, generator=seeded(4)).value.double()
    assert abs(float(values.mean() - bound.detach())) < 4 * float(values.std()) / len(values) ** 0.5


# What theory says of variances


def variance(make: Estimator, dist: Any, rows: int = 125_000) -> float:
    return float(of_rows(make, dist, rows).variance)


def test_disarm_is_arm_with_less_variance_and_arms_of_two() -> None:
    assert variance(FOR_BITS["disarm"], BITS) < 0.95 * variance(FOR_BITS["arm"], BITS)
    assert variance(FOR_BITS["arms 2"], BITS) == pytest.approx(variance(FOR_BITS["disarm"], BITS), rel=0.05)
    # At equal evaluations of f the antithetic pair beats the independent one.
    assert variance(FOR_BITS["disarm"], BITS) < variance(EVERYWHERE["rloo 2"], BITS)


def test_control_variates_with_the_right_scale_lower_the_variance() -> None:
    plain = variance(EVERYWHERE["rloo 2"], BITS)
    assert variance(FOR_BITS["double cv 2"], BITS) < 0.7 * plain
    assert variance(FOR_BITS["rodeo 2"], BITS) < 0.7 * plain
    for family in FAMILIES.values():
        assert variance(EVERYWHERE["muprop"], family) < 0.9 * variance(EVERYWHERE["simple muprop"], family)
    assert variance(EVERYWHERE["rebar"], BITS) < 0.9 * variance(EVERYWHERE["reinforce"], BITS)


def test_a_perfect_surrogate_of_the_outcome_leaves_no_variance() -> None:
    for family in FAMILIES.values():
        grads = marginal(of_vector, repeat(family, 1_000), of_vector, generator=seeded(5)).grad
        expected = exact_gradient(family, of_vector).float().expand_as(grads)
        torch.testing.assert_close(grads, expected, rtol=1e-4, atol=1e-5)


def test_a_linear_f_leaves_no_variance_to_rodeo_and_double_cv() -> None:
    def linear(b: Tensor) -> Tensor:
        return b @ torch.tensor([1.0, -2.0, 0.5]) + 0.3

    rows = repeat(BITS, 20_000)
    plain = float(rloo(linear, rows, generator=seeded(6)).grad.var(0).sum())
    for estimate in (
        double_cv(linear, rows, generator=seeded(6)),
        rodeo(linear, rows, alpha=1.0, beta=0.0, generator=seeded(6)),
    ):
        assert float(estimate.grad.var(0).sum()) < 0.5 * plain


def test_more_conditional_samples_lower_the_variance() -> None:
    one, three = (
        variance(lambda d, g, m=m: rebar(of_vector, d, num_conditional=m, generator=g), WAYS)  # type: ignore[misc]
        for m in (1, 3)
    )
    assert three < 0.95 * one


# Biased estimators, and by how much


def cubic(b: Tensor) -> Tensor:
    return (b**3).sum(-1)


@pytest.mark.parametrize("logit", [-1.5, 0.8])
def test_straight_through_is_off_by_the_slope_at_the_ends(logit: float) -> None:
    """E = p (1 - p) E f'(b), 3 p times the gradient of b^3: too small below p = 1/3, too large above."""
    dist = Bernoulli(torch.tensor([[logit]]))
    exact, p = exact_gradient(dist, cubic), float(dist.mean)
    statistics = of_rows(lambda d, g: straight_through(cubic, d, generator=g), dist, MILLION)
    assert rejects(statistics, exact)
    assert (float(statistics.mean) > float(exact)) == (p > 1 / 3)
    assert_unbiased(statistics, exact * 3 * p, power=0.02)


def test_reinmax_is_exact_for_a_quadratic_and_off_by_the_trapezoid_for_a_cubic() -> None:
    dist = Bernoulli(torch.tensor([[-0.8]]))
    make: Callable[[Any], Estimator] = lambda f: lambda d, g: reinmax(f, d, generator=g)  # noqa: E731
    quadratic: Callable[[Tensor], Tensor] = lambda b: ((b - 0.3) ** 2 + b).sum(-1)  # noqa: E731
    assert_unbiased(of_rows(make(quadratic), dist, MILLION), exact_gradient(dist, quadratic), power=0.02)
    statistics = of_rows(make(cubic), dist, MILLION)
    assert rejects(statistics, exact_gradient(dist, cubic))
    assert_unbiased(statistics, exact_gradient(dist, cubic) * 1.5, power=0.02)


def test_reinmax_is_exact_for_a_quadratic_of_one_category() -> None:
    matrix = torch.tensor([[0.5, -1.0, 0.3, 0.0], [0.2, 1.0, 0.0, 0.4], [1.0, 0.0, -0.6, 0.1], [0.0, 0.3, 0.2, 0.8]])
    f: Callable[[Tensor], Tensor] = lambda b: (b @ matrix.to(b.dtype) * b).sum(-1) + 1.5 * b[..., 1]  # noqa: E731
    statistics = of_rows(lambda d, g: reinmax(f, d, generator=g), WAYS, MILLION)
    assert_unbiased(statistics, exact_gradient(WAYS, f), power=0.02)
    assert rejects(of_rows(lambda d, g: straight_through(f, d, generator=g), WAYS, MILLION), exact_gradient(WAYS, f))


@pytest.mark.parametrize("family", FAMILIES)
def test_concrete_is_the_gradient_of_the_relaxed_problem(family: str) -> None:
    """Its expectation is the derivative of E f(sigma(z / lambda)), by common random numbers; not that of E f(b)."""
    dist = FAMILIES[family]
    statistics = of_rows(lambda d, g: concrete(of_vector, d, temperature=0.7, generator=g), dist, MILLION)
    assert rejects(statistics, exact_gradient(dist, of_vector))
    rows = repeat(dist, 200_000)
    noise = rows.sample_noise(seeded(7)).double()
    for k in range(dist.params.shape[-1]):
        step = torch.zeros(dist.params.shape[-1], dtype=torch.float64)
        step[k] = 1e-4
        up, down = (
            of_vector(moved.soften(moved.relax(noise), 0.7))
            for moved in (dist.with_params(rows.params.double() + s) for s in (step, -step))
        )
        slopes = (up - down) / 2e-4
        error = float(slopes.std()) / len(slopes) ** 0.5 + float(statistics.standard_error[k])
        assert abs(float(slopes.mean()) - float(statistics.mean[k])) < 4 * error


def test_concrete_comes_closer_as_the_temperature_falls() -> None:
    exact = exact_gradient(BITS, of_vector)
    distances = [
        float(
            (
                of_rows(lambda d, g, t=t: concrete(of_vector, d, temperature=t, generator=g), BITS, MILLION).mean
                - exact
            ).norm()
        )  # type: ignore[misc]
        for t in (1.0, 0.3, 0.1)
    ]
    assert distances == sorted(distances, reverse=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_gumbel_rao_has_the_mean_of_straight_through_gumbel_and_less_variance(family: str) -> None:
    dist = FAMILIES[family]
    plain = of_rows(lambda d, g: straight_through(of_vector, d, temperature=0.5, generator=g), dist, MILLION)
    averaged = of_rows(lambda d, g: gumbel_rao(of_vector, d, num_conditional=8, generator=g), dist, MILLION // 2)
    assert averaged.variance < 0.8 * plain.variance
    error = (plain.standard_error.square() + averaged.standard_error.square()).sqrt()
    assert ((plain.mean - averaged.mean).abs() < 4 * error).all()
    assert rejects(averaged, exact_gradient(dist, of_vector))


# What they refuse


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "rebar on indices": (lambda: rebar(of_vector, Categorical(torch.zeros(2, 3))), "one_hot=True"),
    "muprop on indices": (lambda: muprop(of_vector, MultiCategorical(torch.zeros(2, 4), (2, 2))), "one_hot=True"),
    "muprop on normals": (lambda: muprop(of_normal, DiagGaussian(torch.zeros(2, 4))), "lacks"),
    "concrete on indices": (lambda: concrete(of_vector, Categorical(torch.zeros(2, 3))), "one_hot=True"),
    "concrete on normals": (lambda: concrete(of_normal, DiagGaussian(torch.zeros(2, 4))), "reparameterized"),
    "reparameterized on bits": (lambda: reparameterized(of_vector, Bernoulli(torch.zeros(2, 3))), "use concrete"),
    "arm on categories": (lambda: arm(of_vector, WAYS), "Bernoulli"),
    "disarm on normals": (lambda: disarm(of_normal, NORMAL), "or a Categorical"),
    "rloo of one": (lambda: rloo(of_vector, BITS, num_samples=1), "at least 2"),
    "vimco of one": (lambda: vimco(of_vector, BITS, num_samples=1), "at least 2"),
    "arms of one": (lambda: arms(of_vector, BITS, num_samples=1), "at least 2"),
    "rodeo on categories": (lambda: rodeo(of_vector, WAYS), "Bernoulli"),
    "enumerated normals": (lambda: enumerated(of_normal, NORMAL), "lacks"),
    "marginal of normals": (lambda: marginal(of_normal, NORMAL, of_normal), "use relax or lax"),
    "no conditional sample": (lambda: relax(of_vector, BITS, curved, num_conditional=0), "at least 1"),
    "coupled and several": (
        lambda: relax(of_vector, BITS, curved, coupling="coupled", num_conditional=2),
        "give no conditional_noise",
    ),
    "unknown coupling": (lambda: relax(of_vector, BITS, curved, coupling="loose"), "'coupled'"),  # type: ignore[arg-type]
    "several rows of f": (lambda: rloo(lambda b: b, BITS), "one number a row"),
    "gumbel_rao of none": (lambda: gumbel_rao(of_vector, BITS, num_conditional=0), "at least 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_word_on_what_to_do(name: str) -> None:
    attempt, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        attempt()


# Shapes


@pytest.mark.parametrize("name, make", [*EVERYWHERE.items(), *FOR_BITS.items()])
def test_leading_dimensions_of_any_number(name: str, make: Estimator) -> None:
    params = torch.randn(4, 5, 3, generator=seeded(8)).requires_grad_()
    estimate = make(Bernoulli(params), seeded(9))
    assert estimate.grad.shape == params.shape and estimate.value.shape == (4, 5)
    estimate.backward()
    assert params.grad is not None
    torch.testing.assert_close(params.grad, estimate.grad.detach() / 20)


def _embedded(dist: Distribution) -> Callable[[Tensor], Tensor]:
    return lambda b: of_vector(dist.embed(b))


def test_indices_and_one_hot_vectors_give_the_same_estimates() -> None:
    params = torch.tensor([[0.4, -0.3, 0.1, -0.8]]).expand(50, 4)
    index, vector = Categorical(params), Categorical(params, one_hot=True)
    pairs = [
        (rloo(_embedded(index), index, generator=seeded(10)), rloo(of_vector, vector, generator=seeded(10))),
        (disarm(_embedded(index), index, generator=seeded(10)), disarm(of_vector, vector, generator=seeded(10))),
        (enumerated(_embedded(index), index), enumerated(of_vector, vector)),
        (
            marginal(_embedded(index), index, curved, generator=seeded(10)),
            marginal(of_vector, vector, curved, generator=seeded(10)),
        ),
    ]
    for one, other in pairs:
        torch.testing.assert_close(one.grad, other.grad)
        assert one.grad.abs().max() > 0.01


def test_coupled_relax_asks_its_surrogate_once_and_is_relax_with_the_noise_that_gives_z_back() -> None:
    params, calls = torch.randn(40, 3, generator=seeded(11)), []
    weight = torch.tensor(0.7, requires_grad=True)

    def counted(z: Tensor) -> Tensor:
        calls.append(z)
        return weight * curved(z)

    noise = BITS.with_params(params).sample_noise(seeded(12))
    coupled = relax(of_vector, BITS.with_params(params), counted, noise=noise, coupling="coupled")
    assert len(calls) == 1
    here = BITS.with_params(params)
    z = here.relax(noise)
    back = here.noise_given(here.threshold(z), z)
    twice = relax(of_vector, here, counted, noise=noise, conditional_noise=back)
    assert len(calls) == 3
    torch.testing.assert_close(coupled.grad, twice.grad, rtol=1e-4, atol=1e-4)
    (one,), (other,) = (torch.autograd.grad(x.variance_loss(), weight) for x in (coupled, twice))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weight", [None, 0.3, torch.tensor([1.0, 0.0, -2.0, 0.5])], ids=["mean", "number", "rows"])
def test_loss_does_in_one_pass_what_backward_and_the_variance_loss_do(weight: Any) -> None:
    theta, phi, scale = (torch.full(shape, 0.3).requires_grad_() for shape in ((4, 3), (), ()))
    inputs = theta, phi, scale

    def estimate() -> Estimate:
        f = lambda b: scale * of_vector(b)  # noqa: E731
        return relax(f, Bernoulli(2 * theta), lambda z: phi * curved(z), generator=seeded(13))

    found = estimate()
    found.backward(weight)
    (0.5 * found.variance_loss()).backward()
    together = torch.autograd.grad(estimate().loss(weight, variance_coef=0.5), inputs)
    torch.testing.assert_close(together, tuple(x.grad for x in inputs))
    factor = 0.25 if weight is None else weight
    torch.testing.assert_close(estimate().loss(weight).detach(), (found.value * factor).sum().detach())
    alone = torch.autograd.grad(estimate().loss(weight, variance_coef=0.0), inputs, allow_unused=True)
    assert alone[1] is None and theta.grad is not None and theta.grad.abs().sum() > 0
    torch.testing.assert_close(alone[0], theta.grad)
