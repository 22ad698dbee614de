"""Writing in balance: a small recurrent network, a black-box reward, `python examples/sequences.py`.

The network writes up to 12 of "(", ")" and the end. What it has written is worth its length where the brackets are in balance,
and minus the distance from balance elsewhere: a program decides that, no derivative. Leave-one-out baselines over 8
sequences (RLOO) against a moving average with as many sequences, and RLOO with half of the sequences masked: ")" is
forbidden where nothing is open. Draws `sequences.png` and prints the mean reward at the end.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from relax_rl.estimators import MovingAverage, Sequences, sample_sequences, sequence_rloo

END, OPEN, CLOSE, MOST, SAMPLES, ROWS = 0, 1, 2, 12, 8, 8


def reward(sequences: Sequences) -> Tensor:
    """`[*]` the length of what is in balance; what is not loses a point for every bracket too many."""
    worth = []
    for row, length in zip(sequences.tokens.flatten(0, -2).tolist(), sequences.lengths.flatten().tolist(), strict=True):
        depth, wrong = 0, 0
        for token in row[:length]:
            depth += (token == OPEN) - (token == CLOSE)
            wrong += depth < 0
            depth = max(depth, 0)
        brackets = sum(token != END for token in row[:length])
        worth.append(float(brackets) if wrong + depth == 0 else -float(wrong + depth))
    return torch.tensor(worth).reshape(sequences.tokens.shape[:-1])


class Writer(nn.Module):
    """A recurrent network that gives the logits of the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.cell, self.head = nn.Embedding(4, 8), nn.GRUCell(8, 32), nn.Linear(32, 3)

    def write(self, generator: torch.Generator, *, masked: bool) -> Sequences:
        hidden, nothing_open = torch.zeros(SAMPLES * ROWS, 32), torch.zeros(SAMPLES * ROWS)

        def step(state: tuple[Tensor, Tensor], token: Tensor | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            hidden, depth = state
            last = torch.full((SAMPLES * ROWS,), 3) if token is None else token.flatten()
            depth = depth + (last == OPEN).float() - (last == CLOSE).float()
            hidden = self.cell(self.embedding(last), hidden)
            logits = self.head(hidden)
            if masked:
                forbidden = (depth <= 0).unsqueeze(-1) & (torch.arange(3) == CLOSE)
                logits = logits.masked_fill(forbidden, -torch.inf)
            return logits.unflatten(0, (SAMPLES, ROWS)), (hidden, depth)

        return sample_sequences(step, (hidden, nothing_open), max_length=MOST, end=END, generator=generator)


def train(method: str, steps: int, seed: int) -> list[float]:
    """Mean reward of every step."""
    torch.manual_seed(seed)
    generator, writer, average = torch.Generator().manual_seed(seed), Writer(), MovingAverage()
    optimizer, rewards = torch.optim.Adam(writer.parameters(), 5e-3), []
    for _ in range(steps):
        sequences = writer.write(generator, masked=method == "RLOO, masked")
        worth = reward(sequences)
        optimizer.zero_grad()
        if method == "moving average":
            (-(worth - average.mean) * sequences.log_prob).mean().backward()
            average.update(worth)
        else:
            sequence_rloo(worth, sequences).backward(-1 / worth.numel())
        optimizer.step()
        rewards.append(float(worth.mean()))
    return rewards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    curves, last = {}, max(1, arguments.steps // 5)
    for method in ("moving average", "RLOO", "RLOO, masked"):
        runs = [train(method, arguments.steps, seed) for seed in range(arguments.seeds)]
        curves[method] = torch.tensor(runs).mean(0)
        told = ", ".join(f"{sum(run[-last:]) / last:.2f}" for run in runs)
        print(f"{method:15s} mean reward at the end (at most {MOST}), by seed: {told}")
    draw(curves)


def draw(curves: dict[str, Tensor]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    for method, curve in curves.items():
        width = max(1, len(curve) // 30)
        plt.plot(curve.unfold(0, width, 1).mean(-1), label=method)
    plt.xlabel("step")
    plt.ylabel("reward")
    plt.legend()
    plt.savefig("sequences.png", dpi=120)


if __name__ == "__main__":
    main()
