"""The variance of gradient estimates at Plackett-Luce orders, at equal evaluations of f: RELAX, REBAR and REINFORCE with
baselines.

    python -m benchmarks.orders            # a few minutes on one core

The problems are those of `examples/causal_order.py` and `examples/sort_numbers.py`, at logits where RLOO's own training
stands after some steps. Every contestant has 12 evaluations of f for one estimate of a row. A control variate is first
fitted at these logits, by the variance loss; what that asks of f is not counted, in its favour. A second table has RELAX's
surrogate as its own training left it, at the logits of that training, where nothing is uncounted. Writes
`results/orders.json` and `results/orders.md`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.tasks import RESULTS, write_json, write_text
from examples import causal_order, sort_numbers
from relax_rl.distributions import PlackettLuce
from relax_rl.estimators import Estimate, rebar, reinforce, relax, relaxed_objective, rloo

__all__ = ["CONTESTANTS", "Problem", "main", "measure", "problems"]

EVALUATIONS = 12
ASKED = {"REINFORCE, mean f": 1, "RLOO": 12, "RELAX, free c": 1, "RELAX, f + r": 3, "REBAR": 3}
CONTESTANTS = tuple(ASKED)


@dataclass(frozen=True)
class Problem:
    """f at some logits.

    Attributes:
        name: of the task and where its logits come from.
        logits: `[B, n]` of B contexts.
        f: from matrices of orders `[*, B, n n]`, or soft ones, to `[*, B]`.
        context: `[B, D]` what a surrogate knows of each context, or none.
    """

    name: str
    logits: Tensor
    f: Callable[[Tensor], Tensor]
    context: Tensor | None = None


class Control(nn.Module):
    """r(z, context), and the scalars of the controls that ask f."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.context = problem.context
        known = 0 if self.context is None else self.context.shape[-1]
        self.net = nn.Sequential(nn.Linear(problem.logits.shape[-1] + known, 32), nn.Tanh(), nn.Linear(32, 1))
        self.log_temperature, self.eta = nn.Parameter(torch.zeros(())), nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor) -> Tensor:
        centred = z - z.mean(-1, keepdim=True)
        inputs = centred if self.context is None else torch.cat([self.context.expand(*z.shape[:-1], -1), centred], -1)
        value: Tensor = self.net(inputs).squeeze(-1)
        return value


def estimate(name: str, problem: Problem, rows: int, control: Control, generator: torch.Generator) -> Estimate:
    """`[R, B]` rows of estimates of one share of the budget, `ASKED[name]` evaluations each."""
    logits = problem.logits.expand(rows, *problem.logits.shape)
    dist, f = PlackettLuce(logits, one_hot=True), problem.f
    if name.startswith("REINFORCE"):
        return reinforce(f, dist, baseline=mean_of(problem).expand(logits.shape[:-1]), generator=generator)
    if name == "RLOO":
        return rloo(f, dist, num_samples=EVALUATIONS, generator=generator)
    if name == "REBAR":
        return rebar(f, dist, eta=control.eta, temperature=control.log_temperature.exp(), generator=generator)
    objective = relaxed_objective(f, dist, control.log_temperature.exp(), control)
    return relax(f, dist, control if "free" in name else objective, generator=generator)


def mean_of(problem: Problem, rows: int = 2_000) -> Tensor:
    """`[B]` E[f], from samples that no estimate uses."""
    dist = PlackettLuce(problem.logits.expand(rows, *problem.logits.shape), one_hot=True)
    sample = dist.threshold(dist.relax(dist.sample_noise(torch.Generator().manual_seed(7))))
    return problem.f(sample).mean(0)


def measure(name: str, problem: Problem, *, fit: int, draws: int, seed: int = 0) -> dict[str, float]:
    """Total variance of an estimate of 12 evaluations at the logits, mean over contexts, and its standard error."""
    torch.manual_seed(seed)
    control, generator = Control(problem), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(control.parameters(), lr=5e-3)
    contexts = len(problem.logits)
    for _ in range(fit if name.startswith(("RELAX", "REBAR")) else 0):
        optimizer.zero_grad()
        estimate(name, problem, math.ceil(64 / contexts), control, generator).variance_loss().backward()
        optimizer.step()
    share = EVALUATIONS // ASKED[name]
    return spread(estimate(name, problem, draws * share, control, generator).grad, draws)


def spread(grad: Tensor, draws: int) -> dict[str, float]:
    """Of estimates `[draws * share, B, n]`, each the mean of `share`, the variance and its standard error."""
    grad = grad.detach().unflatten(0, (draws, -1)).mean(1)
    deviations = (grad - grad.mean(0)).square().sum(-1).mean(-1) * (draws / (draws - 1))
    return {"variance": float(deviations.mean()), "error": float(deviations.std()) / math.sqrt(draws)}


