"""The gradient of one batch of images as a pure function of model, estimator, images and random numbers; its variance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relax_rl.compute.distributed import ALONE, Workers
from relax_rl.compute.optimizers import flat, pieces
from relax_rl.experiments.vae.baselines import MovingMoments
from relax_rl.experiments.vae.noise import Noise
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork

__all__ = ["EVERY", "Gradient", "GradientVariance", "Gradients", "LayeredEstimator", "gradients"]

EVERY = 4
"""Steps from one gradient whose variance is looked at to the next."""

DECAY = 0.99
"""Weight of the past in that variance, from one such gradient to the next."""


@dataclass(frozen=True)
class Gradient:
    """The gradient of the mean of E[f] over a batch, not yet pulled back to the parameters.

    Attributes:
        loss: `[B]` f at sampled bits (its mean over several), without graph: the negative bound.
        objective: scalar whose gradient at the generative parameters is theirs: f's own dependence on them.
        logits: logits of q for each layer, with the graph to the encoder.
        cotangents: what is pulled back from each of them; None if the encoder's gradient is that of `objective`.
        encoder: the encoder's gradient itself, from estimators that form it at the parameters.
        learning: scalar whose gradient at the estimator's own parameters is theirs: the variance of the estimate, or the
            fit of a baseline. None where there are none.
        learned: that gradient itself, from estimators that form it at the parameters, one of their groups after the other.
        signals: `[2]` mean and mean square of what each of the estimator's moving moments is to take in.
    """

    loss: Tensor
    objective: Tensor
    logits: Sequence[Tensor] = ()
    cotangents: Sequence[Tensor] | None = None
    encoder: Sequence[Tensor] | None = None
    learning: Tensor | None = None
    learned: Sequence[Tensor] = ()
    signals: Sequence[Tensor] = ()

    @classmethod
    def of_layers(
        cls, value: Tensor, logits: Sequence[Tensor], estimates: Sequence[Tensor], **learned: Any
    ) -> Gradient:
        """From one estimate for each example, or sample of it, at the logits of each layer.

        Args:
            value: `[B]` f, or `[K, B]` of which the mean is estimated, with the graph to the generative parameters.
            logits: `[*, B, P]` of each layer.
            estimates: `[B, P]` or `[K, B, P]`; where samples share the logits, theirs are summed.
            learned: what else there is to the record.
        """
        cotangents = [
            (estimate.detach().sum(0) if estimate.dim() > at.dim() else estimate.detach()) / value.numel()
            for at, estimate in zip(logits, estimates, strict=True)
        ]
        loss = value.detach()
        return cls(loss.mean(0) if loss.dim() == 2 else loss, value.mean(), logits, cotangents, **learned)

    def pull_back(self, encoder: Sequence[Tensor], generative: Sequence[Tensor]) -> list[Tensor]:
        """The gradient at parameters of the encoder, and at generative ones, in this order; there may be none of a kind."""
        if self.cotangents is None and self.encoder is None:
            return list(torch.autograd.grad(self.objective, [*encoder, *generative]))
        of_generative: Sequence[Tensor] = ()
        if generative:
            of_generative = torch.autograd.grad(self.objective, generative, retain_graph=True)
        if self.encoder is not None:
            return [*self.encoder, *of_generative]
        return [*torch.autograd.grad(list(self.logits), encoder, list(self.cotangents or ())), *of_generative]


class LayeredEstimator(nn.Module):
    """Forms the gradient of a stack of layers of bits. Parameters and buffers are what it learns beside the model.

    A call moves neither.

    Args:
        estimate: what a call does, for estimators that learn nothing.

    Attributes:
        workers: who see one batch together, each a part, and average what they find.
    """

    workers: Workers = ALONE

    def __init__(self, estimate: Callable[[SigmoidBeliefNetwork, Tensor, Noise], Gradient] | None = None) -> None:
        super().__init__()
        self._estimate_batch = estimate

    def forward(self, model: SigmoidBeliefNetwork, x: Tensor, noise: Noise) -> Gradient:
        """The gradient for images `[B, D]`."""
        assert self._estimate_batch is not None
        return self._estimate_batch(model, x, noise)

    def groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters that weight decay applies to, with a learning rate of their own, and all others."""
        return [], list(self.parameters())

    def move_moments(self, signals: Tensor) -> None:
        """Take in the signals `[n, 2]` of a step, which `Gradients` holds."""
        for each, signal in zip(self._moments, signals, strict=True):
            each.update(signal)

    @cached_property
    def _moments(self) -> list[MovingMoments]:
        return [module for module in self.modules() if isinstance(module, MovingMoments)]


