"""Torsos: what reads encoded observations and gives features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relax_rl.errors import SettingsError, did_you_mean
from relax_rl.networks.cnns import ImpalaCNN, NatureCNN, SmallCNN
from relax_rl.networks.layers import ACTIVATIONS, orthogonal
from relax_rl.networks.spaces import Leaf, ObservationEncoder
from relax_rl.settings.config import Precision

__all__ = [
    "MLP",
    "CombinedTorso",
    "ImageTorso",
    "ResidualMLP",
    "Selection",
    "Torso",
    "make_torso",
    "mlp",
]


class MLP(nn.Module):
    """`[B, size]` -> `[B, hidden[-1]]`: linear layers, orthogonal at gain sqrt 2, each followed by the activation.

    Without hidden layers it gives back what it gets.

    Args:
        size: length of the input.
        hidden: widths of the layers.
        activation: by name.
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


class ResidualMLP(nn.Module):
    """An MLP whose layers may be normalised, and may add to what they get.

        h = activation(norm(W x + b)),    x <- x + h where both are as wide, else h

    Args:
        size: length of the input.
        hidden: widths of the layers.
        activation: by name.
        layer_norm: normalise what enters each activation (Ba et al. 2016), with a gain and a shift of its own.
        residual: add what a layer got to what it gives, where both are as wide (He et al. 2016).
    """

    def __init__(
        self, size: int, hidden: Sequence[int], activation: str, *, layer_norm: bool = False, residual: bool = True
    ) -> None:
        super().__init__()
        pairs = pairwise([size, *hidden])
        self.layers = nn.ModuleList(orthogonal(nn.Linear(*pair), math.sqrt(2)) for pair in pairs)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in hidden if layer_norm)
        self.activation, self.residual = ACTIVATIONS[activation], residual
        self.num_features = hidden[-1] if hidden else size

    def extra_repr(self) -> str:
        return f"residual={self.residual}"

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            h = F.linear(x, layer.weight, layer.bias)  # type: ignore[arg-type]
            h = self.activation(self.norms[number](h) if self.norms else h)
            x = x + h if self.residual and h.shape == x.shape else h
        return x


def mlp(
    size: int, hidden: Sequence[int], activation: str, *, layer_norm: bool = False, residual: bool = False
) -> MLP | ResidualMLP:
    """A plain MLP, or one with normalised layers or residual ones.

    Args:
        size, hidden, activation, layer_norm, residual: as in `ResidualMLP`.
    """
    if layer_norm or residual:
        return ResidualMLP(size, hidden, activation, layer_norm=layer_norm, residual=residual)
    return MLP(size, hidden, activation)


class ImageTorso(nn.Module):
    """A network of images, and an MLP of its features: `[B, C, H, W]` -> `[B, num_features]`.

    Args:
        cnn: images to `[B, cnn.num_features]`.
        trunk: those to `[B, trunk.num_features]`.
    """

    def __init__(self, cnn: Any, trunk: Any) -> None:
        super().__init__()
        self.cnn, self.trunk, self.num_features = cnn, trunk, int(trunk.num_features)

    def forward(self, obs: Tensor) -> Tensor:
        features: Tensor = self.trunk(self.cnn(obs))
        return features