def problems(steps: tuple[int, ...]) -> list[Problem]:
    """Both tasks, at the logits of RLOO after each of some steps."""
    found = []
    _, covariance = causal_order.structural_model(8, seed=0)
    for count in steps:
        logits = causal_order.search("rloo", covariance, count, seed=0)[0] if count else torch.zeros(8)
        name = f"causal order, after {count} steps"
        found.append(Problem(name, logits[None], lambda b: causal_order.cost(covariance, b)))
    sorter, data = sort_numbers.Sorter("rloo", 6, seed=0), torch.Generator().manual_seed(100)
    lists, done = torch.rand(8, 6, generator=torch.Generator().manual_seed(1)), 0
    for count in steps:
        while done < count:
            sorter.step(torch.rand(32, 6, generator=data))
            done += 1
        logits = sorter.dist(lists).params.detach()
        found.append(Problem(f"sorting, after {count} steps", logits, lambda b: sort_numbers.cost(lists, b), lists))
    return found


def trained_along(steps: tuple[int, ...], draws: int) -> dict[str, Any]:
    """RLOO, and RELAX with the surrogate as its own training left it, at the logits of that training."""
    found: dict[str, Any] = {}
    _, covariance = causal_order.structural_model(8, seed=0)
    lists = torch.rand(8, 6, generator=torch.Generator().manual_seed(1))
    for count in steps:
        residual = causal_order.Residual(8)
        logits, _ = causal_order.search("relax", covariance, count, 0, residual)
        order = Problem(f"causal order, after {count} steps", logits[None], lambda b: causal_order.cost(covariance, b))
        sorter, data = sort_numbers.Sorter("relax", 6, seed=0), torch.Generator().manual_seed(100)
        for _ in range(count):
            sorter.step(torch.rand(32, 6, generator=data))
        name, scores = f"sorting, after {count} steps", sorter.dist(lists).params.detach()
        sorting = Problem(name, scores, lambda b: sort_numbers.cost(lists, b), lists)
        many = lists.expand(EVALUATIONS * draws, *lists.shape)
        for problem, surrogate in ((order, residual), (sorting, sorter.control(many))):
            rows = problem.logits.expand(EVALUATIONS * draws, *problem.logits.shape)
            generator = torch.Generator().manual_seed(0)
            grad = relax(problem.f, PlackettLuce(rows, one_hot=True), surrogate, generator=generator).grad
            rival = measure("RLOO", problem, fit=0, draws=draws)
            found[problem.name] = {"RLOO": rival, "RELAX, c as trained": spread(grad, draws)}
    return dict(sorted(found.items(), key=lambda item: item[0].startswith("sorting")))


def report(results: dict[str, Any], along: dict[str, Any]) -> str:
    """The tables: variances over RLOO's."""
    lines = [
        "# Orders: the variance of estimates of 12 evaluations of f",
        "",
        "Total variance at the logits of a Plackett-Luce distribution, over that of RLOO with 12 samples; less is better, ± one",
        "standard error of the contestant's own. Logits are those of RLOO's training after some steps. Controls are fitted",
        "there first, at evaluations that are not counted. Made by `python -m benchmarks.orders`.",
        "",
        *table(results),
        "",
        "RELAX's surrogate as its own training left it, one step of the variance loss for each of the policy, at the logits of",
        "that training. Nothing is uncounted here.",
        "",
        *table(along),
    ]
    return "\n".join(lines) + "\n"


def table(results: dict[str, Any]) -> list[str]:
    """A row for each problem, a column for each contestant."""
    names = list(next(iter(results.values())))
    lines = [f"| problem | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for problem, row in results.items():
        rival = row["RLOO"]["variance"]
        cells = [f"{row[name]['variance'] / rival:.2f} ± {row[name]['error'] / rival:.2f}" for name in names]
        lines.append(f"| {problem} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measure every contestant at every problem and write the results."""
    parser = argparse.ArgumentParser(description="Variance of gradient estimates at Plackett-Luce orders.")
    parser.add_argument("--fit", type=int, default=1000, help="steps of the variance loss")
    parser.add_argument("--draws", type=int, default=1000, help="estimates for each variance")
    parser.add_argument("--dry-run", action="store_true", help="print the table and write no files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for problem in problems((0, 50, 150)):
        for name in CONTESTANTS:
            found = measure(name, problem, fit=arguments.fit, draws=arguments.draws)
            results.setdefault(problem.name, {})[name] = found
            print(f"{problem.name}: {name} {found['variance']:.3g} ± {found['error']:.2g}", flush=True)
    along = trained_along((50, 150, 300), arguments.draws)
    print(report(results, along))
    if not arguments.dry_run:
        settings = {"fit": arguments.fit, "draws": arguments.draws}
        write_json(RESULTS / "orders.json", settings | {"fitted": results, "trained along": along})
        write_text(RESULTS / "orders.md", report(results, along))


if __name__ == "__main__":
    main()
