"""Equal tuning: the same number of trials for every contestant, before anything is compared.

Trials are proposed in batches of a fixed size. A batch is a function of the trials before it and of the seed alone, so
that neither the number of workers nor a stop in between changes a number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from relax_rl.comparison.budget import Budget
from relax_rl.comparison.config import CompareConfig
from relax_rl.comparison.contestants import Contestant, file_names, safe_name
from relax_rl.comparison.halving import (
    WHOLE,
    batch_size,
    left_to_do,
    outcome_at,
    paused,
    rung_steps,
    survivors,
)
from relax_rl.comparison.plan import TOGETHER, Environment, Folder, own_config, run_task
from relax_rl.comparison.process import last_row
from relax_rl.comparison.proposals import propose
from relax_rl.comparison.search_space import (
    PUBLISHED,
    SearchSpace,
    check_peers,
    dimensions,
    read_space,
    read_starts,
    searched_values,
)
from relax_rl.comparison.task import Task, has_ended
from relax_rl.comparison.task_scores import END, curve_mean, mean_score, read_anchors, scales
from relax_rl.comparison.trials import Trial, best_trial, read_trials, write_trials
from relax_rl.compute.installation import install_line
from relax_rl.compute.serialization import write_text_atomic, writing
from relax_rl.errors import SettingsError
from relax_rl.runs import RunFolder
from relax_rl.settings.fields import flat

__all__ = ["Studies", "Study", "check", "make_studies", "tune"]


def check(config: CompareConfig, contestants: Sequence[Contestant]) -> None:
    """Raises:
    SettingsError: Optuna is missing, the seeds of trials would be among those of the comparison, or options of tuning
        cannot work.
    """
    if find_spec("optuna") is None:
        raise SettingsError(f"--tune needs Optuna, which is missing: {install_line('compare')}")
    seeds, theirs = config.seed_range, config.tuning_seeds
    if seeds.start < theirs.stop and theirs.start < seeds.stop:
        raise SettingsError(f"first_seed is {config.first_seed}, expected seeds below {theirs.start} with --tune")
    read_anchors(config)
    path = _space_file(config, None if config.resume is None else Folder(Path(config.resume)))
    space = read_space(path)
    read_starts(path, space)
    if not any(_is_tuned(config, contestant, space) for contestant in contestants):
        raise SettingsError(
            f"tune is {config.tune}, but no contestant has a setting that is searched; leave --tune out"
        )
    if config.tune_peers:
        check_peers(contestants, space)


class Study:
    """The trials of one contestant. The first trial is the contestant as it stands.

    Args:
        config: of the comparison.
        environments: where it is tuned: one, or several together.
        contestant: what is tuned.
        folder: of the comparison.
        space: what is searched (default: what this package searches).
        starts: points that are tried after the first one, see `read_starts`.

    Attributes:
        trials: those that have ended.
    """

    def __init__(
        self,
        config: CompareConfig,
        environments: Sequence[Environment],
        contestant: Contestant,
        folder: Folder,
        space: SearchSpace | None = None,
        starts: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.config, self.environments, self.contestant = config, environments, contestant
        name = TOGETHER if config.tune_together else environments[0].name
        self.root, self.folder = folder.path, folder.tuning(name, contestant)
        self.space, self.starts = dimensions(contestant, space), starts
        self.seeds = config.tuning_seeds
        self.rungs = WHOLE if contestant.peer else config.tune_rungs or WHOLE
        self.steps = {env.name: rung_steps(config.tune_steps or env.total_steps, self.rungs) for env in environments}
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        kept, rungs = self.folder / "trials.json", len(self.rungs)
        self.trials, self._batch = read_trials(kept, environments[0].name, self.space, rungs=rungs)

    @property
    def is_open(self) -> bool:
        """Whether a batch has been begun that has not ended."""
        return bool(self._batch)

    @property
    def best(self) -> dict[str, Any]:
        """Settings of the best trial; as the contestant stands if no trial has a score."""
        found = best_trial(self.trials)
        return {} if found is None else dict(found["settings"])

    def tuned(self) -> Contestant:
        """The contestant with its best settings."""
        return replace(self.contestant, settings={**self.contestant.settings, **self.best})

    def about(self) -> dict[str, Any]:
        """Steps and seeds of a trial, and all trials, as they are kept."""
        steps = {name: at[-1] for name, at in self.steps.items()}
        found: dict[str, Any] = {"steps": next(iter(steps.values())), "seeds": list(self.seeds)}
        if self.config.tune_together:
            found |= {"steps": steps, "scales": self._scales(len(self.rungs))}
        if self.rungs != WHOLE:
            found["rungs"] = list(self.rungs)
        return {**found, "trials": self.trials}

    def propose(self) -> list[Task]:
        """The runs to the next rung of the present batch that have not come there; begins a batch if there is none."""
        if not self._batch:
            first = len(self.trials)
            most = self.config.tune_batch or batch_size(self.config.tune_rungs or WHOLE, self.config.tune_keep)
            points = self._points(min(most, self.config.tune - first))
            self._batch = [
                {"number": first + k, **point, "score": None, "seconds": 0.0, "reached": []}
                for k, point in enumerate(points)
            ]
            self._write()
        rung = self._rung() + 1
        left = []
        for trial in self._alive():
            for env in self.environments:
                runs = [paused(self._run(trial, env, seed), self.steps[env.name], rung) for seed in self.seeds]
                left += [run for run in runs if self._is_left(run, env, rung)]
        return left

    def close(self) -> None:
        """Score the trials at the rung that all their runs have come to, and end the batch if none goes on."""
        alive, rung = self._alive(), self._rung() + 1
        for trial in alive:
            trial["reached"].append({env.name: self._score_on(trial, env, rung) for env in self.environments})
            folders = [self._folder(trial, env, seed) for env in self.environments for seed in self.seeds]
            trial["seconds"] = sum(last_row(RunFolder(folder).progress).get("seconds", 0.0) for folder in folders)
        self._score()
        if rung == len(self.rungs) or not self._alive():
            self.trials += self._batch
            self._batch = []
        self._write()

    def _rung(self) -> int:
        """The rung that the present batch has come to; 0 before the first."""
        return max((len(trial["reached"]) for trial in self._batch), default=0)

    def _alive(self) -> list[Trial]:
        """The trials of the batch that go on from its rung."""
        at = [trial for trial in self._batch if len(trial["reached"]) == self._rung()]
        if not self._rung():
            return at
        kept = survivors({trial["number"]: trial["score"] for trial in at}, self.config.tune_keep)
        return [trial for trial in at if trial["number"] in kept]

    def _score(self) -> None:
        """Give each trial its score at its rung; together, on scales of all trials that have come there."""
        if self.config.tune_together:
            found = [self._scales(rung) for rung in range(1, len(self.rungs) + 1)]
            for trial in (*self.trials, *self._batch):
                trial["score"] = mean_score(trial["reached"][-1], found[len(trial["reached"]) - 1])
            return
        for trial in self._batch:
            (trial["score"],) = trial["reached"][-1].values()

    def _scales(self, rung: int) -> dict[str, tuple[float, float]]:
        """What counts as 0 and as 1 at a rung, by environment."""
        at = [trial["reached"][rung - 1] for trial in (*self.trials, *self._batch) if len(trial["reached"]) >= rung]
        return scales(self.steps, at, read_anchors(self.config))

    def _score_on(self, trial: Trial, env: Environment, rung: int) -> float | None:
        """Mean over seeds of the curve up to a rung, or of its end; None if one of the runs has none."""
        steps, ended = self.steps[env.name][rung - 1], outcome_at(rung, len(self.rungs))
        last = END if self.config.tune_score == "end" else 1.0
        scores = [curve_mean(self._folder(trial, env, seed), steps, last=last, ended=ended) for seed in self.seeds]
        known = [score for score in scores if score is not None]
        return sum(known) / len(known) if len(known) == len(scores) else None

    def _is_left(self, run: Task, env: Environment, rung: int) -> bool:
        if self.contestant.peer or not self.config.tune_rungs:
            return not has_ended(run, self.root)
        return left_to_do(run, self.root, self.steps[env.name], rung)

    def _run(self, trial: Trial, env: Environment, seed: int) -> Task:
        """A whole run of a trial."""
        folder = self._folder(trial, env, seed)
        name = folder.name.removeprefix("trial-")
        exact = self.config.tune_rungs and not self.contestant.peer
        # Nothing is saved but at rungs, from which alone it goes on.
        saved = {"checkpoint_interval": self.steps[env.name][-1], "keep_checkpoints": 2} if exact else {}
        return run_task(
            self.config,
            env,
            self.contestant,
            seed,
            f"tuning/{self.folder.name}/{folder.name}",
            name=safe_name(f"tune-{self.folder.name}-{name}"),
            total_steps=self.steps[env.name][-1],
            settings={**trial["settings"], **saved},
        )

    def _folder(self, trial: Trial, env: Environment, seed: int) -> Path:
        stems = file_names((name,) for name in self.steps)
        where = f"-{stems[(env.name,)]}" if self.config.tune_together else ""
        return self.folder / f"trial-{trial['number']:03d}{where}-s{seed}"

    def _points(self, count: int) -> list[dict[str, Any]]:
        """The next points of the search, the contestant as it stands first."""
        points: list[dict[str, Any]] = []
        if not self.trials and count > 0:
            found = [searched_values(self._own_settings(env), self.space) for env in self.environments]
            same = all(point == found[0] for point in found)
            points.append({"params": found[0] if same else None, "settings": {}})
        rest, starts = count - len(points), self.starts[max(0, len(self.trials) - 1) :]
        return points + propose(self.folder.name, self.space, self.trials, rest, rungs=len(self.rungs), starts=starts)

    def _own_settings(self, env: Environment) -> Mapping[str, Any]:
        """What the contestant would be trained with untuned."""
        if self.contestant.peer:
            from relax_rl.comparison.peers import parameters_of, published

            peer = published(env.id, self.contestant.kind)
            return {**parameters_of(self.contestant.kind), **peer.settings, **peer.linear, **self.contestant.settings}
        return flat(own_config(env, self.contestant))

    def _write(self) -> None:
        own = [self._own_settings(env) for env in self.environments]
        common = {name: own[0][name] for name in self.space if all(name in x and x[name] == own[0][name] for x in own)}
        write_trials(
            self.folder, self.about(), self._batch, environments=list(self.steps), space=self.space, own=common
        )


Studies = dict[tuple[str, str], Study]
"""By the names of environments and the labels of contestants; one that is tuned together stands there for each of its own."""


def make_studies(
    config: CompareConfig, environments: Sequence[Environment], contestants: Sequence[Contestant], folder: Folder
) -> Studies:
    """Those that a comparison asks for, whose search space it keeps.

    Raises:
        SettingsError: the space, or trials that were kept, cannot be read.
    """
    if not config.tune:
        return {}
    path = _space_file(config, folder)
    space = read_space(path)
    starts = read_starts(path, space)
    tuned = [contestant for contestant in contestants if _is_tuned(config, contestant, space)]
    if path != folder.space:
        with writing(folder.space):
            folder.space.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(folder.space, path.read_text(encoding="utf-8"))
    found: Studies = {}
    for contestant in tuned:
        if config.tune_together:
            found |= dict.fromkeys(
                [(env.name, contestant.label) for env in environments],
                Study(config, environments, contestant, folder, space, starts),
            )
        else:
            found |= {
                (env.name, contestant.label): Study(config, [env], contestant, folder, space, starts)
                for env in environments
            }
    order = [(env.name, contestant.label) for env in environments for contestant in tuned]
    return {key: found[key] for key in order}


def tune(studies: Studies, work: Callable[[list[Task]], bool], budget: Budget | None = None) -> bool:
    """Bring all studies to their end, a batch of each at a time; returns False when interrupted.

    Args:
        work: runs tasks; False when interrupted.
        budget: once it is spent, no batch is begun, unless it takes one for all to have as many trials.
    """
    every = list(dict.fromkeys(studies.values()))
    while left := [study for study in every if len(study.trials) < study.config.tune]:
        fewest = min(len(study.trials) for study in left)
        if budget is not None and budget.spent:
            even = len(left) == len(every) and all(len(study.trials) == fewest for study in every)
            if even and not any(study.is_open for study in every):
                break
        turn = [study for study in left if len(study.trials) == fewest]
        if not work([task for study in turn for task in study.propose()]):
            return False
        for study in turn:
            study.close()
    return True


def _space_file(config: CompareConfig, folder: Folder | None) -> Path:
    """The file of the search space: what a comparison keeps of it wins over what it was begun with."""
    if folder is not None and folder.space.exists():
        return folder.space
    return Path(config.tune_space or PUBLISHED)


def _is_tuned(config: CompareConfig, contestant: Contestant, space: SearchSpace) -> bool:
    return bool(dimensions(contestant, space)) and (config.tune_peers or not contestant.peer)
