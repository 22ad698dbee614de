"""Train one estimator on the toy problem, all seeds at once, and measure its variance on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    optimizer = torch.optim.Adam([params], lr=config.lr, fused=True) if theta is None else None
    surrogate_optimizer = (
        torch.optim.Adam(contestant.phi, lr=config.surrogate_lr, fused=True) if contestant.phi else None
    )
    record = _Record(contestant, problem, SeedNoise(seeds, problem.kind, MEASURING), config.draws)
    record.measure(0, params)
    solved = torch.full((len(seeds),), -1)
    spent = 0.0
    for step in range(1, config.steps + 1):
        started = time.perf_counter()
        estimate = contestant.estimate(problem.distribution(params, noise))
        contestant.observe(estimate)
        if surrogate_optimizer is not None:
            for x, gradient in zip(contestant.phi, _gradients(contestant, contestant.loss(estimate)), strict=True):
                x.grad = gradient
            surrogate_optimizer.step()
        if optimizer is not None:
            params.grad = estimate.grad.detach()
            optimizer.step()
        spent += time.perf_counter() - started
        near = (problem.expected_loss(params.detach()) - problem.optimum <= NEAR) & (solved < 0)
        solved[near] = step
        if step % config.log_interval == 0 or step == config.steps:
            record.measure(step, params)
        after_step(step, record.mean_theta)
    return record.finish(params, solved, spent / config.steps)


class _Record:
    """Collects what a `Run` tells."""

    def __init__(self, contestant: Contestant, problem: Problem, noise: SeedNoise, draws: int) -> None:
        self._contestant, self._problem, self._noise, self._draws = contestant, problem, noise, draws
        self._steps: list[int] = []
        self._rows: dict[str, list[Tensor]] = {}
        self.mean_theta = 0.0

    def measure(self, step: int, params: Tensor) -> None:
        """Draw many estimates at the current parameters, from noise that training never sees."""
        params = params.detach()
        many = self._problem.distribution(params.expand(self._draws, *params.shape), self._noise)
        draws = self._contestant.estimate(many).grad.detach()
        theta = self._problem.theta(params)
        row = {
            "theta": theta,
            "expected_loss": self._problem.expected_loss(params),
            "variance": draws.var(0).sum(-1),
            **{f"learned/{name}": value.clone() for name, value in self._contestant.learned().items()},
        }
        exact = exact_variance(self._contestant, self._problem, params)
        if exact is not None:
            row["exact"] = exact
        if not torch.isfinite(draws).all() or not torch.isfinite(theta).all():
            raise TrainingDiverged(
                f"{self._contestant.name}: a gradient is not a finite number after step {step}; lower --lr or "
                "--surrogate-lr"
            )
        self._steps.append(step)
        self.mean_theta = float(theta.mean())
        for name, value in row.items():
            self._rows.setdefault(name, []).append(value)

    def finish(self, params: Tensor, solved: Tensor, seconds: float) -> Run:
        rows = {name: torch.stack(values) for name, values in self._rows.items()}
        learned = {name.partition("/")[2]: rows[name] for name in rows if name.startswith("learned/")}
        return Run(
            contestant=self._contestant,
            params=params.detach().clone(),
            steps=tuple(self._steps),
            theta=rows["theta"],
            expected_loss=rows["expected_loss"],
            variance=rows["variance"],
            exact=rows.get("exact"),
            learned=learned,
            solved=solved,
            seconds=seconds,
        )


def _gradients(contestant: Contestant, loss: Tensor) -> Sequence[Tensor]:
    """Of the loss in phi; zeros for what does not matter at the moment."""
    found = torch.autograd.grad(loss, contestant.phi, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(contestant.phi, found, strict=True)]
