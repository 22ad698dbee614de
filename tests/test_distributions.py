"""Distributions: marginals, conditional samples, densities and numerics, against `torch.distributions` and scipy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor
from torch import distributions as td
from torch.nn import functional as F

from relax_rl.distributions import (
    Bernoulli,
    Categorical,
    DiagGaussian,
    Distribution,
    MultiCategorical,
    RelaxedDistribution,
    TanhGaussian,
    gumbel_noise,
    logistic_noise,
)
from tests.oracles import outcomes, probabilities, repeat

# The largest and smallest values that the noise can take (the uniform behind it is a multiple of 2^-53).
HIGHEST, LOWEST_GUMBEL = 36.7368, -3.6038
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def categorical(params: Tensor) -> Categorical:
    return Categorical(params)


def multi_equal(params: Tensor) -> MultiCategorical:
    return MultiCategorical(params, (3, 3))


def multi_unequal(params: Tensor) -> MultiCategorical:
    return MultiCategorical(params, (2, 3, 1))


Family = Callable[[Tensor], Any]
DISCRETE: list[Family] = [categorical, multi_equal, multi_unequal, Bernoulli]
CONTINUOUS: list[Family] = [DiagGaussian, TanhGaussian]
discrete = pytest.mark.parametrize("family", DISCRETE)
every = pytest.mark.parametrize("family", DISCRETE + CONTINUOUS)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moderate(family: Family, seed: int = 1) -> Any:
    """One row of ordinary parameters, with outcomes of unequal but not negligible probabilities."""
    return family(torch.randn(1, 6, generator=seeded(seed)) * 0.8)


def extreme(family: Family, rows: int = 20_000) -> Any:
    """Rows of logits between -80 and 80, among them the ends and exact ties; a Gaussian's log-stds stay in [-10, 4]."""
    generator = seeded(2)
    params = torch.rand(rows, 6, generator=generator) * 160 - 80
    corners = torch.tensor([-80.0, 80.0, 0.0])[torch.randint(3, (rows, 6), generator=generator)]
    params = torch.where(torch.arange(rows)[:, None] % 2 == 0, params, corners)
    dist = family(params)
    if isinstance(dist, DiagGaussian):
        mean, log_std = params.chunk(2, -1)
        return family(torch.cat([mean, log_std.clamp(-10, 4)], -1))
    return dist


def extreme_noise(dist: Distribution, seed: int = 3) -> Tensor:
    """Noise with every seventh value at one of its ends."""
    noise = dist.sample_noise(seeded(seed))
    if isinstance(dist, DiagGaussian):
        low, high = -8.0, 8.0
    else:
        low, high = (-HIGHEST if isinstance(dist, Bernoulli) else LOWEST_GUMBEL), HIGHEST
    ends = torch.tensor([low, high])[torch.randint(2, noise.shape, generator=seeded(seed + 1))]
    return torch.where(torch.arange(noise.numel()).reshape(noise.shape) % 7 == 0, ends, noise)


def any_outcome(dist: Distribution, seed: int = 4) -> Tensor:
    """Outcomes drawn uniformly, however improbable."""
    if isinstance(dist, DiagGaussian):
        return dist.relax(extreme_noise(dist, seed)).detach()
    table = outcomes(dist)
    return table[torch.randint(len(table), (len(dist.params),), generator=seeded(seed))]


# Outcomes and their probabilities


@discrete
def test_outcomes_have_their_probabilities(family: Family) -> None:
    dist = repeat(moderate(family), 200_000)
    sample = dist.threshold(dist.relax(dist.sample_noise(seeded(5))))
    table = outcomes(dist)
    counts = torch.stack([(sample == row).reshape(len(sample), -1).all(-1).sum() for row in table])
    assert int(counts.sum()) == len(sample)
    expected = probabilities(dist) * len(sample)
    assert expected.min() > 5, "chi-square needs expected counts above 5"
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("logit", [-7.0, -4.0, 5.0, 80.0])
def test_rare_outcomes_have_their_probabilities(logit: float) -> None:
    rows = 1_000_000
    bits = Bernoulli(torch.full((rows, 1), logit))
    pairs = Categorical(torch.tensor([[logit, 0.0]]).expand(rows, 2))
    ones = float(bits.threshold(bits.relax(bits.sample_noise(seeded(6)))).sum())
    firsts = float((pairs.threshold(pairs.relax(pairs.sample_noise(seeded(7)))) == 0).sum())
    p = 1 / (1 + math.exp(-logit))
    for count in (ones, firsts):
        assert abs(count - rows * p) <= 4.5 * math.sqrt(rows * p * (1 - p))


