"""Layers and torsos."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from relax_rl.networks.cnns import NatureCNN, after_last_layer, product
from relax_rl.networks.layers import tanh
from relax_rl.networks.spaces import ObservationEncoder
from relax_rl.networks.torsos import MLP, CombinedTorso, make_torso


def torso_for(space: spaces.Space) -> object:
    return make_torso(ObservationEncoder(space), hidden=(16, 8), activation="tanh", cnn_features=32)


def image(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


def test_hidden_layers_are_orthogonal_at_gain_sqrt_two() -> None:
    weight = MLP(16, (16,), "tanh").layers[0].weight
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(16), atol=1e-5, rtol=0)


def test_images_get_the_nature_cnn_with_its_published_size() -> None:
    torso = torso_for(image(4, 84, 84))
    assert isinstance(torso, NatureCNN)
    assert torso.linear[0].in_features == 64 * 7 * 7
    assert torso(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape == (2, 32)


def pixels(rows: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (rows, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def gradients(torso: NatureCNN, features: torch.Tensor) -> torch.Tensor:
    """Of a sum in which every feature has a weight of its own."""
    weights = torch.linspace(-1.0, 1.0, features.numel()).reshape(features.shape)
    return torch.cat([x.flatten() for x in torch.autograd.grad((features * weights).sum(), list(torso.parameters()))])


def as_modules(torso: NatureCNN, images: torch.Tensor) -> torch.Tensor:
    return torso.linear(torso.convolutions(images.float() / 255))


@pytest.mark.parametrize("channels", [1, 3, 4, 20])
def test_the_cnn_and_its_gradients_are_those_of_the_plain_modules(channels: int) -> None:
    torch.manual_seed(0)
    torso = NatureCNN((channels, 44, 36), 32)
    images = pixels(5, channels, 44, 36)
    found, expected = torso(images), as_modules(torso, images)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torso(images.contiguous(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(gradients(torso, found), gradients(torso, expected), rtol=1e-4, atol=1e-4)


def test_known_features_get_the_graph_of_those_that_are_computed() -> None:
    torch.manual_seed(0)
    torso = NatureCNN((4, 36, 36), 16)
    images = pixels(6, 4, 36, 36)
    layer = torso.last_layer()
    convolved = torso.convolved(images)
    known = torso.recalled(convolved, layer, after_last_layer(convolved.detach(), layer))
    computed = torso(images)
    torch.testing.assert_close(known, computed)
    torch.testing.assert_close(gradients(torso, known), gradients(torso, computed))


def test_a_product_is_that_of_torch_with_and_without_bias() -> None:
    x, weight, bias = torch.randn(7, 300), torch.randn(20, 300), torch.randn(20)
    torch.testing.assert_close(
        product(x, weight, bias), torch.nn.functional.linear(x, weight, bias), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(product(x, weight.t().contiguous().t()), x @ weight.t(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(product(x.t(), weight[:, :7]), x.t() @ weight[:, :7].t(), rtol=1e-4, atol=1e-4)


def test_bfloat16_rounds_features_and_gradients_to_a_percent() -> None:
    torch.manual_seed(0)
    torso = NatureCNN((4, 84, 84), 64, precision="bfloat16")
    images = pixels(8, 4, 84, 84)
    found, expected = torso(images), as_modules(torso, images)
    assert found.dtype == torch.float32
    assert {parameter.dtype for parameter in torso.parameters()} == {torch.float32}
    assert 0 < (found - expected).norm() < 0.01 * expected.norm()
    ours, theirs = gradients(torso, found), gradients(torso, expected)
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.999


def test_bfloat16_holds_every_pixel_exactly() -> None:
    torso = NatureCNN((1, 36, 36), 8, precision="bfloat16")
    first, *others = [layer for layer in torso.convolutions if isinstance(layer, torch.nn.Conv2d)]
    with torch.no_grad():
        for layer in (first, *others):
            layer.weight.zero_()
        first.weight[0, 0, 0, 0] = 255.0
        for layer in others:
            layer.weight[0, 0, 0, 0] = 1.0
    values = torch.arange(256, dtype=torch.uint8)
    seen = torso.convolved(values[:, None, None, None].expand(-1, 1, 36, 36))
    assert torch.equal(seen[:, 0].float(), values.float())


def test_images_among_vectors_are_cut_out_of_the_flat_encoding_at_the_right_place() -> None:
    space = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "camera": image(3, 40, 36), "z": spaces.Discrete(3)})
    encoder = ObservationEncoder(space)
    torso = make_torso(encoder, hidden=(8,), activation="tanh", cnn_features=16)
    assert isinstance(torso, CombinedTorso)
    rng = np.random.default_rng(0)
    batch = {
        "a": rng.normal(size=(4, 2)).astype(np.float32),
        "camera": rng.integers(0, 256, (4, 3, 40, 36), dtype=np.uint8),
        "z": np.array([0, 1, 2, 0]),
    }
    by_hand = torch.cat(
        [
            torch.from_numpy(batch["a"]),
            torso.cnns[0](torch.from_numpy(batch["camera"])),
            torch.nn.functional.one_hot(torch.from_numpy(batch["z"]), 3).float(),
        ],
        -1,
    )
    torch.testing.assert_close(torso(torch.from_numpy(encoder.encode(batch))), torso.trunk(by_hand))


@pytest.mark.parametrize("activation", ["tanh", "relu", "silu", "elu"])
def test_every_activation_of_the_settings_exists(activation: str) -> None:
    torso = make_torso(ObservationEncoder(spaces.Box(-1, 1, (2,))), hidden=(4,), activation=activation, cnn_features=8)
    assert torch.isfinite(torso(torch.randn(3, 2))).all()


def test_a_large_tanh_is_the_tanh() -> None:
    x = torch.linspace(-30, 30, 20_001, dtype=torch.float64)
    small, large = x[:100].float(), x.float().requires_grad_()
    assert torch.equal(tanh(small), torch.tanh(small))  # as it is where it is cheap
    y, truth = tanh(large), torch.tanh(x)
    torch.testing.assert_close(y.double(), truth, atol=3e-7, rtol=0)
    torch.testing.assert_close(tanh(large.detach()), y.detach(), atol=0, rtol=0)
    (slope,) = torch.autograd.grad(y.sum(), large, create_graph=True)
    torch.testing.assert_close(slope.double(), 1 - truth**2, atol=6e-7, rtol=0)
    (curvature,) = torch.autograd.grad(slope.sum(), large)
    torch.testing.assert_close(curvature.double(), -2 * truth * (1 - truth**2), atol=2e-6, rtol=0)
    transformed = torch.func.grad(lambda x: torch.func.vmap(tanh)(x.view(3, -1)).sum())(large.detach())
    torch.testing.assert_close(transformed, slope.detach(), atol=1e-6, rtol=0)


def test_a_large_tanh_takes_no_numbers_for_others() -> None:
    x = torch.full((20_000,), math.nan)
    x[1:3] = torch.tensor([math.inf, -math.inf])
    y = tanh(x)
    assert y[0].isnan() and y[1] == 1 and y[2] == -1
