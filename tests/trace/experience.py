"""Made-up experience with everything that can happen in it, as plain arrays."""

from __future__ import annotations

import zlib

import numpy as np

__all__ = ["Arrays", "columns_of", "experience", "images_of_bits", "lively"]

Arrays = dict[str, np.ndarray]

_ENDS = 0.2
_SCALES = (1.0, 8.0, 0.3, 2.0, 1.0)
SIDE = 36


def experience(seed: int, updates: int, num_steps: int, num_envs: int, *, num_obs: int = 3, images: bool) -> Arrays:
    """Observations, rewards and ends of `updates` rollouts in a row, without what the policy adds.

    In even columns a new episode begins in the row after an end, and truncated episodes have an observation of their own
    at the end; in odd ones a made-up row that is not valid comes between.

    Returns:
        obs `[U T + 1, N, ...]`; reward, terminated, truncated, valid `[U T, N]`; final_obs `[K, ...]` at final_index
        `[K, 2]`; episodes `[E, 4]` as row, column, return and length.
    """
    rng = np.random.default_rng(seed)
    rows = updates * num_steps
    obs = _observations(rng, (rows + 1, num_envs), num_obs, images)
    reward = np.round(rng.normal(0.3, 1.0, (rows, num_envs)), 3)
    reward *= np.repeat([_SCALES[u % len(_SCALES)] for u in range(updates)], num_steps)[:, None]
    ends = rng.random((rows, num_envs)) < _ENDS
    by_time = rng.random((rows, num_envs)) < 0.5
    ends[num_steps // 2, 0] = by_time[num_steps // 2, 0] = True  # at least one of each kind, early on
    ends[num_steps // 2, 1], ends[num_steps // 2 - 1, 1] = True, False
    valid = np.ones((rows, num_envs), bool)
    for t in range(1, rows):
        valid[t] = ~(ends[t - 1] & (np.arange(num_envs) % 2 == 1))
        ends[t] &= valid[t]
    reward[~valid] = 0.0
    truncated = ends & by_time
    final_index = np.argwhere(truncated & (np.arange(num_envs) % 2 == 0))
    return {
        "obs": obs,
        "reward": reward,
        "terminated": ends & ~by_time,
        "truncated": truncated,
        "valid": valid,
        "final_obs": _observations(rng, (len(final_index),), num_obs, images),
        "final_index": final_index,
        "episodes": _episodes(reward, ends, valid),
    }


def _observations(rng: np.random.Generator, shape: tuple[int, ...], num_obs: int, images: bool) -> np.ndarray:
    if images:
        blocks = rng.integers(0, 256, (*shape, 1, SIDE // 6, SIDE // 6), dtype=np.uint8)
        return np.repeat(np.repeat(blocks, 6, -1), 6, -2)
    return np.round(rng.normal(0.5, 1.0, (*shape, num_obs)) * np.linspace(0.5, 2.0, num_obs), 3)


def _episodes(reward: np.ndarray, ends: np.ndarray, valid: np.ndarray) -> np.ndarray:
    found = []
    total, length = np.zeros(reward.shape[1]), np.zeros(reward.shape[1])
    for t in range(len(reward)):
        total, length = total + reward[t], length + valid[t]
        for n in np.flatnonzero(ends[t]):
            found.append((t, n, total[n], length[n]))
            total[n] = length[n] = 0.0
    return np.array(found, np.float64).reshape(-1, 4)


def columns_of(arrays: Arrays, rank: int, count: int) -> Arrays:
    """The part of experience that one of several workers has."""
    width = arrays["reward"].shape[1] // count
    own = slice(rank * width, (rank + 1) * width)
    taken = {name: x[:, own] for name, x in arrays.items() if name not in ("final_obs", "final_index", "episodes")}
    index, episodes = arrays["final_index"], arrays["episodes"]
    here = (index[:, 1] >= own.start) & (index[:, 1] < own.stop)
    taken["final_obs"], taken["final_index"] = arrays["final_obs"][here], index[here] - [0, own.start]
    of_own = (episodes[:, 1] >= own.start) & (episodes[:, 1] < own.stop)
    taken["episodes"] = episodes[of_own] - [0, own.start, 0, 0]
    return taken


def images_of_bits(seed: int, steps: int, batch_size: int, pixels: int = 12) -> np.ndarray:
    """`[steps, batch_size, pixels]` of 0 and 1."""
    rng = np.random.default_rng(seed)
    return (rng.random((steps, batch_size, pixels)) < np.linspace(0.2, 0.8, pixels)).astype(np.float64)


def lively(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that depend on a name and a shape alone, with the size of a layer's initial weights."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    inputs = int(np.prod(shape[1:])) if len(shape) > 1 else 16
    return np.asarray(np.round((rng.random(shape) - 0.5) * np.sqrt(12.0 / max(inputs, 1)), 4))
