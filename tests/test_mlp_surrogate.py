"""The surrogate that brings its slope: the numbers of the general way, in every estimator that looks for it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from relax_rl.critics import MLPSurrogate
from relax_rl.critics import surrogate as surrogate_module
from relax_rl.distributions import Bernoulli, Categorical, DiagGaussian, MultiCategorical, TanhGaussian
from relax_rl.estimators import dlax, lax, marginal, policy_gradient_loss, relax
from tests.estimator_cases import seeded

ROWS, FEATURES = 7, 3
FAMILIES: dict[str, Callable[[Tensor], Any]] = {
    "categorical": Categorical,
    "one-hot": lambda params: Categorical(params, one_hot=True),
    "factors": lambda params: MultiCategorical(params, (2, 4)),
    "bits": Bernoulli,
    "normal": DiagGaussian,
    "squashed": TanhGaussian,
}
DISCRETE = [name for name in FAMILIES if name not in ("normal", "squashed")]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}


def network(size: int, hidden: tuple[int, ...] = (6, 5), activation: str = "tanh") -> nn.Sequential:
    """Random weights of order 1, so that every term of a gradient shows."""
    widths, modules = [size, *hidden], []
    for before, after in pairwise(widths):
        modules += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    net = nn.Sequential(*modules, nn.Linear(widths[-1], 1))
    generator = seeded(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    return net


@dataclass
class Case:
    """A policy that gives the parameters, a network behind the surrogate, and a batch."""

    kind: str

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.obs, self.advantage = torch.randn(ROWS, FEATURES), torch.randn(ROWS)
        self.policy = nn.Linear(FEATURES, 6)
        dist = self.dist()
        self.noise = dist.sample_noise(seeded(1))
        z = dist.relax(self.noise).detach()
        self.action, self.net = dist.threshold(z), network(FEATURES + z.shape[-1])

    def dist(self) -> Any:
        return FAMILIES[self.kind](self.policy(self.obs))

    def gradients(
        self, loss: Callable[[Any, Any], Tensor], *, closed_form: bool, softened: bool = True
    ) -> list[Tensor]:
        """Of theta, then of phi, through the surrogate or through the plain function that it also is."""
        dist = self.dist()
        surrogate: Any = MLPSurrogate(self.net, dist if softened else None, self.obs)
        inputs = [*self.policy.parameters(), *self.net.parameters()]
        given = surrogate if closed_form else lambda z: surrogate(z)
        return list(torch.autograd.grad(loss(dist, given), inputs, allow_unused=True))

    def check(self, loss: Callable[[Any, Any], Tensor], *, softened: bool = True) -> None:
        here, there = (self.gradients(loss, closed_form=x, softened=softened) for x in (True, False))
        for found, exact in zip(here[:-1], there[:-1], strict=True):
            torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)
            assert exact.abs().sum() > 1e-4
        # The last bias moves no slope: with coefficient c~ alone it may be exactly 0, or not be reached at all.
        last, exact = (torch.zeros(1) if x is None else x for x in (here[-1], there[-1]))
        torch.testing.assert_close(last, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("block", [2048, 4])
def test_value_slope_and_gradient_are_those_of_the_graph(
    kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surrogate_module, "_BLOCK", block)
    case = Case(kind)
    dist, generator = case.dist(), seeded(2)
    z = dist.relax(torch.stack([dist.sample_noise(generator) for _ in range(3)])).detach().requires_grad_()
    surrogate = MLPSurrogate(case.net, dist, case.obs, temperature=0.7)
    exact_value = surrogate(z)
    (exact_slope,) = torch.autograd.grad(exact_value.sum(), z, create_graph=True)
    value, slope = surrogate.value_and_slope(z)
    torch.testing.assert_close(value, exact_value)
    torch.testing.assert_close(slope, exact_slope)
    weight, direction = torch.randn(value.shape, generator=generator), torch.randn(slope.shape, generator=generator)
    phi = list(case.net.parameters())
    exact = torch.autograd.grad((weight * exact_value).sum() + (direction * exact_slope).sum(), phi)
    found = torch.autograd.grad((weight * value).sum() + (direction * slope).sum(), phi)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(), (5,), (4, 5, 3)])
def test_other_networks_without_features_or_relaxation(activation: str, hidden: tuple[int, ...]) -> None:
    net, z = network(4, hidden, activation), torch.randn(ROWS, 4, generator=seeded(4), requires_grad=True)
    surrogate, phi = MLPSurrogate(net), list(net.parameters())
    exact_value = surrogate(z)
    (exact_slope,) = torch.autograd.grad(exact_value.sum(), z, create_graph=True)
    value, slope = surrogate.value_and_slope(z)
    torch.testing.assert_close((value, slope), (exact_value, exact_slope))
    exact = torch.autograd.grad((exact_value.square() + exact_slope.square().sum(-1)).sum(), phi)
    found = torch.autograd.grad((value.square() + slope.square().sum(-1)).sum(), phi)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


def test_no_rows_at_all() -> None:
    net = network(4)
    surrogate = MLPSurrogate(net, Bernoulli(torch.zeros(0, 2)), torch.zeros(0, 2))
    value, slope = surrogate.value_and_slope(torch.zeros(3, 0, 2))
    assert value.shape == (3, 0) and slope.shape == (3, 0, 2)
    gradients = torch.autograd.grad(value.sum() + slope.sum(), list(net.parameters()))
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("kind", DISCRETE)
@pytest.mark.parametrize("options", [{}, {"coupling": "coupled"}, {"num_conditional": 3}], ids=str)
def test_relax(kind: str, options: dict[str, Any]) -> None:
    case = Case(kind)
    case.check(lambda dist, c: relax(case.advantage, dist, c, noise=case.noise, generator=seeded(5), **options).loss())


@pytest.mark.parametrize("kind", DISCRETE)
def test_dlax_and_marginal(kind: str) -> None:
    case = Case(kind)
    case.check(lambda dist, c: dlax(case.advantage, dist, c, noise=case.noise).loss())
    case.check(lambda dist, c: marginal(case.advantage, dist, c, noise=case.noise).loss(), softened=False)


@pytest.mark.parametrize("kind", ["normal", "squashed"])
def test_lax(kind: str) -> None:
    case = Case(kind)
    case.check(lambda dist, c: lax(case.advantage, dist, c, noise=case.noise).loss())


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_drop_in_loss(kind: str) -> None:
    case = Case(kind)
    old = case.dist().log_prob(case.action).detach() + 0.1 * torch.randn(ROWS, generator=seeded(6))
    options: dict[str, Any] = {"old_log_prob": old, "clip": 0.05}
    case.check(
        lambda dist, c: policy_gradient_loss(case.advantage, dist, case.action, c, generator=seeded(7), **options)
    )


class Counted:
    """A surrogate of somebody else's that knows its slope: c(z) = a |z|^2, asked only for both at once."""

    def __init__(self) -> None:
        self.a, self.asked = torch.tensor(0.3, requires_grad=True), 0

    def __call__(self, z: Tensor) -> Tensor:
        raise AssertionError("the slope is known: c alone need not be asked")

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.asked += 1
        return self.a * z.square().sum(-1), 2 * self.a * z