@pytest.mark.parametrize("noise, law", [(gumbel_noise, stats.gumbel_r), (logistic_noise, stats.logistic)])
def test_noise_follows_its_law(noise: Callable[..., Tensor], law: Any) -> None:
    assert stats.kstest(noise((200_000,), seeded(8)).numpy(), law.cdf).pvalue > 1e-4


@pytest.mark.parametrize("family", CONTINUOUS)
def test_gaussian_samples_follow_their_law(family: Family) -> None:
    dist = moderate(family)
    z = repeat(dist, 200_000).relax(repeat(dist, 200_000).sample_noise(seeded(9)))
    for k in range(3):
        mean, std = float(dist.mean[0, k]), float(dist.log_std[0, k].exp())
        assert stats.kstest(z[:, k].numpy(), stats.norm(mean, std).cdf).pvalue > 1e-4
    correlation = torch.corrcoef(z.T) - torch.eye(3)
    assert correlation.abs().max() < 4.5 / math.sqrt(len(z))


# The conditional relaxed sample


@discrete
def test_relaxed_samples_and_conditional_samples_give_back_the_outcome(family: Family) -> None:
    for dist in (extreme(family), repeat(moderate(family), 50_000)):
        for noise in (dist.sample_noise(seeded(10)), extreme_noise(dist)):
            drawn = dist.threshold(dist.relax(noise))
            for sample in (drawn, any_outcome(dist)):
                for conditional_noise in (dist.sample_noise(seeded(11)), extreme_noise(dist, 12), noise):
                    z_tilde = dist.relax_given(sample, conditional_noise)
                    assert z_tilde.isfinite().all()
                    assert torch.equal(dist.threshold(z_tilde), sample)


@discrete
def test_a_stored_noise_rebuilds_the_outcome(family: Family) -> None:
    """Step by step when acting, all steps at once (and without the gradients) when learning."""
    for dist in (extreme(family, 4_000), repeat(moderate(family), 4_000)):
        noise = dist.sample_noise(seeded(13))
        acted = []
        for rows in torch.arange(len(noise)).split(7):
            step = dist.with_params(dist.params[rows].clone())
            acted.append(step.threshold(step.relax(noise[rows].clone())))
        leaf = dist.with_params(dist.params.clone().requires_grad_())
        assert torch.equal(leaf.threshold(leaf.relax(noise)), torch.cat(acted))


@discrete
def test_conditional_samples_depend_on_the_outcome_and_the_noise_alone(family: Family) -> None:
    dist = repeat(moderate(family), 100)
    noise, sample = dist.sample_noise(seeded(14)), any_outcome(dist)
    assert torch.equal(dist.relax_given(sample, noise), dist.relax_given(sample.clone(), noise.clone()))
    assert not torch.equal(dist.relax_given(sample, noise), dist.relax_given(sample, dist.sample_noise(seeded(15))))


def projections(z: Tensor) -> dict[str, Tensor]:
    """One-dimensional views of z: coordinates, extremes and mixtures, so that the dependence is tested too."""
    views = {f"z[{k}]": z[:, k] for k in range(z.shape[1])}
    mixture = torch.randn(2, z.shape[1], generator=seeded(16), dtype=z.dtype)
    return views | {"max": z.amax(-1), "min": z.amin(-1), "mix0": z @ mixture[0], "mix1": z @ mixture[1]}


def worst_p_value(z: Tensor, other: Tensor) -> float:
    """Smallest Kolmogorov-Smirnov p-value over the projections of two samples."""
    first, second = projections(z), projections(other)
    return min(float(stats.ks_2samp(first[k].numpy(), second[k].numpy(), method="asymp").pvalue) for k in first)


