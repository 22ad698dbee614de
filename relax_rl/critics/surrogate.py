"""The surrogate c_phi(s, a): the action-dependent control variate, with its slope in closed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from relax_rl.critics.activations import DERIVATIVES
from relax_rl.critics.closed_form import Layers, evaluate, forward, gradient
from relax_rl.distributions import Distribution, SlopedDistribution
from relax_rl.networks.layers import ACTIVATIONS
from relax_rl.networks.torsos import MLP, mlp

__all__ = ["ActionSurrogate", "MLPSurrogate", "surrogate_at"]

_ACTIVATIONS: dict[type[nn.Module], str] = {nn.Tanh: "tanh", nn.ReLU: "relu", nn.ELU: "elu", nn.SiLU: "silu"}

# On a CPU so many rows at a time: larger tensors are fetched from the system and given back to it at every step.
_BLOCK = 2048


class ActionSurrogate(nn.Module):
    """c^(s, a) = gain * net(features of s, relaxed action), the part of c_phi that depends on the action.

    The advantage already holds -V(s), so c_phi = V + c^ enters the estimators as c^ alone. The last layer starts at
    zero: a fresh surrogate changes nothing, and must earn its place by lowering the variance. The learned gain lets all of
    it shrink at once where it does not (`benchmarks/results/ablation` shows what is lost without).

    Args:
        num_features: length of the description of s, to which no gradient flows.
        num_actions: length of the relaxed action.
        hidden: widths of the hidden layers.
        activation: name of a smooth activation: c's gradient in the action is what the estimators use, and its
            dependence on the action is all that phi can be trained through.
        layer_norm: normalise what enters each activation; the slope has no closed form then.
    """

    def __init__(
        self,
        num_features: int,
        num_actions: int,
        hidden: Sequence[int],
        activation: str = "tanh",
        *,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.layers = mlp(num_features + num_actions, hidden, activation, layer_norm=layer_norm)
        self.derivatives = DERIVATIVES[activation]
        self.head = nn.Linear(self.layers.num_features, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, features: Tensor, relaxed_action: Tensor) -> Tensor:
        """`[*]` values from `[*, F]` features and `[*, A]` relaxed actions."""
        out: Tensor = self.head(self.layers(torch.cat([features, relaxed_action], -1)))
        return self.gain * out.squeeze(-1)

    @property
    def has_closed_form(self) -> bool:
        """Whether `at` says what a call does: not so where either was replaced, or a layer was, without the other."""
        kind = type(self)
        same = kind.forward is ActionSurrogate.forward and type(self.layers) is MLP and type(self.head) is nn.Linear
        return same or kind.at is not ActionSurrogate.at

    def at(self, features: Tensor, dist: SlopedDistribution | None = None) -> MLPSurrogate:
        """c^ of these states as the estimators take it, with its slope in closed form; see `surrogate_at`."""
        hidden: list[nn.Linear] = list(self.layers.layers)  # type: ignore[arg-type]
        weights, biases = [layer.weight for layer in hidden], [layer.bias for layer in hidden]
        out_weight, out_bias = self.gain * self.head.weight, self.gain * self.head.bias
        layers = Layers(weights, biases, out_weight, out_bias, self.layers.activation, self.derivatives)
        return MLPSurrogate(layers, dist, features)


def surrogate_at(
    surrogate: nn.Module, features: Tensor, dist: Distribution | None = None
) -> Callable[[Tensor], Tensor]:
    """c^ of some states, as a function of relaxed samples z or of embedded actions.

    Args:
        surrogate: a module of `(features, relaxed action)` with any curvature; one that has `at` brings its slope, if that
            is the slope of what it computes.
        features: `[B, F]` description of the states, to which no gradient flows.
        dist: of the actions, whose `soften` makes relaxed actions of z; none where embedded actions will come.

    Returns:
        From `[*, B, ...]` to `[*, B]`.
    """
    at: Any = getattr(surrogate, "at", None)
    if at is not None and getattr(surrogate, "has_closed_form", True):
        closed: Callable[[Tensor], Tensor] = at(features, dist)
        return closed
    features = features.detach()

    def control(z: Tensor) -> Tensor:
        relaxed = z if dist is None else dist.soften(z)
        value: Tensor = surrogate(features.expand(*relaxed.shape[:-1], -1), relaxed)
        return value

    return control


class MLPSurrogate:
    """c(z) = net([features, soften(z)]), for `relax`, `lax`, `dlax`, `marginal` and `policy_gradient_loss`.

    An ordinary function of z would do as well. This one also has `value_and_slope`, for which the estimators look: c
    and dc/dz without a graph, and the gradient of both in phi without differentiating a graph twice. It is made anew
    for every batch and holds no parameters of its own.

    Args:
        net: linear layers with biases, all of them followed by the same activation (tanh, SiLU, ELU or ReLU) but for
            the last, which has one output: `[*, F + A]` to `[*, 1]`; or the same as `Layers`. A smooth activation is
            worth more: c's slope is what the estimators use.
        dist: of the outcomes, whose `soften` bounds z; none leaves z as it is, for normal outcomes or for `marginal`.
        features: `[*, F]` description of each row's state, to which no gradient flows; none if c depends on z alone.
        temperature: of `soften`, a constant.
        parameters: by their names in `net`, to be taken in place of its own, as in `torch.func.functional_call`.

    Raises:
        ValueError: when `net` is built otherwise.
    """

    def __init__(
        self,
        net: nn.Sequential | Layers,
        dist: SlopedDistribution | None = None,
        features: Tensor | None = None,
        *,
        temperature: float = 1.0,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._layers = net if isinstance(net, Layers) else _layers(net, parameters)
        self._dist = dist if dist is None else dist.with_params(dist.params.detach())
        self._features = None if features is None else features.detach()
        self._temperature = temperature

    def __call__(self, z: Tensor) -> Tensor:
        """`[*]` values from relaxed samples `[*, A]`; more dimensions may lead."""
        x, _ = self._input(z)
        return forward(self._layers, x)

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """`[*]` c and `[*, A]` dc/dz, both differentiable in phi, once; z is a constant. In the type of the network, autocast or not."""
        if z.device.type != "meta" and torch.is_autocast_enabled(z.device.type):
            with torch.autocast(z.device.type, enabled=False):
                return self.value_and_slope(z)
        z, layers = z.detach().to(self._layers.out_weight.dtype), self._layers
        x, relaxed = self._input(z)
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            found = evaluate(layers, x.reshape(-1, x.shape[-1]), x.shape[-1] - z.shape[-1])
            return found.value.view(z.shape[:-1]), self._soften_slope(relaxed, found.slope.view(z.shape))
        parameters = layers.out_weight, layers.out_bias, *layers.weights, *layers.biases
        value, slope = _ValueAndSlope.apply(self, x, relaxed, *parameters)
        return value, slope

    def _soften_slope(self, relaxed: Tensor, vector: Tensor) -> Tensor:
        """dsoften(z)/dz, a symmetric matrix, times a vector."""
        return vector if self._dist is None else self._dist.soften_slope(relaxed, vector, self._temperature)

    def _input(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What the network sees, and the relaxed samples in it."""
        relaxed = z if self._dist is None else self._dist.soften(z, self._temperature)
        if self._features is None:
            return relaxed, relaxed
        return torch.cat([self._features.expand(*relaxed.shape[:-1], -1), relaxed], -1), relaxed


