"""Options of the command `compare`, and the file that a comparison is gone on with from.

This module imports nothing heavy, so that `--help` is instant.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from relax_rl.errors import CheckpointError, SettingsError
from relax_rl.runs import versions, write_json

__all__ = ["CHANGEABLE", "CompareConfig", "check_resumable", "read_settings", "usable_cores", "write_settings"]

CHANGEABLE = frozenset({"seeds", "threshold", "num_workers", "ray_address", "run_dir", "resume", "quiet"})
"""Options that may differ when a comparison is gone on with; all others would make it another comparison."""

_ADDRESS = re.compile(r"(ray://)?[^\s:/]+:\d{1,5}|(ray://)?\[[0-9a-fA-F:]+\]:\d{1,5}")

PeerName = Literal["sb3-a2c", "sb3-ppo"]


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare estimators, and other libraries, over environments and seeds."""

    env: tuple[str, ...] = ("CartPole-v1",)
    """Gymnasium ids; ID,bins=7 cuts continuous actions into 7 values per dimension."""
    estimators: tuple[str, ...] = ("auto", "a2c")
    """Contestants: an estimator, with settings of its own (relax:surrogate_steps=4,hidden=64x64), and with a label (best=relax:policy_lr=2e-3)."""
    peers: tuple[PeerName, ...] = ()
    """Stable-Baselines3's algorithms with rl-baselines3-zoo's settings; needs the extra compare."""
    set: tuple[str, ...] = ()
    """Settings of all estimators, over their presets: name=value, as the options of train."""
    seeds: int = 10
    """Runs of each contestant on each environment."""
    first_seed: int = 0
    """The first seed; the others follow it."""
    total_steps: int | None = None
    """Environment steps of a run (default: those of the environment's preset)."""
    threshold: tuple[str, ...] = ()
    """Mean return of 100 episodes that counts as solved: a number, or ENV=number each (default: as registered)."""
    stop_when_solved: bool = False
    """End a run once it has reached the threshold; final scores then say little."""
    num_workers: int = 0
    """Runs side by side; 0 takes as many as there are cores."""
    ray_address: str | None = None
    """Ray cluster to train on: HOST:PORT, ray://HOST:PORT, auto (the one this machine belongs to) or local (started for it); needs the extra ray. Without it, processes of this machine train."""
    tune: int = 0
    """Optuna trials of each contestant on each environment before the comparison; 0 tunes nothing."""
    tune_seeds: int = 1
    """Runs per trial, from seeds that the comparison does not use."""
    tune_steps: int | None = None
    """Environment steps of a trial's run (default: as in the comparison)."""
    tune_peers: bool = True
    """Tune the peers too."""
    variance: bool = False
    """Measure the gradient's variance under every estimator at agents frozen early, midway and late in learning."""
    variance_of: str | None = None
    """The contestant whose first run gives these agents (default: a2c, else the first estimator)."""
    variance_batches: int = 100
    """Rollouts that the variance is taken over."""
    variance_fit_batches: int = 300
    """Rollouts before them, on which surrogates are trained at the frozen policy."""
    run_dir: str | None = None
    """Folder of the comparison (default: runs/compare-TIME)."""
    resume: str | None = None
    """Folder of a comparison to go on with; --seeds, --threshold, --num-workers and --ray-address may change."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        least = {"seeds": 1, "first_seed": 0, "num_workers": 0, "tune": 0, "tune_seeds": 1, "variance_fit_batches": 0}
        least |= {"variance_batches": 2, "total_steps": 1, "tune_steps": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise SettingsError(f"{name} is {value!r}, expected at least {bound}")
        for name in ("env", "peers"):
            values = getattr(self, name)
            twice = [value for value in values if values.count(value) > 1]
            if twice:
                raise SettingsError(f"{name} has {twice[0]!r} twice, expected each once")
        address = self.ray_address
        if address not in (None, "auto", "local") and not _ADDRESS.fullmatch(str(address)):
            expected = "auto, local, HOST:PORT or ray://HOST:PORT"
            raise SettingsError(f"ray_address is {address!r}, expected {expected}")
        if not self.env:
            raise SettingsError("env is empty, expected the id of an environment")
        if not self.estimators and not self.peers:
            raise SettingsError("estimators is empty, expected at least one contestant")

    @property
    def seed_range(self) -> range:
        """The seeds of the comparison."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def workers(self) -> int:
        """Runs side by side on this machine."""
        return self.num_workers or usable_cores()


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_settings(path: Path, config: CompareConfig, command: str) -> list[str]:
    """Write the options, the versions of what the numbers depend on, and the command, behind those of earlier sessions.

    Returns:
        the commands of all sessions.

    Raises:
        RelaxRLError: the file cannot be written.
    """
    earlier = json.loads(path.read_text(encoding="utf-8")).get("commands", []) if path.exists() else []
    commands = [*earlier, command]
    known = versions(("torch", "gymnasium", "numpy", "stable_baselines3", "optuna", "ray"))
    about = {"versions": known, "cores": usable_cores(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    write_json(path, {"options": asdict(config), "commands": commands, **about})
    return commands


def read_settings(path: Path) -> CompareConfig:
    """The options that `write_settings` wrote.

    Raises:
        CheckpointError: the folder holds no comparison, or its file cannot be read.
    """
    try:
        options: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["options"]
        known = {field.name for field in fields(CompareConfig)}
        unknown = sorted(options.keys() - known)
        if unknown:
            raise CheckpointError(f"{path} has options that this relax_rl does not know: {unknown[0]!r}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        return CompareConfig(**values)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} holds no comparison: it has no {path.name}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {str(error) or type(error).__name__}") from None


def check_resumable(saved: CompareConfig, wanted: CompareConfig) -> None:
    """Refuse to go on with options that would make it another comparison.

    Raises:
        SettingsError: an option outside `CHANGEABLE` differs.
    """
    for field in fields(CompareConfig):
        old, new = getattr(saved, field.name), getattr(wanted, field.name)
        fixed = field.name not in CHANGEABLE or (field.name == "threshold" and saved.stop_when_solved)
        if old != new and fixed:
            may = "--seeds, --threshold, --num-workers and --ray-address"
            raise SettingsError(
                f"{field.name} is {new!r}, but the comparison to go on with has {old!r}, and only {may} may change; "
                "start a new comparison instead"
            )
