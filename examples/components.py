"""Choosing among components of a network: a hard gate over experts, `python examples/components.py`.

The target is another linear function in each quadrant of the plane, and of four linear experts one answers for each point.
Which one is a categorical variable of a gate, learned by REBAR, whose control variate asks the mixture of the experts, by RELAX with a network that looks at the
gate's relaxed choice, by REINFORCE with a learned baseline, or by the biased straight-through estimator. Draws
`components.png` and prints the squared error at the end, and how often each of the experts is chosen.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from relax_rl.distributions import Categorical
from relax_rl.estimators import rebar, reinforce, relax, straight_through

EXPERTS, POINTS = 4, 64
SLOPES = torch.tensor([[2.0, 1.0], [-2.0, 1.0], [1.0, -2.0], [-1.0, -1.0]])


def points(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`[POINTS, 2]` points and `[POINTS]` targets, of another linear function in each quadrant."""
    x = torch.randn(POINTS, 2, generator=generator)
    quadrant = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    return x, (SLOPES[quadrant] * x).sum(-1) + 0.5 * quadrant


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, outputs))


def train(method: str, steps: int, seed: int) -> tuple[list[float], Tensor]:
    """Squared error of every step, and how often each expert is chosen at the end."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    gate, experts = mlp(2, EXPERTS), nn.Linear(2, EXPERTS)
    critic = mlp(2 + (EXPERTS if method == "RELAX" else 0), 1)
    scale = torch.tensor(1.0, requires_grad=True)
    learner = torch.optim.Adam([*gate.parameters(), *experts.parameters()], 1e-2)
    of_critic, errors = torch.optim.Adam([*critic.parameters(), scale], 1e-2), []
    for _ in range(steps):
        x, y = points(generator)
        dist, answers = Categorical(gate(x), one_hot=True), experts(x)
        error = lambda b, answers=answers, y=y: ((b * answers).sum(-1) - y).square()  # noqa: E731
        if method == "REBAR":
            found = rebar(error, dist, eta=scale, temperature=0.5, generator=generator)
        elif method == "RELAX":
            surrogate = lambda z, x=x, dist=dist: critic(torch.cat([x, dist.soften(z)], -1)).squeeze(-1)  # noqa: E731
            found = relax(error, dist, surrogate, coupling="coupled", phi=critic.parameters(), generator=generator)
        elif method == "straight-through":
            found = straight_through(error, dist, generator=generator)
        else:
            found = reinforce(error, dist, baseline=critic(x).squeeze(-1), generator=generator)
        learner.zero_grad()
        of_critic.zero_grad()
        found.backward()  # the gate by the estimate, the expert that answered through the error itself
        if method != "straight-through":
            found.variance_loss().backward()
            of_critic.step()
        learner.step()
        errors.append(float(found.value.detach().mean()))
    with torch.no_grad():
        chosen = torch.cat([gate(points(generator)[0]).argmax(-1) for _ in range(20)])
    return errors, torch.bincount(chosen, minlength=EXPERTS) / len(chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    last = max(1, arguments.steps // 5)
    for method in ("REINFORCE", "straight-through", "REBAR", "RELAX"):
        runs = [train(method, arguments.steps, seed) for seed in range(arguments.seeds)]
        told = ", ".join(f"{sum(errors[-last:]) / last:.3f}" for errors, _ in runs)
        shares = " ".join(f"{share:.0%}" for share in runs[0][1].tolist())
        print(f"{method:16s} squared error at the end, by seed: {told}; chosen, first seed: {shares}")
        curve = torch.tensor([errors for errors, _ in runs]).mean(0)
        plt.semilogy(curve.unfold(0, max(1, len(curve) // 30), 1).mean(-1), label=method)
    plt.xlabel("step")
    plt.ylabel("squared error")
    plt.legend()
    plt.savefig("components.png", dpi=120)


if __name__ == "__main__":
    main()
