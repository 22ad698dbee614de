"""Gradients of the importance-weighted bound: DReG and VIMCO beside the plain pathwise and score-function gradients.

    python -m benchmarks.importance_weighted            # a minute on one core

The bound L = E[log 1/K sum_k p(x, b_k) / q(b_k)], b_k ~ q, of one example x, at parameters of q that are near the best ones
and not at them, for a Gaussian and for a Bernoulli b. Writes `results/importance_weighted.json`, `.md` and `.png`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.tasks import RESULTS, at_least_one, commit, write_json, write_text
from relax_rl.compute.serialization import write_bytes_atomic
from relax_rl.distributions import Bernoulli, DiagGaussian
from relax_rl.estimators import dreg, vimco
from relax_rl.runs.plotting import png

__all__ = ["PROBLEMS", "SAMPLES", "gradients", "log_joint", "main", "measure"]

SAMPLES = (1, 5, 50)
SIZE = 4
X = torch.tensor([1.2, -0.4, 0.3, -1.5, 0.8, 0.1])
WEIGHTS = torch.randn(6, SIZE, generator=torch.Generator().manual_seed(0)) * 0.6
CHUNK = 2_000
SCORE, PATHWISE = "score of the bound", "pathwise gradient of the bound"
_GAUSSIAN, _BITS = torch.tensor([[0.6, 0.3, -0.5, 0.2, -0.3, -0.1, 0.0, -0.4]]), torch.tensor([[0.4, 0.9, -0.7, 0.2]])
PROBLEMS: dict[str, tuple[Any, Tensor, tuple[str, ...]]] = {
    "Gaussian": (DiagGaussian, _GAUSSIAN, (SCORE, "vimco", PATHWISE, "dreg")),
    "Bernoulli": (Bernoulli, _BITS, (SCORE, "vimco, arithmetic", "vimco")),
}
"""Class of q, its parameters and the contestants; the reference is the mean of the last one."""


def log_joint(b: Tensor) -> Tensor:
    """`[*]` log p(x, b) of samples `[*, 4]`: b standard normal (or a fair bit), x normal about a linear function of b."""
    prior = -0.5 * b.square().sum(-1) - 0.5 * SIZE * math.log(2.0 * math.pi)
    return prior - 0.5 * (X - b @ WEIGHTS.T).square().sum(-1) - 0.5 * len(X) * math.log(2.0 * math.pi)


def gradients(problem: str, name: str, k: int, rows: int, generator: torch.Generator) -> Tensor:
    """`[rows, P]` independent estimates of the gradient of the bound at the parameters of q, all of its dependence included."""
    kind, at, _ = PROBLEMS[problem]
    params = at.expand(rows, -1).clone().requires_grad_()
    dist = kind(params)

    def log_weight(b: Tensor) -> Tensor:
        log_q: Tensor = dist.log_prob(b)
        return log_joint(b) - log_q

    if name == "dreg":
        dreg(log_joint, dist, num_samples=k, generator=generator).backward(1.0)
    elif name.startswith("vimco"):
        average: Any = "arithmetic" if name.endswith("arithmetic") else "geometric"
        vimco(log_weight, dist, num_samples=k, average=average, generator=generator).backward(1.0)
    else:
        many = kind(params.expand(k, -1, -1))
        b = many.threshold(many.relax(many.sample_noise(generator)))
        b = b if name == PATHWISE else b.detach()
        bound = torch.logsumexp(log_joint(b) - many.log_prob(b), 0) - math.log(k)
        score = bound.detach() * many.log_prob(b).sum(0) if name == SCORE else 0.0
        (bound + score).sum().backward()
    assert params.grad is not None
    return params.grad


def drawn(problem: str, name: str, k: int, rows: int, seed: int) -> Tensor:
    """`[rows, P]`, in float64, a chunk at a time."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([gradients(problem, name, k, CHUNK, generator).double() for _ in range(max(1, rows // CHUNK))])


def measure(problem: str, k: int, rows: int, of_reference: int) -> list[dict[str, Any]]:
    """Squared errors of single estimates over the squared norm of the reference, and their standard errors."""
    names = [name for name in PROBLEMS[problem][2] if k > 1 or not name.startswith("vimco")]
    reference = drawn(problem, names[-1], k, of_reference, seed=1).mean(0)
    found = []
    for name in names:
        errors = (drawn(problem, name, k, rows, seed=2) - reference).square().sum(-1) / reference.square().sum()
        spread = float(errors.std()) / math.sqrt(len(errors))
        found.append({"problem": problem, "estimator": name, "k": k, "error": float(errors.mean()), "spread": spread})
        print(f"{problem}, {name}, K = {k}: {found[-1]['error']:.3g}", flush=True)
    return found


CAPTION = """# Gradients of the importance-weighted bound

Made by `python -m benchmarks.importance_weighted`. The squared error of a single estimate over the squared norm of the gradient,
at the parameters of q, of log 1/K sum_k p(x, b_k) / q(b_k): its mean over {rows:,} estimates, ± one standard error. All are
unbiased; the gradient is the mean of {of_reference:,} further estimates, of the last line's kind. VIMCO needs two samples; the score of
the bound is that of all samples times the bound, without a baseline.
"""


def report(results: dict[str, Any]) -> str:
    """A table for each problem."""
    lines = [CAPTION.format(**results)]
    for problem, (_, _, names) in PROBLEMS.items():
        lines += [
            f"## {problem}",
            "",
            f"| estimator | {' | '.join(f'K = {k}' for k in SAMPLES)} |",
            "|---|---:|---:|---:|",
        ]
        for name in names:
            own = {e["k"]: e for e in results["found"] if (e["problem"], e["estimator"]) == (problem, name)}
            cells = [f"{own[k]['error']:.3g} ± {own[k]['spread']:.1g}" if k in own else "" for k in SAMPLES]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def draw(results: dict[str, Any], path: Path) -> None:
    """Errors against K, a panel for each problem."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.2), dpi=110, layout="constrained")
    for axes, (problem, (_, _, names)) in zip(figure.subplots(1, 2), PROBLEMS.items(), strict=True):
        for name in names:
            own = [e for e in results["found"] if (e["problem"], e["estimator"]) == (problem, name)]
            axes.loglog([e["k"] for e in own], [e["error"] for e in own], marker="o", label=name)
        axes.set(title=f"{problem} b", xlabel="samples K", ylabel="squared error / squared gradient")
        axes.set_xticks(SAMPLES, [str(k) for k in SAMPLES])
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
    write_bytes_atomic(path, png(figure))


def main() -> None:
    """Measure both problems and write the results."""
    parser = argparse.ArgumentParser(description="Squared errors of gradients of the importance-weighted bound.")
    parser.add_argument("--rows", type=at_least_one, default=10_000, help="estimates for each number")
    rows: int = parser.parse_args().rows
    torch.set_num_threads(1)
    found = [each for problem in PROBLEMS for k in SAMPLES for each in measure(problem, k, rows, 5 * rows)]
    results = {"rows": rows, "of_reference": 5 * rows, "commit": commit(), "found": found}
    write_json(RESULTS / "importance_weighted.json", results)
    write_text(RESULTS / "importance_weighted.md", report(results) + "\n![Squared errors](importance_weighted.png)\n")
    draw(results, RESULTS / "importance_weighted.png")


if __name__ == "__main__":
    main()
