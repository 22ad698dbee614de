"""What RELAX and LAX have in common: a surrogate, trained by the variance of the gradient and by nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from relax_rl.agents.base import ActorCritic
from relax_rl.agents.batch import Batch
from relax_rl.agents.control_scale import ControlScale
from relax_rl.agents.estimated import Estimated
from relax_rl.agents.minibatches import noise_for
from relax_rl.agents.optimizers import Adam, FlatParameters
from relax_rl.agents.replay import Replay
from relax_rl.critics import ActionSurrogate, relaxed_control
from relax_rl.distributions import SlopedDistribution
from relax_rl.estimators import variance_loss
from relax_rl.rollouts import Rollout

__all__ = ["SurrogateActorCritic"]


# Where advantages vanish there is nothing to learn: below this mean squared norm a batch loses its weight.
_SMALLEST_VARIANCE = 1e-8
_SUMS = ("-p.d", "|d|^2", "|p|^2")
"""Names in the metrics of what the fraction of the surrogate is fitted on; see `ControlScale.summary`."""


class SurrogateActorCritic(ActorCritic):
    """An actor-critic with a surrogate c^; subclasses say how it enters the estimate."""

    def _build(self) -> None:
        super()._build()
        config = self.config
        self.use_surrogate(
            ActionSurrogate(
                self.num_surrogate_features,
                sum(self.actions.sizes),
                config.surrogate_hidden,
                config.surrogate_activation,
            )
        )
        self._replay = Replay(max(1, config.surrogate_replay), anew=config.surrogate_replay > 0)
        self.control_scale = ControlScale() if config.surrogate_scale == "fitted" else None

    def use_surrogate(self, surrogate: ActionSurrogate) -> None:
        """Take a surrogate as c^, as it stands, with an optimiser that knows nothing of it yet."""
        self.surrogate = surrogate.to(self.device)
        self._phi = FlatParameters(self.surrogate.parameters())
        self.surrogate_optimizer = Adam(self._phi, lr=self.config.surrogate_lr)

    def estimated(self, batch: Batch, z: Tensor, share: Tensor | None = None) -> Estimated:
        """The estimate with c^ as control variate, and its way back to phi, all in closed form and without graph.

            g = (A - c) s + J' (share c'),    c = c^(s, soften(z)), c' = dc/dz, J = dz/dparams

        A loss with gradients `pull` at g and `at_value` at c so has that of (at_value - pull . s) c + (share J pull) . c'
        at phi.

        Args:
            batch: B rows.
            z: `[B, ...]` relaxed samples behind the actions.
            share: `[B, ...]` of c' that is put back; all of it by default.
        """
        dist = cast(SlopedDistribution, batch.dist)
        control = relaxed_control(self.surrogate, dist, batch.features, z.unsqueeze(0))
        slope = control.slope[0] if share is None else control.slope[0] * share
        signal = batch.signal(batch.advantage) - control.value[0]
        grad = batch.reweighted(signal.unsqueeze(-1) * batch.score + dist.pull_back(slope, z))

        def to_surrogate(pull: Tensor, at_value: Tensor | None = None) -> None:
            with torch.no_grad():
                pull = batch.reweighted(pull)
                weight = -(pull * batch.score).sum(-1)
                weight = weight if at_value is None else weight + at_value
                direction = dist.push_forward(pull, z)
                direction = direction if share is None else direction * share
                control.add_gradient(weight.unsqueeze(0), direction.unsqueeze(0))

        return self.scaled(batch, Estimated(grad, to_surrogate, value=control.value[0]))

    def scaled(self, batch: Batch, found: Estimated) -> Estimated:
        """The estimate with as much of the surrogate as the settings say.

        Args:
            batch: B rows.
            found: the estimate with all of it.
        """
        eta = batch.control_scale
        if eta is None:
            return found
        return replace(found, grad=torch.lerp(batch.a2c_gradient, found.grad, eta), full=found.grad)

    def batch(self, rollout: Rollout) -> tuple[Batch, Tensor, Tensor]:
        batch, params, value = super().batch(rollout)
        if self.control_scale is not None:
            batch = replace(batch, control_scale=batch.weight.new_tensor(self.control_scale.value))
        return batch, params, value

    def update(self, rollout: Rollout) -> dict[str, Tensor | float]:
        metrics = super().update(rollout)
        if self.control_scale is not None:
            self.control_scale.merge(self.workers.gather(np.array([float(metrics.pop(name)) for name in _SUMS])))
            metrics["surrogate/scale"] = self.control_scale.value
        return metrics

    def train_surrogate(self, batch: Batch, estimated: Estimated) -> dict[str, Tensor | float]:
        """One step of phi down the variance of an estimate, then more with fresh noise if the settings ask for it.

        The variance counts relative to that of the plain gradient on the same batch, a factor that phi does not
        enter: advantages vary by orders of magnitude from batch to batch, and a single failure would otherwise drown
        a hundred calm batches, on which an untrained surrogate then adds more noise than there was.

        `surrogate_regression` puts least squares on the advantage, relative to the mean squared advantage, in place of a
        share of it. That weighs the errors of all actions alike, and the variance by the action's squared score.
        """
        config, factor = self.config, self.schedule_factor(self.config.lr_schedule)
        regression = config.surrogate_regression
        loss = variance_loss(estimated.trained_by, batch.weight)
        rows = batch.weight.sum().clamp(min=torch.finfo(batch.weight.dtype).tiny)
        of_squares = (2.0 * batch.weight / (rows * self._unit(batch, batch.a2c_gradient))).unsqueeze(-1)
        of_errors = None
        if regression:
            of_squares = (1.0 - regression) * of_squares
            of_errors = 2.0 * regression * batch.weight / (rows * self._unit(batch, batch.advantage.unsqueeze(-1)))
        for step in range(config.surrogate_steps):
            if step:
                noise = noise_for(batch.dist, batch.action, self.generator, batch.share)
                estimated = self.estimate(replace(batch, noise=noise))
            self._phi.zero_grad()
            assert estimated.to_surrogate is not None
            at_value = None
            if of_errors is not None:
                assert estimated.value is not None
                at_value = of_errors * (estimated.value - batch.advantage)
            estimated.to_surrogate(estimated.trained_by * of_squares, at_value)
            self.average(self._phi.grad)
            self.surrogate_optimizer.step(factor)
        return {
            "losses/variance": loss,
            "surrogate/gain": self.surrogate.gain.detach().clone(),
        }

    def train_surrogate_later(self, rollout: Rollout, batch: Batch, count: int) -> dict[str, Tensor | float]:
        self._replay.add(rollout, batch)
        metrics: dict[str, Tensor | float] = {}
        for part in self._replay.batches(self, count):
            metrics = self.train_surrogate(part, self.estimate(part))
        return metrics

    def _unit(self, batch: Batch, x: Tensor) -> Tensor:
        """What squares over this worker's rows are divided by: the mean square of `x` `[B, P]`, over all workers' rows.

        Both are means over rows that count, of which one worker may have more than another. The loss is so divided
        that its mean over the workers is the mean over all rows.
        """
        square, rows = variance_loss(x, batch.weight), batch.weight.sum()
        if self.workers.count == 1:
            return square + _SMALLEST_VARIANCE
        together = torch.stack([square * rows, rows])
        self.average(together)
        total, mean_rows = together.unbind()
        mean_rows, rows = (x.clamp(min=torch.finfo(x.dtype).tiny) for x in (mean_rows, rows))
        return (total / mean_rows + _SMALLEST_VARIANCE) * (mean_rows / rows)

    def _gradients(self, batch: Batch, estimated: Estimated) -> dict[str, Tensor]:
        return {**super()._gradients(batch, estimated), "variance_a2c": batch.a2c_gradient}

    def _sums(self, batch: Batch, estimated: Estimated) -> dict[str, Tensor]:
        if estimated.full is None:
            return {}
        plain = batch.a2c_gradient
        sums = ControlScale.summary(plain, estimated.full - plain, batch.weight)
        return dict(zip(_SUMS, sums.unbind(), strict=True))

    def components(self) -> dict[str, Any]:
        own = {
            "surrogate": self.surrogate,
            "surrogate_optimizer": self.surrogate_optimizer,
            "control_scale": self.control_scale,
        }
        return {**super().components(), **{name: part for name, part in own.items() if part is not None}}
