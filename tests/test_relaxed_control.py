"""The surrogate in closed form, against graphs differentiated twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from relax_rl.critics import ActionSurrogate, relaxed_control
from relax_rl.critics.activations import DERIVATIVES
from relax_rl.distributions import Bernoulli, Categorical, DiagGaussian, MultiCategorical, TanhGaussian

FEATURES, ROWS = 3, 7
FAMILIES: dict[str, Callable[[Tensor], Any]] = {
    "categorical": Categorical,
    "factors": lambda params: MultiCategorical(params, (2, 4)),
    "bits": Bernoulli,
    "normal": DiagGaussian,
    "squashed": TanhGaussian,
}


def lively(num_actions: int, hidden: tuple[int, ...], activation: str) -> ActionSurrogate:
    generator = torch.Generator().manual_seed(0)
    surrogate = ActionSurrogate(FEATURES, num_actions, hidden, activation).double()
    with torch.no_grad():
        for parameter in surrogate.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator).double())
            parameter.grad = torch.full_like(parameter, 0.25)  # gradients are added to what is there
    return surrogate


def gradients(surrogate: ActionSurrogate) -> dict[str, Tensor]:
    return {name: p.grad - 0.25 for name, p in surrogate.named_parameters() if p.grad is not None}


def expected(surrogate: ActionSurrogate, scalar: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*surrogate.named_parameters(), strict=True)
    found = torch.autograd.grad(scalar, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4), (4, 5, 3)])
@pytest.mark.parametrize("activation", sorted(DERIVATIVES))
def test_values_slopes_and_gradients_of_the_network(activation: str, hidden: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    surrogate = lively(2, hidden, activation)
    features, actions, direction = (torch.randn(ROWS, n, generator=generator).double() for n in (FEATURES, 2, 2))
    weight = torch.randn(ROWS, generator=generator).double()
    actions.requires_grad_()
    direction.requires_grad_()
    value = surrogate(features, actions)
    (slope,) = torch.autograd.grad(value.sum(), actions, create_graph=True)
    scalar = (weight * value).sum() + (direction * slope).sum()
    at = surrogate.evaluate(features, actions.detach())
    torch.testing.assert_close(at.value, value.detach())
    torch.testing.assert_close(at.slope, slope.detach())
    exact_back, exact_along = torch.autograd.grad(scalar, (actions, direction), retain_graph=True)
    exact = expected(surrogate, scalar)
    back, along = surrogate.add_gradient(at, weight, direction.detach())
    torch.testing.assert_close(back, exact_back)
    torch.testing.assert_close(along, exact_along)
    found = gradients(surrogate)
    for name, gradient in exact.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_gradients_through_the_relaxation(family: Callable[[Tensor], Any]) -> None:
    generator = torch.Generator().manual_seed(2)
    dist = family(torch.randn(ROWS, 6, generator=generator).double())
    z = torch.stack([dist.relax(dist.sample_noise(generator).double()) for _ in range(3)]).requires_grad_()
    surrogate = lively(z.shape[-1], (6, 5), "tanh")
    features = torch.randn(ROWS, FEATURES, generator=generator).double()
    many = features.expand(3, ROWS, FEATURES).flatten(0, 1)
    value = surrogate(many, dist.soften(z, surrogate.temperature).flatten(0, 1)).view(3, ROWS)
    (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    control = relaxed_control(surrogate, dist, features, z.detach())
    torch.testing.assert_close(control.value, value.detach())
    torch.testing.assert_close(control.slope, slope.detach())
    weight = torch.randn(3, ROWS, generator=generator).double()
    direction = torch.randn(z.shape, generator=generator).double()
    exact = expected(surrogate, (weight * value).sum() + (direction * slope).sum())
    control.add_gradient(weight, direction)
    found = gradients(surrogate)
    for name, gradient in exact.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    assert float(exact["log_temperature"].abs()) > 1e-6 or isinstance(dist, DiagGaussian)


def test_no_rows_at_all() -> None:
    surrogate = lively(2, (5, 4), "tanh")
    dist = Categorical(torch.zeros(0, 2).double())
    control = relaxed_control(surrogate, dist, torch.zeros(0, FEATURES).double(), torch.zeros(1, 0, 2).double())
    assert control.value.shape == (1, 0) and control.slope.shape == (1, 0, 2)
    control.add_gradient(torch.zeros(1, 0).double(), torch.zeros(1, 0, 2).double())
    assert all(not gradient.any() for gradient in gradients(surrogate).values())
