"""What an agent takes in of a rollout beside its gradient: running statistics, counters and finished episodes."""

from __future__ import annotations

import io
import json
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relax_rl.agents.normalization import ObservationNormalizer, RewardScaler
from relax_rl.agents.return_spread import Spread
from relax_rl.agents.rollouts import Rollout
from relax_rl.backends.infos import info_means
from relax_rl.compute.distributed import Workers
from relax_rl.envs import Episode
from relax_rl.networks.spaces import ObservationEncoder

__all__ = ["RecentEpisodes", "UpdateInfo", "absorb", "episodes_of_all", "numbers", "stops"]


@dataclass(frozen=True)
class UpdateInfo:
    """What callbacks hear after every update.

    Attributes:
        steps, updates: environment steps and updates of the agent so far.
        episodes: the episodes that ended during this rollout.
        metrics: numbers by name, those of the update and, over the last 100 episodes of this learning, `return_mean` and
            what their infos come to, `info/success_rate` and `info/NAME`.
    """

    steps: int
    updates: int
    episodes: tuple[Episode, ...]
    metrics: Mapping[str, float]


class RecentEpisodes:
    """The last 100 episodes, by their means."""

    def __init__(self) -> None:
        self._returns, self._infos = deque[float](maxlen=100), deque[Mapping[str, float]](maxlen=100)
        self._means = {"return_mean": math.nan}

    def means_with(self, episodes: Sequence[Episode]) -> Mapping[str, float]:
        """The means once these have been taken in, oldest first: `return_mean`, and `info/...` if an episode told anything."""
        if episodes:
            self._returns.extend(episode.return_ for episode in episodes)
            self._infos.extend(episode.info for episode in episodes if episode.info)
            self._means = {"return_mean": math.fsum(self._returns) / len(self._returns), **info_means(self._infos)}
        return self._means


def stops(answer: object) -> bool:
    """Whether a callback's answer ends the training: False does, NumPy's and a tensor's too, and nothing else."""
    return isinstance(answer, (bool, np.bool_, Tensor)) and not answer


def numbers(metrics: Mapping[str, Tensor | float]) -> dict[str, float]:
    """The metrics as Python's numbers, those on a device fetched at once."""
    tensors = [x.detach().reshape(()) for x in metrics.values() if isinstance(x, Tensor)]
    fetched = iter(torch.stack(tensors).tolist() if tensors else ())
    return {name: next(fetched) if isinstance(x, Tensor) else float(x) for name, x in metrics.items()}


def settle_shift(
    workers: Workers, observations: ObservationEncoder, obs: Any, normalizer: ObservationNormalizer | None
) -> None:
    """Before a normaliser has seen anything: what is taken off observations before they reach it, by the first worker's first ones."""
    if normalizer is not None and not normalizer.moments.count and normalizer.shift is None:
        shift = observations.shift_for(obs)
        shift = workers.from_first(None if shift is None else shift.tolist())
        normalizer.shift = None if shift is None else np.array(shift)


def absorb(
    workers: Workers,
    rollout: Rollout,
    obs_normalizer: ObservationNormalizer | None,
    reward_scaler: RewardScaler | None,
    *,
    reward_clip: float,
    spreads: Iterable[Spread | None] = (),
) -> tuple[int, int]:
    """Let running statistics take in what all workers saw, now that an update is done.

    Args:
        workers: all of them.
        rollout: this worker's.
        obs_normalizer, reward_scaler: the statistics; None where there is none.
        reward_clip: where rewards are clipped.
        spreads: more of them, which have looked at the rollout.

    Returns:
        How many environment steps and finished episodes all workers' rollouts hold.
    """
    summaries: list[tuple[ObservationNormalizer | RewardScaler | Spread, np.ndarray]] = []
    if obs_normalizer is not None:
        summaries.append((obs_normalizer, obs_normalizer.summary(rollout.obs[:-1], rollout.valid)))
    if reward_scaler is not None:
        reward = rollout.reward.clamp(-reward_clip, reward_clip) if math.isfinite(reward_clip) else rollout.reward
        ended = rollout.terminated | rollout.truncated
        summaries.append((reward_scaler, reward_scaler.summary(reward, ended, rollout.valid)))
    summaries += [(spread, spread.summary()) for spread in spreads if spread is not None]
    counts = np.array([np.count_nonzero(rollout.valid.numpy()), len(rollout.episodes)], np.float64)
    found = workers.gather(np.concatenate([counts, *(summary for _, summary in summaries)]))
    steps, episodes = found[:, :2].sum(0)
    begin = 2
    for statistic, summary in summaries:
        statistic.merge(found[:, begin : begin + len(summary)])
        begin += len(summary)
    return int(steps), int(episodes)


def episodes_of_all(workers: Workers, own: tuple[Episode, ...], count: int) -> tuple[Episode, ...]:
    """The finished episodes of all workers, by rank.

    Args:
        workers: all of them.
        own: this worker's.
        count: of all workers.

    Returns:
        Their returns, lengths and what their infos come to.
    """
    if workers.count == 1 or not count:
        return own
    texts = [json.dumps(dict(episode.info)).encode() if episode.info else b"" for episode in own]
    table = np.zeros((count, 3))  # rows of length 0 hold none
    told = [(episode.return_, episode.length, len(text)) for episode, text in zip(own, texts, strict=True)]
    table[: len(own)] = np.reshape(told, (-1, 3))
    found = workers.gather(table.ravel()).reshape(-1, count, 3)
    infos = _texts_of_all(workers, b"".join(texts), found[..., 2].astype(int))
    return tuple(
        Episode(float(return_), int(length), json.loads(infos[rank].read(int(size)) or b"{}"))
        for rank, rows in enumerate(found)
        for return_, length, size in rows
        if length
    )


def _texts_of_all(workers: Workers, own: bytes, sizes: np.ndarray) -> list[io.BytesIO]:
    """What each worker has to say, `sizes` `[W, n]` bytes of it; nothing is sent where nobody says anything."""
    totals = sizes.sum(1)
    if not totals.any():
        return [io.BytesIO() for _ in totals]
    padded = np.zeros(totals.max())
    padded[: len(own)] = np.frombuffer(own, np.uint8)
    found = workers.gather(padded).astype(np.uint8)
    return [io.BytesIO(row[:total].tobytes()) for row, total in zip(found, totals, strict=True)]
