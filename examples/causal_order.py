"""The causal order of a linear structural model, found by RELAX and by RLOO on a Plackett-Luce distribution.

Each variable is a linear function of earlier ones and noise of one variance, so that the true order has the least sum of
residual variances (Peters and Buehlmann 2014). A cost asks a Cholesky factor: its squared diagonal holds the variance of
every variable given those before it. `python examples/causal_order.py` takes a minute and draws causal_order.png.
"""

from __future__ import annotations

import argparse
import itertools

import torch
from torch import Tensor, nn

from relax_rl.distributions import PlackettLuce
from relax_rl.estimators import relax, relaxed_objective, rloo

EVALUATIONS = 12
"""Of the cost for one step, of every contestant."""


def structural_model(n: int, seed: int, samples: int = 1000) -> tuple[Tensor, Tensor]:
    """A random graph `[n, n]` (row i: the weights of i's causes) and the covariance `[n, n]` of samples from it."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.randperm(n, generator=generator)
    edges = (torch.rand(n, n, generator=generator) < 0.5) & (place.unsqueeze(1) > place)
    weight = edges * (0.5 + torch.rand(n, n, generator=generator)) * torch.randn(n, n, generator=generator).sign()
    mixing = torch.linalg.inv(torch.eye(n) - weight)
    data = torch.randn(samples, n, generator=generator) @ mixing.T
    return weight, torch.cov(data.T)


def cost(covariance: Tensor, matrix: Tensor) -> Tensor:
    """`[*]` the mean residual variance of orders, given by their matrices `[*, n n]`, or relaxed ones."""
    n = len(covariance)
    places = matrix.unflatten(-1, (n, n))
    permuted = places @ covariance @ places.mT + 1e-4 * torch.eye(n)
    factor: Tensor = torch.linalg.cholesky(permuted)
    return factor.diagonal(dim1=-2, dim2=-1).square().mean(-1)


class Residual(nn.Module):
    """r(z), a free function of the relaxed order."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(n, 32), nn.Tanh(), nn.Linear(32, 1))
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        value: Tensor = self.net(z - z.mean(-1, keepdim=True)).squeeze(-1)
        return value


def search(
    method: str, covariance: Tensor, steps: int, seed: int, residual: Residual | None = None
) -> tuple[Tensor, list[float]]:
    """The logits found, and the cost of the most probable order after each step.

    Args:
        method: "rloo"; "relax" with a free surrogate, that asks the cost once for an estimate; or "relax f+r", which asks
            it at relaxed orders as well, three times in all.
        residual: trained in place of a new one.
    """
    n = len(covariance)
    torch.manual_seed(seed)
    logits, residual = torch.zeros(n, requires_grad=True), Residual(n) if residual is None else residual
    of_theta = torch.optim.Adam([logits], lr=0.05)
    of_phi = torch.optim.Adam(residual.parameters(), lr=5e-3)
    generator, costs = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        one = PlackettLuce(logits, one_hot=True)
        if method == "rloo":
            estimate = rloo(lambda b: cost(covariance, b), one, num_samples=EVALUATIONS, generator=generator)
        else:
            free = method == "relax"
            rows = one.with_params(logits.expand(EVALUATIONS if free else EVALUATIONS // 3, n))
            objective = relaxed_objective(lambda b: cost(covariance, b), rows, residual.log_temperature.exp(), residual)
            surrogate = residual if free else objective
            estimate = relax(lambda b: cost(covariance, b), rows, surrogate, generator=generator)
        of_theta.zero_grad()
        of_phi.zero_grad()
        estimate.backward()
        if method != "rloo":
            estimate.variance_loss().backward()
            of_phi.step()
        of_theta.step()
        costs.append(float(cost(covariance, one.mode())))
    return logits.detach(), costs


def edges_against(weight: Tensor, order: Tensor) -> int:
    """How many edges of the graph run from a later item of the order to an earlier one."""
    place = order.argsort()
    return int(((weight != 0) & (place.unsqueeze(1) < place)).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--variables", type=int, default=8)
    parser.add_argument("--graphs", type=int, default=5)
    parser.add_argument("--figure", default="causal_order.png")
    arguments = parser.parse_args()
    methods, curves = ("rloo", "relax", "relax f+r"), {}
    for method in methods:
        wrong, edges, excess = 0, 0, []
        for graph in range(arguments.graphs):
            weight, covariance = structural_model(arguments.variables, graph)
            truth = float(cost(covariance, PlackettLuce(torch.zeros(arguments.variables)).embed(true_order(weight))))
            logits, costs = search(method, covariance, arguments.steps, graph)
            wrong += edges_against(weight, PlackettLuce(logits).mode())
            edges += int((weight != 0).sum())
            excess.append(torch.tensor(costs) / truth)
        curves[method] = torch.stack(excess).mean(0)
        print(
            f"{method:>10}: cost {curves[method][-1]:.3f} of the true order's, {wrong} of {edges} edges against the order"
        )
    draw(curves, arguments.figure)


def true_order(weight: Tensor) -> Tensor:
    """An order in which every cause comes before its effects."""
    left, order = list(range(len(weight))), []
    while left:
        first = next(i for i in left if not any(weight[i, j] != 0 for j in left))
        order.append(first)
        left.remove(first)
    assert all(weight[a, b] == 0 for a, b in itertools.combinations(order, 2))
    return torch.tensor(order)


def draw(curves: dict[str, Tensor], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for method, curve in curves.items():
        axes.plot(EVALUATIONS * torch.arange(1, len(curve) + 1), curve, label=method)
    axes.set(xlabel="evaluations of the cost", ylabel="cost of the mode / of the true order")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
