"""Building blocks of networks: layers, and torsos that read encoded observations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relax_rl.networks.spaces import Leaf, ObservationEncoder
from relax_rl.settings.config import Precision

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "CombinedTorso",
    "NatureCNN",
    "Torso",
    "after_last_layer",
    "make_torso",
    "orthogonal",
    "product",
    "tanh",
]

_FEW_CHANNELS = 16
"""Channels up to which an image is converted plane by plane."""
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether oneDNN can be asked for a product of matrices by name."""
_MANY = 8192
"""Elements from which three passes of cheap operations beat one of `torch.tanh` on a CPU."""


class _Tanh(torch.autograd.Function):
    """tanh x = 2 sigmoid(2 x) - 1, to 2e-7: on a CPU PyTorch's sigmoid is far cheaper than its tanh."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.sigmoid(2.0 * x).mul_(2.0).sub_(1.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(grad, y)  # type: ignore[no-any-return]


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent, by the cheapest way for its size."""
    if x.numel() < _MANY or x.is_cuda or torch.compiler.is_compiling():
        return torch.tanh(x)
    if not (x.requires_grad and torch.is_grad_enabled()):
        return _Tanh.forward(x)
    result: Tensor = _Tanh.apply(x)
    return result


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": tanh, "relu": F.relu, "silu": F.silu, "elu": F.elu}


LayerT = TypeVar("LayerT", nn.Linear, nn.Conv2d)


