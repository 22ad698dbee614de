"""What an agent takes in of a rollout beside its gradient: running statistics, counters and finished episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from relax_rl.distributed import Workers
from relax_rl.envs import Episode
from relax_rl.rollouts import Rollout

__all__ = ["absorb", "episodes_of_all"]


class Statistic(Protocol):
    """Merges what several workers saw."""

    def merge(self, summaries: np.ndarray) -> None:
        """Take in summaries, one a row."""


def absorb(workers: Workers, rollout: Rollout, summaries: Sequence[tuple[Statistic, np.ndarray]]) -> tuple[int, int]:
    """Let running statistics take in what all workers saw, now that an update is done.

    Args:
        workers: all of them.
        rollout: this worker's.
        summaries: each statistic with its summary of this worker's rollout.

    Returns:
        How many environment steps and finished episodes all workers' rollouts hold.
    """
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
    """
    if workers.count == 1 or not count:
        return own
    table = np.zeros((count, 2))  # rows of length 0 hold none
    table[: len(own)] = np.reshape([(episode.return_, episode.length) for episode in own], (-1, 2))
    found = workers.gather(table.ravel()).reshape(-1, 2)
    return tuple(Episode(float(return_), int(length)) for return_, length in found if length)
