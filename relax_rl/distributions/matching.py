"""A one-to-one assignment of items to places."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from relax_rl.distributions.checks import on_host, require_params
from relax_rl.distributions.discrete import FAR, one_hot
from relax_rl.distributions.noise import gumbel_log_density, gumbel_noise

__all__ = ["Matching"]


@dataclass(frozen=True, eq=False)
class Matching:
    """A matching of `n` rows with `n` columns: the assignment of the largest sum of perturbed logits (Mena et al. 2018).

    `params`, z and noise are `[*, n n]`, row after row, z = logits + Gumbel noise, and H is the best assignment of z, found
    by `scipy.optimize.linear_sum_assignment` on the host. Samples are int64 `[*, n]`, the column of each row, or with
    `one_hot` the permutation matrix `[*, n n]`, which is what `embed` gives. `soften` is Sinkhorn's operator on
    z / temperature, `iterations` times all columns and all rows normalised in turn, rows last: doubly stochastic in the limit
    of many, and the matrix of H(z) in that of a low temperature as well.

    The probability of a matching has no tractable form, and neither has z given one: `concrete` and `straight_through`
    with a temperature are all that is defined, both biased. `PlackettLuce` has unbiased estimates.

    A logit of -inf forbids a pair, as long as a matching without it is left.
    """

    params: Tensor
    iterations: int = 20
    one_hot: bool = False

    def __post_init__(self) -> None:
        require_params(self)
        width = self.params.shape[-1]
        if self._size**2 != width:
            raise ValueError(
                f"params of Matching have a last dimension of {width}, expected a square: n rows of n columns"
            )

    def with_params(self, params: Tensor) -> Matching:
        return replace(self, params=params)

    @property
    def _size(self) -> int:
        return math.isqrt(self.params.shape[-1])

    @property
    def _locations(self) -> Tensor:
        return self.params.clamp(min=-FAR)

    def require_possible(self) -> None:
        """Raises ValueError where masked logits leave no matching, as sampling does; on a CPU, in eager code."""
        params = self.params.detach()
        if not on_host(params) or not (params == -math.inf).any():
            return
        best = self._one_hot(replace(self, one_hot=False).threshold(self._locations))
        if (params.masked_fill(best == 0, 0.0) == -math.inf).any():
            raise ValueError("masked logits leave a row of params no matching: allow one column for each of its rows")

    def sample_noise(self, generator: torch.Generator | None = None) -> Tensor:
        self.require_possible()
        return gumbel_noise(tuple(self.params.shape), generator, self.params.device)

    def relax(self, noise: Tensor) -> Tensor:
        return self._locations + noise

    def noise_of(self, z: Tensor) -> Tensor:
        return (z - self._locations).detach()

    def threshold(self, z: Tensor) -> Tensor:
        """The best assignment of z.

        Raises:
            ImportError: when scipy is not installed.
        """
        solve = _solver()
        n = self._size
        costs = z.detach().double().cpu().reshape(-1, n, n).numpy()
        found = torch.tensor([solve(cost, maximize=True)[1].tolist() for cost in costs], dtype=torch.int64)
        columns = found.reshape(*z.shape[:-1], n).to(z.device)
        return self._one_hot(columns) if self.one_hot else columns

    def relaxed_log_prob(self, z: Tensor) -> Tensor:
        return gumbel_log_density(z - self._locations).sum(-1)

    def soften(self, z: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        level = (z / temperature).unflatten(-1, (self._size, self._size))
        for _ in range(self.iterations):
            level = level - level.logsumexp(-2, keepdim=True)
            level = level - level.logsumexp(-1, keepdim=True)
        soft: Tensor = level.exp().flatten(-2)
        return soft

    def embed(self, sample: Tensor) -> Tensor:
        return sample if self.one_hot else self._one_hot(sample)

    def log_prob(self, sample: Tensor) -> NoReturn:
        """Raises ValueError: it is a sum over all ways to perturb the logits."""
        raise ValueError(f"the probability {_INTRACTABLE}")

    def score(self, sample: Tensor) -> NoReturn:
        """Raises ValueError, as `log_prob`."""
        raise ValueError(f"the probability {_INTRACTABLE}")

    def relax_given(self, sample: Tensor, noise: Tensor) -> NoReturn:
        """Raises ValueError, as `log_prob`."""
        raise ValueError(f"z given the outcome {_INTRACTABLE}")

    def _one_hot(self, columns: Tensor) -> Tensor:
        return one_hot(columns, self._size, self.params.dtype).flatten(-2)


_INTRACTABLE = (
    "of a Matching has no tractable form: use concrete or straight_through with a temperature, or PlackettLuce for an "
    "unbiased estimate"
)


def _solver() -> Any:
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("Matching rounds by scipy, which is not installed: pip install scipy") from error
    return linear_sum_assignment
