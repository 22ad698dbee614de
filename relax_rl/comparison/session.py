"""A comparison from beginning to end: tuning, runs, variances, and what is written about them."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from relax_rl.comparison import peers, ray_cluster, tuning
from relax_rl.comparison.budget import Budget
from relax_rl.comparison.config import CompareConfig, check_resumable, read_settings, write_settings
from relax_rl.comparison.contestants import Contestant, read_contestants
from relax_rl.comparison.figures import draw_all
from relax_rl.comparison.frozen_variance import STAGES, choose_snapshots, collect, measurement
from relax_rl.comparison.plan import (
    Environment,
    Folder,
    check_contestants,
    check_same_settings,
    make_environments,
    run_task,
    variance_reference,
)
from relax_rl.comparison.pool import Outcomes, Pool, Progress, local
from relax_rl.comparison.report import markdown
from relax_rl.comparison.results import UNSCORED, RunResult, aggregate, read_run, read_variances, summarise
from relax_rl.comparison.task import Task, has_ended, read_outcome
from relax_rl.compute.host import usable_cores
from relax_rl.compute.serialization import write_text_atomic
from relax_rl.errors import CheckpointError
from relax_rl.runs import default_run_dir, write_json
from relax_rl.runs.interruption import Interruption
from relax_rl.settings.presets import find_preset

__all__ = ["Session", "run_comparison"]


def run_comparison(
    config: CompareConfig, *, command: str, interruption: Interruption
) -> tuple[Path, dict[str, Any] | None]:
    """Run a comparison, or go on with the one in `config.resume`.

    Args:
        config: the options.
        command: kept in the report.
        interruption: when it holds, runs in progress are saved and nothing more is begun.

    Returns:
        the folder, and what its `comparison.json` holds; None instead if interrupted.

    Raises:
        SettingsError: environments, contestants or settings that cannot work, a missing extra, or a folder in use.
        CheckpointError: no comparison to go on with.
        RelaxRLError: the folder cannot be written, or no Ray cluster answers, or it is lost.
    """
    if config.resume is not None:
        check_resumable(read_settings(Folder(Path(config.resume)).config), config)
    contestants = read_contestants(config.estimators, config.peers, config.set)
    if config.peers:
        peers.check_installed()
    if config.ray_address is not None:
        ray_cluster.check(config.ray_address)
    if config.tune:
        tuning.check(config, contestants)
    elif config.resume is None:
        tuning.check_idle(config)
    reference = variance_reference(contestants, config)
    environments, spaces = make_environments(config)
    kept = check_contestants(contestants, environments, spaces)
    path = Path(config.resume or config.run_dir or default_run_dir("compare"))
    folder = Folder.holding(path, config.env, contestants)
    folder.create(resumed=config.resume is not None)
    if not config.tune:
        check_same_settings(config, folder, environments, contestants, kept)
    with ExitStack() as stack:
        held = stack.enter_context(folder.locked())
        folder.sweep()
        cluster = None
        if config.ray_address is not None:
            cluster = stack.enter_context(ray_cluster.RayCluster(config.ray_address, folder.path))
        workers = config.workers if cluster is None else config.num_workers or max(1, cluster.about["cpus"])
        settings = replace(config, resume=None, run_dir=str(folder.path))
        commands = write_settings(folder.config, settings, command)
        progress = Progress(quiet=config.quiet, errors=None if cluster is None else cluster.errors)
        start = local(folder.path, held)
        if cluster is not None:
            start, cluster.warn = cluster.start, progress.warn
        pool = stack.enter_context(Pool(workers, folder.path, progress, start=start))
        stack.callback(progress.end)
        about = None if cluster is None else cluster.about
        session = Session(config, folder, environments, contestants, reference, commands, about)
        return folder.path, session.run(pool, progress, interruption)


@dataclass
class Session:
    """A comparison that is ready to be worked on.

    Attributes:
        config: its options.
        folder: exists, and is held for this process.
        environments, contestants: checked.
        reference: the contestant whose agents are frozen, if any are.
        commands: as typed, of this and earlier sessions, for the report.
        cluster: `address`, `cpus` and `nodes` of the one that works on it, if it is not this machine alone.
    """

    config: CompareConfig
    folder: Folder
    environments: Sequence[Environment]
    contestants: Sequence[Contestant]
    reference: Contestant | None = None
    commands: Sequence[str] = ()
    cluster: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self._studies = tuning.make_studies(self.config, self.environments, self.contestants, self.folder)

    def run(self, pool: Pool, progress: Progress, interruption: Interruption) -> dict[str, Any] | None:
        """Do what is still to be done, and write the results; returns what `comparison.json` holds.

        Finished runs are not repeated, those that were stopped go on. None if interrupted: nothing is written then.
        """

        budget = Budget(self.folder.budget, self.config.tune_minutes)

        def trials(tasks: list[Task]) -> Outcomes | None:
            progress.begin(f"tuning, {self.config.tune} trials each, {len(tasks)} runs at hand", tasks)
            with budget.working():
                return pool.run(tasks, interruption)

        progress.at_looks = budget.look
        if not tuning.tune(self._studies, trials, budget):
            return None
        runs = list(self._runs())
        left = [task for task in runs if not has_ended(task, self.folder.path)]
        title = f"{len(left)} runs, {pool.num_workers} at a time, in {self.folder.path}"
        progress.begin(title, left, done=[task for task in runs if task not in left])
        outcomes = pool.run(left, interruption)
        if outcomes is None:
            return None
        # What had diverged before counts too; other failures were tried again.
        found = {task.name: outcomes.get(task.name) or read_outcome(self.folder.path / task.folder) for task in runs}
        frozen = list(self._measurements())
        if frozen:
            progress.begin(f"gradient variance at frozen agents, {len(frozen)} to measure", ())
        outcomes = pool.run((task for task, *_ in frozen), interruption)
        if outcomes is None:
            return None
        for task, env, stage, checkpoint in frozen:
            if outcomes[task.name]["status"] == "finished":
                collect(self.folder, env, stage, checkpoint)
        progress.say("drawing figures and writing the report")
        failures = [
            {"run": name, "status": outcome["status"], "error": outcome["error"]}
            for name, outcome in {**found, **outcomes}.items()
            if outcome is not None and outcome["status"] != "finished"
        ]
        failures += [failure for study in dict.fromkeys(self._studies.values()) for failure in study.failures()]
        results, unreadable = self._results()
        if others := self._other_runs():
            progress.warn(f"not counted, their seeds were not asked for: {', '.join(others)}")
        for failure in unreadable:
            progress.warn(f"{failure['run']}: {failure['status']}: {failure['error']}")
        return self._write(results, [*failures, *unreadable], pool.num_workers)

    def _contestant_at(self, env: Environment, contestant: Contestant) -> Contestant:
        study = self._studies.get((env.name, contestant.label))
        return contestant if study is None else study.tuned()

    def _runs(self) -> Iterator[Task]:
        """All runs: environment by environment, seed by seed, each seed with every contestant."""
        for env in self.environments:
            for seed in self.config.seed_range:
                for contestant in self.contestants:
                    name = self.folder.run(env.name, contestant, seed).name
                    yield run_task(
                        self.config,
                        env,
                        self._contestant_at(env, contestant),
                        seed,
                        f"runs/{name}",
                        name=name,
                        snapshots=contestant == self.reference and seed == self.config.first_seed,
                    )

    def _measurements(self) -> Iterator[tuple[Task, str, str, Path]]:
        """Measurements of the gradient's variance that are not there yet: task, environment, stage and frozen agent."""
        for env in self.environments:
            if self.reference is None:
                return
            run = self.folder.run(env.name, self.reference, self.config.first_seed)
            if read_outcome(run) is None:
                continue
            for stage, checkpoint in choose_snapshots(run).items():
                if not read_variances({stage: self.folder.variance(env.name, stage)}):
                    task = measurement(self.config, self.folder, env, self.reference, stage, run, checkpoint)
                    yield task, env.name, stage, checkpoint

    def _results(self) -> tuple[dict[str, dict[str, list[RunResult]]], list[dict[str, str]]]:
        """All runs that have ended, by environment and contestant; and, as failures, those that no score can be read of."""
        found: dict[str, dict[str, list[RunResult]]] = {}
        unreadable = []
        for env in self.environments:
            found[env.name] = {contestant.label: [] for contestant in self.contestants}
            for contestant, seed in product(self.contestants, self.config.seed_range):
                folder = self.folder.run(env.name, contestant, seed)
                try:
                    run = read_run(folder, seed)
                except CheckpointError as error:
                    unreadable.append({"run": folder.name, "status": "unreadable", "error": str(error)})
                else:
                    found[env.name][contestant.label] += [] if run is None else [run]
                    if run is None and (read_outcome(folder) or {}).get("status") == "finished":
                        told = f"no episode has ended in {env.total_steps:,} steps"
                        unreadable.append({"run": folder.name, "status": UNSCORED, "error": told})
        return found, unreadable

    def _other_runs(self) -> list[str]:
        """Runs that have ended and whose seeds are not those of the options, as after going on with fewer."""
        found = []
        for env, contestant in product(self.environments, self.contestants):
            first = self.folder.run(env.name, contestant, self.config.first_seed)
            stem = first.name.removesuffix(str(self.config.first_seed))
            seeds = ((path, path.name.removeprefix(stem)) for path in first.parent.glob(f"{glob.escape(stem)}*"))
            others = [path for path, seed in seeds if seed.isdecimal() and int(seed) not in self.config.seed_range]
            found += [path.name for path in sorted(others) if read_outcome(path) is not None]
        return found

    def _write(
        self,
        results: Mapping[str, Mapping[str, Sequence[RunResult]]],
        failures: Sequence[Mapping[str, str]],
        num_workers: int,
    ) -> dict[str, Any]:
        """Summarise, draw, and write everything there is to say."""
        summaries, variances = {}, {}
        for env in self.environments:
            summaries[env.name] = summarise(
                results[env.name],
                total_steps=env.total_steps,
                threshold=env.threshold,
                stops=self.config.stop_when_solved,
            )
            variances[env.name] = read_variances({stage: self.folder.variance(env.name, stage) for stage in STAGES})
        result = {
            "options": asdict(self.config),
            "commands": list(self.commands),
            "num_workers": num_workers,
            "cores": usable_cores() if self.cluster is None else self.cluster["cpus"],
            "cluster": self.cluster,
            "failures": list(failures),
            "contestants": {env.name: self._about_contestants(env) for env in self.environments},
            "environments": summaries,
            "aggregate": aggregate(summaries, stops=self.config.stop_when_solved),
            "variance": variances,
        }
        write_json(self.folder.path / "comparison.json", result)
        write_text_atomic(self.folder.path / "report.md", markdown(result))
        draw_all(result, self.folder.figure)
        return result

    def _about_contestants(self, env: Environment) -> dict[str, Any]:
        """What each contestant was trained with."""
        found = {}
        for contestant in self.contestants:
            tuned = self._contestant_at(env, contestant)
            study = self._studies.get((env.name, contestant.label))
            peer = None
            if contestant.peer:
                planned, _ = peers.planned(env.id, contestant.kind, env.bins, env.total_steps)
                peer = peers.with_overrides(planned, tuned.settings)
            found[contestant.label] = {
                "kind": contestant.kind,
                "settings": dict(tuned.settings),
                "preset": find_preset(env.id, tuned.settings.get("preset", "auto")).name,
                "peer": None if peer is None else asdict(peer),
                "tuning": None if study is None else study.about(),
            }
        return found
