"""The gradient's variance at agents frozen early, midway and late in learning, as the command `variance` measures it."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import suppress
from pathlib import Path

from relax_rl.comparison.config import CompareConfig
from relax_rl.comparison.contestants import Contestant
from relax_rl.comparison.plan import Environment, Folder, options
from relax_rl.comparison.task import Task
from relax_rl.compute.serialization import writing
from relax_rl.errors import RelaxRLError
from relax_rl.runs import RunFolder, write_json
from relax_rl.runs.checkpoints import newest_first, remove_all_but, step_of
from relax_rl.runs.loggers import read_csv
from relax_rl.runs.record import read_config
from relax_rl.settings.naming import is_own

__all__ = ["STAGES", "choose_snapshots", "collect", "measurement"]

STAGES = {"early": 0.25, "midway": 0.5, "late": 0.75}
"""Stages of learning, by the share of its way from the first to the best mean return that a run has made."""


def measurement(
    config: CompareConfig,
    folder: Folder,
    env: Environment,
    reference: Contestant,
    stage: str,
    run: Path,
    checkpoint: Path,
) -> Task:
    """The command that measures one frozen agent, in a run folder of its own, which this makes.

    Args:
        env, reference: whose agent it is.
        stage: of learning.
        run: folder of the agent's run.
        checkpoint: the agent.

    Raises:
        CheckpointError: the settings of the run cannot be read.
        RelaxRLError: the folder cannot be made.
    """
    work = folder.variance(env.name, stage).with_suffix("")
    with writing(work):
        shutil.rmtree(work, ignore_errors=True)
        (work / "checkpoints").mkdir(parents=True)
        shutil.copy(RunFolder(run).config, work)
        shutil.copy(checkpoint, work / "checkpoints")
    given = {"batches": config.variance_batches, "fit_batches": config.variance_fit_batches, "states": 0}
    trained, asked = read_config(RunFolder(run)), {"wrapper": (), **reference.settings, **env.making, "env": env.id}
    saved = {"env": trained.env.env, "wrapper": trained.env.wrapper, "networks": trained.run.networks}
    # Code that is not this package's is taken from what was asked for: what only a file names is not imported.
    named = {name: asked.get(name) if is_own(value) else value for name, value in saved.items()}
    named |= {"estimator": reference.kind} if is_own(reference.kind) else {}
    own = options({name: value for name, value in named.items() if value})
    inside = f"variance/{work.name}"
    begin = ("relax_rl", "variance", inside, *own, *options(given))
    return Task(name=f"variance-{work.name}", folder=inside, begin=begin)


def collect(folder: Folder, env: str, stage: str, checkpoint: Path) -> None:
    """Keep what a measurement has found, and remove the folder that it was made in."""
    result = folder.variance(env, stage)
    work = result.with_suffix("")
    found = json.loads(RunFolder(work).variance.read_text(encoding="utf-8"))
    write_json(result, {"stage": stage, **found, "checkpoint": str(checkpoint)})
    shutil.rmtree(work, ignore_errors=True)


def choose_snapshots(folder: Path) -> dict[str, Path]:
    """The agents of a run at which its curve has first made the share of its way that each stage names.

    They are taken from the run's checkpoints, put into its folder `snapshots`, and stay the choice from then on; most of the
    other checkpoints are removed. Stages that would fall on the same one are told apart by taking the next; a curve that
    never rises is cut into equal parts instead.

    Raises:
        RelaxRLError: files cannot be moved.
    """
    frozen = folder / "snapshots"
    kept, checkpoints = newest_first(frozen)[::-1], newest_first(RunFolder(folder).checkpoints)[::-1]
    if 0 < len(kept) <= len(STAGES):
        return dict(zip(STAGES, kept, strict=False))
    known = {path.name: path for path in (*checkpoints, *kept)}
    chosen = _by_progress([known[name] for name in sorted(known)], RunFolder(folder).progress)
    if not chosen:
        return {}
    fresh = folder / "snapshots.new"
    with writing(frozen):
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        for path in chosen.values():
            shutil.copy(path, fresh)
        shutil.rmtree(frozen, ignore_errors=True)
        fresh.rename(frozen)
    remove_all_but(RunFolder(folder).checkpoints)
    return {stage: frozen / path.name for stage, path in chosen.items()}


def _by_progress(snapshots: list[Path], table: Path) -> dict[str, Path]:
    progress: dict[str, list[float]] = {}
    with suppress(RelaxRLError):  # the report tells of a run whose tables cannot be read
        progress = read_csv(table)
    means = [_mean_at(progress, step_of(path) or 0) for path in snapshots]
    known = [mean for mean in means if math.isfinite(mean)]
    rising = bool(known) and max(known) > known[0]
    chosen: dict[str, Path] = {}
    following = 0
    for name, share in STAGES.items():
        if rising:
            level = known[0] + share * (max(known) - known[0])
            place = next(k for k, mean in enumerate(means) if math.isfinite(mean) and mean >= level)
        else:
            place = min(len(snapshots) - 1, int(share * len(snapshots)))
        place = max(place, following)
        if place < len(snapshots):
            chosen[name] = snapshots[place]
            following = place + 1
    return chosen


def _mean_at(progress: dict[str, list[float]], step: int) -> float:
    """Mean return in the last row up to a step; NaN before the first one."""
    rows = [k for k, at in enumerate(progress.get("step", [])) if at <= step]
    return progress["return_mean"][rows[-1]] if rows and "return_mean" in progress else math.nan
