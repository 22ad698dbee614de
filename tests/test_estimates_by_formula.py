"""Every estimator on every family but bits, choices and normals: the estimate is its formula on the same noise, to five digits.

The formula is differentiated by autograd through what a family offers, `log_prob`, `relax`, `relax_given` and `mean`, whose laws
have tests of their own. Where outcomes and noise can be listed, the expectation is compared with the gradient instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as td

from relax_rl.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Dirichlet,
    Gamma,
    Geometric,
    NegativeBinomial,
    Ordinal,
    PlackettLuce,
    Poisson,
    Subset,
    from_torch,
)
from relax_rl.estimators import (
    ESTIMATORS,
    MovingAverage,
    dreg,
    make_estimator,
    nvil,
    rloo,
    sample_sequences,
    sequence_rloo,
    vimco,
    without_replacement,
)
from tests.estimator_cases import seeded
from tests.test_nodes import THETA, chain, early_cost, late_cost, run

FAMILIES: dict[str, tuple[str, Callable[[Tensor], Any]]] = {
    "order": ("orders", lambda params: PlackettLuce(params, one_hot=True)),
    "first 2": ("orders", lambda params: PlackettLuce(params, 2, one_hot=True)),
    "pair": ("subsets", lambda params: Subset(params, 2, one_hot=True)),
    "ranks": ("ranks", Ordinal),
    "Poisson": ("counts", Poisson),
    "geometric": ("counts", Geometric),
    "binomial": ("counts", lambda params: Binomial(params, 4)),
    "negative binomial": ("counts", lambda params: NegativeBinomial(params, 2.5)),
    "gamma": ("positive", Gamma),
    "Dirichlet": ("positive", Dirichlet),
    "beta": ("positive", Beta),
}
DRAWN = ("rloo", "vimco", "nvil", "dreg", "rejection", "enumerated")
"""With tests of their own below, or in test_positive.py."""
CASES = [
    (family, name)
    for family, (kind, _) in FAMILIES.items()
    for name, info in ESTIMATORS.items()
    if kind in info.outcomes and name not in DRAWN
    if not (family in ("Poisson", "geometric", "negative binomial") and name in ("marginal", "muprop", "simple-muprop"))
]
ROWS = 30


def made(family: str) -> Any:
    params = 0.5 * torch.randn(ROWS, 4, generator=seeded(1), dtype=torch.float64)
    return FAMILIES[family][1](params)


def f(b: Tensor) -> Tensor:
    """Of embedded outcomes `[*, F]`, hard or soft; for bounds the log of a weight."""
    weights = torch.linspace(-1.0, 1.5, b.shape[-1], dtype=b.dtype)
    return torch.sin(b @ weights) + 0.3 * (b[..., 0] - 0.4).square()


def c(z: Tensor) -> Tensor:
    return 0.4 * torch.tanh(z).sum(-1) - 0.3 * torch.sin(z[..., 0] + torch.tanh(z[..., -1]))


def at(x: Tensor, leaf: Tensor) -> Tensor:
    """`[*, P]` d sum(x) / d leaf."""
    found = torch.autograd.grad(x.sum(), leaf, retain_graph=True)[0]
    return found.detach()


def slope(g: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    point = x.detach().requires_grad_()
    return torch.autograd.grad(g(point).sum(), point)[0]


def formula(name: str, dist: Any, leaf: Tensor, noise: Tensor, fresh: Tensor, many: Tensor) -> Tensor:
    """The estimate as the registry has it, by autograd at `leaf`."""
    here = dist.with_params(leaf)
    z = here.relax(noise)
    b = dist.threshold(z.detach())
    value, log_p = f(b), here.log_prob(b)
    score = at(log_p, leaf)
    weigh = lambda x: x.detach().unsqueeze(-1) * score  # noqa: E731
    if name == "reinforce":
        return weigh(value - 0.3)
    if name in ("muprop", "simple-muprop"):
        mean = here.mean
        first = slope(f, mean) if name == "muprop" else torch.zeros_like(mean)
        along = (first * mean).sum(-1)
        rest = weigh(value - f(mean) - (first * (b - mean)).sum(-1))
        return rest + (at(along, leaf) if name == "muprop" else 0.0)
    if name in ("reparameterized", "concrete"):
        return at(f(z if name == "reparameterized" else here.soften(z, 0.5)), leaf)
    if name in ("straight-through", "straight-through-gumbel", "gumbel-rao"):
        if name == "gumbel-rao":
            wide = dist.with_params(dist.params.expand(len(many), -1, -1))
            held = wide.noise_of(wide.relax_given(b.expand(len(many), *b.shape), many))
            moving = dist.with_params(leaf.expand(len(many), -1, -1))
            soft = moving.soften(moving.relax(held), 0.5).mean(0)
        else:
            soft = here.mean if name == "straight-through" else here.soften(z, 0.5)
        return at((slope(f, b) * soft).sum(-1), leaf)
    if name == "marginal":
        table = dist.support()
        spread = dist.with_params(leaf.expand(len(table), -1, -1))
        chance = spread.log_prob(table[:, None].expand(-1, ROWS, -1)).exp()
        return weigh(value - c(b)) + at((chance * c(table)[:, None]).sum(0), leaf)
    if name == "lax":
        return weigh(value - c(b)) + at(c(z), leaf)
    if name == "dlax":
        return weigh(value) + at(c(z), leaf) - c(z).detach().unsqueeze(-1) * at(here.relaxed_log_prob(z.detach()), leaf)
    control = c if name == "relax" else lambda x: 0.7 * f(dist.soften(x, 0.4))
    z_tilde = here.relax_given(b, fresh)
    return weigh(value - control(z_tilde)) + at(control(z) - control(z_tilde), leaf)


@pytest.mark.parametrize("family, name", CASES, ids=[f"{name}-{family}" for family, name in CASES])
def test_the_estimate_is_its_formula(family: str, name: str) -> None:
    dist = made(family)
    noise, fresh = (dist.sample_noise(seeded(seed)).double() for seed in (2, 3))
    wide = dist.with_params(dist.params.expand(4, -1, -1))
    options: dict[str, Any] = {"noise": noise}
    if name == "reinforce":
        options["baseline"] = 0.3
    if "surrogate" in ESTIMATORS[name].needs:
        options["surrogate"] = c
    if name == "rebar":
        options |= {"eta": 0.7, "temperature": 0.4}
    if name in ("relax", "rebar"):
        options["conditional_noise"] = fresh
    if name == "gumbel-rao":
        options |= {"num_conditional": 4, "generator": seeded(4)}
    found = make_estimator(name, **options)(f, dist)
    leaf = dist.params.clone().requires_grad_()
    expected = formula(name, dist, leaf, noise, fresh, wide.sample_noise(seeded(4)).double())
    assert expected.abs().mean() > 1e-3
    torch.testing.assert_close(found.grad.detach(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def scores(dist: Any, sample: Tensor) -> Tensor:
    """`[K, *, P]` by autograd."""
    leaf = dist.params.expand(len(sample), *dist.params.shape).clone().requires_grad_()
    return torch.autograd.grad(dist.with_params(leaf).log_prob(sample).sum(), leaf)[0]


def student(params: Tensor) -> Any:
    """One of torch.distributions that this package has no class for, a location and a log scale."""
    return td.StudentT(4.0, params[..., 0], params[..., 1].exp())


def made_or_student(family: str) -> Any:
    """Rows of a family, or of that distribution of torch's."""
    if family != "student":
        return made(family)
    return from_torch(student, torch.randn(ROWS, 2, generator=seeded(5), dtype=torch.float64))