class _ValueAndSlope(torch.autograd.Function):
    """The closed form as one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any, surrogate: MLPSurrogate, x: Tensor, relaxed: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*parameters)
        flat, num_features = x.reshape(-1, x.shape[-1]), x.shape[-1] - relaxed.shape[-1]
        ctx.surrogate, ctx.relaxed = surrogate, relaxed
        ctx.found = [evaluate(surrogate._layers, rows, num_features) for rows in _blocks(flat)]
        value, slope = _joined([at.value for at in ctx.found]), _joined([at.slope for at in ctx.found])
        return value.view(relaxed.shape[:-1]), surrogate._soften_slope(relaxed, slope.view(relaxed.shape))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor, direction: Tensor) -> tuple[Tensor | None, ...]:
        ctx.saved_tensors  # noqa: B018  raises if a parameter has changed since
        layers: Layers = ctx.surrogate._layers
        direction = ctx.surrogate._soften_slope(ctx.relaxed, direction).reshape(-1, direction.shape[-1])
        rows = zip(ctx.found, _blocks(weight.reshape(-1)), _blocks(direction), strict=True)
        total, *others = (
            [g.out_weight, g.out_bias, *g.weights, *g.biases] for g in (gradient(layers, *x) for x in rows)
        )
        for of_block in others:
            torch._foreach_add_(total, of_block)
        return None, None, None, *total


def _blocks(rows: Tensor) -> Sequence[Tensor]:
    return [rows] if rows.shape[0] <= _BLOCK or rows.device.type != "cpu" else rows.split(_BLOCK)


def _joined(blocks: list[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _layers(net: nn.Sequential, parameters: Mapping[str, Tensor] | None) -> Layers:
    """The network as tensors, its own or those given."""
    modules = list(net)
    linear: list[Any] = modules[::2]
    between = modules[1::2]
    kind = type(between[0]) if between else nn.Tanh
    if (
        len(linear) != len(between) + 1
        or any(type(layer) is not nn.Linear or layer.bias is None for layer in linear)
        or kind not in _ACTIVATIONS
        or any(type(module) is not kind for module in between)
        or any(isinstance(module, nn.ELU) and module.alpha != 1.0 for module in between)
        or linear[-1].out_features != 1
    ):
        raise ValueError(
            "expected linear layers with biases, one of tanh, SiLU, ELU or ReLU between them, and a single output; "
            "give any other network as a function of z"
        )
    if parameters is None:
        weights, biases = [layer.weight for layer in linear], [layer.bias for layer in linear]
    else:
        numbers = range(0, len(modules), 2)
        weights = [parameters[f"{n}.weight"] for n in numbers]
        biases = [parameters[f"{n}.bias"] for n in numbers]
    name = _ACTIVATIONS[kind]
    return Layers(weights[:-1], biases[:-1], weights[-1], biases[-1], ACTIVATIONS[name], DERIVATIVES[name])
