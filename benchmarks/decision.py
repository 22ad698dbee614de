"""Which estimator for which problem: mean squared errors at equal evaluations of f, where the gradient is known exactly.

    python -m benchmarks.decision            # some minutes on one core

For every kind of variable, a smooth and a rough f, and 1, 2, 4 and 16 evaluations of f for one estimate, everything that the
registry says applies. Writes `results/decision.json`, `results/decision.md` and `results/decision.png`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.decision_problems import FUNCTIONS, KINDS, Control, Problem, problem
from benchmarks.decision_tables import draw, report
from benchmarks.tasks import RESULTS, at_least_one, commit, write_json, write_text
from relax_rl.estimators import ESTIMATORS, Estimate, describe, make_estimator, reinforce, relax, relaxed_objective

__all__ = ["BUDGETS", "main", "measure", "names_for"]

BUDGETS = (1, 2, 4, 16)
RUNNING, BOTH = "reinforce, running mean", "relax, c = f + r"
LEFT_OUT = {
    "nvil": "its network is of inputs, and there are none: `reinforce, running mean` stands for it",
    "vimco": "it is for bounds of several samples, not for E[f]",
    "dreg": "it is for bounds of several samples, not for E[f]",
}
TRAINED = ("lax", "dlax", "rebar", "relax", BOTH, "marginal")
"""Those with something that the variance loss trains."""
RATE = 0.02


def names_for(kind: str) -> list[str]:
    """Contestants for outcomes of a kind, by the registry, and two variants."""
    found = [name for name, info in ESTIMATORS.items() if kind in info.outcomes and name not in LEFT_OUT]
    if "relax" in found:
        found.insert(found.index("relax") + 1, BOTH)
    return ["reinforce", RUNNING, *(name for name in found if name != "reinforce")]


def about(name: str) -> dict[str, Any]:
    """What the tables say of a contestant."""
    info = describe({RUNNING: "reinforce", BOTH: "relax"}.get(name, name))
    return {
        "estimator": name,
        "differentiable": info.differentiable or name == BOTH,
        "kept": name in TRAINED or name == RUNNING,
        "biased": not info.bias.startswith("none"),
        "asked": "3" if name == BOTH else info.evaluations.split()[0],
    }


def estimate(
    name: str, problem: Problem, rows: int, k: int, control: Control, mean: float, generator: torch.Generator
) -> Estimate:
    """`rows` independent estimates; of k samples each, where the estimator takes several."""
    dist, f = problem.rows(rows), problem.f
    if name == RUNNING:
        return reinforce(f, dist, baseline=mean, generator=generator)
    temperature = control.log_temperature.exp()
    if name == BOTH:
        return relax(f, dist, relaxed_objective(f, dist, temperature, control), generator=generator)
    options: dict[str, Any] = {"generator": generator}
    if describe(name).evaluations == "K":
        options["num_samples"] = k
    if name == "rebar":
        options |= {"eta": control.eta, "temperature": temperature}
    if "surrogate" in describe(name).needs:
        options["surrogate"] = control.of_embedded if name == "marginal" else control
    return make_estimator(name, **options)(f, dist)


def trained(name: str, problem: Problem, estimates: int, steps: int) -> Control:
    """A control after some steps of the variance loss of a budget's own estimates, at parameters that stand still."""
    control, generator = Control(problem), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(control.parameters(), lr=RATE)
    for _ in range(steps):
        loss = estimate(name, problem, estimates, 0, control, 0.0, generator).variance_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return control


def running_mean(problem: Problem, count: int) -> float:
    """Of f at outcomes that were drawn before."""
    dist = problem.rows(count)
    sample = dist.threshold(dist.relax(dist.sample_noise(torch.Generator().manual_seed(2))))
    return float(problem.f(dist.embed(sample)).mean())


