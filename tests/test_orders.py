"""Orders and sets drawn without replacement, against plain loops over draws, and z given them against rejection."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor

from relax_rl.distributions import PlackettLuce, Subset
from relax_rl.estimators import dlax, enumerated, marginal, muprop, rebar, reinforce, relax, relax_gradient, rloo
from tests.estimator_cases import of_vector, seeded
from tests.oracles import assert_unbiased, collect, noise_grid, repeat

Family = Callable[[Tensor], Any]
FAMILIES: dict[str, Family] = {
    "order": PlackettLuce,
    "first 2": lambda params: PlackettLuce(params, 2),
    "first": lambda params: PlackettLuce(params, 1),
    "pair": lambda params: Subset(params, 2),
    "one": lambda params: Subset(params, 1),
    "all but one": lambda params: Subset(params, params.shape[-1] - 1),
    "all": lambda params: Subset(params, params.shape[-1]),
}
every = pytest.mark.parametrize("family", FAMILIES)
uncertain = pytest.mark.parametrize("family", [name for name in FAMILIES if name != "all"])
LOGITS = torch.tensor([[0.4, -0.7, 1.1, 0.0]], dtype=torch.float64)


def chance(logits: list[float], order: tuple[int, ...]) -> float:
    """Of drawing these items one after the other without replacement."""
    left, found = [math.exp(x) for x in logits], 1.0
    for item in order:
        found *= left[item] / sum(left)
        left[item] = 0.0
    return found


def law(dist: Any) -> dict[tuple[int, ...], float]:
    """Every outcome of the first row, and its probability."""
    logits, found = dist.params[0].tolist(), {}
    k = dist.k or len(logits)
    for order in itertools.permutations(range(len(logits)), k):
        outcome = tuple(sorted(order)) if isinstance(dist, Subset) else order
        found[outcome] = found.get(outcome, 0.0) + chance(logits, order)
    return found


def drawn(dist: Any, rows: int, seed: int) -> tuple[Any, Tensor, Tensor]:
    many = repeat(dist, rows)
    z = many.relax(many.sample_noise(seeded(seed)))
    return many, z, many.threshold(z)


def any_outcome(dist: Any, seed: int = 4) -> Tensor:
    """Outcomes drawn uniformly, however improbable."""
    rows, n = dist.params.shape
    order = torch.rand(rows, n, generator=seeded(seed)).argsort(-1)[:, : dist.k or n]
    return order.sort(-1).values if isinstance(dist, Subset) else order


def extreme(family: str, rows: int) -> Any:
    params = torch.rand(rows, 6, generator=seeded(2)) * 160 - 80
    corners = torch.tensor([-80.0, 80.0, 0.0])[torch.randint(3, (rows, 6), generator=seeded(3))]
    return FAMILIES[family](torch.where(torch.arange(rows)[:, None] % 2 == 0, params, corners))


def extreme_noise(dist: Any, seed: int) -> Tensor:
    """Noise with every seventh value at one of its ends."""
    noise = dist.sample_noise(seeded(seed))
    ends = torch.tensor([-3.6038, 36.7368])[torch.randint(2, noise.shape, generator=seeded(seed + 1))]
    return torch.where(torch.arange(noise.numel()).reshape(noise.shape) % 7 == 0, ends, noise)


# Outcomes and their probabilities


@every
def test_probabilities_scores_and_means_are_those_of_a_loop_over_draws(family: str) -> None:
    dist = FAMILIES[family](LOGITS)
    expected, table = law(dist), dist.support()
    assert {tuple(row.tolist()) for row in table} == expected.keys() and len(table) == len(expected)
    rows = dist.with_params(LOGITS.expand(len(table), -1).clone().requires_grad_())
    log_prob = rows.log_prob(table)
    probs = torch.tensor([expected[tuple(row.tolist())] for row in table], dtype=torch.float64)
    torch.testing.assert_close(log_prob, probs.log(), rtol=1e-7, atol=1e-7)
    if family != "all":
        (score,) = torch.autograd.grad(log_prob.sum(), rows.params)
        torch.testing.assert_close(rows.score(table), score, rtol=1e-9, atol=1e-9)
        up, down = (dist.with_params(LOGITS + torch.eye(4)[1] * step) for step in (1e-5, -1e-5))
        slope = [math.log(law(up)[tuple(row.tolist())] / law(down)[tuple(row.tolist())]) / 2e-5 for row in table]
        torch.testing.assert_close(score[:, 1], torch.tensor(slope, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dist.entropy()[0], -(probs * probs.log()).sum(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dist.mean[0], (probs[:, None] * dist.embed(table)).sum(0), rtol=1e-9, atol=1e-9)
    assert torch.equal(dist.mode()[0], table[probs.argmax()])


@uncertain
def test_outcomes_have_their_probabilities(family: str) -> None:
    dist = FAMILIES[family](LOGITS.float())
    _, _, sample = drawn(dist, 100_000, 5)
    expected = law(dist)
    counts = [int((sample == torch.tensor(outcome)).all(-1).sum()) for outcome in expected]
    assert sum(counts) == len(sample)
    assert stats.chisquare(counts, [len(sample) * p for p in expected.values()], sum_check=False).pvalue > 1e-4


@pytest.mark.parametrize("n, k, scale", [(9, 4, 1.0), (12, 3, 20.0), (8, 7, 5.0)])
def test_probabilities_of_larger_sets_are_sums_over_sets(n: int, k: int, scale: float) -> None:
    """The integral against the recursion, whose terms are all positive too, but which grows with 2^k."""
    dist = Subset(scale * torch.randn(1, n, generator=seeded(6), dtype=torch.float64), k)
    sets = dist.support()
    by_sum = {tuple(sorted(order)): 0.0 for order in sets.tolist()}
    for order in itertools.permutations(sets[17].tolist()) if k < 5 else ():
        by_sum[tuple(sorted(order))] += chance(dist.params[0].tolist(), order)
    if k < 5:
        assert dist.log_prob(sets[17]).item() == pytest.approx(math.log(by_sum[tuple(sets[17].tolist())]), abs=1e-7)
    assert float(dist.log_prob(sets).exp().sum()) == pytest.approx(1.0, abs=1e-7)


def test_orders_and_sets_too_many_to_run_through_are_refused() -> None:
    for what in (lambda d: d.support(), lambda d: d.entropy(), lambda d: d.mean):
        for dist in (PlackettLuce(torch.zeros(1, 30)), Subset(torch.zeros(1, 30), 15)):
            with pytest.raises(ValueError, match=r"runs through \d+ cases, \d+ at most: "):
                what(dist)
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"^k of Subset is {k}, expected 1 to 3"):
            Subset(torch.zeros(1, 3), k)
    with pytest.raises(ValueError, match=r"^k of PlackettLuce is 4, expected 1 to 3"):
        PlackettLuce(torch.zeros(1, 3), 4)


# The conditional relaxed sample


@every
def test_relaxed_and_conditional_samples_give_back_the_outcome(family: str) -> None:
    for dist in (extreme(family, 300), repeat(FAMILIES[family](LOGITS.float()), 300)):
        for sample in (dist.threshold(dist.relax(dist.sample_noise(seeded(7)))), any_outcome(dist)):
            for noise in (dist.sample_noise(seeded(8)), extreme_noise(dist, 9)):
                z = dist.relax_given(sample, noise)
                assert z.isfinite().all() and z.dtype == torch.float32
                assert torch.equal(dist.threshold(z), sample)


def test_ties_by_rounding_are_parted() -> None:
    """Noise at its end adds nothing that float32 sees to the sum of the exponentials before it."""
    dist = repeat(PlackettLuce(torch.zeros(1, 5)), 3)
    noise = torch.tensor([-3.0, 36.7, 36.7, 36.7, 0.0]).expand(3, 5)
    for order in ([0, 4, 3, 2, 1], [0, 1, 2, 3, 4], [0, 3, 1, 2, 4]):
        sample = torch.tensor(order).expand(3, 5)
        z = dist.relax_given(sample, noise)
        assert torch.equal(dist.threshold(z), sample) and len(z[0].unique()) == 5


def projections(z: Tensor) -> list[Tensor]:
    """Coordinates, extremes and mixtures, so that the dependence is tested too."""
    mixture = torch.randn(3, z.shape[1], generator=seeded(10), dtype=z.dtype)
    pairs = [z[:, i] - z[:, j] for i, j in itertools.combinations(range(z.shape[1]), 2)]
    return [*z.unbind(-1), *pairs, z.amax(-1), z.amin(-1), z.median(-1).values, *(z @ mixture.T).unbind(-1)]


def worst_p_value(z: Tensor, other: Tensor) -> float:
    """Smallest Kolmogorov-Smirnov p-value over the projections of two samples."""
    pairs = zip(projections(z), projections(other), strict=True)
    return min(float(stats.ks_2samp(x.numpy(), y.numpy(), method="asymp").pvalue) for x, y in pairs)


@uncertain
def test_conditional_samples_have_the_law_of_those_that_rejection_leaves(family: str) -> None:
    dist = FAMILIES[family](LOGITS.float())
    _, z, sample = drawn(dist, 40_000, 11)
    outcomes = sorted(law(dist), key=law(dist).__getitem__)
    for outcome in (outcomes[0], outcomes[len(outcomes) // 2], outcomes[-1]):
        given = z[(sample == torch.tensor(outcome)).all(-1)][:1_500]
        few = repeat(dist, len(given))
        z_tilde = few.relax_given(torch.tensor(outcome).expand(len(given), -1), few.sample_noise(seeded(12)))
        assert len(given) > 100 and worst_p_value(given, z_tilde) > 1e-4


@every
def test_noise_and_conditional_noise_are_inverses(family: str) -> None:
    dist, z, sample = drawn(FAMILIES[family](LOGITS), 1_000, 13)
    noise = dist.sample_noise(seeded(14)).double()
    torch.testing.assert_close(dist.noise_of(dist.relax(noise)), noise)
    torch.testing.assert_close(dist.noise_given(sample, dist.relax_given(sample, noise)), noise, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dist.relax_given(sample, dist.noise_given(sample, z)), z, rtol=1e-4, atol=1e-4)


@uncertain
def test_the_noise_behind_a_conditional_sample_is_standard_whatever_the_outcome(family: str) -> None:
    """What coupled estimates ask: Gumbel noise, independent of b."""
    dist, z, sample = drawn(FAMILIES[family](LOGITS.float()), 3_000, 15)
    noise, fresh = dist.noise_given(sample, z), dist.sample_noise(seeded(16))
    assert worst_p_value(noise, fresh) > 1e-4
    likely = (sample == dist.mode()[:1]).all(-1)
    assert 200 < likely.sum() < 2_900 and worst_p_value(noise[likely], fresh) > 1e-4


@every
def test_gradients_equal_finite_differences(family: str) -> None:
    """z~ of sets to the first order alone."""
    params = torch.randn(1, 4, generator=seeded(17), dtype=torch.float64).requires_grad_()
    here = FAMILIES[family]
    noise, sample = here(params.detach()).sample_noise(seeded(18)).double(), any_outcome(here(params))
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda p: here(p).relax(noise),
        lambda p: here(p).log_prob(sample),
        lambda p: here(p).entropy(),
        lambda p: here(p).soften(here(p).relax(noise), 0.7),
    ]
    for function in functions:
        assert torch.autograd.gradcheck(function, (params,))
        assert torch.autograd.gradgradcheck(function, (params,))
    # The quantile's rounding, divided by the step, leaves 1e-4.
    assert torch.autograd.gradcheck(lambda p: here(p).relax_given(sample, noise), (params,), eps=1e-4, atol=2e-4)
    if isinstance(here(params), PlackettLuce):
        assert torch.autograd.gradgradcheck(lambda p: here(p).relax_given(sample, noise), (params,))


def test_soft_orders_and_sets_harden_as_the_temperature_falls() -> None:
    for family in FAMILIES:
        dist, z, sample = drawn(FAMILIES[family](LOGITS), 500, 19)
        soft, hard = dist.soften(z, 0.5), dist.soften(z, 1e-3)
        assert soft.shape == dist.embed(sample).shape
        assert ((hard - dist.embed(sample)).abs() < 0.01).double().mean() > 0.98, family
        rows = soft.unflatten(-1, (-1, 4)).sum(-1) if isinstance(dist, PlackettLuce) else soft.sum(-1) / dist.k
        torch.testing.assert_close(rows, torch.ones_like(rows))


# Numerics


@every
def test_float32_is_finite_and_agrees_with_float64_from_minus_80_to_80(family: str) -> None:
    dist = extreme(family, 400)
    exact, sample, noise = dist.with_params(dist.params.double()), any_outcome(dist), extreme_noise(dist, 20)
    torch.testing.assert_close(dist.log_prob(sample).double(), exact.log_prob(sample), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(dist.score(sample).double(), exact.score(sample), rtol=1e-4, atol=1e-4)
    given = dist.relax_given(sample, noise)
    torch.testing.assert_close(given.double(), exact.relax_given(sample, noise.double()), rtol=1e-5, atol=1e-4)
    params = dist.params.clone().requires_grad_()
    here = dist.with_params(params)
    for value in (
        here.log_prob(sample),
        here.entropy(),
        here.soften(here.relax(noise)),
        here.relax_given(sample, noise),
    ):
        (first,) = torch.autograd.grad((value + torch.tanh(value)).sum(), params, create_graph=True)
        assert value.isfinite().all() and first.isfinite().all()


@every
def test_a_masked_item_comes_last_or_never_and_has_no_derivatives(family: str) -> None:
    params = torch.tensor([[0.3, -math.inf, 0.1, -0.5, -math.inf, 0.8]]).expand(2_000, -1).clone().requires_grad_()
    dist = FAMILIES[family](params)
    if isinstance(dist, Subset) and dist.k > 4:
        with pytest.raises(ValueError, match=r"^a row of logits leaves 4 items, expected at least k = \d above -inf$"):
            dist.sample_noise()
        return
    noise = dist.sample_noise(seeded(21))
    z = dist.relax(noise)
    sample = dist.threshold(z)
    if family == "order":
        assert torch.equal(sample[:, 4:], torch.tensor([1, 4]).expand(2_000, 2))
    else:
        assert not ((sample == 1) | (sample == 4)).any()
    few = dist.with_params(params[:, [0, 2, 3, 5]])
    places = torch.tensor([0, 0, 1, 2, 0, 3])
    smaller = places[sample[:, : few.params.shape[-1]]]
    log_prob = dist.log_prob(sample)
    torch.testing.assert_close(log_prob, few.log_prob(smaller), rtol=1e-4, atol=1e-5)
    given = dist.relax_given(sample, dist.sample_noise(seeded(22)))
    assert torch.equal(dist.threshold(given), sample) and given[:, [1, 4]].max() < -900
    torch.testing.assert_close(dist.relax_given(sample, dist.noise_given(sample, z)), z, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(dist.entropy(), few.entropy())
    for value in (log_prob, given, dist.entropy(), dist.soften(z)):
        (gradient,) = torch.autograd.grad(value.sum() + value.square().sum(), params, retain_graph=True)
        assert gradient.isfinite().all() and not gradient[:, [1, 4]].any()
    assert not dist.score(sample)[:, [1, 4]].any() and dist.score(sample).isfinite().all()
    wrong = sample.clone()
    wrong[wrong == 1] = wrong[:, 0][(wrong == 1).any(-1)]
    wrong[:, 0] = 1
    assert (dist.log_prob(wrong) == -math.inf).all()


@every
def test_leading_dimensions_and_one_hot_samples(family: str) -> None:
    dist = FAMILIES[family](torch.randn(2, 3, 4, generator=seeded(23)))
    hot = type(dist)(dist.params, dist.k, one_hot=True)
    noise = dist.sample_noise(seeded(24))
    z = dist.relax(noise)
    sample = dist.threshold(z)
    assert torch.equal(hot.threshold(z), dist.embed(sample))
    for name in ("log_prob", "score"):
        many = getattr(dist, name)(sample.expand(5, *sample.shape))
        assert many.shape[:3] == (5, 2, 3) and torch.equal(many[2], getattr(dist, name)(sample))
        torch.testing.assert_close(getattr(hot, name)(hot.threshold(z)), many[0])
    torch.testing.assert_close(hot.relax_given(hot.threshold(z), noise), dist.relax_given(sample, noise))
    row = dist.with_params(dist.params[1, 2]).relax_given(sample[1, 2], noise[1, 2])
    torch.testing.assert_close(row, dist.relax_given(sample, noise)[1, 2])
    mapped = torch.func.vmap(lambda p, b, e: dist.with_params(p).relax_given(b, e))(dist.params, sample, noise)
    torch.testing.assert_close(mapped, dist.relax_given(sample, noise))


# Estimators, against enumeration


def curved(z: Tensor) -> Tensor:
    """A surrogate that knows nothing of f."""
    return 0.4 * torch.tanh(z).sum(-1) - 0.3 * torch.sin(z[..., 0]) * torch.tanh(z[..., 1])


ESTIMATES: dict[str, Callable[[Any, torch.Generator], Any]] = {
    "reinforce": lambda d, g: reinforce(of_vector, d, baseline=0.2, generator=g),
    "rloo": lambda d, g: rloo(of_vector, d, num_samples=4, generator=g),
    "muprop": lambda d, g: muprop(of_vector, d, generator=g),
    "marginal": lambda d, g: marginal(of_vector, d, curved, generator=g),
    "dlax": lambda d, g: dlax(of_vector, d, curved, generator=g),
    "relax": lambda d, g: relax(of_vector, d, curved, generator=g),
    "relax, coupled": lambda d, g: relax(of_vector, d, curved, coupling="coupled", generator=g),
    "rebar": lambda d, g: rebar(of_vector, d, num_conditional=2, generator=g),
}


@pytest.mark.parametrize("name", ESTIMATES)
@pytest.mark.parametrize("family", ["order", "first 2", "pair"])
def test_unbiased_as_drawn(family: str, name: str) -> None:
    """The whole chain from the generator on, coarsely; the expectation is tested with more digits below."""
    dist = FAMILIES[family](LOGITS[:, :3].float())
    dist = type(dist)(dist.params, dist.k, one_hot=True)
    generator, rows = seeded(25), 2_500 if family == "pair" else 30_000
    found = collect(lambda n: ESTIMATES[name](repeat(dist, n), generator).grad, rows, chunk=2_500)
    assert_unbiased(found, exact_gradient(dist), power=0.6 if family == "pair" else 0.3)


@pytest.mark.parametrize("family, count", [("order", 32), ("first 2", 32), ("pair", 22)])
def test_the_expected_relax_estimate_is_the_gradient(family: str, count: int) -> None:
    """A sum over outcomes and over a grid of noise, as in test_estimators.py: to four digits; for sets, whose grid is coarser,
    to three."""
    dist = FAMILIES[family](LOGITS[:, :3])
    dist = type(dist)(dist.params, dist.k, one_hot=True)
    nodes, weights = noise_grid(dist, count, reach=18.0)
    expected = torch.zeros(3, dtype=torch.float64)
    for b, p in zip(dist.support(), law(dist).values(), strict=True):
        for noise, weight in zip(nodes.split(8_000), weights.split(8_000), strict=True):
            leaf = dist.with_params(dist.params.expand(len(noise), -1).clone().requires_grad_())
            sample = b.expand(len(noise), -1)
            controls = curved(leaf.relax(noise)), curved(leaf.relax_given(sample, noise))
            grad = relax_gradient(of_vector(sample), leaf.log_prob(sample), *controls, leaf.params)
            expected += p * (weight[:, None] * grad.detach()).sum(0)
    exact = exact_gradient(dist)
    torch.testing.assert_close(expected, exact, rtol=0, atol=(5e-5 if family != "pair" else 1e-3) * float(exact.norm()))


def exact_gradient(dist: Any) -> Tensor:
    """`[P]` by central differences of a sum over the outcomes of `law`, in float64."""
    table = dist.with_params(dist.params).support()
    plain = type(dist)(dist.params.double(), dist.k)
    value = of_vector(table.double()).tolist()

    def expectation(row: Tensor) -> float:
        probs = law(plain.with_params(row[None]))
        return sum(probs[tuple(b.tolist())] * v for b, v in zip(plain.support(), value, strict=True))

    steps = 1e-5 * torch.eye(dist.params.shape[-1], dtype=torch.float64)
    row = plain.params[0]
    return torch.tensor([(expectation(row + s) - expectation(row - s)) / 2e-5 for s in steps], dtype=torch.float64)


@pytest.mark.parametrize("family", ["order", "first 2", "pair"])
def test_enumeration_is_exact(family: str) -> None:
    dist = FAMILIES[family](LOGITS[:, :3])
    dist = type(dist)(dist.params, dist.k, one_hot=True)
    torch.testing.assert_close(enumerated(of_vector, dist).grad[0], exact_gradient(dist), rtol=1e-5, atol=1e-6)
