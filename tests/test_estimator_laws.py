"""Antithetic and multi-sample estimators against their published forms in plain loops: the law of the samples, the
estimate from the same samples, and its variance."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from relax_rl.distributions import Bernoulli, Categorical, MultiCategorical
from relax_rl.estimators import (
    Estimate,
    arm,
    arms,
    disarm,
    double_cv,
    gumbel_rao,
    reinmax,
    rloo,
    rodeo,
    vimco,
)
from relax_rl.estimators.antithetic import stick_breaking_logits
from tests.estimator_cases import of_vector, seeded
from tests.oracles import repeat

ROWS = 400_000
LOGITS = torch.tensor([[0.3, -1.6, 0.9], [-2.5, 0.0, 3.0]], dtype=torch.float64)
BITS = Bernoulli(LOGITS)
WAYS = Categorical(torch.tensor([[0.4, -0.3, 0.1, -0.8], [2.0, 0.3, -1.5, 0.0]], dtype=torch.float64), one_hot=True)
FACTORS = MultiCategorical(WAYS.params.repeat(1, 2)[:, :5], (2, 3), one_hot=True)


def slope_of(b: Tensor) -> Tensor:
    leaf = b.clone().requires_grad_()
    return torch.autograd.grad(of_vector(leaf).sum(), leaf)[0]


def logistic(u: Tensor) -> Tensor:
    return u.log() - torch.log1p(-u)


def same(found: Estimate, expected: Tensor) -> None:
    torch.testing.assert_close(found.grad, expected, rtol=1e-6, atol=1e-9)
    assert expected.abs().max() > 0.01


# ARMS: the copula, its pairs, and the variance it leaves


def rare_together(q: float, count: int, members: int) -> float:
    """P(these `members` of `count` bits have their rarer value, of probability q): a corner of the simplex."""
    share = 1 - q ** (1 / (count - 1))
    return max(0.0, 1 - members * share) ** (count - 1)


def counts_of_rare(q: float, count: int) -> list[float]:
    """P(exactly m of the bits have their rarer value), by inclusion and exclusion."""
    found = []
    for m in range(count + 1):
        terms = [(-1) ** j * math.comb(count - m, j) * rare_together(q, count, m + j) for j in range(count - m + 1)]
        found.append(math.comb(count, m) * sum(terms))
    return found


@pytest.mark.parametrize("count", [2, 3, 4, 6, 10])
@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.7, 0.97])
def test_arms_draws_from_the_published_copula(p: float, count: int) -> None:
    dist = repeat(Bernoulli(torch.tensor([[math.log(p / (1 - p))]], dtype=torch.float64)), ROWS)
    sample = arms(lambda b: b[..., 0], dist, num_samples=count, generator=seeded(1)).sample[..., 0]
    for ones in sample:
        assert abs(float(ones.mean()) - p) < 4.5 * math.sqrt(p * (1 - p) / ROWS)
    q, rare = min(p, 1 - p), (sample if p < 0.5 else 1 - sample)
    assert (
        rare_together(0.3, 4, 2)
        == pytest.approx(max(0.0, 2 * 0.3 ** (1 / 3) - 1) ** 3)
        == pytest.approx(0.0390, abs=1e-4)
    )
    for i, j in itertools.combinations(range(count), 2):
        both = rare_together(q, count, 2)
        assert abs(float((rare[i] * rare[j]).mean()) - both) <= 4.5 * math.sqrt(both * (1 - both) / ROWS)
    law, seen = counts_of_rare(q, count), torch.bincount(rare.sum(0).long(), minlength=count + 1) / ROWS
    assert sum(law) == pytest.approx(1.0, abs=1e-9)
    for probability, share in zip(law, seen.tolist(), strict=True):
        assert abs(share - probability) <= 5 * math.sqrt(max(probability, 1e-6) / ROWS)


def published_arms(u: Tensor, logits: Tensor) -> Tensor:
    """Algorithm 1 of Dimitriev and Zhou, from uniform numbers `[n, B, P]`, one bit after the other."""
    count, found = len(u), torch.zeros_like(logits)
    p = torch.sigmoid(logits)
    exponential = -torch.log(u)
    copula = (1 - exponential / exponential.sum(0)) ** (count - 1)
    bits = torch.where(p < 0.5, copula < p, 1 - copula < p).double()
    value = of_vector(bits)
    for row, bit in itertools.product(range(len(logits)), range(logits.shape[1])):
        here = float(p[row, bit])
        if here < 0.5:
            both = max(0.0, 2 * here ** (1 / (count - 1)) - 1) ** (count - 1)
        else:
            both = 2 * here - 1 + max(0.0, 2 * (1 - here) ** (1 / (count - 1)) - 1) ** (count - 1)
        correction = here * (1 - here) / (here - both)
        for k in range(count):
            centred = float(value[k, row] - value[:, row].mean())
            found[row, bit] += centred * (float(bits[k, row, bit]) - here) / (count - 1) * correction
    return found


@pytest.mark.parametrize("count", [2, 3, 4, 6, 10])
def test_arms_is_the_published_estimate_of_the_same_uniform_numbers(count: int) -> None:
    u = torch.rand(count, 2, 3, generator=seeded(2), dtype=torch.float64)
    same(arms(of_vector, BITS, num_samples=count, noise=1 - u), published_arms(u, LOGITS))


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("p", [0.1, 0.3, 0.8])
def test_the_variance_of_arms_is_that_of_the_copula_to_two_percent(p: float, count: int) -> None:
    """For one bit and f(b) = b the estimate is a function of the number of ones alone, whose law is known."""
    q, law = min(p, 1 - p), counts_of_rare(min(p, 1 - p), count)
    scale = q * (1 - q) / (q - rare_together(q, count, 2)) / (count - 1)
    values = [scale * m * (1 - m / count) for m in range(count + 1)]
    mean = sum(w * v for w, v in zip(law, values, strict=True))
    variance = sum(w * v**2 for w, v in zip(law, values, strict=True)) - mean**2
    assert mean == pytest.approx(p * (1 - p))
    dist = repeat(Bernoulli(torch.tensor([[math.log(p / (1 - p))]], dtype=torch.float64)), ROWS)
    found = arms(lambda b: b[..., 0], dist, num_samples=count, generator=seeded(3)).grad
    assert float(found.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / ROWS))
    assert float(found.var()) == pytest.approx(variance, rel=0.02)


def test_the_more_samples_repel_each_other_the_less_their_estimate_varies() -> None:
    dist = repeat(Bernoulli(LOGITS[:1]), ROWS // 4)
    for count in (2, 4, 10):
        independent = rloo(of_vector, dist, num_samples=count, generator=seeded(4)).grad.var(0).sum()
        assert arms(of_vector, dist, num_samples=count, generator=seeded(4)).grad.var(0).sum() < 0.9 * independent


# The others: the same samples, the same estimate


def test_arm_and_disarm_are_their_published_estimates_of_the_same_uniform_numbers() -> None:
    u = torch.rand(2, 3, generator=seeded(5), dtype=torch.float64)
    p = torch.sigmoid(LOGITS)
    b, mirrored = (u > 1 - p).double(), (u < p).double()
    difference = (of_vector(b) - of_vector(mirrored)).unsqueeze(-1)
    found = arm(of_vector, BITS, noise=logistic(u))
    assert torch.equal(found.sample, torch.stack([b, mirrored]))
    same(found, difference * (u - 0.5))
    sign = (-1.0) ** mirrored * (b != mirrored)
    same(disarm(of_vector, BITS, noise=logistic(u)), 0.5 * difference * sign * torch.sigmoid(LOGITS.abs()))


def test_disarm_of_categories_is_that_of_the_sticks_that_were_broken() -> None:
    u = torch.rand(2, 3, generator=seeded(6), dtype=torch.float64)
    found = disarm(of_vector, WAYS, noise=logistic(u))
    for row, logits in enumerate(WAYS.params):
        leaf = logits.clone().requires_grad_()
        sticks = torch.stack([leaf[i] - torch.logsumexp(leaf[i + 1 :], 0) for i in range(3)])
        torch.testing.assert_close(sticks, stick_breaking_logits(leaf))
        pair = [(u[row] > 1 - torch.sigmoid(sticks)).tolist(), (u[row] < torch.sigmoid(sticks)).tolist()]
        first = [bits.index(True) if True in bits else 3 for bits in pair]
        values = [float(of_vector(torch.eye(4, dtype=torch.float64)[i])) for i in first]
        expected = torch.zeros(4, dtype=torch.float64)
        for i in range(3):
            if i > max(first):
                break
            weight = (
                0.5
                * (values[0] - values[1])
                * (pair[0][i] - pair[1][i])
                * float(torch.sigmoid(sticks[i].detach().abs()))
            )
            expected += weight * torch.autograd.grad(sticks[i], leaf, retain_graph=True)[0]
        torch.testing.assert_close(found.grad[row], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dist", [BITS, WAYS, FACTORS], ids=["bits", "ways", "factors"])
@pytest.mark.parametrize("count", [2, 5])
def test_rloo_and_vimco_are_their_published_estimates_of_the_same_samples(dist: Any, count: int) -> None:
    found = rloo(of_vector, dist, num_samples=count, generator=seeded(7))
    bound, arithmetic = (
        vimco(of_vector, dist, num_samples=count, average=average, generator=seeded(7))
        for average in ("geometric", "arithmetic")
    )
    assert torch.equal(found.sample, bound.sample) and torch.equal(found.sample, arithmetic.sample)
    value, score = of_vector(found.sample), found.sample - dist.mean
    of_rloo, of_vimco, of_arithmetic = (torch.zeros_like(dist.params) for _ in range(3))
    total = torch.logsumexp(value, 0) - math.log(count)
    for k in range(count):
        others = [value[j] for j in range(count) if j != k]
        of_rloo += (value[k] - sum(others) / (count - 1)).unsqueeze(-1) * score[k] / count
        without = torch.logsumexp(torch.stack([*others, sum(others) / (count - 1)]), 0) - math.log(count)
        of_vimco += (total - without).unsqueeze(-1) * score[k]
        mean = torch.stack(others).exp().mean(0).log()
        without = torch.logsumexp(torch.stack([*others, mean]), 0) - math.log(count)
        of_arithmetic += (total - without).unsqueeze(-1) * score[k]
    same(found, of_rloo)
    same(bound, of_vimco)
    same(arithmetic, of_arithmetic)


@pytest.mark.parametrize("make", [rloo, vimco, double_cv, rodeo, arm, disarm])
def test_samples_come_one_by_one_or_as_mirrored_pairs(make: Any) -> None:
    """Independent ones are both 1 with probability p^2, mirrored ones with max(0, 2 p - 1)."""
    pair = make in (arm, disarm)
    options = {} if pair else {"num_samples": 3}
    sample = make(of_vector, repeat(Bernoulli(LOGITS[:1]), ROWS), generator=seeded(13), **options).sample
    p = torch.sigmoid(LOGITS[0])
    both = (2 * p - 1).clamp(min=0) if pair else p**2
    for i, j in itertools.combinations(range(len(sample)), 2):
        for seen, expected in ((sample[i].mean(0), p), ((sample[i] * sample[j]).mean(0), both)):
            assert ((seen - expected).abs() <= 4.5 * (expected * (1 - expected) / ROWS).sqrt()).all()


def test_each_outcome_of_disarm_has_its_probability() -> None:
    sample = disarm(of_vector, repeat(WAYS, ROWS), generator=seeded(14)).sample
    p = WAYS.mean[0]
    for one in sample:
        assert ((one.mean(0) - p).abs() < 4.5 * (p * (1 - p) / ROWS).sqrt()).all()


@pytest.mark.parametrize("count", [2, 4])
def test_double_cv_is_its_published_estimate_of_the_same_samples(count: int) -> None:
    found = double_cv(of_vector, BITS, num_samples=count, alpha=-0.7, generator=seeded(8))
    b, p = found.sample, torch.sigmoid(LOGITS)
    value, slope, expected = of_vector(b), slope_of(b), torch.zeros_like(LOGITS)
    linear = []
    for k in range(count):
        others = sum(slope[j] for j in range(count) if j != k) / (count - 1)
        linear.append(-0.7 * (others * (b[k] - p)).sum(-1))
    for k in range(count):
        rest = sum(value[j] + linear[j] for j in range(count) if j != k) / (count - 1)
        expected += (value[k] + linear[k] - rest).unsqueeze(-1) * (b[k] - p) / count
        expected -= -0.7 * slope[k] * p * (1 - p) / count
    same(found, expected)


@pytest.mark.parametrize("count", [2, 3])
def test_rodeo_is_its_published_estimate_of_the_same_samples(count: int) -> None:
    """The paper's operator takes the mean over bits: its scales are ours times their number."""
    alpha, beta = 0.4, -0.3
    h = lambda f, x: torch.tanh(f + 0.5 * x)  # noqa: E731
    found = rodeo(of_vector, BITS, num_samples=count, h=h, alpha=alpha, beta=beta, generator=seeded(9))
    b, p, bits = found.sample, torch.sigmoid(LOGITS), LOGITS.shape[1]
    value, slope = of_vector(b), slope_of(b)

    def control(k: int, x: Tensor) -> Tensor:
        others = [j for j in range(count) if j != k]
        return sum(h(value[j], (slope[j] * (x - b[j])).sum(-1)) for j in others) / (count - 1)  # type: ignore[return-value]

    def steined(k: int, *, times_score: bool) -> Tensor:
        total = torch.zeros_like(LOGITS)
        weighed = lambda x: control(k, x).unsqueeze(-1) * (x - p if times_score else torch.ones_like(p))  # noqa: E731
        for i in range(bits):
            flipped = b[k].clone()
            flipped[:, i] = 1 - flipped[:, i]
            to_flip = torch.where(b[k][:, i] == 1, 1 - p[:, i], p[:, i]).unsqueeze(-1)
            total += to_flip * (weighed(flipped) - weighed(b[k])) / bits
        return total

    expected = torch.zeros_like(LOGITS)
    for k in range(count):
        others = [j for j in range(count) if j != k]
        rest = sum(value[j] + alpha * bits * steined(j, times_score=False)[:, 0] for j in others) / (count - 1)
        expected += (value[k] - rest).unsqueeze(-1) * (b[k] - p) / count
        expected += beta * bits * steined(k, times_score=True) / count
    same(found, expected)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_gumbel_rao_is_its_published_estimate_of_the_same_exponentials(temperature: float) -> None:
    """Paulus et al. 2021: Gumbels given the outcome are held, and the mean of softened sums is differentiated."""
    count, noise = 4, WAYS.sample_noise(seeded(10)).double()
    found = gumbel_rao(
        of_vector, WAYS, temperature=temperature, num_conditional=count, noise=noise, generator=seeded(11)
    )
    outcome, logits = found.sample, WAYS.params.clone().requires_grad_()
    fresh = WAYS.with_params(WAYS.params.expand(count, 2, 4)).sample_noise(seeded(11)).double()
    exponential = torch.exp(-fresh)
    chosen = (outcome * exponential).sum(-1, keepdim=True)
    total = WAYS.params.exp().sum(-1, keepdim=True)
    given = outcome * (-chosen.log() + total.log())
    given = given + (1 - outcome) * -torch.log(exponential / WAYS.params.exp() + chosen / total)
    held = given - WAYS.params
    surrogate = torch.softmax((logits + held) / temperature, -1).mean(0)
    moving = outcome + surrogate - surrogate.detach()
    torch.testing.assert_close(
        found.grad, torch.autograd.grad(of_vector(moving).sum(), logits)[0], rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("temperature", [1.0, 1.3])
@pytest.mark.parametrize("dist", [WAYS, BITS], ids=["ways", "bits"])
def test_reinmax_is_its_published_estimate_of_the_same_samples(dist: Any, temperature: float) -> None:
    """Algorithm 2 of Liu et al. 2023: 2 J((p_t + b) / 2) f' - J(p) f' / 2 with J(q) = diag(q) - q q'; bit by bit q (1 - q)."""
    found = reinmax(of_vector, dist, temperature=temperature, generator=seeded(12))
    slope, probs = slope_of(found.sample), dist.mean
    halfway = 0.5 * (dist.with_params(dist.params / temperature).mean + found.sample)

    def jacobian(q: Tensor) -> Tensor:
        if isinstance(dist, Bernoulli):
            return q * (1 - q) * slope
        return q * slope - q * (q * slope).sum(-1, keepdim=True)

    same(found, 2 * jacobian(halfway) - 0.5 * jacobian(probs))
