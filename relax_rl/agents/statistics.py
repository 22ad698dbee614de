"""What an agent takes in of a rollout beside its gradient: running statistics, counters and finished episodes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np

from relax_rl.agents.batch import Batch
from relax_rl.distributed import Workers
from relax_rl.rollouts import Rollout

if TYPE_CHECKING:
    from relax_rl.agents.base import ActorCritic
    from relax_rl.envs import Episode

__all__ = ["absorb", "episodes_of_all"]


class _Statistic(Protocol):
    def merge(self, summaries: np.ndarray) -> None:
        """Take in summaries, one a row."""


def absorb(agent: ActorCritic, rollout: Rollout, batch: Batch) -> tuple[int, int]:
    """Let the agent's running statistics take in what all workers saw, now that the update is done.

    Returns:
        How many environment steps and finished episodes all workers' rollouts hold.
    """
    summaries = _summaries(agent, rollout, batch)
    counts = np.array([np.count_nonzero(rollout.valid.numpy()), len(rollout.episodes)], np.float64)
    if agent.workers.count > 1:
        agent.watch("communication")
    found = agent.workers.gather(np.concatenate([counts, *(summary for _, summary in summaries)]))
    steps, episodes = found[:, :2].sum(0)
    begin = 2
    for statistic, summary in summaries:
        statistic.merge(found[:, begin : begin + len(summary)])
        begin += len(summary)
    return int(steps), int(episodes)


def _summaries(agent: ActorCritic, rollout: Rollout, batch: Batch) -> list[tuple[_Statistic, np.ndarray]]:
    """Each running statistic with its summary of this worker's rollout."""
    found: list[tuple[_Statistic, np.ndarray]] = []
    if agent.obs_normalizer is not None:
        found.append((agent.obs_normalizer, agent.obs_normalizer.summary(rollout.obs[:-1], rollout.valid)))
    if agent.reward_scaler is not None:
        clip = agent.config.reward_clip
        reward = rollout.reward.clamp(-clip, clip) if math.isfinite(clip) else rollout.reward
        ended = rollout.terminated | rollout.truncated
        found.append((agent.reward_scaler, agent.reward_scaler.summary(reward, ended, rollout.valid)))
    if agent.advantage_scale is not None:
        advantage = batch.advantage / batch.scale
        found.append((agent.advantage_scale, agent.advantage_scale.summary(advantage, batch.weight)))
    return found


def episodes_of_all(workers: Workers, own: tuple[Episode, ...], count: int) -> tuple[Episode, ...]:
    """The finished episodes of all workers, by rank.

    Args:
        own: this worker's.
        count: of all workers.
    """
    if workers.count == 1 or not count:
        return own
    from relax_rl.envs import Episode

    table = np.zeros((count, 2))  # rows of length 0 hold none
    table[: len(own)] = np.reshape([(episode.return_, episode.length) for episode in own], (-1, 2))
    found = workers.gather(table.ravel()).reshape(-1, 2)
    return tuple(Episode(float(return_), int(length)) for return_, length in found if length)
