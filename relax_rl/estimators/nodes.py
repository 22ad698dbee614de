"""Programs with several stochastic nodes: noise, surrogates and costs of every draw in one place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from relax_rl.distributions import Distribution
from relax_rl.estimators.draws import detached, require, require_moving, require_temperature, require_vectors
from relax_rl.estimators.estimate import Estimate
from relax_rl.estimators.gradients import check_rows
from relax_rl.estimators.pathwise import moving_mean, moving_softened
from relax_rl.estimators.registry import describe
from relax_rl.estimators.relaxation import relax, relaxed_objective
from relax_rl.estimators.score import check_num_samples, leave_one_out, reinforce

__all__ = ["StochasticGraph"]

BY_VALUE = ("reinforce", "nvil", "rloo", "lax", "dlax", "rebar", "relax", "marginal")
"""Estimators that take the costs that follow as numbers."""
THROUGH = ("reparameterized", "concrete", "straight-through", "straight-through-gumbel")
"""Estimators that let the gradient of the costs flow through the sample."""


@dataclass(frozen=True)
class _Node:
    """A draw whose estimate waits for the costs that follow."""

    name: str
    dist: Any
    noise: Tensor
    sample: Tensor
    estimate: Callable[..., Estimate]
    active: Tensor | None


class StochasticGraph:
    """The draws and the costs of one run of a program, for the gradient of the expected sum of its costs.

    A stochastic computation graph (Schulman et al. 2015): every draw whose sample does not move gets an estimate of the
    gradient at its parameters, from the costs that follow it; costs and parameters that later draws have in common with
    earlier ones do the rest by automatic differentiation. Make one for each run; it is a list of what was drawn, and
    nothing outlives it.

        graph = StochasticGraph()
        b1 = graph.draw(Bernoulli(logits), "relax", surrogate=c)
        b2 = graph.draw(Bernoulli(net(b1)), "reinforce", baseline=0.3)
        graph.cost(f(b1, b2))
        graph.loss().backward()

    All draws and costs have the same rows `[*]`. The gradient is unbiased where all estimators are. A `concrete` draw makes it
    that of the program with this draw relaxed; a straight-through one biases what the gradient flows back to from there.

    Args:
        generator: of all draws.
    """

    def __init__(self, *, generator: torch.Generator | None = None) -> None:
        self.generator = generator
        self._nodes: list[_Node] = []
        self._through: list[str] = []
        self._costs: list[tuple[Tensor, tuple[str, ...]]] = []
        self._estimates: dict[str, Estimate] | None = None

    def draw(
        self,
        dist: Distribution,
        estimator: str | Callable[..., Estimate] = "reinforce",
        *,
        name: str | None = None,
        active: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """A sample `[*, ...]` of a distribution with `[*, P]` parameters.

        Args:
            dist: its parameters with the graph that leads to theta, and to samples before it that move.
            estimator: reinforce, nvil, relax, rebar, lax, dlax or marginal, which take the sum of the costs that follow;
                rloo, whose baseline is that sum in the other runs of the program, along the first dimension of the rows;
                reparameterized, concrete, straight-through or straight-through-gumbel, whose sample moves; or a function
                `(value, dist, *, noise, **options)` to an `Estimate`.
            name: for `cost` and `estimates`; its number by default.
            active: `[*]` rows that draw; those that have come to an end get no gradient here.
            options: of the estimator, such as `surrogate`, `phi` or `temperature`. A surrogate may close over all that was
                drawn before. That of "rebar" is `f`: what the costs that follow would be, from relaxed samples, differentiable.

        Raises:
            ValueError: for an unknown estimator, a name that is taken, `active` of other rows, or a distribution that lacks what is
                needed.
        """
        name = str(len(self._nodes) + len(self._through)) if name is None else name
        if name in self._through or any(node.name == name for node in self._nodes):
            raise ValueError(f"there is a draw named {name!r} already: give each of them a name of its own")
        self._estimates = None
        here = detached(dist)
        noise = here.sample_noise(self.generator)
        if active is not None:
            check_rows(dist.params.shape[:-1], active=active)
        if isinstance(estimator, str) and estimator in THROUGH:
            moved = _moving(estimator, dist, noise, **options)
            self._through.append(name)
            return moved if active is None else torch.where(_over(active, moved), moved, moved.detach())
        sample = here.threshold(here.relax(noise)).detach()
        self._nodes.append(_Node(name, dist, noise, sample, self._by_value(estimator, dist, options), active))
        return sample

    def cost(self, value: Tensor, *, of: Sequence[str] | None = None, active: Tensor | None = None) -> None:
        """Add `[*]` costs, with the graph of their own dependence on theta.

        Args:
            value: one number a row.
            of: names of the draws that it depends on, itself or through others; all that were drawn by now by default. To
                leave out one that it does not depend on lowers the variance; to leave out one that it does biases it.
            active: `[*]` rows that it counts in.

        Raises:
            ValueError: for a name that was not drawn, or `active` of other rows.
        """
        known = [node.name for node in self._nodes]
        names = tuple(known if of is None else of)
        if unknown := [name for name in names if name not in known and name not in self._through]:
            raise ValueError(
                f"no draw is named {unknown[0]!r}; there are {', '.join([*known, *self._through]) or 'none'}"
            )
        if active is not None:
            check_rows(value.shape, active=active)
            value = torch.where(active, value, torch.zeros_like(value))
        self._costs.append((value, names))
        self._estimates = None

    def estimates(self) -> dict[str, Estimate]:
        """The estimate of every draw whose sample does not move, by name; `value` is the sum of the costs that follow."""
        if self._estimates is None:
            self._estimates = {node.name: self._estimate(node) for node in self._nodes}
        return self._estimates

    def loss(self, weight: Tensor | float | None = None, *, variance_coef: float = 1.0) -> Tensor:
        """A scalar, the mean over rows of the sum of the costs, whose gradient is the estimate; at phi that of the variances.

        What a baseline is fitted by is not in it: each `fit_loss` of `estimates` is to be added.

        Args:
            weight: of each row, a number or `[*]`; 1 / number of rows by default.
            variance_coef: factor of the variances' gradients; 0 leaves them out.

        Raises:
            ValueError: when there is no cost, or weights are of other rows.
        """
        if not self._costs:
            raise ValueError("there is no cost: add one by graph.cost(value)")
        total = sum(self._weighted(value, weight) for value, _ in self._costs)
        for estimate in self.estimates().values():
            part = estimate.loss(weight, variance_coef=variance_coef)
            total = total + (part - part.detach())
        return total  # type: ignore[return-value]

    def _weighted(self, value: Tensor, weight: Tensor | float | None) -> Tensor:
        if isinstance(weight, Tensor) and weight.dim():
            check_rows(value.shape, weight=weight)
        if weight is None and value.numel():
            return value.mean()
        return value.sum() if weight is None else (value * weight).sum()

    def _estimate(self, node: _Node) -> Estimate:
        following = [value.detach() for value, names in self._costs if node.name in names]
        value = sum(following) if following else node.dist.params.detach().new_zeros(node.dist.params.shape[:-1])
        found = node.estimate(value, node.dist, noise=node.noise, sample=node.sample, active=node.active)
        if node.active is None:
            return found
        return replace(found, grad=found.grad * node.active.unsqueeze(-1))

    def _by_value(
        self, estimator: str | Callable[..., Estimate], dist: Distribution, options: dict[str, Any]
    ) -> Callable[..., Estimate]:
        """The estimator as a function of value, distribution, noise and sample."""
        if estimator == "rloo":
            if options.keys() - {"generator"}:
                raise ValueError("rloo has no options in a graph: its samples are the first dimension of the rows")
            check_num_samples(dist.params.shape[0] if dist.params.dim() > 1 else 0)
            return lambda value, dist, active, **drawn: reinforce(leave_one_out(value), dist, **drawn, **options)
        if estimator == "rebar":
            if "f" not in options:
                raise ValueError("rebar in a graph needs f: what the costs that follow would be, for relaxed samples")
            function: Callable[..., Estimate] = relax
            options = _rebar_options(dist, **options)
        elif isinstance(estimator, str):
            if estimator not in BY_VALUE:
                describe(estimator)
                told = ", ".join((*BY_VALUE, *THROUGH))
                raise ValueError(f"{estimator} does not take costs that follow as numbers; a draw takes {told}")
            function = describe(estimator).function
            if missing := [need for need in describe(estimator).needs if need not in options]:
                raise ValueError(f"{estimator} needs {', '.join(missing)}")
        else:
            function = estimator
        known = inspect.signature(function).parameters
        if "generator" in known and "generator" not in options:
            options = {**options, "generator": self.generator}

        def estimate(value: Tensor, dist: Any, *, noise: Tensor, **also: Tensor | None) -> Estimate:
            taken = {name: x for name, x in also.items() if name in known}
            return function(value, dist, noise=noise, **taken, **options)

        return estimate


def _over(active: Tensor, sample: Tensor) -> Tensor:
    """`[*]` as `[*, 1, ...]`, of as many dimensions as a sample `[*, ...]`."""
    return active.reshape(*active.shape, *[1] * (sample.dim() - active.dim()))


def _rebar_options(
    dist: Distribution,
    f: Callable[[Tensor], Tensor],
    *,
    eta: Tensor | float = 1.0,
    temperature: Tensor | float = 0.5,
    **options: Any,
) -> dict[str, Any]:
    control = relaxed_objective(f, dist, temperature)
    phi = [x for x in (eta, temperature) if isinstance(x, Tensor) and x.requires_grad]
    return {"surrogate": lambda z: eta * control(z), "phi": phi, **options}


def _moving(name: str, dist: Any, noise: Tensor, temperature: Tensor | float = 0.5) -> Tensor:
    """A sample that moves with the parameters, through whose graph the costs are differentiated."""
    if name == "reparameterized":
        if hasattr(dist, "relax_given"):
            raise ValueError(
                f"the outcomes of {type(dist).__name__} are discrete: use concrete, or an estimator by value"
            )
        require_moving(dist, name)
        moved: Tensor = dist.threshold(dist.relax(noise))
        return moved
    require_vectors(dist)
    require(dist, "relax_given", name, "use reparameterized")
    require_temperature(temperature)
    if name == "concrete":
        softened: Tensor = dist.soften(dist.relax(noise), temperature)
        return softened
    here = detached(dist)
    sample = here.threshold(here.relax(noise))
    return (moving_mean(sample) if name == "straight-through" else moving_softened(sample, noise, temperature))(dist)
