"""Bounds on the policy's KL divergence from the one that acted, and a target for its entropy, each held by a learned multiplier."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from relax_rl.agents.batch import Batch
from relax_rl.distributions import Bernoulli, Beta, Categorical, DiagGaussian, MultiCategorical, Product, TanhGaussian
from relax_rl.errors import SettingsError
from relax_rl.networks.policies import Policy
from relax_rl.settings.config import AgentConfig

__all__ = ["METRICS", "Multiplier", "Multipliers", "Region", "entropy_and_unit", "entropy_bonus", "region_of"]

METRICS = (
    "policy/kl_exact",
    "policy/outside",
    "policy/kl_multiplier",
    "policy/entropy_reached",
    "policy/entropy_coef",
)
"""What multipliers tell of themselves: those of `learn_bound`, then those of `learn_entropy`."""

_LEAST, _MOST = 1e-4, 1e4
"""Where a multiplier stays: one that was of no use for long would not be back in time from farther out."""
_OF_KL, _OF_ENTROPY = 1.0, 0.01
"""Where multipliers begin; the first as for PPO's penalty (Schulman et al. 2017, section 4)."""
_LEFT = 0.1
"""What is left of the bound at the end of a linear schedule: at a bound of 0 every state would lie outside, and the multiplier,
which goes by the divergence in units of the bound, would stop the policy before the learning rate does."""


@dataclass(frozen=True)
class Region:
    """How far the policy at hand is from the one that acted, state by state.

    Attributes:
        divergence: `[B]` KL(acting policy || policy) in nats, in closed form; that of a Gaussian before its squashing.
        slope: `[B, P]` its gradient at the parameters of the policy's distributions.
    """

    divergence: Tensor
    slope: Tensor

    def outside(self, batch: Batch) -> Tensor:
        """`[B]` bool, which states the policy has moved too far in."""
        assert batch.kl_bound is not None
        return self.divergence >= batch.kl_bound

    def hold(self, ascent: Tensor, batch: Batch, form: Literal["switch", "penalty"]) -> Tensor:
        """`[B, P]` the direction in which parameters move, of the one in which they would without a bound.

        penalty:  g - beta dKL
        switch:   g where KL < bound, -beta dKL elsewhere (Voelcker et al. 2025)
        """
        assert batch.kl_multiplier is not None
        back = -batch.kl_multiplier * self.slope
        if form == "penalty":
            return ascent + back
        return torch.where(self.outside(batch).unsqueeze(-1), back, ascent)

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        """Over the rows, of the divergence, and of those that lie outside."""
        outside = self.outside(batch).to(batch.weight.dtype)
        return {"kl": self.divergence @ batch.weight, "outside": outside @ batch.weight}


def region_of(policy: Policy, batch: Batch, dist: Any) -> Region:
    """The region around the policy that acted.

    Args:
        policy: makes distributions of parameters.
        batch: rows with `old_params`.
        dist: the policy's distributions of these rows, at parameters that ask for a gradient.
    """
    assert batch.old_params is not None
    old: Any = policy.distribution(batch.old_params, batch.mask)
    divergence: Tensor = old.kl_divergence(dist)
    (slope,) = torch.autograd.grad(divergence.sum(), dist.params)
    return Region(divergence.detach(), slope)