@pytest.mark.parametrize("family", [*FAMILIES, "student"])
def test_estimates_of_several_samples_are_their_formulas(family: str) -> None:
    dist = made_or_student(family)
    found = rloo(f, dist, num_samples=3, generator=seeded(6))
    value, score = f(found.sample), scores(dist, found.sample)
    expected = sum((value[k] - (value.sum(0) - value[k]) / 2).unsqueeze(-1) * score[k] / 3 for k in range(3))
    torch.testing.assert_close(found.grad, expected, rtol=1e-5, atol=1e-8)

    bound = vimco(f, dist, num_samples=3, generator=seeded(6))
    assert torch.equal(bound.sample, found.sample)
    expected = torch.zeros_like(dist.params)
    for k in range(3):
        others = torch.stack([value[j] for j in range(3) if j != k])
        without = torch.cat([others, others.mean(0, keepdim=True)]).logsumexp(0)
        expected += (value.logsumexp(0) - without).unsqueeze(-1) * score[k]
    torch.testing.assert_close(bound.grad, expected, rtol=1e-5, atol=1e-8)

    average = MovingAverage()
    average.update(torch.tensor([0.1, 3.0, -2.0]))
    mean, std = average.mean, average.std
    once = nvil(f, dist, torch.full((ROWS,), 0.2), average, generator=seeded(7))
    (score,) = scores(dist, once.sample[None])
    signal = (f(once.sample) - mean - 0.2) / max(1.0, float(std))
    torch.testing.assert_close(once.grad, signal.unsqueeze(-1) * score, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("family", ["gamma", "Dirichlet", "beta", "student"])
def test_dreg_is_its_formula(family: str) -> None:
    dist = made_or_student(family)
    found = dreg(f, dist, num_samples=3, generator=seeded(8))
    wide = dist.with_params(dist.params.expand(3, -1, -1))
    noise = wide.sample_noise(seeded(8))
    noise = noise if family == "student" else noise.double()
    leaf = dist.params.clone().requires_grad_()
    sample = dist.with_params(leaf.expand(3, -1, -1)).relax(noise)
    if family != "student":
        torch.testing.assert_close(sample.detach(), found.sample)
    log_w = f(sample) - wide.log_prob(sample)  # the density stays where it is
    share = log_w.detach().softmax(0).square()
    torch.testing.assert_close(found.grad, at(share * log_w, leaf), rtol=1e-5, atol=1e-8)


def test_without_replacement_is_exact_in_expectation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over pairs of three, and over the Gumbel of the one that is left: a sum and the trapezoidal rule."""
    row = torch.tensor([0.4, -0.6, 0.9], dtype=torch.float64)
    kappa = torch.linspace(-6.0, 30.0, 4_000, dtype=torch.float64)
    log_p, rows, weights = row.log_softmax(-1), [], []
    for left in range(3):
        members = [i for i in range(3) if i != left]
        z = torch.stack([kappa] * 3, -1)
        z[:, members] = kappa[:, None] + torch.tensor([2.0, 1.0], dtype=torch.float64)
        apart = log_p[left] - kappa
        above = (-torch.expm1(-torch.exp(log_p[members] - kappa[:, None]))).prod(-1)
        rows.append(z)
        weights.append(torch.exp(apart - apart.exp()) * above * (kappa[1] - kappa[0]))
    z, weight = torch.cat(rows), torch.cat(weights)
    dist = Categorical(row.expand(len(z), -1), one_hot=True)
    monkeypatch.setattr(Categorical, "sample_noise", lambda self, generator=None: self.noise_of(z))
    found = without_replacement(f, dist, num_samples=2)
    leaf = row.clone().requires_grad_()
    exact = at(leaf.softmax(-1) @ f(torch.eye(3, dtype=torch.float64)), leaf)
    assert float(weight.sum()) == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close((weight[:, None] * found.grad).sum(0), exact, rtol=1e-4, atol=1e-6)


def test_leave_one_out_over_sequences_is_its_formula() -> None:
    table = torch.randn(5, 4, generator=seeded(9), dtype=torch.float64)
    theta = table.clone().requires_grad_()

    def step(state: Tensor, token: Tensor | None) -> tuple[Tensor, Tensor]:
        first = torch.full((3, 20), 4)
        return state[first if token is None else token], state

    drawn = sample_sequences(step, theta, max_length=4, end=0, generator=seeded(10))
    value = torch.randn(3, 20, 4, generator=seeded(11), dtype=torch.float64)[..., : drawn.tokens.shape[-1]]
    sequence_rloo(value, drawn).backward(1.0)
    leaf = table.clone().requires_grad_()
    before = torch.cat([torch.full((3, 20, 1), 4), drawn.tokens[..., :-1]], -1)
    log_p = leaf[before].log_softmax(-1).gather(-1, drawn.tokens.unsqueeze(-1)).squeeze(-1)
    total = torch.zeros((), dtype=torch.float64)
    for t in range(log_p.shape[-1]):
        to_go = (value * drawn.mask)[..., t:].sum(-1)
        signal = to_go - (to_go.sum(0) - to_go) / 2
        total = total + (signal * drawn.mask[..., t] * log_p[..., t]).sum()
    torch.testing.assert_close(theta.grad, at(total, leaf), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["reinforce", "relax", "rloo"])
def test_gradients_of_a_program_are_their_formula(kind: str) -> None:
    """Three bits of a chain, of the same noise."""
    shape = (4, 50, 6) if kind == "rloo" else (50, 6)
    surrogate = lambda z: torch.tanh(z[..., 0] - 0.2)  # noqa: E731
    options = {"reinforce": {"baseline": 0.2}, "relax": {"surrogate": surrogate, "coupling": "coupled"}, "rloo": {}}[
        kind
    ]
    theta = THETA.expand(shape).clone().requires_grad_()
    found = at(run(chain, [(kind, options)] * 3, theta, seeded(12)), theta)

    leaf, generator = THETA.expand(shape).clone().requires_grad_(), seeded(12)
    bits: list[Tensor] = []
    dists, samples = [], []
    for _ in range(3):
        dist = Bernoulli(chain(leaf, *bits))
        z = dist.relax(dist.sample_noise(generator))
        samples.append(z)
        bits.append(dist.threshold(z.detach()))
        dists.append(dist)
    early, late = early_cost(leaf, bits[0], bits[1]), late_cost(leaf, *bits)
    total = early + late
    for k, (dist, z, b) in enumerate(zip(dists, samples, bits, strict=True)):
        cost = (late if k == 2 else early + late).detach()
        if kind == "reinforce":
            signal, pathwise = cost - 0.2, torch.zeros(())
        elif kind == "rloo":
            signal, pathwise = cost - (cost.sum(0) - cost) / 3, torch.zeros(())
        else:
            held = dist.noise_given(b, z.detach())
            z_tilde = dist.relax_given(b, held)
            signal, pathwise = cost - surrogate(z_tilde).detach(), surrogate(z) - surrogate(z_tilde)
        total = total + signal * dist.log_prob(b) + pathwise
    expected = at(total, leaf)
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)