def orthogonal(layer: LayerT, gain: float) -> LayerT:
    """Orthogonal weights at `gain` and zero bias, in place; returns the layer."""
    nn.init.orthogonal_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Module):
    """`[B, size]` -> `[B, hidden[-1]]`: linear layers, orthogonal at gain sqrt 2, each followed by the activation.

    Without hidden layers it gives back what it gets.
    """

    def __init__(self, size: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        pairs = pairwise([size, *hidden])
        self.layers = nn.ModuleList(orthogonal(nn.Linear(*pair), math.sqrt(2)) for pair in pairs)
        self.activation = ACTIVATIONS[activation]
        self.num_features = hidden[-1] if hidden else size

    def forward(self, x: Tensor) -> Tensor:
        # Calling a small layer as a module costs more than the layer itself.
        for layer in self.layers:
            x = self.activation(F.linear(x, layer.weight, layer.bias))  # type: ignore[arg-type]
        return x


class NatureCNN(nn.Module):
    """`[B, C, H, W]` images of 0..255 -> `[B, num_features]` (Mnih et al. 2015): 32x8/4, 64x4/2, 64x3/1, then linear.

    Args:
        shape: C, H and W.
        num_features: width of the linear layer.
        precision: "float32", or "bfloat16" for everything in here; weights and features are float32 all the same.
    """

    def __init__(self, shape: tuple[int, ...], num_features: int = 512, *, precision: Precision = "float32") -> None:
        super().__init__()
        channels, height, width = shape
        self.convolutions = nn.Sequential(
            orthogonal(nn.Conv2d(channels, 32, 8, stride=4), math.sqrt(2)),
            nn.ReLU(inplace=True),
            orthogonal(nn.Conv2d(32, 64, 4, stride=2), math.sqrt(2)),
            nn.ReLU(inplace=True),
            orthogonal(nn.Conv2d(64, 64, 3, stride=1), math.sqrt(2)),
            nn.ReLU(inplace=True),
            nn.Flatten(),
        )
        size = 64 * _after_convolutions(height) * _after_convolutions(width)
        last = orthogonal(nn.Linear(size, num_features), math.sqrt(2))
        self.linear = nn.Sequential(last, nn.ReLU(inplace=True))
        self.num_features = num_features
        self.dtype: torch.dtype = getattr(torch, precision)
        # Channels last is what oneDNN and cuDNN convolve fastest.
        self.convolutions.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, obs: Tensor) -> Tensor:
        return self.after_convolutions(self.convolved(obs))

    def convolved(self, obs: Tensor) -> Tensor:
        """`[B, size]` what the convolutions make of `[B, C, H, W]` images, in the CNN's precision."""
        x = _channels_last(obs, self.dtype)
        for number, layer in enumerate(each for each in self.convolutions if isinstance(each, nn.Conv2d)):
            assert layer.bias is not None
            # Scaling the weights instead of the pixels is cheaper, and bfloat16 holds whole numbers up to 256 exactly.
            weight = layer.weight if number else layer.weight / 255.0
            x = F.relu_(F.conv2d(x, weight.to(self.dtype), layer.bias.to(self.dtype), layer.stride))
        return x.flatten(1)

    def last_layer(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the linear layer, in the CNN's precision and without graph; for as long as they stand."""
        last = cast(nn.Linear, self.linear[0])
        return last.weight.detach().to(self.dtype), last.bias.detach().to(self.dtype)

    def after_convolutions(self, convolved: Tensor) -> Tensor:
        """`[B, num_features]` from what `convolved` gave."""
        features: Tensor = _LastLayer.apply(
            convolved, self.linear[0].weight, self.linear[0].bias, *self.last_layer(), None
        )
        return features

    def recalled(self, convolved: Tensor, layer: tuple[Tensor, Tensor], features: Tensor) -> Tensor:
        """`[B, num_features]` features that are known already, with their graph.

        Args:
            convolved: `[B, size]` what they were made from.
            layer: what `last_layer` gave then.
            features: `[B, num_features]`.
        """
        known: Tensor = _LastLayer.apply(convolved, self.linear[0].weight, self.linear[0].bias, *layer, features)
        return known


class _LastLayer(torch.autograd.Function):
    """relu(x W' + b): `narrow` and `narrow_bias` are W and b in the precision of x, `known` the result if it is there."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, narrow: Tensor, narrow_bias: Tensor, known: Tensor | None
    ) -> Tensor:
        features = after_last_layer(x, (narrow, narrow_bias)) if known is None else known.view_as(known)
        ctx.save_for_backward(x, narrow, features)
        return features

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, features = ctx.saved_tensors
        below = torch.ops.aten.threshold_backward(grad, features, 0.0)
        narrow = below.to(x.dtype)
        to_weight = product(narrow.t(), x.t()).to(grad.dtype)
        return product(narrow, weight.t()), to_weight, below.sum(0), None, None, None


def after_last_layer(x: Tensor, layer: tuple[Tensor, Tensor]) -> Tensor:
    """`[B, F]` relu(x W' + b) for `layer` = (W, b), as float32 and without graph."""
    return F.relu_(product(x, *layer)).float()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`[B, O]` x W' + b for `[B, I]` and `[O, I]`, without graph.

    For float32 on a CPU torch asks MKL, which is slow on processors other than Intel's; here oneDNN is asked.
    """
    if x.dtype == torch.float32 and x.device.type == "cpu" and _ONEDNN:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return found
    return F.linear(x, weight, bias)


def _channels_last(obs: Tensor, dtype: torch.dtype) -> Tensor:
    """`[B, C, H, W]` images with their channels side by side in memory."""
    batch, channels, height, width = obs.shape
    image = torch.empty((batch, height, width, channels), dtype=dtype, device=obs.device)
    if obs.is_cuda or channels > _FEW_CHANNELS:
        image.copy_(obs.permute(0, 2, 3, 1))
    else:
        # Plane by plane, since a conversion that also transposes is slow on a CPU.
        for channel in range(channels):
            image[..., channel].copy_(obs[:, channel])
    return image.permute(0, 3, 1, 2)


def _after_convolutions(side: int) -> int:
    for kernel, stride in ((8, 4), (4, 2), (3, 1)):
        side = (side - kernel) // stride + 1
    return side


class CombinedTorso(nn.Module):
    """Images among other leaves: each image through a Nature CNN of its own, the rest and their features through an MLP.

    Takes `[B, D]`, the flat encoding of `ObservationEncoder`, and gives `[B, num_features]`.
    """

    def __init__(
        self,
        leaves: Sequence[Leaf],
        hidden: Sequence[int],
        activation: str,
        cnn_features: int,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.leaves = tuple(leaves)
        images = [leaf for leaf in leaves if leaf.kind == "image"]
        self.cnns = nn.ModuleList(NatureCNN(leaf.shape, cnn_features, precision=precision) for leaf in images)
        size = cnn_features * len(images) + sum(leaf.size for leaf in leaves if leaf.kind == "vector")
        self.trunk = MLP(size, hidden, activation)
        self.num_features = self.trunk.num_features

    def forward(self, obs: Tensor) -> Tensor:
        cnns, parts = iter(self.cnns), []
        for leaf, part in zip(self.leaves, obs.split([leaf.size for leaf in self.leaves], -1), strict=True):
            parts.append(next(cnns)(part.unflatten(-1, leaf.shape)) if leaf.kind == "image" else part)
        features: Tensor = self.trunk(torch.cat(parts, -1))
        return features


Torso = MLP | NatureCNN | CombinedTorso


def make_torso(
    encoder: ObservationEncoder,
    *,
    hidden: Sequence[int],
    activation: str,
    cnn_features: int,
    precision: Precision = "float32",
) -> Torso:
    """The torso that fits an encoding: Nature CNN for an image, MLP for vectors, both for a mixture."""
    if encoder.is_image:
        return NatureCNN(encoder.shape, cnn_features, precision=precision)
    if any(leaf.kind == "image" for leaf in encoder.leaves):
        return CombinedTorso(encoder.leaves, hidden, activation, cnn_features, precision)
    return MLP(encoder.shape[0], hidden, activation)
