"""Distributions of `torch.distributions` with the estimators: the same law, and gradients that reach the user's tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as td

from relax_rl import distributions as house
from relax_rl.distributions import TorchDistribution, from_torch
from relax_rl.estimators import lax, rebar, reinforce, relax, reparameterized, rloo
from tests.estimator_cases import seeded

X, Y = (torch.randn(6, 3, generator=seeded(k)) for k in (0, 1))
ROWS = 40_000


def of_numbers(b: Tensor) -> Tensor:
    return b.double().flatten(1).sum(-1).sin().to(torch.float32)


HOUSE: dict[str, tuple[td.Distribution, type, tuple[int, ...]]] = {
    "a bit": (td.Bernoulli(logits=X[:, 0]), house.Bernoulli, (6, 1)),
    "bits": (td.Independent(td.Bernoulli(probs=X.sigmoid()), 1), house.Bernoulli, (6, 3)),
    "a category": (td.Categorical(logits=X), house.Categorical, (6,)),
    "categories": (td.Independent(td.Categorical(logits=torch.stack([X, Y], 1)), 1), house.MultiCategorical, (6, 2)),
    "one hot": (td.OneHotCategorical(logits=X), house.Categorical, (6, 3)),
    "normals": (td.Independent(td.Normal(X, Y.exp()), 1), house.DiagGaussian, (6, 3)),
    "gamma": (td.Independent(td.Gamma(X.exp(), Y.exp()), 1), house.Gamma, (6, 3)),
    "shares": (td.Dirichlet(X.exp()), house.Dirichlet, (6, 3)),
    "poisson": (td.Independent(td.Poisson(X.exp()), 1), house.Poisson, (6, 3)),
    "geometric": (td.Geometric(logits=X[:, 0]), house.Geometric, (6, 1)),
    "binomial": (td.Binomial(5, logits=X[:, 0]), house.Binomial, (6, 1)),
    "negative binomial": (td.NegativeBinomial(2.5, logits=X[:, 0]), house.NegativeBinomial, (6, 1)),
}
OTHERS: dict[str, tuple[td.Distribution, bool]] = {
    "laplace": (td.Laplace(X[:, 0], Y[:, 0].exp()), True),
    "student": (td.Independent(td.StudentT(4.0, X, Y.exp()), 1), True),
    "log-normal": (td.LogNormal(X[:, 0], Y[:, 0].exp()), True),
    "correlated": (td.MultivariateNormal(X, scale_tril=torch.eye(3).expand(6, 3, 3) * 0.5), True),
    "von mises": (td.VonMises(X[:, 0], Y[:, 0].exp()), False),
    "multinomial": (td.Multinomial(4, logits=X), False),
    "uneven trials": (td.Binomial(torch.arange(1, 7), logits=X[:, 0]), False),
    "relaxed bits": (td.RelaxedBernoulli(torch.tensor(0.5), logits=X[:, 0]), True),
}


def their_log_prob(dist: td.Distribution, sample: Tensor) -> Tensor:
    scalar = not dist.event_shape and sample.dim() == len(dist.batch_shape) + 1
    return dist.log_prob(sample.squeeze(-1) if scalar else sample)


@pytest.mark.parametrize("name", HOUSE)
def test_known_ones_become_the_classes_of_this_package(name: str) -> None:
    theirs, kind, shape = HOUSE[name]
    ours = from_torch(theirs)
    assert type(ours) is kind
    b = ours.threshold(ours.relax(ours.sample_noise(seeded(2))))
    assert b.shape == shape
    torch.testing.assert_close(ours.log_prob(b), their_log_prob(theirs, b), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_is_taken_apart_and_made_again(name: str) -> None:
    theirs, moves = OTHERS[name]
    ours = from_torch(theirs)
    assert isinstance(ours, TorchDistribution) and ours.reparameterized is moves
    assert ours.params.shape[:-1] == theirs.batch_shape == (6,)
    noise = ours.sample_noise(seeded(3))
    b = ours.threshold(ours.relax(noise)).detach()
    assert torch.equal(b, ours.relax(noise)) and b.shape == (6, *(theirs.event_shape or (1,)))
    assert not torch.equal(b, ours.relax(ours.sample_noise(seeded(4))))
    torch.testing.assert_close(ours.log_prob(b), their_log_prob(theirs, b))
    grad = reinforce(of_numbers, ours, generator=seeded(3)).grad
    leaf = ours.with_params(ours.params.detach().clone().requires_grad_())
    (score,) = torch.autograd.grad(leaf.log_prob(b).sum(), leaf.params)
    torch.testing.assert_close(grad, of_numbers(b)[:, None] * score)


def test_samples_come_from_the_generator_and_leave_the_global_one_alone() -> None:
    ours = from_torch(OTHERS["laplace"][0])
    before, generator = torch.get_rng_state(), seeded(5)
    first, second = (ours.relax(ours.sample_noise(generator)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, second)
    again = seeded(5)
    assert torch.equal(first, ours.relax(ours.sample_noise(again))) and torch.equal(
        second, ours.relax(ours.sample_noise(again))
    )
    one, two = (ours.relax(ours.sample_noise()) for _ in range(2))
    assert not torch.equal(one, two)


Makes = dict[str, Callable[[Any, torch.Generator], Any]]
BY_SCORE: Makes = {
    "reinforce": lambda d, g: reinforce(squares, d, baseline=1.0, generator=g),
    "rloo": lambda d, g: rloo(squares, d, num_samples=3, generator=g),
}
THROUGH_THE_SAMPLE: Makes = {
    "lax": lambda d, g: lax(squares, d, lambda z: 0.8 * squares(z) + torch.sin(z).sum(-1), generator=g),
    "reparameterized": lambda d, g: reparameterized(squares, d, generator=g),
}


def squares(b: Tensor) -> Tensor:
    return 0.5 * (b - 0.3).square().sum(-1)


@pytest.mark.parametrize("make", [*BY_SCORE, *THROUGH_THE_SAMPLE])
def test_gradients_reach_the_tensors_a_distribution_was_made_of(make: str) -> None:
    """E (b - a)^2 / 2 = (variance + (mean - a)^2) / 2 of a Laplace variable, variance 2 scale^2."""
    loc, log_scale = torch.tensor(0.4, requires_grad=True), torch.tensor(-0.3, requires_grad=True)
    generator, draws = seeded(6), []
    for _ in range(40):
        dist = from_torch(td.Laplace(loc.expand(5_000), log_scale.exp().expand(5_000)))
        loc.grad = log_scale.grad = None
        ({**BY_SCORE, **THROUGH_THE_SAMPLE})[make](dist, generator).backward()
        assert loc.grad is not None and log_scale.grad is not None
        draws.append(torch.stack([loc.grad, log_scale.grad]))
    found = torch.stack(draws).double()
    exact = torch.tensor([0.4 - 0.3, 2 * math.exp(-0.6)], dtype=torch.float64)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - exact).abs() < 4 * error).all()
    assert (4 * error < 0.06 * exact.norm()).all()


def test_lax_with_the_sample_drawn_anew_would_be_seen() -> None:
    """The noise is the same for f, the surrogate and its derivative: with c = f the estimate is the pathwise one."""
    dist = from_torch(OTHERS["student"][0])
    found = lax(squares, dist, squares, generator=seeded(7)).grad
    torch.testing.assert_close(found, reparameterized(squares, dist, generator=seeded(7)).grad)


def test_a_function_of_params_makes_mixtures_and_transformed_ones() -> None:
    def mixture(params: Tensor) -> td.Distribution:
        weights, locations = params.split([2, 2], -1)
        return td.MixtureSameFamily(td.Categorical(logits=weights), td.Normal(locations, 1.0))

    with pytest.raises(
        ValueError, match=r"behind torch.distributions.MixtureSameFamily are not found: give a function"
    ):
        from_torch(mixture(torch.zeros(6, 4)))
    with pytest.raises(ValueError, match=r"behind torch.distributions.LogisticNormal are not found: give a function"):
        from_torch(td.LogisticNormal(torch.zeros(3, 2), torch.ones(3, 2)))
    params = torch.randn(6, 4, generator=seeded(8), requires_grad=True)
    dist = from_torch(mixture, params)
    reinforce(squares, dist, generator=seeded(9)).backward()
    assert params.grad is not None and params.grad.abs().min() > 0
    with pytest.raises(
        ValueError, match=r"reparameterized needs samples that move with the parameters: no relaxation of "
    ):
        reparameterized(squares, dist)
    squashed = from_torch(lambda p: td.TransformedDistribution(td.Normal(p[..., 0], 1.0), [td.TanhTransform()]), params)
    lax(squares, squashed, squares).backward()


def test_relaxations_reach_the_users_tensors() -> None:
    logits = torch.zeros(6, 3, requires_grad=True)
    rebar(lambda b: (b - 0.3).square().sum(-1), from_torch(td.Independent(td.Bernoulli(logits=logits), 1))).backward()
    assert logits.grad is not None and logits.grad.abs().sum() > 0
    rate = torch.ones(6, requires_grad=True)
    relax(squares, from_torch(td.Poisson(rate)), lambda z: torch.tanh(z).sum(-1)).backward()
    assert rate.grad is not None and rate.grad.abs().sum() > 0


def test_what_cannot_be_done_is_told_in_a_line() -> None:
    with pytest.raises(
        ValueError, match=r"relax needs relax_given, .* no relaxation of torch.distributions.Multinomial is known"
    ):
        relax(squares, from_torch(OTHERS["multinomial"][0]), squares)
    with pytest.raises(ValueError, match=r"outcomes of torch.distributions.Laplace are continuous, take lax"):
        relax(squares, from_torch(OTHERS["laplace"][0]), squares)
    with pytest.raises(ValueError, match=r"lax needs samples that move with the parameters: .* take reinforce"):
        lax(squares, from_torch(OTHERS["von mises"][0]), squares)
    with pytest.raises(TypeError, match=r"or a function and its params, not a function without them"):
        from_torch(lambda params: td.Poisson(params))
    with pytest.raises(TypeError, match=r"params are given: expected the function"):
        from_torch(td.Poisson(torch.ones(3)), torch.ones(3))
    with pytest.raises(TypeError, match=r"offers the same methods .from_torch makes one of it., not Gumbel"):
        reinforce(squares, td.Gumbel(torch.zeros(3), torch.ones(3)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="noise behind an outcome of Laplace is not known"):
        from_torch(OTHERS["laplace"][0]).noise_of(torch.zeros(6, 1))
