"""LAX: an action-dependent control variate for continuous actions."""

from __future__ import annotations

from typing import ClassVar, cast

import torch

from relax_rl.agents.batch import Batch
from relax_rl.agents.estimated import Estimated
from relax_rl.agents.surrogate import SurrogateActorCritic
from relax_rl.distributions import SlopedDistribution

__all__ = ["LAX"]


class LAX(SurrogateActorCritic):
    """Actor-critic whose gradient subtracts c^(s, a) and puts back its reparameterised gradient.

        g = (A - c^(s, a)) dlog pi(a | s) + dc^(s, a),    a = mu + sigma noise with the noise of the action taken

    (Grathwohl et al. 2018, section 3, with the advantage A for f.) For continuous actions.
    """

    name: ClassVar[str] = "lax"
    action_kinds: ClassVar[tuple[str, ...]] = ("gaussian",)

    def estimate(self, batch: Batch) -> Estimated:
        dist = cast(SlopedDistribution, batch.dist)
        with torch.no_grad():
            return self.estimated(batch, dist.relax(batch.noise))
