"""The result of an estimator: the same record everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Estimate", "nothing_but", "only_to", "variance_loss", "weighted_moments"]


@dataclass(frozen=True)
class Estimate:
    """A gradient estimate of E[f(b)] for each row of a distribution.

    Attributes:
        sample: the outcomes f was asked for, `[*, ...]`, or `[K, *, ...]` where an estimate takes several of them.
        value: `[*]` what estimates E[f(b)] itself: f(b), or its mean over the K outcomes. Where f depends on theta by
            itself, as an evidence lower bound does, this holds the graph of that dependence.
        grad: `[*, P]` the estimate at the parameters of the distribution, differentiable in phi.
        params: `[*, P]` the distribution's own parameters, with the graph that leads back to theta.
        phi: the tensors that `variance_loss` trains; None if it may reach whatever `grad` depends on.
        fit_loss: scalar that fits a baseline to f, from the estimators that have such a baseline.
    """

    sample: Tensor
    value: Tensor
    grad: Tensor
    params: Tensor
    phi: tuple[Tensor, ...] | None = None
    fit_loss: Tensor | None = None

    def backward(self, weight: Tensor | float | None = None) -> None:
        """Add the gradient of the weighted sum of E[f(b)] over rows to `.grad` of theta, and of nothing else.

        That is the estimate pulled back through `params`, and the gradient of f's own dependence on theta.

        Args:
            weight: factor of each row, a number or `[*]`; 1 / number of rows by default, the gradient of the mean.
        """
        factor = self._factor(weight)
        outputs, gradients = [], []
        if self.params.requires_grad:
            outputs.append(self.params)
            gradients.append(self.grad.detach() * factor.unsqueeze(-1))
        if self.value.requires_grad:
            outputs.append(self.value)
            gradients.append(factor)
        if not outputs:
            raise ValueError("nothing to learn: neither the parameters of the distribution nor f has a gradient")
        torch.autograd.backward(outputs, gradients, retain_graph=self.grad.requires_grad)

    def loss(self, weight: Tensor | float | None = None, *, variance_coef: float = 1.0) -> Tensor:
        """Scalar whose one backward pass does what `backward` and `variance_loss` do in two.

        Its gradient at theta is the estimate, at phi that of the variance. This is what to return from a function that
        is compiled or transformed by `torch.func`, where `backward` cannot be called.

        Args:
            weight: as in `backward`.
            variance_coef: factor of the variance's gradient; 0 leaves it out.

        Returns:
            The weighted sum of `value` over rows, for the log.
        """
        factor, grad = self._factor(weight), self.grad.detach()
        objective = (self.value * factor).sum() + nothing_but(grad * factor.unsqueeze(-1), self.params)
        if variance_coef == 0.0:
            return objective
        if self.phi is None:
            rows = max(1, grad.shape[:-1].numel())
            return objective + nothing_but(grad * (2.0 * variance_coef / rows), self.grad)
        spread = variance_coef * self.variance_loss()
        return objective + (spread - spread.detach())

    def _factor(self, weight: Tensor | float | None) -> Tensor:
        """`[*]` the weight of each row, a constant."""
        if weight is None:
            weight = 1.0 / max(1, self.value.numel())
        factor = weight if isinstance(weight, Tensor) else torch.full_like(self.value, weight)
        return factor.expand_as(self.value).detach()

    def variance_loss(self) -> Tensor:
        """Scalar to minimise in phi: the mean squared norm of the estimate over rows.

        With `phi` given its `backward()` reaches phi and nothing else. Without, it reaches all that the estimate
        depends on, which is phi alone as long as the control does not hold parameters of f.
        """
        loss = variance_loss(self.grad)
        return loss if self.phi is None else only_to(self.phi, loss)


def nothing_but(gradient: Tensor, at: Tensor) -> Tensor:
    """0, with this gradient at `at`; none where `at` is infinite, as the logit of a masked choice is."""
    return ((at - at.detach()).nan_to_num(nan=0.0) * gradient).sum()


def variance_loss(grad: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over examples of the squared norm of their gradient estimate.

    The estimate's mean does not depend on phi, so the gradient of this second moment is that of the variance.

    Args:
        grad: `[*, P]` estimates, differentiable in phi.
        weight: `[*]` weight of each example, not negative (0 leaves it out); all equal by default. Only their ratios
            matter.

    Returns:
        A scalar; 0 when no example has any weight.
    """
    squared_norm = grad.square().sum(-1)
    if weight is None:
        return squared_norm.mean() if squared_norm.numel() else squared_norm.sum()
    total = (weight * squared_norm).sum() if weight.dim() != 1 else weight @ squared_norm
    return total / weight.sum().clamp(min=torch.finfo(grad.dtype).tiny)


def only_to(inputs: Iterable[Tensor], loss: Tensor) -> Tensor:
    """The value of `loss`, with its gradient to `inputs` and to nothing else.

    The gradient is a constant: to differentiate it again is refused.

    Args:
        inputs: what the gradient reaches; a leaf that `loss` does not depend on gets none.
        loss: a scalar.

    Returns:
        A scalar, without graph where there is nothing to reach.

    Raises:
        ValueError: when one of them was computed, but not on the way to `loss`.
    """
    inputs = tuple(inputs)
    if not loss.requires_grad or not inputs:
        return loss.detach()
    gradients = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
    reached = []
    for x, gradient in zip(inputs, gradients, strict=True):
        if gradient is not None:
            reached.append((x, gradient))
        elif not x.is_leaf:
            raise ValueError(
                "phi holds a tensor that was computed, but from which the estimate was not: give the parameters behind it"
            )
    return _WithGradient.apply(loss.detach(), *(x for x, _ in reached), *(gradient.detach() for _, gradient in reached))  # type: ignore[no-any-return]


class _WithGradient(torch.autograd.Function):
    """`value`, with the gradients `[K]` that follow at the K inputs that stand before them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, *inputs_and_gradients: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.saved_tensors) // 2
        inputs, gradients = ctx.saved_tensors[:count], [weight * x for x in ctx.saved_tensors[count:]]
        if torch.is_grad_enabled():
            gradients = [_Constant.apply(x, at) for x, at in zip(gradients, inputs, strict=True)]
        return None, *gradients, *(None for _ in gradients)


class _Constant(torch.autograd.Function):
    """`gradient`, which refuses to be differentiated in `at`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, at: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError(
            "the variance's gradient at phi has no second derivative: leave phi out and pick the tensors to differentiate "
            "in by torch.autograd.grad(estimate.variance_loss(), phi, create_graph=True)"
        )


def weighted_moments(columns: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each column over rows.

    Args:
        columns: `[B, C]`.
        weight: `[B]` weight of each row, not negative; only their ratios matter.

    Returns:
        `[C]` means and `[C]` variances; 0 when no row has any weight.
    """
    share = weight / weight.sum().clamp(min=torch.finfo(columns.dtype).tiny)
    mean = share @ columns
    return mean, share @ (columns - mean).square()