class CombinedTorso(nn.Module):
    """Leaf by leaf: each image through a CNN of its own, choices through embeddings; then all of them through an MLP.

    Takes `[B, D]`, the flat encoding of `ObservationEncoder`, and gives `[B, num_features]`.

    Args:
        leaves: in the order of the encoding.
        hidden, activation: of the MLP.
        cnn_features: width of the last layer of each large CNN.
        precision: of the CNNs.
        embed: numbers that stand for one choice of a discrete leaf.
        layer_norm, residual: of the MLP, see `ResidualMLP`.
        encoders: modules by the name of a leaf that take the place of its CNN or embedding, or read a vector:
            `[B, *leaf.shape]` to `[B, num_features]`, with that width as an attribute.

    Raises:
        SettingsError: an encoder is of no leaf, or choices have neither an embedding nor an encoder.
    """

    def __init__(
        self,
        leaves: Sequence[Leaf],
        hidden: Sequence[int],
        activation: str,
        cnn_features: int,
        precision: Precision = "float32",
        *,
        embed: int = 0,
        layer_norm: bool = False,
        residual: bool = False,
        encoders: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.leaves = tuple(leaves)
        own = dict(encoders or {})
        _check_leaves(self.leaves, own, embed)
        self._kinds = ["own" if leaf.name in own else leaf.kind for leaf in leaves]
        kinds = list(zip(self.leaves, self._kinds, strict=True))
        images = [leaf for leaf, kind in kinds if kind == "image"]
        self.cnns = nn.ModuleList(_cnn(leaf, cnn_features, precision) for leaf in images)
        self.embeddings = nn.ModuleList(nn.Embedding(leaf.choices, embed) for leaf, kind in kinds if kind == "discrete")
        self.own = nn.ModuleList(own[leaf.name] for leaf, kind in kinds if kind == "own")
        encoded: list[Any] = [*self.cnns, *self.own]
        size = sum(int(each.num_features) for each in encoded)
        size += sum(leaf.size * {"vector": 1, "discrete": embed}.get(kind, 0) for leaf, kind in kinds)
        self.trunk = mlp(size, hidden, activation, layer_norm=layer_norm, residual=residual)
        self.num_features = self.trunk.num_features

    def extra_repr(self) -> str:
        return ", ".join(
            f"{leaf.name}: {kind}{leaf.shape}" for leaf, kind in zip(self.leaves, self._kinds, strict=True)
        )

    def forward(self, obs: Tensor) -> Tensor:
        cnns, embeddings, own, parts = iter(self.cnns), iter(self.embeddings), iter(self.own), []
        spans = obs.split([leaf.size for leaf in self.leaves], -1)
        for leaf, kind, part in zip(self.leaves, self._kinds, spans, strict=True):
            if kind == "image":
                part = next(cnns)(part.unflatten(-1, leaf.shape))
            elif kind == "discrete":
                part = next(embeddings)(part.long()).flatten(1)
            elif kind == "own":
                part = next(own)(part.unflatten(-1, leaf.shape))
            parts.append(part)
        features: Tensor = self.trunk(torch.cat(parts, -1))
        return features


def _check_leaves(leaves: Sequence[Leaf], own: Mapping[str, Any], embed: int) -> None:
    names = [leaf.name for leaf in leaves]
    for name in own:
        if name not in names:
            raise SettingsError(f"encoders has {name!r}, which is no leaf{did_you_mean(name, names)}")
    for leaf in leaves:
        if leaf.kind == "discrete" and leaf.name not in own and embed < 1:
            raise SettingsError(
                f"embed is {embed}, and {leaf.name} has choices without an encoder; expected embed=config.embed"
            )


class Selection(nn.Module):
    """A torso that sees some columns of a flat encoding, `[B, D]` -> `[B, num_features]`.

    Args:
        torso: of those columns, in their order.
        spans: from and up to which column, each.
        shape: that the torso takes one of them in, `(C, H, W)` of a single image; flat by default.
    """

    def __init__(self, torso: Any, spans: Sequence[tuple[int, int]], shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.torso, self.spans, self.num_features = torso, tuple(spans), int(torso.num_features)
        self.size = sum(end - begin for begin, end in self.spans)
        self.shape = (self.size,) if shape is None else tuple(shape)

    def extra_repr(self) -> str:
        return f"spans={self.spans}, shape={self.shape}"

    def select(self, obs: Tensor) -> Tensor:
        """`[B, size]` those columns of `[B, D]`."""
        parts = [obs[:, begin:end] for begin, end in self.spans]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def forward(self, obs: Tensor) -> Tensor:
        seen = self.select(obs)
        features: Tensor = self.torso(seen if len(self.shape) == 1 else seen.unflatten(-1, self.shape))
        return features


Torso = MLP | ResidualMLP | NatureCNN | ImpalaCNN | SmallCNN | ImageTorso | CombinedTorso | Selection


def make_torso(
    encoder: ObservationEncoder,
    *,
    hidden: Sequence[int],
    activation: str,
    cnn_features: int,
    precision: Precision = "float32",
    embed: int = 0,
    layer_norm: bool = False,
    residual: bool = False,
) -> Torso:
    """The torso that fits an encoding: a CNN for an image, an MLP for vectors, both for a mixture; see `CombinedTorso`."""
    how: dict[str, Any] = {"layer_norm": layer_norm, "residual": residual}
    only = encoder.leaves[0]
    if len(encoder.leaves) == 1 and only.kind == "image":
        cnn = _cnn(only, cnn_features, precision)
        torso = ImageTorso(cnn, mlp(cnn.num_features, hidden, activation, **how)) if only.cnn == "small" else cnn
        return torso if encoder.is_image else Selection(torso, [(0, only.size)], only.shape)  # floats come flat
    if any(leaf.kind != "vector" for leaf in encoder.leaves):
        return CombinedTorso(encoder.leaves, hidden, activation, cnn_features, precision, embed=embed, **how)
    return mlp(encoder.shape[0], hidden, activation, **how)


def _cnn(leaf: Leaf, num_features: int, precision: Precision) -> NatureCNN | ImpalaCNN | SmallCNN:
    how: dict[str, Any] = {"precision": precision, "highest": leaf.highest}
    if leaf.cnn == "small":
        return SmallCNN(leaf.shape, **how)
    return (ImpalaCNN if leaf.cnn == "impala" else NatureCNN)(leaf.shape, num_features, **how)
