"""Gradients of E[f(b)] at the parameters of a distribution, from tensors alone.

These work for any distribution and any surrogate: the caller brings log p(b) and the controls, each differentiable in
`params`. `params` is `[*, P]`; its leading dimensions, of any number, count independent examples, here called rows, so
that one gradient of a sum gives every row its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "check_rows",
    "dlax_gradient",
    "lax_gradient",
    "reinforce_gradient",
    "relax_gradient",
    "row_gradient",
    "score_function",
]


def score_function(log_prob: Tensor, params: Tensor) -> Tensor:
    """`[*, P]` dlog p(b) / dparams, a constant; `log_prob` is `[*]` and keeps its graph."""
    return row_gradient(log_prob, params)


def reinforce_gradient(
    value: Tensor, log_prob: Tensor | None, params: Tensor, *, score: Tensor | None = None
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


def lax_gradient(
    value: Tensor, log_prob: Tensor | None, control: Tensor, params: Tensor, *, score: Tensor | None = None
) -> Tensor:
    """LAX estimate for a reparameterised b (Grathwohl et al. 2018, section 3).

        g = (f(b) - c(b)) dlog p(b) + dc(b),    b = T(params, noise)

    Unbiased for every c and differentiable in c's own parameters. Cost: one backward pass through c.

    Args:
        value: `[*]` f(b); no gradient flows into it.
        log_prob: `[*]` log p(b) with b held constant, differentiable in `params`; None where the score is given.
        control: `[*]` c(b), differentiable in `params` through b = T(params, noise), for the very b that was drawn.
        params: `[*, P]` parameters of the distribution.
        score: `[*, P]` dlog p(b), if it is known already.

    Returns:
        `[*, P]` the estimate. The score is constant; c(b) and dc(b) keep their graph.

    Raises:
        ValueError: when `value`, `log_prob` or `control` is not `[*]`, or there is neither `log_prob` nor `score`.
    """
    check_rows(params.shape[:-1], value=value, control=control)
    score = _score(log_prob, params, score)
    pathwise = row_gradient(control, params, create_graph=True)
    return (value.detach() - control).unsqueeze(-1) * score + pathwise


def dlax_gradient(value: Tensor, log_prob: Tensor, relaxed_log_prob: Tensor, control: Tensor, params: Tensor) -> Tensor:
    """DLAX estimate for a discrete b (Grathwohl et al. 2018, section 3.1): LAX's control at z, REINFORCE's score at b.

        g = f(b) dlog p(b) - c(z) dlog p(z) + dc(z),    b = H(z)

    Unbiased for every c and differentiable in c's own parameters; needs no conditional sample, and pays for it with
    the noise of log p(z). Cost: one backward pass through c.

    Args:
        value: `[*]` f(b); no gradient flows into it.
        log_prob: `[*]` log p(b), differentiable in `params`.
        relaxed_log_prob: `[*]` log p(z) with z held constant, differentiable in `params`.
        control: `[*]` c(z), differentiable in `params` through z.
        params: `[*, P]` parameters of the distribution.

    Returns:
        `[*, P]` the estimate. The scores are constant; c(z) and dc(z) keep their graph.

    Raises:
        ValueError: when `value`, a log-probability or `control` is not `[*]`.
    """
    check_rows(params.shape[:-1], value=value, log_prob=log_prob, relaxed_log_prob=relaxed_log_prob, control=control)
    score, relaxed_score = score_function(log_prob, params), score_function(relaxed_log_prob, params)
    pathwise = row_gradient(control, params, create_graph=True)
    return value.detach().unsqueeze(-1) * score - control.unsqueeze(-1) * relaxed_score + pathwise


def relax_gradient(
    value: Tensor,
    log_prob: Tensor | None,
    control: Tensor,
    conditional_control: Tensor,
    params: Tensor,
    *,
    score: Tensor | None = None,
) -> Tensor:
    """RELAX estimate for a discrete b (Grathwohl et al. 2018, eq. 9).

        g = (f(b) - c(z~)) dlog p(b) + dc(z) - dc(z~),    b = H(z),  z~ ~ p(z | b)

    Unbiased for every c and differentiable in c's own parameters. Cost: one backward pass through c.

    Args:
        value: `[*]` f(b); no gradient flows into it.
        log_prob: `[*]` log p(b), differentiable in `params`; None where the score is given.
        control: `[*]` c(z), differentiable in `params` through z.
        conditional_control: `[*]` c(z~), differentiable in `params` through z~ with b held constant; the mean over
            several z~ of the same b serves as well.
        params: `[*, P]` parameters of the distribution.
        score: `[*, P]` dlog p(b), if it is known already.

    Returns:
        `[*, P]` the estimate. The score is constant; the controls and their gradients keep their graph.

    Raises:
        ValueError: when `value`, `log_prob` or a control is not `[*]`, or there is neither `log_prob` nor `score`.
    """
    check_rows(params.shape[:-1], value=value, control=control, conditional_control=conditional_control)
    score = _score(log_prob, params, score)
    pathwise = row_gradient(control - conditional_control, params, create_graph=True)
    return (value.detach() - conditional_control).unsqueeze(-1) * score + pathwise


def row_gradient(output: Tensor, params: Tensor, *, create_graph: bool = False) -> Tensor:
    """`[*, P]` gradient of each row of `output` `[*]` at its own row of `params`; keeps the graph of `output`."""
    (gradient,) = torch.autograd.grad(output.sum(), params, create_graph=create_graph, retain_graph=True)
    return gradient


def _score(log_prob: Tensor | None, params: Tensor, score: Tensor | None) -> Tensor:
    """The score: the one that is known already, or that of `log_prob`."""
    if score is not None:
        if score.shape != params.shape:
            raise ValueError(f"score has shape {list(score.shape)}, but params have {list(params.shape)}")
        return score.detach()
    if log_prob is None:
        raise ValueError("neither log_prob nor score is given: one of them is needed")
    check_rows(params.shape[:-1], log_prob=log_prob)
    return score_function(log_prob, params)


def check_rows(rows: Sequence[int], **per_row: Tensor) -> None:
    """Raises ValueError unless each tensor has one number a row.

    `[B, 1]`, as a network gives it, would broadcast to `[B, B]` and mix the examples.
    """
    for name, tensor in per_row.items():
        if tuple(tensor.shape) != tuple(rows):
            shape = list(tensor.shape)
            raise ValueError(f"{name} has shape {shape}, but one number a row is needed: {list(rows)}")