def test_any_surrogate_that_knows_its_slope_is_asked_once() -> None:
    case = Case("bits")
    surrogate = Counted()
    several: tuple[dict[str, Any], ...] = ({}, {"coupling": "coupled"}, {"num_conditional": 2})
    for times, options in enumerate(several, 1):
        both = [
            relax(case.advantage, case.dist(), c, noise=case.noise, generator=seeded(5), **options)
            for c in (surrogate, lambda z: surrogate.a * z.square().sum(-1))
        ]
        assert surrogate.asked == times
        torch.testing.assert_close(both[0].grad, both[1].grad)
        found, exact = (torch.autograd.grad(x.loss(), surrogate.a)[0] for x in both)
        torch.testing.assert_close(found, exact)


class Plain:
    """A distribution that knows no derivative of its relaxation: what one of somebody else's may look like."""

    def __init__(self, dist: Any) -> None:
        self._dist, self.params = dist, dist.params

    def with_params(self, params: Tensor) -> Plain:
        return Plain(self._dist.with_params(params))

    def __getattr__(self, name: str) -> Any:
        if name in ("pull_back", "conditional_weight", "soften_slope"):
            raise AttributeError(name)
        return getattr(self._dist, name)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_distribution_without_slopes_gives_the_same_numbers(kind: str) -> None:
    case = Case(kind)

    def c(z: Tensor) -> Tensor:
        value: Tensor = case.net(torch.cat([case.obs.expand(*z.shape[:-1], FEATURES), torch.tanh(z)], -1))
        return value.squeeze(-1)

    def losses(dist: Any) -> list[Tensor]:
        action = policy_gradient_loss(case.advantage, dist, case.action, c, generator=seeded(7))
        if kind not in DISCRETE:
            return [action, lax(case.advantage, dist, c, noise=case.noise).loss()]
        options: tuple[dict[str, Any], ...] = ({}, {"coupling": "coupled"}, {"num_conditional": 2})
        estimates = [relax(case.advantage, dist, c, noise=case.noise, generator=seeded(5), **more) for more in options]
        estimates.append(dlax(case.advantage, dist, c, noise=case.noise))
        return [action, *(estimate.loss() for estimate in estimates)]

    inputs = [*case.policy.parameters(), *case.net.parameters()][:-1]
    for found, exact in zip(losses(case.dist()), losses(Plain(case.dist())), strict=True):
        torch.testing.assert_close(found, exact)
        gradients = (torch.autograd.grad(x, inputs, retain_graph=True) for x in (found, exact))
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_one_graph_under_the_compiler_and_rows_under_vmap() -> None:
    case = Case("categorical")
    theta, phi = (dict(module.named_parameters()) for module in (case.policy, case.net))
    advantage = case.advantage

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], advantage: Tensor) -> Tensor:
        dist = Categorical(functional_call(case.policy, theta, case.obs))
        surrogate = MLPSurrogate(case.net, dist, case.obs, parameters=phi)
        return relax(advantage, dist, surrogate, noise=case.noise, coupling="coupled").loss()

    exact = torch.autograd.grad(loss(theta, phi, advantage), [*theta.values(), *phi.values()])
    of_both = grad(loss, argnums=(0, 1))
    torch._dynamo.reset()
    compiled = torch.compile(of_both, fullgraph=True, backend="aot_eager")
    for gradients in (of_both(theta, phi, advantage), compiled(theta, phi, advantage)):
        found = [x for part in gradients for x in part.values()]
        torch.testing.assert_close(found, list(exact), rtol=1e-4, atol=1e-6)
    several = torch.stack([advantage, 2 * advantage])
    _, mapped = vmap(of_both, in_dims=(None, None, 0))(theta, phi, several)
    for k, one in enumerate(several):
        torch.testing.assert_close({n: x[k] for n, x in mapped.items()}, of_both(theta, phi, one)[1])


