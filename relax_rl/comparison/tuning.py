"""Equal tuning: the same number of trials for every contestant on every environment, before anything is compared.

Trials are proposed in batches of a fixed size by Optuna's tree-structured Parzen estimator. A batch is a function of the
trials before it and of the seed alone, so that neither the number of workers nor a stop in between changes a number; the
trials are kept as plain JSON.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from relax_rl.comparison.config import CompareConfig
from relax_rl.comparison.contestants import Contestant
from relax_rl.comparison.plan import Environment, Folder, own_config, run_task
from relax_rl.comparison.pool import Task, has_ended
from relax_rl.comparison.results import POINTS, read_run
from relax_rl.comparison.search_space import Dimension, dimensions, searched_values
from relax_rl.errors import SettingsError
from relax_rl.runs import write_json
from relax_rl.serialization import writing

__all__ = ["FIRST_TUNING_SEED", "Study", "Tuning", "check_installed", "curve_mean"]

FIRST_TUNING_SEED = 1_000_000
"""Seeds of trials begin here; those of comparisons end before it."""

BATCH = 4
"""Trials proposed at a time."""
STARTUP = 8
"""Trials at random before the estimator proposes."""


def check_installed(config: CompareConfig) -> None:
    """Raises:
    SettingsError: Optuna is missing, or the seeds of trials would be among those of the comparison.
    """
    if find_spec("optuna") is None:
        raise SettingsError("--tune needs Optuna, which is missing: pip install 'relax-rl[compare]'")
    if config.seed_range.stop > FIRST_TUNING_SEED:
        raise SettingsError(f"first_seed is {config.first_seed}, expected seeds below {FIRST_TUNING_SEED} with --tune")


class Study:
    """The trials of one contestant on one environment. The first trial is the contestant as it stands.

    Args:
        config: of the comparison.
        env, contestant: what is tuned, and where.
        folder: of the trials.
    """

    def __init__(self, config: CompareConfig, env: Environment, contestant: Contestant, folder: Path) -> None:
        self.config, self.env, self.contestant, self.folder = config, env, contestant, folder
        self.space = dimensions(contestant)
        self.seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + config.tune_seeds)
        self.steps = config.tune_steps or env.total_steps
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.trials: list[dict[str, Any]] = self._read()
        self._queue: list[Task] = []
        self._open: set[str] = set()
        self._batch: list[dict[str, Any]] = []

    @property
    def best(self) -> dict[str, Any]:
        """Settings of the trial with the highest score; as the contestant stands if no trial has one."""
        scored = [trial for trial in self.trials if trial["score"] is not None]
        return dict(max(scored, key=lambda trial: float(trial["score"]))["settings"]) if scored else {}

    @property
    def size_of_next_batch(self) -> int:
        """How many trials are still to be proposed together."""
        return min(BATCH, self.config.tune - len(self.trials))

    def next(self) -> Task | None:
        """A run of a trial, or None while trials of this batch are still running or all are done."""
        if not self._queue and not self._open and self.size_of_next_batch > 0:
            self._propose()
            if not self._queue:
                self._close_batch()
                return self.next()
        return self._queue.pop(0) if self._queue else None

    def finished(self, task: Task) -> None:
        """Take note that a run has ended; the last one of a batch closes it."""
        self._open.discard(task.name)
        if not self._open and not self._queue:
            self._close_batch()

    def tasks_left(self) -> int:
        """Runs that are still to come, with those in progress."""
        return (self.config.tune - len(self.trials)) * len(self.seeds)

    def about(self) -> dict[str, Any]:
        """Steps and seeds of a trial, and all trials, as they are kept."""
        return {"steps": self.steps, "seeds": list(self.seeds), "trials": self.trials}

    def _propose(self) -> None:
        first = len(self.trials)
        self._batch = [{"number": first + k, **point} for k, point in enumerate(self._points(self.size_of_next_batch))]
        for trial in self._batch:
            for seed in self.seeds:
                folder = self._run_folder(trial["number"], seed)
                task = run_task(
                    self.config,
                    self.env,
                    self.contestant,
                    seed,
                    f"tuning/{self.folder.name}/{folder.name}",
                    name=f"tune-{self.folder.name}-{trial['number']:03d}-s{seed}",
                    total_steps=self.steps,
                    settings=trial["settings"],
                )
                if not has_ended(task, self.folder.parent.parent):
                    self._queue.append(task)
                    self._open.add(task.name)

    def _points(self, count: int) -> list[dict[str, Any]]:
        """The next points of the search, `{"params": as searched, "settings": as trained}` each."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space = {d.name: _distribution(d) for d in self.space.values()}
        name = f"{self.folder.name}-{len(self.trials)}".encode()
        sampler = optuna.samplers.TPESampler(
            seed=zlib.crc32(name), n_startup_trials=STARTUP, multivariate=False, constant_liar=True
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for trial in self.trials:
            if trial["params"] is None:
                continue
            good = trial["score"] is not None
            state = optuna.trial.TrialState.COMPLETE if good else optuna.trial.TrialState.FAIL
            study.add_trial(
                optuna.trial.create_trial(
                    params=trial["params"], distributions=space, value=trial["score"] if good else None, state=state
                )
            )
        points: list[dict[str, Any]] = []
        if not self.trials:
            points.append({"params": searched_values(self._own_settings(), self.space), "settings": {}})
        while len(points) < count:
            params = study.ask(space).params
            settings = {name: d.setting(params[d.name]) for name, d in self.space.items()}
            points.append({"params": params, "settings": settings})
        return points

    def _own_settings(self) -> Mapping[str, Any]:
        """What the contestant would be trained with untuned."""
        if self.contestant.peer:
            from relax_rl.comparison.peers import published

            peer = published(self.env.id, self.contestant.kind)
            return {**_peer_defaults(self.contestant.kind), **peer.settings, **peer.linear}
        return asdict(own_config(self.env, self.contestant).agent)

    def _close_batch(self) -> None:
        for trial in self._batch:
            scores = [curve_mean(self._run_folder(trial["number"], seed), self.steps) for seed in self.seeds]
            known = [score for score in scores if score is not None]
            trial["score"] = sum(known) / len(known) if len(known) == len(scores) else None
        self.trials += self._batch
        self._batch = []
        write_json(self.folder / "trials.json", self.about())

    def _read(self) -> list[dict[str, Any]]:
        path = self.folder / "trials.json"
        if not path.exists():
            return []
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["trials"]
        return found

    def _run_folder(self, number: int, seed: int) -> Path:
        return self.folder / f"trial-{number:03d}-s{seed}"


class Tuning:
    """All studies of a comparison, as a source of tasks: those that can go on take turns."""

    def __init__(
        self,
        config: CompareConfig,
        environments: Sequence[Environment],
        contestants: Sequence[Contestant],
        folder: Folder,
    ) -> None:
        chosen = [c for c in contestants if config.tune_peers or not c.peer]
        self.studies = {
            (env.name, contestant.label): Study(config, env, contestant, folder.tuning(env.name, contestant))
            for env in environments
            for contestant in chosen
        }
        self._turn = 0

    def next(self) -> Task | None:
        """The next run of whichever study is ready."""
        studies = list(self.studies.values())
        for k in range(len(studies)):
            task = studies[(self._turn + k) % len(studies)].next()
            if task is not None:
                self._turn += k + 1
                return task
        return None

    def finished(self, task: Task, outcome: Mapping[str, Any]) -> None:
        """Hand the end of a run to its study."""
        self.studies[task.row].finished(task)

    def tuned(self, env: str, contestant: Contestant) -> Contestant:
        """The contestant with its best settings on an environment."""
        study = self.studies.get((env, contestant.label))
        if study is None:
            return contestant
        return replace(contestant, settings={**contestant.settings, **study.best})


def curve_mean(folder: Path, total_steps: int) -> float | None:
    """Mean over the steps of the curve of a run: the higher, the sooner and the more was learned.

    The curve is the mean return of the last 100 episodes; what comes before the first finished episode counts as that
    one, what comes after the end of the run as its last value.

    Returns:
        None for a run that did not end well, or in which no episode finished.
    """
    import numpy as np

    run = read_run(folder, 0)
    if run is None or run.status != "finished":
        return None
    values = run.at_steps(np.linspace(0, total_steps, POINTS + 1)[1:])
    return float(np.where(np.isnan(values), run.means[0], values).mean())


def _distribution(dimension: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.choices:
        return CategoricalDistribution(dimension.choices)
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _peer_defaults(kind: str) -> dict[str, Any]:
    """Stable-Baselines3's defaults of what is tuned, where the published entry is silent."""
    import inspect

    import stable_baselines3

    from relax_rl.comparison.peers import ALGORITHMS

    parameters = inspect.signature(getattr(stable_baselines3, ALGORITHMS[kind])).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    return {name: value for name, value in defaults.items() if isinstance(value, (int, float))}
