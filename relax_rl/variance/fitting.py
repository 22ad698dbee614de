"""Training a surrogate at a frozen policy: many steps on its latest rollouts, at a learning rate that falls to zero."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from relax_rl.agents.estimates import Experience, a2c
from relax_rl.agents.gradients import SMALLEST_VARIANCE
from relax_rl.compute.optimizers import Adam, FlatParameters, learning
from relax_rl.estimators import noise_behind, variance_loss
from relax_rl.networks.policies import Policy

__all__ = ["MINIBATCH", "Fit", "fit_surrogate", "relative_variance", "some_rows", "variance_of_a2c"]

MINIBATCH = 512
"""Rows in each step."""
_ROWS, _STEPS, _PASSES, _LR = 20_000, 10_000, 40, 3e-3


def some_rows(rows: int, generator: torch.Generator) -> Tensor:
    """`[MINIBATCH]` numbers of rows for a step, with repetition."""
    return torch.randint(rows, (MINIBATCH,), generator=generator, device=generator.device)


class Fit:
    """Trains a module on rollouts as they come: some steps of Adam after each, on the latest 20,000 rows.

    10,000 steps in all, but no more than 40 passes over the rows, with a learning rate that falls from 3e-3 to zero, so
    that the fit comes to rest.

    Args:
        module: what learns.
        loss: a step's rows, column by column, to the scalar that is minimised.
        rollouts: that there will be.
        generator: of the choice of rows.
        draw: makes that choice, of numbers among so many rows, oldest first.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[..., Tensor],
        *,
        rollouts: int,
        generator: torch.Generator,
        draw: Callable[[int, torch.Generator], Tensor] = some_rows,
    ) -> None:
        self._loss, self._rollouts, self._generator, self._draw = loss, rollouts, generator, draw
        self._flat = FlatParameters(learning(module))
        self._adam = Adam(self._flat, lr=_LR)
        self._kept: deque[tuple[Tensor, ...]] = deque()
        self._seen = 0

    def __call__(self, *columns: Tensor) -> None:
        """Learn from the `[B, ...]` columns of one more rollout and those before it."""
        rows = len(columns[0])
        self._kept.append(columns)
        while len(self._kept) > max(1, _ROWS // rows):
            self._kept.popleft()
        together = [torch.cat(column) for column in zip(*self._kept, strict=True)]
        factor = max(0.0, 1.0 - self._seen / self._rollouts)
        self._seen += 1
        for _ in range(min(math.ceil(_STEPS / self._rollouts), math.ceil(_PASSES * rows / MINIBATCH))):
            index = self._draw(len(together[0]), self._generator)
            loss = self._loss(*(x[index] for x in together))
            found = torch.autograd.grad(loss, self._flat.parameters, allow_unused=True, materialize_grads=True)
            self._adam.step(self._flat.flatten(found), factor)


def fit_surrogate(
    policy: Policy, surrogate: nn.Module, loss: Callable[[Experience, Any], Tensor], **options: Any
) -> Callable[[Experience, Any], None]:
    """A function that trains a surrogate on a rollout of a frozen policy, with fresh noise behind the actions.

    Args:
        policy: whose actions they are.
        surrogate: what learns.
        loss: rows and their action distribution to the scalar that is minimised, such as `relative_variance`.
        options: those of `Fit`, whose generator is that of the noise too.
    """

    def of_rows(
        params: Tensor, features: Tensor, action: Tensor, advantage: Tensor, return_: Tensor, weight: Tensor
    ) -> Tensor:
        dist = policy.distribution(params)
        standard = dist.sample_noise(options["generator"]) if hasattr(dist, "relax_given") else None
        noise = noise_behind(dist, action, standard)
        x = Experience(features, action, noise, advantage, return_, weight, value=return_ - advantage)
        return loss(x, dist)

    fit = Fit(surrogate, of_rows, **options)
    return lambda x, dist: fit(dist.params, x.features, x.action, x.advantage, x.return_, x.weight)


def relative_variance(estimate: Callable[[Experience, Any], Tensor]) -> Callable[[Experience, Any], Tensor]:
    """The mean squared norm of an estimate relative to that of A2C's on the same rows: what agents train surrogates by.

    Args:
        estimate: rows and their action distribution to `[B, P]` gradients.
    """

    def loss(x: Experience, dist: Any) -> Tensor:
        return variance_loss(estimate(x, dist), x.weight) / variance_of_a2c(x, dist)

    return loss


def variance_of_a2c(x: Experience, dist: Any) -> Tensor:
    """Mean squared norm of A2C's estimate, which no surrogate enters: the unit of the others'."""
    return variance_loss(a2c(x, dist), x.weight) + SMALLEST_VARIANCE