def test_no_gradient_reaches_the_features_or_the_policy() -> None:
    case = Case("categorical")
    features, dist = case.obs.clone().requires_grad_(), case.dist()
    value, slope = MLPSurrogate(case.net, dist, features).value_and_slope(dist.relax(case.noise))
    reached = torch.autograd.grad(
        (value + slope.sum(-1)).sum(), [features, *case.policy.parameters()], allow_unused=True
    )
    assert all(x is None for x in reached)


def test_a_parameter_that_has_moved_and_a_second_derivative_are_refused() -> None:
    case = Case("bits")
    surrogate, weight = MLPSurrogate(case.net, case.dist(), case.obs), next(case.net.parameters())
    value, _ = surrogate.value_and_slope(case.noise)
    (gradient,) = torch.autograd.grad(value.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
    value, _ = surrogate.value_and_slope(case.noise)
    with torch.no_grad():
        weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


def test_nothing_waits_for_the_garbage_collector() -> None:
    case = Case("normal")
    gc.collect()
    gc.disable()
    try:
        for surrogate in (MLPSurrogate(case.net, case.dist(), case.obs), MLPSurrogate(case.net, None, case.obs)):
            found = surrogate.value_and_slope(torch.zeros(ROWS, 3))
            alive = [weakref.ref(x) for x in found]
            del found
            assert all(x() is None for x in alive)
    finally:
        gc.enable()


BROKEN: dict[str, list[nn.Module]] = {
    "two outputs": [nn.Linear(3, 2)],
    "no layer at the end": [nn.Linear(3, 1), nn.Tanh()],
    "no bias": [nn.Linear(3, 1, bias=False)],
    "two activations": [nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.SiLU(), nn.Linear(3, 1)],
    "an activation without derivatives": [nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 1)],
    "another ELU": [nn.Linear(3, 3), nn.ELU(0.5), nn.Linear(3, 1)],
    "nothing": [],
}


@pytest.mark.parametrize("modules", BROKEN.values(), ids=BROKEN)
def test_networks_that_have_no_closed_form(modules: list[nn.Module]) -> None:
    with pytest.raises(ValueError, match="expected linear layers"):
        MLPSurrogate(nn.Sequential(*modules))
