"""Gradient estimates of published code and of this package on the same small problems, whose exact gradient is known.

A contestant gives rows of independent estimates at the same parameters. What it is given is the same on both sides: the
parameters, f, the surrogate with its weights, the temperature, and the number of evaluations of f.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peer_code import on_cpu
from relax_rl.distributions import Bernoulli, Categorical, PlackettLuce, Subset
from relax_rl.estimators import (
    Estimate,
    arm,
    concrete,
    enumerated,
    rebar,
    reinforce,
    relax,
    relaxed_objective,
    rloo,
    straight_through,
    unordered_set,
)

__all__ = ["OURS", "Contestant", "contestants", "exact", "f"]

OURS = "relax_rl"
BITS = torch.tensor([0.3, -0.6, 0.9])
WAYS = torch.tensor([0.4, -0.3, 0.1, -1.0, 0.8])
ITEMS = torch.tensor([0.4, -0.7, 1.1, 0.0])
SOFT = 0.5
"""The temperature of estimates of subsets; others have 1."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One estimator of one library on one problem.

    Attributes:
        problem: bits, categories, orders or subsets.
        estimator: what it is, in the words of this package.
        who: the library or repository.
        evaluations: of f for one estimate.
        draw: a number of rows R to estimates `[R, P]` at the parameters of the problem.
        biased: whether it is meant to be.
    """

    problem: str
    estimator: str
    who: str
    evaluations: int
    draw: Callable[[int], Tensor]
    biased: bool = False


def f(b: Tensor) -> Tensor:
    """`[*]` of embedded outcomes, hard or soft, `[*, F]`: neither linear nor separable."""
    up = torch.linspace(-1.0, 2.0, b.shape[-1], dtype=b.dtype)
    turning = torch.cos(torch.arange(b.shape[-1], dtype=b.dtype) * 2.0)
    return ((b * up).sum(-1) - 0.5).square() + torch.sin(3.0 * (b * turning).sum(-1))


def _dist(problem: str, rows: int) -> Any:
    if problem == "bits":
        return Bernoulli(BITS.expand(rows, -1))
    if problem == "categories":
        return Categorical(WAYS.expand(rows, -1), one_hot=True)
    if problem == "orders":
        return PlackettLuce(ITEMS.expand(rows, -1), one_hot=True)
    return Subset(WAYS.expand(rows, -1), 2, one_hot=True)


def exact(problem: str) -> Tensor:
    """`[P]` the gradient, by enumeration in float64."""
    dist = _dist(problem, 1)
    return enumerated(f, dist.with_params(dist.params.double())).grad[0]


def surrogate(inputs: int) -> nn.Module:
    """c of relaxed samples `[*, P]`, with fixed weights, to `[*, 1]`."""
    net = nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, 1))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return net


def contestants(peers: Mapping[str, Any]) -> list[Contestant]:
    """Everyone who is there, this package's next to the peer's of the same kind."""
    found = _ours()
    makers: dict[str, Callable[[Any], list[Contestant]]] = {
        "storchastic": _storchastic,
        "relaxit": _relaxit,
        "pytorch-pl-variance-reduction": _plackett_luce,
        "estimating-gradients-without-replacement": _unordered,
        "subsets": _subsets,
    }
    for name, make in makers.items():
        if name in peers:
            found += make(peers[name])
    order = {entry.problem + entry.estimator: place for place, entry in reversed(list(enumerate(found)))}
    return sorted(found, key=lambda entry: order[entry.problem + entry.estimator])


def _ours() -> list[Contestant]:
    c = {problem: surrogate(_dist(problem, 1).params.shape[-1]) for problem in ("bits", "orders")}

    def of_bits(z: Tensor) -> Tensor:
        return c["bits"](torch.sigmoid(z)).squeeze(-1)  # type: ignore[no-any-return]

    def of_items(z: Tensor) -> Tensor:
        return c["orders"](z).squeeze(-1)  # type: ignore[no-any-return]

    every: list[tuple[str, str, int, Callable[[Any], Estimate], bool]] = [
        ("bits", "arm", 2, lambda d: arm(f, d), False),
        ("bits", "rebar", 3, lambda d: rebar(f, d, temperature=1.0), False),
        ("bits", "relax", 1, lambda d: relax(f, d, of_bits), False),
        ("bits", "concrete", 1, lambda d: concrete(f, d, temperature=1.0), True),
        ("bits", "straight-through", 1, lambda d: straight_through(f, d), True),
        ("categories", "rloo", 3, lambda d: rloo(f, d, num_samples=3), False),
        ("categories", "unordered-set", 3, lambda d: unordered_set(f, d, num_samples=3), False),
        ("categories", "rebar", 3, lambda d: rebar(f, d, temperature=1.0), False),
        ("orders", "reinforce", 1, lambda d: reinforce(f, d), False),
        ("orders", "relax", 1, lambda d: relax(f, d, of_items), False),
        ("orders", "relax, c = f + r", 3, lambda d: relax(f, d, relaxed_objective(f, d, 1.0, of_items)), False),
        ("orders", "rebar", 3, lambda d: rebar(f, d, temperature=1.0), False),
        ("orders", "rloo", 3, lambda d: rloo(f, d, num_samples=3), False),
        ("subsets", "concrete", 1, lambda d: concrete(f, d, temperature=SOFT), True),
        ("subsets", "straight-through-gumbel", 1, lambda d: straight_through(f, d, temperature=SOFT), True),
        ("subsets", "rloo", 3, lambda d: rloo(f, d, num_samples=3), False),
    ]
    return [
        Contestant(
            problem=problem,
            estimator=name,
            who=OURS,
            evaluations=count,
            draw=lambda rows, p=problem, e=estimate: e(_dist(p, rows)).grad.detach(),  # type: ignore[misc]
            biased=biased,
        )
        for problem, name, count, estimate, biased in every
    ]


def _pulled_back(params: Tensor, loss: Callable[[Tensor], Tensor]) -> Callable[[int], Tensor]:
    """Rows of gradients of a loss whose rows do not meet: from leaves `[R, P]` to losses `[R]`."""

    def draw(rows: int) -> Tensor:
        leaf = params.expand(rows, -1).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
        return gradient

    return draw


# Storchastic


def _storchastic(peer: Any) -> list[Contestant]:
    """A row is an entry of an independent dimension; the library averages over it."""
    storch, method, net = peer.storch, peer.method, surrogate(3)

    class OfBits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, z: Any) -> Any:
            return self.net(z).squeeze(-1)

    def draw(make: Callable[[], Any], params: Tensor, categories: bool) -> Callable[[int], Tensor]:
        def drawn(rows: int) -> Tensor:
            storch.reset()
            leaf = params.expand(rows, -1).clone().requires_grad_()
            x = storch.denote_independent(leaf.unsqueeze(-2) if categories else leaf, 0, "rows")
            squash = storch.deterministic(lambda at: at.softmax(-1) if categories else torch.sigmoid(at))
            family = torch.distributions.OneHotCategorical if categories else torch.distributions.Bernoulli
            sample = make()(family(probs=squash(x)))
            cost = storch.deterministic(lambda b: f(b.squeeze(-2) if categories else b))
            storch.add_cost(cost(sample), "cost")
            storch.backward()
            return rows * leaf.grad  # type: ignore[operator, return-value]

        return drawn

    every: list[tuple[str, str, int, Callable[[], Any], bool]] = [
        ("bits", "arm", 2, lambda: method.ARM("z"), False),
        ("bits", "rebar", 3, lambda: method.REBAR("z"), False),
        ("bits", "relax", 1, lambda: method.RELAX("z", c_phi=OfBits()), False),
        ("bits", "concrete", 1, lambda: method.GumbelSoftmax("z"), True),
        (
            "categories",
            "rloo",
            3,
            lambda: method.ScoreFunction("z", n_samples=3, baseline_factory="batch_average"),
            False,
        ),
        ("categories", "unordered-set", 3, lambda: method.UnorderedSetEstimator("z", 3), False),
        ("categories", "rebar", 3, lambda: method.REBAR("z"), False),
    ]
    return [
        Contestant(
            problem=problem,
            estimator=name,
            who="storchastic",
            evaluations=count,
            draw=draw(make, BITS if problem == "bits" else WAYS, problem == "categories"),
            biased=biased,
        )
        for problem, name, count, make, biased in every
    ]


# relaxit


def _relaxit(peer: Any) -> list[Contestant]:
    families, one = peer.distributions, torch.tensor(1.0)

    def stretched(logits: Tensor) -> Tensor:
        relaxed = families.RebarRelaxation(torch.sigmoid(logits), one)
        return f(relaxed.rsample(logits.shape))

    def straight(logits: Tensor) -> Tensor:
        return f(families.StraightThroughBernoulli(probs=torch.sigmoid(logits)).rsample())

    def top(logits: Tensor, hard: bool) -> Tensor:
        dist = families.GumbelSoftmaxTopK(
            probs=logits.softmax(-1), K=torch.tensor(2), tau=torch.tensor(SOFT), hard=hard
        )
        return f(dist.rsample())

    every: Sequence[tuple[str, str, Tensor, Callable[[Tensor], Tensor]]] = [
        ("bits", "concrete", BITS, stretched),
        ("bits", "straight-through", BITS, straight),
        ("subsets", "concrete", WAYS, lambda at: top(at, False)),
        ("subsets", "straight-through-gumbel", WAYS, lambda at: top(at, True)),
    ]
    return [
        Contestant(
            problem=problem,
            estimator=name,
            who="relaxit",
            evaluations=1,
            draw=_pulled_back(params, loss),
            biased=True,
        )
        for problem, name, params, loss in every
    ]


# Repositories of papers


def _plackett_luce(peer: Any) -> list[Contestant]:
    code, n = peer.estimators, len(ITEMS)

    def of_matrices(matrices: Tensor) -> Tensor:
        return f(matrices.flatten(-2))

    free = surrogate(n)
    both, scaled = peer.critics.RELAXCritic(of_matrices, n, 16), peer.critics.REBARCritic(of_matrices)
    both.rho.load_state_dict(free.state_dict())

    def draw(name: str, c: Callable[[Tensor], Tensor] | None) -> Callable[[int], Tensor]:
        def drawn(rows: int) -> Tensor:
            logits = ITEMS.expand(rows, -1).clone().requires_grad_()
            z = code.to_z(logits)
            b = code.to_b(z)
            value = of_matrices(peer.utils.make_permutation_matrix(b))
            found: Tensor = getattr(code, name)(fb=value, b=b, logits=logits, z=z, c=c).detach()
            return found

        return drawn

    every: list[tuple[str, int, str, Callable[[Tensor], Tensor] | None]] = [
        ("reinforce", 1, "reinforce", None),
        ("relax", 1, "relax", free),
        ("relax, c = f + r", 3, "relax", both),
        ("rebar", 3, "relax", scaled),
    ]
    who = "pytorch-pl-variance-reduction"
    return [
        Contestant(problem="orders", estimator=name, who=who, evaluations=count, draw=draw(function, c))
        for name, count, function, c in every
    ]


def _unordered(peer: Any) -> list[Contestant]:
    code = peer.baselines_lib

    def loss(function: Callable[..., Tensor], **options: Any) -> Callable[[Tensor], Tensor]:
        def of_logits(logits: Tensor) -> Tensor:
            log_probs = F.log_softmax(logits, -1)
            rows = torch.arange(len(logits))
            return function(f, log_probs, log_probs.detach().exp(), rows, rows, None, None, **options)

        return of_logits

    every = [
        ("rloo", loss(code.reinforce_wr, n_samples=3)),
        ("unordered-set", loss(code.reinforce_unordered, n_samples=3)),
        ("rebar", loss(code.relax)),
    ]
    who = "estimating-gradients-without-replacement"
    return [
        Contestant(problem="categories", estimator=name, who=who, evaluations=3, draw=_pulled_back(WAYS, one))
        for name, one in every
    ]


def _subsets(peer: Any) -> list[Contestant]:
    def draw(hard: bool) -> Callable[[int], Tensor]:
        operator = peer.sorting_operator.SubsetOperator(2, tau=SOFT, hard=hard)
        gradients = _pulled_back(WAYS, lambda at: f(operator(F.log_softmax(at, -1))))
        return lambda rows: on_cpu(lambda: gradients(rows))

    return [
        Contestant(problem="subsets", estimator=name, who="subsets", evaluations=1, draw=draw(hard), biased=True)
        for name, hard in (("concrete", False), ("straight-through-gumbel", True))
    ]
