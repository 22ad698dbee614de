"""What families of counts share: their relaxation, its derivative, and how a count is found from its noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from relax_rl.distributions.checks import on_host, require_numbers, require_params
from relax_rl.distributions.noise import logistic_noise

__all__ = ["Counts"]

CountsSelf = TypeVar("CountsSelf", bound="Counts")

_LEVELS = 60
"""Steps to a quantile, at most; most take five."""
_BLOCK, _MOST_TERMS = 2**18, 10_000_000
"""Terms of an entropy: so many at once, and at most so many of a row."""
_NATS = 39.0
"""What is left out of a range: the noise reaches e^-37, and tails beyond are of no outcome that it makes."""


@dataclass(frozen=True, eq=False)
class Counts:
    """Independent counts 0, 1, ...; `params` `[*, P]`, samples `[*, P]` in the type of `params`.

    Relaxed, a count is spread evenly over the unit interval around it: with F the distribution function and u uniform,

        z = b + v - 1/2,    b = F^-1(u),    v = (u - F(b - 1)) / p(b),    H(z) = round(z),

    the inverse of F made piecewise linear. It is continuous in u and in the parameters, E[z] = E[b], and its derivative is

        dz = (1 - v) J(b - 1) / p(b) + v J(b) / p(b),    J(b) = -dF(b),

    in closed form: J(b - 1) / p(b) is b for a Poisson variable, at log rates, and J(b) / p(b) the rate. Given b, v is
    uniform and does not move with the parameters, so that dc(z~) = 0 in RELAX. Noise is logistic, u = sigmoid(noise),
    which resolves both tails. A second derivative of z in `params` there is none; estimators need none.

    Whatever takes sums of large terms that cancel is done in float64. Counts up to 4e6 have a z in float32.
    """

    params: Tensor

    def __post_init__(self) -> None:
        require_params(self)

    def with_params(self: CountsSelf, params: Tensor) -> CountsSelf:
        return replace(self, params=params)

    # What a family says of itself

    @property
    def mean(self) -> Tensor:
        """`[*, P]` E[b]."""
        raise NotImplementedError

    @property
    def most(self) -> int | None:
        """The largest count; None where there is none."""
        return None

    def _flows(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """`[*, P]` -dF(b - 1) / p(b) and -dF(b) / p(b), derivatives in `params`."""
        raise NotImplementedError

    def _log_probs(self, b: Tensor) -> Tensor:
        """`[*, P]` log p(b) in float64."""
        raise NotImplementedError

    def _tails_within(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """`[*, P]` F(b) and 1 - F(b) in float64, without graph, for b from 0 to below `most`."""
        raise NotImplementedError

    def _spread(self) -> tuple[Tensor, Tensor]:
        """`[*, P]` standard deviation, and a length on which the upper tail falls by a factor of e at least."""
        raise NotImplementedError

    # What follows from it

    def sample_noise(self, generator: torch.Generator | None = None) -> Tensor:
        require_numbers(self)
        return logistic_noise(tuple(self.params.shape), generator, self.params.device)

    def relax(self, noise: Tensor) -> Tensor:
        z = self._located(noise)
        return z + self._slopes(z) * (self.params - self.params.detach())

    def _located(self, noise: Tensor) -> Tensor:
        with torch.no_grad():
            x = noise.double()
            u, rest = torch.sigmoid(x), torch.sigmoid(-x)
            each = torch.broadcast_tensors(self.params.detach(), u, rest)
            b = _count_quantile(*each, _name(type(self)), float(getattr(self, "total_count", 0.0)))
            below, above, p = self._tails(b - 1)[0], self._tails(b)[1], self._log_probs(b).exp().clamp(min=1e-300)
            v = torch.where(u < 0.5, (u - below) / p, 1.0 - (rest - above) / p).clamp(0.0, 1.0)
            return self._inside(b, b + v - 0.5)

    def _inside(self, b: Tensor, z: Tensor) -> Tensor:
        """z in the type of `params`, within the unit interval around b, so that H(z) = b."""
        b, z = b.to(self.params.dtype), z.to(self.params.dtype)
        infinity = torch.full_like(b, math.inf)
        return z.clamp(torch.nextafter(b - 0.5, infinity), torch.nextafter(b + 0.5, -infinity))

    def _quantile(self, u: Tensor, rest: Tensor) -> Tensor:
        """The least count with F(b) > u, in float64; `rest` is 1 - u. On a CPU, entries that are found are left alone."""
        if not u.numel():
            return torch.zeros_like(u)
        shape, here = u.shape, self.with_params(self.params.detach().expand_as(u).flatten())
        u, rest = u.flatten(), rest.flatten()
        low, high = here._range()
        normal = torch.where(u < 0.5, torch.special.ndtri(u), -torch.special.ndtri(rest))
        at = (here.mean.double() + here._spread()[0].double() * normal).floor().clamp(low, high)
        found, waiting = at.clone(), torch.arange(len(u), device=u.device)
        for level in range(1, _LEVELS):
            low, high, at = here._narrowed(u, rest, low, high, at, halve=level % 3 == 0)
            if not on_host(low):
                found = low
                continue
            done = low >= high
            found[waiting[done]] = low[done]
            if done.all():
                break
            u, rest, low, high, at, waiting = (x[~done] for x in (u, rest, low, high, at, waiting))
            here = here.with_params(here.params[~done])
        return found.reshape(shape)

    def _narrowed(
        self, u: Tensor, rest: Tensor, low: Tensor, high: Tensor, at: Tensor, *, halve: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Narrower bounds of the quantile after a look at one count, and the next one by Newton's method or by halving."""
        (below, above), p = self._tails(at), self._log_probs(at).exp().clamp(min=1e-300)
        missing = torch.where(u < 0.5, u - below, above - rest)  # u - F(at)
        over = missing < 0
        there = over & (missing >= -p)
        low = torch.where(there, at, torch.where(over, low, torch.minimum(at + 1, high)))
        high = torch.where(there, at, torch.where(over, torch.maximum(at - 1, low), high))
        if halve:
            return low, high, ((low + high) / 2).floor()
        steps = (missing.abs() / p).floor()
        return low, high, torch.where(over, at - steps.clamp(min=1.0), at + steps + 1).clamp(low, high)

    def _range(self) -> tuple[Tensor, Tensor]:
        """`[*, P]` the least and the largest count that the noise can reach, in float64, by Bernstein's bounds."""
        with torch.no_grad():
            mean = self.mean.double()
            std, scale = (x.double() for x in self._spread())
            reach = math.sqrt(2 * _NATS) * std
            low, high = (mean - reach - 1.0).floor().clamp(min=0.0), (mean + reach + _NATS * scale + 1.0).ceil()
            return low, high if self.most is None else high.clamp(max=self.most)

    def _tails(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """`_tails_within`, and 0 and 1 below all counts, 1 and 0 from the largest on."""
        inner = b.clamp(min=0.0) if self.most is None else b.clamp(0.0, self.most - 1.0)
        below, above = self._tails_within(inner)
        under = b < 0
        below, above = below.masked_fill(under, 0.0), above.masked_fill(under, 1.0)
        if self.most is None:
            return below, above
        full = b >= self.most
        return below.masked_fill(full, 1.0), above.masked_fill(full, 0.0)

    def _slopes(self, z: Tensor) -> Tensor:
        """`[*, P]` dz / dparams, entry by entry."""
        with torch.no_grad():
            b = self.threshold(z)
            before, after = self._flows(b)
            v = z - b + 0.5
            return (1.0 - v) * before + v * after

    def noise_of(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            b = self.threshold(z).double()
            v, p = z.double() - b + 0.5, self._log_probs(b).exp()
            below, above = self._tails(b - 1)[0], self._tails(b)[1]
            tiny = torch.finfo(torch.float64).tiny
            u, rest = below + v * p, above + (1.0 - v) * p
            return (u.clamp(min=tiny).log() - rest.clamp(min=tiny).log()).to(z.dtype)

    def threshold(self, z: Tensor) -> Tensor:
        return z.detach().round().abs() if self.most is None else z.detach().round().clamp(0.0, self.most)

    def relax_given(self, sample: Tensor, noise: Tensor) -> Tensor:
        """z~, which does not move with the parameters."""
        return self._inside(sample, sample.double() + torch.sigmoid(noise.double()) - 0.5)

    def noise_given(self, sample: Tensor, z: Tensor) -> Tensor:
        v = z.detach().double() - sample.double() + 0.5
        return (v.log() - torch.log1p(-v)).to(z.dtype)

    def relaxed_log_prob(self, z: Tensor) -> Tensor:
        return self._log_probs(self.threshold(z).double()).sum(-1).to(self.params.dtype)

    def log_prob(self, sample: Tensor) -> Tensor:
        """`[*]` log p(b).

        Raises:
            ValueError: when a number is no count of the family; looks at a CPU's numbers alone.
        """
        self._check_counts(sample)
        return self._log_probs(sample.double()).sum(-1).to(self.params.dtype)

    def score(self, sample: Tensor) -> Tensor:
        before, after = self.with_params(self.params.detach())._flows(sample)
        return before - after

    def entropy(self) -> Tensor:
        """`[*]` in nats: a sum over all counts but e^-39 of the mass on either side.

        Raises:
            ValueError: when the counts of a row, from the least to the largest that is likely, are more than ten million.
        """
        if not self.params.numel():
            return self.params.sum(-1)
        low, high = self._range()
        count = int((high - low).max()) + 1
        if count > _MOST_TERMS:
            raise ValueError(
                f"the entropy is a sum over {count:,} counts, expected at most {_MOST_TERMS:,}: give smaller means"
            )
        steps = torch.arange(count, dtype=torch.float64, device=low.device).view(-1, *[1] * low.dim())
        total = torch.zeros_like(self.params[..., 0], dtype=torch.float64)
        for block in steps.split(max(1, _BLOCK // low.numel())):
            log_p = self._log_probs(low + block).clamp(min=-700.0)  # counts beyond the largest one
            total = total - (log_p.exp() * log_p).sum((0, -1))
        return total.to(self.params.dtype)

    def cdf(self, sample: Tensor) -> Tensor:
        """`[*, P]` for each count the probability of at most this much, without graph."""
        return self._tails(sample.double())[0].to(self.params.dtype)

    def soften(self, z: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """`[*, P]` z at a high temperature, round(z) at a low one: staircases of tanh between the counts; not below 0."""
        step = z.floor() + 0.5  # the edge between two counts
        stair: Tensor = step + 0.5 * torch.tanh((z - step) / temperature) / _half_tanh(temperature)
        return stair.clamp(0.0, self.most)

    def embed(self, sample: Tensor) -> Tensor:
        return sample

    def pull_back(self, slope: Tensor, z: Tensor) -> Tensor:
        return slope * self._slopes(z)

    def conditional_weight(self, sample: Tensor, z_tilde: Tensor) -> Tensor:
        return torch.zeros_like(z_tilde)

    def soften_slope(self, relaxed: Tensor, vector: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        half = _half_tanh(temperature)
        t = 2.0 * (relaxed - relaxed.floor() - 0.5) * half
        slope: Tensor = (1.0 - t.square()) / (2.0 * temperature * half) * vector * (relaxed > 0)
        return slope if self.most is None else slope * (relaxed < self.most)

    def _check_counts(self, sample: Tensor) -> None:
        if not on_host(sample) or not sample.numel():
            return
        b = sample.detach()
        wrong = (b < 0) | (b != b.round()) | (b > (math.inf if self.most is None else self.most))
        if wrong.any():
            top = "" if self.most is None else f" to {self.most}"
            raise ValueError(
                f"counts are whole numbers from 0{top or ' on'}, but the sample has {float(b[wrong][0]):g}: give outcomes of "
                "the distribution"
            )


def _name(kind: type[Counts]) -> str:
    """By which a graph knows a family, one of a user's own too."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _every(kind: type[Counts]) -> Iterator[type[Counts]]:
    for child in kind.__subclasses__():
        yield child
        yield from _every(child)


@torch.library.custom_op("relax_rl::count_quantile", mutates_args=())
def _count_quantile(params: Tensor, u: Tensor, rest: Tensor, family: str, total_count: float) -> Tensor:
    """The search of `Counts._quantile` as one operation, of graphs and of maps: its steps would be hundreds of them."""
    of_name = {_name(each): each for each in _every(Counts)}
    options = {"total_count": total_count} if total_count else {}
    return of_name[family](params, **options)._quantile(u, rest).clone()


@_count_quantile.register_fake
def _(params: Tensor, u: Tensor, rest: Tensor, family: str, total_count: float) -> Tensor:
    return torch.empty_like(u)


@_count_quantile.register_vmap
def _(
    info: Any, dims: Any, params: Tensor, u: Tensor, rest: Tensor, family: str, total_count: float
) -> tuple[Tensor, int]:
    moved = [x if dim is None else x.movedim(dim, 0) for x, dim in zip((params, u, rest), dims, strict=False)]
    return _count_quantile(*torch.broadcast_tensors(*moved), family, total_count), 0


def _half_tanh(temperature: Any) -> Any:
    """tanh(1 / (2 temperature)), of a number or a tensor."""
    if isinstance(temperature, Tensor):
        return torch.tanh(0.5 / temperature)
    return math.tanh(0.5 / temperature)
