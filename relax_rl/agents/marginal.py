"""MARGINAL: RELAX's surrogate without relaxation, its expectation over the actions summed instead of drawn."""

from __future__ import annotations

import math
from typing import ClassVar, cast

import torch
from torch import Tensor

from relax_rl.agents.batch import Batch
from relax_rl.agents.estimated import Estimated
from relax_rl.agents.surrogate import SurrogateActorCritic
from relax_rl.distributions import FiniteDistribution
from relax_rl.errors import SettingsError
from relax_rl.estimators import marginal

__all__ = ["Marginal"]

MOST_OUTCOMES = 64


class Marginal(SurrogateActorCritic):
    """Actor-critic that subtracts c^(s, a) and puts back the exact gradient of its expectation.

        g = (A - c^(s, a)) dlog pi(a | s) + d sum_a' pi(a' | s) c^(s, a')

    The action-dependent baseline of small action sets (Gu et al. 2017; Liu et al. 2018): c^ is asked at every action,
    so that no noise of a relaxation is added. For discrete, multi-discrete and binary actions of few combinations.

    Raises:
        SettingsError: when there are more than 64 combinations.
    """

    name: ClassVar[str] = "marginal"
    action_kinds: ClassVar[tuple[str, ...]] = ("categorical", "multi_categorical", "bernoulli")

    def _build(self) -> None:
        sizes = self.actions.sizes
        outcomes = 2 ** sizes[0] if self.actions.kind == "bernoulli" else math.prod(sizes)
        if outcomes > MOST_OUTCOMES:
            raise SettingsError(
                f"estimator 'marginal' asks its surrogate at every action, and there are {outcomes}, expected at most "
                f"{MOST_OUTCOMES}; use 'relax'"
            )
        super()._build()

    def estimate(self, batch: Batch) -> Estimated:
        def surrogate(actions: Tensor) -> Tensor:
            features = batch.features.expand(len(actions), *batch.features.shape)
            values: Tensor = self.surrogate(features.flatten(0, 1), actions.flatten(0, 1))
            return values.view(actions.shape[:2])

        dist = cast(FiniteDistribution, batch.dist)
        signal = batch.signal(batch.advantage)
        with torch.enable_grad():
            grad: Tensor = batch.reweighted(marginal(signal, dist, surrogate, noise=batch.noise).grad)

        with torch.enable_grad():
            # `marginal` has asked for this already, but keeps it to itself.
            value = surrogate(dist.embed(batch.action).unsqueeze(0))[0] if self.config.surrogate_regression else None

        def to_surrogate(pull: Tensor, at_value: Tensor | None = None) -> None:
            outputs, pulls = [grad], [pull]
            if at_value is not None and value is not None:
                outputs, pulls = [grad, value], [pull, at_value]
            torch.autograd.backward(outputs, pulls, inputs=self._phi.parameters)

        said = None if value is None else value.detach()
        return self.scaled(batch, Estimated(grad.detach(), to_surrogate, value=said))