def entropy_and_unit(dist: Any) -> tuple[Tensor, Tensor]:
    """The entropy that a target is about, and the unit in which the target is given, `[B]` each, in nats.

    Choices count in units of the entropy of the uniform distribution over what may be chosen; numbers by dimension, squashed
    ones as they are before tanh, where the entropy has no upper end that a target could lie beyond. Both add up in a product.
    """
    if isinstance(dist, Product):
        entropies, units = zip(*(entropy_and_unit(factor) for factor in dist.factors), strict=True)
        return torch.stack(entropies).sum(0), torch.stack(units).sum(0)
    entropy: Tensor = DiagGaussian.entropy(dist) if isinstance(dist, TanhGaussian) else dist.entropy()
    params = dist.params.detach()
    if isinstance(dist, Bernoulli):
        return entropy, math.log(2.0) * params.isfinite().sum(-1).to(params.dtype)
    if isinstance(dist, Categorical | MultiCategorical):
        possible = (dist.log_probs.detach() > -math.inf).sum(-1).clamp(min=1).to(params.dtype).log()
        return entropy, possible if isinstance(dist, Categorical) else possible.sum(-1)
    return entropy, torch.full_like(params[..., 0], params.shape[-1] // 2)


@torch.no_grad()
def entropy_bonus(
    config: AgentConfig, policy: Policy, params: Tensor, mask: Tensor | None, coef: Tensor | float
) -> Tensor:
    """`[B]` what the policy's entropy is worth in each state, in the unit of rewards.

    Args:
        config: says whether the entropy is that of `entropy_and_unit`, as for a learned weight.
        policy: makes distributions of parameters.
        params: `[B, P]` of a rollout's rows.
        mask: `[T, N, W]` what could be chosen, on any device.
        coef: the bonus' weight.
    """
    dist: Any = policy.distribution(params.detach(), None if mask is None else mask.flatten(0, 1).to(params.device))
    return coef * (dist.entropy() if config.entropy_target is None else entropy_and_unit(dist)[0])


class Multiplier:
    """A positive weight of a term that holds a bound: it rises while the bound is broken, and falls while it is kept.

        log weight <- log weight + rate * gap,   gap cut to [-1, 1]

    is dual ascent on the logarithm. The gap is how far beyond the bound things are, in a unit that makes the same rate do for
    any bound.

    Args:
        start: the weight at first.
        rate: the most by which its logarithm moves in a step.
    """

    def __init__(self, start: float, rate: float) -> None:
        self.rate, self.log = rate, math.log(start)
        self._range = min(math.log(_LEAST), self.log), max(math.log(_MOST), self.log)

    @property
    def value(self) -> float:
        return math.exp(self.log)

    def update(self, gap: float) -> None:
        """One step."""
        low, high = self._range
        self.log = min(max(self.log + self.rate * min(max(gap, -1.0), 1.0), low), high)

    def state_dict(self) -> dict[str, Tensor]:
        return {"log": torch.tensor(self.log, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave; ValueError if it is out of range."""
        log = float(state["log"])
        if not self._range[0] <= log <= self._range[1]:
            raise ValueError(
                f"the logarithm of a multiplier is {log:g}, expected {self._range[0]:g} to {self._range[1]:g}"
            )
        self.log = log


class Multipliers:
    """The multipliers of some settings, moved by means over all workers' rows, and so the same on each.

    Args:
        config: which there are.
        policy: whose entropy and divergence they hold.

    Attributes:
        kl, entropy: of the divergence, and of the entropy: the weight of its bonus; None where it is not learned.
        on: whether there is any.

    Raises:
        SettingsError: if no distribution of the policy's kind has the entropy that is asked for.
    """

    def __init__(self, config: AgentConfig, policy: Policy) -> None:
        target, rate = config.entropy_target, config.multiplier_lr
        if target is not None:
            _check_target(target, policy)
        self._bound, self._target, self._coef = config.kl_bound, target, config.entropy_coef
        self.kl = Multiplier(_OF_KL, rate) if math.isfinite(config.kl_bound) else None
        self.entropy = None if target is None else Multiplier(config.entropy_coef or _OF_ENTROPY, rate)
        self.on = bool(self.parts())

    def parts(self) -> dict[str, Multiplier]:
        """Those that there are, by their places in checkpoints."""
        every = {"kl_multiplier": self.kl, "entropy_multiplier": self.entropy}
        return {name: each for name, each in every.items() if each is not None}

    def bounded(self, batch: Batch, factor: float) -> Batch:
        """A rollout's rows with the bound on the divergence, when the schedule has come to `factor`."""
        return replace(batch, kl_bound=batch.weight.new_tensor(self._bound * (_LEFT + (1.0 - _LEFT) * factor)))

    def entropy_coef(self, factor: float) -> float:
        """The weight of the entropy bonus, when the schedule of one that is not learned has come to `factor`."""
        return self._coef * factor if self.entropy is None else self.entropy.value

    def weigh(self, batch: Batch) -> Batch:
        """The rows of a step, with the multipliers as they stand."""
        if self.kl is not None and batch.old_params is not None:
            batch = replace(batch, kl_multiplier=batch.weight.new_tensor(self.kl.value))
        if self.entropy is not None:
            batch = replace(batch, entropy_coef=batch.weight.new_tensor(self.entropy.value))
        return batch

    def learn_entropy(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Let the weight of the entropy bonus learn from a step.

        Args:
            sums: over the rows that it was taken on (see `Gradients.sums`), averaged over the workers.

        Returns:
            What was reached of the target, in its unit, and the weight as it is now, under names of `METRICS`.
        """
        if self.entropy is None:
            return {}
        assert self._target is not None
        entropy, unit = torch.stack([sums["entropy"], sums["entropy_unit"]]).tolist()
        reached = entropy / unit if unit else self._target  # where there is nothing to choose
        self.entropy.update(self._target - reached)
        return dict(zip(METRICS[3:], (reached, self.entropy.value), strict=True))

    def learn_bound(
        self, steps: Sequence[Mapping[str, Tensor]], bound: Tensor | None, *, moved: bool
    ) -> dict[str, float]:
        """Let the multiplier of the divergence learn from the steps of the last pass over a rollout, one after the other.

        Earlier ones are taken closer to the policy that acted, and would have it that the bound is kept when in the end it is
        not; the divergence of 0 at the very first says nothing of the bound.

        Args:
            steps: the sums of each, as for `learn_entropy`.
            bound: scalar, on the divergence.
            moved: whether the policy had moved before the first of these steps.

        Returns:
            The mean divergence, the share of rows outside, and the multiplier as it is now, under names of `METRICS`.
        """
        if self.kl is None or bound is None:
            return {}
        found = torch.stack([torch.stack([each["kl"], each["outside"], each["rows"]]) for each in steps]).tolist()
        most = float(bound)
        for divergence, _, rows in found[0 if moved else 1 :]:
            self.kl.update(divergence / (rows * most) - 1.0 if rows else 0.0)
        divergence, outside, rows = map(math.fsum, zip(*found, strict=True))
        rows = rows or 1.0
        return dict(zip(METRICS[:3], (divergence / rows, outside / rows, self.kl.value), strict=True))


def _check_target(target: float, policy: Policy) -> None:
    discrete = not policy.continuous
    if discrete and not 0.0 <= target < 1.0:
        raise SettingsError(
            f"entropy_target is {target:g}, expected at least 0 and below 1 for discrete actions, in units of the entropy of "
            "the uniform distribution"
        )
    most = _most(policy.distribution(torch.zeros(1, policy.num_params)))
    if target >= most:
        raise SettingsError(
            f"entropy_target is {target:g}, expected below {most:.3g} with beta distributions, whose entropy is that on (0, 1)"
        )


def _most(dist: Any) -> float:
    """The most that an entropy can be, in its unit."""
    if isinstance(dist, Product):
        units = [float(entropy_and_unit(factor)[1]) for factor in dist.factors]
        most = sum(unit * _most(factor) for factor, unit in zip(dist.factors, units, strict=True))
        return most / sum(units) if any(units) else 1.0  # choices among one each have none
    if isinstance(dist, DiagGaussian):
        return math.inf
    return 0.0 if isinstance(dist, Beta) else 1.0
