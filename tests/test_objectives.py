"""Objectives beyond f(b): f that depends on theta, several stochastic layers, memory, and function transforms."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relax_rl.distributions import Bernoulli, Categorical
from relax_rl.estimators import (
    Estimate,
    arms,
    concrete,
    disarm,
    dlax,
    double_cv,
    enumerated,
    gumbel_rao,
    marginal,
    muprop,
    rebar,
    reinforce,
    reinmax,
    relax,
    relaxed_objective,
    rloo,
    rodeo,
    straight_through,
    vimco,
)
from tests.estimator_cases import curved, seeded
from tests.oracles import assert_unbiased, collect

MILLION = 1_000_000
Objective = Callable[[Tensor], Tensor]


# An evidence lower bound: log p(x, b) - log q(b), whose q moves with theta, and whose p with a decoder's weights

LOGITS = torch.tensor([0.4, -0.7])


def log_joint(b: Tensor, decoder: Tensor) -> Tensor:
    x_logits = b @ decoder.to(b.dtype)
    return F.logsigmoid(x_logits).sum(-1) - 0.3 * b.sum(-1)


DECODER = torch.tensor([[1.2, -0.5, 0.3], [-0.8, 0.9, 0.6]])
ELBO: dict[str, Callable[[Objective, Bernoulli, torch.Generator], Estimate]] = {
    "reinforce": lambda f, d, g: reinforce(f, d, baseline=-2.0, generator=g),
    "rloo": lambda f, d, g: rloo(f, d, num_samples=3, generator=g),
    "muprop": lambda f, d, g: muprop(f, d, generator=g),
    "relax": lambda f, d, g: relax(f, d, curved, generator=g),
    "relax, c = f + r": lambda f, d, g: relax(f, d, relaxed_objective(f, d, 0.5, curved), phi=(), generator=g),
    "rebar": lambda f, d, g: rebar(f, d, generator=g),
    "dlax": lambda f, d, g: dlax(f, d, curved, generator=g),
    "disarm": lambda f, d, g: disarm(f, d, generator=g),
    "arms": lambda f, d, g: arms(f, d, num_samples=3, generator=g),
    "double cv": lambda f, d, g: double_cv(f, d, generator=g),
    "rodeo": lambda f, d, g: rodeo(f, d, generator=g),
    "marginal": lambda f, d, g: marginal(f, d, curved, generator=g),
}


@pytest.mark.parametrize("name", ELBO)
def test_an_evidence_lower_bound_is_learned_by_encoder_and_decoder(name: str) -> None:
    theta, decoder = LOGITS.double().requires_grad_(), DECODER.double().requires_grad_()
    table = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)), dtype=torch.float64)
    log_q = Bernoulli(theta.expand(4, 2)).log_prob(table)
    exact = torch.autograd.grad((log_q.exp() * (log_joint(table, decoder) - log_q)).sum(), [theta, decoder])
    generator, sums = seeded(1), torch.zeros(2, 3, dtype=torch.float64)
    rows_seen = 0

    def draw(rows: int) -> Tensor:
        nonlocal rows_seen
        params, weights = LOGITS.expand(rows, 2).clone().requires_grad_(), DECODER.clone().requires_grad_()

        def bound(b: Tensor) -> Tensor:
            q = Bernoulli(params.expand_as(b))
            return log_joint(b, weights) - q.log_prob(b)

        ELBO[name](bound, Bernoulli(params), generator).backward(1.0)
        assert params.grad is not None and weights.grad is not None
        sums.add_(weights.grad)
        rows_seen += rows
        return params.grad

    assert_unbiased(collect(draw, MILLION // 2 if name != "dlax" else 2 * MILLION), exact[0], power=0.05)
    torch.testing.assert_close(sums / rows_seen, exact[1], rtol=0.02, atol=0.003)


def test_the_variance_never_reaches_what_belongs_to_f() -> None:
    """REBAR's control is f itself: its variance trains eta and lambda, and not the decoder that f holds."""
    decoder, eta = nn.Linear(2, 3), torch.ones((), requires_grad=True)
    log_temperature = torch.zeros((), requires_grad=True)
    theta = LOGITS.expand(64, 2).clone().requires_grad_()
    f: Objective = lambda b: F.logsigmoid(decoder(b)).sum(-1)  # noqa: E731
    residual = nn.Linear(2, 1)
    estimates = [
        rebar(f, Bernoulli(theta), eta=eta, temperature=log_temperature.exp(), generator=seeded(2)),
        relax(
            f,
            Bernoulli(theta),
            relaxed_objective(f, Bernoulli(theta), log_temperature.exp(), lambda z: residual(z).squeeze(-1)),
            phi=[log_temperature, *residual.parameters()],
            generator=seeded(2),
        ),
    ]
    for estimate in estimates:
        estimate.variance_loss().backward()
        assert theta.grad is None and all(p.grad is None for p in decoder.parameters())
        assert log_temperature.grad is not None and log_temperature.grad.abs() > 0
        log_temperature.grad = None
    assert eta.grad is not None and eta.grad.abs() > 0
    assert all(p.grad is not None for p in residual.parameters())


