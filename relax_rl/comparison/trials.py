"""Trials as they are kept: JSON from which a search goes on, and a table to look at."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from relax_rl.comparison.search_space import Dimension
from relax_rl.compute.serialization import write_json, write_text_atomic
from relax_rl.errors import CheckpointError
from relax_rl.runs.record import entries, read_object

__all__ = ["Trial", "best_trial", "read_trials", "write_trials"]

Trial = dict[str, Any]
"""`number`; `params` as searched, None outside the space; `settings` as trained; `score`, None if there is none; `seconds` of
its runs; `reached`: at each rung it came to, its score on every environment."""


_KEYS = {"number", "params", "settings", "score"}


def best_trial(trials: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The one with the highest score among those that came furthest; None if no trial has a score."""
    scored = [trial for trial in trials if trial["score"] is not None]
    return max(scored, key=lambda trial: (len(trial.get("reached", ())), trial["score"])) if scored else None


def read_trials(path: Path, env: str, space: Mapping[str, Dimension]) -> tuple[list[Trial], list[Trial]]:
    """The trials of a search that have ended, and those of its last batch if they have not; none where there is no file.

    Args:
        path: of the JSON.
        env: the environment of trials that name none, as earlier versions kept them.
        space: what is searched, by the names of settings.

    Raises:
        CheckpointError: the file cannot be read.
    """
    if not path.exists():
        return [], []
    record = read_object(path, "trials")
    ended, batch = (entries(record, name) for name in ("trials", "batch"))
    for trial in (*ended, *batch):
        if not isinstance(trial, dict) or not trial.keys() >= _KEYS or not isinstance(trial["settings"], dict):
            wrong = f"a trial has no {', '.join(sorted(_KEYS))}"
            raise CheckpointError(f"{path} is damaged: {wrong}; remove it to search anew")
        if other := next((name for name in trial["settings"] if name not in space), None):
            raise CheckpointError(f"{path} is damaged: {other!r} is not searched; remove it to search anew")
    for trial in ended:
        trial.setdefault("seconds", None)
        trial.setdefault("reached", [{env: trial["score"]}])
    return ended, batch


def write_trials(
    folder: Path,
    about: Mapping[str, Any],
    batch: Sequence[Trial],
    *,
    environments: Sequence[str],
    space: Mapping[str, Dimension],
    own: Mapping[str, Any],
) -> None:
    """Write `trials.json`, and `trials.csv` with a row for each trial that has ended.

    Args:
        folder: of the trials.
        about: what the JSON holds, `trials` among it.
        batch: trials that have not ended.
        environments: names of the columns of scores.
        space: what is searched, by the names of settings, which are columns too.
        own: their values in a trial that leaves them as they are, as far as these are known.

    Raises:
        RelaxRLError: a file cannot be written.
    """
    write_json(folder / "trials.json", {**about, **({"batch": list(batch)} if batch else {})})
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["number", "rung", "score", *environments, *space, "seconds"])
    for trial in about["trials"]:
        settings, reached = {**own, **trial["settings"]}, trial["reached"]
        scores = [reached[-1].get(env) if reached else None for env in environments]
        row = [trial["number"], len(reached), trial["score"], *scores, *map(settings.get, space), trial["seconds"]]
        writer.writerow(map(_cell, row))
    write_text_atomic(folder / "trials.csv", table.getvalue())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value))
    return f"{value:.8g}" if isinstance(value, float) else str(value)
