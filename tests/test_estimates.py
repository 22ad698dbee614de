"""Estimates: their equations, what trains phi and what reaches theta."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relax_rl.distributions import Bernoulli, Categorical, DiagGaussian
from relax_rl.estimators import (
    Estimate,
    lax,
    lax_gradient,
    reinforce,
    reinforce_gradient,
    relax,
    relax_gradient,
    score_function,
    variance_loss,
)
from tests.estimator_cases import (
    CONTINUOUS,
    DISCRETE,
    MILLION,
    MLP,
    at_leaf,
    flat_surrogate,
    of_three,
    policy_and_observations,
    relaxed_size,
    seeded,
    true_gradient,
    zero_mlp,
)
from tests.oracles import (
    Function,
    assert_unbiased,
    central_differences,
    collect,
    exact_gradient,
    noise_grid,
    outcomes,
    probabilities,
    repeat,
)

# The formulas


def test_the_gradients_are_their_equations() -> None:
    """Against the Jacobian of each term, written out row by row."""
    dist = at_leaf(Categorical(torch.tensor([[0.4, -0.3, 0.1]], dtype=torch.float64)), 7)
    surrogate = MLP(3, dtype=torch.float64)
    noise, fresh = (dist.sample_noise(seeded(k)).double() for k in (9, 10))
    z = dist.relax(noise)
    b = dist.threshold(z)
    z_tilde, value = dist.relax_given(b, fresh), torch.arange(7, dtype=torch.float64)
    log_prob, c, c_tilde = dist.log_prob(b), surrogate(z), surrogate(z_tilde)

    def rowwise(output: Tensor) -> Tensor:
        rows = [torch.autograd.grad(output[k], dist.params, retain_graph=True)[0][k] for k in range(7)]
        return torch.stack(rows)

    score, dc, dc_tilde = rowwise(log_prob), rowwise(c), rowwise(c_tilde)
    column = value[:, None]
    expect = torch.testing.assert_close
    expect(score_function(log_prob, dist.params), score)
    expect(reinforce_gradient(value, log_prob, dist.params), column * score)
    expect(lax_gradient(value, log_prob, c, dist.params), (column - c[:, None]) * score + dc)
    expect(
        relax_gradient(value, log_prob, c, c_tilde, dist.params),
        (column - c_tilde[:, None]) * score + dc - dc_tilde,
    )


@pytest.mark.parametrize("case", [*DISCRETE, *CONTINUOUS])
def test_a_fresh_zero_surrogate_gives_exactly_the_reinforce_gradient(case: str) -> None:
    dist, f = (DISCRETE | CONTINUOUS)[case]
    rows = repeat(dist, 1_000)
    noise, surrogate = rows.sample_noise(seeded(11)), zero_mlp(relaxed_size(dist))
    plain = reinforce(f, rows, noise=noise)
    estimator: Any = lax if isinstance(dist, DiagGaussian) else relax
    fresh = estimator(f, rows, surrogate, noise=noise, generator=seeded(12))
    assert torch.equal(fresh.grad, plain.grad)
    fresh.variance_loss().backward()
    assert surrogate.last.weight.grad is not None and surrogate.last.weight.grad.abs().max() > 0, (
        "c must be able to start"
    )


def test_a_baseline_is_subtracted_from_the_value() -> None:
    dist, f = DISCRETE["3-way"]
    rows = repeat(dist, 50)
    noise, baseline = rows.sample_noise(seeded(13)), torch.randn(50, generator=seeded(14))
    plain, shifted = (reinforce(f, rows, noise=noise, baseline=x) for x in (0.0, baseline))
    score = reinforce(torch.ones(50), rows, noise=noise).grad
    torch.testing.assert_close(shifted.grad, plain.grad - baseline[:, None] * score)
    torch.testing.assert_close(shifted.value, plain.value)


@pytest.mark.parametrize("case", [*DISCRETE, *CONTINUOUS])
def test_values_that_are_known_already_give_the_same_estimate(case: str) -> None:
    dist, f = (DISCRETE | CONTINUOUS)[case]
    rows = repeat(dist, 200)
    noise = rows.sample_noise(seeded(15))
    surrogate = MLP(relaxed_size(dist))
    estimator: Any = lax if isinstance(dist, DiagGaussian) else relax
    drawn = estimator(f, rows, surrogate, noise=noise, generator=seeded(16))
    known = estimator(f(drawn.sample), rows, surrogate, noise=noise, generator=seeded(16))
    assert torch.equal(drawn.grad, known.grad) and torch.equal(drawn.value, known.value)
    assert torch.equal(drawn.sample, rows.threshold(rows.relax(noise)))
    assert torch.equal(reinforce(f, rows, noise=noise).grad, reinforce(f(drawn.sample), rows, noise=noise).grad)


def test_the_generator_decides_every_draw() -> None:
    for estimator, (dist, f) in ((relax, DISCRETE["3-way"]), (lax, CONTINUOUS["sine"])):
        rows, surrogate = repeat(dist, 100), MLP(relaxed_size(dist))
        first, same, other = (estimator(f, rows, surrogate, generator=seeded(k)).grad for k in (1, 1, 2))
        assert torch.equal(first, same) and not torch.equal(first, other)
    rows = repeat(DISCRETE["3-way"][0], 100)
    noise, conditional = rows.sample_noise(seeded(3)), rows.sample_noise(seeded(4))
    given = relax(of_three, rows, MLP(3), noise=noise, conditional_noise=conditional)
    assert torch.equal(given.grad, relax(of_three, rows, MLP(3), noise=noise, generator=seeded(4)).grad)


# phi: the variance loss


def assert_gradient(loss: Function, phi: Tensor) -> None:
    """Autograd against central differences in every direction."""
    leaf = phi.clone().requires_grad_()
    (analytic,) = torch.autograd.grad(loss(leaf), leaf)
    numeric = central_differences(lambda: loss(phi), phi)
    assert analytic.abs().max() > 1e-3
    torch.testing.assert_close(analytic, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", ["3-way", "3 bits", "2 x 3", "quadratic", "sine", "squashed"])
def test_the_gradient_of_the_variance_loss_equals_finite_differences(case: str) -> None:
    """Common random numbers make the averaged second moment a smooth function of phi."""
    dist, f = (DISCRETE | CONTINUOUS)[case]
    rows = repeat(dist.with_params(dist.params.double()), 64)
    noise, fresh = (rows.sample_noise(seeded(k)).double() for k in (18, 19))
    phi, c = flat_surrogate(relaxed_size(dist))

    def loss(phi: Tensor) -> Tensor:
        if isinstance(dist, DiagGaussian):
            return lax(f, rows, lambda z: c(phi, z), noise=noise).variance_loss()
        return relax(f, rows, lambda z: c(phi, z), noise=noise, conditional_noise=fresh).variance_loss()

    assert_gradient(loss, phi)


def enumerated_estimates(phi: Tensor, c: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """RELAX estimates of one bit for every b, z given b and z~ given b on grids, and their probabilities."""
    dist = Bernoulli(torch.tensor([[0.6]], dtype=torch.float64))
    nodes, weights = noise_grid(dist, 120)
    pairs, pair_weights = torch.cartesian_prod(nodes[:, 0], nodes[:, 0]), torch.outer(weights, weights).flatten()
    table, p = outcomes(dist), probabilities(dist)
    b = table.repeat_interleave(len(pairs), 0)
    leaf = at_leaf(dist, len(b))
    behind_z, behind_z_tilde = (pairs[:, [k]].repeat(2, 1) for k in (0, 1))
    noise = (leaf.relax_given(b, behind_z) - leaf.params).detach()
    z, z_tilde = leaf.relax(noise), leaf.relax_given(b, behind_z_tilde)
    value = 3 * (b[:, 0] - 0.3) ** 2
    estimates = relax_gradient(value, leaf.log_prob(b), c(phi, z), c(phi, z_tilde), leaf.params)
    return estimates, (p[:, None] * pair_weights).flatten()


def test_the_variance_loss_is_the_enumerated_second_moment_and_falls_with_the_variance() -> None:
    phi, c = flat_surrogate(1)

    def second_moment(phi: Tensor) -> Tensor:
        return variance_loss(*enumerated_estimates(phi, c))

    assert_gradient(second_moment, phi)
    leaf = phi.clone().requires_grad_()
    estimates, weight = enumerated_estimates(leaf, c)
    mean = weight @ estimates[:, 0]
    exact = exact_gradient(Bernoulli(torch.tensor([[0.6]], dtype=torch.float64)), lambda b: 3 * (b[:, 0] - 0.3) ** 2)
    assert float(mean.detach()) == pytest.approx(float(exact), rel=1e-7)
    # The mean does not move with phi, so the second moment and the variance have the same gradient.
    (drift,) = torch.autograd.grad(mean, leaf, retain_graph=True)
    assert drift.abs().max() < 1e-7
    (of_moment,) = torch.autograd.grad(variance_loss(estimates, weight), leaf, retain_graph=True)
    variance = (weight * (estimates[:, 0] - mean).square()).sum()
    torch.testing.assert_close(torch.autograd.grad(variance, leaf)[0], of_moment, rtol=1e-6, atol=1e-8)


def test_weights_of_the_variance_loss() -> None:
    rows = torch.randn(6, 3, generator=seeded(20), requires_grad=True)
    squared = rows.detach().square().sum(-1)
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    expect = torch.testing.assert_close
    expect(variance_loss(rows).detach(), squared.mean())
    expect(variance_loss(rows, weight).detach(), squared[weight > 0].mean())
    expect(variance_loss(rows, weight / 100).detach(), squared[weight > 0].mean())
    expect(variance_loss(rows, torch.full((6,), 3.0)).detach(), squared.mean())
    (slope,) = torch.autograd.grad(variance_loss(rows, weight), rows)
    assert torch.equal(slope[1], torch.zeros(3)) and slope[0].abs().max() > 0
    nothing = variance_loss(rows, torch.zeros(6))
    assert float(nothing.detach()) == 0
    assert torch.equal(torch.autograd.grad(nothing, rows)[0], torch.zeros(6, 3))


@pytest.mark.parametrize("case", ["3 bits", "2 x 2", "quadratic", "squashed"])
def test_a_trained_surrogate_halves_the_variance_and_stays_unbiased(case: str) -> None:
    dist, f = (DISCRETE | CONTINUOUS)[case]
    estimator: Any = lax if isinstance(dist, DiagGaussian) else relax
    surrogate, generator, rows = MLP(relaxed_size(dist)), seeded(21), repeat(dist, 128)
    nn.init.zeros_(surrogate.last.weight)
    optimizer = torch.optim.Adam(surrogate.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        estimator(f, rows, surrogate, generator=generator).variance_loss().backward()
        optimizer.step()
    mean_value = float(f(rows.threshold(rows.relax(rows.sample_noise(seeded(22))))).mean())
    trained = collect(lambda n: estimator(f, repeat(dist, n), surrogate, generator=generator).grad, MILLION // 2)
    plain = collect(lambda n: reinforce(f, repeat(dist, n), generator=generator).grad, MILLION // 4)
    based = collect(
        lambda n: reinforce(f, repeat(dist, n), baseline=mean_value, generator=generator).grad, MILLION // 4
    )
    assert trained.variance < (0.5 if estimator is relax else 0.2) * plain.variance
    assert trained.variance < 0.8 * based.variance
    assert_unbiased(trained, true_gradient(dist, f), power=0.01)


# theta: the pull-back


@pytest.mark.parametrize("weight", [None, 0.25, torch.tensor(0.25), torch.rand(32, generator=seeded(25))], ids=str)
def test_backward_is_the_pull_back_of_the_estimate(weight: Any) -> None:
    net, obs = policy_and_observations(3)
    params = net(obs)
    estimate = relax(of_three, Categorical(params), MLP(3), generator=seeded(26))
    assert estimate.params is params
    factor = torch.full((32,), 1 / 32) if weight is None else torch.as_tensor(weight).expand(32)
    parameters = list(net.parameters())
    surface = (factor[:, None] * estimate.grad.detach() * params).sum()
    expected = torch.autograd.grad(surface, parameters, retain_graph=True)
    estimate.backward(weight)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    # Like every backward, it adds to what is there.
    relax(of_three, Categorical(net(obs)), MLP(3), generator=seeded(26)).backward(weight)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


def grads(*modules: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for module in modules for parameter in module.parameters()]


@pytest.mark.parametrize("kind", ["relax", "lax"])
def test_theta_and_phi_never_reach_each_other(kind: str) -> None:
    net, obs = policy_and_observations(4)
    surrogate, objective = MLP(4 if kind == "relax" else 2), MLP(2, seed=3)

    def make() -> Estimate:
        if kind == "relax":
            bits = Bernoulli(net(obs))
            return relax(lambda b: objective(b[:, :2]), bits, surrogate, generator=seeded(27))
        return lax(objective, DiagGaussian(net(obs)), surrogate, generator=seeded(27))

    estimate = make()
    assert not estimate.sample.requires_grad
    estimate.variance_loss().backward()
    assert all(g is None for g in grads(net, objective))
    assert all(g is not None and g.abs().max() > 0 and not g.requires_grad for g in grads(surrogate))
    surrogate.zero_grad(set_to_none=True)

    estimate.backward()
    assert all(g is None for g in grads(surrogate))
    assert all(g is not None and g.abs().max() > 0 and not g.requires_grad for g in grads(net))
    # What f holds of its own is learned too: the mean of f at the samples, as it stands.
    expected = torch.autograd.grad(estimate.value.mean(), list(objective.parameters()), retain_graph=True)
    for g, same in zip(grads(objective), expected, strict=True):
        torch.testing.assert_close(g, same)

    # In the other order too: the pull-back is the same, and the variance adds nothing to it.
    alone = [g.clone() for g in grads(net, objective) if g is not None]
    for module in (net, objective):
        module.zero_grad(set_to_none=True)
    again = make()
    again.backward()
    again.variance_loss().backward()
    assert all(torch.equal(g, same) for g, same in zip(grads(net, objective), alone, strict=True) if g is not None)


def test_a_baseline_learns_from_the_variance_alone() -> None:
    net, obs = policy_and_observations(3)
    baseline = torch.zeros(32, requires_grad=True)
    estimate = reinforce(of_three, Categorical(net(obs)), baseline=baseline, generator=seeded(28))
    estimate.backward()
    assert baseline.grad is None and all(g is not None for g in grads(net))
    net.zero_grad(set_to_none=True)
    estimate.variance_loss().backward()
    assert baseline.grad is not None and baseline.grad.abs().min() > 0 and all(g is None for g in grads(net))
    assert not reinforce(of_three, Categorical(net(obs))).grad.requires_grad


def test_known_values_take_no_gradient() -> None:
    rows = repeat(DISCRETE["3-way"][0], 32)
    value = torch.ones(32, requires_grad=True)
    estimate = relax(value, rows, MLP(3), noise=rows.sample_noise(seeded(29)), generator=seeded(29))
    estimate.variance_loss().backward()
    assert value.grad is None
    dist = at_leaf(DISCRETE["3-way"][0], 32)
    b = dist.threshold(dist.relax(dist.sample_noise(seeded(29))))
    control = MLP(3)(dist.relax(dist.sample_noise(seeded(30))))
    log_prob = dist.log_prob(b)
    assert not reinforce(value, rows, noise=rows.sample_noise(seeded(29))).grad.requires_grad
    for estimates in (
        lax_gradient(value, log_prob, control, dist.params),
        relax_gradient(value, log_prob, control, MLP(3)(dist.relax_given(b, torch.zeros(32, 3))), dist.params),
    ):
        slopes: tuple[Any, ...] = torch.autograd.grad(variance_loss(estimates), value, allow_unused=True)
        assert slopes[0] is None


@pytest.mark.parametrize("logit", [-80.0, 80.0])
@pytest.mark.parametrize("case", DISCRETE)
def test_estimates_and_their_phi_gradients_stay_finite_at_extreme_logits(case: str, logit: float) -> None:
    dist, f = DISCRETE[case]
    size = dist.params.shape[-1]
    params = torch.where(torch.rand(2_000, size, generator=seeded(30)) < 0.5, logit, torch.zeros(())).requires_grad_()
    surrogate = MLP(size)
    estimate = relax(f, dist.with_params(params), surrogate, generator=seeded(31))
    estimate.variance_loss().backward()
    estimate.backward()
    assert params.grad is not None and params.grad.isfinite().all() and estimate.grad.isfinite().all()
    assert all(g is not None and g.isfinite().all() for g in grads(surrogate))
