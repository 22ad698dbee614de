"""The variance of the gradient that an update would apply, at frozen parameters, for several estimators on the same rollouts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relax_rl.agents import ActorCritic
from relax_rl.compute.optimizers import learning
from relax_rl.envs import VectorEnvs
from relax_rl.errors import SettingsError
from relax_rl.estimators.diagnostics import Interval, effective_sample_size_ratio, squared_distance, variance
from relax_rl.variance.contenders import REFERENCE, Contender, experience_of

__all__ = ["MOST_BYTES", "AppliedVariance", "applied_gradients", "applied_variances", "policy_gradient"]

MOST_BYTES = 3 * 2**30
"""Of the gradients that are held at once."""


@dataclass(frozen=True)
class AppliedVariance:
    """Variance of the gradient that an update would apply, over independent rollouts.

    Attributes:
        variance: trace of the covariance over the parameters of the policy.
        ratio: to the variance of A2C's gradient from the same rollouts.
        squared_bias: squared distance of the mean from that of A2C's gradient; None for estimators whose mean is the same.
    """

    variance: Interval
    ratio: Interval
    squared_bias: Interval | None = None


def applied_gradients(
    agent: ActorCritic,
    envs: VectorEnvs,
    entrants: Sequence[Contender],
    *,
    num_batches: int,
    fit_batches: int,
    progress: Callable[[int], Any] = lambda _: None,
) -> dict[str, Tensor]:
    """Gradients that updates of the frozen agent would apply, of each contender on the same rollouts.

    Args:
        agent: acts, and learns nothing; its random stream goes on.
        envs: environments with its spaces.
        entrants: one of them named "a2c".
        num_batches: rollouts that are measured.
        fit_batches: rollouts before them, on which surrogates are fitted.
        progress: called with the number of rollouts done so far.

    Returns:
        `[num_batches, |theta|]` gradients of the expected return, by name.

    Raises:
        SettingsError: when these gradients would not fit into memory.
    """
    theta = learning(agent.policy)
    size = 4 * sum(x.numel() for x in theta) * len(entrants)
    if num_batches * size > MOST_BYTES:
        raise SettingsError(
            f"{num_batches} gradients of this policy by {len(entrants)} estimators take "
            f"{num_batches * size / 2**30:.1f} GiB; use at most {MOST_BYTES // size} batches"
        )
    collector = agent.collector(envs)
    draws: dict[str, list[Tensor]] = {entrant.name: [] for entrant in entrants}
    for done in range(fit_batches + num_batches):
        batch, outputs = agent.batch(agent.collect(collector))
        x, dist = experience_of(agent, batch, outputs)
        for entrant in entrants:
            if done >= fit_batches:
                estimate = entrant.estimate(x, dist)
                draws[entrant.name].append(policy_gradient(estimate, x.weight, outputs.params, theta))
            elif entrant.fit is not None:
                entrant.fit(x, dist)
        progress(done + 1)
    return {name: torch.stack(found) for name, found in draws.items()}


def policy_gradient(estimate: Tensor, weight: Tensor, params: Tensor, theta: Sequence[Tensor]) -> Tensor:
    """`[|theta|]` what an update would apply: the mean of `[B, P]` estimates over rows, pulled back to the policy.

    Args:
        estimate: at `params`.
        weight: `[B]` of each row.
        params: `[B, P]` with the graph that leads to theta.
        theta: the policy's parameters.
    """
    pulled = estimate.detach() * (weight / len(weight)).unsqueeze(-1)
    gradients = torch.autograd.grad(params, theta, pulled, retain_graph=True)
    return torch.cat([x.flatten() for x in gradients])


def applied_variances(
    draws: Mapping[str, Tensor], *, biased: Collection[str] = (), generator: torch.Generator | None = None
) -> dict[str, AppliedVariance]:
    """Variance of each contender's gradient, and its ratio to A2C's; the bias of those that have one.

    Args:
        draws: of `applied_gradients`, those of A2C among them.
        biased: names of contenders whose estimates are biased.
        generator: of the resampling.
    """
    reference = draws[REFERENCE]
    return {
        name: AppliedVariance(
            variance(found, generator=generator),
            effective_sample_size_ratio(reference, found, paired=True, generator=generator),
            squared_distance(found, reference, generator=generator) if name in biased else None,
        )
        for name, found in draws.items()
    }
