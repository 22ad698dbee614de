"""The variance of an agent's policy gradient at frozen parameters, for several estimators on the same rollouts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from relax_rl.agents import AGENTS, ActorCritic
from relax_rl.agents.batch import Batch
from relax_rl.agents.estimated import Estimated
from relax_rl.agents.marginal import Marginal
from relax_rl.agents.minibatches import noise_for
from relax_rl.agents.surrogate import SurrogateActorCritic
from relax_rl.envs import VectorEnvs
from relax_rl.errors import SettingsError
from relax_rl.estimators.diagnostics import Interval, effective_sample_size_ratio, variance

__all__ = [
    "FIT_MINIBATCH",
    "FIT_ROWS",
    "AppliedVariance",
    "Contender",
    "Fitting",
    "applied_gradients",
    "applied_variances",
    "contenders",
    "fit_lr",
    "fit_steps",
    "policy_gradient",
    "rollouts_kept",
    "some_rows",
]

REFERENCE = "a2c"
"""The estimator that the others are measured against."""

STATE_PART = "state part"
"""Added to the name of a contender that takes its surrogate for a baseline of the state alone."""

_MOST_BYTES = 3 * 2**30
_ACTIONS_AVERAGED = 16
FIT_ROWS, FIT_MINIBATCH = 20_000, 512
"""Rows, the latest ones, that a surrogate is fitted on at a time, and rows in each of its steps."""
_FIT_STEPS, _FIT_PASSES, _FIT_LR = 10_000, 40, 3e-3
"""Steps in all, passes over the rows at most, and the learning rate that they start with."""


@dataclass(frozen=True)
class Contender:
    """A way to estimate an agent's gradient.

    Attributes:
        name: what it is called in results.
        estimate: a batch to its `[B, P]` gradients at the distribution's parameters, affine in the advantage.
        fit: trains its surrogate, if it has one that is to be trained, on a batch.
    """

    name: str
    estimate: Callable[[Batch], Tensor]
    fit: Callable[[Batch], None] | None = None


@dataclass(frozen=True)
class AppliedVariance:
    """Variance of the gradient that an update would apply, over independent rollouts.

    Attributes:
        variance: trace of the covariance over the parameters of the policy.
        ratio: to the variance of A2C's gradient from the same rollouts.
    """

    variance: Interval
    ratio: Interval


def fit_steps(rows: int, rollouts: int) -> int:
    """How many steps a surrogate takes after each of so many rollouts of so many rows.

    10,000 in all, but not more than 40 passes over the rows.
    """
    return min(math.ceil(_FIT_STEPS / rollouts), math.ceil(_FIT_PASSES * rows / FIT_MINIBATCH))


def fit_lr(seen: int, rollouts: int) -> float:
    """Learning rate after `seen` of all rollouts: from 3e-3 down to zero, so that the fit comes to rest."""
    return _FIT_LR * max(0.0, 1.0 - seen / rollouts)


def rollouts_kept(rows: int) -> int:
    """How many of the latest rollouts of so many rows a surrogate is fitted on at a time."""
    return max(1, FIT_ROWS // rows)


def contenders(agent: ActorCritic, *, fit_batches: int, seed: int = 0) -> list[Contender]:
    """The estimators that fit the agent's actions, each with a surrogate of its own where it has one.

    After each of these stands the same surrogate averaged over actions, as a baseline of the state: what the first
    gains beyond it is owed to the dependence on the action, the rest makes up for errors of V.

    Args:
        agent: whose surrogate, if it has one, enters as it stands.
        fit_batches: rollouts of the frozen policy on which surrogates will be trained for further contenders, which
            start from the agent's own surrogate if it is of their kind, else from nothing; 0 leaves them out.
        seed: of fresh surrogates and of the noise of relaxations.
    """
    found = [Contender(name, _estimates(_twin(agent, name, seed))) for name in ("reinforce", REFERENCE)]
    if isinstance(agent, SurrogateActorCritic):
        own = _twin(agent, agent.name, seed)
        found += [Contender(agent.name, _estimates(own)), _state_part(agent.name, own, seed)]
    for name, kind in AGENTS.items():
        if not fit_batches or not issubclass(kind, SurrogateActorCritic) or agent.actions.kind not in kind.action_kinds:
            continue
        try:
            twin = _twin(agent, name, seed)
        except SettingsError:  # too many actions to ask the surrogate at each
            continue
        assert isinstance(twin, SurrogateActorCritic)
        fitting = f"{name}, fitted"
        for whole in (
            Contender(fitting, _estimates(twin), Fitting(twin, fit_batches)),
            _state_part(fitting, twin, seed),
        ):
            found.append(replace(whole, estimate=_unscaled(whole.estimate)))
    return found


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
        progress: told the number of rollouts done so far.

    Returns:
        `[num_batches, |theta|]` gradients of the expected return, by name.

    Raises:
        SettingsError: when these gradients would not fit into memory.
    """
    theta = list(agent.policy.parameters())
    size = 4 * sum(x.numel() for x in theta) * len(entrants)
    if num_batches * size > _MOST_BYTES:
        raise SettingsError(
            f"{num_batches} gradients of this policy by {len(entrants)} estimators take "
            f"{num_batches * size / 2**30:.1f} GiB; use at most {_MOST_BYTES // size} batches"
        )
    collector = agent.collector(envs)
    draws: dict[str, list[Tensor]] = {entrant.name: [] for entrant in entrants}
    for done in range(fit_batches + num_batches):
        batch, params, _ = agent.batch(agent.collect(collector))
        for entrant in entrants:
            if done >= fit_batches:
                draws[entrant.name].append(policy_gradient(entrant.estimate(batch), batch.weight, params, theta))
            elif entrant.fit is not None:
                entrant.fit(batch)
        progress(done + 1)
    return {name: torch.stack(found) for name, found in draws.items()}


