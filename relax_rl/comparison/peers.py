"""Stable-Baselines3's A2C and PPO with the settings that rl-baselines3-zoo publishes for each environment."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from relax_rl.compute.installation import install_line
from relax_rl.errors import RelaxRLError, SettingsError, did_you_mean
from relax_rl.settings.presets import is_atari

__all__ = [
    "ALGORITHMS",
    "Peer",
    "check_actions",
    "check_arguments",
    "check_installed",
    "check_wrapped_peer",
    "defaults_of",
    "parameters_of",
    "planned",
    "planned_steps",
    "published",
    "read_published",
    "with_bins",
    "with_overrides",
]

ALGORITHMS = {"sb3-a2c": "A2C", "sb3-ppo": "PPO", "sb3-sac": "SAC"}
"""Class in stable_baselines3, by the name of the peer."""

PUBLISHED = Path(__file__).with_name("published.json")


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One published setting; whatever is not named in it is Stable-Baselines3's own default.

    Attributes:
        env: the environment it is used for; "atari" stands for all games.
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


@cache
def read_published(path: Path = PUBLISHED) -> tuple[Peer, ...]:
    """All published settings.

    Args:
        path: a JSON file with `sources`, the address of each algorithm's settings, and `entries`: the fields of a `Peer`,
            and the name of the `entry` at the source.

    Raises:
        RelaxRLError: the file cannot be read, or an entry is not one of a peer.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return tuple(
            Peer(**{"source": f"{found['sources'][entry['algo']]} ({entry.pop('entry')})", **entry})
            for entry in found["entries"]
        )
    except OSError as error:
        raise RelaxRLError(f"{path} cannot be read: {error.strerror or error}; install relax_rl anew") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RelaxRLError(f"{path} is damaged: {error or type(error).__name__}; install relax_rl anew") from None


def published(env: str, algo: str) -> Peer:
    """The setting that is published for an environment; where there is none, the library's defaults, with one environment."""
    env_id = env.rpartition(":")[2]
    entry = "atari" if is_atari(env) else env_id
    for peer in read_published():
        if (peer.env, peer.algo) == (entry, algo):
            return replace(peer, env=env)
    return Peer(
        env=env,
        algo=algo,
        total_steps=1_000_000,
        source="none",
        departure="no published entry for this environment; the library's defaults with one environment are taken",
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
    return replace(peer, settings=kept, departure=_noted(peer, f"actions cut into {bins} bins per dimension{without}"))


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


def planned(env: str, algo: str, bins: int, total_steps: int) -> tuple[Peer, int]:
    """The peer that a comparison trains on an environment, its actions cut into so many bins if any, and its steps."""
    return planned_steps(with_bins(published(env, algo), bins), total_steps)


def check_installed() -> None:
    """Raises:
    SettingsError: Stable-Baselines3 is missing.
    """
    if find_spec("stable_baselines3") is None:
        raise SettingsError(f"--peers needs Stable-Baselines3, which is missing: {install_line('compare')}")


def check_wrapped_peer(env: str, wrapper: Sequence[str]) -> None:
    """Raises SettingsError for wrappers that a peer's environments cannot be inside of."""
    from relax_rl.backends.own import own_wrappers

    _, of_vectors = own_wrappers(wrapper)
    if of_vectors or (wrapper and is_atari(env)):
        what = (
            f"{of_vectors[0].name} goes around vectors of Gymnasium"
            if of_vectors
            else f"{wrapper[0]} goes around {env}"
        )
        raise SettingsError(f"wrapper {what}, which no peer is trained in; leave --peers out")


def check_actions(algo: str, actions: Any, settings: Mapping[str, Any] | None = None) -> None:
    """Raises SettingsError for a space of actions that an algorithm does not take, or not with these arguments; SAC takes continuous ones alone."""
    from gymnasium import spaces

    if isinstance(actions, spaces.Box):
        return
    if algo == "sb3-sac":
        raise SettingsError(f"{algo} takes continuous actions (Box), not {actions}; leave it out of --peers")
    if settings and settings.get("use_sde"):
        raise SettingsError(
            f"use_sde of {algo} is True, but it explores continuous actions (Box), not {actions}; leave it out"
        )


_OF_THE_COMPARISON = ("policy", "env", "seed", "device", "verbose", "tensorboard_log", "policy_kwargs", "n_envs")
"""Arguments that a peer is given, or keeps as published."""


def parameters_of(kind: str) -> dict[str, Any]:
    """Arguments of a peer's algorithm that can be set for it, with their defaults; needs Stable-Baselines3."""
    import inspect

    import stable_baselines3

    given = {*_OF_THE_COMPARISON, "_init_setup_model"}
    parameters = inspect.signature(getattr(stable_baselines3, ALGORITHMS[kind])).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name not in given}


def defaults_of(kind: str, names: Collection[str]) -> dict[str, Any]:
    """Defaults of some of these arguments; raises SettingsError for one that the algorithm does not have."""
    known = parameters_of(kind)
    unknown = next((name for name in names if name not in known), None)
    if unknown in _OF_THE_COMPARISON:
        raise SettingsError(
            f"{unknown} of {kind} is what the comparison gives or the published entry has; leave it out"
        )
    if unknown is not None:
        raise SettingsError(f"{kind} has no argument {unknown!r}{did_you_mean(unknown, known)}")
    return {name: known[name] for name in names}


def check_arguments(kind: str, settings: Mapping[str, Any]) -> None:
    """Raises SettingsError for arguments that a peer's algorithm does not have, and for values that it cannot take."""
    for name, default in (defaults_of(kind, settings) if settings else {}).items():
        expected, fits = _allowed(name, settings[name], default)
        if not fits:
            raise SettingsError(f"{name} of {kind} is {settings[name]!r}, expected {expected}")


_SHARES = ("gamma", "gae_lambda", "tau")
_OR_MINUS_ONE = ("sde_sample_freq", "gradient_steps")
"""Counts that may be -1, for none of one's own."""
_OR_NONE = ("learning_starts",)
"""Counts that may be 0."""


def _allowed(name: str, value: Any, default: Any) -> tuple[str, bool]:
    """What an argument takes, by its default, and whether it takes this value; any where that does not say it."""
    if isinstance(default, bool):
        return "true or false", isinstance(value, bool)
    if isinstance(default, int):
        least, beside = int(name not in _OR_NONE), name in _OR_MINUS_ONE
        whole = isinstance(value, int) and not isinstance(value, bool)
        told = f"a whole number of at least {least}{', or -1' if beside else ''}"
        return told, whole and (value >= least or (beside and value == -1))
    if isinstance(default, float):
        most, told = (1.0, "between 0 and 1") if name in _SHARES else (sys.float_info.max, "of at least 0")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return f"a number {told}", number and 0.0 <= value <= most
    return "", True


def _noted(peer: Peer, note: str) -> str:
    return note if peer.departure == "none" else f"{peer.departure}; {note}"
