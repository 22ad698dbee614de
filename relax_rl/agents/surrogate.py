"""What RELAX and LAX have in common: a surrogate, trained by the variance of the gradient and by nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relax_rl.agents.base import ActorCritic
from relax_rl.agents.batch import Batch
from relax_rl.agents.optimizers import make_adam
from relax_rl.critics import ActionSurrogate
from relax_rl.estimators import reinforce_gradient, row_variance, variance_loss

__all__ = ["SurrogateActorCritic"]


class SurrogateActorCritic(ActorCritic):
    """An actor-critic with a surrogate c^; subclasses say how it enters the estimate."""

    def _build(self) -> None:
        super()._build()
        config = self.config
        self.surrogate = ActionSurrogate(
            self.num_surrogate_features, sum(self.actions.sizes), config.surrogate_hidden, config.surrogate_activation
        ).to(self.device)
        self.surrogate_optimizer = make_adam(self.surrogate.parameters(), config.surrogate_lr, self.device)

    def control(self, batch: Batch, z: Tensor) -> Tensor:
        """`[B]` c^(s, z), differentiable in the distribution's parameters through z."""
        return self.surrogate(batch.features, batch.dist.relaxed_action(z, self.surrogate.temperature))  # type: ignore[no-any-return]

    def _train_surrogate(self, batch: Batch, estimate: Tensor) -> dict[str, Tensor | float]:
        """One step of phi down the variance of `estimate`, then more with fresh noise if the settings ask for it."""
        phi = list(self.surrogate.parameters())
        self.surrogate_optimizer.param_groups[0]["lr"] = self.config.surrogate_lr * self.learning_rate_factor
        loss = first = variance_loss(estimate, batch.weight)
        for step in range(self.config.surrogate_steps):
            if step:
                loss = variance_loss(self.estimate(batch), batch.weight)
            for parameter, gradient in zip(phi, torch.autograd.grad(loss, phi, allow_unused=True), strict=True):
                parameter.grad = gradient
            self.surrogate_optimizer.step()
        plain = reinforce_gradient(batch.advantage, batch.dist.log_prob(batch.action), batch.dist.params)
        variance, plain_variance = row_variance(estimate.detach(), batch.weight), row_variance(plain, batch.weight)
        return {
            "losses/variance": first.detach(),
            "estimate/variance_a2c": plain_variance,
            "estimate/variance_ratio": variance / plain_variance.clamp(min=1e-30),
            "surrogate/gain": self.surrogate.gain.detach().clone(),
        }

    def components(self) -> dict[str, Any]:
        return {**super().components(), "surrogate": self.surrogate, "surrogate_optimizer": self.surrogate_optimizer}
