"""Estimators under `torch.func`: vmap maps them and grad differentiates them, with the numbers of eager code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from relax_rl.distributions import Bernoulli, Categorical
from relax_rl.estimators import (
    ESTIMATORS,
    describe,
    make_estimator,
    rebar,
    relax,
    relax_gradient,
    value_and_gradient,
    variance_loss,
)
from tests.estimator_cases import KINDS, LOW_LEVEL, low_level, seeded

# nvil keeps statistics on the host, and matchings are found there, which no transform can enter.
CASES = [
    (name, kind) for name, info in ESTIMATORS.items() if name != "nvil" for kind in info.outcomes if kind != "matchings"
]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


def f(b: Tensor) -> Tensor:
    return torch.sin(b @ torch.linspace(-1.0, 2.0, b.shape[-1])) + (b[..., -1] - 0.3) ** 2


def c(z: Tensor) -> Tensor:
    return 0.4 * torch.tanh(z).sum(-1) - 0.3 * torch.sin(z[..., 0]) * torch.tanh(z[..., -1])


@pytest.mark.parametrize("name, kind", CASES)
def test_every_estimator_can_be_mapped_and_differentiated(name: str, kind: str) -> None:
    options = {"surrogate": c} if "surrogate" in describe(name).needs else {}
    estimator = make_estimator(name, **options)
    params = torch.randn(3, 4, generator=seeded(1))

    def found(params: Tensor) -> tuple[Tensor, Tensor]:
        estimate = estimator(f, KINDS[kind](params))
        return estimate.value, estimate.grad

    def loss(params: Tensor) -> Tensor:
        return estimator(f, KINDS[kind](params)).loss()

    one_by_one = []
    for row in params:
        torch.manual_seed(2)
        one_by_one.append(found(row))
    torch.manual_seed(2)
    value, gradient = vmap(found, randomness="same")(params)
    torch.testing.assert_close(value, torch.stack([each[0] for each in one_by_one]))
    torch.testing.assert_close(gradient, torch.stack([each[1] for each in one_by_one]))
    torch.manual_seed(2)
    torch.testing.assert_close(vmap(grad(loss), randomness="same")(params), gradient)
    assert gradient.abs().sum() > 0


def test_mapped_rows_draw_numbers_of_their_own_where_asked_to() -> None:
    params = torch.zeros(50, 4)
    rows = vmap(lambda row: relax(f, Bernoulli(row), c).sample, randomness="different")(params)
    assert len(rows.unique(dim=0)) > 8


def test_an_ensemble_of_policies_and_surrogates_in_one_call() -> None:
    policies, surrogates = ([nn.Linear(size, out) for _ in range(3)] for size, out in ((3, 4), (4, 1)))
    obs, value = torch.randn(6, 3, generator=seeded(3)), torch.randn(6, generator=seeded(4))
    noise, fresh = (Categorical(torch.zeros(6, 4)).sample_noise(seeded(seed)) for seed in (5, 6))

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor]) -> Tensor:
        dist = Categorical(functional_call(policies[0], theta, obs))
        surrogate = lambda z: torch.tanh(functional_call(surrogates[0], phi, z)).squeeze(-1)  # noqa: E731
        return relax(value, dist, surrogate, noise=noise, conditional_noise=fresh).loss()

    stacked = stack_module_state(policies)[0], stack_module_state(surrogates)[0]
    of_theta, of_phi = vmap(grad(loss, argnums=(0, 1)))(*stacked)
    for k, (policy, surrogate) in enumerate(zip(policies, surrogates, strict=True)):
        estimate = relax(
            value,
            Categorical(policy(obs)),
            lambda z, net=surrogate: torch.tanh(net(z)).squeeze(-1),
            noise=noise,
            conditional_noise=fresh,
        )
        estimate.backward()
        estimate.variance_loss().backward()
        torch.testing.assert_close(of_theta["weight"][k], policy.weight.grad)
        torch.testing.assert_close(of_phi["weight"][k], surrogate.weight.grad)
        assert surrogate.weight.grad is not None and surrogate.weight.grad.abs().sum() > 0


def test_the_variance_reaches_phi_alone_under_transforms() -> None:
    """What f holds belongs to theta: REBAR's control, which is f, must not train it through the variance."""
    decoder, params = torch.randn(4, generator=seeded(7)), torch.randn(5, 4, generator=seeded(8))
    eta, temperature = torch.tensor(0.8), torch.tensor(0.6)
    noise, fresh = (Bernoulli(params).sample_noise(seeded(seed)) for seed in (9, 10))

    def loss(params: Tensor, decoder: Tensor, eta: Tensor, temperature: Tensor) -> Tensor:
        dist, of_b = Bernoulli(params), lambda b: torch.sin(b @ decoder)
        return rebar(of_b, dist, eta=eta, temperature=temperature, noise=noise, conditional_noise=fresh).loss()

    arguments = params, decoder, eta, temperature
    leaves = [x.clone().requires_grad_() for x in arguments]
    eager = torch.autograd.grad(loss(*leaves), leaves)
    torch.testing.assert_close(grad(loss, argnums=(0, 1, 2, 3))(*arguments), eager)
    b = Bernoulli(params).threshold(Bernoulli(params).relax(noise))
    torch.testing.assert_close(eager[1], (torch.cos(b @ decoder)[:, None] * b).mean(0))


# The low level: functions of the parameters in the place of tensors


@pytest.mark.parametrize("name", LOW_LEVEL)
def test_functions_of_the_parameters_serve_as_well_as_tensors(name: str) -> None:
    phi, params = (torch.randn(shape, generator=seeded(13)).requires_grad_() for shape in ((3,), (5, 3)))
    tensors, functions = (low_level(name, phi, params, functions=kind) for kind in (False, True))
    torch.testing.assert_close(functions, tensors)
    mapped = vmap(lambda phi: low_level(name, phi, params.detach(), functions=True))(torch.stack([phi, 2 * phi]))
    torch.testing.assert_close(mapped[0], tensors)
    assert not torch.allclose(mapped[1], tensors)
    (eager,) = torch.autograd.grad(variance_loss(tensors), phi)
    (found,) = torch.autograd.grad(variance_loss(functions), phi)
    torch.testing.assert_close(found, eager)


def test_the_variance_of_functions_of_the_parameters_never_reaches_theta() -> None:
    theta, phi = torch.randn(5, 3, generator=seeded(14)).requires_grad_(), torch.ones(3, requires_grad=True)
    variance_loss(low_level("relax", phi, 2 * theta, functions=True)).backward()
    assert theta.grad is None and phi.grad is not None


def test_a_control_of_each_form_is_refused() -> None:
    params = torch.zeros(2, 1)
    with pytest.raises(ValueError, match="give both as the same"):
        relax_gradient(torch.zeros(2), lambda at: at.sum(-1), lambda at: at.sum(-1), torch.zeros(2), params)


def test_value_and_gradient_of_rows() -> None:
    at = torch.randn(4, 3, generator=seeded(15))
    value, gradient = value_and_gradient(lambda x: x.sin().prod(-1), at)
    torch.testing.assert_close(value, at.sin().prod(-1))
    others = torch.stack([at.sin()[:, [1, 2]].prod(-1), at.sin()[:, [0, 2]].prod(-1), at.sin()[:, [0, 1]].prod(-1)], -1)
    torch.testing.assert_close(gradient, at.cos() * others)
    assert not gradient.requires_grad
