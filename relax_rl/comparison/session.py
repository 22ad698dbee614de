"""A comparison from beginning to end: tuning, runs, variances, and what is written about them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from relax_rl.comparison import peers
from relax_rl.comparison.config import CompareConfig, usable_cores
from relax_rl.comparison.contestants import Contestant
from relax_rl.comparison.figures import draw_all
from relax_rl.comparison.frozen_variance import STAGES, choose_snapshots, collect, measurement
from relax_rl.comparison.plan import Environment, Folder, run_task, variance_reference
from relax_rl.comparison.pool import Pool, Task, has_ended, read_outcome
from relax_rl.comparison.progress import View
from relax_rl.comparison.report import markdown
from relax_rl.comparison.results import aggregate, read_run, read_variances, summarise
from relax_rl.comparison.tuning import Tuning
from relax_rl.interruption import Interruption
from relax_rl.presets import find_preset
from relax_rl.runs import write_json
from relax_rl.serialization import write_text_atomic

__all__ = ["Session"]


class _Fixed:
    """A source of tasks that are all known beforehand; keeps what became of those that did not end well.

    Args:
        tasks: in order.
        after: called with a task that has ended well.
    """

    def __init__(self, tasks: Iterable[Task], after: Callable[[Task], None] | None = None) -> None:
        self.tasks = list(tasks)
        self.failures: list[dict[str, str]] = []
        self._after = after

    def next(self) -> Task | None:
        return self.tasks.pop(0) if self.tasks else None

    def finished(self, task: Task, outcome: Mapping[str, Any]) -> None:
        if outcome["status"] != "finished":
            self.failures.append({"run": task.name, "status": outcome["status"], "error": outcome["error"]})
        elif self._after is not None:
            self._after(task)


@dataclass
class Session:
    """A comparison that is ready to be worked on.

    Attributes:
        config: its options.
        folder: exists, and is held for this process.
        environments, contestants: checked.
        commands: as typed, of this and earlier sessions, for the report.
        cluster: `address`, `cpus` and `nodes` of the one that works on it, if it is not this machine alone.
    """

    config: CompareConfig
    folder: Folder
    environments: Sequence[Environment]
    contestants: Sequence[Contestant]
    commands: Sequence[str] = ()
    cluster: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self._reference = variance_reference(self.contestants, self.config)
        self._tuning = (
            Tuning(self.config, self.environments, self.contestants, self.folder) if self.config.tune else None
        )

    def run(self, pool: Pool, view: View, interruption: Interruption) -> dict[str, Any] | None:
        """Do what is still to be done, and write the results; returns what `comparison.json` holds.

        Finished runs are not repeated, those that were stopped go on. None if interrupted: nothing is written then.
        """
        if self._tuning is not None:
            left = {row: study.tasks_left() for row, study in self._tuning.studies.items()}
            view.board.plan((row, study.steps, left[row]) for row, study in self._tuning.studies.items())
            view.begin(f"tuning, {self.config.tune} trials each")
            if not pool.run(self._tuning, view, interruption):
                return None
        every = list(self._runs())
        runs = _Fixed(task for task in every if not has_ended(task, self.folder.path))
        view.board.plan((task.row, task.total_steps, 1) for task in every)
        for task in every:
            if task not in runs.tasks:
                view.board.ended(task, {"status": "finished"})
        view.begin(f"{len(runs.tasks)} runs, {pool.num_workers} at a time, in {self.folder.path}")
        if not pool.run(runs, view, interruption):
            return None
        # Whatever had diverged before; other failures are tried again.
        outcomes = ((task.name, read_outcome(self.folder.path / task.folder) or {}) for task in every)
        diverged = [
            {"run": name, "status": "diverged", "error": outcome["error"]}
            for name, outcome in outcomes
            if outcome.get("status") == "diverged"
        ]
        failures = [*diverged, *(failure for failure in runs.failures if failure["status"] != "diverged")]
        frozen = {task.name: (env, stage, checkpoint, task) for env, stage, checkpoint, task in self._measurements()}
        measurements = _Fixed(
            (task for *_, task in frozen.values()), lambda task: collect(self.folder, *frozen[task.name][:3])
        )
        if frozen:
            view.board.plan((task.row, 0, 1) for task in measurements.tasks)
            view.begin(f"gradient variance at frozen agents, {len(frozen)} to measure")
        if not pool.run(measurements, view, interruption):
            return None
        view.say("drawing figures and writing the report")
        return self._write([*failures, *measurements.failures], pool.num_workers)

    def _contestant_at(self, env: Environment, contestant: Contestant) -> Contestant:
        return contestant if self._tuning is None else self._tuning.tuned(env.name, contestant)

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
                        snapshots=contestant == self._reference and seed == self.config.first_seed,
                    )

    def _measurements(self) -> Iterator[tuple[str, str, Path, Task]]:
        """Measurements of the gradient's variance that are not there yet: environment, stage, frozen agent and task."""
        for env in self.environments if self._reference is not None else ():
            assert self._reference is not None
            run = self.folder.run(env.name, self._reference, self.config.first_seed)
            if read_outcome(run) is None:
                continue
            for stage, checkpoint in choose_snapshots(run).items():
                if not self.folder.variance(env.name, stage).exists():
                    task = measurement(self.config, self.folder, env.name, stage, run, checkpoint)
                    yield env.name, stage, checkpoint, task

    def _write(self, failures: Sequence[Mapping[str, str]], num_workers: int) -> dict[str, Any]:
        """Summarise, draw, and write everything there is to say."""
        summaries, variances = {}, {}
        for env in self.environments:
            runs = {
                contestant.label: [
                    run
                    for seed in self.config.seed_range
                    if (run := read_run(self.folder.run(env.name, contestant, seed), seed)) is not None
                ]
                for contestant in self.contestants
            }
            summaries[env.name] = summarise(runs, total_steps=env.total_steps, threshold=env.threshold)
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
            "aggregate": aggregate(summaries),
            "variance": variances,
        }
        write_json(self.folder.results, result)
        draw_all(result, self.folder.figure)
        write_text_atomic(self.folder.report, markdown(result))
        return result

    def _about_contestants(self, env: Environment) -> dict[str, Any]:
        """What each contestant was trained with."""
        found = {}
        for contestant in self.contestants:
            tuned = self._contestant_at(env, contestant)
            study = self._tuning.studies.get((env.name, contestant.label)) if self._tuning is not None else None
            peer = None
            if contestant.peer:
                published = peers.with_bins(peers.published(env.id, contestant.kind), env.bins)
                peer = asdict(peers.planned_steps(published, env.total_steps)[0])
            found[contestant.label] = {
                "kind": contestant.kind,
                "settings": dict(tuned.settings),
                "preset": find_preset(env.id, tuned.settings.get("preset", "auto")).name,
                "peer": peer,
                "tuning": None if study is None else study.about(),
            }
        return found
