"""How much of the residual f - c enters LAX, RELAX and the marginal: from the unbiased estimate to the gradient of E[c] alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relax_rl.critics import MLPSurrogate
from relax_rl.distributions import Bernoulli, Categorical, DiagGaussian, MultiCategorical
from relax_rl.estimators import lax, lax_gradient, marginal, relax, relax_gradient
from tests.estimator_cases import seeded
from tests.oracles import outcomes, probabilities

ROWS = 6
DISTRIBUTIONS: dict[str, Any] = {
    "three ways": Categorical(torch.tensor([[0.4, -0.3, 0.1]]).double().expand(ROWS, -1)),
    "two bits": Bernoulli(torch.tensor([[0.5, -1.0]]).double().expand(ROWS, -1)),
    "factors": MultiCategorical(torch.tensor([[0.2, -0.4, 0.6, 0.1, -0.5]]).double().expand(ROWS, -1), (2, 3)),
    "gaussian": DiagGaussian(torch.tensor([[0.3, -0.2, -0.4, 0.1]]).double().expand(ROWS, -1)),
}
DISCRETE = [name for name in DISTRIBUTIONS if name != "gaussian"]
WEIGHTS = (0.0, 0.3, 1.0, torch.linspace(0, 1, ROWS).double())


def net_of(size: int) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(size, 7), nn.Tanh(), nn.Linear(7, 1)).double()


def surrogates(dist: Any, size: int) -> list[Callable[[Tensor], Tensor]]:
    """The same c twice: by its graph, and with its slope in closed form."""
    net = net_of(size)
    softened = dist if hasattr(dist, "relax_given") else None

    def by_graph(z: Tensor) -> Tensor:
        return net(z if softened is None else dist.soften(z)).squeeze(-1)

    return [by_graph, MLPSurrogate(net, softened)]


def ways(name: str) -> list[tuple[Callable[..., Tensor], Any]]:
    """Estimates `(weight) -> [B, P]` of the same draws, each with the gradient of c alone."""
    dist = DISTRIBUTIONS[name]
    noise, fresh = (dist.sample_noise(seeded(k)).double() for k in (3, 4))
    leaf = dist.with_params(dist.params.detach().clone().requires_grad_())
    z = leaf.relax(noise)
    value = torch.arange(ROWS).double()
    hows: list[dict[str, Any]] = [{"coupling": "coupled"}, {"conditional_noise": fresh}, {"num_conditional": 3}]
    found: list[tuple[Callable[..., Tensor], Any]] = []
    for c in surrogates(dist, z.shape[-1]):
        (alone,) = torch.autograd.grad(c(z).sum(), leaf.params, retain_graph=True)
        for how in [{}] if name == "gaussian" else hows:

            def estimate(w: Any, c: Any = c, how: Any = how) -> Tensor:
                kind: Any = lax if name == "gaussian" else relax
                found: Tensor = kind(value, dist, c, noise=noise, residual_weight=w, generator=seeded(9), **how).grad
                return found

            found.append((estimate, alone))
    return found


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda w: str(w) if isinstance(w, float) else "rows")
def test_an_estimate_lies_between_its_unbiased_form_and_the_gradient_of_c(name: str, weight: Any) -> None:
    share = weight.unsqueeze(-1) if isinstance(weight, Tensor) else weight
    cases = ways(name)
    assert len(cases) == (2 if name == "gaussian" else 6)
    for estimate, alone in cases:
        unbiased = estimate(1.0)
        assert not torch.allclose(unbiased, alone)
        torch.testing.assert_close(estimate(weight), share * unbiased + (1 - share) * alone)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", DISCRETE)
def test_the_mean_of_the_marginal_is_between_those_of_f_and_c(name: str, weight: float) -> None:
    dist = DISTRIBUTIONS[name].with_params(DISTRIBUTIONS[name].params[:1])
    every = outcomes(dist)
    value = torch.sin(torch.arange(len(every)).double())
    net = net_of(dist.embed(every[:1]).shape[-1])

    def c(embedded: Tensor) -> Tensor:
        return net(embedded).squeeze(-1)

    many = dist.with_params(dist.params.expand(len(every), -1))
    noise = many.noise_given(every, many.relax_given(every, many.sample_noise(seeded(2)).double()))
    found = marginal(value, many, c, noise=noise, sample=every, residual_weight=weight).grad
    params = dist.params[0].clone().requires_grad_()
    probs = probabilities(dist, params)
    aim = probs @ (weight * value + (1 - weight) * c(dist.embed(every)).detach())
    torch.testing.assert_close(probs.detach() @ found, torch.autograd.grad(aim, params)[0])


def test_the_low_level_forms_take_the_same_weight() -> None:
    dist, weight = DISTRIBUTIONS["three ways"], 0.3
    leaf = dist.with_params(dist.params.detach().clone().requires_grad_())
    noise, fresh = (dist.sample_noise(seeded(k)).double() for k in (3, 4))
    c, value, z = surrogates(dist, 3)[0], torch.arange(ROWS).double(), leaf.relax(noise)
    b = leaf.threshold(z)
    log_prob, at_z, at_z_tilde = leaf.log_prob(b), c(z), c(leaf.relax_given(b, fresh))
    high = relax(value, dist, c, noise=noise, conditional_noise=fresh, residual_weight=weight).grad
    low = relax_gradient(value, log_prob, at_z, at_z_tilde, leaf.params, residual_weight=weight)
    torch.testing.assert_close(low, high)
    by_functions = relax_gradient(
        value,
        lambda p: dist.with_params(p).log_prob(b),
        lambda p: c(dist.with_params(p).relax(noise)),
        lambda p: c(dist.with_params(p).relax_given(b, fresh)),
        leaf.params,
        residual_weight=weight,
    )
    torch.testing.assert_close(by_functions, high)
    gaussian = DISTRIBUTIONS["gaussian"]
    leaf = gaussian.with_params(gaussian.params.detach().clone().requires_grad_())
    noise = gaussian.sample_noise(seeded(5)).double()
    b = leaf.relax(noise)
    c = surrogates(gaussian, 2)[0]
    low = lax_gradient(value, leaf.log_prob(b.detach()), c(b), leaf.params, residual_weight=weight)
    torch.testing.assert_close(low, lax(value, gaussian, c, noise=noise, residual_weight=weight).grad)
