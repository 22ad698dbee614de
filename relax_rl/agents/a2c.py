"""A2C and REINFORCE: the score function with and without a baseline."""

from __future__ import annotations

from typing import ClassVar

from relax_rl.agents.base import ActorCritic
from relax_rl.agents.batch import Batch
from relax_rl.agents.estimated import Estimated
from relax_rl.estimators import reinforce_gradient

__all__ = ["A2C", "Reinforce"]


class A2C(ActorCritic):
    """Advantage actor-critic (Mnih et al. 2016) with generalised advantage estimation: g = A dlog pi(a | s)."""

    name: ClassVar[str] = "a2c"

    def estimate(self, batch: Batch) -> Estimated:
        return Estimated(batch.a2c_gradient)


class Reinforce(ActorCritic):
    """REINFORCE (Williams 1992): g = R dlog pi(a | s) with the lambda-return R and no baseline.

    V serves only to bootstrap where a rollout cuts an episode; `gae_lambda=1` gives the observed return up to there.
    """

    name: ClassVar[str] = "reinforce"

    def estimate(self, batch: Batch) -> Estimated:
        signal = batch.signal(batch.return_)
        return Estimated(batch.reweighted(reinforce_gradient(signal, None, batch.dist.params, score=batch.score)))