def z_and_outcome(dist: RelaxedDistribution) -> tuple[Tensor, Tensor]:
    """50 000 draws of z, and of b from independent ones."""
    z = dist.relax(dist.sample_noise(seeded(17)))
    return z, dist.threshold(dist.relax(dist.sample_noise(seeded(18))))


@discrete
def test_conditional_samples_have_the_marginal_of_relaxed_samples(family: Family) -> None:
    dist = repeat(moderate(family), 50_000)
    z, sample = z_and_outcome(dist)
    assert worst_p_value(z, dist.relax_given(sample, dist.sample_noise(seeded(19)))) > 1e-4


@pytest.mark.parametrize("family", [categorical, Bernoulli, multi_unequal])
def test_conditional_samples_have_the_law_of_relaxed_samples_given_the_outcome(family: Family) -> None:
    dist = moderate(family)
    many = repeat(dist, 50_000)
    z, _ = z_and_outcome(many)
    sample = many.threshold(z)
    for outcome in outcomes(dist):
        given = z[(sample == outcome).reshape(len(z), -1).all(-1)]
        if len(given) < 1_000:
            continue
        few = repeat(dist, len(given))
        z_tilde = few.relax_given(outcome.expand(len(given), *outcome.shape), few.sample_noise(seeded(20)))
        assert worst_p_value(given, z_tilde) > 1e-4


def gumbels_with_largest(log_probs: Tensor, sample: Tensor, noise: Tensor, largest: Tensor) -> Tensor:
    """Gumbels at `log_probs`, truncated at `largest`, which stands at `sample`."""
    rest = -torch.log(torch.exp(-noise - log_probs) + torch.exp(-largest)[:, None])
    return torch.where(F.one_hot(sample, log_probs.shape[-1]).bool(), largest[:, None], rest)


def test_the_marginal_test_rejects_the_wrong_largest_gumbel() -> None:
    """Published code draws it at log p_b; it belongs at location 0, whatever the outcome. H(z~) = b holds all the same."""
    dist = repeat(moderate(categorical), 50_000)
    z, sample = z_and_outcome(dist)
    noise = dist.sample_noise(seeded(19))
    chosen = noise.gather(-1, sample[:, None])[:, 0]
    right = gumbels_with_largest(dist.log_probs, sample, noise, chosen)
    wrong = gumbels_with_largest(dist.log_probs, sample, noise, chosen + dist.log_prob(sample))
    assert torch.equal(wrong.argmax(-1), sample)
    assert torch.allclose(right, dist.relax_given(sample, noise), atol=1e-5)
    assert worst_p_value(z, right) > 1e-4
    assert worst_p_value(z, wrong) < 1e-12


def test_the_marginal_test_rejects_logits_that_are_not_normalised() -> None:
    dist = repeat(Categorical(torch.tensor([[1.0, 0.2, -0.4, 0.6]])), 50_000)
    z, sample = z_and_outcome(dist)
    noise = dist.sample_noise(seeded(19))
    wrong = gumbels_with_largest(dist.params, sample, noise, noise.gather(-1, sample[:, None])[:, 0])
    assert torch.equal(wrong.argmax(-1), sample)
    assert worst_p_value(z, wrong) < 1e-12


def test_the_marginal_test_rejects_a_logistic_truncated_at_the_wrong_probability() -> None:
    dist = repeat(moderate(Bernoulli), 50_000)
    z, sample = z_and_outcome(dist)
    sign = 2 * sample - 1
    wrong = sign * F.softplus(dist.sample_noise(seeded(19)) + F.softplus(-sign * dist.params))
    assert torch.equal(dist.threshold(wrong), sample)
    assert worst_p_value(z, wrong) < 1e-12


@pytest.mark.parametrize("shift", [-5.0, 0.0, 40.0])
def test_logits_matter_up_to_a_constant(shift: float) -> None:
    params = torch.tensor([[0.3, -0.5, 1.0]], dtype=torch.float64)
    one, other = Categorical(params), Categorical(params + shift)
    noise, sample = one.sample_noise(seeded(21)), torch.tensor([1])
    torch.testing.assert_close(one.relax(noise), other.relax(noise))
    torch.testing.assert_close(one.relax_given(sample, noise), other.relax_given(sample, noise))
    torch.testing.assert_close(one.log_prob(sample), other.log_prob(sample))


