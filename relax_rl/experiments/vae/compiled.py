"""The gradients of a step as compiled code: the numbers of eager code to rounding, from the same random draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relax_rl.compute.compilation import NO_COMPILER, compile_function, has_compiler
from relax_rl.distributed import Workers
from relax_rl.errors import SettingsError
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.experiments.vae.gradient import Gradients, LayeredEstimator, gradients
from relax_rl.experiments.vae.noise import GivenNoise, Noise, RecordedNoise
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork

__all__ = ["CompiledGradients", "compiles"]

WORTHWHILE = 30_000
"""Steps from which on `auto` compiles. A step saves 0.7 (REINFORCE) to 3.2 ms (RELAX) on two layers (vae_speed.py)."""


def compiles(config: VaeConfig, device: torch.device, workers: Workers) -> bool:
    """Whether a run's steps are compiled.

    Raises:
        SettingsError: compiled code is asked for and impossible.
    """
    if config.compile == "off" or (config.compile == "auto" and config.steps < WORTHWHILE):
        return False
    reason = None
    if device.type != "cpu":
        reason = f"it is for the CPU, not for {device}"
    elif workers.count > 1:
        reason = "it is for a single process"
    elif not has_compiler():
        reason = NO_COMPILER
    if reason is not None and config.compile == "on":
        raise SettingsError(f"compile is 'on', and that is not possible: {reason}, or leave it at auto")
    return reason is None


class CompiledGradients:
    """`gradients` of a model and an estimator, compiled once for every shape of batch.

    Args:
        model, estimator: whose parameters and buffers are read anew at every call.
    """

    def __init__(self, model: SigmoidBeliefNetwork, estimator: LayeredEstimator) -> None:
        self._both = _Both(model, estimator)
        self._tensors = {**dict(self._both.named_parameters()), **dict(self._both.named_buffers())}
        self._graphs: dict[tuple[int, ...], _Graph] = {}

    def __call__(self, x: Tensor, noise: Noise) -> Gradients:
        """Of images `[B, D]`."""
        graph = self._graphs.get(tuple(x.shape))
        if graph is None:
            graph = self._graphs[tuple(x.shape)] = self._compiled(x)
        drawn = [noise.uniform(shape, dtype) for shape, dtype in graph.draws]
        with torch.no_grad():
            found = iter(graph.run(*self._tensors.values(), x, *drawn))
        return Gradients(next(found), *([next(found) for _ in range(count)] for count in graph.counts))

    def _compiled(self, x: Tensor) -> _Graph:
        """Trace and compile the gradients for images of this shape."""
        recorded = RecordedNoise(torch.Generator().manual_seed(0))
        trial = self._both(x, recorded)

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            images, *drawn = tensors[len(self._tensors) :]
            each = zip(self._tensors.items(), tensors, strict=False)
            exchanged = {name: given.detach().requires_grad_(own.requires_grad) for (name, own), given in each}
            found = torch.func.functional_call(self._both, exchanged, (images, GivenNoise(drawn)))
            return tuple(x.detach() for x in (found.loss, *found.tensors))

        run = compile_function(function, [*self._tensors.values(), x, *recorded.drawn])
        counts = [len(part) for part in (trial.encoder, trial.generative, trial.learned, trial.signals)]
        return _Graph(run, recorded.draws, counts)


class _Both(nn.Module):
    """Model and estimator as one module, so that all their tensors can be exchanged at once."""

    def __init__(self, model: SigmoidBeliefNetwork, estimator: LayeredEstimator) -> None:
        super().__init__()
        self.model, self.estimator = model, estimator

    def forward(self, x: Tensor, noise: Noise) -> Gradients:
        return gradients(self.model, self.estimator, x, noise)


@dataclass(frozen=True)
class _Graph:
    """Compiled code.

    Attributes:
        run: parameters, buffers, images and random draws -> the loss and all tensors of `Gradients`.
        draws: shape and type of each draw.
        counts: of the gradients at the encoder, at the generative parameters and at the estimator, and of signals.
    """

    run: Callable[..., tuple[Tensor, ...]]
    draws: Sequence[tuple[tuple[int, ...], torch.dtype | None]]
    counts: Sequence[int]
