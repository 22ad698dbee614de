"""Running statistics of observations and returns: part of the agent, saved with it, frozen in evaluation.

All of them are read during a rollout and its update, and take the rollout in afterwards: a statistic that moved within
a batch would correlate with the batch and bias its gradient.

Each takes in data in two steps, so that processes that learn together can take in what all of them saw: `summary` makes
a vector of the data, `merge` takes in one vector or several. `update` does both.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from relax_rl.errors import SettingsError
from relax_rl.networks.spaces import ObservationEncoder

__all__ = ["ObservationNormalizer", "RewardScaler", "RunningMoments", "chosen_columns"]

_NO_SPREAD = 1e-12
"""Variance of returns that are all the same but for rounding."""
_LARGEST_SCALED = 10.0
"""Size of a reward after scaling, of those that have been seen."""


class RunningMoments:
    """Mean and variance of a stream of vectors, in float64 on the host (Chan et al. 1979, parallel update)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.mean, self.var, self.count = np.zeros(shape), np.ones(shape), 0.0

    def summary(self, batch: np.ndarray) -> np.ndarray:
        """`[1 + 2 D]` of `[B, *shape]`: B, the means, and the sums of squared deviations from them."""
        size = len(batch)
        if size == 0:
            return np.zeros(1 + 2 * self.mean.size)
        mean = batch.sum(0, dtype=np.float64) / size
        square_sum = np.square(batch - mean).sum(0)
        return np.concatenate(([size], np.ravel(mean), np.ravel(square_sum)))

    def merge(self, summaries: np.ndarray) -> None:
        """Take in summaries `[S, 1 + 2 D]`, one after the other."""
        shape = self.mean.shape
        for summary in summaries:
            mean, square_sum = summary[1:].reshape(2, *shape)
            if summary[0]:
                self._take_in(float(summary[0]), mean, square_sum)

    def update(self, batch: np.ndarray) -> None:
        """Take in `[B, *shape]`; an empty batch changes nothing."""
        self.merge(self.summary(batch)[None])

    def _take_in(self, size: float, mean: np.ndarray, square_sum: np.ndarray) -> None:
        total = self.count + size
        delta = mean - self.mean
        self.var = (self.var * self.count + square_sum + np.square(delta) * (self.count * size / total)) / total
        self.mean = self.mean + delta * (size / total)
        self.count = total

    def state_dict(self) -> dict[str, Tensor]:
        values = {"mean": self.mean, "var": self.var, "count": self.count}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in ("mean", "var"):
            array, shape = state[name].cpu().numpy().astype(np.float64), getattr(self, name).shape
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
            setattr(self, name, array)
        self.count = float(state["count"])


