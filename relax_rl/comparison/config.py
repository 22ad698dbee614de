"""Options of the command `compare`, and the file that a comparison is gone on with from.

This module imports nothing heavy, so that `--help` is instant.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

from relax_rl.comparison.contestants import parse_settings, read_contestant
from relax_rl.compute.host import usable_cores
from relax_rl.compute.serialization import write_json
from relax_rl.errors import CheckpointError, SettingsError
from relax_rl.runs.record import NAMING_CODE, entries, now, read_object, versions
from relax_rl.settings import fields
from relax_rl.settings.fields import check, from_json, setting, to_json
from relax_rl.settings.naming import is_own

__all__ = ["CompareConfig", "check_resumable", "own_code", "read_settings", "write_settings"]

_ADDRESS = re.compile(r"auto|local|(ray://)?([^\s:/]+|\[[0-9a-fA-F:]+\]):\d{1,5}")


def _rungs(fractions: tuple[float, ...]) -> bool:
    rising = all(low < high for low, high in pairwise(fractions))
    return rising and (not fractions or fractions[-1] == 1.0)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare estimators, and other libraries, over environments and seeds."""

    SECTIONS: ClassVar[dict[str, str]] = {
        "what is compared": "env env_kwargs wrapper frame_stack estimators peers set seeds first_seed total_steps",
        "scores": "threshold stop_when_solved",
        "tuning": (
            "tune tune_together tune_anchors tune_rungs tune_keep tune_score tune_batch tune_minutes tune_space tune_seeds tune_first_seed "
            "tune_steps tune_peers"
        ),
        "gradient variance": "variance variance_of variance_batches variance_fit_batches",
        "where it runs": "num_workers ray_address",
        "output": "run_dir resume quiet",
    }

    env: tuple[str, ...] = ()
    """Gymnasium ids; ID,bins=7 cuts continuous actions into 7 values per dimension."""
    env_kwargs: dict[str, Any] | None = None
    """Settings of the environments themselves, for all contestants: name=value pairs, values in JSON, or one JSON object."""
    wrapper: tuple[str, ...] = setting((), repeatable=True)
    """module:Wrapper around each environment of all contestants, its keyword arguments behind it as name=value; innermost first."""
    frame_stack: int = setting(0, least=0, cap=1_024)
    """Show all contestants the last so many observations at once; 0 for 4 in Atari and none elsewhere."""
    estimators: tuple[str, ...] = ("auto", "a2c")
    """Contestants: an estimator (module:name takes one of your own), with settings of its own (relax:surrogate_steps=4,hidden=64x64), and with a label (best=relax:policy_lr=2e-3)."""
    peers: tuple[str, ...] = ()
    """Stable-Baselines3's algorithms, sb3-a2c, sb3-ppo or sb3-sac, with rl-baselines3-zoo's settings, or arguments of their own over them (tuned=sb3-ppo:learning_rate=0.001,n_steps=256); needs the extra compare."""
    set: tuple[str, ...] = ()
    """Settings of all estimators, over their presets: name=value, as the options of train."""
    seeds: int = setting(10, least=0, resumable=True)
    """Runs of each contestant on each environment; 0 tunes and ends there, until the comparison is gone on with."""
    first_seed: int = setting(0, least=0)
    """The first seed; the others follow it."""
    total_steps: int | None = setting(None, least=1)
    """Environment steps of a run (default: those of the environment's preset)."""
    threshold: tuple[str, ...] = setting((), resumable=True)
    """Mean return of 100 episodes that counts as solved: a number, or ENV=number each (default: as registered)."""
    stop_when_solved: bool = False
    """End a run once it has reached the threshold; final scores then say little."""
    num_workers: int = setting(0, least=0, resumable=True)
    """Runs side by side; 0 takes as many as there are cores."""
    ray_address: str | None = setting(
        None, fits=_ADDRESS.fullmatch, expected="auto, local, HOST:PORT or ray://HOST:PORT", resumable=True
    )
    """Ray cluster to train on: HOST:PORT, ray://HOST:PORT, auto (the one this machine belongs to) or local (started for it); needs the extra ray. Without it, processes of this machine train."""
    tune: int = setting(0, least=0)
    """Optuna trials of each contestant on each environment before the comparison; 0 tunes nothing."""
    tune_together: bool = False
    """Tune each contestant once over all environments, by the mean of its scores, each on the scale of its task."""
    tune_anchors: tuple[str, ...] = ()
    """With --tune-together, the scores of a task that count as 0 and 1: ENV=low:high (default: the range of all trials)."""
    tune_rungs: tuple[float, ...] = setting((), above=0.0, most=1.0, fits=_rungs, expected="rising fractions up to 1")
    """Successive halving: pause all trials of a batch at these fractions of their steps, the last one being 1, and have the best go on."""
    tune_keep: float = setting(0.34, above=0.0, most=1.0)
    """The share of trials that goes on from a rung."""
    tune_score: Literal["curve", "end"] = "curve"
    """What counts of a trial: the mean of its learning curve, or of the last fifth of that (end)."""
    tune_batch: int | None = setting(None, least=1)
    """Trials proposed at a time (default: 4, with --tune-rungs as many as leave one at the last)."""
    tune_minutes: float | None = setting(None, above=0.0)
    """Begin no further batch after so many minutes of work on trials, over all calls."""
    tune_space: str | None = setting(None, fits=bool, expected="a file")
    """JSON file of what is searched (default: search_space.json of relax_rl/comparison); the comparison keeps a copy."""
    tune_seeds: int = setting(1, least=1)
    """Runs per trial, from seeds that the comparison does not use."""
    tune_first_seed: int = setting(1_000_000, least=0)
    """The first of these seeds; the others follow it."""
    tune_steps: int | None = setting(None, least=1)
    """Environment steps of a trial's run (default: as in the comparison)."""
    tune_peers: bool = True
    """Tune the peers too."""
    variance: bool = False
    """Measure the gradient's variance under every estimator at agents frozen early, midway and late in learning."""
    variance_of: str | None = None
    """The contestant whose first run gives these agents (default: a2c, else the first estimator)."""
    variance_batches: int = setting(100, least=2)
    """Rollouts that the variance is taken over."""
    variance_fit_batches: int = setting(300, least=0)
    """Rollouts before them, on which surrogates are trained at the frozen policy."""
    run_dir: str | None = setting(None, of_the_call=True)
    """Folder of the comparison (default: runs/compare-TIME)."""
    resume: str | None = setting(None, of_the_call=True)
    """Folder of a comparison to go on with; --seeds, --threshold, --num-workers and --ray-address may change."""
    quiet: bool = setting(False, of_the_call=True)
    """Show no progress."""

    def __post_init__(self) -> None:
        check(self)
        for name in ("env", "peers"):
            values = getattr(self, name)
            twice = [value for value in values if values.count(value) > 1]
            if twice:
                raise SettingsError(f"{name} has {twice[0]!r} twice, expected each once")
        if not self.estimators and not self.peers:
            raise SettingsError("estimators is empty, expected at least one contestant")
        if not self.seeds and not self.tune:
            raise SettingsError("seeds is 0, expected at least 1, or --tune for trials alone")
        if self.tune_anchors and not self.tune_together:
            raise SettingsError(f"tune_anchors is {self.tune_anchors}, expected tune_together beside it")

    @property
    def seed_range(self) -> range:
        """The seeds of the comparison."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def tuning_seeds(self) -> range:
        """The seeds of every trial."""
        return range(self.tune_first_seed, self.tune_first_seed + self.tune_seeds)

    def thresholds(self) -> dict[str, float]:
        """Given thresholds by environment; that for all under the empty name.

        Raises:
            SettingsError: one is no number, or for no environment of the comparison.
        """
        found = {}
        for text in self.threshold:
            env, _, value = text.rpartition("=")
            if env and env not in self.env:
                raise SettingsError(f"threshold {text!r} is for {env}, expected one of {', '.join(self.env)}")
            if env in found:
                raise SettingsError(
                    f"threshold {text!r} is the second {f'for {env}' if env else 'for all'}, expected one"
                )
            try:
                found[env] = float(value)
            except ValueError:
                found[env] = math.nan
            if not math.isfinite(found[env]):
                raise SettingsError(f"threshold is {text!r}, expected a finite number, or ENV=number")
        return found

    @property
    def workers(self) -> int:
        """Runs side by side on this machine."""
        return self.num_workers or usable_cores()


def own_code(config: CompareConfig) -> dict[str, tuple[str, ...]]:
    """Options by name that name code of the user's own, as `module:name`."""

    def names_code(settings: Mapping[str, Any]) -> bool:
        return any(is_own(settings.get(name)) for name in NAMING_CODE)

    contestants = [read_contestant(text) for text in config.estimators]
    found = {
        "env": is_own(config.env),
        "wrapper": is_own(config.wrapper),
        "estimators": any(is_own(known.kind) or names_code(known.settings) for known in contestants),
        "set": names_code(parse_settings(config.set)),
    }
    return {name: getattr(config, name) for name, has in found.items() if has}


