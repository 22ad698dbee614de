"""The ordered logit: its law, the truncated logistic behind each rank, and estimators with it, exact by quadrature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from relax_rl.distributions import Bernoulli, Ordinal
from relax_rl.estimators import concrete, dlax, enumerated, marginal, muprop, rebar, reinforce, relax, rloo
from tests.estimator_cases import seeded
from tests.oracles import assert_unbiased, collect, noise_grid, rejects, repeat

CUTS = torch.tensor([-1.0, 0.2, 1.5, 1.9], dtype=torch.float64)
DIST = Ordinal.of(torch.tensor([0.4], dtype=torch.float64), CUTS)


def of_rank(b: Tensor) -> Tensor:
    return (torch.sin(1.3 * b) + 0.9 * b - 1.5).squeeze(-1)


def curved(z: Tensor) -> Tensor:
    return torch.tanh(z[..., 0]) + 0.4 * torch.sin(z.sum(-1))


def exact_gradient(dist: Any = DIST) -> Tensor:
    params = dist.params.clone().requires_grad_()
    first, gaps = params[0, 0], params[0, 1:].exp()
    above = torch.cat([first[None], first - gaps.cumsum(0)])
    over = torch.sigmoid(above)
    ones, zeros = torch.ones(1, dtype=over.dtype), torch.zeros(1, dtype=over.dtype)
    probs = torch.cat([ones, over]) - torch.cat([over, zeros])
    value = of_rank(torch.arange(len(probs), dtype=over.dtype)[:, None])
    return torch.autograd.grad((probs * value).sum(), params)[0][0]


def test_ranks_have_their_probabilities_and_cut_points() -> None:
    edges = np.concatenate([[-np.inf], CUTS.numpy() - 0.4, [np.inf]])
    probs = np.diff(stats.logistic.cdf(edges))
    ranks = torch.arange(5.0, dtype=torch.float64)[:, None]
    every = repeat(DIST, 5)
    np.testing.assert_allclose(every.log_prob(ranks).exp().numpy(), probs)
    np.testing.assert_allclose(DIST.probs[0].numpy(), probs)
    np.testing.assert_allclose(every.cdf(ranks)[:, 0].numpy(), probs.cumsum())
    assert float(DIST.mean) == pytest.approx((probs * np.arange(5)).sum())
    assert float(DIST.entropy()) == pytest.approx(-(probs * np.log(probs)).sum())
    assert float(DIST.mode()) == probs.argmax() and DIST.support().flatten().tolist() == [0, 1, 2, 3, 4]
    other = Ordinal(DIST.params * 0.5 + 0.3)
    expected = (probs * (np.log(probs) - other.probs[0].log().numpy())).sum()
    assert float(DIST.kl_divergence(other)) == pytest.approx(expected)
    drawn = repeat(DIST, 100_000)
    b = drawn.threshold(drawn.relax(drawn.sample_noise(seeded(0))))
    seen = torch.bincount(b.flatten().long(), minlength=5).numpy() / len(b)
    assert (np.abs(seen - probs) < 4.5 * np.sqrt(probs * (1 - probs) / len(b))).all()
    leaf = every.with_params(every.params.clone().requires_grad_())
    (score,) = torch.autograd.grad(leaf.log_prob(ranks).sum(), leaf.params)
    torch.testing.assert_close(every.score(ranks), score)


def test_gradients_reach_locations_and_cut_points() -> None:
    location, cuts = torch.zeros(6, requires_grad=True), torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    reinforce(of_rank, Ordinal.of(location, cuts), generator=seeded(1)).backward()
    assert location.grad is not None and cuts.grad is not None
    assert location.grad.abs().min() > 0 and cuts.grad.abs().min() > 0
    # To move all cut points is to move the locations the other way.
    torch.testing.assert_close(cuts.grad.sum(), -location.grad.sum())


def test_the_latent_variable_given_a_rank_has_its_truncated_law() -> None:
    rows = 20_000
    many = repeat(DIST, rows)
    for rank in range(5):
        sample = torch.full((rows, 1), float(rank), dtype=torch.float64)
        z = many.relax_given(sample, many.sample_noise(seeded(rank)).double())
        assert torch.equal(many.threshold(z), sample)
        latent = many.noise_of(z).flatten().numpy()
        low, high = (float(x[0]) for x in many._edges(sample))
        below, above = stats.logistic.cdf(low), stats.logistic.cdf(high)
        assert stats.kstest((stats.logistic.cdf(latent) - below) / (above - below), "uniform").pvalue > 1e-3
        fresh = many.sample_noise(seeded(rank)).double()
        torch.testing.assert_close(
            many.noise_given(sample, many.relax_given(sample, fresh)), fresh, rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("spread", [1.0, 20.0, 60.0])
def test_float32_stays_finite_and_gives_the_rank_back(spread: float) -> None:
    params = torch.randn(2_000, 4, generator=seeded(2)) * torch.tensor([spread, 2.0, 2.0, 2.0])
    dist = Ordinal(params.requires_grad_())
    noise = dist.sample_noise(seeded(3))
    drawn = dist.threshold(dist.relax(noise))
    anything = torch.randint(5, (2_000, 1), generator=seeded(4)).float()
    for sample in (drawn, anything):
        z = dist.relax_given(sample, noise)
        assert torch.equal(dist.threshold(z), sample)
        (gradient,) = torch.autograd.grad(torch.tanh(z).sum() + dist.log_prob(sample).sum(), params)
        for value in (z, gradient, dist.log_prob(sample)):
            assert value.isfinite().all()


def test_estimates_are_exact_in_expectation() -> None:
    """Over ranks and over the logistic noise behind z given each, by the trapezoidal rule."""
    nodes, weights = noise_grid(Bernoulli(torch.zeros(1, 1)), 300)
    ranks = torch.arange(5.0, dtype=torch.float64).repeat_interleave(len(nodes))[:, None]
    given = nodes.repeat(5, 1)
    here = repeat(DIST, len(ranks))
    z = here.relax_given(ranks, given)
    weight = here.log_prob(ranks).exp() * weights.repeat(5)
    noise, exact = here.noise_of(z), exact_gradient()
    known: dict[str, Any] = {"noise": noise, "sample": ranks}
    for found in (
        relax(of_rank(ranks), here, curved, conditional_noise=given, **known),
        relax(of_rank(ranks), here, curved, coupling="coupled", **known),
        rebar(of_rank, here, noise=noise, conditional_noise=given),
        marginal(of_rank(ranks), here, lambda b: torch.sin(b[..., 0]), **known),
        muprop(of_rank, here, noise=noise),
    ):
        torch.testing.assert_close((weight[:, None] * found.grad.detach()).sum(0), exact, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(enumerated(of_rank, DIST).grad[0], exact)


def test_unbiased_as_drawn_and_concrete_is_not() -> None:
    dist, generator = DIST.with_params(DIST.params.float()), seeded(5)
    for make in (
        lambda d: relax(of_rank, d, curved, generator=generator),
        lambda d: rebar(of_rank, d, generator=generator),
        lambda d: rloo(of_rank, d, num_samples=3, generator=generator),
    ):
        assert_unbiased(
            collect(lambda n, m=make: m(repeat(dist, n)).grad, 200_000, 50_000), exact_gradient(), power=0.06
        )
    soft = collect(lambda n: concrete(of_rank, repeat(dist, n), generator=generator).grad, 100_000, 50_000)
    assert rejects(soft, exact_gradient())


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="cut points do not increase"):
        Ordinal.of(torch.zeros(2), torch.tensor([0.0, 0.0]))
    with pytest.raises(ValueError, match="ranks are whole numbers from 0 to 4, but the sample has 5"):
        DIST.log_prob(torch.full((1, 1), 5.0))
    with pytest.raises(ValueError, match="not both Ordinal and of one number of ranks"):
        DIST.kl_divergence(Ordinal(torch.zeros(1, 2)))
    with pytest.raises(ValueError, match="dlax needs relaxed_log_prob"):
        dlax(of_rank, DIST, curved)


WIDE = ([0.0, 7.0], [1.0, -18.0], [1.0, -20.0], [1001.0, 0.0], [-3.0, 200.0], [2.0, -300.0], [-1e4, 3.0])


def test_any_numbers_have_probabilities_and_derivatives() -> None:
    """Gaps beyond all numbers that noise makes, and below the rounding of the cut points."""
    drawn = 4.0 * torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for params in (torch.tensor(WIDE), torch.tensor(WIDE, dtype=torch.float64), drawn, drawn.float()):
        leaf = params.clone().requires_grad_()
        dist = Ordinal(leaf)
        ranks = dist.support().unsqueeze(1).expand(-1, len(leaf), 1)
        log_p = torch.stack([dist.log_prob(rank) for rank in ranks])
        torch.testing.assert_close(log_p.logsumexp(0), torch.zeros(len(leaf), dtype=leaf.dtype), rtol=0, atol=1e-5)
        for value in (log_p.exp(), dist.entropy(), dist.kl_divergence(Ordinal(leaf.detach())), dist.mean):
            assert value.isfinite().all()
            assert torch.autograd.grad(value.sum(), leaf, retain_graph=True)[0].isfinite().all()
        assert dist.kl_divergence(dist).abs().max() < 1e-5
        for rank, found in zip(ranks, log_p, strict=True):
            (expected,) = torch.autograd.grad(found.sum(), leaf, retain_graph=True)
            torch.testing.assert_close(dist.score(rank), expected, rtol=1e-4, atol=1e-6)


def test_a_gap_below_rounding_is_as_likely_as_the_density_is_high() -> None:
    dist = Ordinal(torch.tensor([0.5, -30.0]))
    density = float(torch.sigmoid(torch.tensor(0.5)) * torch.sigmoid(torch.tensor(-0.5)))
    assert float(dist.log_prob(torch.tensor([1.0]))) == pytest.approx(np.log(density) - 30.0, abs=1e-5)
