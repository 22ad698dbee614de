"""Endless shuffled minibatches of images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relax_rl.errors import CheckpointError

__all__ = ["Batches"]


class Batches:
    """Minibatches in an order that one seed decides: every epoch passes through all images, each time anew shuffled.

    A batch may reach from one epoch into the next, so that no image is left out.

    Args:
        images: `[n, D]` uint8: 0 and 1, or 0..255 if `dynamic`.
        dynamic: draw every pixel anew, 1 with probability pixel / 255.
        seed: of the order and of the drawn pixels.
        device: of the images and the batches.
    """

    def __init__(
        self, images: NDArray[np.uint8], *, dynamic: bool = False, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        if not len(images):
            raise ValueError("there are no images")
        self._device = torch.device(device)
        table = torch.tensor(images, device=self._device)
        self._table = table if dynamic else table.float()
        self._dynamic = dynamic
        order_seed, pixel_seed = np.random.SeedSequence(seed).generate_state(2, np.uint64).tolist()
        self._order_generator = torch.Generator().manual_seed(_signed(order_seed))
        self._pixel_generator = torch.Generator(self._device).manual_seed(_signed(pixel_seed))
        self._position = 0
        self._begin_epoch()

    def next(self, batch_size: int) -> Tensor:
        """`[batch_size, D]` float32 of 0 and 1."""
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        rows = self._order[self._position : self._position + batch_size]
        self._position += len(rows)
        while len(rows) < batch_size:
            self._begin_epoch()
            more = self._order[: batch_size - len(rows)]
            self._position = len(more)
            rows = torch.cat([rows, more])
        pixels = self._table.index_select(0, rows)
        if not self._dynamic:
            return pixels
        uniform = torch.empty_like(pixels).random_(0, 255, generator=self._pixel_generator)  # 0..254
        return (uniform < pixels).float()

    def state_dict(self) -> dict[str, Tensor]:
        """Where it stands, as tensors on the CPU: enough to go on with the very same batches."""
        return {
            "rows": torch.tensor(len(self._table)),
            "epoch_generator": self._epoch_state.clone(),
            "position": torch.tensor(self._position),
            "pixel_generator": self._pixel_generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state_dict()`.

        Raises:
            CheckpointError: the state belongs to other images, or is none.
        """
        try:
            rows, position = int(state["rows"]), int(state["position"])
            order, pixels = state["epoch_generator"].cpu(), state["pixel_generator"].cpu()
        except (KeyError, AttributeError, TypeError, ValueError, RuntimeError):
            raise CheckpointError("the state of the minibatches is damaged; start a new run instead") from None
        if rows != len(self._table):
            raise CheckpointError(
                f"the run was trained on {rows:,} images, but there are {len(self._table):,}: give it the same data"
            )
        if not 0 <= position <= rows:
            raise CheckpointError(f"the state of the minibatches is damaged: it stands at image {position} of {rows}")
        try:
            self._order_generator.set_state(order)
            self._pixel_generator.set_state(pixels)
        except (RuntimeError, TypeError):
            raise CheckpointError(
                f"the state of the minibatches was not made on {self._device.type}; resume on the same kind of device"
            ) from None
        self._begin_epoch()
        self._position = position

    def _begin_epoch(self) -> None:
        # The state from which the order comes stands for the order itself when it is saved.
        self._epoch_state = self._order_generator.get_state()
        self._order = torch.randperm(len(self._table), generator=self._order_generator).to(self._device)
        self._position = 0


def _signed(seed: int) -> int:
    """A seed that fits torch's signed 64 bits."""
    return seed >> 1
