"""Estimators where rows end, outcomes are impossible, batches are empty, and types are narrow."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td

from relax_rl.agents.returns import gae, n_step_returns, vtrace
from relax_rl.critics import MLPSurrogate
from relax_rl.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Dirichlet,
    Gamma,
    Matching,
    PlackettLuce,
    Subset,
    from_torch,
)
from relax_rl.estimators import (
    MovingAverage,
    StochasticGraph,
    arm,
    arms,
    concrete,
    dlax,
    enumerated,
    lax,
    marginal,
    muprop,
    nvil,
    reinforce,
    relax,
    reparameterized,
    unordered_set,
    without_replacement,
)
from relax_rl.estimators.diagnostics import bias
from relax_rl.estimators.score import nvil_signal
from tests.estimator_cases import seeded
from tests.oracles import assert_unbiased, collect, repeat


def test_rows_that_have_ended_are_in_no_baseline() -> None:
    active = torch.tensor([True, False, True, False])
    baseline = torch.zeros(4, requires_grad=True)
    average, graph = MovingAverage(), StochasticGraph(generator=seeded(0))
    graph.draw(Bernoulli(torch.zeros(4, 1)), "nvil", baseline=baseline, average=average, active=active)
    graph.cost(torch.tensor([5.0, 100.0, 3.0, 100.0]), active=active)
    found = graph.estimates()["0"]
    assert average.mean == 4.0 and average.std == 1.0
    assert found.fit_loss is not None and float(found.fit_loss.detach()) == (25.0 + 9.0) / 2
    assert not found.grad[~active].any() and found.grad[active].all()
    (slope,) = torch.autograd.grad(found.fit_loss, baseline)
    assert slope.tolist() == [-5.0, 0.0, -3.0, 0.0]


def test_an_empty_batch_changes_no_average() -> None:
    average = MovingAverage()
    nvil(lambda b: b.sum(-1) + 2.0, Bernoulli(torch.zeros(8, 1)), torch.zeros(8), average)
    before = average.mean, average.std
    nvil(lambda b: b.sum(-1), Bernoulli(torch.zeros(0, 1)), torch.zeros(0), average)
    assert (average.mean, average.std) == before and math.isfinite(average.mean)


def test_a_masked_item_leaves_estimates_of_sets_finite_and_exact() -> None:
    params = torch.tensor([[0.0, 1.0, 0.5, -math.inf]], dtype=torch.float64)
    dist, generator = Subset(params, 2, one_hot=True), seeded(1)

    def f(b: Tensor) -> Tensor:
        return (b * torch.tensor([1.0, 3.0, -2.0, 9.0])).sum(-1).square()

    exact = enumerated(f, dist).grad[0]
    found = collect(
        lambda rows: marginal(f, repeat(dist, rows), lambda b: 0.8 * f(b), generator=generator).grad, 50_000, 10_000
    )
    assert exact[3] == 0.0
    assert_unbiased(found, exact)
    assert dist.score(torch.tensor([[1.0, 0.0, 0.0, 1.0]])).isfinite().all()


@pytest.mark.parametrize("estimator", [unordered_set, without_replacement])
def test_what_f_says_of_impossible_outcomes_does_not_count(estimator: Any) -> None:
    logits = torch.tensor([[0.0, 1.0, -math.inf, -math.inf]])
    found = estimator(lambda b: torch.where(b >= 2, math.inf, b.float()), Categorical(logits), num_samples=3)
    exact = enumerated(lambda b: b.float(), Categorical(logits))
    torch.testing.assert_close(found.grad, exact.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.value, exact.value)


def test_a_surrogate_of_counts_with_a_top_is_exact_beyond_it() -> None:
    """z lies above the largest count half of the time that this is drawn; soften stands still there, and so must its slope."""
    dist = Binomial(torch.tensor([[1.0]], dtype=torch.float64), 2)
    net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    for weight in net.parameters():
        nn.init.normal_(weight, generator=seeded(2))
    generator = seeded(3)

    def draw(rows: int) -> Tensor:
        many = repeat(dist, rows)
        return relax(lambda b: (b - 0.7).square().sum(-1), many, MLPSurrogate(net, many), generator=generator).grad

    exact = enumerated(lambda b: (b - 0.7).square().sum(-1), dist).grad[0]
    found = collect(draw, 750_000)
    assert_unbiased(found, exact)


@pytest.mark.parametrize(
    "dist",
    [
        td.Laplace(torch.tensor(0.2, requires_grad=True), torch.tensor(1.0)),
        td.Beta(torch.tensor(2.0, requires_grad=True), torch.tensor(1.0)),
        td.LKJCholesky(3, torch.tensor(1.5, requires_grad=True)),
    ],
    ids=lambda dist: type(dist).__name__,
)
def test_a_single_row_of_torchs_families(dist: td.Distribution) -> None:
    house = from_torch(dist)
    sample = house.threshold(house.relax(house.sample_noise(seeded(4))))
    torch.testing.assert_close(
        house.log_prob(sample.detach()).squeeze(), dist.log_prob(sample.detach().squeeze()).detach(), check_dtype=False
    )


@pytest.mark.parametrize("estimator", [relax, dlax])
def test_surrogates_work_under_autocast(estimator: Any) -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    dist, f = Categorical(torch.zeros(64, 3), one_hot=True), lambda b: b[..., 0] * 2.0
    plain = estimator(f, dist, MLPSurrogate(net, dist), generator=seeded(5)).grad
    with torch.autocast("cpu", torch.bfloat16):
        found = estimator(f, dist, MLPSurrogate(net, dist), generator=seeded(5))
    assert found.grad.dtype == torch.float32
    torch.testing.assert_close(found.grad, plain, rtol=1e-5, atol=1e-6)
    found.variance_loss().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in net.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", [Gamma, Dirichlet, Beta])
def test_positive_numbers_of_half_precision(family: Any, dtype: torch.dtype) -> None:
    dist = family(torch.full((200, 4), 0.5, dtype=dtype))
    for found in (
        reparameterized(lambda x: x.sum(-1), dist, generator=seeded(6)),
        lax(lambda x: x.sum(-1), dist, lambda z: 0.5 * z.sum(-1), generator=seeded(6)),
    ):
        assert found.grad.dtype == dtype and found.grad.isfinite().all()
    sample = dist.threshold(dist.relax(dist.sample_noise(seeded(7))))
    assert dist.noise_of(sample).isfinite().all()


def test_returns_of_half_precision_and_with_flags_as_numbers() -> None:
    def made(dtype: torch.dtype, flags: torch.dtype) -> dict[str, Any]:
        numbers = torch.randn(2, 5, 2, generator=seeded(8)).to(dtype)
        over = torch.zeros(5, 2).index_fill(0, torch.tensor([2]), 1.0).to(flags)
        return {
            "reward": numbers[0],
            "next_value": numbers[1],
            "terminated": over,
            "truncated": 0 * over.to(torch.int64),
            "valid": 1 + 0 * over.to(torch.int64),
        }

    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for flags in (torch.bool, torch.float32):
            how, exact = made(dtype, flags), made(dtype, torch.bool)
            value = how["reward"] * 2.0
            for function, more in ((gae, {"value": value, "gae_lambda": 0.9}), (n_step_returns, {"n": 3})):
                found = function(**how, **more, gamma=0.9)  # type: ignore[operator]
                wide = {name: x.double() if x.is_floating_point() else x for name, x in exact.items()}
                more = {name: x.double() if isinstance(x, Tensor) else x for name, x in more.items()}
                expected = function(**wide, **more, gamma=0.9)  # type: ignore[operator]
                assert found.dtype == dtype
                torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-2)
            target = vtrace(torch.zeros_like(value), value=value, **how, gamma=0.9).target
            assert target.dtype == dtype and target.isfinite().all()
            each = torch.full_like(value, 0.9)  # a discount for each step, of any type
            torch.testing.assert_close(vtrace(torch.zeros_like(value), value=value, **how, gamma=each).target, target)
            mixed = {**how, "reward": how["reward"].double()}
            assert vtrace(torch.zeros_like(value), value=value, **mixed, gamma=0.9).target.dtype == torch.float64
    with pytest.raises(ValueError, match=r"expected all of them \[T, N\]"):
        gae(*[torch.zeros(4, 2)] * 3, *[torch.zeros(4, 1, dtype=torch.bool)] * 3, gamma=0.9, gae_lambda=0.9)
    with pytest.raises(ValueError, match=r"expected all of them \[T, N\]"):
        gae(*[torch.zeros(0, 2)] * 3, *[torch.zeros(0, 2, dtype=torch.bool)] * 3, gamma=0.9, gae_lambda=0.9)


@pytest.mark.parametrize("estimator", [reinforce, muprop])
@pytest.mark.parametrize("shape", [(4, 1), (3,), (2, 4)])
def test_a_baseline_has_a_number_for_each_row(estimator: Any, shape: tuple[int, ...]) -> None:
    dist = Bernoulli(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"baseline has shape .*, expected a number or one for each row: \(4,\)"):
        estimator(lambda b: b.sum(-1), dist, baseline=torch.zeros(shape))
    for fits in (torch.zeros(()), torch.zeros(1), torch.zeros(4)):
        assert estimator(lambda b: b.sum(-1), dist, baseline=fits).grad.shape == (4, 2)


def test_rounding_is_no_bias() -> None:
    reference = torch.tensor([0.3, -1.7])
    found = bias(torch.nextafter(reference, torch.full((2,), math.inf)).expand(10, 2), reference)
    assert found.largest_z < 4.0 and found.relative < 1e-6
    assert bias(reference.expand(10, 2), reference + 0.01).largest_z > 1e3


def test_what_is_no_outcome_is_refused() -> None:
    with pytest.raises(ValueError, match="masked logits leave a row of params no matching"):
        concrete(lambda b: b.sum(-1), Matching(torch.full((1, 4), -math.inf), one_hot=True))
    allowed = torch.tensor([[0.0, -math.inf, -math.inf, 0.0]])
    matching = Matching(allowed)
    assert matching.threshold(matching.relax(matching.sample_noise(seeded(9)))).tolist() == [[0, 1]]
    for estimator in (arm, arms):
        with pytest.raises(ValueError, match="of Bernoulli is nan, expected a number"):
            estimator(lambda b: b.sum(-1), Bernoulli(torch.tensor([[0.0, math.nan]])))
    with pytest.raises(ValueError, match="a set of 2 different items, but one has an item twice"):
        Subset(torch.zeros(4), 2).log_prob(torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="an order of different items, but one has an item twice"):
        PlackettLuce(torch.zeros(4)).log_prob(torch.tensor([0, 0, 1, 2]))


def test_distributions_are_equal_to_themselves_alone() -> None:
    one, other = Bernoulli(torch.zeros(3)), Bernoulli(torch.zeros(3))
    assert one == one and one != other and len({one, other}) == 2


def test_inference_mode_is_named_where_gradients_are_needed() -> None:
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match=r"torch\.inference_mode keeps none: use torch\.no_grad"),
    ):
        relax(lambda b: b.sum(-1), Bernoulli(torch.zeros(4, 1)), lambda z: z.tanh().sum(-1))


def test_the_error_of_a_baseline_for_no_rows_is_nothing() -> None:
    baseline = torch.zeros(0, requires_grad=True)
    signal, error = nvil_signal(torch.zeros(0), baseline, 0.0)
    error.backward()
    assert signal.shape == (0,) and error.item() == 0.0 and baseline.grad is not None
