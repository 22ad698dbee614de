"""Layers and torsos."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from relax_rl.networks import MLP, CombinedTorso, NatureCNN, make_torso
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
