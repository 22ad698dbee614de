"""Pictures of a VAE run: bounds and log variance against steps, and a grid of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relax_rl.compute.serialization import writing
from relax_rl.experiments.vae.evaluation import EVALUATION_SEED
from relax_rl.experiments.vae.noise import Noise
from relax_rl.experiments.vae.sbn import SigmoidBeliefNetwork
from relax_rl.runs.loggers import read_csv
from relax_rl.runs.plotting import draw_line, finish_steps, make_figure, say_nothing_yet, write_figure

__all__ = ["draw_curves", "draw_images", "image_rows", "log_images", "write_images"]

_WIDTH, _NAMES = 9.0, 2.0
"""Inches of the picture with the images, and those of them that the names of its rows take."""


def draw_curves(progress: Path, path: Path, title: str, estimator: str) -> None:
    """Write bounds and log variances against steps as a PNG; nothing without a row.

    Args:
        progress: the run's `progress.csv`.
        path: the picture.
        title: above it.
        estimator: that trains the model.

    Raises:
        RelaxRLError: a file cannot be read or written.
    """
    columns = read_csv(progress) if progress.exists() else {}
    if not columns.get("step"):
        return
    steps = columns["step"]
    figure = make_figure(11, 4.2)
    bounds, variances = figure.subplots(1, 2)
    draw_line(bounds, steps, columns["train_bound"], "training batches, before each step")
    draw_line(bounds, steps, columns["valid_bound"], "validation images")
    bounds.set_ylabel("evidence lower bound (nats per image)")
    low = [value for value in columns["train_bound"] + columns["valid_bound"] if math.isfinite(value)]
    if len(low) > 8:  # the first rows lie so far below that the rest would be flat
        bottom = float(np.quantile(low, 0.08))
        bounds.set_ylim(bottom, max(low) + 0.05 * (max(low) - bottom))
    measured = draw_line(variances, steps, columns["log_variance"], f"{estimator} (trains the model)")
    for name, values in columns.items():
        if name.startswith("log_variance/"):
            measured += draw_line(variances, steps, values, name.partition("/")[2])
    if not measured:
        say_nothing_yet(variances, "no variance has been measured yet")
    variances.set_ylabel("log mean variance of the encoder's gradient")
    for axes in (bounds, variances):
        finish_steps(axes, "steps", last=max(steps))
        axes.legend(loc="best", frameon=False, fontsize="small")
    figure.suptitle(title, fontsize="medium")
    write_figure(path, figure)


@torch.no_grad()
def draw_images(model: SigmoidBeliefNetwork, images: Tensor, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """`[height, width]` grey values of a grid: images, what the model makes of their bits, and images of its own.

    In structured prediction: images, and three predictions of their lower half. The rows are those of `image_rows`.

    Args:
        images: `[n, D]`, one a column.
        shape: rows and columns of an image.
    """
    generator = torch.Generator(images.device).manual_seed(EVALUATION_SEED)

    def reconstruction() -> Tensor:
        chain = model.sample(images, Noise(generator))
        if model.task == "structured":
            return torch.cat([images[:, : model.split], model.decode(chain.bits[-1])], -1)
        return model.decode(chain.bits[0])

    rows = [images, reconstruction()]
    for _ in range(2):
        rows.append(reconstruction() if model.task == "structured" else model.generate(len(images), generator))
    height, width = shape
    grid = torch.full((len(rows) * (height + 1) + 1, len(images) * (width + 1) + 1), 0.5)
    for i, row in enumerate(rows):
        for j, image in enumerate(row.reshape(-1, height, width).cpu()):
            top, left = 1 + i * (height + 1), 1 + j * (width + 1)
            grid[top : top + height, left : left + width] = 1 - image
    pixels: NDArray[np.uint8] = (grid * 255).round().to(torch.uint8).numpy()
    return pixels


def image_rows(task: str) -> tuple[str, ...]:
    """What stands in the rows of `draw_images`, from the top."""
    if task == "structured":
        return ("validation images", *["lower half predicted"] * 3)
    return ("validation images", "reconstructed", *["drawn from the model"] * 2)


def write_images(picture: NDArray[np.uint8], path: Path, rows: Sequence[str], title: str) -> None:
    """Write the grid as a PNG with its rows named.

    Raises:
        RelaxRLError: the file cannot be written.
    """
    height, width = picture.shape
    figure = make_figure(_WIDTH, 0.6 + (_WIDTH - _NAMES) * height / width)
    axes = figure.subplots()
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_yticks([(row + 0.5) * height / len(rows) for row in range(len(rows))], rows)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.set_title(title, fontsize="medium")
    write_figure(path, figure)


def log_images(picture: NDArray[np.uint8], folder: Path, step: int) -> None:
    """Add the grid to the TensorBoard of a run.

    Raises:
        RelaxRLError: a file cannot be written.
    """
    from torch.utils.tensorboard import SummaryWriter

    with writing(folder), SummaryWriter(str(folder), filename_suffix=".images") as writer:
        writer.add_image("images", picture[None], step)
