"""The errors a user can cause, each told in one line."""

from collections.abc import Iterable
from typing import Any

__all__ = [
    "CheckpointError",
    "DamagedCheckpoint",
    "EnvironmentFault",
    "LoggerFault",
    "RelaxRLError",
    "SettingsError",
    "TrainingDiverged",
    "WorkerLost",
    "add_note",
    "did_you_mean",
    "in_one_line",
    "notes_of",
    "set_notes",
    "shown",
]

_LONGEST = 1000
"""Characters of a line about an error."""
_SHOWN = 80
"""Of a value in it."""


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
    """An environment gave what nothing can be learned from: a number that is not finite, or a mask that allows no action."""


class LoggerFault(RelaxRLError):
    """A logger of the user's own raised an error."""


class WorkerLost(RelaxRLError):
    """Another of the processes that learn together stopped, or does not answer."""


def in_one_line(text: object) -> str:
    """A text as a line that a terminal shows as it is: what controls one is escaped, the middle of a long one left out."""
    line = " ".join(str(text).splitlines())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST * 2 // 3]} ... {line[-_LONGEST // 4 :]}"


def add_note(error: BaseException, note: str) -> None:
    """Have an error of somebody else's code say where it came from, or what is left, beside what it says itself.

    Args:
        error: that code's.
        note: in a line.
    """
    set_notes(error, [*notes_of(error), note])


def set_notes(error: BaseException, notes: list[str]) -> None:
    """Give an error other notes, as Python 3.11's add_note, which 3.10 has not, adds them."""
    vars(error)["__notes__"] = notes


def notes_of(error: BaseException) -> list[str]:
    """The notes of an error, oldest first."""
    return list(getattr(error, "__notes__", []))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean A, B?` for near misses, or nothing."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"; did you mean {', '.join(close)}?" if close else ""


def shown(value: Any) -> str:
    """A value in a message: of a long one its beginning."""
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python writes
        text = f"{'-' if value < 0 else ''}{hex(abs(value))}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
