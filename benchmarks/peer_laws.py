"""Laws of published code beside those of this package: outcomes, relaxed samples, and z given an outcome.

Where a formula can be given the same noise on both sides, the largest difference is reported, in float64. Where a peer draws by
itself, a p-value: of chi-square on the counts of outcomes against exact probabilities, or the smallest of Kolmogorov and
Smirnov's over coordinates and mixtures, times their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from scipy import stats
from torch import Tensor

from benchmarks.peer_code import on_cpu
from relax_rl.distributions import Bernoulli, Categorical, PlackettLuce, Poisson, Subset
from relax_rl.distributions.set_integral import log_leave_out_ratios
from relax_rl.distributions.subset import log_odds
from relax_rl.estimators import relax

__all__ = ["Law", "laws"]

ROWS = 20_000
LOGITS = torch.tensor([0.4, -0.7, 1.1, 0.0])
CLOSE, UNLIKELY = 1e-6, 1e-4


@dataclass(frozen=True, kw_only=True)
class Law:
    """One comparison.

    Attributes:
        who: the peer.
        what: is compared.
        measure: "largest difference" or "p-value".
        value: of it.
        equal: whether the laws are found equal: a difference below 1e-6, a p-value above 1e-4.
    """

    who: str
    what: str
    measure: str
    value: float

    @property
    def equal(self) -> bool:
        return self.value < CLOSE if self.measure == "largest difference" else self.value > UNLIKELY


Found = list[tuple[str, str, float]]


def laws(peers: Mapping[str, Any]) -> list[Law]:
    """Every comparison with the peers that are there."""
    every: dict[str, Callable[[Any], Found]] = {
        "pytorch-pl-variance-reduction": _plackett_luce,
        "estimating-gradients-without-replacement": _unordered,
        "stochastic-beam-search": _beam_search,
        "subsets": _subsets,
        "relaxit": _relaxit,
        "storchastic": _storchastic,
    }
    return [
        Law(who=name, what=what, measure=measure, value=value)
        for name, compare in every.items()
        if name in peers
        for what, measure, value in compare(peers[name])
    ]


def _difference(what: str, left: Tensor, right: Tensor) -> tuple[str, str, float]:
    return what, "largest difference", float((left - right).abs().max())


def _same_sample(what: str, left: Tensor, right: Tensor) -> tuple[str, str, float]:
    """Two samples `[R, D]` of continuous variables, by coordinates, differences of neighbours and mixtures."""
    mixture = torch.randn(3, left.shape[-1], generator=torch.Generator().manual_seed(10), dtype=torch.float64)
    left, right = (torch.cat([x, x.diff(dim=-1), x @ mixture.T], -1) for x in (left.double(), right.double()))
    values = [stats.ks_2samp(x.numpy(), y.numpy(), method="asymp").pvalue for x, y in zip(left.T, right.T, strict=True)]
    return what, "p-value", min(1.0, float(min(values)) * len(values))


def _counts(what: str, index: Tensor, probs: Tensor) -> tuple[str, str, float]:
    """Outcomes `[R]`, by number, against exact probabilities `[M]`."""
    seen = torch.bincount(index, minlength=len(probs)).double().numpy()
    return (
        what,
        "p-value",
        float(stats.chisquare(seen, len(index) * probs.double().numpy() / float(probs.sum())).pvalue),
    )


def _which(sample: Tensor, table: Tensor) -> Tensor:
    """The number `[R]` of each of `[R, ...]` in a list of outcomes `[M, ...]`."""
    return (sample.unsqueeze(1) == table).flatten(2).all(-1).long().argmax(-1)


def _of(logits: Tensor, rows: int = ROWS) -> Tensor:
    return logits.expand(rows, -1)


def _plackett_luce(peer: Any) -> Found:
    code, n = peer.estimators, len(LOGITS)
    dist = PlackettLuce(_of(LOGITS).double())
    orders = PlackettLuce(LOGITS[None].double()).support()
    exact = dist.with_params(dist.params[: len(orders)]).log_prob(orders)
    theirs = peer.distributions.PlackettLuce(dist.params[: len(orders)]).log_prob(orders)
    found = [_difference("log-probabilities of all orders", theirs, exact)]
    drawn = peer.distributions.PlackettLuce(LOGITS.double()).sample(ROWS)
    found.append(_counts("orders that it draws", _which(drawn, orders), exact.exp()))
    u, v = (torch.rand(ROWS, n, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (1, 2))
    z = code.to_z(dist.params, u).detach()
    b = code.to_b(z)
    by_item = (-(-v.log()).log()).gather(-1, b.argsort(-1))
    given = code._to_z_tilde(dist.params, b, v)
    found.append(_difference("z given the order, same noise", given, dist.relax_given(b, by_item)))
    marginal = dist.relax(dist.sample_noise(torch.Generator().manual_seed(3)))
    found.append(_same_sample("z, made by drawing an order and z given it", given, marginal))

    def c(z: Tensor) -> Tensor:
        return (torch.tanh(z).sum(-1) + torch.sin(z[..., 0] * z[..., -1])).unsqueeze(-1)

    value = orders.double()[_which(b, orders)] @ torch.arange(1.0, n + 1.0, dtype=torch.float64)
    logits = dist.params.clone().requires_grad_()
    theirs = code.relax(fb=value, b=b, logits=logits, z=z, c=c, v=v).detach()
    noise = -(-u.log()).log()
    options = {"noise": noise, "conditional_noise": by_item}
    ours = relax(value, dist, lambda z: c(z).squeeze(-1), **options).grad  # type: ignore[arg-type]
    found.append(_difference("RELAX estimates, same noise", theirs, ours.detach()))
    return found


def _unordered(peer: Any) -> Found:
    dist = Categorical(_of(torch.tensor([0.4, -0.3, 0.1, -1.0, 0.8]), 500).double())
    falling = dist.relax(dist.sample_noise(torch.Generator().manual_seed(1))).argsort(-1, descending=True)
    log_probs = dist.log_probs.gather(-1, falling)
    found = []
    for k in (2, 3, 4):
        theirs = peer.gumbel.compute_log_R_O_nfac(log_probs[:, :k])
        ours = log_leave_out_ratios(log_odds(log_probs, k))
        for name, left, right in zip(("first", "second"), theirs, ours, strict=True):
            found.append(_difference(f"{name} leave-one-out ratios of sets of {k}, in logs", left, right))
    return found


def _beam_search(peer: Any) -> Found:
    log_probs = _of(LOGITS).log_softmax(-1)
    top = torch.distributions.Gumbel(0.0, 1.0).sample((ROWS,))
    theirs, argmax = peer.gumbel.gumbel_with_maximum(log_probs, top)
    dist = Categorical(_of(LOGITS))
    ours = dist.relax_given(argmax, dist.sample_noise(torch.Generator().manual_seed(2)))
    return [_same_sample("Gumbels given their largest and its place", theirs, ours)]


def _subsets(peer: Any) -> Found:
    dist = Subset(_of(LOGITS), 2, one_hot=True)
    z = dist.relax(dist.sample_noise(torch.Generator().manual_seed(1)))
    found = []
    for temperature in (1.0, 0.5):
        operator = peer.sorting_operator.SubsetOperator(2, tau=temperature)
        with patch.object(torch.distributions.Gumbel, "sample", lambda self: torch.zeros_like(self.loc)):
            theirs = on_cpu(lambda soft=operator: soft(z))  # type: ignore[misc]
        # Its numbers are float32, and log(1 - share) loses digits where a share is nearly 1.
        apart = (theirs - dist.soften(z, temperature)).abs().quantile(0.99)
        found.append(
            (f"relaxed sets at temperature {temperature:g}, same z, 99% of entries", "largest difference", float(apart))
        )
    hard = peer.sorting_operator.SubsetOperator(2, tau=1.0, hard=True)
    drawn = on_cpu(lambda: hard(_of(LOGITS))).round()
    table = Subset(LOGITS[None].double(), 2, one_hot=True)
    probs = table.with_params(table.params.expand(6, -1)).log_prob(table.support()).exp()
    found.append(_counts("sets that it draws", _which(drawn, table.support().float()), probs))
    orders = PlackettLuce(LOGITS[None].double(), one_hot=True)
    matrices = orders.support()
    theirs = peer.pl.PL(LOGITS.double().exp()[None], 1.0).log_prob(matrices.unflatten(-1, (4, 4)))
    ours = orders.with_params(orders.params.expand(len(matrices), -1)).log_prob(matrices)
    found.append(_difference("log-probabilities of all orders", theirs, ours))
    return found


def _relaxit(peer: Any) -> Found:
    families, one = peer.distributions, torch.tensor(1.0)
    table = Subset(LOGITS[None].double(), 2, one_hot=True)
    drawn = families.GumbelSoftmaxTopK(probs=_of(LOGITS).softmax(-1), K=torch.tensor(2), tau=one).sample()
    index = _which(drawn, table.support().float())
    found = []
    for name, logits in (("", LOGITS), (", as if probs were the logits", LOGITS.softmax(-1))):
        at = table.with_params(logits[None].double().expand(6, -1))
        found.append(_counts(f"GumbelSoftmaxTopK, sets{name}", index, at.log_prob(table.support()).exp()))
    few = families.GeneralizedGumbelSoftmaxNP(torch.distributions.Poisson(2.0), torch.arange(13.0), hard=True)
    few.probs, few.logits = few.probs.expand(ROWS, -1), few.logits.expand(ROWS, -1)
    log_rate = torch.tensor([[2.0]]).log().expand(13, -1)
    probs = Poisson(log_rate.double()).log_prob(torch.arange(13.0, dtype=torch.float64)[:, None]).exp()
    found.append(_counts("GeneralizedGumbelSoftmaxNP, Poisson counts", few.sample().argmax(-1), probs))
    bits = Bernoulli(_of(LOGITS))
    stretch = (1.0 + 1.0 + 1.0) / (1.0 + 1.0)
    relaxed = families.RebarRelaxation(torch.sigmoid(bits.params), one).sample(bits.params.shape)
    for name, factor in (("", 1.0), (f", ours at {stretch:g} times the logits", stretch)):
        spread = bits.with_params(factor * bits.params)
        ours = spread.soften(spread.relax(spread.sample_noise(torch.Generator().manual_seed(1))))
        found.append(_same_sample(f"RebarRelaxation at temperature 1{name}", relaxed, ours))
    return found


def _storchastic(peer: Any) -> Found:
    generator = torch.Generator().manual_seed(1)
    found = []
    for name, dist in (
        ("categories", Categorical(_of(LOGITS), one_hot=True)),
        ("bits", Bernoulli(_of(LOGITS))),
    ):
        sample = dist.threshold(dist.relax(dist.sample_noise(generator)))
        theirs = peer.storch.conditional_gumbel_rsample(sample, dist.mean, name == "bits", torch.tensor(1.0))
        ours = dist.soften(dist.relax_given(sample, dist.sample_noise(generator)))
        found.append(_same_sample(f"relaxed {name} given the outcome", theirs, ours))
    return found
