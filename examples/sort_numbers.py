"""Learning to sort: a network scores numbers so that an order drawn by its scores comes close to the sorted list.

Three contestants, with equally many evaluations of the cost: RLOO and RELAX on Plackett-Luce orders, for which the cost is
a black box, and Gumbel-Sinkhorn, which differentiates it at soft permutations and is biased.
`python examples/sort_numbers.py` takes a minute or two and draws sort_numbers.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from relax_rl.distributions import Matching, PlackettLuce
from relax_rl.estimators import Estimate, concrete, relax, rloo

EVALUATIONS = 4
"""Of the cost for each list and step, of every contestant."""


def cost(lists: Tensor, matrix: Tensor) -> Tensor:
    """`[*]` squared distance of the lists `[*, n]`, put in the order of matrices `[*, n n]`, from the sorted ones."""
    n = lists.shape[-1]
    ordered = (matrix.unflatten(-1, (n, n)) @ lists.unsqueeze(-1)).squeeze(-1)
    distance: Tensor = (ordered - lists.sort(-1).values).square().sum(-1)
    return distance


def network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, outputs))


class Sorter:
    """A policy over orders of `n` numbers, trained by one of "rloo", "relax" and "sinkhorn"."""

    def __init__(self, method: str, n: int, seed: int, lr: float = 0.01) -> None:
        torch.manual_seed(seed)
        self.method, self.n = method, n
        self.policy = network(1, n if method == "sinkhorn" else 1)
        self.surrogate = network(2 * n, 1)
        self.of_theta = torch.optim.Adam(self.policy.parameters(), lr=lr)
        self.of_phi = torch.optim.Adam(self.surrogate.parameters(), lr=0.01)
        self.generator, self.looking = (torch.Generator().manual_seed(seed + k) for k in (0, 200))

    def dist(self, lists: Tensor) -> Any:
        """Orders of lists `[*, n]`: a score for each number, or one for each number in each place."""
        scores = self.policy(lists.unsqueeze(-1))
        if self.method == "sinkhorn":
            return Matching(scores.mT.flatten(-2), one_hot=True)
        return PlackettLuce(scores.squeeze(-1), one_hot=True)

    def estimate(self, lists: Tensor) -> Estimate:
        if self.method == "rloo":
            dist = self.dist(lists)
            return rloo(lambda b: cost(lists, b), dist, num_samples=EVALUATIONS, generator=self.generator)
        many = lists.expand(EVALUATIONS, *lists.shape)
        if self.method == "sinkhorn":
            return concrete(lambda b: cost(many, b), self.dist(many), temperature=0.5, generator=self.generator)
        return relax(lambda b: cost(many, b), self.dist(many), self.control(many), generator=self.generator)

    def control(self, lists: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda z: self.surrogate(torch.cat([lists, z - z.mean(-1, keepdim=True)], -1)).squeeze(-1)

    def step(self, lists: Tensor) -> None:
        self.of_theta.zero_grad()
        self.of_phi.zero_grad()
        estimate = self.estimate(lists)
        estimate.backward()
        if self.method == "relax":
            estimate.variance_loss().backward()
            self.of_phi.step()
        self.of_theta.step()

    @torch.no_grad()
    def drawn(self, lists: Tensor) -> float:
        """Mean cost of one drawn order of each list."""
        dist = self.dist(lists)
        return float(cost(lists, dist.threshold(dist.relax(dist.sample_noise(self.looking)))).mean())


def train(method: str, n: int, steps: int, seed: int, batch: int = 32) -> list[tuple[int, float]]:
    """Steps, and the cost of orders of held-out lists drawn after them, 1 for those drawn blindly."""
    sorter, data = Sorter(method, n, seed), torch.Generator().manual_seed(100 + seed)
    held_out, curve = torch.rand(500, n, generator=data), []
    blind = float(cost(held_out, torch.eye(n).flatten()).mean())  # the numbers of a list stand in no order
    for step in range(1, steps + 1):
        sorter.step(torch.rand(batch, n, generator=data))
        if step % max(1, steps // 20) == 0:
            curve.append((step, sorter.drawn(held_out) / blind))
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--numbers", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--figure", default="sort_numbers.png")
    arguments = parser.parse_args()
    curves = {}
    for method in ("rloo", "relax", "sinkhorn"):
        runs = [train(method, arguments.numbers, arguments.steps, seed) for seed in range(arguments.seeds)]
        steps, costs = torch.tensor(runs).unbind(-1)
        curves[method] = (steps[0], costs.mean(0))
        enough = curves[method][1] <= 0.1
        first = EVALUATIONS * int(steps[0][enough.int().argmax()]) if enough.any() else "more than all"
        print(f"{method:>8}: {costs[:, -1].mean():.2%} of a blind order's cost, 10% after {first} evaluations a list")
    draw(curves, arguments.figure)


def draw(curves: dict[str, tuple[Tensor, Tensor]], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for method, (steps, costs) in curves.items():
        axes.plot(EVALUATIONS * steps, costs, label=method)
    axes.set(xlabel="evaluations of the cost, a list", ylabel="cost of a drawn order / of a blind one", yscale="log")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