def write_settings(path: Path, config: CompareConfig, command: str) -> list[str]:
    """Write the options, the versions of what the numbers depend on, and the command, behind those of earlier sessions.

    Returns:
        the commands of all sessions.

    Raises:
        RelaxRLError: the file cannot be written.
    """
    earlier = read_object(path, "comparison") if path.exists() else {}
    commands = [*map(str, entries(earlier, "commands")), command]
    known = versions(("torch", "gymnasium", "numpy", "stable_baselines3", "optuna", "ray"))
    about = {"versions": known, "cores": usable_cores(), "time": now()}
    write_json(path, {"options": to_json(config), "commands": commands, **about})
    return commands


def read_settings(path: Path) -> CompareConfig:
    """The options that `write_settings` wrote.

    Raises:
        CheckpointError: the folder holds no comparison, or its file cannot be read.
    """
    record = read_object(path, "comparison")
    try:
        return from_json(CompareConfig, record.get("options"))
    except SettingsError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def check_resumable(saved: CompareConfig, wanted: CompareConfig) -> None:
    """Refuse to go on with options that would make it another comparison.

    Raises:
        SettingsError: an option differs that is not resumable, or the threshold that runs stop at.
    """
    if saved.stop_when_solved and wanted.threshold != saved.threshold:
        raise SettingsError(
            f"threshold is {wanted.threshold!r}, but the runs so far stopped at {saved.threshold!r}; "
            "start a new comparison instead"
        )
    fields.check_resumable(saved, wanted, what="comparison to go on with")
