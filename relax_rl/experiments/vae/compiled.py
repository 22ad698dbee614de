"""The gradients of a step as compiled code: the numbers of eager code to rounding, from the same random draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from relax_rl.compute.compilation import NO_COMPILER, Compiled, has_compiler
from relax_rl.compute.distributed import Workers
from relax_rl.compute.optimizers import FlatParameters
from relax_rl.errors import SettingsError
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.experiments.vae.gradient import Gradients, LayeredEstimator, gradients
from relax_rl.experiments.vae.noise import GivenNoise, Noise, RecordedNoise
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork

__all__ = ["CompiledGradients", "compiles"]

WORTHWHILE = 30_000
"""Steps from which on `auto` compiles. A step saves 0.7 (REINFORCE) to 3.2 ms (RELAX) on two layers (vae_speed.py)."""

_DECIDING = (
    *("task", "layers", "width", "nonlinear", "hidden_width", "wide_decoder", "estimator", "num_samples", "baseline"),
    *("normalize_variance", "temperature", "num_conditional", "rebar_scope", "surrogate", "surrogate_context"),
    *("surrogate_depth", "surrogate_width", "surrogate_activation"),
)
"""Settings that compiled code depends on."""


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
        flats: their parameters, as their optimisers hold them.
        config: of the run, which says what the code is of.
    """

    def __init__(
        self,
        model: SigmoidBeliefNetwork,
        estimator: LayeredEstimator,
        flats: Sequence[FlatParameters],
        config: VaeConfig,
    ) -> None:
        self._both = _Both(model, estimator)
        self._flats = {f"parameters/{i}": each for i, each in enumerate(flats)}
        self._names = {parameter: name for name, parameter in self._both.named_parameters()}
        self._buffers = dict(self._both.named_buffers())
        identity = "vae " + " ".join(f"{name}={getattr(config, name)}" for name in _DECIDING)
        self._compiled = Compiled(self._of_tensors, identity=identity)
        self._draws: dict[torch.Size, list[tuple[tuple[int, ...], torch.dtype | None]]] = {}

    def __call__(self, x: Tensor, noise: Noise) -> Gradients:
        """Of images `[B, D]`.

        Raises:
            CompilationError: it cannot be compiled; nothing was drawn then.
        """
        draws = self._draws.get(x.shape)
        if draws is None:
            recorded = RecordedNoise(torch.Generator().manual_seed(0))
            self._both(x, recorded)
            self._compiled(self._inputs(x, recorded.drawn))
            draws = self._draws[x.shape] = recorded.draws
        drawn = [noise.uniform(shape, dtype) for shape, dtype in draws]
        return Gradients(**self._compiled(self._inputs(x, drawn)))

    def _inputs(self, x: Tensor, drawn: Sequence[Tensor]) -> dict[str, Tensor]:
        parameters = {name: each.data for name, each in self._flats.items()}
        return parameters | self._buffers | {"x": x} | {f"noise/{i}": each for i, each in enumerate(drawn)}

    def _of_tensors(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`gradients` as a function of tensors alone."""
        given = {name: inputs[name] for name in self._buffers}
        for key, each in self._flats.items():
            given |= zip(map(self._names.__getitem__, each.parameters), each.unflatten(inputs[key]), strict=True)
        noise = GivenNoise([x for name, x in inputs.items() if name.startswith("noise/")])
        found: Gradients = torch.func.functional_call(self._both, given, (inputs["x"], noise))
        return vars(found)


class _Both(nn.Module):
    """Model and estimator as one module, so that all their tensors can be exchanged at once."""

    def __init__(self, model: SigmoidBeliefNetwork, estimator: LayeredEstimator) -> None:
        super().__init__()
        self.model, self.estimator = model, estimator

    def forward(self, x: Tensor, noise: Noise) -> Gradients:
        return gradients(self.model, self.estimator, x, noise)
