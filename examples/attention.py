"""Hard attention: where on a canvas to look for a digit, `python examples/attention.py --data-dir FOLDER`.

A digit of MNIST stands anywhere on a canvas of 56 x 56. A network sees the canvas in 14 x 14 blurred cells and chooses one of
49 places; a second network sees 24 x 24 sharp pixels there, and nothing else, and says which digit it is. Where to look is
a hard choice, learned by RELAX with a surrogate of all places at once, or by REINFORCE with a learned baseline; what is seen is
learned by plain back-propagation in both. Draws `attention.png` and prints the share of test digits that are told right.

FOLDER holds the four files of MNIST (`train-images-idx3-ubyte.gz` and so on, packed or not), or a folder `mnist/` with
them; without `--data-dir` nothing is downloaded, and the script says so and stops.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relax_rl.distributions import Categorical
from relax_rl.estimators import reinforce, relax

SIDE, SIGHT, STEP, PLACES = 56, 24, 5, 7


def load(folder: str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train images and labels, test images and labels; stops the script where they are missing."""
    found = []
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        places = [Path(folder or ".") / sub / f"{name}-ubyte{end}" for sub in ("", "mnist") for end in ("", ".gz")]
        file = next((each for each in places if folder and each.exists()), None)
        if file is None:
            sys.exit(
                f"{name}-ubyte(.gz) is not in {folder or 'any folder given'}: get the four files of MNIST from "
                "https://ossci-datasets.s3.amazonaws.com/mnist/ and pass their folder by --data-dir"
            )
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        images = name.endswith("3")
        array = torch.from_numpy(np.frombuffer(content, np.uint8, offset=16 if images else 8).copy())
        found.append(array.reshape(-1, 28, 28).float() / 255 if images else array.long())
    return found[0], found[1], found[2], found[3]


def place(images: Tensor, generator: torch.Generator) -> Tensor:
    """`[B, 56, 56]` canvases with each digit somewhere."""
    rows, columns = torch.randint(SIDE - 27, (2, len(images)), generator=generator).unsqueeze(-1)
    reach = torch.arange(28)
    canvas = torch.zeros(len(images), SIDE, SIDE)
    at = (torch.arange(len(images))[:, None, None], (rows + reach)[:, :, None], (columns + reach)[:, None, :])
    canvas[at] = images
    return canvas


def look(canvas: Tensor, choice: Tensor) -> Tensor:
    """`[B, 24 * 24]` the pixels at each of the places `[B]` of a grid of 7 x 7."""
    reach = torch.arange(SIGHT)
    rows, columns = (choice // PLACES) * STEP + 1, (choice % PLACES) * STEP + 1
    at = (torch.arange(len(canvas))[:, None, None], (rows[:, None] + reach)[:, :, None])
    return canvas[(*at, (columns[:, None] + reach)[:, None, :])].flatten(1)


def mlp(inputs: int, outputs: int, width: int = 128) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, outputs))


def train(method: str, data: tuple[Tensor, ...], steps: int, seed: int) -> tuple[list[float], float]:
    """Loss of every step, and the share of test digits told right."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, labels, test_images, test_labels = data
    where, what = mlp(14 * 14, PLACES**2), mlp(SIGHT**2, 10)
    critic = mlp(14 * 14 + (PLACES**2 if method == "RELAX" else 0), 1)
    learner = torch.optim.Adam([*where.parameters(), *what.parameters()], 1e-3)
    of_critic, losses = torch.optim.Adam(critic.parameters(), 1e-3), []
    for _ in range(steps):
        rows = torch.randint(len(images), (64,), generator=generator)
        canvas, label = place(images[rows], generator), labels[rows]
        blurred = F.avg_pool2d(canvas.unsqueeze(1), 4).flatten(1)
        dist = Categorical(where(blurred))
        loss = lambda b, canvas=canvas, label=label: F.cross_entropy(what(look(canvas, b)), label, reduction="none")  # noqa: E731
        if method == "RELAX":
            surrogate = lambda z, seen=blurred, dist=dist: critic(torch.cat([seen, dist.soften(z)], -1)).squeeze(-1)  # noqa: E731
            found = relax(loss, dist, surrogate, coupling="coupled", phi=critic.parameters(), generator=generator)
        else:
            found = reinforce(loss, dist, baseline=critic(blurred).squeeze(-1), generator=generator)
        learner.zero_grad()
        of_critic.zero_grad()
        found.backward()  # where to look by the estimate, what is seen through the loss itself
        found.variance_loss().backward()
        learner.step()
        of_critic.step()
        losses.append(float(found.value.detach().mean()))
    with torch.no_grad():
        canvas = place(test_images, torch.Generator().manual_seed(0))
        chosen = Categorical(where(F.avg_pool2d(canvas.unsqueeze(1), 4).flatten(1))).mode()
        right = float((what(look(canvas, chosen)).argmax(-1) == test_labels).float().mean())
    return losses, right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    data = load(arguments.data_dir)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    for method in ("REINFORCE", "RELAX"):
        runs = [train(method, data, arguments.steps, seed) for seed in range(arguments.seeds)]
        print(f"{method:9s} told right, by seed: {', '.join(f'{right:.1%}' for _, right in runs)}")
        curve = torch.tensor([losses for losses, _ in runs]).mean(0)
        plt.plot(curve.unfold(0, max(1, len(curve) // 30), 1).mean(-1), label=method)
    plt.xlabel("step")
    plt.ylabel("cross-entropy")
    plt.legend()
    plt.savefig("attention.png", dpi=120)


if __name__ == "__main__":
    main()
