"""The folder of a run: where its files lie, and `config.json`, from which the run can be told and gone on with."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from relax_rl.config import AgentConfig, EnvConfig, RunConfig, TrainConfig
from relax_rl.errors import CheckpointError, SettingsError
from relax_rl.serialization import write_text_atomic, writing

__all__ = [
    "CHANGEABLE",
    "RunFolder",
    "check_resumable",
    "default_run_dir",
    "read_config",
    "read_record",
    "versions",
    "write_config",
    "write_json",
]

CHANGEABLE = frozenset(
    {
        "total_steps",
        "stop_at_return",
        "checkpoint_interval",
        "keep_checkpoints",
        "log_interval",
        "quiet",
        "device",
        "threads",
        "eval_interval",
        "eval_episodes",
        "num_envs",
        "profile",
        "worker_timeout",
    }
)
"""Settings that may differ when a run is resumed; all others would make it another run."""

_PACKAGES = ("torch", "gymnasium", "numpy", "ale-py")
"""What a run's numbers depend on beside Python and this package."""

_SECTIONS: dict[str, type] = {"run": RunConfig, "env": EnvConfig, "agent": AgentConfig}


@dataclass(frozen=True)
class RunFolder:
    """Paths of the files a run leaves behind."""

    path: Path

    @property
    def config(self) -> Path:
        """Settings, versions and command, as JSON."""
        return self.path / "config.json"

    @property
    def progress(self) -> Path:
        """One row per log interval."""
        return self.path / "progress.csv"

    @property
    def episodes(self) -> Path:
        """One row per finished episode."""
        return self.path / "episodes.csv"

    @property
    def evaluations(self) -> Path:
        """One row per evaluation during training."""
        return self.path / "evaluation.csv"

    @property
    def evaluation(self) -> Path:
        """Result of the last `evaluate` command, as JSON."""
        return self.path / "evaluation.json"

    @property
    def variance(self) -> Path:
        """Result of the last `variance` command, as JSON."""
        return self.path / "variance.json"

    @property
    def variance_figure(self) -> Path:
        """The same as PNG."""
        return self.path / "variance.png"

    @property
    def curve(self) -> Path:
        """The learning curve, as PNG."""
        return self.path / "learning_curve.png"

    @property
    def checkpoints(self) -> Path:
        """Folder of the saved agents."""
        return self.path / "checkpoints"

    @property
    def videos(self) -> Path:
        """Folder of recorded videos."""
        return self.path / "videos"

    def check_unused(self) -> None:
        """Raises:
        SettingsError: the folder already holds a run.
        """
        if self.config.exists():
            raise SettingsError(
                f"{self.path} already holds a run; go on with it by --resume {self.path} or choose another --run-dir"
            )

    def create(self) -> None:
        """Make the folders.

        Raises:
            SettingsError: the folder already holds a run.
            RelaxRLError: the folders cannot be made.
        """
        self.check_unused()
        with writing(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)


def default_run_dir(env: str, estimator: str, seed: int) -> Path:
    """`runs/ENV-ESTIMATOR-sSEED-TIME`, with a number behind it if that folder exists."""
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in env)
    base = Path("runs") / f"{name}-{estimator}-s{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, count = base, 1
    while path.exists():
        count += 1
        path = base.with_name(f"{base.name}-{count}")
    return path


def write_config(folder: RunFolder, config: TrainConfig, extra: Mapping[str, Any]) -> None:
    """Write `config.json`: every setting, the versions it ran with, and `extra` (the command, resumptions)."""
    write_json(folder.config, {**config.to_dict(), "versions": versions(_PACKAGES), **extra})


def read_record(folder: RunFolder) -> dict[str, Any]:
    """The content of `config.json` as it stands.

    Raises:
        CheckpointError: the folder holds no run, or the file cannot be read.
    """
    if not folder.path.is_dir():
        raise CheckpointError(f"run {folder.path} does not exist")
    try:
        record = json.loads(folder.config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder.path} holds no run: it has no {folder.config.name}") from None
    except OSError as error:
        raise CheckpointError(f"{folder.config} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{folder.config} is damaged: it is not JSON") from None
    if not isinstance(record, dict):
        raise CheckpointError(f"{folder.config} is damaged: it is not a JSON object")
    return record


def read_config(folder: RunFolder) -> TrainConfig:
    """The settings of a run.

    Raises:
        CheckpointError: the folder holds no run, or the file cannot be read or has settings unknown to this version.
    """
    record = read_record(folder)
    try:
        return TrainConfig(**{name: _section(kind, record[name]) for name, kind in _SECTIONS.items()})
    except KeyError as error:
        raise CheckpointError(f"{folder.config} is damaged: it has no section {error}") from None
    except (SettingsError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder.config} has settings that this relax_rl cannot take: {error}") from None


def check_resumable(saved: TrainConfig, wanted: TrainConfig) -> None:
    """Refuse a resumption with settings that would make it another run.

    Raises:
        CheckpointError: the environment differs.
        SettingsError: another setting outside `CHANGEABLE` differs.
    """
    if wanted.env.env != saved.env.env:
        raise CheckpointError(
            f"cannot resume with --env {wanted.env.env}: the run was trained on {saved.env.env}; start a new run instead"
        )
    for section in fields(TrainConfig):
        before, after = getattr(saved, section.name), getattr(wanted, section.name)
        for setting in fields(before):
            old, new = getattr(before, setting.name), getattr(after, setting.name)
            free = setting.name in CHANGEABLE or setting.name in ("resume", "run_dir")
            if old == new or free or (setting.name == "estimator" and new == "auto"):
                continue
            raise SettingsError(
                f"{setting.name} is {new!r}, but the run to resume has {old!r}, and only "
                f"{', '.join(sorted(CHANGEABLE))} may change; start a new run instead"
            )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON atomically: infinity and NaN, which JSON has no word for, become strings."""
    write_text_atomic(path, json.dumps(_strict(content), indent=2, allow_nan=False) + "\n")


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(entry) for entry in value]
    if isinstance(value, os.PathLike):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _section(kind: type, saved: Any) -> Any:
    """One section of the configuration from its JSON."""
    if not isinstance(saved, dict):
        raise TypeError("a section is not a JSON object")
    types = {f.name: str(f.type) for f in fields(kind)}
    unknown = sorted(saved.keys() - types.keys())
    if unknown:
        raise TypeError(f"unknown setting {unknown[0]!r}")
    return kind(**{name: _setting(name, types[name], value) for name, value in saved.items()})


def _setting(name: str, kind: str, value: Any) -> Any:
    """One setting from its JSON, with the type that its definition names."""
    if isinstance(value, list) and kind.startswith("tuple"):
        return tuple(_setting(name, "int", width) for width in value)
    if value is None and "None" in kind:
        return None
    if kind.startswith("float"):
        fits = isinstance(value, (int, float, str)) and not isinstance(value, bool)
    else:
        fits = type(value) is {"bool": bool, "int": int}.get(kind, str)
    if not fits:
        raise TypeError(f"{name} is {value!r}, expected {kind}")
    return float(value) if kind.startswith("float") else value


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python, of relax_rl, and of those packages that are installed."""
    from relax_rl import __version__

    found = {"python": platform.python_version(), "relax_rl": __version__}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
