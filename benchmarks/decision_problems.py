"""Small problems, one for each kind of variable and function, whose gradient is known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relax_rl.distributions import Bernoulli, Categorical, Gamma, PlackettLuce, Poisson, Subset

__all__ = ["FUNCTIONS", "KINDS", "Control", "Problem", "problem"]


def _randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


KINDS: dict[str, tuple[Any, str]] = {
    "bits": (Bernoulli(0.8 * _randn(1, 5, seed=1)), "5 bits, 32 outcomes"),
    "categories": (Categorical(_randn(1, 20, seed=2), one_hot=True), "one of 20"),
    "orders": (PlackettLuce(0.7 * _randn(1, 4, seed=3), one_hot=True), "orders of 4 items, 24 outcomes"),
    "subsets": (Subset(0.7 * _randn(1, 7, seed=4), 3, one_hot=True), "3 of 7 items, 35 outcomes"),
    "counts": (Poisson(torch.tensor([[0.3, 0.9]])), "two Poisson variables of rates 1.3 and 2.5"),
    "positive": (Gamma(torch.tensor([[0.4, 0.9, 0.0, 0.5]])), "two gamma variables of concentrations 1.5 and 2.5"),
}
"""A distribution of one row, and it in words, by the registry's name of its outcomes."""


def _smooth(s: Tensor, t: Tensor) -> Tensor:
    return 0.25 * (s - 1.0).square() + torch.tanh(t) + 0.5 * s


def _rough(s: Tensor, t: Tensor) -> Tensor:
    return torch.sin(2.5 * s) + 0.7 * torch.cos(3.5 * t + s)


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"smooth": _smooth, "rough": _rough}
"""Of two linear functions s and t of the outcome, whose standard deviations are 1."""


@dataclass(frozen=True)
class Problem:
    """f at one distribution.

    Attributes:
        kind, function: what it is.
        dist: of one row.
        f: from embedded outcomes `[*, F]`, hard or soft, to `[*]`; its mean and its standard deviation are 1.
        exact: `[P]` the gradient of its expectation, float64.
        outcomes: how many there are; infinite for counts and positive numbers.
    """

    kind: str
    function: str
    dist: Any
    f: Callable[[Tensor], Tensor]
    exact: Tensor
    outcomes: float

    def rows(self, count: int) -> Any:
        """The distribution, `count` times."""
        return self.dist.with_params(self.dist.params.expand(count, -1))


def _nodes(dist: Any) -> tuple[Tensor, Tensor]:
    """Outcomes `[M, ...]` in float64 and weights `[M]`, such that sums over them are expectations when weighed by p."""
    if isinstance(dist, Poisson):
        counts = torch.arange(40.0, dtype=torch.float64)
        table = torch.cartesian_prod(counts, counts)
        return table, torch.ones(len(table), dtype=torch.float64)
    if isinstance(dist, Gamma):
        logs = torch.linspace(-16.0, 3.7, 900, dtype=torch.float64)
        table = torch.cartesian_prod(logs, logs).exp()
        return table, table.prod(-1) * float(logs[1] - logs[0]) ** 2
    table = dist.support().double()
    return table, torch.ones(len(table), dtype=torch.float64)


def problem(kind: str, function: str) -> Problem:
    """One cell of the grid, with f scaled by exact moments and its gradient by a sum or by quadrature."""
    dist = KINDS[kind][0]
    table, weights = _nodes(dist)
    leaf = dist.params.double().requires_grad_()
    chance = weights * dist.with_params(leaf.expand(len(table), -1)).log_prob(table).exp()
    p = chance.detach()

    def scaled(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = (p * x).sum()
        return mean, (p * (x - mean).square()).sum().sqrt()

    width = table.shape[-1]
    along = [_randn(width, seed=seed).double() for seed in (11, 12)]
    along = [w / scaled(table @ w)[1] for w in along]
    centre = [scaled(table @ w)[0] for w in along]

    def raw(b: Tensor) -> Tensor:
        s, t = (b @ w.to(b.dtype) - c.to(b.dtype) for w, c in zip(along, centre, strict=True))
        return FUNCTIONS[function](s, t)

    mean, deviation = (float(x) for x in scaled(raw(table)))

    def f(b: Tensor) -> Tensor:
        return (raw(b) - mean) / deviation + 1.0

    (gradient,) = torch.autograd.grad((chance * f(table)).sum(), leaf)
    return Problem(kind, function, dist, f, gradient[0], len(table) if hasattr(dist, "support") else math.inf)


class Control(nn.Module):
    """The surrogate c: a network of one layer of 16 on the relaxed outcome; and eta and the temperature of REBAR."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.dist, self.positive = problem.dist, problem.kind == "positive"
        generator = torch.Generator().manual_seed(0)
        first, last = nn.Linear(self.dist.embed(self._outcome()).shape[-1], 16), nn.Linear(16, 1)
        with torch.no_grad():
            for parameter in first.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
            last.weight.zero_()
            last.bias.fill_(1.0)
        self.net = nn.Sequential(first, nn.Tanh(), last)
        self.log_temperature, self.eta = nn.Parameter(torch.tensor(-0.5)), nn.Parameter(torch.tensor(1.0))

    def _outcome(self) -> Tensor:
        found: Tensor = self.dist.threshold(self.dist.relax(self.dist.sample_noise(torch.Generator().manual_seed(0))))
        return found

    def of_embedded(self, b: Tensor) -> Tensor:
        """`[*]` of outcomes, soft or hard, `[*, F]`."""
        value: Tensor = self.net(b.log() if self.positive else b).squeeze(-1)
        return value

    def forward(self, z: Tensor) -> Tensor:
        return self.of_embedded(self.dist.soften(z, self.log_temperature.exp()))
