"""The errors a user can cause, each told in one line."""

from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "DamagedCheckpoint",
    "EnvironmentFault",
    "RelaxRLError",
    "SettingsError",
    "TrainingDiverged",
    "WorkerLost",
    "did_you_mean",
]


class RelaxRLError(Exception):
    """Base of every error that a user can mend: what was wrong, what was expected, what to do.

    The command line prints its message on one line and exits with code 2.

    Attributes:
        already_printed: another process that works on the same prints this line.
    """

    already_printed: bool = False


class SettingsError(RelaxRLError, ValueError):
    """A setting, or a combination of settings, that cannot work (an unknown environment, a negative count, ...)."""


class CheckpointError(RelaxRLError):
    """A checkpoint that is missing, unreadable, tampered with, or made for something else."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint that is not what was once written: truncated, altered, or none at all."""


class TrainingDiverged(RelaxRLError):
    """A loss, gradient or parameter stopped being a finite number."""


class EnvironmentFault(RelaxRLError):
    """An environment gave what nothing can be learned from: a reward or an observation that is not a finite number."""


class WorkerLost(RelaxRLError):
    """Another of the processes that learn together stopped, or does not answer."""


def did_you_mean(word: str, known: Iterable[str], *, count: int = 3) -> str:
    """`; did you mean A, B?` for near misses, or nothing."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=count, cutoff=0.6)
    return f"; did you mean {', '.join(close)}?" if close else ""
