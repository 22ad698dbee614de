"""Estimators inside `torch.compile`: one graph, and the numbers of eager code for the value, theta and phi."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from relax_rl.estimators import (
    ESTIMATORS,
    describe,
    make_estimator,
    policy_gradient_loss,
    rebar,
    relax,
    relaxed_objective,
    variance_loss,
)
from tests.estimator_cases import KINDS, LOW_LEVEL, low_level, seeded

ROWS = 5
# Tracing without a compiler: what the graph computes is what eager code computes, to the last bit.
BACKEND = "aot_eager"


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with torch.random.fork_rng():
        torch._dynamo.reset()
        yield


def compiled(function: Callable[..., Any], backend: str = BACKEND) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, backend=backend)  # type: ignore[no-any-return]


def values_and_gradients(function: Callable[[], Tensor], inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """The loss and its gradients, every draw from the same seed."""
    torch.manual_seed(0)
    loss = function()
    return [loss.detach(), *torch.autograd.grad(loss, inputs, allow_unused=True)]


def check(loss: Callable[[], Tensor], inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """Assert that one graph gives the numbers of eager code, which are returned."""
    eager = values_and_gradients(loss, inputs)
    torch.testing.assert_close(values_and_gradients(compiled(loss), inputs), eager, rtol=0, atol=0)
    return eager


class Case:
    """A small model: theta in the logits and in f itself, phi in the surrogate."""

    def __init__(self, kind: str) -> None:
        torch.manual_seed(1)
        self.obs, self.kind = torch.randn(ROWS, 3), kind
        self.policy, self.surrogate = nn.Linear(3, 4), nn.Linear(2 if kind == "continuous" else 4, 1)
        self.scale = torch.tensor(0.7, requires_grad=True)
        self.inputs = [*self.policy.parameters(), self.scale, *self.surrogate.parameters()]

    def f(self, b: Tensor) -> Tensor:
        return self.scale * torch.sin(b @ torch.linspace(-1.0, 2.0, b.shape[-1])) + (b[..., 0] - 0.3) ** 2

    def c(self, z: Tensor) -> Tensor:
        return torch.tanh(self.surrogate(torch.tanh(z))).squeeze(-1)

    def dist(self) -> Any:
        return KINDS[self.kind](self.policy(self.obs))


# nvil alone keeps statistics on the host, which end a graph. A family enters through its methods, and RELAX uses all.
CASES = [
    (name, kind)
    for name, info in ESTIMATORS.items()
    for kind in (info.outcomes if name == "relax" else info.outcomes[:1])
    if name != "nvil"
]


@pytest.mark.parametrize("name, kind", CASES)
def test_every_estimator_is_one_graph_with_the_numbers_of_eager_code(name: str, kind: str) -> None:
    case, has_surrogate = Case(kind), "surrogate" in describe(name).needs
    estimator = make_estimator(name, **({"surrogate": case.c} if has_surrogate else {}))

    eager = check(lambda: estimator(case.f, case.dist()).loss(), case.inputs)
    assert eager[1] is not None and eager[1].abs().sum() > 0
    assert (eager[-2] is not None) == has_surrogate


@pytest.mark.parametrize("options", [{"coupling": "coupled"}, {"num_conditional": 3}], ids=str)
def test_options_of_relax_compile(options: dict[str, Any]) -> None:
    case = Case("bits")
    check(lambda: relax(case.f, case.dist(), case.c, **options).loss(), case.inputs)


def whole_update(name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A function from (theta, phi, batch) to both gradients, and its arguments: known values and noise, as in RL."""
    kind = "continuous" if name == "lax" else "categories"
    case = Case(kind)
    with torch.no_grad():
        noise = case.dist().sample_noise(seeded(2))
        conditional = {} if name == "lax" else {"conditional_noise": case.dist().sample_noise(seeded(3))}

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], obs: Tensor, value: Tensor, noise: Tensor) -> Tensor:
        dist = KINDS[kind](functional_call(case.policy, theta, obs))
        options = {"surrogate": lambda z: torch.tanh(functional_call(case.surrogate, phi, z)).squeeze(-1)}
        return make_estimator(name, **options)(value, dist, noise=noise, **conditional).loss()

    theta, phi = (dict(module.named_parameters()) for module in (case.policy, case.surrogate))
    return loss, (theta, phi, case.obs, torch.randn(ROWS, generator=seeded(4)), noise)


@pytest.mark.parametrize("name", ["relax", "lax"])
def test_a_whole_update_of_policy_and_surrogate_is_one_graph(name: str) -> None:
    loss, arguments = whole_update(name)
    inputs = [*arguments[0].values(), *arguments[1].values()]
    eager = torch.autograd.grad(loss(*arguments), inputs)
    gradients = compiled(grad(loss, argnums=(0, 1)))(*arguments)
    found = tuple(x for gradient in gradients for x in gradient.values())
    torch.testing.assert_close(found, eager, rtol=0, atol=0)


@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler for torch.compile to call"
)
def test_compiled_code_has_the_numbers_of_eager_code_to_rounding() -> None:
    loss, arguments = whole_update("relax")
    inputs = [*arguments[0].values(), *arguments[1].values()]
    eager = values_and_gradients(lambda: loss(*arguments), inputs)
    found = values_and_gradients(lambda: compiled(loss, "inductor")(*arguments), inputs)
    torch.testing.assert_close(found, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOW_LEVEL)
def test_low_level_gradients_compile_where_they_are_given_functions(name: str) -> None:
    phi, params = torch.randn(3, generator=seeded(7)).requires_grad_(), torch.randn(ROWS, 3, generator=seeded(8))
    check(lambda: variance_loss(low_level(name, phi, params, functions=True)), [phi])


def test_an_estimate_may_leave_the_graph_and_phi_be_reached_outside() -> None:
    case, eta = Case("bits"), torch.tensor(0.8, requires_grad=True)
    log_temperature = torch.tensor(-0.4, requires_grad=True)
    inputs = [*case.inputs[:3], eta, log_temperature]

    def estimate() -> Any:
        dist = case.dist()
        surrogate = relaxed_objective(case.f, dist, log_temperature.exp())
        return relax(case.f, dist, lambda z: eta * surrogate(z), phi=[eta, log_temperature])

    eager = values_and_gradients(lambda: estimate().loss(), inputs)
    traced = compiled(estimate)
    torch.testing.assert_close(values_and_gradients(lambda: traced().loss(), inputs), eager, rtol=0, atol=0)


def test_a_computed_phi_that_the_graph_hides_is_refused_instead_of_left_untrained() -> None:
    case, log_temperature = Case("bits"), torch.tensor(-0.4, requires_grad=True)
    estimate = compiled(lambda: rebar(case.f, case.dist(), temperature=log_temperature.exp()))()
    with pytest.raises(ValueError, match="give the parameters behind it"):
        estimate.variance_loss()


def test_the_drop_in_loss_compiles() -> None:
    case = Case("categories")
    action = torch.nn.functional.one_hot(torch.arange(ROWS) % 4, 4).float()
    advantage, old = torch.randn(ROWS, generator=seeded(9)), torch.full((ROWS,), -1.4)
    check(
        lambda: policy_gradient_loss(advantage, case.dist(), action, case.c, old_log_prob=old, clip=0.2),
        [*case.policy.parameters(), *case.surrogate.parameters()],
    )
