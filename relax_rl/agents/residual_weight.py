"""How much of a critic's residual enters an estimate: the share of its gradient that can be told from noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relax_rl.agents.batch import Batch
from relax_rl.agents.estimates import AgentEstimator, Experience
from relax_rl.agents.networks import Networks
from relax_rl.compute.derivatives import pull_back
from relax_rl.critics import relative_to

__all__ = ["METRIC", "ResidualWeight", "agreement", "gradients_of_groups"]

METRIC = "surrogate/residual_weight"


class ResidualWeight:
    """w of g = w S + P, with S what a critic's residual brings in, and P the critic's own gradient.

    With b = E[S], the error at w of the mean over a rollout, for the gradient that S + P is unbiased for, is

        MSE(w) = (1 - w)^2 |b|^2 + w^2 V_S + 2 w C + V_P,    V_S = E|S - b|^2,  C = E[(S - b) . (P - E[P])],

    and w = (|b|^2 - C) / (|b|^2 + V_S), between 0 and 1, makes it least. Numerator and denominator are running means over
    rollouts before the one w is used on, of what is unbiased for each, in units of the rollout's own mean squared norm of what
    the residual brings into a row: residuals shrink by orders of magnitude as a critic learns, and the first rollouts would
    otherwise decide for all later ones.

    Args:
        decay: of the means, by rollout.
    """

    def __init__(self, decay: float = 0.99) -> None:
        self.decay = decay
        self.agreeing = 0.0
        self.whole = 0.0

    @property
    def value(self) -> float:
        """w; 1 until a critic has left anything."""
        return min(max(self.agreeing / self.whole, 0.0), 1.0) if self.whole > 0.0 else 1.0

    def update(self, *, agreeing: float, whole: float, unit: float) -> None:
        """Take in what `agreement` says of a rollout; nothing where there is but one group, or no residual."""
        if math.isfinite(agreeing) and math.isfinite(whole) and unit > 0.0:
            self.agreeing = self.decay * self.agreeing + (1.0 - self.decay) * agreeing / unit
            self.whole = self.decay * self.whole + (1.0 - self.decay) * whole / unit

    def state_dict(self) -> dict[str, Tensor]:
        return {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in ("agreeing", "whole")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.agreeing, self.whole = float(state["agreeing"]), float(state["whole"])


def gradients_of_groups(
    networks: Networks, batch: Batch, estimator: AgentEstimator, params: Tensor, dist: Any, seen: Experience
) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
    """What each half of the environments adds to the gradient's mean: S by what the residual brings in, P by the critic's own.

    Args:
        networks: whose policy's gradients these are.
        batch: the rows of a rollout, with `group`, before anything has learned from them.
        estimator: affine in w.
        params: `[B, P]` of the policy, with their graph, which is kept.
        dist: at these.
        seen: what an estimate sees of the rows.

    Returns:
        The gradients, the share of rows in the first group as `first`, and the mean over rows of the squared norm of what the
        residual brings in, at the parameters of the distributions, as `unit`.
    """
    assert batch.group is not None
    surrogate = relative_to(networks.surrogate, seen.value)
    alone, unbiased = (
        estimator.estimate(replace(seen, residual_weight=w), dist, surrogate).detach() for w in (0.0, 1.0)
    )
    first, of = batch.group.to(alone.dtype), {}
    share = batch.weight / (
        batch.shard.divisor if batch.advantage_unit is None else batch.shard.divisor * batch.advantage_unit
    )
    residual = unbiased - alone
    for name, rows in (("residual", residual), ("critic", alone)):
        for number, own in enumerate((first, 1.0 - first)):
            pulled = rows * (share * own).unsqueeze(-1)
            found = pull_back([params], [pulled], networks.parameters_of("policy"), keep_graph=True)
            of[f"policy/{name}/{number}"] = found
    unit = (share * residual.norm(dim=-1)).square().sum() * batch.shard.divisor
    return of, {"first": first.sum() / batch.shard.divisor, "unit": unit}


def agreement(of: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Unbiased for |b|^2 - C (`agreeing`) and for |b|^2 + V_S (`whole`), from two groups of independent environments.

    With f and 1 - f their shares, S = s_0 + s_1, P = p_0 + p_1, E[s_0] = f b and E[s_1] = (1 - f) b:

        |b|^2 = E[s_0 . s_1] / (f (1 - f)),    b . E[P] = E[s_0 . p_1 + s_1 . p_0] / (2 f (1 - f))

    Args:
        of: flat gradients, averaged over the workers, as `gradients_of_groups` names them.
        sums: f as `first`; `unit` goes on as it is.
    """
    s_0, s_1, p_0, p_1 = of.values()
    pairs = sums["first"] * (1.0 - sums["first"])
    bias = torch.dot(s_0, s_1) / pairs
    covariance = torch.dot(s_0 + s_1, p_0 + p_1) - (torch.dot(s_0, p_1) + torch.dot(s_1, p_0)) / (2.0 * pairs)
    return {"agreeing": bias - covariance, "whole": (s_0 + s_1).square().sum(), "unit": sums["unit"]}
