"""Loggers of the user's own as a run calls them: what one raises becomes a line that names it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from relax_rl.errors import LoggerFault, RelaxRLError
from relax_rl.runs.loggers import GroupLogger, Logger

__all__ = ["GuardedLogger"]


class GuardedLogger(GroupLogger):
    """Hands everything on that a logger takes.

    Args:
        theirs: as `as_logger` gives it.
        name: in messages.

    Raises:
        LoggerFault: from any call, if the logger raises an error.
    """

    def __init__(self, theirs: Logger, name: str) -> None:
        self._theirs, self._name = theirs, name

    def log(self, row: Mapping[str, float], *, group: str | None = None) -> None:
        with self._named(f"of step {int(row['step']):,}"):
            if isinstance(self._theirs, GroupLogger):
                self._theirs.log(row, group=group)
            elif group is None:
                self._theirs.log(row)

    def finish(self, step: int, outcome: Mapping[str, float], *, figure: Path | None = None, code: int = 0) -> None:
        if isinstance(self._theirs, GroupLogger):
            with self._named("of the outcome"):
                self._theirs.finish(step, outcome, figure=figure, code=code)

    def close(self) -> None:
        with self._named("when it was closed"):
            self._theirs.close()

    @contextmanager
    def _named(self, when: str) -> Iterator[None]:
        try:
            yield
        except RelaxRLError:
            raise
        except Exception as error:  # whatever somebody's own logger does
            line = (str(error).splitlines() or [""])[0][:300]
            told = f"{type(error).__name__}: {line}" if line else type(error).__name__
            raise LoggerFault(f"logger {self._name} raised {told} {when}; mend it, or leave it out") from error
