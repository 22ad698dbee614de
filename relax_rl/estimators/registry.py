"""The estimators by name: for command lines, experiments, and the table of the documentation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from relax_rl.estimators import (
    antithetic,
    bounds,
    exact,
    multisample,
    pathwise,
    rejection,
    relaxation,
    score,
    without_replacement,
)
from relax_rl.estimators.estimate import Estimate

__all__ = ["ESTIMATORS", "EstimatorInfo", "describe", "make_estimator"]


@dataclass(frozen=True, kw_only=True)
class EstimatorInfo:
    """What there is to know of an estimator before using it.

    Attributes:
        name: in the registry.
        function: `function(f, dist, **options)` gives an `Estimate`.
        formula: of the estimate; d is the gradient at the parameters, s the score dlog p(b), z~ a relaxed sample given b.
        source: where it comes from.
        outcomes: kinds of distribution: bits, categories, factors, orders, subsets, matchings, counts, ranks, continuous, positive.
        bias: "none", or where it comes from.
        evaluations: of f for one estimate; K is `num_samples`, M the number of outcomes.
        backward_passes: beyond REINFORCE's pull-back through the parameters.
        differentiable: whether f must be differentiable in the sample (at relaxed samples too, for a relaxation).
        needs: options without a default.
        defaults: options that make this entry of the function.
    """

    name: str
    function: Callable[..., Estimate]
    formula: str
    source: str
    outcomes: tuple[str, ...]
    bias: str = "none"
    evaluations: str = "1"
    backward_passes: str = "0"
    differentiable: bool = False
    needs: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)


_FACTORED = ("bits", "categories", "factors")
_CHOSEN = (*_FACTORED, "orders", "subsets")
_LISTED = (*_CHOSEN, "ranks")
_DISCRETE = (*_CHOSEN, "counts", "ranks")
_SOFT = (*_DISCRETE, "matchings")
_MOVING = ("continuous", "positive")
_ANY = (*_DISCRETE, *_MOVING)
_THROUGH_C = "1 through c, 1 second-order"

_INFOS = (
    EstimatorInfo(
        name="reinforce",
        function=score.reinforce,
        formula="(f(b) - baseline) s, s = dlog p(b)",
        source="Williams 1992",
        outcomes=_ANY,
    ),
    EstimatorInfo(
        name="nvil",
        function=score.nvil,
        formula="(f(b) - mean - baseline(x)) / max(1, std) s",
        source="Mnih and Gregor 2014",
        outcomes=_ANY,
        bias="none up to the scale max(1, std)",
        backward_passes="1 through the baseline",
        needs=("baseline", "average"),
    ),
    EstimatorInfo(
        name="rloo",
        function=score.rloo,
        formula="mean_k (f_k - mean of the other f) s_k",
        source="Salimans and Knowles 2014; Kool et al. 2019",
        outcomes=_ANY,
        evaluations="K",
    ),
    EstimatorInfo(
        name="vimco",
        function=score.vimco,
        formula="sum_k (L - L_{-k}) s_k, L = log mean_k w_k",
        source="Mnih and Rezende 2016",
        outcomes=_ANY,
        evaluations="K",
    ),
    EstimatorInfo(
        name="simple-muprop",
        function=score.muprop,
        formula="(f(b) - eta f(mu) - baseline) s",
        source="Gu et al. 2016",
        outcomes=_LISTED,
        evaluations="2",
        defaults={"slope": 0.0},
    ),
    EstimatorInfo(
        name="muprop",
        function=score.muprop,
        formula="(f(b) - eta f(mu) - eta_1 f'(mu)(b - mu)) s + eta_1 f'(mu) dmu",
        source="Gu et al. 2016",
        outcomes=_LISTED,
        evaluations="2",
        backward_passes="1 through f",
        differentiable=True,
    ),
    EstimatorInfo(
        name="reparameterized",
        function=pathwise.reparameterized,
        formula="df(T(params, noise))",
        source="Kingma and Welling 2014",
        outcomes=_MOVING,
        backward_passes="1 through f",
        differentiable=True,
    ),
    EstimatorInfo(
        name="rejection",
        function=rejection.rejection,
        formula="f'(b) dh(eps) + f(b) d[log q(h(eps)) + log h'(eps)], b = h(eps) accepted",
        source="Naesseth et al. 2017",
        outcomes=("positive",),
        backward_passes="1 through f",
        differentiable=True,
    ),
    EstimatorInfo(
        name="dreg",
        function=bounds.dreg,
        formula="sum_k (w_k / sum of w)^2 (dlog w_k / db_k) dT(params, noise_k), of L = log mean_k w_k",
        source="Tucker et al. 2019",
        outcomes=_MOVING,
        evaluations="K",
        backward_passes="1 through f",
        differentiable=True,
    ),
    EstimatorInfo(
        name="concrete",
        function=pathwise.concrete,
        formula="df(sigma(z / tau))",
        source="Maddison et al. 2017; Jang et al. 2017",
        outcomes=_SOFT,
        bias="that of the relaxed problem; falls with the temperature tau as the variance rises",
        backward_passes="1 through f",
        differentiable=True,
    ),
    EstimatorInfo(
        name="straight-through",
        function=pathwise.straight_through,
        formula="f'(b) dmu",
        source="Bengio et al. 2013",
        outcomes=_DISCRETE,
        bias="first order: exact for linear f",
        backward_passes="1 through f",
        differentiable=True,
    ),
    EstimatorInfo(
        name="straight-through-gumbel",
        function=pathwise.straight_through,
        formula="f'(b) dsigma(z / tau)",
        source="Jang et al. 2017",
        outcomes=_SOFT,
        bias="for linear f too; of first order as tau falls and the variance rises",
        backward_passes="1 through f",
        differentiable=True,
        defaults={"temperature": 0.5},
    ),
    EstimatorInfo(
        name="gumbel-rao",
        function=pathwise.gumbel_rao,
        formula="f'(b) mean_k dsigma(z~_k / tau)",
        source="Paulus et al. 2021",
        outcomes=_DISCRETE,
        bias="that of straight-through-gumbel",
        backward_passes="1 through f",
        differentiable=True,
    ),
    EstimatorInfo(
        name="reinmax",
        function=pathwise.reinmax,
        formula="2 J((p + b) / 2) f'(b) - 1/2 J(p) f'(b)",
        source="Liu et al. 2023",
        outcomes=_FACTORED,
        bias="second order: exact for quadratic f of one variable",
        backward_passes="1 through f",
        differentiable=True,
    ),
    EstimatorInfo(
        name="lax",
        function=relaxation.lax,
        formula="(f(b) - c(b)) s + dc(b)",
        source="Grathwohl et al. 2018",
        outcomes=_MOVING,
        backward_passes=_THROUGH_C,
        needs=("surrogate",),
    ),
    EstimatorInfo(
        name="dlax",
        function=relaxation.dlax,
        formula="f(b) s - c(z) dlog p(z) + dc(z)",
        source="Grathwohl et al. 2018",
        outcomes=(*_CHOSEN, "counts"),
        backward_passes=_THROUGH_C,
        needs=("surrogate",),
    ),
    EstimatorInfo(
        name="rebar",
        function=relaxation.rebar,
        formula="(f(b) - eta f(sigma(z~))) s + eta d[f(sigma(z)) - f(sigma(z~))]",
        source="Tucker et al. 2017",
        outcomes=_DISCRETE,
        evaluations="3",
        backward_passes="2 through f, 1 second-order",
        differentiable=True,
    ),
    EstimatorInfo(
        name="relax",
        function=relaxation.relax,
        formula="(f(b) - c(z~)) s + dc(z) - dc(z~)",
        source="Grathwohl et al. 2018",
        outcomes=_DISCRETE,
        evaluations="1 (3 with c = f(sigma(z)) + r(z))",
        backward_passes="2 through c, 1 second-order",
        needs=("surrogate",),
    ),
    EstimatorInfo(
        name="arm",
        function=antithetic.arm,
        formula="(f(1[u > 1 - p]) - f(1[u < p])) (u - 1/2)",
        source="Yin and Zhou 2019",
        outcomes=("bits",),
        evaluations="2",
    ),
    EstimatorInfo(
        name="disarm",
        function=antithetic.disarm,
        formula="1/2 (f(b) - f(b~)) (b - b~) sigma(|logit|)",
        source="Dong et al. 2020, 2021; Yin et al. 2020",
        outcomes=("bits", "categories"),
        evaluations="2",
    ),
    EstimatorInfo(
        name="arms",
        function=antithetic.arms,
        formula="K / (K - 1) mean_k (f_k - mean f)(b_k - p) p (1 - p) / (p - P(b_i = b_j = 1))",
        source="Dimitriev and Zhou 2021",
        outcomes=("bits",),
        evaluations="K",
    ),
    EstimatorInfo(
        name="double-cv",
        function=multisample.double_cv,
        formula="RLOO on f_k + alpha v_k - alpha mean f' p (1 - p), v_k = mean of the other f' (b_k - p)",
        source="Titsias and Shi 2022",
        outcomes=("bits",),
        evaluations="K",
        backward_passes="1 through f",
        differentiable=True,
    ),
    EstimatorInfo(
        name="rodeo",
        function=multisample.rodeo,
        formula="RLOO with baseline f_j + alpha (A h)(b_j), plus beta A(h s)(b_k), A a Stein operator",
        source="Shi et al. 2022",
        outcomes=("bits",),
        evaluations="K",
        backward_passes="1 through f",
        differentiable=True,
    ),
    EstimatorInfo(
        name="unordered-set",
        function=without_replacement.unordered_set,
        formula="sum_{s in S} p_s R(S, s) (f_s - sum_{s' in S} p_s' R(S - s, s') f_s') s_s, S of K without replacement",
        source="Kool et al. 2020",
        outcomes=("categories",),
        evaluations="K",
    ),
    EstimatorInfo(
        name="without-replacement",
        function=without_replacement.without_replacement,
        formula="sum_{s in S} w_s (f_s - p_s f_s - sum of the other w f) s_s, w_s = p_s / P(z_s > the next z)",
        source="Kool et al. 2019",
        outcomes=("categories",),
        evaluations="K",
    ),
    EstimatorInfo(
        name="marginal",
        function=exact.marginal,
        formula="(f(b) - c(b)) s + d sum_b' p(b') c(b')",
        source="Liu et al. 2018; Gu et al. 2017, Q-Prop",
        outcomes=_LISTED,
        backward_passes=_THROUGH_C.replace(", 1 second-order", " (first order)"),
        needs=("surrogate",),
    ),
    EstimatorInfo(
        name="enumerated",
        function=exact.enumerated,
        formula="d sum_b p(b) f(b)",
        source="definition",
        outcomes=_LISTED,
        evaluations="M",
    ),
)

ESTIMATORS: dict[str, EstimatorInfo] = {info.name: info for info in _INFOS}
"""Every estimator, by name."""


def describe(name: str) -> EstimatorInfo:
    """`EstimatorInfo` of an estimator.

    Args:
        name: a key of `ESTIMATORS`.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"unknown estimator {name!r}; there are {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]


def make_estimator(name: str, **options: Any) -> Callable[..., Estimate]:
    """`estimator(f, dist, **more)` with options bound.

    Args:
        name: a key of `ESTIMATORS`.
        options: of the function, such as `surrogate`, `num_samples` or `generator`.

    Raises:
        ValueError: for an unknown name, an unknown option, or one that is needed and missing.
    """
    info = describe(name)
    known = set(inspect.signature(info.function).parameters) - {"f", "log_weight", "log_joint", "dist"}
    if unknown := sorted(set(options) - known):
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(sorted(known)) or 'none'}")
    if missing := [need for need in info.needs if need not in options]:
        raise ValueError(f"{name} needs {', '.join(missing)}")
    return partial(info.function, **{**info.defaults, **options})
