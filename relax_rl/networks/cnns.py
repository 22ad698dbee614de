"""Networks that read images: the Nature CNN, the residual one of IMPALA, and a small one for grids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relax_rl.networks.images import SMALLEST_IMAGE_SIDE
from relax_rl.networks.layers import orthogonal
from relax_rl.settings.config import Precision

__all__ = ["ImpalaCNN", "NatureCNN", "SmallCNN", "after_last_layer", "product"]

_FEW_CHANNELS = 16
"""Channels up to which an image is converted plane by plane."""
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether oneDNN can be asked for a product of matrices by name."""
_CODES = 16.0
"""Small images of bytes often hold codes of objects and colours, of which there are about as many."""
_LONG_SIDE = 15
"""Side above which the second convolution of the small CNN takes every second pixel."""


class NatureCNN(nn.Module):
    """`[B, C, H, W]` images of 0..255 -> `[B, num_features]` (Mnih et al. 2015): 32x8/4, 64x4/2, 64x3/1, then linear.

    Args:
        shape: C, H and W.
        num_features: width of the linear layer.
        precision: "float32", or "bfloat16" for everything in here; weights and features are float32 all the same.
        highest: the number in an image that becomes 1.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        num_features: int = 512,
        *,
        precision: Precision = "float32",
        highest: float = 255.0,
    ) -> None:
        super().__init__()
        self.highest = highest
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

    def extra_repr(self) -> str:
        return "" if self.highest == 255.0 else f"highest={self.highest}"

    def forward(self, obs: Tensor) -> Tensor:
        return self.after_convolutions(self.convolved(obs))

    def convolved(self, obs: Tensor) -> Tensor:
        """`[B, size]` what the convolutions make of `[B, C, H, W]` images, in the CNN's precision."""
        x = _channels_last(obs, self.dtype)
        for number, layer in enumerate(each for each in self.convolutions if isinstance(each, nn.Conv2d)):
            assert layer.bias is not None
            # Scaling the weights instead of the pixels is cheaper, and bfloat16 holds whole numbers up to 256 exactly.
            weight = layer.weight if number else layer.weight / self.highest
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
    if x.dtype == torch.float32 and x.device.type == "cpu" and _ONEDNN and not torch.compiler.is_compiling():
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


class ImpalaCNN(nn.Module):
    """`[B, C, H, W]` images -> `[B, num_features]`: the deep network of IMPALA (Espeholt et al. 2018, figure 3).

    Three sections, each a 3x3 convolution, max-pooling by 2 and two residual blocks of two 3x3 convolutions, then a
    linear layer with ReLU.

    Args:
        shape: C, H and W.
        num_features: width of the linear layer, 256 in the paper.
        channels: of the sections, `(16, 32, 32)` in the paper.
        precision: of the convolutions; weights and features are float32 all the same.
        highest: the number in an image that becomes 1.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        num_features: int = 256,
        *,
        channels: Sequence[int] = (16, 32, 32),
        precision: Precision = "float32",
        highest: float = 255.0,
    ) -> None:
        super().__init__()
        self.pixels = _Pixels(shape, highest, precision)
        before, (height, width) = self.pixels.channels, shape[1:]
        sections = []
        for after in channels:
            sections.append(nn.ModuleList([_conv(before, after), *(_conv(after, after, k % 2) for k in range(4))]))
            before, height, width = after, (height + 1) // 2, (width + 1) // 2
        self.sections = nn.ModuleList(sections)
        self.linear = orthogonal(nn.Linear(before * height * width, num_features), math.sqrt(2))
        self.num_features = num_features

    def forward(self, obs: Tensor) -> Tensor:
        x = self.pixels(obs)
        for section in self.sections:
            first, *blocks = cast(list[nn.Conv2d], list(cast(nn.ModuleList, section)))
            x = F.max_pool2d(_convolved(first, x), 3, stride=2, padding=1)
            for one, two in zip(blocks[::2], blocks[1::2], strict=True):
                x = x + _convolved(two, F.relu(_convolved(one, F.relu(x))))
        features: Tensor = self.linear(F.relu(x).flatten(1).float())
        return F.relu(features)


class SmallCNN(nn.Module):
    """`[B, C, H, W]` images with sides of 5 and more -> `[B, num_features]`: 16 and 32 filters of 3x3, each with ReLU.

    No linear layer follows: an MLP is meant to. The second convolution takes every second pixel where a side is above 15.

    Args:
        shape: C, H and W.
        precision: of the convolutions; weights and features are float32 all the same.
        highest: the number in an image that becomes 1.

    Attributes:
        num_features: 32 times the pixels that are left, 32 x 3 x 3 of 7 x 7 and 32 x 6 x 6 of 10 x 10.
    """

    def __init__(self, shape: tuple[int, ...], *, precision: Precision = "float32", highest: float = 255.0) -> None:
        super().__init__()
        self.pixels = _Pixels(shape, highest, precision)
        stride = 2 if max(shape[1:]) > _LONG_SIDE else 1
        first = orthogonal(nn.Conv2d(self.pixels.channels, 16, 3), math.sqrt(2))
        second = orthogonal(nn.Conv2d(16, 32, 3, stride=stride), math.sqrt(2))
        self.convolutions = nn.ModuleList([first, second])
        height, width = ((side - 5) // stride + 1 for side in shape[1:])
        self.num_features = 32 * height * width

    def forward(self, obs: Tensor) -> Tensor:
        x: Tensor = self.pixels(obs)
        for layer in self.convolutions:
            x = F.relu(_convolved(cast(nn.Conv2d, layer), x))
        return x.flatten(1).float()


class _Pixels(nn.Module):
    """Numbers of an image as a convolution takes them, the highest being 1.

    A byte of a small image may be a brightness or a code: such images come in twice the channels, as x / 255 and as
    min(x, 16) / 16.
    """

    def __init__(self, shape: tuple[int, ...], highest: float, precision: Precision) -> None:
        super().__init__()
        self.highest, self.dtype = highest, cast(torch.dtype, getattr(torch, precision))
        self.codes = highest == 255.0 and min(shape[1:]) < SMALLEST_IMAGE_SIDE
        self.channels = shape[0] * (2 if self.codes else 1)

    def extra_repr(self) -> str:
        return f"highest={self.highest}, codes={self.codes}, {self.dtype}"

    def forward(self, obs: Tensor) -> Tensor:
        x = _channels_last(obs, self.dtype)
        if self.codes:
            return torch.cat([x / self.highest, x.clamp(max=_CODES) / _CODES], 1)
        return x / self.highest if self.highest != 1.0 else x


def _conv(before: int, after: int, last: int = 0) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size; the last of a residual block at gain 1."""
    return orthogonal(nn.Conv2d(before, after, 3, padding=1), 1.0 if last else math.sqrt(2))


def _convolved(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The layer in the precision of x."""
    assert layer.bias is not None
    return F.conv2d(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype), layer.stride, layer.padding)
