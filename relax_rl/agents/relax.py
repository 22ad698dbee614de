"""RELAX: an action-dependent control variate for discrete actions."""

from __future__ import annotations

from typing import ClassVar, cast

from torch import Tensor

from relax_rl.agents.batch import Batch
from relax_rl.agents.shares import sample_noise
from relax_rl.agents.surrogate import SurrogateActorCritic
from relax_rl.distributions import RelaxedDistribution
from relax_rl.estimators import relax_gradient

__all__ = ["RELAX"]


class RELAX(SurrogateActorCritic):
    """Actor-critic whose gradient subtracts c^(s, z~) and puts back its reparameterised gradient.

        g = (A - c^(s, z~)) dlog pi(a | s) + dc^(s, z) - dc^(s, z~)

    (Grathwohl et al. 2018, eq. 9, with the advantage A for f.) For discrete, multi-discrete and binary actions.
    """

    name: ClassVar[str] = "relax"
    action_kinds: ClassVar[tuple[str, ...]] = ("categorical", "multi_categorical", "bernoulli")

    def estimate(self, batch: Batch) -> Tensor:
        dist = cast(RelaxedDistribution, batch.dist)
        z = dist.relax(batch.noise)
        z_tilde = dist.relax_given(batch.action, sample_noise(dist, self.generator, batch.share))
        c, c_tilde = self.controls(batch, z, z_tilde)
        signal = batch.signal(batch.advantage)
        return batch.reweighted(relax_gradient(signal, None, c, c_tilde, dist.params, score=batch.score))
