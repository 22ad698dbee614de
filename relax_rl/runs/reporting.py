"""Who hears of a run beside its own files: loggers that the caller brings, those that the settings name, and trackers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from relax_rl.errors import RelaxRLError, SettingsError
from relax_rl.runs.displays import Display
from relax_rl.runs.folder import RunFolder
from relax_rl.runs.guarded import GuardedLogger
from relax_rl.runs.interruption import exit_code
from relax_rl.runs.loggers import GroupLogger, Logger, TensorBoardLogger, TheirLogger, as_logger, read_csv
from relax_rl.runs.record import logged_again, resumed_config
from relax_rl.runs.result import TrainingResult
from relax_rl.runs.tracking import Tracker, default_project, require_trackers
from relax_rl.settings.config import TrainConfig
from relax_rl.settings.fields import flat
from relax_rl.settings.naming import name_of, named, require_call

__all__ = [
    "checked_loggers",
    "finish_loggers",
    "loggers_named",
    "loggers_of",
    "require_loggers",
    "resumed_with_loggers",
    "tell_fewer_steps",
    "tell_outcome",
]


def checked_loggers(config: TrainConfig, theirs: Iterable[TheirLogger | Logger] | TheirLogger | Logger) -> list[Logger]:
    """The caller's loggers as a run takes them; those that the settings name, and trackers, are looked for.

    Raises:
        SettingsError: one is none, a name names nothing that can be called, or the package of a tracker is missing.
    """
    every = theirs if isinstance(theirs, Iterable) else [theirs]
    found: list[Logger] = [GuardedLogger(as_logger(each), name_of(type(each))) for each in every]
    require_loggers(config, config.run.logger, config.run.track)
    return found


def require_loggers(config: Any, logger: Sequence[str], track: Sequence[str]) -> None:
    """Raises SettingsError if a name names nothing that can be called with these settings, or a tracker's package is missing."""
    require_trackers(track)
    for name in logger:
        require_call(named(name, "logger"), "logger", config)


def loggers_of(config: TrainConfig, folder: RunFolder, *, resumed: bool) -> list[Logger]:
    """The loggers that the settings of a run ask for, each about to take its numbers; see `loggers_named`."""
    run, project = config.run, config.run.track_project or default_project(config.env.env)
    return loggers_named(config, folder, logger=run.logger, track=run.track, project=project, resumed=resumed)


def loggers_named(
    config: Any, folder: RunFolder, *, logger: Sequence[str], track: Sequence[str], project: str, resumed: bool
) -> list[Logger]:
    """Loggers `module:factory`, called with the settings of a run, and trackers, each about to take its numbers.

    Raises:
        SettingsError: a factory fails, or gives what is no logger.
    """
    own = [GuardedLogger(_made(name, config), name) for name in logger]
    settings = flat(config)
    names = dict.fromkeys(track)
    return [*own, *(Tracker(x, folder, project=project, settings=settings, resumed=resumed) for x in names)]


def _made(name: str, config: Any) -> Logger:
    """The logger that `module:name` makes."""
    try:
        return as_logger(named(name, "logger")(config))
    except RelaxRLError:
        raise
    except (Exception, SystemExit) as error:  # whatever somebody's own code does
        line = (str(error).splitlines() or [""])[0][:300]
        raise SettingsError(f"logger {name} cannot be made: {type(error).__name__}: {line}; mend it") from error


def tell_outcome(result: TrainingResult, loggers: Sequence[Logger], folder: RunFolder, display: Display) -> None:
    """Tell loggers how a run has ended, and wait for trackers, for a limited time.

    Args:
        result: what came of it.
        loggers: all of them; TensorBoard has it from its rows.
        folder: of the run, with its table and learning curve.
        display: says what is waited for.
    """
    if not _telling(loggers):
        return
    means = [x for x in read_csv(folder.progress).get("return_mean", []) if not math.isnan(x)]
    outcome = {"final/return_mean": result.return_mean, "best/return_mean": max(means)} if means else {}
    finish_loggers(loggers, result.steps, outcome, folder, display, code=exit_code(result.stopped_by))


def finish_loggers(
    loggers: Sequence[Logger],
    step: int,
    outcome: Mapping[str, float],
    folder: RunFolder,
    display: Display,
    *,
    code: int,
) -> None:
    """Tell loggers the outcome of a run by name, with its learning curve and exit code, and wait for trackers."""
    telling, figure = _telling(loggers), folder.curve if folder.curve.exists() else None
    for logger in telling:
        logger.finish(step, outcome, figure=figure, code=code)
    trackers = [x for x in telling if isinstance(x, Tracker)]
    if trackers:
        with display.busy(f"handing the rest to {', '.join(tracker.name for tracker in trackers)}"):
            for tracker in trackers:
                tracker.close()


def _telling(loggers: Sequence[Logger]) -> list[GroupLogger]:
    return [x for x in loggers if isinstance(x, GroupLogger) and not isinstance(x, TensorBoardLogger)]


def tell_fewer_steps(saved: int, wanted: int) -> None:
    """Warn where a run that is gone on with is to take fewer steps than it was to take before."""
    if wanted < saved:
        told = (
            f"--total-steps is {wanted:,}, the run was to take {saved:,}: it ends, and schedules fall to zero, earlier"
        )
        warnings.warn(told, UserWarning, stacklevel=2)


def resumed_with_loggers(saved: TrainConfig, wanted: TrainConfig) -> TrainConfig:
    """As `resumed_config`; loggers that only the run's file names are not imported, and not asked for either.

    Raises:
        CheckpointError, SettingsError: as `resumed_config`.
    """
    if saved.run.logger and not wanted.run.logger:
        again = (
            f"this run had loggers that hear nothing of what follows; name them again for that:{logged_again(saved)}"
        )
        warnings.warn(again, UserWarning, stacklevel=2)
    return resumed_config(saved, wanted)