class ObservationNormalizer:
    """(obs - mean) / std, clipped; the identity until it has seen a batch.

    Args:
        shape: of one encoded observation.
        device: of the tensors that are normalised.
        chosen: `shape` booleans, which entries are normalised; the others stay what they are. None for all.
        clip: what is normalised is clipped to +- this.
        floor: the least deviation that an entry is divided by.

    Attributes:
        shift: `[D]` float64, what has been taken off observations before they get here; None for nothing.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        *,
        chosen: np.ndarray | None = None,
        clip: float = 10.0,
        floor: float = 0.0,
    ) -> None:
        self.moments, self.device, self.chosen = RunningMoments(shape), device, chosen
        self.clip, self._floor = clip, floor
        self.shift: np.ndarray | None = None
        self._limit: float | np.ndarray = self.clip
        if chosen is not None:
            self._limit = np.where(chosen, np.float32(self.clip), np.float32(np.inf))
        self._device_limit = torch.as_tensor(self._limit, dtype=torch.float32).to(device)
        self._refresh()

    def __call__(self, obs: Tensor) -> Tensor:
        """`[..., *shape]` float32 -> the same, normalised."""
        if not self.moments.count:
            return obs
        scaled = (obs - self._mean) * self._inverse_std
        if self.chosen is None:
            return torch.clamp(scaled, -self.clip, self.clip)
        return torch.clamp(scaled, -self._device_limit, self._device_limit)

    def inverse(self, scaled: Tensor) -> Tensor:
        """`[..., *shape]` the observations that are normalised to these, as far as they were not clipped."""
        return scaled / self._inverse_std + self._mean if self.moments.count else scaled

    def on_host(self, obs: np.ndarray) -> np.ndarray:
        """What a call gives, in NumPy, as a new array (the very same one until it has seen a batch)."""
        if not self.moments.count:
            return obs
        scaled: np.ndarray = (obs - self._host_mean) * self._host_inverse_std
        np.maximum(scaled, -self._limit, out=scaled)
        np.minimum(scaled, self._limit, out=scaled)
        return scaled

    def summary(self, obs: Tensor, valid: Tensor) -> np.ndarray:
        """Of raw observations `[T, N, *shape]`, without the rows that are not `valid` `[T, N]`."""
        seen, ok = obs.cpu().numpy(), valid.cpu().numpy()
        return self.moments.summary(seen.reshape(-1, *seen.shape[2:]) if ok.all() else seen[ok])

    def merge(self, summaries: np.ndarray) -> None:
        """Take in summaries, one a row."""
        self.moments.merge(summaries)
        self._refresh()

    def update(self, obs: Tensor, valid: Tensor) -> None:
        """Take in raw observations `[T, N, *shape]`, without the rows that are not `valid` `[T, N]`."""
        self.merge(self.summary(obs, valid)[None])

    def _refresh(self) -> None:
        self._host_mean = self.moments.mean.astype(np.float32)
        std = np.maximum(np.sqrt(self.moments.var + 1e-8), self._floor)
        self._host_inverse_std = (1.0 / std).astype(np.float32)
        if self.chosen is not None:
            self._host_mean[~self.chosen], self._host_inverse_std[~self.chosen] = 0.0, 1.0
        on_device = (torch.from_numpy(x).to(self.device) for x in (self._host_mean, self._host_inverse_std))
        self._mean, self._inverse_std = on_device

    def state_dict(self) -> dict[str, Tensor]:
        return self.moments.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.moments.load_state_dict(state)
        self._refresh()


class RewardScaler:
    """Divides rewards by the running standard deviation of the discounted return of each environment.

    Attributes:
        largest: size of the largest reward so far, which is not scaled beyond 10: where rewards are rare, that deviation says little.
            None in agents saved by versions that did not look at it.
    """

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self.moments = RunningMoments(())
        self.largest: float | None = 0.0
        self.returns = np.zeros(0)

    @property
    def scale(self) -> float:
        """What rewards are multiplied by; 1 until returns have differed."""
        spread = float(self.moments.var)
        if not self.moments.count or spread <= _NO_SPREAD:
            return 1.0
        scale = 1.0 / math.sqrt(spread + 1e-8)
        return min(scale, _LARGEST_SCALED / self.largest) if self.largest else scale

    def begin(self, starts: np.ndarray) -> None:
        """Forget the returns of environments `[N]` that begin an episode: they may be others than those of the last rollout."""
        if len(self.returns) == len(starts):
            self.returns = np.where(starts, 0.0, self.returns)

    def summary(self, reward: Tensor, ended: Tensor, valid: Tensor) -> np.ndarray:
        """`[4]`, of the raw rewards of one rollout, all `[T, N]`: `ended` cuts the return, rows not `valid` are skipped.

        The returns go on from here: each rollout is summarised once.
        """
        if len(self.returns) != reward.shape[1]:
            self.returns = np.zeros(reward.shape[1])
        ok, keep = valid.cpu().numpy(), ~ended.cpu().numpy()
        everywhere = bool(ok.all())
        seen = reward.cpu().numpy().copy()
        if not everywhere:
            seen[~ok] = 0.0  # such a row follows an end: its return stays 0
        largest = float(np.abs(seen).max(initial=0.0))
        for returns, kept in zip(seen, keep, strict=True):
            returns += self.gamma * self.returns
            self.returns = returns * kept
        return np.append(self.moments.summary(seen.ravel() if everywhere else seen[ok]), largest)

    def merge(self, summaries: np.ndarray) -> None:
        """Take in summaries, one a row."""
        self.moments.merge(summaries[:, :-1])
        if self.largest is not None:
            self.largest = max(self.largest, float(summaries[:, -1].max()))

    def update(self, reward: Tensor, ended: Tensor, valid: Tensor) -> None:
        """Take in the raw rewards of one rollout; arguments as for `summary`."""
        self.merge(self.summary(reward, ended, valid)[None])

    def state_dict(self) -> dict[str, Tensor]:
        """Without the returns: after a load the environments begin new episodes, and so do they."""
        found = self.moments.state_dict()
        return found if self.largest is None else {**found, "largest": torch.tensor(self.largest, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.moments.load_state_dict(state)
        self.largest = float(state["largest"]) if "largest" in state else None
        self.returns = np.zeros(0)


def chosen_columns(observations: ObservationEncoder, keys: Collection[str]) -> np.ndarray | None:
    """`[D]` which entries of an encoded observation are normalised; None for all of them.

    Args:
        observations: encodes them.
        keys: names of leaves, or of what they are beneath; all vectors if there is none.

    Raises:
        SettingsError: there is no such leaf, or it is an image.
    """
    if not keys:
        columns, size = observations.vector_columns(), observations.shape[0]
        return np.isin(np.arange(size), columns) if len(columns) < size else None
    names = [leaf.name for leaf in observations.leaves if leaf.kind == "vector"]
    wanted: set[str] = set()
    for key in keys:
        found = {name for name in names if name == key or name.startswith(f"{key}.")}
        if not found:
            raise SettingsError(
                f"normalize_keys names {key!r}, expected vectors of the observation: {', '.join(names)}"
            )
        wanted |= found
    return np.concatenate([np.full(leaf.size, leaf.name in wanted) for leaf in observations.leaves])
