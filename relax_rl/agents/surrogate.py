"""What RELAX and LAX have in common: a surrogate, trained by the variance of the gradient and by nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relax_rl.agents.base import ActorCritic
from relax_rl.agents.batch import Batch
from relax_rl.agents.optimizers import Adam, FlatParameters
from relax_rl.critics import ActionSurrogate
from relax_rl.estimators import variance_loss

__all__ = ["SurrogateActorCritic"]


# Where advantages vanish there is nothing to learn: below this mean squared norm a batch loses its weight.
_SMALLEST_VARIANCE = 1e-8


class SurrogateActorCritic(ActorCritic):
    """An actor-critic with a surrogate c^; subclasses say how it enters the estimate."""

    def _build(self) -> None:
        super()._build()
        config = self.config
        self.surrogate = ActionSurrogate(
            self.num_surrogate_features, sum(self.actions.sizes), config.surrogate_hidden, config.surrogate_activation
        ).to(self.device)
        self._phi = FlatParameters(self.surrogate.parameters())
        self.surrogate_optimizer = Adam(self._phi, lr=config.surrogate_lr)

    def controls(self, batch: Batch, *samples: Tensor) -> tuple[Tensor, ...]:
        """`[B]` c^(s, z) for each `[B, ...]` z, differentiable in the distribution's parameters through z.

        All of them go through the surrogate as one batch: for small networks the cost is in the calls, not the rows.
        """
        actions = batch.dist.soften(torch.cat(samples), self.surrogate.temperature)
        features = torch.cat([batch.features] * len(samples))
        controls: Tensor = self.surrogate(features, actions)
        return controls.chunk(len(samples))

    def train_surrogate(self, batch: Batch, estimate: Tensor) -> dict[str, Tensor | float]:
        """One step of phi down the variance of `estimate`, then more with fresh noise if the settings ask for it.

        The variance counts relative to that of the plain gradient on the same batch, a factor that phi does not
        enter: advantages vary by orders of magnitude from batch to batch, and a single failure would otherwise drown
        a hundred calm batches, on which an untrained surrogate then adds more noise than there was.
        """
        factor = self.schedule_factor(self.config.lr_schedule)
        unit = self._variance_unit(batch)
        loss = first = variance_loss(estimate, batch.weight)
        for step in range(self.config.surrogate_steps):
            if step:
                loss = variance_loss(self.estimate(batch), batch.weight)
            self._phi.zero_grad()
            torch.autograd.backward(loss / unit, inputs=self._phi.parameters)
            self.average(self._phi.grad)
            self.surrogate_optimizer.step(factor)
        return {
            "losses/variance": first.detach(),
            "surrogate/gain": self.surrogate.gain.detach().clone(),
        }

    def _variance_unit(self, batch: Batch) -> Tensor:
        """What the variance over this worker's rows is divided by: the plain gradient's, over all workers' rows.

        Both are means over rows that count, of which one worker may have more than another. The loss is so divided
        that its mean over the workers is the mean over all rows.
        """
        plain, rows = variance_loss(batch.a2c_gradient, batch.weight), batch.weight.sum()
        if self.workers.count == 1:
            return plain + _SMALLEST_VARIANCE
        together = torch.stack([plain * rows, rows])
        self.average(together)
        total, mean_rows = together.unbind()
        mean_rows, rows = (x.clamp(min=torch.finfo(x.dtype).tiny) for x in (mean_rows, rows))
        return (total / mean_rows + _SMALLEST_VARIANCE) * (mean_rows / rows)

    def _gradients(self, batch: Batch, estimate: Tensor) -> dict[str, Tensor]:
        return {**super()._gradients(batch, estimate), "variance_a2c": batch.a2c_gradient}

    def components(self) -> dict[str, Any]:
        return {**super().components(), "surrogate": self.surrogate, "surrogate_optimizer": self.surrogate_optimizer}
