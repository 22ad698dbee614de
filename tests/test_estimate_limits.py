"""Estimates: what they refuse, what they leave in memory, and that they run under function transforms."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vjp, vmap

from relax_rl.distributions import Bernoulli, Categorical, DiagGaussian
from relax_rl.estimators import (
    lax,
    reinforce,
    relax,
    relax_gradient,
    variance_loss,
    weighted_moments,
)
from tests.estimator_cases import (
    CONTINUOUS,
    DISCRETE,
    MLP,
    flat_surrogate,
    of_three,
    policy_and_observations,
    seeded,
    sine,
)
from tests.oracles import (
    Function,
    repeat,
)

# What they refuse


def test_known_values_need_the_noise_of_their_sample() -> None:
    bits, normals = repeat(DISCRETE["3 bits"][0], 8), repeat(CONTINUOUS["sine"][0], 8)
    for attempt in (
        lambda: relax(torch.ones(8), bits, MLP(3), conditional_noise=torch.zeros(8, 3)),
        lambda: lax(torch.ones(8), normals, MLP(1)),
        lambda: reinforce(torch.ones(8), bits),
    ):
        with pytest.raises(ValueError, match="noise"):
            attempt()


def test_a_network_output_that_was_not_squeezed_is_refused() -> None:
    """`[B, 1]` would broadcast to [B, B] and mix the examples without a word."""
    bits, normals = repeat(Bernoulli(torch.zeros(1, 1)), 8), repeat(CONTINUOUS["sine"][0], 8)
    linear = nn.Linear(1, 1)
    attempts: dict[str, Callable[[], Any]] = {
        "f": lambda: relax(lambda b: b, bits, MLP(1)),
        "control": lambda: relax(lambda b: b[:, 0], bits, linear),
        "control ": lambda: lax(sine, normals, linear),
        "baseline": lambda: reinforce(lambda b: b[:, 0], bits, baseline=torch.zeros(8, 1)),
        "f ": lambda: reinforce(torch.ones(1), bits, noise=torch.zeros(8, 1)),
    }
    for name, attempt in attempts.items():
        with pytest.raises(ValueError, match=rf"^{name.strip()} has shape .*(\[8\]|\(8,\))$"):
            attempt()


def test_each_kind_of_outcome_has_its_estimator() -> None:
    with pytest.raises(ValueError, match="use relax for Categorical"):
        lax(of_three, repeat(DISCRETE["3-way"][0], 8), MLP(3))
    with pytest.raises(ValueError, match="DiagGaussian lacks: use lax"):
        relax(sine, repeat(CONTINUOUS["sine"][0], 8), MLP(1))


# Memory


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Without the collector of cycles, only what nothing refers to is freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("kind", ["relax", "lax", "reinforce"])
@pytest.mark.parametrize("used", [False, True])
def test_no_graph_outlives_its_estimate(kind: str, used: bool) -> None:
    net, obs = policy_and_observations(4)
    surrogate = MLP(4 if kind != "lax" else 2)
    alive: list[weakref.ref[Any]] = []

    class Mark:
        """Lives as long as the node of the graph that holds it."""

    def marked(output: Tensor) -> Tensor:
        mark = Mark()
        assert output.grad_fn is not None
        metadata: Any = output.grad_fn.metadata
        metadata["mark"] = mark
        alive.append(weakref.ref(mark))
        return output

    params = marked(net(obs))
    c: Function = lambda z: marked(surrogate(z))  # noqa: E731
    if kind == "lax":
        estimate = lax(sine, DiagGaussian(params), c, generator=seeded(32))
    elif kind == "relax":
        estimate = relax(lambda b: b.sum(-1), Bernoulli(params), c, generator=seeded(32))
    else:
        estimate = reinforce(lambda b: b.sum(-1), Bernoulli(params), generator=seeded(32))
    alive.append(weakref.ref(estimate))
    if kind != "reinforce":
        marked(estimate.grad)
    if used:
        if kind != "reinforce":
            estimate.variance_loss().backward()
        estimate.backward()
    assert len(alive) == {"relax": 5, "lax": 4, "reinforce": 2}[kind]
    # c(z) is used up by the pathwise gradient; everything else is held by the estimate.
    assert sum(reference() is not None for reference in alive) >= len(alive) - 1
    del params, estimate
    assert [reference() for reference in alive] == [None] * len(alive)


# Function transforms


def test_the_low_level_gradients_run_under_function_transforms() -> None:
    """`params` must be an argument of the innermost transform, for the estimate differentiates in it."""
    params = torch.randn(5, 3, generator=seeded(33), dtype=torch.float64)
    dist = Categorical(params)
    noise, fresh = (dist.sample_noise(seeded(k)).double() for k in (34, 35))
    value = torch.randn(5, generator=seeded(36), dtype=torch.float64)
    phi, c = flat_surrogate(3)

    def estimate(phi: Tensor, params: Tensor) -> Tensor:
        here = dist.with_params(params)
        z = here.relax(noise)
        b = here.threshold(z)
        controls = c(phi, z), c(phi, here.relax_given(b, fresh))
        return relax_gradient(value, here.log_prob(b), *controls, params)

    def loss(phi: Tensor, params: Tensor) -> Tensor:
        return variance_loss(estimate(phi, params))

    leaf, weights = params.clone().requires_grad_(), phi.clone().requires_grad_()
    (eager,) = torch.autograd.grad(loss(weights, leaf), weights)
    torch.testing.assert_close(grad(loss, argnums=(0, 1))(phi, params)[0], eager)
    torch.testing.assert_close(vjp(estimate, phi, params)[0], estimate(weights, leaf).detach())
    many = torch.stack([phi, 2 * phi])
    mapped = vmap(grad(loss, argnums=(0, 1)), in_dims=(0, None))(many, params)[0]
    torch.testing.assert_close(mapped[0], eager)
    assert not torch.allclose(mapped[0], mapped[1])


def test_weighted_moments_leave_out_rows_without_weight() -> None:
    columns = torch.tensor([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0], [1e6, -1e6]])
    mean, variance = weighted_moments(columns, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    torch.testing.assert_close(mean, torch.tensor([3.0, 5.0]))
    torch.testing.assert_close(variance, torch.tensor([8 / 3, 0.0]))
    mean, variance = weighted_moments(columns, torch.tensor([2.0, 0.0, 2.0, 0.0]))
    torch.testing.assert_close(variance, torch.tensor([4.0, 0.0]))
    assert not torch.stack(weighted_moments(columns, torch.zeros(4))).any()
