"""LAX: an action-dependent control variate for continuous actions."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from relax_rl.agents.batch import Batch
from relax_rl.agents.surrogate import SurrogateActorCritic
from relax_rl.estimators import lax_gradient

__all__ = ["LAX"]


class LAX(SurrogateActorCritic):
    """Actor-critic whose gradient subtracts c^(s, a) and puts back its reparameterised gradient.

        g = (A - c^(s, a)) dlog pi(a | s) + dc^(s, a),    a = mu + sigma noise with the noise of the action taken

    (Grathwohl et al. 2018, section 3, with the advantage A for f.) For continuous actions.
    """

    name: ClassVar[str] = "lax"
    action_kinds: ClassVar[tuple[str, ...]] = ("gaussian",)

    def estimate(self, batch: Batch) -> Tensor:
        dist = batch.dist
        (c,) = self.controls(batch, dist.relax(batch.noise))
        signal = batch.signal(batch.advantage)
        return batch.reweighted(lax_gradient(signal, None, c, dist.params, score=batch.score))
