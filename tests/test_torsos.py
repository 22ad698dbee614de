"""Torsos beside the plain MLP and the Nature CNN: what they compute, and what is taken for an image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional as F

from relax_rl.errors import SettingsError
from relax_rl.networks.cnns import ImpalaCNN, NatureCNN, SmallCNN
from relax_rl.networks.images import image_of
from relax_rl.networks.spaces import ObservationEncoder
from relax_rl.networks.torsos import MLP, CombinedTorso, ImageTorso, ResidualMLP, Selection, make_torso, mlp

INF = np.inf
BY_ENTRY = np.arange(300.0).reshape(10, 10, 3)


def box(dtype: Any, *shape: int, low: Any = 0, high: Any = 1) -> spaces.Box:
    return spaces.Box(low, 255 if dtype is np.uint8 else high, shape, dtype)


def torso_for(encoder: ObservationEncoder, **settings: Any) -> Any:
    return make_torso(encoder, **{"hidden": (8,), "activation": "tanh", "cnn_features": 16, **settings})


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (box(np.uint8, 7, 7, 3), ("small", (3, 7, 7))),  # MiniGrid
        (box(np.bool_, 10, 10, 4), ("small", (4, 10, 10))),  # MinAtar
        (box(np.bool_, 10, 10, 10), ("small", (10, 10, 10))),  # its Seaquest
        (box(np.float32, 10, 10, 6), ("small", (6, 10, 10))),
        (box(np.float32, 3, 12, 9, low=-1), ("small", (3, 12, 9))),
        (box(np.bool_, 8, 8, 111), ("small", (111, 8, 8))),  # chess: more channels than rows
        (box(np.uint8, 5, 5, 1), ("small", (1, 5, 5))),
        (box(np.uint8, 84, 84), ("nature", (1, 84, 84))),
        (box(np.uint8, 4, 84, 84), ("nature", (4, 84, 84))),
        (box(np.uint8, 2, 40, 50, 3), ("nature", (6, 40, 50))),
        (box(np.float32, 64, 64, 3), ("nature", (3, 64, 64))),
        (box(np.bool_, 36, 36, 2), ("nature", (2, 36, 36))),
        (box(np.uint8, 4, 4, 3), None),  # too small for an image
        (box(np.float32, 10, 10, 3, high=INF), None),  # numbers without bounds
        (spaces.Box(0, BY_ENTRY, dtype=np.float64), None),  # each with its own
        (box(np.float32, 100, 5, 2), None),  # long and thin: steps of a history
        (box(np.int64, 7, 7, 3, high=10), None),
        (box(np.bool_, 7, 7), None),
        (box(np.float32, 84, 84), None),
        (box(np.float32, 20), None),
        (spaces.MultiBinary((7, 7, 3)), None),
    ],
)
def test_what_is_clearly_an_image_is_taken_for_one(space: Any, expected: Any) -> None:
    found = image_of("obs", space, "auto")
    assert (None if found is None else (found.cnn, found.shape)) == expected
    assert image_of("obs", space, "none") is None
    assert (image_of("obs", space, "legacy") is not None) == (
        expected is not None and space.dtype == np.uint8 and min(expected[1][1:]) >= 36
    )


@pytest.mark.parametrize(
    ("space", "shape", "highest"),
    [
        (box(np.int64, 7, 7, 3, high=10), (3, 7, 7), 10.0),
        (box(np.bool_, 7, 7), (1, 7, 7), 1.0),
        (box(np.float32, 10, 10, 3, low=-INF, high=INF), (3, 10, 10), 1.0),
        (box(np.float32, 10, 10, 3, low=-2, high=1), (3, 10, 10), 2.0),
        (box(np.float32, 2, 9, 9, 3, high=0.5), (6, 9, 9), 1.0),
    ],
)
def test_a_named_cnn_reads_whatever_may_be_an_image(space: Any, shape: Any, highest: float) -> None:
    found = image_of("obs", space, "impala")
    assert found is not None and (found.cnn, found.shape, found.highest) == ("impala", shape, highest)


def test_the_nature_cnn_says_which_images_it_cannot_read() -> None:
    space = spaces.Dict({"eye": box(np.uint8, 7, 9, 3), "x": box(np.float32, 3)})
    with pytest.raises(SettingsError, match=r"at least 36 pixels a side, and 'eye' has 7 x 9; take 'small'"):
        ObservationEncoder(space, cnn="nature")


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.float32])
def test_small_images_reach_the_network_with_their_channels_first(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    batch = (rng.random((3, 6, 5, 2)) < 0.5).astype(dtype)
    encoder = ObservationEncoder(box(dtype, 6, 5, 2), cnn="auto")
    encoded, expected = encoder.encode(batch), np.moveaxis(batch, -1, 1).astype(np.float32)
    assert encoder.is_image == (dtype is not np.float32)
    assert encoded.dtype == encoder.dtype and encoded.shape == (3, *encoder.shape)
    np.testing.assert_array_equal(encoded.reshape(3, 2, 6, 5), expected)
    torch.manual_seed(0)
    torso = torso_for(encoder)
    inner = torso.torso if isinstance(torso, Selection) else torso
    assert isinstance(inner, ImageTorso) and isinstance(inner.cnn, SmallCNN)
    torch.testing.assert_close(torso(torch.from_numpy(encoded)), inner(torch.from_numpy(expected)))
    assert not encoder.vector_columns().size and encoder.small_images() == []


def by_hand(cnn: SmallCNN, x: Tensor, stride: int) -> Tensor:
    first, second = cnn.convolutions
    hidden = F.conv2d(x, first.weight, first.bias).relu()
    return F.conv2d(hidden, second.weight, second.bias, stride=stride).relu().flatten(1)


@pytest.mark.parametrize(("shape", "stride"), [((3, 7, 7), 1), ((2, 5, 6), 1), ((1, 20, 16), 2)])
def test_the_small_cnn_sees_bytes_as_brightness_and_as_codes(shape: tuple[int, ...], stride: int) -> None:
    torch.manual_seed(0)
    obs = torch.randint(0, 256, (4, *shape), dtype=torch.uint8)
    cnn, bits = SmallCNN(shape), SmallCNN(shape, highest=1.0)
    both = torch.cat([obs / 255.0, obs.clamp(max=16) / 16.0], 1)
    torch.testing.assert_close(cnn(obs), by_hand(cnn, both, stride))
    torch.testing.assert_close(bits(obs > 99), by_hand(bits, (obs > 99).float(), stride))
    assert cnn(obs).shape == (4, cnn.num_features)


def test_the_network_of_impala_has_its_published_size_and_computes_what_its_figure_says() -> None:
    torch.manual_seed(0)
    cnn = ImpalaCNN((3, 72, 96))
    assert cnn.num_features == 256 and cnn.linear.in_features == 32 * 9 * 12  # figure 3 of the paper
    weights = sum(x.numel() for x in cnn.parameters())
    sections = [(3, 16), (16, 32), (32, 32)]
    assert weights == sum(9 * a * b + b + 4 * (9 * b * b + b) for a, b in sections) + 256 * (32 * 9 * 12 + 1)
    small = ImpalaCNN((2, 6, 5), 7, channels=(4, 3), highest=2.0)
    obs = 2.0 * torch.rand(3, 2, 6, 5)
    x = obs / 2.0
    for first, *blocks in small.sections:
        x = nn.MaxPool2d(3, 2, 1)(first(x))
        for one, two in (blocks[:2], blocks[2:]):
            x = x + two(one(x.relu()).relu())
    torch.testing.assert_close(small(obs), small.linear(x.relu().flatten(1)).relu())


def test_a_nature_cnn_of_bits_takes_them_as_they_are() -> None:
    torch.manual_seed(0)
    cnn = NatureCNN((2, 36, 36), 8, highest=1.0)
    bits = torch.rand(3, 2, 36, 36) < 0.5
    torch.testing.assert_close(cnn(bits), cnn.linear(cnn.convolutions(bits.float())))


def test_the_cnns_of_bfloat16_give_float32_close_to_the_same() -> None:
    torch.manual_seed(0)
    obs = torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8)
    for kind in (SmallCNN, ImpalaCNN):
        exact, rounded = kind((3, 12, 12)), kind((3, 12, 12), precision="bfloat16")
        rounded.load_state_dict(exact.state_dict())
        found = rounded(obs)
        assert found.dtype == torch.float32
        assert 0 < (found - exact(obs)).norm() < 0.03 * exact(obs).norm()


@pytest.mark.parametrize(("layer_norm", "residual"), [(True, False), (False, True), (True, True)])
def test_normalised_and_residual_layers_are_what_their_equation_says(layer_norm: bool, residual: bool) -> None:
    torch.manual_seed(0)
    torso = mlp(3, (5, 5, 4), "silu", layer_norm=layer_norm, residual=residual)
    assert isinstance(torso, ResidualMLP) and torso.num_features == 4
    with torch.no_grad():
        for norm in torso.norms:
            norm.weight.uniform_(0.5, 1.5), norm.bias.uniform_(-1, 1)
    expected = x = torch.randn(6, 3)
    for number, layer in enumerate(torso.layers):
        h = expected @ layer.weight.T + layer.bias
        if layer_norm:
            centred = h - h.mean(-1, keepdim=True)
            h = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            h = h * torso.norms[number].weight + torso.norms[number].bias
        h = F.silu(h)
        expected = expected + h if residual and number == 1 else h
    torch.testing.assert_close(torso(x), expected)


def test_without_either_an_mlp_stays_plain() -> None:
    assert type(mlp(3, (4,), "tanh")) is MLP and "residual=True" in repr(mlp(3, (4,), "tanh", residual=True))


CHOICES = spaces.Dict(
    {
        "a": spaces.MultiDiscrete([3, 2], start=[1, 0]),
        "b": spaces.Box(-1, 1, (2,), np.float32),
        "c": spaces.Discrete(4, start=-1),
    }
)


def test_an_embedding_is_a_product_with_the_one_hot_choice() -> None:
    batch = {"a": np.array([[1, 0], [3, 1]]), "b": np.array([[0.5, -1], [0, 1]], np.float32), "c": np.array([-1, 2])}
    encoder, one_hot = ObservationEncoder(CHOICES, embed=True), ObservationEncoder(CHOICES)
    assert encoder.shape == (5,) and [leaf.kind for leaf in encoder.leaves] == ["discrete", "vector", "discrete"]
    torch.manual_seed(0)
    torso = torso_for(encoder, embed=3)
    assert isinstance(torso, CombinedTorso)
    hot, (of_a, of_c) = torch.from_numpy(one_hot.encode(batch)), torso.embeddings
    first, second = hot[:, :3] @ of_a.weight[:3], hot[:, 3:5] @ of_a.weight[3:]
    expected = torso.trunk(torch.cat([first, second, hot[:, 5:7], hot[:, 7:] @ of_c.weight], -1))
    torch.testing.assert_close(torso(torch.from_numpy(encoder.encode(batch))), expected)
    np.testing.assert_array_equal(encoder.vector_columns(), [2, 3])
    with pytest.raises(SettingsError, match="'c' lies outside its own space"):
        encoder.encode({**batch, "c": np.array([-2, 0])})


def test_a_leaf_may_have_an_encoder_of_the_users_own() -> None:
    class Sum(nn.Module):
        num_features = 1

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sum(1, keepdim=True)

    space = spaces.Dict({"eye": box(np.uint8, 5, 6, 3), "x": box(np.float32, 2), "y": box(np.float32, 3)})
    encoder = ObservationEncoder(space, cnn="small")
    torso = CombinedTorso(encoder.leaves, (), "tanh", 16, encoders={"eye": Sum(), "y": Sum()})
    batch = {"eye": np.full((1, 5, 6, 3), 2, np.uint8), "x": np.array([[3.0, 4.0]]), "y": np.array([[5.0, 6.0, 7.0]])}
    assert torso(torch.from_numpy(encoder.encode(batch))).tolist() == [[180.0, 3.0, 4.0, 18.0]]


def test_a_part_of_the_leaves_is_found_by_name_and_by_what_it_stands_beneath() -> None:
    inner = spaces.Dict({"q": box(np.float32, 2), "p": box(np.uint8, 40, 40, 3)})
    space = spaces.Dict({"arm": inner, "b": spaces.Discrete(3), "t": spaces.Tuple((box(np.float32, 1), inner["q"]))})
    encoder = ObservationEncoder(space)
    assert [leaf.name for leaf in encoder.leaves] == ["arm.p", "arm.q", "b", "t.0", "t.1"]
    part = encoder.only(["t.1", "arm.q", "b"])
    assert [leaf.name for leaf in part.leaves] == ["arm.q", "b", "t.1"]
    assert encoder.spans(part) == ((4800, 4805), (4806, 4808))
    whole = {"arm": {"q": [[1.0, 2.0]], "p": np.zeros((1, 40, 40, 3))}, "b": [1], "t": ([[3.0]], [[4.0, 5.0]])}
    assert part.encode(whole).tolist() == [[1, 2, 0, 1, 0, 4, 5]]
    assert encoder.only([]) is encoder.only(["arm", "b", "t"]) is encoder
    assert encoder.only(["arm.p"]).is_image
    with pytest.raises(
        SettingsError, match=r"policy_keys names 'leg', expected leaves of the observation: arm\.p, arm\.q"
    ):
        encoder.only(["leg"], "policy_keys")
