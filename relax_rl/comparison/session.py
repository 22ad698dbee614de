"""A comparison from beginning to end: tuning, runs, variances, and what is written about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from relax_rl.comparison import peers
from relax_rl.comparison.config import CompareConfig
from relax_rl.comparison.contestants import Contestant, safe_name
from relax_rl.comparison.frozen_variance import STAGES, choose_snapshots
from relax_rl.comparison.plan import Environment, Folder, run_task, variance_reference
from relax_rl.comparison.pool import Task, WorkerPool
from relax_rl.comparison.progress import Board, View
from relax_rl.comparison.recording import SNAPSHOTS, read_outcome
from relax_rl.comparison.report import markdown, solved_by_any
from relax_rl.comparison.results import aggregate, read_run, read_variances, summarise
from relax_rl.comparison.tuning import Tuning
from relax_rl.host import usable_cores
from relax_rl.runs import write_json
from relax_rl.runs.interruption import Interruption
from relax_rl.serialization import write_text_atomic
from relax_rl.settings.presets import find_preset

__all__ = ["Session"]


class _Fixed:
    """A source of tasks that are all known beforehand; keeps what became of those that did not end well."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self.tasks = list(tasks)
        self.failures: list[dict[str, str]] = []

    def next(self) -> Task | None:
        return self.tasks.pop(0) if self.tasks else None

    def finished(self, task: Task, outcome: Mapping[str, Any]) -> None:
        if outcome["status"] != "finished":
            self.failures.append({"run": task.name, "status": outcome["status"], "error": outcome["error"]})


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

    def run(self, pool: WorkerPool, view: View, interruption: Interruption) -> dict[str, Any] | None:
        """Do what is still to be done, and write the results; returns what `comparison.json` holds.

        Finished runs are not repeated, those that were stopped go on. None if interrupted: nothing is written then.
        """
        self._tuning = (
            Tuning(self.config, self.environments, self.contestants, self.folder) if self.config.tune else None
        )
        if self._tuning is not None:
            rows = [
                (row, study.steps) for row, study in self._tuning.studies.items() for _ in range(study.tasks_left())
            ]
            view.board.plan(rows)
            view.begin(f"tuning, {self.config.tune} trials each")
            if not pool.run(self._tuning, view, interruption):
                return None
        source = _Fixed(self._runs())
        self._plan(view.board, source.tasks)
        self._num_workers = pool.num_workers
        view.begin(f"{len(source.tasks)} runs, {pool.num_workers} at a time, in {self.folder.path}")
        if not pool.run(source, view, interruption):
            return None
        failures = source.failures + self._earlier_failures(source.failures)
        measurements = _Fixed(self._measurements())
        if measurements.tasks:
            view.board.plan((task.row, 0) for task in measurements.tasks)
            view.begin(f"gradient variance at frozen agents, {len(measurements.tasks)} to measure")
        if not pool.run(measurements, view, interruption):
            return None
        if not measurements.failures:
            self._thin_snapshots()
        view.say("drawing figures and writing the report")
        return self._write([*failures, *measurements.failures])

    def _plan(self, board: Board, tasks: Sequence[Task]) -> None:
        """The rows in the order of environments and contestants, finished runs counted as done."""
        left = [task.row for task in tasks]
        every = [(env, contestant) for env in self.environments for contestant in self.contestants]
        board.plan(((env.name, c.label), env.total_steps) for env, c in every for _ in self.config.seed_range)
        steps = {task.row: task.total_steps for task in tasks}
        for row, entry in board.rows.items():
            entry.done = entry.total - left.count(row)
            entry.steps_left = left.count(row) * steps.get(row, 0)

    def _contestant_at(self, env: Environment, contestant: Contestant) -> Contestant:
        return contestant if self._tuning is None else self._tuning.tuned(env.name, contestant)

    def _runs(self) -> Iterable[Task]:
        """Runs that have not ended: environment by environment, seed by seed, each seed with every contestant."""
        reference = variance_reference(self.contestants, self.config)
        for env in self.environments:
            for seed in self.config.seed_range:
                for contestant in self.contestants:
                    folder = self.folder.run(env.name, contestant, seed)
                    if read_outcome(folder) is not None:
                        continue
                    yield run_task(
                        self.config,
                        env,
                        self._contestant_at(env, contestant),
                        seed,
                        folder,
                        name=folder.name,
                        snapshots=contestant == reference and seed == self.config.first_seed,
                    )

    def _earlier_failures(self, known: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
        """Runs that had diverged before this session; all other failures are tried again."""
        told = {failure["run"] for failure in known}
        found = []
        for env in self.environments:
            for contestant in self.contestants:
                for seed in self.config.seed_range:
                    folder = self.folder.run(env.name, contestant, seed)
                    outcome = read_outcome(folder)
                    if outcome is not None and outcome["status"] == "diverged" and folder.name not in told:
                        found.append({"run": folder.name, "status": "diverged", "error": outcome["error"]})
        return found

    def _measurements(self) -> Iterable[Task]:
        """Measurements of the gradient's variance that are not there yet."""
        reference = variance_reference(self.contestants, self.config)
        for env in self.environments if reference is not None else ():
            assert reference is not None
            folder = self.folder.run(env.name, reference, self.config.first_seed)
            if read_outcome(folder) is None:
                continue
            for stage, checkpoint in choose_snapshots(folder).items():
                result = self.folder.variance(env.name, stage)
                if result.exists():
                    continue
                message = {
                    "kind": "variance",
                    "folder": str(folder),
                    "checkpoint": str(checkpoint),
                    "stage": stage,
                    "batches": self.config.variance_batches,
                    "fit_batches": self.config.variance_fit_batches,
                    "result": str(result),
                }
                yield Task(f"variance-{safe_name(env.name)}-{stage}", (env.name, f"variance, {stage}"), 0, message)

    def _thin_snapshots(self) -> None:
        """Remove the frozen agents that stand for no stage of learning."""
        reference = variance_reference(self.contestants, self.config)
        for env in self.environments if reference is not None else ():
            assert reference is not None
            folder = self.folder.run(env.name, reference, self.config.first_seed)
            if read_outcome(folder) is None:
                continue
            kept = set(choose_snapshots(folder).values())
            for path in (folder / SNAPSHOTS).glob("step_*.safetensors"):
                if path not in kept:
                    path.unlink()

    def _write(self, failures: Sequence[Mapping[str, str]]) -> dict[str, Any]:
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
            "num_workers": self._num_workers,
            "cores": usable_cores() if self.cluster is None else self.cluster["cpus"],
            "cluster": self.cluster,
            "failures": list(failures),
            "contestants": {env.name: self._about_contestants(env) for env in self.environments},
            "environments": summaries,
            "aggregate": aggregate(summaries),
            "variance": variances,
        }
        write_json(self.folder.results, result)
        self._draw(result)
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
                peer = peers.planned_steps(published, env.total_steps)[0]
            found[contestant.label] = {
                "kind": contestant.kind,
                "settings": dict(tuned.settings),
                "preset": find_preset(env.id, tuned.settings.get("preset", "auto")).name,
                "peer": None if peer is None else asdict(peer),
                "tuning": None
                if study is None
                else {"steps": study.steps, "seeds": list(study.seeds), "trials": study.trials},
            }
        return found

    def _draw(self, result: Mapping[str, Any]) -> None:
        from relax_rl.comparison import figures

        style = figures.styles([contestant.label for contestant in self.contestants])
        for env, summary in result["environments"].items():
            if not summary["contestants"]:
                continue

            def path(what: str, env: str = env) -> Path:
                return self.folder.figure(env, what)

            figures.plot_curves(path("curves"), env, summary, style)
            figures.plot_scores(path("scores"), env, summary, style)
            path("solved").unlink(missing_ok=True)
            if solved_by_any(summary):
                figures.plot_solved(path("solved"), env, summary, style)
            if summary["improvement"]:
                figures.plot_improvement(path("improvement"), env, summary["improvement"])
            if result["variance"][env]:
                figures.plot_variance(path("variance"), env, result["variance"][env])
        if result["aggregate"] is not None and result["aggregate"]["improvement"]:
            pairs = result["aggregate"]["improvement"]
            figures.plot_improvement(self.folder.figure("all", "improvement"), "all environments", pairs)
