"""Trials as they are kept: JSON from which a search goes on, and a table to look at."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from relax_rl.comparison.search_space import Dimension
from relax_rl.compute.serialization import write_json, write_text_atomic
from relax_rl.errors import CheckpointError, shown
from relax_rl.runs.record import entries, read_object

__all__ = ["Trial", "best_trial", "read_trials", "write_trials"]

Trial = dict[str, Any]
"""`number`; `params` as searched, None outside the space; `settings` as trained; `score`, None if there is none; `seconds` of
its runs; `reached`: at each rung it came to, its score on every environment; `failed`: why the last try of one of its runs failed,
where it did."""


_KEYS = {"number", "params", "settings", "score"}


def best_trial(trials: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The one with the highest score among those that came furthest; None if no trial has a score."""
    scored = [trial for trial in trials if trial["score"] is not None]
    return max(scored, key=lambda trial: (len(trial.get("reached", ())), trial["score"])) if scored else None


def read_trials(
    path: Path, env: str, space: Mapping[str, Dimension], *, rungs: int = 1
) -> tuple[list[Trial], list[Trial]]:
    """The trials of a search that have ended, and those of its last batch if they have not; none where there is no file.

    Args:
        path: of the JSON.
        env: the environment of trials that name none, as earlier versions kept them.
        space: what is searched, by the names of settings.
        rungs: that a trial can reach.

    Raises:
        CheckpointError: the file cannot be read, or holds what is no trial of this search.
    """
    if not path.exists():
        return [], []
    record = read_object(path, "trials")
    ended, batch = (entries(record, name) for name in ("trials", "batch"))
    found: list[Any] = [*ended, *batch]
    wrong = "" if all(map(_is_whole, found)) else f"a trial has no {', '.join(sorted(_KEYS))}"
    if not wrong:
        for trial in ended:
            trial.setdefault("seconds", None)
            trial.setdefault("reached", [{env: trial["score"]}])
        wrong = next(filter(None, (_wrong(trial, at, space, rungs) for at, trial in enumerate(found))), "")
    if not wrong and not all(trial["reached"] for trial in ended):
        wrong = "a trial has ended at no rung"
    if wrong:
        raise CheckpointError(f"{path} is damaged: {wrong}; remove it to search anew")
    return ended, batch


def _is_whole(trial: Any) -> bool:
    return isinstance(trial, dict) and trial.keys() >= _KEYS and isinstance(trial["settings"], dict)


def _wrong(trial: Trial, at: int, space: Mapping[str, Dimension], rungs: int) -> str:
    """What a trial holds that none of this search does; empty if nothing.

    Args:
        trial: has all its keys.
        at: its place among all.
        space: what is searched, by the names of settings.
        rungs: that it can reach.
    """
    if type(trial["number"]) is not int or trial["number"] != at:
        return f"number is {shown(trial['number'])}, expected {at}"
    if other := next((name for name in trial["settings"] if name not in space), None):
        return f"{other!r} is not searched"
    named, params = {dimension.name: dimension for dimension in space.values()}, trial["params"]
    if params is not None and not (
        isinstance(params, dict)
        and params.keys() == named.keys()
        and all(named[name].takes(value) for name, value in params.items())
    ):
        return f"params of trial {at} are no point of what is searched"
    if not _is_score(trial["score"]):
        return f"score of trial {at} is {shown(trial['score'])}, expected a number"
    if not isinstance(trial.get("failed", ""), str):
        return f"failed of trial {at} is {shown(trial['failed'])}, expected a text"
    reached = trial.get("reached")
    if not isinstance(reached, list) or len(reached) > rungs or not all(map(_are_scores, reached)):
        return f"reached of trial {at} is {shown(reached)}, expected scores by environment at each of at most {rungs} rungs"
    return ""


def _are_scores(found: Any) -> bool:
    return isinstance(found, dict) and bool(found) and all(map(_is_score, found.values()))


def _is_score(score: Any) -> bool:
    return score is None or (type(score) in (int, float) and abs(score) <= sys.float_info.max)


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
