"""Stable-Baselines3's A2C and PPO with the settings that rl-baselines3-zoo publishes for each environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from relax_rl.comparison.peer import Peer
from relax_rl.comparison.published_a2c import A2C_PEERS
from relax_rl.comparison.published_ppo import PPO_PEERS
from relax_rl.errors import SettingsError
from relax_rl.settings.presets import find_preset

__all__ = ["ALGORITHMS", "PEERS", "check_installed", "planned_steps", "published", "with_bins", "with_overrides"]

ALGORITHMS = {"sb3-a2c": "A2C", "sb3-ppo": "PPO"}
"""Class in stable_baselines3, by the name of the peer."""

PEERS: tuple[Peer, ...] = (*A2C_PEERS, *PPO_PEERS)


def published(env: str, algo: str) -> Peer:
    """The setting that is published for an environment; where there is none, the library's defaults, 8 environments."""
    env_id = env.rpartition(":")[2]
    entry = "atari" if find_preset(env).name == "atari" else env_id
    for peer in PEERS:
        if (peer.env, peer.algo) == (entry, algo):
            return replace(peer, env=env)
    return Peer(
        env=env,
        algo=algo,
        num_envs=8,
        total_steps=1_000_000,
        source="none",
        departure="no published entry for this environment; the library's defaults with 8 environments are taken",
    )


def with_overrides(peer: Peer, overrides: Mapping[str, Any]) -> Peer:
    """The peer with keyword arguments of the algorithm replaced; one on a schedule keeps it, from another first value."""
    linear = {name: overrides.get(name, value) for name, value in peer.linear.items()}
    constant = {name: value for name, value in overrides.items() if name not in linear}
    return replace(peer, linear=linear, settings={**peer.settings, **constant})


def with_bins(peer: Peer, bins: int) -> Peer:
    """The peer on actions cut into bins, where state-dependent exploration of continuous ones has no place."""
    if not bins:
        return peer
    kept = {name: value for name, value in peer.settings.items() if name not in ("use_sde", "sde_sample_freq")}
    without = ", without its state-dependent exploration" if "use_sde" in peer.settings else ""
    note = f"actions cut into {bins} bins per dimension{without}"
    return replace(peer, settings=kept, departure=_noted(peer, note))


def planned_steps(peer: Peer, total_steps: int) -> tuple[Peer, int]:
    """The steps that a peer trains for in a comparison of `total_steps`, and the peer with that noted.

    With linear schedules the published length counts: nothing is learned once they have reached zero. A longer one is
    cut, and its schedules with it.
    """
    steps = min(peer.total_steps, total_steps) if peer.linear else total_steps
    if steps == peer.total_steps:
        return peer, steps
    how = "its schedules fall to zero over these" if peer.linear else "no schedule depends on them"
    note = f"{steps:,} steps instead of {peer.total_steps:,} ({how})"
    return replace(peer, departure=_noted(peer, note)), steps


def check_installed() -> None:
    """Raises:
    SettingsError: Stable-Baselines3 is missing.
    """
    if find_spec("stable_baselines3") is None:
        raise SettingsError("--peers needs Stable-Baselines3, which is missing: pip install 'relax-rl[compare]'")


def _noted(peer: Peer, note: str) -> str:
    return note if peer.departure == "none" else f"{peer.departure}; {note}"
