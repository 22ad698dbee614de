"""Train one estimator on the toy problem, all seeds at once, and measure its variance on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from relax_rl.errors import TrainingDiverged
from relax_rl.experiments.toy.config import ToyConfig
from relax_rl.experiments.toy.contestants import MEASURING, Contestant, make_contestant
from relax_rl.experiments.toy.problem import Problem
from relax_rl.experiments.toy.quadrature import exact_variance
from relax_rl.experiments.toy.seed_noise import SeedNoise

__all__ = ["NEAR", "Run", "median", "train"]

NEAR = 1e-4
"""Distance from the optimum within which the expected loss counts as solved."""


@dataclass(frozen=True, eq=False)
class Run:
    """What one estimator did, M measurements of S seeds.

    Attributes:
        contestant: with what it has learned.
        params: `[S, P]` at the end.
        steps: `[M]` after which it was measured, 0 first.
        theta, expected_loss: `[M, S]`.
        variance: `[M, S]` of one estimate, from many draws at that theta.
        exact: `[M, S]` the same by quadrature; None where there is none.
        learned: by name `[M, S]`.
        solved: `[S]` the first step after which the expected loss was within `NEAR` of the optimum; -1 for never.
        seconds: that a step took on average, without the measurements.
    """

    contestant: Contestant
    params: Tensor
    steps: tuple[int, ...]
    theta: Tensor
    expected_loss: Tensor
    variance: Tensor
    exact: Tensor | None
    learned: dict[str, Tensor]
    solved: Tensor
    seconds: float

    @property
    def log_variance(self) -> Tensor:
        """`[M, S]` natural logarithm of the variance; -inf where it is 0."""
        return self.variance.log()


def median(values: Tensor) -> float:
    """Of all entries; with an even number of them the mean of the middle two, or the lower one if one is infinite."""
    middle = torch.quantile(values.flatten(), 0.5)
    return float(middle if torch.isfinite(middle) else values.flatten().median())


def train(
    name: str,
    problem: Problem,
    config: ToyConfig,
    *,
    theta: float | None = None,
    after_step: Callable[[int, float], None] = lambda step, theta: None,
) -> Run:
    """Minimise E[f(b)] by the gradients of one estimator, a single sample a step, every seed for itself.

    Two Adam optimisers take their steps on the same estimate: one for the parameters, one for whatever the estimator
    learns.

    Args:
        name: the estimator.
        problem: f.
        config: steps, seeds, learning rates, coupling, when and with how many draws to measure.
        theta: fixed there, so that the estimator alone learns; free by default.
        after_step: called with the number of steps taken and the mean theta over seeds.

    Raises:
        TrainingDiverged: a gradient is no longer a finite number.
    """
    seeds = range(config.seed, config.seed + config.seeds)
    contestant = make_contestant(name, problem, seeds, coupling=config.coupling)
    noise = SeedNoise(seeds, problem.kind)
    params = problem.params_at(theta, len(seeds)).requires_grad_()
    optimizer = _adam([params], config.lr) if theta is None else None
    surrogate_optimizer = _adam(contestant.phi, config.surrogate_lr) if contestant.phi else None
    measure = partial(_measure, contestant, problem, SeedNoise(seeds, problem.kind, MEASURING), config.draws)
    measured = {0: measure(params, 0)}
    mean_theta = float(measured[0]["theta"].mean())
    solved, spent = torch.full((len(seeds),), -1), 0.0
    for step in range(1, config.steps + 1):
        started = time.perf_counter()
        estimate = contestant.estimate(problem.distribution(params, noise))
        contestant.observe(estimate)
        if surrogate_optimizer is not None:
            # Zero for what does not matter at the moment.
            found = torch.autograd.grad(contestant.loss(estimate), contestant.phi, materialize_grads=True)
            for x, gradient in zip(contestant.phi, found, strict=True):
                x.grad = gradient
            surrogate_optimizer.step()
        if optimizer is not None:
            params.grad = estimate.grad.detach()
            optimizer.step()
        spent += time.perf_counter() - started
        near = (problem.expected_loss(params.detach()) - problem.optimum <= NEAR) & (solved < 0)
        solved[near] = step
        if step % config.log_interval == 0 or step == config.steps:
            measured[step] = measure(params, step)
            mean_theta = float(measured[step]["theta"].mean())
        after_step(step, mean_theta)
    rows = {name: torch.stack([row[name] for row in measured.values()]) for name in measured[0]}
    return Run(
        contestant=contestant,
        params=params.detach().clone(),
        steps=tuple(measured),
        theta=rows.pop("theta"),
        expected_loss=rows.pop("expected_loss"),
        variance=rows.pop("variance"),
        exact=rows.pop("exact", None),
        learned=rows,
        solved=solved,
        seconds=spent / config.steps,
    )


def _adam(parameters: Iterable[Tensor], lr: float) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def _measure(
    contestant: Contestant, problem: Problem, noise: SeedNoise, draws: int, params: Tensor, step: int
) -> dict[str, Tensor]:
    """What a `Run` tells of one step, from many estimates at its parameters and from noise that training never sees."""
    params = params.detach()
    many = problem.distribution(params.expand(draws, *params.shape), noise)
    estimates, theta = contestant.estimate(many).grad.detach(), problem.theta(params)
    if not torch.isfinite(estimates).all() or not torch.isfinite(theta).all():
        raise TrainingDiverged(
            f"{contestant.name}: a gradient is not a finite number after step {step}; lower --lr or --surrogate-lr"
        )
    row = {"theta": theta, "expected_loss": problem.expected_loss(params), "variance": estimates.var(0).sum(-1)}
    exact = exact_variance(contestant, problem, params)
    if exact is not None:
        row["exact"] = exact
    return row | {name: value.clone() for name, value in contestant.learned().items()}
