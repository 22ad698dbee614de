"""Time of one update with every estimator, and what the training loop adds to it.

    python -m benchmarks.vae_speed          # writes results/vae/speed.json and speed.md

Two linear layers of 200 on 784 pixels, and one nonlinear layer; batches of 24, one thread. An update is what a step of
training cannot do without: the batch, the estimate, its way back through the model, and the optimisers. The loop adds
moving averages of the variance, a row with a validation bound every 1,000 steps, the display and checkpoints.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.tasks import RESULTS, write_json, write_text
from relax_rl.compute.serialization import save_state
from relax_rl.experiments.batches import Batches
from relax_rl.experiments.data import Dataset
from relax_rl.experiments.vae import training
from relax_rl.experiments.vae.config import VaeConfig
from relax_rl.experiments.vae.evaluation import bound
from relax_rl.experiments.vae.gradient import EVERY
from relax_rl.experiments.vae.trainer import Trainer
from relax_rl.runs.displays import Display

__all__ = ["main"]

ROUNDS, STEPS = 9, 15

_LINEAR: dict[str, dict[str, Any]] = {
    "reinforce": {"estimator": "reinforce"},
    "nvil": {"estimator": "nvil"},
    "muprop": {"estimator": "muprop"},
    "concrete": {"estimator": "concrete"},
    "reinmax": {"estimator": "reinmax"},
    "rebar, scales for each tensor": {"estimator": "rebar"},
    "rebar, scales for each layer": {"estimator": "rebar", "rebar_scope": "layer"},
    "relax": {"estimator": "relax"},
    "relax, r of two layers of 100": {"estimator": "relax", "surrogate_depth": 2, "surrogate_width": 100},
    "relax, f relaxed in all bits at once": {"estimator": "relax", "surrogate": "objective"},
    "relax, published surrogate": {
        "estimator": "relax",
        "surrogate": "objective",
        "surrogate_depth": 4,
        "surrogate_context": "input",
    },
    "rloo, K = 5": {"estimator": "rloo", "num_samples": 5},
    "disarm, one pair a layer": {"estimator": "disarm"},
    "arms, K = 2 a layer": {"estimator": "arms"},
    "double-cv, K = 5": {"estimator": "double-cv", "num_samples": 5},
    "rodeo, K = 5": {"estimator": "rodeo", "num_samples": 5},
}

_NONLINEAR: dict[str, dict[str, Any]] = {
    "reinforce": {"estimator": "reinforce"},
    "rebar, scales for each tensor": {"estimator": "rebar"},
    "relax": {"estimator": "relax"},
    "relax, 2 samples of each image": {"estimator": "relax", "samples_per_image": 2},
    "rloo, K = 3": {"estimator": "rloo", "num_samples": 3},
    "rloo, K = 6": {"estimator": "rloo", "num_samples": 6},
    "arms, K = 3": {"estimator": "arms", "num_samples": 3},
    "arms, K = 6": {"estimator": "arms", "num_samples": 6},
    "double-cv, K = 3": {"estimator": "double-cv", "num_samples": 3},
    "double-cv, K = 6": {"estimator": "double-cv", "num_samples": 6},
}

MODELS: dict[str, tuple[VaeConfig, dict[str, dict[str, Any]]]] = {
    "784-200-200, linear": (VaeConfig(layers=2), _LINEAR),
    "784-200, nonlinear": (VaeConfig(nonlinear=True), _NONLINEAR),
}


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    images = (np.random.default_rng(0).random((10_000, 784)) < 0.13).astype(np.uint8)
    data = Dataset("noise", images, images, images[:100], shape=(28, 28), dynamic=False)
    found = {model: _measure(config, options, data) for model, (config, options) in MODELS.items()}
    write_json(RESULTS / "vae" / "speed.json", {"torch": torch.__version__, "models": found})
    lines = [
        "# Speed of the discrete VAE\n",
        f"Batches of 24, one thread, torch {torch.__version__}; processor time, medians of {ROUNDS} rounds of {STEPS} updates, all "
        "estimators of a model side by side. `python -m benchmarks.vae_speed` writes this file.\n",
    ]
    for model, result in found.items():
        lines += _section(model, result)
    write_text(RESULTS / "vae" / "speed.md", "\n".join(lines))
    print("\n".join(lines))


def _measure(base: VaeConfig, options: dict[str, dict[str, Any]], data: Dataset) -> dict[str, Any]:
    """Milliseconds of an update of one model with every estimator, and what the loop adds with two of them."""
    trainers = {
        (name, how): _trainer(replace(base, compile=how, **chosen), data)
        for name, chosen in options.items()
        for how in ("off", "on")
    }
    updates = {case: _update(trainer) for case, trainer in trainers.items()}
    times: dict[tuple[str, str], list[float]] = {case: [] for case in updates}
    for _ in range(ROUNDS):
        for case, update in updates.items():  # side by side, so that a busy moment meets all of them
            update()
            started = time.process_time()
            for _ in range(STEPS):
                update()
            times[case].append((time.process_time() - started) / STEPS)
    best = {case: statistics.median(values) for case, values in times.items()}
    return {
        "milliseconds": {name: 1e3 * best[name, "off"] for name in options},
        "milliseconds_compiled": {name: 1e3 * best[name, "on"] for name in options},
        "added_by_the_loop": {
            name: _added(trainers[name, "on"], data) / best[name, "on"] for name in ("reinforce", "relax")
        },
    }


def _section(model: str, result: dict[str, Any]) -> list[str]:
    eager, compiled, loops = (result[name] for name in ("milliseconds", "milliseconds_compiled", "added_by_the_loop"))
    return [
        f"## {model}\n",
        "| estimator | ms an update, eager | to REINFORCE | ms, compiled | to REINFORCE |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {name} | {eager[name]:.2f} | {eager[name] / eager['reinforce']:.2f} "
            f"| {compiled[name]:.2f} | {compiled[name] / compiled['reinforce']:.2f} |"
            for name in eager
        ),
        "",
        "What the training loop adds to a compiled update (variance, rows, validation bound, display, checkpoints, each timed by itself): "
        + ", ".join(f"{100 * value:.1f}% with {name}" for name, value in loops.items())
        + ".\n",
    ]


def _trainer(config: VaeConfig, data: Dataset) -> Trainer:
    return Trainer(config, torch.from_numpy(data.mean_image.copy()), Batches(data.train, seed=0))


def _update(trainer: Trainer) -> Callable[[], None]:
    """What a step cannot do without."""

    def update() -> None:
        found = trainer.main_gradients(trainer.next_images())
        trainer.optimizer.step(found.model)
        trainer.main.learn(found)

    return update


def _added(trainer: Trainer, data: Dataset) -> float:
    """Seconds that the loop adds to a step: each of its parts, by how often it comes."""
    config = trainer.config
    valid = torch.from_numpy(data.valid[: config.valid_images]).float()
    gradient = torch.randn(sum(parameter.numel() for parameter in trainer.model.encoder_parameters))
    display = Display()

    def row() -> None:
        trainer.take_train_bound()
        trainer.metrics()
        bound(trainer.model, valid)

    def checkpoint() -> None:
        tensors, counters = trainer.state_dict()
        with tempfile.TemporaryDirectory() as folder:
            trainer.is_finite()
            save_state(Path(folder) / "step.safetensors", tensors, {"vae": counters})

    return (
        _seconds(lambda: trainer.main.variance.update(gradient), 20) / EVERY
        + _seconds(lambda: display.update(0, training.describe_bounds((-100.0, -100.0))), 20) / training.SHOW_EVERY
        + _seconds(row, 1) / config.log_interval
        + _seconds(checkpoint, 1) / config.checkpoint_interval
    )


def _seconds(call: Callable[[], object], count: int) -> float:
    """Of one call: the median of the rounds."""
    call()
    times = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(count):
            call()
        times.append((time.process_time() - started) / count)
    return statistics.median(times)


if __name__ == "__main__":
    main()
