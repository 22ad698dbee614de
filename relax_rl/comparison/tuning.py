"""Equal tuning: the same number of trials for every contestant on every environment, before anything is compared.

Trials are proposed in batches of a fixed size by Optuna's tree-structured Parzen estimator. A batch is a function of the
trials before it and of the seed alone, so that neither the number of workers nor a stop in between changes a number; the
trials are kept as plain JSON.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from relax_rl.comparison.config import CompareConfig
from relax_rl.comparison.contestants import Contestant
from relax_rl.comparison.plan import Environment, Folder, own_config, run_task
from relax_rl.comparison.results import POINTS, read_run
from relax_rl.comparison.search_space import Dimension, dimensions, searched_values
from relax_rl.comparison.task import Task, has_ended
from relax_rl.compute.installation import install_line
from relax_rl.compute.serialization import writing
from relax_rl.errors import SettingsError
from relax_rl.runs import write_json
from relax_rl.runs.record import read_object

__all__ = ["FIRST_TUNING_SEED", "Studies", "Study", "check_installed", "curve_mean", "make_studies", "tune"]

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
        raise SettingsError(f"--tune needs Optuna, which is missing: {install_line('compare')}")
    if config.seed_range.stop > FIRST_TUNING_SEED:
        raise SettingsError(f"first_seed is {config.first_seed}, expected seeds below {FIRST_TUNING_SEED} with --tune")


class Study:
    """The trials of one contestant on one environment. The first trial is the contestant as it stands.

    Args:
        config: of the comparison.
        env, contestant: what is tuned, and where.
        folder: of the comparison.

    Attributes:
        trials: `number`, `params` as searched, `settings` as trained and `score` of each that has ended.
    """

    def __init__(self, config: CompareConfig, env: Environment, contestant: Contestant, folder: Folder) -> None:
        self.config, self.env, self.contestant = config, env, contestant
        self.root, self.folder = folder.path, folder.tuning(env.name, contestant)
        self.space = dimensions(contestant)
        self.seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + config.tune_seeds)
        self.steps = config.tune_steps or env.total_steps
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        kept = self.folder / "trials.json"
        self.trials: list[dict[str, Any]] = read_object(kept, "trials")["trials"] if kept.exists() else []
        self._batch: list[dict[str, Any]] = []

    @property
    def best(self) -> dict[str, Any]:
        """Settings of the trial with the highest score; as the contestant stands if no trial has one."""
        scored = [trial for trial in self.trials if trial["score"] is not None]
        return dict(max(scored, key=lambda trial: float(trial["score"]))["settings"]) if scored else {}

    def tuned(self) -> Contestant:
        """The contestant with its best settings."""
        return replace(self.contestant, settings={**self.contestant.settings, **self.best})

    def about(self) -> dict[str, Any]:
        """Steps and seeds of a trial, and all trials, as they are kept."""
        return {"steps": self.steps, "seeds": list(self.seeds), "trials": self.trials}

    def propose(self) -> list[Task]:
        """The runs of the next batch of trials that have not ended; none when there have been enough trials."""
        first = len(self.trials)
        points = self._points(min(BATCH, self.config.tune - first))
        self._batch = [{"number": first + k, **point} for k, point in enumerate(points)]
        runs = [self._task(trial, seed) for trial in self._batch for seed in self.seeds]
        return [run for run in runs if not has_ended(run, self.root)]

    def close(self) -> None:
        """Score the batch, whose runs have all ended, and keep it."""
        for trial in self._batch:
            folders = [self.root / self._task(trial, seed).folder for seed in self.seeds]
            scores = [curve_mean(folder, self.steps) for folder in folders]
            known = [score for score in scores if score is not None]
            trial["score"] = sum(known) / len(known) if len(known) == len(scores) else None
        self.trials += self._batch
        self._batch = []
        write_json(self.folder / "trials.json", self.about())

    def _task(self, trial: Mapping[str, Any], seed: int) -> Task:
        return run_task(
            self.config,
            self.env,
            self.contestant,
            seed,
            f"tuning/{self.folder.name}/trial-{trial['number']:03d}-s{seed}",
            name=f"tune-{self.folder.name}-{trial['number']:03d}-s{seed}",
            total_steps=self.steps,
            settings=trial["settings"],
        )

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
            score, states = trial["score"], optuna.trial.TrialState
            state = states.FAIL if score is None else states.COMPLETE
            study.add_trial(
                optuna.trial.create_trial(params=trial["params"], distributions=space, value=score, state=state)
            )
        points: list[dict[str, Any]] = []
        if not self.trials and count > 0:
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


Studies = dict[tuple[str, str], Study]
"""By the names of environments and the labels of contestants."""


def make_studies(
    config: CompareConfig, environments: Sequence[Environment], contestants: Sequence[Contestant], folder: Folder
) -> Studies:
    """Those that a comparison asks for."""
    return {
        (env.name, contestant.label): Study(config, env, contestant, folder)
        for env in environments
        for contestant in contestants
        if config.tune and (config.tune_peers or not contestant.peer)
    }


def tune(studies: Studies, work: Callable[[list[Task]], bool]) -> bool:
    """Bring all studies to their end, a batch of each at a time; returns False when interrupted.

    Args:
        work: runs tasks; False when interrupted.
    """
    while left := [study for study in studies.values() if len(study.trials) < study.config.tune]:
        if not work([task for study in left for task in study.propose()]):
            return False
        for study in left:
            study.close()
    return True


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
