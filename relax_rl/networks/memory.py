"""Torsos with a memory: what they make of an observation depends on those before it in its episode."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn

from relax_rl.networks.host_cells import pays_on_host, unroll_gru
from relax_rl.networks.layers import is_exactly
from relax_rl.networks.torsos import Selection

__all__ = ["MemoryTorso", "RecurrentSelection", "RecurrentTorso", "is_recurrent", "last_state", "through_time"]


class RecurrentTorso(nn.Module):
    """What a recurrent torso has; inherit from it to give an agent a memory of your own.

    Attributes:
        num_features: F, width of the features.
        state_size: S, numbers of an environment's state, zeros where an episode begins.
    """

    num_features: int
    state_size: int

    def encode(self, obs: Tensor) -> Tensor:
        """`[B, E]` what is made of observations `[B, ...]` without memory; the observations by default."""
        return obs

    def unroll(self, encoded: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """T steps of N sequences, none of which ends on the way.

        Args:
            encoded: `[T, N, E]`.
            state: `[N, S]` before the first.

        Returns:
            `[T, N, F]` features, and the state `[N, S]` after the last step.
        """
        raise NotImplementedError

    def initial_state(self, num: int) -> Tensor:
        """`[num, S]` zeros."""
        like = next(self.parameters())
        return like.new_zeros((num, self.state_size))

    def step(self, obs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, F]` features of observations `[N, ...]`, and the state `[N, S]` after them."""
        features, state = self.unroll(self.encode(obs).unsqueeze(0), state)
        return features[0], state

    def forward(self, obs: Tensor) -> Tensor:
        """`[B, F]` features of observations `[B, ...]`, each the first of an episode."""
        return self.step(obs, self.initial_state(len(obs)))[0]


class MemoryTorso(RecurrentTorso):
    """A torso without memory, and a GRU (Cho et al. 2014) or an LSTM (Hochreiter & Schmidhuber 1997) of its features.

    Weights begin orthogonal, biases at 0. The state of an LSTM is its output, then its cell.

    Args:
        encoder: `[B, ...]` to `[B, encoder.num_features]`.
        kind: of the memory.
        size: width of its output.
    """

    def __init__(self, encoder: Any, kind: Literal["gru", "lstm"], size: int) -> None:
        super().__init__()
        self.encoder, self.kind, self.num_features = encoder, kind, size
        self.state_size = size if kind == "gru" else 2 * size
        self.cell: nn.GRU | nn.LSTM = (nn.GRU if kind == "gru" else nn.LSTM)(int(encoder.num_features), size)
        for name, x in self.cell.named_parameters():
            nn.init.zeros_(x) if "bias" in name else nn.init.orthogonal_(x)

    def encode(self, obs: Tensor) -> Tensor:
        encoded: Tensor = self.encoder(obs)
        return encoded

    def unroll(self, encoded: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        traced = torch.compiler.is_compiling()
        if is_exactly(self.cell, nn.GRU) and not traced and pays_on_host(self.cell, len(state)):
            return unroll_gru(self.cell, encoded, state)
        parts = tuple(x.contiguous().unsqueeze(0) for x in state.split(self.num_features, -1))
        if isinstance(self.cell, nn.GRU):
            features, after = self.cell(encoded, parts[0])
            return features, after[0]
        features, both = self.cell(encoded, parts)
        return features, torch.cat([x[0] for x in both], -1)


class RecurrentSelection(RecurrentTorso):
    """A recurrent torso that sees some columns of a flat encoding; see `Selection`."""

    def __init__(self, torso: Any, selection: Selection) -> None:
        super().__init__()
        self.torso, self.num_features, self.state_size = torso, int(torso.num_features), int(torso.state_size)
        self.spans, self.shape = selection.spans, selection.shape

    def extra_repr(self) -> str:
        return f"spans={self.spans}, shape={self.shape}"

    def encode(self, obs: Tensor) -> Tensor:
        seen = torch.cat([obs[:, begin:end] for begin, end in self.spans], -1)
        encoded: Tensor = self.torso.encode(seen if len(self.shape) == 1 else seen.unflatten(-1, self.shape))
        return encoded

    def unroll(self, encoded: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.torso.unroll(encoded, state)
        return found


def is_recurrent(torso: Any) -> TypeGuard[RecurrentTorso]:
    """Whether a torso has a memory."""
    return isinstance(torso, RecurrentTorso)


def through_time(
    torso: RecurrentTorso, obs: Tensor, state: Tensor, starts: Tensor, final_index: Tensor | None = None
) -> Tensor:
    """Features of whole rollouts, with their graph from step to step.

    Each stretch between two beginnings is a sequence; all of them run side by side, padded to the length of the longest.

    Args:
        torso: in question.
        obs: `[T N + K, ...]` T steps of N environments, then the last observations of K truncated episodes.
        state: `[N, S]` before the first row; without graph.
        starts: `[T, N]` where an episode begins, and the state is forgotten.
        final_index: `[K, 2]` (t, n) of the row that each last observation follows, where row t + 1 begins an episode.

    Returns:
        `[T N + K, F]`
    """
    steps, num_envs = starts.shape
    encoded = torso.encode(obs)
    first = torch.where(starts[0].unsqueeze(-1), 0.0, state)
    if num_envs and not bool(starts[1:].any()) and not (final_index is not None and len(final_index)):
        return torso.unroll(encoded.unflatten(0, (steps, num_envs)), first)[0].flatten(0, 1)
    begins = starts.clone()
    begins[0] = True
    sequence = begins.t().flatten().cumsum(0).view(num_envs, steps).t() - 1  # which one each row is in
    time = torch.arange(steps, device=starts.device).unsqueeze(-1).expand(-1, num_envs)
    place = time - torch.where(begins, time, 0).cummax(0).values
    rows, places = sequence.flatten(), place.flatten()
    if final_index is not None and len(final_index):
        t, n = final_index.unbind(-1)
        rows, places = torch.cat([rows, sequence[t, n]]), torch.cat([places, place[t, n] + 1])
    count, longest = (int(rows.max()) + 1, int(places.max()) + 1) if len(rows) else (1, 1)  # a graph even of nothing
    where = places * count + rows
    padded = encoded.new_zeros((longest * count, encoded.shape[-1])).index_copy(0, where, encoded)
    initial = first.new_zeros((count, first.shape[-1])).index_copy(0, sequence[0], first)
    features, _ = torso.unroll(padded.view(longest, count, -1), initial)
    return features.flatten(0, 1)[where]


@torch.no_grad()
def last_state(torso: RecurrentTorso, obs: Tensor, state: Tensor, starts: Tensor) -> Tensor:
    """`[N, S]` the state after T steps; arguments as of `through_time`, without last observations."""
    steps, num_envs = starts.shape
    encoded = torso.encode(obs).unflatten(0, (steps, num_envs))
    time = torch.arange(steps, device=starts.device).unsqueeze(-1)
    begun = (
        torch.where(starts, time, -1).max(0).values
    )  # what was before each environment's last beginning is forgotten
    cuts = [*sorted({0, *begun.clamp(min=0).tolist()}), steps]
    for begin, end in pairwise(cuts):
        state = torch.where((begun == begin).unsqueeze(-1), 0.0, state)
        _, state = torso.unroll(encoded[begin:end], state)
    return state