def test_factors_of_a_multicategorical_are_categoricals() -> None:
    params = torch.randn(50, 6, generator=seeded(22))
    dist = multi_unequal(params)
    noise, sample = dist.sample_noise(seeded(23)), any_outcome(dist)
    parts = [Categorical(x) for x in params.split(dist.nvec, -1)]
    noises = noise.split(dist.nvec, -1)
    z = torch.cat([part.relax(x) for part, x in zip(parts, noises, strict=True)], -1)
    torch.testing.assert_close(dist.relax(noise), z)
    given = [part.relax_given(sample[:, k], x) for k, (part, x) in enumerate(zip(parts, noises, strict=True))]
    torch.testing.assert_close(dist.relax_given(sample, noise), torch.cat(given, -1))
    torch.testing.assert_close(dist.entropy(), torch.stack([part.entropy() for part in parts]).sum(0))
    assert torch.equal(dist.mode(), torch.stack([part.mode() for part in parts], -1))


# Gradients


@every
def test_gradients_equal_finite_differences(family: Family) -> None:
    """First and second order, in float64, with the outcome and the noise held fixed."""
    params = (torch.randn(4, 6, generator=seeded(24), dtype=torch.float64)).requires_grad_()
    dist = family(params.detach())
    noise, sample = dist.sample_noise(seeded(25)).double(), any_outcome(dist)
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda p: family(p).relax(noise),
        lambda p: family(p).log_prob(sample),
        lambda p: family(p).entropy(),
        lambda p: family(p).soften(family(p).relax(noise), 0.7),
    ]
    if family in DISCRETE:
        functions.append(lambda p: family(p).relax_given(sample, noise))
    for function in functions:
        assert torch.autograd.gradcheck(function, (params,))
        assert torch.autograd.gradgradcheck(function, (params,))


@discrete
def test_conditional_samples_move_with_the_parameters_as_finite_differences_say(family: Family) -> None:
    dist = moderate(family)
    params = repeat(dist, 200).params.double().requires_grad_()
    noise, sample = family(params).sample_noise(seeded(26)), any_outcome(family(params))
    direction = torch.randn(params.shape, generator=seeded(27), dtype=torch.float64)
    weight = torch.randn(params.shape, generator=seeded(28), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weight * family(params).relax_given(sample, noise)).sum(), params)
    step = 1e-5 * direction
    up, down = (family(params.detach() + s).relax_given(sample, noise) for s in (step, -step))
    numeric = (weight * (up - down)).sum(-1) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(-1), numeric, rtol=1e-6, atol=1e-7)
    assert gradient.abs().max() > 0.1, "z~ must depend on the parameters"


@every
def test_the_score_is_the_gradient_of_the_log_probability(family: Family) -> None:
    dist = family(torch.randn(200, 6, generator=seeded(38), dtype=torch.float64).requires_grad_())
    sample = dist.threshold(dist.relax(dist.sample_noise(seeded(39)).double())).detach()
    (expected,) = torch.autograd.grad(dist.log_prob(sample).sum(), dist.params)
    assert not dist.score(sample).requires_grad
    torch.testing.assert_close(dist.score(sample), expected)


def derivatives(function: Callable[[Tensor], Tensor], params: Tensor) -> list[Tensor]:
    """The value, the gradient of a nonlinear function of it, and the gradient of that gradient's squared norm."""
    params = params.detach().requires_grad_()
    value = function(params)
    (first,) = torch.autograd.grad((value + torch.tanh(value)).sum(), params, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), params)
    return [value, first, second]


