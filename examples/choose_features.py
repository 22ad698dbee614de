"""Choosing k features for a classifier that is trained and stays as it is: RELAX and RLOO over sets of k of n.

The classes hang on four of twelve features, two of them by the sign of their product alone, which no correlation shows. The
rivals are the k features that correlate most with the class, and, as there are only 495 sets, the best of them all.
`python examples/choose_features.py` takes a minute and draws choose_features.png.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relax_rl.distributions import Subset
from relax_rl.estimators import relax, rloo

FEATURES, CHOSEN, EVALUATIONS = 12, 4, 8


def data(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features `[rows, n]`, the last ones noisy copies of two that matter less, and classes `[rows]`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, FEATURES, generator=generator)
    level = 3 * (x[:, 0] * x[:, 1]).sign() + 1.5 * x[:, 2] + 1.5 * x[:, 3]
    x[:, 8:] = 0.6 * x[:, 8:] + 0.8 * x[:, 2:4].repeat(1, 2)
    return x, (level + 0.3 * torch.randn(rows, generator=generator) > 0).long()


def trained_classifier(seed: int, steps: int) -> nn.Module:
    """Trained with features missing at random, so that it knows what a missing one is."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2 * FEATURES, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    x, label = data(8_000, seed)
    for _ in range(steps):
        rows = torch.randint(len(x), (256,))
        shown = (torch.rand(256, FEATURES) < torch.rand(256, 1)).float()
        optimizer.zero_grad()
        F.cross_entropy(net(torch.cat([x[rows] * shown, shown], -1)), label[rows]).backward()
        optimizer.step()
    return net.requires_grad_(False)


class Objective:
    """f: the classifier's loss on one batch of rows, with the features of a set alone; for k-hot vectors and soft ones."""

    def __init__(self, net: nn.Module, x: Tensor, label: Tensor) -> None:
        self.net, self.x, self.label = net, x, label

    def __call__(self, shown: Tensor) -> Tensor:
        mask = shown.unsqueeze(-2).expand(*shown.shape[:-1], *self.x.shape)
        logits = self.net(torch.cat([self.x * mask, mask], -1))
        labels = self.label.expand(logits.shape[:-1])
        loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
        return loss.reshape(labels.shape).mean(-1)


def search(method: str, net: nn.Module, steps: int, seed: int) -> tuple[Tensor, list[float]]:
    """The logits found by "rloo" or "relax", and the probability of their most probable set after each step."""
    torch.manual_seed(seed)
    logits = torch.zeros(FEATURES, requires_grad=True)
    surrogate = nn.Sequential(nn.Linear(FEATURES, 32), nn.Tanh(), nn.Linear(32, 1))
    of_theta = torch.optim.Adam([logits], lr=0.05)
    of_phi = torch.optim.Adam(surrogate.parameters(), lr=5e-3)
    (x, label), generator, sure = data(4_000, 50 + seed), torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=generator)
        f, one = Objective(net, x[rows], label[rows]), Subset(logits, CHOSEN, one_hot=True)
        of_theta.zero_grad()
        of_phi.zero_grad()
        if method == "rloo":
            estimate = rloo(f, one, num_samples=EVALUATIONS, generator=generator)
        else:
            many = one.with_params(logits.expand(EVALUATIONS, FEATURES))
            estimate = relax(
                f, many, lambda z: surrogate(z - z.mean(-1, keepdim=True)).squeeze(-1), generator=generator
            )
        estimate.backward()
        if method == "relax":
            estimate.variance_loss().backward()
            of_phi.step()
        of_theta.step()
        sure.append(float(one.log_prob(one.mode()).detach().exp()))
    return logits.detach(), sure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--classifier-steps", type=int, default=1500)
    parser.add_argument("--figure", default="choose_features.png")
    arguments = parser.parse_args()
    net = trained_classifier(0, arguments.classifier_steps)
    x, label = data(1_000, 99)
    held_out, family = Objective(net, x, label), Subset(torch.zeros(FEATURES), CHOSEN, one_hot=True)
    losses = torch.cat([held_out(sets) for sets in family.support().split(33)])
    correlation = torch.corrcoef(torch.cat([x, label.unsqueeze(-1).float()], -1).T)[-1, :-1].abs()
    found = {"correlation": family.with_params(correlation).mode(), "best of all": family.support()[losses.argmin()]}
    curves = {}
    for method in ("rloo", "relax"):
        logits, curves[method] = search(method, net, arguments.steps, 0)
        found[method] = family.with_params(logits).mode()
    for method, chosen in found.items():
        loss = float(held_out(chosen))
        print(
            f"{method:>12}: loss {loss:.3f}, rank {int((losses < loss - 1e-6).sum()) + 1} of {len(losses)} sets, ",
            end="",
        )
        print(f"features {chosen.nonzero().flatten().tolist()}")
    draw(curves, arguments.figure)


def draw(curves: dict[str, list[float]], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for method, sure in curves.items():
        axes.plot(EVALUATIONS * torch.arange(1, len(sure) + 1), sure, label=method)
    axes.set(xlabel="evaluations of the loss", ylabel="probability of the set chosen")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
