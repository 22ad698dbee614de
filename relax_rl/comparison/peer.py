"""The record of one setting that rl-baselines3-zoo publishes for Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ATARI_DEPARTURE", "ZOO", "Peer", "other_version"]

ZOO = "https://github.com/DLR-RM/rl-baselines3-zoo/blob"

ATARI_DEPARTURE = (
    "published for the NoFrameskip-v4 games; where an id has frame skipping of its own it is left to the wrapper, and its "
    "sticky actions stay"
)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One published setting; whatever is not named in it is Stable-Baselines3's own default.

    Attributes:
        env: the environment it is used for; "*" stands for all that have none of their own.
        algo: name of the peer.
        total_steps: that the entry trains for, over which its linear schedules fall to zero.
        source: where it is published, with the name of the entry.
        num_envs: environments stepped side by side.
        policy: class of the policy.
        normalize: VecNormalize of observations and rewards, with the algorithm's gamma.
        atari: the wrapper and the four stacked frames of Atari games.
        linear: settings that fall linearly to zero, by their first value (`lin_...` in the zoo).
        settings: constant keyword arguments of the algorithm.
        policy_kwargs: of the policy; classes by their names.
        departure: what differs from the published entry, and why.
    """

    env: str
    algo: str
    total_steps: int
    source: str
    num_envs: int = 1
    policy: str = "MlpPolicy"
    normalize: bool = False
    atari: bool = False
    linear: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    policy_kwargs: Mapping[str, Any] = field(default_factory=dict)
    departure: str = "none"


def other_version(published: str) -> str:
    """The departure of an entry that is for another version of the environment."""
    return f"published for version {published} of the environment"
