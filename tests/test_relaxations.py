"""What estimators ask of discrete distributions beside samples: supports, one-hot samples, densities and noise of z."""

from __future__ import annotations

import pytest
import torch
from scipy import stats  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor
from torch.nn import functional as F

from relax_rl.distributions import Bernoulli, Categorical, FiniteDistribution, MultiCategorical
from tests.estimator_cases import seeded
from tests.oracles import noise_grid, outcomes, probabilities, repeat

NVEC = (2, 3, 1)


def make(name: str, params: Tensor) -> FiniteDistribution:
    if name == "bernoulli":
        return Bernoulli(params)
    if name.startswith("multi"):
        return MultiCategorical(params, NVEC, one_hot=name.endswith("one-hot"))
    return Categorical(params, one_hot=name.endswith("one-hot"))


NAMES = ["bernoulli", "categorical", "categorical one-hot", "multi", "multi one-hot"]
each = pytest.mark.parametrize("name", NAMES)


def moderate(name: str, rows: int = 1, dtype: torch.dtype = torch.float64) -> FiniteDistribution:
    return make(name, (torch.randn(1, 6, generator=seeded(1), dtype=dtype) * 0.8).expand(rows, 6))


@each
def test_the_support_lists_every_outcome_once(name: str) -> None:
    dist = moderate(name)
    plain = dist if name == "bernoulli" else make(name.removesuffix(" one-hot"), dist.params)
    expected = outcomes(plain)
    table = dist.support()
    assert table.shape[0] == len(expected) == len(table.unique(dim=0))
    assert torch.equal(dist.embed(table), plain.embed(expected))
    log_probs = repeat(dist, len(table)).log_prob(table)
    torch.testing.assert_close(log_probs.exp(), probabilities(plain))


@each
def test_the_mean_is_the_expected_embedding(name: str) -> None:
    dist = moderate(name)
    table = dist.support()
    expected = repeat(dist, len(table)).log_prob(table)
    torch.testing.assert_close(dist.mean[0], expected.exp() @ dist.embed(table))


@each
def test_outcomes_are_the_limit_of_softened_samples(name: str) -> None:
    dist = moderate(name, 500)
    z = dist.relax(dist.sample_noise(seeded(2)).double())
    torch.testing.assert_close(dist.soften(z, 1e-6), dist.embed(dist.threshold(z)))


@pytest.mark.parametrize("name", ["categorical", "multi"])
def test_one_hot_samples_are_the_same_outcomes(name: str) -> None:
    index, one_hot = moderate(name, 300), moderate(f"{name} one-hot", 300)
    noise, fresh = (index.sample_noise(seeded(k)).double() for k in (3, 4))
    z = index.relax(noise)
    sample, vector = index.threshold(z), one_hot.threshold(z)
    assert vector.shape == (300, 6) and vector.dtype == torch.float64
    assert torch.equal(index.embed(sample), vector) and torch.equal(one_hot.embed(vector), vector)
    assert torch.equal(index.embed(index.mode()), one_hot.mode())
    assert torch.equal(index.log_prob(sample), one_hot.log_prob(vector))
    assert torch.equal(index.relax_given(sample, fresh), one_hot.relax_given(vector, fresh))
    if name == "categorical":
        assert torch.equal(vector, F.one_hot(sample, 6).double())
    assert type(one_hot.with_params(one_hot.params[:5])) is type(one_hot)
    assert one_hot.with_params(one_hot.params[:5]).mode().shape == (5, 6)


@each
def test_the_noise_of_a_relaxed_sample_is_recovered(name: str) -> None:
    dist = moderate(name, 1_000)
    noise = dist.sample_noise(seeded(13)).double()
    moving = dist.with_params(dist.params.clone().requires_grad_())
    found = moving.noise_of(moving.relax(noise))
    assert not found.requires_grad
    torch.testing.assert_close(found, noise)


@each
def test_the_noise_of_a_conditional_sample_is_recovered(name: str) -> None:
    dist = moderate(name, 5_000)
    sample = dist.threshold(dist.relax(dist.sample_noise(seeded(5)).double()))
    noise = dist.sample_noise(seeded(6)).double()
    found = dist.noise_given(sample, dist.relax_given(sample, noise))
    assert not found.requires_grad
    torch.testing.assert_close(found, noise, rtol=1e-6, atol=1e-6)


