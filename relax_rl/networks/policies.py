"""The policy: a torso, and a head that gives the parameters of an action distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relax_rl.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    DiagGaussian,
    Distribution,
    MultiCategorical,
    Product,
    TanhGaussian,
)
from relax_rl.errors import SettingsError
from relax_rl.networks.actions import num_continuous, ordered_choices
from relax_rl.networks.layers import orthogonal
from relax_rl.networks.spaces import ActionEncoder
from relax_rl.networks.torsos import Torso

__all__ = ["Policy"]

# State-dependent log standard deviations are kept in this range: outside it a density over- or underflows float32.
_LOG_STD_RANGE = (-10.0, 2.0)


class Policy(nn.Module):
    """A torso and a head: observations to the parameters of the action distribution.

    The head's weights start small, so that a fresh policy is close to uniform (or, for continuous actions, centred).

    Args:
        torso: reads encoded observations.
        actions: names the distribution and its sizes.
        log_std_init: initial log standard deviation of a Gaussian.
        ordinal_std_init: initial standard deviation of each of several choices that are in order, around the middle, the
            first standing for -1 and the last for 1; inf for choices in no order.
        state_dependent_std: whether it is an output of the network or a free parameter.
        squash: squash Gaussian actions by tanh.
        beta: continuous actions are beta variables in the place of Gaussians.
        head_scale: of the head's orthogonal weights at the start.
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
        beta: bool = False,
        head_scale: float = 0.01,
    ) -> None:
        super().__init__()
        self.torso, self.sizes, self.squash = torso, actions.sizes, squash
        self.kind = "beta" if beta and actions.kind == "gaussian" else actions.kind
        size, self.continuous = sum(actions.sizes), num_continuous(actions)
        self.beta, gaussian = beta and self.continuous > 0, self.continuous > 0 and not beta
        self.state_dependent_std = gaussian and state_dependent_std
        if self.state_dependent_std and not _LOG_STD_RANGE[0] <= log_std_init <= _LOG_STD_RANGE[1]:
            raise SettingsError(
                f"log_std_init is {log_std_init:g}, expected {_LOG_STD_RANGE[0]:g} to {_LOG_STD_RANGE[1]:g} beside "
                "state_dependent_std: the network's log standard deviations are clipped there"
            )
        doubled = self.state_dependent_std or self.beta
        self.head = orthogonal(nn.Linear(torso.num_features, size + self.continuous * doubled), head_scale)
        choices = ordered_choices(actions)
        with torch.no_grad():
            if self.state_dependent_std:
                self.head.bias[self.continuous : 2 * self.continuous] = log_std_init
            if choices:
                logits = [_ordinal_logits(n, ordinal_std_init if ordered else math.inf) for n, ordered in choices]
                self.head.bias[-sum(n for n, _ in choices) :] = torch.cat(logits)
        free = gaussian and not state_dependent_std
        self.log_std = nn.Parameter(torch.full((self.continuous,), log_std_init)) if free else None
        self._hybrid = self._product() if actions.kind == "hybrid" else None

    @property
    def num_params(self) -> int:
        """P, the number of parameters of one action distribution."""
        return sum(self.sizes) + self.continuous

    def forward(self, obs: Tensor) -> Tensor:
        """`[B, P]` parameters from `[B, ...]` observations."""
        return self.params(self.torso(obs))

    def params(self, features: Tensor) -> Tensor:
        """`[B, P]` parameters from the torso's `[B, F]` features."""
        # As in MLP, the module's call would cost more.
        return self.params_from(F.linear(features, self.head.weight, self.head.bias))

    def params_from(self, out: Tensor) -> Tensor:
        """`[B, P]` parameters from what the head gives."""
        if self.kind == "hybrid":
            return self._hybrid_params(out)
        if self.log_std is not None:
            return torch.cat([out, self.log_std.expand_as(out)], -1)
        if self.state_dependent_std:
            mean, log_std = out.chunk(2, -1)
            return torch.cat([mean, log_std.clamp(*_LOG_STD_RANGE)], -1)
        return out

    def _hybrid_params(self, out: Tensor) -> Tensor:
        """The same where choices follow the numbers."""
        numbers = self.continuous
        if self.log_std is not None:
            return torch.cat([out[..., :numbers], self.log_std.expand(*out.shape[:-1], -1), out[..., numbers:]], -1)
        if self.state_dependent_std:
            mean, log_std, rest = out.tensor_split((numbers, 2 * numbers), -1)
            return torch.cat([mean, log_std.clamp(*_LOG_STD_RANGE), rest], -1)
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
        if self.kind == "hybrid":  # whose numbers come first, and have no mask
            numbers, choices = params.tensor_split((params.shape[-1] - mask.shape[-1],), -1)
            return torch.cat([numbers, choices.masked_fill(~mask, -math.inf)], -1)
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
        if self._hybrid is not None:
            return self._hybrid.with_params(params)
        return self._of_numbers(params)

    def _of_numbers(self, params: Tensor) -> Distribution:
        if self.beta:
            return Beta(params)
        return TanhGaussian(params) if self.squash else DiagGaussian(params)

    def _product(self) -> Product:
        """The distribution of numbers and choices; its parameters do not matter."""
        numbers = torch.zeros((1, 2 * self.continuous), device="cpu")
        choices = torch.zeros((1, sum(self.sizes[1:])), device="cpu")
        return Product.of(self._of_numbers(numbers), MultiCategorical(choices, self.sizes[1:]))


def _ordinal_logits(choices: int, std: float) -> Tensor:
    """`[choices]` log-density, up to a constant, of a centred Gaussian at equal steps from -1 to 1."""
    return -0.5 * (torch.linspace(-1.0, 1.0, choices) / std).square()