def policy_gradient(estimate: Tensor, weight: Tensor, params: Tensor, theta: Sequence[Tensor]) -> Tensor:
    """`[|theta|]` what an update would apply: the mean of `[B, P]` estimates over rows, pulled back to the policy."""
    pulled = estimate.detach() * (weight / len(weight)).unsqueeze(-1)
    gradients = torch.autograd.grad(params, theta, pulled, retain_graph=True)
    return torch.cat([x.flatten() for x in gradients])


def applied_variances(
    draws: Mapping[str, Tensor], *, generator: torch.Generator | None = None
) -> dict[str, AppliedVariance]:
    """Variance of each contender's gradient, and its ratio to A2C's, from `applied_gradients`."""
    reference = draws[REFERENCE]
    return {
        name: AppliedVariance(
            variance(found, generator=generator),
            effective_sample_size_ratio(reference, found, paired=True, generator=generator),
        )
        for name, found in draws.items()
    }


def _twin(agent: ActorCritic, name: str, seed: int) -> ActorCritic:
    """Another kind of agent with the same settings, with the surrogate of `agent` if both are of one kind."""
    twin = AGENTS[name](agent.observation_space, agent.action_space, seed=seed, config=agent.config)
    if isinstance(twin, SurrogateActorCritic) and isinstance(agent, SurrogateActorCritic) and twin.name == agent.name:
        twin.surrogate.load_state_dict(agent.surrogate.state_dict())
    return twin


def _estimates(twin: ActorCritic) -> Callable[[Batch], Tensor]:
    return lambda batch: twin.estimate(batch).grad


def _unscaled(estimate: Callable[[Batch], Tensor]) -> Callable[[Batch], Tensor]:
    """With all of a surrogate, where the agent that acts takes in a fraction of its own."""
    return lambda batch: estimate(replace(batch, control_scale=None))


def _state_part(name: str, twin: ActorCritic, seed: int) -> Contender:
    """The surrogate's mean over actions, as a baseline: g = (A - E_a c^(s, a)) dlog pi(a | s)."""
    assert isinstance(twin, SurrogateActorCritic)
    surrogate = twin.surrogate
    generator = torch.Generator(twin.device)

    @torch.no_grad()
    def estimate(batch: Batch) -> Tensor:
        total = torch.zeros_like(batch.advantage)
        generator.manual_seed(seed + 1)  # the same at every call, for the estimate has to be affine in the advantage
        for _ in range(_ACTIONS_AVERAGED):  # drawn apart from the actions taken, so that nothing is biased
            z = batch.dist.relax(batch.dist.sample_noise(generator))
            if twin.name == Marginal.name:
                asked = batch.dist.embed(batch.dist.threshold(z))
            else:
                asked = batch.dist.soften(z, surrogate.temperature)
            total += surrogate(batch.features, asked)
        baseline = total / _ACTIONS_AVERAGED
        if batch.control_scale is not None:
            baseline = batch.control_scale * baseline
        return replace(batch, advantage=batch.advantage - baseline).a2c_gradient

    return Contender(f"{name}, {STATE_PART}", estimate)


class Fitting:
    """Trains a twin's surrogate on the rollouts of a frozen policy: several steps after each, from the latest rows.

    Args:
        twin: whose surrogate learns, at a learning rate of its own.
        rollouts: that there will be.
        estimate: whose variance it learns to lower; the twin's own by default.
        draw: picks the rows of a step, by their numbers among so many, oldest first; some at random by default.
    """

    def __init__(
        self,
        twin: SurrogateActorCritic,
        rollouts: int,
        *,
        estimate: Callable[[Batch], Estimated] | None = None,
        draw: Callable[[int, torch.Generator], Tensor] | None = None,
    ) -> None:
        self.twin, self.rollouts, self.seen = twin, rollouts, 0
        self.estimate, self.draw = estimate or twin.estimate, draw or some_rows
        self.kept: deque[Batch] = deque()

    def __call__(self, batch: Batch) -> None:
        twin, generator = self.twin, self.twin.generator
        self.kept.append(batch)
        while len(self.kept) > rollouts_kept(len(batch.weight)):
            self.kept.popleft()
        params = torch.cat([each.dist.params.detach() for each in self.kept])
        features, action, advantage, weight = (
            torch.cat([getattr(each, name) for each in self.kept])
            for name in ("features", "action", "advantage", "weight")
        )
        twin.surrogate_optimizer.lr = fit_lr(self.seen, self.rollouts)
        self.seen += 1
        for _ in range(fit_steps(len(batch.weight), self.rollouts)):
            index = self.draw(len(weight), generator)
            dist = batch.dist.with_params(params[index].requires_grad_())
            part = replace(
                batch,
                features=features[index],
                action=action[index],
                noise=noise_for(dist, action[index], generator),
                advantage=advantage[index],
                return_=torch.full_like(advantage[index], math.nan),  # V is fitted by nobody here
                weight=weight[index],
                dist=dist,
                control_scale=None,
            )
            twin.train_surrogate(part, self.estimate(part))


def some_rows(rows: int, generator: torch.Generator) -> Tensor:
    """`[FIT_MINIBATCH]` numbers of rows for a step, with repetition."""
    return torch.randint(rows, (FIT_MINIBATCH,), generator=generator, device=generator.device)
