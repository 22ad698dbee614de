"""Gradients of E[f(b)] at the parameters of a distribution, from tensors alone.

For any distribution and any surrogate: the caller brings log p(b) and the controls, each as a tensor that is differentiable
in `params`, or as the function of `params` that gives it, which `torch.compile` and `torch.func.vmap` need. `params` is
`[*, P]`; its leading dimensions count independent examples, here called rows: a gradient of a sum gives every row its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = [
    "OfParams",
    "Weight",
    "check_rows",
    "control_variate_gradient",
    "dlax_gradient",
    "lax_gradient",
    "reinforce_gradient",
    "relax_gradient",
    "row_gradient",
    "score_function",
    "value_and_gradient",
    "weighted",
]

OfParams = Tensor | Callable[[Tensor], Tensor]
"""`[*]` numbers with the graph that leads to `params`, or the function of `params` that gives them."""


def score_function(log_prob: OfParams, params: Tensor) -> Tensor:
    """`[*, P]` dlog p(b) / dparams, a constant.

    Args:
        log_prob: `[*]` log p(b), differentiable in `params`; it keeps its graph.
        params: `[*, P]` parameters of the distribution.

    Raises:
        ValueError: when `log_prob` is not `[*]`.
    """
    if isinstance(log_prob, Tensor):
        check_rows(params.shape[:-1], log_prob=log_prob)
        return row_gradient(log_prob, params)
    value, gradient = value_and_gradient(log_prob, params)
    check_rows(params.shape[:-1], log_prob=value)
    return gradient


def reinforce_gradient(
    value: Tensor, log_prob: OfParams | None, params: Tensor, *, score: Tensor | None = None
) -> Tensor:
    """Score-function estimate (Williams 1992): g = f(b) dlog p(b).

    Args:
        value: `[*]` f(b), or f(b) minus a baseline that does not depend on b; it keeps its graph, for a baseline that
            learns from the variance.
        log_prob: `[*]` log p(b), differentiable in `params`; None where the score is given.
        params: `[*, P]` parameters of the distribution.
        score: `[*, P]` dlog p(b), if it is known already.

    Returns:
        `[*, P]` the estimate; the score in it is constant.

    Raises:
        ValueError: when `value` or `log_prob` is not `[*]`, or there is neither `log_prob` nor `score`.
    """
    check_rows(params.shape[:-1], value=value)
    return value.unsqueeze(-1) * _score(log_prob, params, score)


Weight = Tensor | float
"""Of the residual f - c: a number, or what broadcasts to `[*]`."""


def control_variate_gradient(
    value: Tensor, control: Tensor, pathwise: Tensor, score: Tensor, *, residual_weight: Weight = 1.0
) -> Tensor:
    """What LAX, REBAR, RELAX and the marginal have in common: g = w (f(b) - c) dlog p(b) + dE[c].

    They differ in where c is asked, and in what estimates the gradient of its expectation.

    Args:
        value: `[*]` f(b); no gradient flows into it.
        control: `[*]` c at the outcome, or at a relaxed sample that goes with it.
        pathwise: `[*, P]` unbiased for the gradient of E[c].
        score: `[*, P]` dlog p(b), a constant.
        residual_weight: w. At 1 the estimate is unbiased for the gradient of E[f], whatever c; at 0 it is that of E[c],
            without the noise of the score; in between its mean is between them in proportion (Gu et al. 2017, IPG).

    Returns:
        `[*, P]` the estimate; `control` and `pathwise` keep their graph.
    """
    return weighted(residual_weight, (value.detach() - control).unsqueeze(-1) * score) + pathwise


def weighted(weight: Weight, x: Tensor) -> Tensor:
    """`[*, P]` each row times its weight; without cost for a weight of 1."""
    if isinstance(weight, Tensor):
        return weight.unsqueeze(-1) * x
    return x if weight == 1.0 else weight * x


def lax_gradient(
    value: Tensor,
    log_prob: OfParams | None,
    control: OfParams,
    params: Tensor,
    *,
    score: Tensor | None = None,
    residual_weight: Weight = 1.0,
) -> Tensor:
    """LAX estimate for a reparameterised b (Grathwohl et al. 2018, section 3).

        g = w (f(b) - c(b)) dlog p(b) + dc(b),    b = T(params, noise)

    Unbiased for every c at w = 1, and differentiable in c's own parameters. Cost: one backward pass through c.

    Args:
        value: `[*]` f(b); no gradient flows into it.
        log_prob: `[*]` log p(b) with b held constant, differentiable in `params`; None where the score is given.
        control: `[*]` c(b), differentiable in `params` through b = T(params, noise), for the very b that was drawn.
        params: `[*, P]` parameters of the distribution.
        score: `[*, P]` dlog p(b), if it is known already.
        residual_weight: w, 1 for the unbiased estimate; see `control_variate_gradient`.

    Returns:
        `[*, P]` the estimate. The score is constant; c(b) and dc(b) keep their graph.

    Raises:
        ValueError: when `value`, `log_prob` or `control` is not `[*]`, or there is neither `log_prob` nor `score`.
    """
    score = _score(log_prob, params, score)
    control, pathwise = _with_gradient(control, params)
    check_rows(params.shape[:-1], value=value)
    return control_variate_gradient(value, control, pathwise, score, residual_weight=residual_weight)


def dlax_gradient(
    value: Tensor,
    log_prob: OfParams | None,
    relaxed_log_prob: OfParams,
    control: OfParams,
    params: Tensor,
    *,
    score: Tensor | None = None,
) -> Tensor:
    """DLAX estimate for a discrete b (Grathwohl et al. 2018, section 3.2): LAX's control at z, REINFORCE's score at b.

        g = f(b) dlog p(b) - c(z) dlog p(z) + dc(z),    b = H(z)

    Unbiased for every c and differentiable in c's own parameters; needs no conditional sample, and pays for it with
    the noise of log p(z). Cost: one backward pass through c.

    Args:
        value: `[*]` f(b); no gradient flows into it.
        log_prob: `[*]` log p(b), differentiable in `params`; None where the score is given.
        relaxed_log_prob: `[*]` log p(z) with z held constant, differentiable in `params`.
        control: `[*]` c(z), differentiable in `params` through z.
        params: `[*, P]` parameters of the distribution.
        score: `[*, P]` dlog p(b), if it is known already.

    Returns:
        `[*, P]` the estimate. The scores are constant; c(z) and dc(z) keep their graph.

    Raises:
        ValueError: when `value`, a log-probability or `control` is not `[*]`, or there is neither `log_prob` nor
            `score`.
    """
    score, relaxed_score = _score(log_prob, params, score), score_function(relaxed_log_prob, params)
    control, pathwise = _with_gradient(control, params)
    check_rows(params.shape[:-1], value=value)
    return value.detach().unsqueeze(-1) * score - control.unsqueeze(-1) * relaxed_score + pathwise


def relax_gradient(
    value: Tensor,
    log_prob: OfParams | None,
    control: OfParams,
    conditional_control: OfParams,
    params: Tensor,
    *,
    score: Tensor | None = None,
    residual_weight: Weight = 1.0,
) -> Tensor:
    """RELAX estimate for a discrete b (Grathwohl et al. 2018, section 3.2).

        g = w (f(b) - c(z~)) dlog p(b) + dc(z) - w dc(z~),    b = H(z),  z~ ~ p(z | b)

    Unbiased for every c at w = 1, and differentiable in c's own parameters. Cost: one backward pass through both controls.

    Args:
        value: `[*]` f(b); no gradient flows into it.
        log_prob: `[*]` log p(b), differentiable in `params`; None where the score is given.
        control: `[*]` c(z), differentiable in `params` through z.
        conditional_control: `[*]` c(z~), differentiable in `params` through z~ with b held constant; the mean over
            several z~ of the same b serves as well.
        params: `[*, P]` parameters of the distribution.
        score: `[*, P]` dlog p(b), if it is known already.
        residual_weight: w, 1 for the unbiased estimate; see `control_variate_gradient`.

    Returns:
        `[*, P]` the estimate. The score is constant; the controls and their gradients keep their graph.

    Raises:
        ValueError: when `value`, `log_prob` or a control is not `[*]`, or there is neither `log_prob` nor `score`.
    """
    score = _score(log_prob, params, score)
    if isinstance(control, Tensor) and isinstance(conditional_control, Tensor):
        check_rows(params.shape[:-1], control=control, conditional_control=conditional_control)
        pathwise = row_gradient(control - residual_weight * conditional_control, params, create_graph=True)
    else:
        difference = _difference(control, conditional_control, residual_weight)
        (_, control, conditional_control), pathwise = _values_and_gradient(difference, params, create_graph=True)
        check_rows(params.shape[:-1], control=control, conditional_control=conditional_control)
    check_rows(params.shape[:-1], value=value)
    return control_variate_gradient(value, conditional_control, pathwise, score, residual_weight=residual_weight)


def row_gradient(output: Tensor, params: Tensor, *, create_graph: bool = False) -> Tensor:
    """`[*, P]` gradient of each row at its own row of the parameters.

    Args:
        output: `[*]`; it keeps its graph.
        params: `[*, P]`.
        create_graph: whether the gradient has a graph too.
    """
    (gradient,) = torch.autograd.grad(output.sum(), params, create_graph=create_graph, retain_graph=True)
    return gradient


def value_and_gradient(
    function: Callable[[Tensor], Tensor], at: Tensor, *, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """`function(at)` `[*]`, and the gradient of each of its rows at its own row of `at`.

    The derivative is in `at` alone: no graph leads back to what `at` was made of; it is 0 for a function that is
    constant. Runs eagerly, in `torch.compile` and under the transforms of `torch.func`.

    Args:
        function: from `[*, P]` to `[*]`.
        at: `[*, P]` where to evaluate and differentiate.
        create_graph: whether the gradient keeps a graph, for what else `function` depends on.

    Raises:
        RuntimeError: when the values move with `at` but have no gradient there; seen in eager code alone.
    """
    (value,), gradient = _values_and_gradient(lambda x: (function(x),), at, create_graph=create_graph)
    return value, gradient


def _values_and_gradient(
    function: Callable[[Tensor], tuple[Tensor, ...]], at: Tensor, *, create_graph: bool
) -> tuple[tuple[Tensor, ...], Tensor]:
    """All values of `function`, and the gradient of the rows of the first."""
    at = at.detach()
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():

        def total(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            values = function(x)
            return values[0].sum(), values

        # An inner derivative that the compiler can trace and transforms can nest. Eager code would pay a fifth more.
        gradient, values = torch.func.grad(total, has_aux=True)(at)
        return values, gradient if create_graph else gradient.detach()
    leaf = at.requires_grad_()
    with torch.enable_grad():
        values = function(leaf)
        gradient = _gradient_if_reached(values[0], leaf, create_graph)
    if gradient is None:
        _check_constant(function, leaf.detach(), values[0].detach())
        gradient = torch.zeros_like(at)
    return values, gradient


def _gradient_if_reached(output: Tensor, at: Tensor, create_graph: bool) -> Tensor | None:
    """`row_gradient`, or None where no graph leads from `output` to `at`."""
    if not output.requires_grad:
        return None
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        output.sum(), at, retain_graph=True, create_graph=create_graph, allow_unused=True
    )
    return found[0]


def _check_constant(function: Callable[[Tensor], tuple[Tensor, ...]], at: Tensor, value: Tensor) -> None:
    """Raises RuntimeError where what has no gradient is no constant: taken for one it would bias the estimate."""
    if at.is_inference():
        raise RuntimeError("f or the surrogate needs gradients, and torch.inference_mode keeps none: use torch.no_grad")
    # Two uneven places, within bits' range: what is symmetric would be the same at 1 - at.
    uneven = torch.linspace(0.3, 0.7, at.numel(), dtype=at.dtype, device=at.device).view_as(at)
    with torch.no_grad():
        elsewhere = [function(probe)[0].to(value.dtype) for probe in (at * uneven, (1.0 - at) * uneven)]
    if not all(torch.allclose(x, value, rtol=0.0, atol=0.0, equal_nan=True) for x in elsewhere):
        raise RuntimeError(
            "f or the surrogate moves with its argument but has no gradient there: make it of differentiable operations "
            "on the argument (no detach, no_grad, rounding or whole numbers), or take an estimator that asks f for values"
        )


def _difference(
    control: OfParams, conditional_control: OfParams, weight: Weight
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """c(z) - w c(z~), c(z) and c(z~) as a function of the parameters."""
    if isinstance(control, Tensor) or isinstance(conditional_control, Tensor):
        raise ValueError("one control is a tensor and the other a function of params: give both as the same")

    def values(params: Tensor) -> tuple[Tensor, ...]:
        at_z, at_z_tilde = control(params), conditional_control(params)
        return at_z - weight * at_z_tilde, at_z, at_z_tilde

    return values


def _with_gradient(control: OfParams, params: Tensor) -> tuple[Tensor, Tensor]:
    """A control and its gradient at `params`, both with their graph."""
    if isinstance(control, Tensor):
        check_rows(params.shape[:-1], control=control)
        return control, row_gradient(control, params, create_graph=True)
    control, pathwise = value_and_gradient(control, params, create_graph=True)
    check_rows(params.shape[:-1], control=control)
    return control, pathwise


def _score(log_prob: OfParams | None, params: Tensor, score: Tensor | None) -> Tensor:
    """The score: the one that is known already, or that of `log_prob`."""
    if score is not None:
        if score.shape != params.shape:
            raise ValueError(f"score has shape {list(score.shape)}, but params have {list(params.shape)}")
        return score.detach()
    if log_prob is None:
        raise ValueError("neither log_prob nor score is given: one of them is needed")
    return score_function(log_prob, params)


def check_rows(rows: Sequence[int], **per_row: Tensor) -> None:
    """Raises ValueError unless each tensor has one number a row.

    `[B, 1]`, as a network gives it, would broadcast to `[B, B]` and mix the examples.
    """
    for name, tensor in per_row.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"{name} gives a {type(tensor).__name__}, but a tensor {list(rows)} of one number a row is needed"
            )
        if tuple(tensor.shape) != tuple(rows):
            shape = list(tensor.shape)
            raise ValueError(f"{name} has shape {shape}, but one number a row is needed: {list(rows)}")