@every
def test_float32_stays_finite_from_minus_80_to_80(family: Family) -> None:
    dist = extreme(family, 4_000)
    for noise in (dist.sample_noise(seeded(29)), extreme_noise(dist)):
        functions: dict[str, Callable[[Tensor], Tensor]] = {"entropy": lambda p: family(p).entropy()}
        functions["relax"] = lambda p, noise=noise: family(p).relax(noise)  # type: ignore[misc]
        functions["soften"] = lambda p, noise=noise: family(p).soften(family(p).relax(noise))  # type: ignore[misc]
        samples = [dist.threshold(dist.relax(noise))]
        if family in DISCRETE:
            samples.append(any_outcome(dist))
        for k, sample in enumerate(samples):
            functions[f"log_prob {k}"] = lambda p, sample=sample: family(p).log_prob(sample)  # type: ignore[misc]
            if family in DISCRETE:
                functions[f"relax_given {k}"] = lambda p, b=sample, noise=noise: family(p).relax_given(b, noise)  # type: ignore[misc]
        for name, function in functions.items():
            for order, tensor in enumerate(derivatives(function, dist.params)):
                assert tensor.dtype == torch.float32
                assert tensor.isfinite().all(), f"{name}, derivative {order}"


@discrete
def test_float32_agrees_with_float64_from_minus_80_to_80(family: Family) -> None:
    dist = extreme(family, 4_000)
    exact = dist.with_params(dist.params.double())
    sample, noise = any_outcome(dist), dist.sample_noise(seeded(30))
    torch.testing.assert_close(dist.log_prob(sample).double(), exact.log_prob(sample), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        dist.relax_given(sample, noise).double(), exact.relax_given(sample, noise.double()), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(dist.entropy().double(), exact.entropy(), rtol=1e-4, atol=1e-5)
    assert dist.entropy().min() >= 0


# Densities and entropies


def reference(dist: Distribution) -> td.Distribution:
    """The same distribution by `torch.distributions`; the sample of a TanhGaussian is the squashed one."""
    params = dist.params
    if isinstance(dist, Categorical):
        return td.Categorical(logits=params)
    if isinstance(dist, Bernoulli):
        return td.Independent(td.Bernoulli(logits=params), 1)
    mean, log_std = params.chunk(2, -1)
    normal = td.Independent(td.Normal(mean, log_std.exp()), 1)
    if isinstance(dist, TanhGaussian):
        return td.TransformedDistribution(normal, [td.TanhTransform(cache_size=1)])
    return normal


@every
def test_log_prob_and_entropy_agree_with_torch_distributions(family: Family) -> None:
    params = torch.randn(500, 6, generator=seeded(31), dtype=torch.float64)
    dist = family(params)
    sample = dist.threshold(dist.relax(dist.sample_noise(seeded(32))))
    if isinstance(dist, TanhGaussian):
        # The reference takes the outcome and loses atanh(tanh(z)) in the tails.
        sample = sample.clamp(-6, 6)
    log_prob: Tensor
    entropy: Tensor | None
    if isinstance(dist, MultiCategorical):
        parts = [td.Categorical(logits=x) for x in params.split(dist.nvec, -1)]
        log_prob = torch.stack([part.log_prob(sample[:, k]) for k, part in enumerate(parts)]).sum(0)
        entropy = torch.stack([part.entropy() for part in parts]).sum(0)
    else:
        same = reference(dist)
        outcome = dist.squash(sample) if isinstance(dist, TanhGaussian) else sample
        log_prob = same.log_prob(outcome.to(params.dtype))
        entropy = None if isinstance(dist, TanhGaussian) else same.entropy()
    tolerance = 1e-7 if isinstance(dist, TanhGaussian) else 1e-10
    assert dist.log_prob(sample).shape == dist.entropy().shape == (500,)
    torch.testing.assert_close(dist.log_prob(sample), log_prob, rtol=tolerance, atol=tolerance)
    if entropy is not None:
        torch.testing.assert_close(dist.entropy(), entropy)


@discrete
def test_probabilities_sum_to_one(family: Family) -> None:
    dist = moderate(family)
    table = outcomes(dist)
    log_probs = repeat(dist, len(table)).log_prob(table)
    assert float(log_probs.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(log_probs.double().exp(), probabilities(dist), rtol=1e-5, atol=1e-7)
    assert float(dist.entropy()) == pytest.approx(-float((log_probs.exp() * log_probs).sum()), rel=1e-5)


def test_the_density_of_a_tanh_gaussian_integrates_to_one() -> None:
    dist = TanhGaussian(torch.tensor([[0.4, -0.2]], dtype=torch.float64))
    outcome = torch.linspace(-1, 1, 200_001, dtype=torch.float64)[1:-1]
    density = repeat(dist, len(outcome)).log_prob(torch.atanh(outcome)[:, None]).exp()
    assert float(torch.trapezoid(density, outcome)) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("mean, std", [(0.0, 0.05), (0.0, 0.87), (1.5, 1.0), (-0.5, 2.0), (3.0, 0.5), (0.3, 4.0)])
def test_the_entropy_of_a_tanh_gaussian_is_its_expected_surprise(mean: float, std: float) -> None:
    rows = 400_000
    dist = TanhGaussian(torch.tensor([[mean, math.log(std)]], dtype=torch.float64))
    many = repeat(dist, rows)
    surprise = -many.log_prob(many.relax(many.sample_noise(seeded(33))))
    error = float(surprise.std()) / math.sqrt(rows)
    assert abs(float(dist.entropy()) - float(surprise.mean())) < 4 * error
    # A sum over many narrow slices, as a second opinion with more digits than chance gives.
    x = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    weight = torch.softmax(-0.5 * x.square(), 0)
    exact = -(weight * repeat(dist, len(x)).log_prob((mean + std * x)[:, None])).sum()
    assert abs(float(dist.entropy()) - float(exact)) < (2e-6 if std <= 2 else 1e-3)


# Noise, records and small print


@every
@pytest.mark.parametrize("device", DEVICES)
def test_noise_comes_from_the_generator_alone(family: Family, device: str) -> None:
    dist = family(torch.zeros(50, 6, device=device))
    before = torch.random.get_rng_state()
    first, same, other = (dist.sample_noise(torch.Generator(device).manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first, same) and not torch.equal(first, other)
    shape = (50, 3) if family in CONTINUOUS else (50, 6)
    assert (first.shape, first.dtype, first.device.type) == (shape, torch.float32, device)
    assert not first.requires_grad
    generator = torch.Generator(device).manual_seed(1)
    assert not torch.equal(dist.sample_noise(generator), dist.sample_noise(generator))


@every
def test_noise_without_a_generator_follows_the_global_seed(family: Family) -> None:
    dist = moderate(family)
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(3)
        first = dist.sample_noise()
        torch.manual_seed(3)
        assert torch.equal(first, dist.sample_noise())
    finally:
        torch.random.set_rng_state(state)


@every
def test_everything_is_computed_where_the_parameters_are(family: Family) -> None:
    """On the meta device, which refuses to mix with tensors of another."""
    dist = family(torch.zeros(5, 6, device="meta"))
    noise = dist.sample_noise()
    z = dist.relax(noise)
    sample = dist.threshold(z)
    found = [noise, z, sample, dist.log_prob(sample), dist.entropy(), dist.mode(), dist.soften(z)]
    if family in DISCRETE:
        found.append(dist.relax_given(sample, noise))
        assert found[-1].shape == z.shape
    assert {x.device.type for x in found} == {"meta"}
    assert dist.log_prob(sample).shape == dist.entropy().shape == (5,)
    assert dist.mode().shape == sample.shape


@pytest.mark.parametrize("u", [0.0, 2.0**-53, 1e-12, 0.3, 1 - 1e-12, 1 - 2.0**-53])
def test_noise_is_finite_and_exact_for_every_uniform_number(u: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def rand(shape: tuple[int, ...], **options: Any) -> Tensor:
        return torch.full(shape, u, dtype=options["dtype"])

    dists = [(family, extreme(family, 500)) for family in DISCRETE]
    monkeypatch.setattr(torch, "rand", rand)
    gumbel, logistic = gumbel_noise((2,)), logistic_noise((2,))
    inside = max(u, 2.0**-53)
    assert float(gumbel[0]) == pytest.approx(-math.log(-math.log1p(-inside)), rel=1e-6)
    assert float(logistic[0]) == pytest.approx(math.log(inside) - math.log1p(-inside), rel=1e-6, abs=1e-6)
    assert gumbel.abs().max() <= HIGHEST and logistic.abs().max() <= HIGHEST
    for family, dist in dists:
        noise = dist.sample_noise()
        sample = any_outcome(dist)
        assert torch.equal(dist.threshold(dist.relax_given(sample, noise)), sample)
        for tensor in derivatives(lambda p, f=family, b=sample, e=noise: f(p).relax_given(b, e), dist.params):  # type: ignore[misc]
            assert tensor.isfinite().all()


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_have_the_type_and_shape_that_the_parameters_ask_for(family: Family, dtype: torch.dtype) -> None:
    dist = family(torch.zeros(5, 6, dtype=dtype))
    z = dist.relax(dist.sample_noise(seeded(34)))
    sample = dist.threshold(z)
    shapes = {"Categorical": (5,), "MultiCategorical": (5, len(getattr(dist, "nvec", ()))), "Bernoulli": (5, 6)}
    assert sample.shape == shapes.get(type(dist).__name__, (5, 3))
    assert sample.dtype == (torch.int64 if isinstance(dist, Categorical | MultiCategorical) else dtype)
    assert z.dtype == dist.log_prob(sample).dtype == dist.entropy().dtype == dtype
    if family in DISCRETE:
        assert dist.relax_given(sample, dist.sample_noise(seeded(35))).dtype == dtype


@every
def test_with_params_is_the_same_family_elsewhere(family: Family) -> None:
    dist, elsewhere = moderate(family), torch.randn(3, 6, generator=seeded(36))
    moved = dist.with_params(elsewhere)
    assert type(moved) is type(dist) and moved.params is elsewhere
    assert getattr(moved, "nvec", None) == getattr(dist, "nvec", None)
    assert dist.params is not elsewhere
    torch.testing.assert_close(moved.entropy(), family(elsewhere).entropy())
    with pytest.raises(AttributeError):
        dist.params = elsewhere


@discrete
def test_the_mode_is_the_most_probable_outcome(family: Family) -> None:
    for seed in range(5):
        dist = moderate(family, seed)
        table = outcomes(dist)
        assert torch.equal(dist.mode()[0], table[probabilities(dist).argmax()])


@pytest.mark.parametrize("family", CONTINUOUS)
def test_the_mode_of_a_gaussian_is_the_image_of_its_mean(family: Family) -> None:
    dist = moderate(family)
    assert torch.equal(dist.mode(), dist.params[:, :3])
    assert torch.equal(dist.threshold(dist.mode()), dist.mode())


def test_a_tanh_gaussian_is_squashed_onto_the_open_interval() -> None:
    dist = TanhGaussian(torch.tensor([[0.5, -1.0]]))
    z = torch.tensor([[0.7]])
    assert float(dist.squash(z)) == pytest.approx(math.tanh(0.7))
    assert torch.equal(dist.soften(z), dist.squash(z))
    assert torch.equal(DiagGaussian(dist.params).soften(z), z)


@discrete
def test_softened_samples_are_bounded_and_harden_as_the_temperature_falls(family: Family) -> None:
    dist = repeat(moderate(family), 1_000)
    z = dist.relax(dist.sample_noise(seeded(37)))
    soft, hard = dist.soften(z), dist.soften(z, torch.tensor(1e-4))
    assert soft.shape == z.shape and ((soft >= 0) & (soft <= 1)).all()
    sizes = {"Bernoulli": [1] * 6, "Categorical": [6]}.get(type(dist).__name__) or list(dist.nvec)
    if not isinstance(dist, Bernoulli):
        for part in soft.split(sizes, -1):
            torch.testing.assert_close(part.sum(-1), torch.ones(1_000))
    one_hot: Tensor
    if isinstance(dist, Bernoulli):
        one_hot = dist.threshold(z)
    else:
        index = dist.threshold(z).reshape(1_000, -1)
        one_hot = torch.cat([F.one_hot(index[:, k], n) for k, n in enumerate(sizes)], -1).float()
    assert ((hard - one_hot).abs() < 0.01).float().mean() > 0.99
    temperature = torch.tensor(0.7, requires_grad=True)
    (slope,) = torch.autograd.grad(dist.soften(z, temperature).square().sum(), temperature)
    assert slope.isfinite() and slope != 0