@each
def test_coupled_noise_gives_z_back_and_is_independent_of_the_outcome(name: str) -> None:
    """Noise made from (b, z) is standard given b: what makes it as good as independent noise for unbiasedness."""
    dist = moderate(name, 60_000)
    z = dist.relax(dist.sample_noise(seeded(7)).double())
    sample = dist.threshold(z)
    noise = dist.noise_given(sample, z)
    torch.testing.assert_close(dist.relax_given(sample, noise), z, rtol=1e-6, atol=1e-6)
    law = stats.logistic if name == "bernoulli" else stats.gumbel_r
    embedded = dist.embed(sample)
    for column in range(6):
        chosen = embedded[:, column] == 1
        for part in (noise[chosen, column], noise[~chosen, column]):
            if len(part) > 1_000:
                assert stats.kstest(part.numpy(), law.cdf).pvalue > 1e-4


@each
def test_recovered_noise_is_finite_at_extreme_logits(name: str) -> None:
    params = (torch.rand(4_000, 6, generator=seeded(8)) * 160 - 80) * (torch.arange(4_000)[:, None] % 2)
    dist = make(name, params)
    z = dist.relax(dist.sample_noise(seeded(9)))
    sample = dist.threshold(z)
    noise = dist.noise_given(sample, z)
    assert noise.isfinite().all()
    torch.testing.assert_close(dist.relax_given(sample, noise), z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_the_density_of_relaxed_samples_integrates_to_one_at_any_parameters(name: str) -> None:
    """By importance weights on the density of the noise, and with the score of z: both integrals are known."""
    params = torch.tensor([[0.4, -0.7]], dtype=torch.float64)
    nodes, weights = noise_grid(make(name, params), 400)
    here, there = make(name, params.expand(len(nodes), 2)), make(name, (params + 0.3).expand(len(nodes), 2))
    z = here.relax(nodes)
    ratio = torch.exp(there.relaxed_log_prob(z) - here.relaxed_log_prob(z))
    assert float(weights @ ratio) == pytest.approx(1.0, abs=1e-8)
    leaf = params.expand(len(nodes), 2).clone().requires_grad_()
    (score,) = torch.autograd.grad(make(name, leaf).relaxed_log_prob(z).sum(), leaf)
    torch.testing.assert_close(weights @ score, torch.zeros(2, dtype=torch.float64), atol=1e-8, rtol=0)


def test_the_density_of_a_relaxed_bit_is_the_logistic_one() -> None:
    z = torch.linspace(-5, 5, 11, dtype=torch.float64)[:, None]
    dist = Bernoulli(torch.full((11, 1), 0.7, dtype=torch.float64))
    expected = stats.logistic(0.7).logpdf(z[:, 0].numpy())
    torch.testing.assert_close(dist.relaxed_log_prob(z), torch.from_numpy(expected))


@each
def test_leading_dimensions_count_independent_distributions(name: str) -> None:
    params = torch.randn(4, 3, 6, generator=seeded(10), dtype=torch.float64)
    deep, flat = make(name, params), make(name, params.reshape(12, 6))
    noise, fresh = (flat.sample_noise(seeded(k)).double() for k in (11, 12))
    assert deep.sample_noise(seeded(11)).shape == (4, 3, 6)
    z = flat.relax(noise)
    sample = flat.threshold(z)
    deep_z, deep_sample = z.reshape(4, 3, 6), sample.reshape(4, 3, *sample.shape[1:])
    assert torch.equal(deep.relax(noise.reshape(4, 3, 6)), deep_z)
    assert torch.equal(deep.threshold(deep_z), deep_sample)
    assert torch.equal(deep.log_prob(deep_sample).flatten(), flat.log_prob(sample))
    assert torch.equal(deep.entropy().flatten(), flat.entropy())
    assert torch.equal(deep.relaxed_log_prob(deep_z).flatten(), flat.relaxed_log_prob(z))
    given = deep.relax_given(deep_sample, fresh.reshape(4, 3, 6))
    assert torch.equal(given.reshape(12, 6), flat.relax_given(sample, fresh))
    assert torch.equal(deep.mean.reshape(12, 6), flat.mean)
