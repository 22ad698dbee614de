"""What an estimator hands over for one batch of images: the gradient of E[f] at all parameters of a belief network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from relax_rl.distributed import Workers
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork

__all__ = ["Gradient", "LayeredEstimator", "at_logits"]


@dataclass(frozen=True)
class Gradient:
    """The gradient of the mean of E[f] over a batch, not yet pulled back to the parameters.

    Attributes:
        loss: `[B]` f at sampled bits (its mean over several), without graph: the negative bound.
        objective: scalar whose gradient at the generative parameters is theirs: f's own dependence on them.
        logits: logits of q for each layer, with the graph to the encoder.
        cotangents: what is pulled back from each of them; None if the encoder's gradient is that of `objective`.
        encoder: the encoder's gradient itself, from estimators that form it at the parameters.
    """

    loss: Tensor
    objective: Tensor
    logits: Sequence[Tensor] = ()
    cotangents: Sequence[Tensor] | None = None
    encoder: Sequence[Tensor] | None = None

    def backward(self, model: SigmoidBeliefNetwork) -> None:
        """Add the gradient to `.grad` of the model's parameters, and of nothing else."""
        if self.cotangents is None and self.encoder is None:
            torch.autograd.backward(self.objective, inputs=list(model.parameters()))
            return
        torch.autograd.backward(self.objective, inputs=model.generative_parameters, retain_graph=True)
        if self.encoder is not None:
            for parameter, gradient in zip(model.encoder_parameters, self.encoder, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        else:
            torch.autograd.backward(list(self.logits), list(self.cotangents or ()), inputs=model.encoder_parameters)

    def at_encoder(self, model: SigmoidBeliefNetwork) -> list[Tensor]:
        """The gradient at the encoder's parameters, which are left alone."""
        if self.encoder is not None:
            return list(self.encoder)
        if self.cotangents is None:
            return list(torch.autograd.grad(self.objective, model.encoder_parameters))
        return list(torch.autograd.grad(list(self.logits), model.encoder_parameters, list(self.cotangents)))


class LayeredEstimator(nn.Module):
    """Forms the gradient of a stack of layers of bits. Parameters and buffers are what it learns beside the model.

    A call adds the gradients of its own parameters to their `.grad` (the variance of the estimate, or the fit of a
    baseline) and touches no gradient of the model.
    """

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, generator: torch.Generator | None = None) -> Gradient:
        """The gradient for images `[B, D]`."""
        raise NotImplementedError

    def join(self, workers: Workers) -> None:
        """Several processes form the gradient of one batch from now on, each from its part of the images.

        Their gradients, and those of what they learn, are means over the own part, to be averaged by the caller.
        """
        for module in self.modules():
            if hasattr(module, "workers"):
                cast(Any, module).workers = workers

    def decayed_parameters(self) -> list[nn.Parameter]:
        """The parameters that weight decay applies to, and a learning rate of their own."""
        return []


def at_logits(logits: Sequence[Tensor], per_example: Sequence[Tensor], examples: int) -> list[Tensor]:
    """Cotangents of the mean over a batch, from one estimate per example and sample.

    Where samples `[K, B, P]` share the logits `[B, P]`, theirs are summed.
    """
    return [
        (gradient.sum(0) if gradient.dim() > at.dim() else gradient) / examples
        for at, gradient in zip(logits, per_example, strict=True)
    ]