def test_the_variance_falls_as_eta_and_temperature_learn() -> None:
    raw = torch.tensor([0.0, 1.0], requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.02)
    f: Objective = lambda b: ((b + 0.5) ** 2).sum(-1)  # noqa: E731
    dist, generator = Bernoulli(torch.zeros(2_000, 1)), seeded(3)

    def estimate() -> Estimate:
        return rebar(f, dist, eta=raw[0], temperature=raw[1].exp(), generator=generator)

    before = float(estimate().grad.detach().var())
    for _ in range(200):
        optimizer.zero_grad()
        estimate().variance_loss().backward()
        optimizer.step()
    assert float(estimate().grad.detach().var()) < 0.6 * before
    assert raw[0].detach() > 0.5


# Two layers: the second distribution depends on the outcome of the first


def test_two_layers_each_with_an_estimator_of_its_own_give_the_gradient() -> None:
    weight = torch.tensor([[0.9, -1.1], [0.4, 0.7]])
    offset = torch.tensor([0.2, -0.3])

    def f(b1: Tensor, b2: Tensor) -> Tensor:
        return 2 * b1[..., 0] * b2[..., 1] - torch.sin(b1.sum(-1) + 2 * b2[..., 0]) + 0.5

    theta, second = LOGITS.double().requires_grad_(), offset.double().requires_grad_()
    table = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)), dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for b1 in table:
        p1 = Bernoulli(theta).log_prob(b1).exp()
        layer = Bernoulli((b1 @ weight.double() + second).expand(4, 2))
        total = total + p1 * (layer.log_prob(table).exp() * f(b1.expand(4, 2), table)).sum()
    exact = torch.autograd.grad(total, [theta, second])
    generator = seeded(4)

    def draw(rows: int) -> Tensor:
        params, offsets = (x.expand(rows, 2).clone().requires_grad_() for x in (LOGITS, offset))
        first = Bernoulli(params)
        noise = first.sample_noise(generator)
        b1 = first.threshold(first.relax(noise)).detach()
        then = Bernoulli(b1 @ weight + offsets)
        noise2 = then.sample_noise(generator)
        b2 = then.threshold(then.relax(noise2)).detach()
        value = f(b1, b2)
        relax(value, first, curved, noise=noise, generator=generator).backward(1.0)
        relax(value, then, lambda z: curved(z + b1), noise=noise2, coupling="coupled").backward(1.0)
        assert params.grad is not None and offsets.grad is not None
        return torch.cat([params.grad, offsets.grad], -1)

    assert_unbiased(collect(draw, MILLION), torch.cat(exact), power=0.03)


# Nothing is kept


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z).squeeze(-1)  # type: ignore[no-any-return]


def test_nothing_is_kept_over_two_thousand_steps() -> None:
    """Tensors alive stay as many as they were after the first hundred steps."""
    theta, surrogate, generator = nn.Linear(2, 3), Net(), seeded(5)
    obs, f = torch.randn(4, 2), Net()
    ways = torch.randn(3)
    steps: list[Callable[[Tensor], Estimate]] = [
        lambda x: relax(f, Bernoulli(x), surrogate, generator=generator),
        lambda x: rebar(f, Bernoulli(x), eta=torch.ones((), requires_grad=True), generator=generator),
        lambda x: relax(lambda b: ways[b], Categorical(x), surrogate, generator=generator),
        lambda x: rloo(f, Bernoulli(x), generator=generator),
        lambda x: muprop(f, Bernoulli(x), generator=generator),
        lambda x: disarm(f, Bernoulli(x), generator=generator),
        lambda x: marginal(f, Bernoulli(x), surrogate, generator=generator),
        lambda x: reinmax(f, Bernoulli(x), generator=generator),
    ]

    def run(count: int) -> int:
        for step in range(count):
            estimate = steps[step % len(steps)](theta(obs))
            estimate.backward()
            if estimate.grad.requires_grad:
                estimate.variance_loss().backward()
        del estimate
        gc.collect()
        return sum(isinstance(x, torch.Tensor) for x in gc.get_objects())

    few = run(200)
    assert run(1_800) <= few


@pytest.mark.parametrize("call", [vimco, rloo, enumerated, straight_through, concrete, gumbel_rao])
def test_the_global_random_state_is_left_alone(call: Any) -> None:
    options = {} if call is enumerated else {"generator": seeded(6)}
    before = torch.random.get_rng_state()
    call(lambda b: b.sum(-1), Bernoulli(torch.zeros(5, 3)), **options)
    assert torch.equal(before, torch.random.get_rng_state())
