"""The trials of one contestant: proposed in batches, scored, and kept.

A batch is a function of the trials before it and of the seed alone, so that neither the number of workers nor a stop in between
changes a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from relax_rl.comparison.pool import Outcomes
from relax_rl.comparison.process import last_row
from relax_rl.comparison.proposals import propose
from relax_rl.comparison.search_space import (
    SearchSpace,
    dimensions,
    searched_values,
)
from relax_rl.comparison.task import Task, has_ended
from relax_rl.comparison.task_scores import END, curve_mean, mean_score, read_anchors, scales
from relax_rl.comparison.trials import Trial, best_trial, read_trials, write_trials
from relax_rl.compute.serialization import writing
from relax_rl.errors import SettingsError
from relax_rl.runs import RunFolder
from relax_rl.settings.fields import flat

__all__ = ["Study"]


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

    def failed(self, outcomes: Outcomes) -> list[str]:
        """Runs of the present batch that failed now and whose trial had none that did, each with why; the trial keeps it.

        What a full disk has ended deserves another try. A trial that fails once more is closed with its batch, without a score.
        """
        found = []
        for trial in self._alive():
            names = [self._run(trial, env, seed).name for env in self.environments for seed in self.seeds]
            errors = {
                name: outcomes[name]["error"] for name in names if outcomes.get(name, {}).get("status") == "failed"
            }
            if errors and "failed" not in trial:
                found += [f"{name}: {error}" for name, error in errors.items()]
            if errors:
                trial["failed"] = next(iter(errors.values()))
            else:
                trial.pop("failed", None)
        self._write()
        return found

    def failures(self) -> list[dict[str, str]]:
        """Trials that have no score because a run of theirs failed twice, as `comparison.json` tells of runs that failed."""
        failed = [trial for trial in self.trials if "failed" in trial]
        name = self.folder.name
        return [
            {"run": f"tune-{name}-{trial['number']:03d}", "status": "failed", "error": trial["failed"]}
            for trial in failed
        ]

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
        how: dict[str, Any] = {"rungs": len(self.rungs), "starts": starts, "refusal": self._refusal}
        return points + propose(self.folder.name, self.space, self.trials, rest, **how)

    def _refusal(self, settings: Mapping[str, Any]) -> str:
        """Why settings of a trial cannot work together on one of its environments; nothing is known of peers."""
        if self.contestant.peer:
            return ""
        tried = replace(self.contestant, settings={**self.contestant.settings, **settings})
        try:
            for env in self.environments:
                own_config(env, tried)
        except SettingsError as error:
            return str(error)
        return ""

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
