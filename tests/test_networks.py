"""Layers and torsos."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from relax_rl.networks import MLP, CombinedTorso, NatureCNN, make_torso, tanh
from relax_rl.spaces import ObservationEncoder


def torso_for(space: spaces.Space) -> object:
    return make_torso(ObservationEncoder(space), hidden=(16, 8), activation="tanh", cnn_features=32)


def image(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


def test_vectors_get_an_mlp_of_the_asked_widths() -> None:
    torso = torso_for(spaces.Box(-1, 1, (5,)))
    assert isinstance(torso, MLP)
    assert torso(torch.zeros(3, 5)).shape == (3, 8)
    assert torso.num_features == 8


def test_an_mlp_without_hidden_layers_passes_the_observation_on() -> None:
    torso = MLP(5, (), "tanh")
    obs = torch.randn(3, 5)
    assert torch.equal(torso(obs), obs)
    assert torso.num_features == 5


def test_hidden_layers_are_orthogonal_at_gain_sqrt_two() -> None:
    weight = MLP(16, (16,), "tanh").layers[0].weight
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(16), atol=1e-5, rtol=0)


def test_images_get_the_nature_cnn_with_its_published_size() -> None:
    torso = torso_for(image(4, 84, 84))
    assert isinstance(torso, NatureCNN)
    assert torso.linear[0].in_features == 64 * 7 * 7
    assert torso(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape == (2, 32)


def test_the_cnn_scales_pixels_to_one_whatever_the_memory_format() -> None:
    torso = NatureCNN((4, 84, 84), 32)
    pixels = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    expected = torso.linear(torso.convolutions(pixels.float() / 255))
    torch.testing.assert_close(torso(pixels), expected)
    torch.testing.assert_close(torso(pixels.contiguous(memory_format=torch.channels_last)), expected)


def test_the_smallest_image_leaves_a_pixel() -> None:
    assert NatureCNN((1, 36, 36), 8)(torch.zeros(1, 1, 36, 36)).shape == (1, 8)


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
