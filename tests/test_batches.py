"""Batches of images: every epoch in an order of its own, which can be gone on with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from relax_rl.errors import CheckpointError
from relax_rl.experiments.batches import Batches


def test_an_epoch_passes_through_every_image_in_a_new_order():
    images = np.eye(10, dtype=np.uint8)
    batches = Batches(images, seed=3)
    seen = torch.cat([batches.next(4) for _ in range(5)])  # two epochs; the third batch lies in both
    assert seen.dtype == torch.float32 and seen.shape == (20, 10)
    orders = seen.argmax(1).reshape(2, 10)
    assert (orders.sort(1).values == torch.arange(10)).all() and (orders[0] != orders[1]).any()
    assert (torch.cat([Batches(images, seed=3).next(10)]).argmax(1) == orders[0]).all()
    assert (Batches(images, seed=4).next(10).argmax(1) != orders[0]).any()


def test_a_batch_may_be_larger_than_the_data():
    assert Batches(np.eye(3, dtype=np.uint8), seed=0).next(8).sum(0).sort().values.tolist() == [2, 3, 3]


def test_dynamic_pixels_are_drawn_anew_with_their_probability():
    images = np.tile(np.array([0, 51, 128, 254, 255], np.uint8), (2, 1))
    batches = Batches(images, dynamic=True, seed=5)
    drawn = batches.next(20_000)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    mean = drawn.mean(0)
    assert mean[0] == 0 and mean[4] == 1
    p = torch.tensor([51, 128, 254]) / 255
    z = (mean[1:4] - p) / (p * (1 - p) / 20_000).sqrt()
    assert z.abs().max() < 4


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_a_resumed_order_is_the_same_bit_for_bit(dynamic, steps):
    images = np.random.RandomState(0).randint(0, 256 if dynamic else 2, (10, 6)).astype(np.uint8)
    one, other = Batches(images, dynamic=dynamic, seed=1), Batches(images, dynamic=dynamic, seed=2)
    for _ in range(steps):
        one.next(4)
    other.load_state_dict(one.state_dict())
    for _ in range(12):
        assert torch.equal(one.next(4), other.next(4))


def test_a_state_of_other_images_is_refused():
    one, other = Batches(np.eye(4, dtype=np.uint8), seed=0), Batches(np.eye(5, dtype=np.uint8), seed=0)
    with pytest.raises(CheckpointError, match="trained on 4 images, but there are 5"):
        other.load_state_dict(one.state_dict())
    with pytest.raises(CheckpointError, match="damaged"):
        one.load_state_dict({})
    with pytest.raises(CheckpointError, match="damaged"):
        one.load_state_dict({**one.state_dict(), "position": torch.tensor(9)})
