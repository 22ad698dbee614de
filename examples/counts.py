"""How many to order: a Poisson policy and a cost that is a black box, `python examples/counts.py`.

Every day has features, from which a network gives the rate of a Poisson number of goods to order. Demand is unknown, what
is left over costs 1, what is missing 4, and every lorry for 8 goods costs 6: no derivative anywhere. RELAX, with a small
network of the features and of the relaxed count as control variate, against REINFORCE with a moving average and with a
baseline of the features. Draws `counts.png` and prints the mean cost at the end and the variance of the gradient.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from relax_rl.distributions import Poisson
from relax_rl.estimators import Estimate, MovingAverage, reinforce, relax

DAYS = 64


def days(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features `[DAYS, 3]` and demands `[DAYS]`, which nobody can differentiate."""
    features = torch.randn(DAYS, 3, generator=generator)
    rate = torch.exp(2.0 + 0.5 * features[:, 0] - 0.3 * features[:, 1] * features[:, 2].sign())
    return features, torch.poisson(rate, generator=generator)


def cost(order: Tensor, demand: Tensor) -> Tensor:
    left = order.squeeze(-1) - demand
    return left.clamp(min=0) + 4.0 * (-left).clamp(min=0) + 6.0 * (order.squeeze(-1) / 8.0).ceil()


def mlp(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 32), nn.SiLU(), nn.Linear(32, 1))


def estimator(
    name: str, critic: nn.Module, generator: torch.Generator
) -> Callable[[Tensor, Poisson, Tensor], Estimate]:
    """From features, the policy's distribution and demands to an estimate; the critic's loss is its variance."""
    average = MovingAverage()

    def estimate(features: Tensor, dist: Poisson, demand: Tensor) -> Estimate:
        if name == "RELAX":
            # The critic sees the count between the counts, in units of what is usual.
            surrogate = lambda z: critic(torch.cat([features, torch.log1p(dist.soften(z, 2.0))], -1)).squeeze(-1)  # noqa: E731
            return relax(
                lambda b: cost(b, demand),
                dist,
                surrogate,
                coupling="coupled",
                phi=critic.parameters(),
                generator=generator,
            )
        if name == "baseline":
            return reinforce(
                lambda b: cost(b, demand), dist, baseline=critic(features).squeeze(-1), generator=generator
            )
        found = reinforce(lambda b: cost(b, demand), dist, baseline=average.mean, generator=generator)
        average.update(found.value)
        return found

    return estimate


def train(name: str, steps: int, seed: int) -> tuple[list[float], nn.Module, nn.Module]:
    """Cost of every step, the policy and the critic; all methods see the same days."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    policy, critic = mlp(3), mlp(4 if name == "RELAX" else 3)
    with torch.no_grad():
        policy[-1].bias.fill_(1.0)
    slow = torch.optim.Adam(policy.parameters(), 3e-3)
    fast = torch.optim.Adam(critic.parameters(), 1e-2)
    estimate, costs = estimator(name, critic, torch.Generator().manual_seed(seed + 1)), []
    for _ in range(steps):
        features, demand = days(generator)
        found = estimate(features, Poisson(policy(features)), demand)
        slow.zero_grad()
        fast.zero_grad()
        found.backward()
        if name != "average":
            found.variance_loss().backward()
        slow.step()
        fast.step()
        costs.append(float(found.value.detach().mean()))
    return costs, policy, critic


def variance(name: str, policy: nn.Module, critic: nn.Module, draws: int) -> float:
    """Of the gradient of a batch at the policy's parameters, summed over them; the noise of the days is in it."""
    generator = torch.Generator().manual_seed(9)
    estimate, grads = estimator(name, critic, generator), []
    for _ in range(draws):
        features, demand = days(generator)
        estimate(features, Poisson(policy(features)), demand).backward()
        grads.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
        policy.zero_grad()
    return float(torch.stack(grads).var(0).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    curves, last = {}, max(1, arguments.steps // 5)
    for name in ("average", "baseline", "RELAX"):
        runs = [train(name, arguments.steps, seed) for seed in range(arguments.seeds)]
        curves[name] = torch.tensor([costs for costs, _, _ in runs]).mean(0)
        ends = [sum(costs[-last:]) / last for costs, _, _ in runs]
        spread = sum(variance(name, policy, critic, min(100, arguments.steps)) for _, policy, critic in runs) / len(
            runs
        )
        told = ", ".join(f"{end:.2f}" for end in ends)
        print(f"{name:9s} mean cost at the end, by seed: {told}; variance of the gradient {spread:.3g}")
    draw(curves)


def draw(curves: dict[str, Tensor]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    for name, curve in curves.items():
        width = max(1, len(curve) // 30)
        plt.plot(curve.unfold(0, width, 1).mean(-1), label="REINFORCE, " + name if name != "RELAX" else name)
    plt.xlabel("step")
    plt.ylabel("cost of a day")
    plt.legend()
    plt.savefig("counts.png", dpi=120)


if __name__ == "__main__":
    main()