def spread(grad: Tensor, exact: Tensor) -> dict[str, float]:
    """Bias^2 and variance of estimates `[R, P]`, over the exact gradient's squared norm, and their standard errors."""
    grad, rows, scale = grad.double(), len(grad), float(exact.square().sum())
    mean = grad.mean(0)
    squares = (grad - mean).square().sum(-1)
    variance = float(squares.sum()) / (rows - 1)
    off = mean - exact
    along = ((grad - mean) @ off).std()  # of 2 off . (mean - its expectation)
    return {
        "variance": variance / scale,
        "variance_error": float(squares.std()) / math.sqrt(rows) / scale,
        "bias2": max(0.0, float(off.square().sum()) - variance / rows) / scale,
        "bias2_error": 2.0 * float(along) / math.sqrt(rows) / scale,
    }


def drawn(name: str, problem: Problem, k: int, estimates: int, steps: int, rows: int) -> dict[str, float]:
    """The spread of one estimate, `estimates` of which are a step of training where there is something to train."""
    control = trained(name, problem, estimates, steps) if name in TRAINED else Control(problem)
    mean, generator = running_mean(problem, estimates * steps), torch.Generator().manual_seed(3)
    size = min(rows, 2_000 // max(1, k) if k > 4 else 1_000)
    found = [estimate(name, problem, size, k, control, mean, generator).grad.detach() for _ in range(rows // size)]
    return spread(torch.cat(found), problem.exact)


def measure(problem: Problem, names: Sequence[str], steps: int, rows: int) -> list[dict[str, Any]]:
    """Everyone at every budget that allows one estimate; without sampling again where the estimate is the same."""
    found = []
    for name in names:
        entry = about(name)
        once: dict[str, float] = {}
        for budget in BUDGETS:
            several = entry["asked"] == "K"
            needed = 2 if several else problem.outcomes if entry["asked"] == "M" else int(entry["asked"])
            limit = problem.dist.params.shape[-1] if name in ("unordered-set", "without-replacement") else math.inf
            if needed > budget or (several and budget > limit):
                continue
            k, estimates = (budget, 1) if several else (0, int(budget // needed))
            if name == "enumerated":
                once = dict.fromkeys(("variance", "variance_error", "bias2", "bias2_error"), 0.0)
            elif not once or several or entry["kept"]:
                once = drawn(name, problem, k, estimates, steps, rows)
            bias2 = once["bias2"] if entry["biased"] else 0.0
            error = math.hypot(once["variance_error"] / estimates, once["bias2_error"] if entry["biased"] else 0.0)
            mse = bias2 + once["variance"] / estimates
            shown = {"kind": problem.kind, "function": problem.function, "budget": budget, "estimates": estimates}
            found.append(entry | shown | {"mse": mse, "mse_error": error, "bias2": bias2})
    return found


def main() -> None:
    """Measure the whole grid and write the results."""
    parser = argparse.ArgumentParser(description="Mean squared errors of gradient estimates at equal evaluations.")
    parser.add_argument("--steps", type=at_least_one, default=200, help="before the error of what is kept is measured")
    parser.add_argument("--rows", type=at_least_one, default=2_000, help="estimates for each number")
    parser.add_argument(
        "--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="only these; the others stay as they are"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the tables and write no files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"steps": arguments.steps, "rows": arguments.rows}
    path = RESULTS / "decision.json"
    before = json.loads(path.read_text()) if path.exists() and not arguments.dry_run else {}
    found = before["found"] if settings.items() <= before.items() else []
    results: dict[str, Any] = {}
    for kind in arguments.kinds:
        found = [entry for entry in found if entry["kind"] != kind]
        for function in FUNCTIONS:
            found += measure(problem(kind, function), names_for(kind), arguments.steps, arguments.rows)
            print(f"{kind}, {function}: done", flush=True)
        present = {entry["kind"] for entry in found}
        kinds = {name: told for name, (_, told) in KINDS.items() if name in present}
        results = settings | {"commit": commit(), "kinds": kinds, "left_out": LEFT_OUT, "found": found}
        if not arguments.dry_run:
            write_json(path, results)
    text = report(results)
    print(text)
    if not arguments.dry_run:
        write_text(path.with_suffix(".md"), text + "\n![Mean squared errors](decision.png)\n")
        draw(results, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
