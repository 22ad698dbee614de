"""min over theta of E[(b - t)^2], b ~ Bernoulli(theta), and the same with more outcomes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from relax_rl.experiments.toy.seed_noise import SeededBernoulli, SeededCategorical, SeedNoise

__all__ = ["Problem", "outcomes_in_words"]


@dataclass(frozen=True)
class Problem:
    """The objective f, and all that is known of it in closed form.

    With two outcomes b is a bit and f(b) = (b - t)^2 (Tucker et al. 2017, with t = 0.45; Grathwohl et al. 2018, with
    t = 0.499). With C > 2 it is a row of the identity and f(b) = |b - targets|^2 / 2, where the target of the first
    outcome exceeds all the others by 1 - 2 t and they sum to 1: as with the bit, of which this is the general form,
    every other outcome costs 1 - 2 t more than the first.

    theta is the probability of anything but the first outcome: P(b = 1) for the bit. It starts at `(C - 1) / C`, all
    outcomes being equal, and the best theta is 0 for t below 1/2.
    """

    target: float = 0.499
    outcomes: int = 2

    @property
    def kind(self) -> str:
        """Of the outcomes, in the words of the registry of estimators."""
        return "bits" if self.outcomes == 2 else "categories"

    @property
    def num_params(self) -> int:
        """P: one logit for the bit, else one for every outcome."""
        return 1 if self.outcomes == 2 else self.outcomes

    @cached_property
    def targets(self) -> Tensor:
        """`[P]` t of each parameter."""
        if self.outcomes == 2:
            return torch.tensor([self.target], dtype=torch.float64)
        margin = (1 - 2 * self.target) / self.outcomes
        targets = torch.full((self.outcomes,), 1 / self.outcomes - margin, dtype=torch.float64)
        targets[0] += 1 - 2 * self.target
        return targets

    def f(self, b: Tensor) -> Tensor:
        """`[*]` of outcomes, hard or relaxed, `[*, P]`."""
        squares: Tensor = (b - self.targets).square().sum(-1)
        return squares if self.outcomes == 2 else squares / 2

    def distribution(self, params: Tensor, noise: SeedNoise) -> SeededBernoulli | SeededCategorical:
        """The distribution of b at params `[*, S, P]`, S seeds with noise of their own."""
        if self.outcomes == 2:
            return SeededBernoulli(params, noise=noise)
        return SeededCategorical(params, one_hot=True, noise=noise)

    def soften(self, z: Tensor, temperature: Tensor) -> Tensor:
        """`[*, P]` relaxed outcomes sigma(z / lambda)."""
        return self.distribution(z, SeedNoise((), self.kind)).soften(z, temperature)

    def params_at(self, theta: float | None, seeds: int) -> Tensor:
        """`[S, P]` float64 parameters at some theta, where the outcomes that make it up are equally likely; or the start."""
        if theta is None:
            return torch.zeros(seeds, self.num_params, dtype=torch.float64)
        if self.outcomes == 2:
            row = [math.log(theta) - math.log1p(-theta)]
        else:
            row = [math.log1p(-theta)] + [math.log(theta / (self.outcomes - 1))] * (self.outcomes - 1)
        return torch.tensor(row, dtype=torch.float64).repeat(seeds, 1)

    def theta(self, params: Tensor) -> Tensor:
        """`[*]` probability of anything but the first outcome."""
        if self.outcomes == 2:
            return torch.sigmoid(params).squeeze(-1)
        return torch.softmax(params, -1)[..., 1:].sum(-1)

    def expected_loss(self, params: Tensor) -> Tensor:
        """`[*]` E[f(b)]."""
        if self.outcomes == 2:
            first, second = map(float, self.values)
            return first + (second - first) * self.theta(params)
        expected: Tensor = torch.softmax(params, -1) @ self.values
        return expected

    @cached_property
    def values(self) -> Tensor:
        """`[C]` f of every outcome, the first one first."""
        if self.outcomes == 2:
            return self.f(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
        return self.f(torch.eye(self.outcomes, dtype=torch.float64))

    @property
    def optimum(self) -> float:
        """The least E[f(b)]: f of the best outcome."""
        return float(self.values.min())


def outcomes_in_words(outcomes: int) -> str:
    """`one bit`, or `3 outcomes`."""
    return "one bit" if outcomes == 2 else f"{outcomes} outcomes"
