"""RELAX: an action-dependent control variate for discrete actions."""

from __future__ import annotations

from typing import ClassVar, cast

import torch

from relax_rl.agents.batch import Batch
from relax_rl.agents.estimated import Estimated
from relax_rl.agents.surrogate import SurrogateActorCritic
from relax_rl.distributions import SlopedRelaxation

__all__ = ["RELAX"]


class RELAX(SurrogateActorCritic):
    """Actor-critic whose gradient subtracts c^(s, z~) and puts back its reparameterised gradient.

        g = (A - c^(s, z~)) dlog pi(a | s) + dc^(s, z) - dc^(s, z~)

    (Grathwohl et al. 2018, eq. 9, with the advantage A for f.) The noise of z~ is coupled with that of z (Tucker et al.
    2017, appendix): z~ is z, and only moves otherwise with the parameters, so that c^ is asked once. For discrete,
    multi-discrete and binary actions.
    """

    name: ClassVar[str] = "relax"
    action_kinds: ClassVar[tuple[str, ...]] = ("categorical", "multi_categorical", "bernoulli")

    def estimate(self, batch: Batch) -> Estimated:
        dist = cast(SlopedRelaxation, batch.dist)
        with torch.no_grad():
            z = dist.relax(batch.noise)
            # dz - dz~, entry by entry in units of dz.
            return self.estimated(batch, z, 1.0 - dist.conditional_weight(batch.action, z))
