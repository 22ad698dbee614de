"""One step of training after another: the model, its estimator, and estimators that only watch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relax_rl.compute.compilation import CompilationError, NotKept, warn_or_raise
from relax_rl.compute.distributed import ALONE, Workers
from relax_rl.compute.optimizers import GroupedAdam, flat, pieces
from relax_rl.compute.serialization import pack, unpack
from relax_rl.errors import CheckpointError
from relax_rl.experiments.batches import Batches
from relax_rl.experiments.vae.compiled import CompiledGradients, compiles
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.experiments.vae.estimators import make_layered_estimator
from relax_rl.experiments.vae.gradient import EVERY, Gradients, GradientVariance, LayeredEstimator, gradients
from relax_rl.experiments.vae.noise import Noise, own_rows
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork
from relax_rl.settings.fields import whole

__all__ = ["Trainer", "Watched"]


@dataclass(frozen=True)
class Watched:
    """An estimator with what belongs to it: its noise, the optimiser of what it learns, and its variance."""

    name: str
    estimator: LayeredEstimator
    noise: Noise
    optimizer: GroupedAdam
    variance: GradientVariance

    @property
    def generator(self) -> torch.Generator:
        """Of the noise."""
        return self.noise.generator

    def learn(self, found: Gradients) -> None:
        """Move what the estimator learns."""
        self.optimizer.step(found.learned)
        self.estimator.move_moments(found.signals)

    def state_dict(self) -> dict[str, Tensor]:
        """All of it as tensors."""
        return pack(self._components(), "/")

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        unpack(self._components(), state, "/")

    def _components(self) -> dict[str, Any]:
        return {
            "estimator": self.estimator,
            "optimizer": self.optimizer,
            "variance": self.variance,
            "generator": self.noise,
        }


class Trainer:
    """Model, estimators, optimisers and data order: what a checkpoint holds and a step moves.

    The gradient of the estimator moves the model. The other estimators form theirs from the same images and the same
    parameters, and learn their own surrogates and baselines; the model does not feel them.

    Args:
        config: of the run.
        mean: `[D]` mean training image.
        batches: of training images, on the device.
        device: of everything.
        workers: the processes that share every batch; all of them take the same steps.

    Attributes:
        compiled: forms the gradients in the place of eager code, if that is worth it.

    Raises:
        SettingsError: compiled code is asked for and impossible.
    """

    def __init__(
        self,
        config: VaeConfig,
        mean: Tensor,
        batches: Batches,
        device: torch.device | str = "cpu",
        workers: Workers = ALONE,
    ) -> None:
        self.config, self.batches, self.device = config, batches, torch.device(device)
        self.workers = workers
        seeds = iter(np.random.SeedSequence(config.seed).spawn(2 + len(config.track_variances)))
        self.model = SigmoidBeliefNetwork(
            mean,
            layers=(config.width,) * config.layers,
            hidden=(config.hidden_width,) * 2 if config.nonlinear else (),
            wide_decoder=config.wide_decoder,
            task=config.task,
            generator=_generator(next(seeds)),
        ).to(device)
        self.step = -config.pretrain_steps
        names = {parameter: f"{i}" for i, parameter in enumerate(self.model.parameters())}
        group = {names[p]: p for p in (*self.model.encoder_parameters, *self.model.generative_parameters)}
        betas = (0.9, config.beta2)  # of two groups, as of an estimator, the first one decays: here there is none
        self.optimizer = GroupedAdam([{}, group], lrs=[0.0, config.lr], decays=[0.0, 0.0], betas=betas)
        self._encoder_size = sum(parameter.numel() for parameter in self.model.encoder_parameters)
        self.main = self._watch(config.estimator, next(seeds))
        self.others = [self._watch(name, next(seeds)) for name in config.track_variances]
        self.compiled: CompiledGradients | None = None
        if compiles(config, self.device, workers):
            flats = [*self.optimizer.flats, *self.main.optimizer.flats]
            self.compiled = CompiledGradients(self.model, self.main.estimator, flats, config)
        self._loss = torch.zeros((), device=self.device, dtype=torch.float64)
        self._loss_steps = 0

    @property
    def frozen(self) -> bool:
        """Whether the next step leaves the model alone."""
        freeze_at = self.config.freeze_at
        return self.step < 0 or (freeze_at is not None and self.step >= freeze_at)

    def take_step(self) -> None:
        """Draw a batch, form all gradients, move what learns."""
        x, frozen, looks = self.next_images(), self.frozen, self.step % EVERY == 0
        found = [
            gradients(self.model, each.estimator, x, each.noise, at="encoder" if looks else "nothing")
            for each in ([*self.others, self.main] if frozen else self.others)
        ]
        found = self._averaged(found if frozen else [*found, self.main_gradients(x)])
        for each, its in zip([*self.others, self.main], found, strict=True):
            if looks:
                each.variance.update(its.model[: self._encoder_size])
            each.learn(its)
        if not frozen:
            self.optimizer.step(found[-1].model)
        self.step += 1
        if self.step > 0:
            self._loss += found[-1].loss.mean()
            self._loss_steps += 1

    def next_images(self) -> Tensor:
        """`[B, D]` this worker's part of the next batch, each image as often as it is to be sampled for."""
        x = own_rows(self.batches.next(self.config.batch_size), self.workers)
        times = self.config.samples_per_image
        return x.repeat_interleave(times, 0) if times > 1 else x

    def main_gradients(self, x: Tensor) -> Gradients:
        """Those that move the model, by compiled code if there is any."""
        if self.compiled is not None:
            try:
                return self.compiled(x, self.main.noise)
            except CompilationError as error:
                warn_or_raise(error, self.config.compile)
                self.compiled = None
            except NotKept:
                self.compiled = None
        return gradients(self.model, self.main.estimator, x, self.main.noise)

    def take_train_bound(self) -> float:
        """Mean bound of the batches since this was last asked, each before its step; NaN without any."""
        self.workers.average_(self._loss)
        value = -float(self._loss) / self._loss_steps if self._loss_steps else math.nan
        self._loss.zero_()
        self._loss_steps = 0
        return value

    def metrics(self) -> dict[str, float]:
        """Log variances, and the learned scales and temperatures of the main estimator."""
        row = {"log_variance": self.main.variance.log_variance}
        row |= {f"log_variance/{other.name}": other.variance.log_variance for other in self.others}
        learned = dict(self.main.estimator.named_parameters())
        if "log_temperature" in learned:
            temperatures = learned["log_temperature"].detach().exp().reshape(-1).tolist()
            row |= {f"temperature/{layer}": value for layer, value in enumerate(temperatures, 1)}
        for name in ("eta", "correction"):
            if name in learned:
                row |= {f"{name}/{layer}": value for layer, value in enumerate(learned[name].tolist(), 1)}
        return row

    def is_finite(self) -> bool:
        """Whether every parameter is a number."""
        every = [*self.model.parameters(), *self.main.estimator.parameters()]
        return all(bool(parameter.isfinite().all()) for parameter in every)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Tensors and counters, from which a trainer of the same settings goes on bit for bit."""
        tensors = {**pack(self._components(), "/"), "loss/sum": self._loss}
        return tensors, {"step": self.step, "loss_steps": self._loss_steps}

    def load_state_dict(self, tensors: Mapping[str, Tensor], counters: Mapping[str, int]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            CheckpointError: it belongs to a run with other settings.
        """
        try:
            unpack(self._components(), {name: x for name, x in tensors.items() if name != "loss/sum"}, "/")
            self._loss.copy_(tensors["loss/sum"])
            self.step = whole("step", counters["step"], least=-self.config.pretrain_steps)
            self._loss_steps = whole("loss_steps", counters["loss_steps"], least=0)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0].rstrip(":")
            raise CheckpointError(f"the checkpoint belongs to a run with other settings: {reason}") from None

    def _components(self) -> dict[str, Any]:
        own = {"model": self.model, "optimizer": self.optimizer, "batches": self.batches, "main": self.main}
        return own | {f"other{i}": other for i, other in enumerate(self.others)}

    def follow_first(self) -> None:
        """Take over the state of the first worker."""
        if self.workers.count == 1:
            return
        tensors, counters = self.state_dict()
        taken = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        for tensor in taken.values():
            self.workers.broadcast_(tensor)
        self.load_state_dict(taken, self.workers.from_first(counters))

    def _averaged(self, found: list[Gradients]) -> list[Gradients]:
        """The mean of everything but the losses over the workers, in one message."""
        if self.workers.count == 1:
            return found
        tensors = [x for each in found for x in (each.model, each.learned, each.signals)]
        together = flat(tensors)
        self.workers.average_(together)
        means = iter(pieces(together, tensors))
        return [replace(x, model=next(means), learned=next(means), signals=next(means)) for x in found]

    def _watch(self, name: str, seed: np.random.SeedSequence) -> Watched:
        config = self.config
        weights, noise = seed.spawn(2)
        estimator = make_layered_estimator(name, config, self.model, _generator(weights)).to(self.device)
        estimator.workers = self.workers
        optimizer = GroupedAdam(
            [{f"{i}": p for i, p in enumerate(group)} for group in estimator.groups()],
            lrs=[config.lr * config.surrogate_lr_factor, config.lr * config.lr_factor],
            decays=[config.surrogate_decay, 0.0],
            betas=(0.9, config.beta2),
        )
        drawn = Noise(_generator(noise, self.device), self.workers)
        return Watched(name, estimator, drawn, optimizer, GradientVariance(self.model.encoder_parameters))


def _generator(seed: np.random.SeedSequence, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))