@dataclass(frozen=True)
class Gradients:
    """What moves the parameters, each kind in one vector, and what is seen on the way.

    Attributes:
        loss: `[B]` f at sampled bits.
        model: gradient at the encoder's parameters, then at the generative ones, as far as they were asked for.
        learned: at the estimator's parameters, one of its groups after the other.
        signals: `[n, 2]` for `LayeredEstimator.move_moments`.
    """

    loss: Tensor
    model: Tensor
    learned: Tensor
    signals: Tensor


def gradients(
    model: SigmoidBeliefNetwork,
    estimator: LayeredEstimator,
    x: Tensor,
    noise: Noise,
    *,
    at: Literal["model", "encoder", "nothing"] = "model",
) -> Gradients:
    """Gradients of the mean of E[f] over images, and of what the estimator learns. Nothing is moved.

    Args:
        model, estimator: whose parameters and buffers are read.
        x: `[B, D]` images.
        noise: of the samples.
        at: which of the model's parameters are asked for.
    """
    found = estimator(model, x, noise)
    of_model = of_estimator = signals = x.new_zeros(0)
    if at != "nothing":
        of_model = flat(found.pull_back(model.encoder_parameters, model.generative_parameters if at == "model" else []))
    if found.learning is not None:
        decayed, others = estimator.groups()
        of_estimator = flat(torch.autograd.grad(found.learning, [*decayed, *others]))
    elif found.learned:
        of_estimator = flat(found.learned)
    if found.signals:
        signals = torch.stack(list(found.signals))
    return Gradients(found.loss, of_model, of_estimator, signals)


class GradientVariance:
    """Variance of each component of a gradient, over an exponential window of the gradients it was shown.

        m = sum_i w_i g_i,   v = (sum_i w_i g_i^2 - m^2) / (1 - sum_i w_i^2),   w_i ~ 0.99^age, sum_i w_i = 1

    which is unbiased while the model stands still. What is reported is log mean v, the natural logarithm of the mean
    over all components.

    Args:
        like: tensors shaped as the gradient's parts.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self.count, self._like = 0, list(like)
        self._mean, self._square = (like[0].new_zeros(sum(x.numel() for x in like)) for _ in range(2))

    @torch.no_grad()
    def update(self, gradient: Tensor) -> None:
        """Take in one gradient, all its parts in one vector."""
        share = 1.0 - DECAY
        self._mean.lerp_(gradient, share)
        self._square.mul_(DECAY).addcmul_(gradient, gradient, value=share)
        self.count += 1

    @property
    def log_variance(self) -> float:
        """NaN before the second gradient."""
        if self.count < 2:
            return math.nan
        total = 1.0 - DECAY**self.count
        squared_weights = (1.0 - DECAY) ** 2 * (1.0 - DECAY ** (2 * self.count)) / (1.0 - DECAY**2)
        variance = float((self._square / total - (self._mean / total).square()).mean())
        unbiased = variance / (1.0 - squared_weights / total**2)
        return math.log(unbiased) if unbiased > 0.0 else -math.inf if unbiased == 0.0 else math.nan

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, part by part, and how many gradients they are of."""
        state = {f"mean.{i}": x for i, x in enumerate(pieces(self._mean, self._like))}
        state |= {f"square.{i}": x for i, x in enumerate(pieces(self._square, self._like))}
        return {**state, "count": torch.tensor(self.count)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            ValueError: it belongs to another gradient.
        """
        own = self.state_dict()
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise ValueError("the moving averages belong to another gradient")
        for name, value in own.items():
            value.copy_(state[name])
        self.count = int(state["count"])
