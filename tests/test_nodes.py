"""Programs with several stochastic nodes: the hand-threaded gradient, and exact ones by enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from relax_rl.distributions import Bernoulli, Categorical, DiagGaussian
from relax_rl.estimators import StochasticGraph, reinforce, relax
from tests.estimator_cases import seeded
from tests.oracles import RowStatistics, assert_unbiased, collect, noise_grid, rejects

THETA = torch.tensor([0.3, -0.5, 0.9, 0.4, -0.8, 0.2])
Bits = tuple[Tensor, Tensor, Tensor]


def chain(theta: Tensor, *before: Tensor) -> Tensor:
    """Logits of the next bit of b1 -> b2 -> b3, `[*, 1]`."""
    first, second, slope, third, steep, _ = theta.unsqueeze(-1).unbind(-2)
    return [lambda: first, lambda b1: second + slope * b1, lambda b1, b2: third + steep * b2][len(before)](*before)


def fork(theta: Tensor, *before: Tensor) -> Tensor:
    """b1 -> b2, b1 -> b3."""
    first, second, slope, third, steep, _ = theta.unsqueeze(-1).unbind(-2)
    return [lambda: first, lambda b1: second + slope * b1, lambda b1, b2: third + steep * b1][len(before)](*before)


def collider(theta: Tensor, *before: Tensor) -> Tensor:
    """b1 -> b3 <- b2."""
    first, second, slope, third, steep, both = theta.unsqueeze(-1).unbind(-2)
    return [lambda: first, lambda b1: second, lambda b1, b2: third + steep * b1 + slope * b2 + both * b1 * b2][
        len(before)
    ](*before)


GRAPHS: dict[str, Callable[..., Tensor]] = {"chain": chain, "fork": fork, "collider": collider}


def early_cost(theta: Tensor, b1: Tensor, b2: Tensor) -> Tensor:
    return (0.7 * (b1 - 0.2) ** 2 - 0.5 * b1 * b2).squeeze(-1)


def late_cost(theta: Tensor, b1: Tensor, b2: Tensor, b3: Tensor) -> Tensor:
    return (torch.sin(2 * b1 + b3) + b2 * (b3 - 0.4) ** 2 - 0.6 * b1).squeeze(-1) + 0.3 * theta[..., 5] * b3.squeeze(-1)


def exact_gradient(logits: Callable[..., Tensor]) -> Tensor:
    theta = THETA.double().clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for bits in itertools.product((0.0, 1.0), repeat=3):
        b1, b2, b3 = (torch.tensor([x], dtype=torch.float64) for x in bits)
        each = [(logits(theta, *before), b) for before, b in (((), b1), ((b1,), b2), ((b1, b2), b3))]
        log_p = sum(Bernoulli(at).log_prob(b) for at, b in each)
        total = total + log_p.exp() * (early_cost(theta, b1, b2) + late_cost(theta, b1, b2, b3))
    return torch.autograd.grad(total, theta)[0]


def control(z: Tensor) -> Tensor:
    return torch.tanh(z[..., 0] - 0.2) + 0.3 * torch.sin(z[..., 0])


Options = dict[str, Any]


def run(
    logits: Callable[..., Tensor], kinds: list[tuple[str, Options]], theta: Tensor, generator: torch.Generator
) -> Tensor:
    graph = StochasticGraph(generator=generator)
    b1 = graph.draw(Bernoulli(logits(theta)), kinds[0][0], name="b1", **kinds[0][1])
    b2 = graph.draw(Bernoulli(logits(theta, b1)), kinds[1][0], name="b2", **kinds[1][1])
    graph.cost(early_cost(theta, b1, b2))
    b3 = graph.draw(Bernoulli(logits(theta, b1, b2)), kinds[2][0], name="b3", **kinds[2][1])
    graph.cost(late_cost(theta, b1, b2, b3))
    return graph.loss(1.0, variance_coef=0.0)


def gradients(
    logits: Callable[..., Tensor], kinds: list[tuple[str, Options]], rows: int = 400_000, samples: int = 1
) -> RowStatistics:
    generator = seeded(1)

    def draw(count: int) -> Tensor:
        leaf = (THETA.expand(count, 6) if samples == 1 else THETA.expand(samples, count, 6)).clone().requires_grad_()
        (found,) = torch.autograd.grad(run(logits, kinds, leaf, generator), leaf)
        return found if samples == 1 else found.mean(0)

    return collect(draw, rows, 50_000)


def continuation(z: Tensor) -> Tensor:
    """What a program that has forgotten the rest would cost: any function will do as a control variate."""
    return (torch.sin(1.5 * z) - 0.4 * z).squeeze(-1)


SETS: dict[str, list[tuple[str, Options]]] = {
    "reinforce": [("reinforce", {"baseline": 0.2})] * 3,
    "relax": [("relax", {"surrogate": control})] * 3,
    "rebar": [("rebar", {"f": continuation, "temperature": 0.4, "eta": 0.7})] * 3,
    "marginal": [("marginal", {"surrogate": control})] * 3,
    "each its own": [
        ("relax", {"surrogate": control, "coupling": "coupled"}),
        ("dlax", {"surrogate": control}),
        ("reinforce", {}),
    ],
}


@pytest.mark.parametrize("kinds", SETS)
@pytest.mark.parametrize("shape", GRAPHS)
def test_gradients_are_unbiased(shape: str, kinds: str) -> None:
    logits = GRAPHS[shape]
    assert_unbiased(gradients(logits, SETS[kinds]), exact_gradient(logits), power=0.055)


@pytest.mark.parametrize("shape", GRAPHS)
def test_leave_one_out_over_runs_is_unbiased_and_of_less_variance(shape: str) -> None:
    logits = GRAPHS[shape]
    found = gradients(logits, [("rloo", {})] * 3, rows=100_000, samples=4)
    assert_unbiased(found, exact_gradient(logits), power=0.06)
    assert found.variance < 0.25 * gradients(logits, [("reinforce", {})] * 3, rows=50_000).variance


def test_a_relaxed_draw_gives_the_gradient_of_the_program_relaxed_there() -> None:
    """b3 of the chain, by quadrature over its logistic noise and enumeration of the other bits."""
    theta = THETA.double().clone().requires_grad_()
    nodes, weights = noise_grid(Bernoulli(torch.zeros(1, 1)), 400)
    total = torch.zeros((), dtype=torch.float64)
    for bits in itertools.product((0.0, 1.0), repeat=2):
        b1, b2 = (torch.tensor([x], dtype=torch.float64) for x in bits)
        p = (Bernoulli(chain(theta)).log_prob(b1) + Bernoulli(chain(theta, b1)).log_prob(b2)).exp()
        soft = torch.sigmoid((chain(theta, b1, b2) + nodes) / 0.5)
        each = early_cost(theta, b1, b2) + late_cost(theta, b1.expand_as(soft), b2.expand_as(soft), soft)
        total = total + p * (weights * each).sum()
    (relaxed,) = torch.autograd.grad(total, theta)
    kinds: list[tuple[str, Options]] = [("reinforce", {}), ("reinforce", {}), ("concrete", {"temperature": 0.5})]
    found = gradients(chain, kinds, rows=300_000)
    assert_unbiased(found, relaxed, power=0.06)
    assert rejects(found, exact_gradient(chain))


def test_the_gradient_is_the_one_threaded_by_hand() -> None:
    logits, second = torch.randn(50, 4, generator=seeded(2), requires_grad=True), torch.nn.Linear(4, 3)
    scale = torch.tensor(0.6, requires_grad=True)
    surrogate = lambda z: scale * torch.tanh(z).sum(-1)  # noqa: E731
    leaves = [logits, *second.parameters(), scale]

    generator = seeded(3)
    first_dist = Bernoulli(logits)
    noise = first_dist.sample_noise(generator)
    b1 = first_dist.threshold(first_dist.relax(noise)).detach()
    second_dist = Bernoulli(second(b1))
    noise2 = second_dist.sample_noise(generator)
    b2 = second_dist.threshold(second_dist.relax(noise2)).detach()
    value = b1.sum(-1) * b2.sum(-1)
    by_hand = relax(value, first_dist, surrogate, noise=noise, phi=[scale], generator=generator)
    by_hand.backward()
    by_hand.variance_loss().backward()
    reinforce(value, second_dist, noise=noise2).backward()
    expected = [x.grad for x in leaves]
    for x in leaves:
        x.grad = None

    graph = StochasticGraph(generator=seeded(3))
    c1 = graph.draw(Bernoulli(logits), "relax", surrogate=surrogate, phi=[scale])
    c2 = graph.draw(Bernoulli(second(c1)))
    assert torch.equal(c1, b1) and torch.equal(c2, b2)
    graph.cost(c1.sum(-1) * c2.sum(-1))
    loss = graph.loss()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(value.mean()))
    torch.testing.assert_close([x.grad for x in leaves], expected)
    torch.testing.assert_close(graph.estimates()["0"].grad, by_hand.grad)


def test_rows_that_come_to_an_end_early() -> None:
    """Up to three draws, the first 0 ends a row; every draw costs: by enumeration."""
    theta = torch.tensor([0.4, -0.3, 0.8])

    def stepwise(leaf: Tensor, generator: torch.Generator) -> Tensor:
        graph = StochasticGraph(generator=generator)
        active = torch.ones(len(leaf), dtype=torch.bool)
        for t in range(3):
            b = graph.draw(Bernoulli(leaf[:, t : t + 1]), "relax", surrogate=control, active=active).squeeze(-1)
            graph.cost(1.0 + torch.sin(2.0 * b + t) + leaf[:, 0] * b, active=active)
            active = active & (b == 1)
            if not active.any():
                break
        return graph.loss(1.0, variance_coef=0.0)

    row = theta.double().requires_grad_()
    p, alive, exact = torch.sigmoid(row), torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for t in range(3):
        costs = [1.0 + torch.sin(torch.tensor(2.0 * b + t)) + row[0] * b for b in (0.0, 1.0)]
        exact = exact + alive * ((1 - p[t]) * costs[0] + p[t] * costs[1])
        alive = alive * p[t]
    (gradient,) = torch.autograd.grad(exact, row)
    generator = seeded(4)

    def draw(count: int) -> Tensor:
        leaf = theta.expand(count, 3).clone().requires_grad_()
        return torch.autograd.grad(stepwise(leaf, generator), leaf)[0]

    assert_unbiased(collect(draw, 300_000, 50_000), gradient, power=0.03)


def test_a_sample_that_moves_carries_gradients_back_from_the_draws_behind_it() -> None:
    """x ~ N(m, 1), b ~ Bernoulli(x): dE[f(x, b)] / dm by quadrature."""
    f = lambda x, b: (b - 0.3) ** 2 * torch.cos(x) + 0.5 * b  # noqa: E731
    mean = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    nodes, weights = noise_grid(DiagGaussian(torch.zeros(1, 2)), 200)
    x = mean + nodes[:, 0]
    p = torch.sigmoid(x)
    (exact,) = torch.autograd.grad((weights * (p * f(x, 1.0) + (1 - p) * f(x, 0.0))).sum(), mean)
    generator = seeded(5)

    def draw(count: int) -> Tensor:
        leaf = torch.full((count, 1), 0.2, requires_grad=True)
        graph = StochasticGraph(generator=generator)
        x = graph.draw(DiagGaussian(torch.cat([leaf, torch.zeros_like(leaf)], -1)), "reparameterized")
        b = graph.draw(Bernoulli(x), "relax", surrogate=control)
        graph.cost(f(x, b).squeeze(-1))
        return torch.autograd.grad(graph.loss(1.0, variance_coef=0.0), leaf)[0]

    assert_unbiased(collect(draw, 700_000, 50_000), exact[None], power=0.05)


def test_costs_that_a_draw_has_no_part_in_can_be_left_out() -> None:
    def spread(of: list[str] | None) -> RowStatistics:
        generator = seeded(6)

        def draw(count: int) -> Tensor:
            leaf = torch.zeros(count, 2, requires_grad=True)
            graph = StochasticGraph(generator=generator)
            b1 = graph.draw(Bernoulli(leaf[:, :1]), name="one")
            b2 = graph.draw(Bernoulli(leaf[:, 1:]), name="other")
            graph.cost(b1.squeeze(-1))
            graph.cost(5.0 * b2.squeeze(-1), of=of)
            return torch.autograd.grad(graph.loss(1.0), leaf)[0]

        return collect(draw, 100_000, 50_000)

    exact = torch.tensor([0.25, 1.25], dtype=torch.float64)
    assert_unbiased(spread(None), exact, power=0.1)
    assert_unbiased(spread(["other"]), exact, power=0.1)
    assert spread(["other"]).variance < 0.8 * spread(None).variance


def test_what_a_graph_refuses() -> None:
    graph = StochasticGraph()
    bits, ways = Bernoulli(torch.zeros(3, 1, requires_grad=True)), Categorical(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="there is no cost"):
        graph.loss()
    graph.draw(bits, name="b")
    with pytest.raises(ValueError, match="there is a draw named 'b' already"):
        graph.draw(bits, name="b")
    with pytest.raises(ValueError, match="no draw is named 'c'; there are b"):
        graph.cost(torch.zeros(3), of=["c"])
    with pytest.raises(ValueError, match="disarm does not take costs that follow as numbers"):
        graph.draw(bits, "disarm")
    with pytest.raises(ValueError, match="unknown estimator 'relaxx'"):
        graph.draw(bits, "relaxx")
    with pytest.raises(ValueError, match="one_hot=True"):
        graph.draw(ways, "concrete")
    with pytest.raises(ValueError, match="discrete: use concrete"):
        graph.draw(bits, "reparameterized")
    with pytest.raises(ValueError, match="num_samples is 1, expected at least 2"):
        graph.draw(Bernoulli(torch.zeros(1, 5, 1)), "rloo")
    with pytest.raises(ValueError, match="rloo has no options in a graph"):
        graph.draw(Bernoulli(torch.zeros(2, 5, 1)), "rloo", num_samples=2)
    with pytest.raises(ValueError, match="rebar in a graph needs f"):
        graph.draw(bits, "rebar")
    with pytest.raises(ValueError, match="nvil needs baseline, average"):
        graph.draw(bits, "nvil")
    with pytest.raises(ValueError, match=r"active has shape \[3, 1\]"):
        graph.cost(torch.zeros(3), active=torch.ones(3, 1, dtype=torch.bool))
    graph.cost(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="f has shape"):
        graph.loss()
    moving = StochasticGraph()
    moving.cost(moving.draw(bits, "concrete", temperature=0.5))  # one number too many dimensions, and rows of weights
    with pytest.raises(ValueError, match=r"weight has shape \[3\], but one number a row is needed: \[3, 1\]"):
        moving.loss(torch.ones(3))
    with pytest.raises(ValueError, match="temperature is 0, expected above 0"):
        moving.draw(bits, "straight-through-gumbel", temperature=0)


@pytest.mark.parametrize("estimator", ["reparameterized", "concrete", "straight-through"])
def test_rows_that_have_ended_get_no_gradient_through_a_sample_that_moves(estimator: str) -> None:
    params = torch.full((3, 2), 0.3, requires_grad=True)
    graph = StochasticGraph(generator=torch.Generator().manual_seed(0))
    dist = DiagGaussian(params) if estimator == "reparameterized" else Bernoulli(params)
    active = torch.tensor([True, False, True])
    moved = graph.draw(dist, estimator, active=active)
    assert moved.shape[0] == 3
    graph.cost(moved.square().sum(-1))
    graph.loss().backward()
    assert params.grad is not None and not params.grad[1].any() and params.grad[0].any() and params.grad[2].any()
    for wrong in ("reinforce", estimator):
        with pytest.raises(ValueError, match=r"active has shape \[2\]"):
            graph.draw(dist, wrong, active=torch.ones(2, dtype=torch.bool))
