"""The policy: a torso, and a head that gives the parameters of an action distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relax_rl.distributions import Bernoulli, Categorical, DiagGaussian, Distribution, MultiCategorical, TanhGaussian
from relax_rl.networks.spaces import ActionEncoder
from relax_rl.networks.torsos import Torso, orthogonal

__all__ = ["Policy"]

# State-dependent log standard deviations are kept in this range: outside it a density over- or underflows float32.
_LOG_STD_RANGE = (-10.0, 2.0)


class Policy(nn.Module):
    """A torso and a head: observations to the parameters of the action distribution.

    The head's weights start at 1/100 of the usual scale, so that a fresh policy is close to uniform (or, for
    continuous actions, centred).

    Args:
        torso: reads encoded observations.
        actions: names the distribution and its sizes.
        log_std_init: initial log standard deviation of a Gaussian.
        ordinal_std_init: initial standard deviation of each of several choices that are in order, around the middle, the
            first standing for -1 and the last for 1; inf for choices in no order.
        state_dependent_std: whether it is an output of the network or a free parameter.
        squash: squash Gaussian actions by tanh.
    """

    def __init__(
        self,
        torso: Torso,
        actions: ActionEncoder,
        *,
        log_std_init: float = 0.0,
        ordinal_std_init: float = math.inf,
        state_dependent_std: bool = False,
        squash: bool = False,
    ) -> None:
        super().__init__()
        self.torso, self.kind, self.sizes, self.squash = torso, actions.kind, actions.sizes, squash
        size = sum(actions.sizes)
        gaussian = actions.kind == "gaussian"
        self.state_dependent_std = gaussian and state_dependent_std
        self.head = orthogonal(nn.Linear(torso.num_features, 2 * size if self.state_dependent_std else size), 0.01)
        with torch.no_grad():
            if self.state_dependent_std:
                self.head.bias[size:] = log_std_init
            elif actions.kind == "multi_categorical":
                self.head.bias.copy_(torch.cat([_ordinal_logits(n, ordinal_std_init) for n in actions.sizes]))
        self.log_std = nn.Parameter(torch.full((size,), log_std_init)) if gaussian and not state_dependent_std else None

    @property
    def num_params(self) -> int:
        """P, the number of parameters of one action distribution."""
        return sum(self.sizes) * (2 if self.kind == "gaussian" else 1)

    def forward(self, obs: Tensor) -> Tensor:
        """`[B, P]` parameters from `[B, ...]` observations."""
        return self.params(self.torso(obs))

    def params(self, features: Tensor) -> Tensor:
        """`[B, P]` parameters from the torso's `[B, F]` features."""
        # As in MLP, the module's call would cost more.
        return self.params_from(F.linear(features, self.head.weight, self.head.bias))

    def params_from(self, out: Tensor) -> Tensor:
        """`[B, P]` parameters from what the head gives."""
        if self.log_std is not None:
            return torch.cat([out, self.log_std.expand_as(out)], -1)
        if self.state_dependent_std:
            mean, log_std = out.chunk(2, -1)
            return torch.cat([mean, log_std.clamp(*_LOG_STD_RANGE)], -1)
        return out

    def masked(self, params: Tensor, mask: Tensor | None) -> Tensor:
        """`[B, P]` parameters at which what is not allowed is impossible: logits of -inf, and of inf for a bit that must be 1.

        Args:
            params: `[B, P]`.
            mask: `[B, W]` bool as rows of `ActionMasks`; None leaves the parameters as they are.
        """
        if mask is None:
            return params
        if self.kind == "bernoulli":
            zero, one = mask.unflatten(-1, (-1, 2)).unbind(-1)
            return params.masked_fill(~one, -math.inf).masked_fill(~zero, math.inf)
        return params.masked_fill(~mask, -math.inf)

    def distribution(self, params: Tensor, mask: Tensor | None = None) -> Distribution:
        """The action distribution at `params` `[B, P]`, of what `mask` allows; see `masked`."""
        params = self.masked(params, mask)
        if self.kind == "categorical":
            return Categorical(params)
        if self.kind == "multi_categorical":
            return MultiCategorical(params, self.sizes)
        if self.kind == "bernoulli":
            return Bernoulli(params)
        return TanhGaussian(params) if self.squash else DiagGaussian(params)


def _ordinal_logits(choices: int, std: float) -> Tensor:
    """`[choices]` log-density, up to a constant, of a centred Gaussian at equal steps from -1 to 1."""
    return -0.5 * (torch.linspace(-1.0, 1.0, choices) / std).square()
