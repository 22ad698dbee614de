"""Training an agent: set up or resume, learn, and leave a folder with settings, curves and checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relax_rl.errors import SettingsError
from relax_rl.runs.agent import AgentRun, check_same_run, steps_of
from relax_rl.runs.callbacks import (
    LOOKS,
    CountEpisodes,
    KeepBest,
    LogProgress,
    PeriodicEvaluation,
    SaveCheckpoints,
    at_most_every,
    note_compiled,
    show_progress,
    stop_at_return,
    stop_when_interrupted,
)
from relax_rl.runs.evaluation import SELECTION_STREAM, Scores, envs_of, evaluate, evaluation_envs, now_and_then
from relax_rl.runs.folder import RunFolder, default_run_dir
from relax_rl.runs.interruption import warn_script
from relax_rl.runs.loggers import (
    EPISODE_COLUMNS,
    EVALUATION_COLUMNS,
    PROGRESS_COLUMNS,
    CsvLogger,
    GroupLogger,
    Logger,
    TheirLogger,
)
from relax_rl.runs.profile import profile_of
from relax_rl.runs.record import named_again, settings_to_resume
from relax_rl.runs.reporting import checked_loggers, loggers_of, resumed_with_loggers, tell_fewer_steps, tell_outcome
from relax_rl.runs.result import TrainingResult
from relax_rl.runs.session import Process, Session, open_run, training_process
from relax_rl.settings.config import TrainConfig
from relax_rl.settings.fields import with_settings
from relax_rl.settings.naming import is_own, name_of, named
from relax_rl.settings.presets import is_atari

if TYPE_CHECKING:
    from relax_rl.agents import AgentEstimator, Listener
    from relax_rl.agents.factory import NetworkFactory
    from relax_rl.envs import VectorEnvs

__all__ = ["TrainingResult", "resume_config", "train"]

REDRAW = 30.0
"""Seconds from one drawing of the curve to the next while a run goes on: each takes as long as many updates."""


def train(
    config: TrainConfig,
    *,
    callbacks: Iterable[Listener] | Listener | None = (),
    loggers: Iterable[TheirLogger | Logger] | TheirLogger | Logger = (),
    estimator: AgentEstimator | None = None,
    networks: NetworkFactory | None = None,
    command: str = "",
) -> TrainingResult:
    """Train an agent and leave a run folder; returns what came of it.

    Ctrl-C, SIGTERM and SIGHUP end the run, and nothing else, after the update at hand, with a checkpoint, when this runs in
    the main thread; a loop over several runs has to look at `TrainingResult.interrupted`.

    Processes that torchrun started learn together, each with `num_envs` environments; the first logs, evaluates and saves.
    Where torchrun starts them anew after a failure (`--max-restarts`), a run that is found in `run_dir` is gone on with.

    Args:
        config: taken as it is; `preset_config` makes one from a preset, `resume_config` one that goes on with a run.
        callbacks: as for `ActorCritic.learn`, besides those that the settings ask for, in every process.
        loggers: or a single one; take the rows of `progress.csv` too, evaluations and the outcome, in the first process, by
            `log(step, metrics)`, or the rows alone by `log(row)`; closed at the end.
        estimator, networks: of your own, in place of those that the settings name; given again when a run is gone on with.
        command: kept in `config.json`.

    Raises:
        SettingsError: settings that cannot work, or a folder that already holds a run.
        CheckpointError: a run that cannot be resumed.
        TrainingDiverged: something stopped being finite; the message names the last good checkpoint.
        WorkerLost: another process of the same run stopped or does not answer; the message names the last checkpoint.
        RelaxRLError: the run's folder cannot be written.
    """
    from relax_rl.agents import register
    from relax_rl.agents.listening import as_listeners

    if not isinstance(config, TrainConfig):
        raise SettingsError(f"config is a {type(config).__name__}, expected a TrainConfig, such as preset_config(ID)")
    if estimator is not None:
        config = with_settings(config, {"estimator": register(estimator).name})
    if networks is not None:
        config = with_settings(config, {"networks": name_of(networks)})
    run, heard, taking = config.run, as_listeners(callbacks), checked_loggers(config, loggers)
    with training_process(
        config.agent.device, threads=run.threads, quiet=run.quiet, timeout=run.worker_timeout
    ) as process:
        result = _open(config, command, process, networks).learn(heard, taking)
    if result.interrupted and not command:
        warn_script(result.stopped_by)
    return result


def resume_config(run_dir: str | os.PathLike[str], **changes: Any) -> TrainConfig:
    """`TrainConfig` to go on with a run: its own settings, with `changes` of those that may differ (marked `resumable`).

    Args:
        run_dir: folder of the run.
        changes: settings, by name.

    Raises:
        CheckpointError: the folder holds no run, or its settings cannot be read.
        SettingsError: an unknown setting, or a value that a setting cannot have.
    """
    return with_settings(settings_to_resume(str(run_dir), TrainConfig), changes)


def _open(config: TrainConfig, command: str, process: Process, networks: NetworkFactory | None) -> _Training:
    """A run with its agent, alike in all workers.

    A new run's folder is made last, so that settings that cannot work leave nothing behind.
    """
    from relax_rl.agents import AGENTS, resolve_estimator
    from relax_rl.agents.compiled import choose
    from relax_rl.agents.saving import check_sizes

    workers = process.workers
    opening = open_run(config, workers=workers, resumed=resumed_with_loggers)
    config, checkpoint = opening.config, opening.checkpoint
    steps = 0
    seed: int | tuple[int, int] = config.run.seed
    if checkpoint is not None:
        # Native environments cannot be put back into the middle of an episode: new ones begin, from recorded seeds.
        steps = steps_of(checkpoint.state, checkpoint.path)
        seed = (config.run.seed, steps)
        opening.check_steps(steps, "total_steps")
        if opening.saved is not None and workers.rank == 0:
            tell_fewer_steps(opening.saved.run.total_steps, config.run.total_steps)
        if config.run.stop_at_step is not None:
            opening.check_steps(steps, "stop_at_step")
    envs = process.stack.enter_context(envs_of(config.env, seed=seed, first_env=workers.rank * config.env.num_envs))
    estimator = resolve_estimator(config.run.estimator, envs.single_action_space)
    if checkpoint is not None:
        config = check_same_run(config, estimator, checkpoint.state, checkpoint.path)
        if checkpoint.tensors and networks is None and config.run.networks is None:
            made_for = envs.single_observation_space, envs.single_action_space
            check_sizes(
                checkpoint.tensors, config.agent, *made_for, surrogate=AGENTS[estimator].estimator.uses_surrogate
            )
    agent = AGENTS[estimator](
        envs.single_observation_space,
        envs.single_action_space,
        seed=config.run.seed,
        config=replace(config.agent, device=process.device),
        networks=named(config.run.networks, "networks") if networks is None and config.run.networks else networks,
    )
    agent.learner.check_environments(workers.count * envs.num_envs)
    of_run = {"total_steps": config.run.total_steps, "num_envs": config.env.num_envs}
    choose(agent.config, agent.networks, workers=workers.count, **of_run)  # raises where it is impossible
    run = AgentRun(agent)
    if checkpoint is not None:
        run.load(checkpoint.tensors, checkpoint.state)
    names = config.env.env, estimator, f"s{config.run.seed}"
    found: dict[str, Any] = {"normalize_obs": agent.config.normalize_obs}  # nothing is where there are only images
    found |= {} if is_own(config.run.estimator) else {"estimator": estimator}
    opening = replace(opening, config=with_settings(config, found))
    keep, extra = config.run.keep_checkpoints, {"compiled_from": agent.compiled_from}
    session = opening.start(
        lambda here: default_run_dir(*names, within=here),
        process.stack,
        steps=steps,
        command=command,
        keep=keep,
        extra=extra,
    )
    if session.first and checkpoint is not None:
        run.recall_best(session.checkpoints)
    agent.join(workers)
    return _Training(session, run, envs, process)


@dataclass(frozen=True)
class _Training:
    """An agent with its run, its environments and the process that trains it."""

    session: Session[TrainConfig]
    run: AgentRun
    envs: VectorEnvs
    process: Process

    def learn(self, callbacks: list[Listener], loggers: list[Logger]) -> TrainingResult:
        """Take all steps that are left, or as many as anything lets it."""
        session, run, process = self.session, self.run, self.process
        settings, agent, workers = session.config.run, run.agent, session.workers
        if session.first:
            loggers += loggers_of(session.config, session.folder, resumed=session.resumed_from is not None)
        rows = session.loggers(PROGRESS_COLUMNS, process.stack, loggers, outcome="return_mean")
        process.display.begin(self._headline(), step=agent.steps, total=settings.total_steps)
        log = LogProgress(run, rows, interval=settings.log_interval, workers=workers)
        save = SaveCheckpoints(
            run,
            session.checkpoints,
            interval=settings.checkpoint_interval,
            last=session.resumed_from,
            after=at_most_every(REDRAW, self._draw_curve),
        )
        tables = [self._table(session.folder.episodes, EPISODE_COLUMNS)] if session.first else []
        standing: list[Listener] = [CountEpisodes(run, *tables), show_progress(run, process.display), log]
        if session.first:
            standing.append(note_compiled(session.folder, agent))
        best = self._best()
        if settings.eval_interval and session.first:
            standing.append(self._evaluation(rows))
        elif best is not None:
            standing.append(best)
        standing += [save, stop_when_interrupted(process.interruption, process.display)]
        if settings.stop_at_return is not None:
            standing.append(stop_at_return(run, settings.stop_at_return))
        if (pause := settings.stop_at_step) is not None:
            standing.append(lambda agent, info: info.steps < pause)
        profile = None
        if settings.profile and session.first:
            name = session.config.env.env
            profile = profile_of(agent, session.folder.path, env=name, num_envs=self.envs.num_envs)
        with save.named_in_errors(Path(str(settings.run_dir)), named_again(session.config)):
            if workers.count > 1:
                save.save()  # so that there is something to go on from, whenever a worker is lost
            agent.learn(
                self.envs,
                settings.total_steps - agent.steps,
                [*standing, *callbacks, *([profile] if profile is not None else [])],
                reset_schedule=session.resumed_from is None,
                threads=None,
            )
            if profile is not None:
                profile.close()
            log.write()
            if best is not None:
                best.look()
            result = self._result(save.save())
        if result.stopped_by == "return":
            process.display.done("solved")
        self._draw_curve()
        tell_outcome(result, rows, session.folder, process.display)
        return result

    def _table(self, path: Path, columns: tuple[str, ...]) -> CsvLogger:
        table = CsvLogger(path, columns)
        self.process.stack.callback(table.close)
        return table

    def _result(self, checkpoint: Path) -> TrainingResult:
        settings, run, agent = self.session.config.run, self.run, self.run.agent
        stopped_by = self.process.signal()
        if stopped_by is None and run.reaches(settings.stop_at_return):
            stopped_by = "return"
        elif stopped_by is None and (settings.stop_at_step or math.inf) <= agent.steps < settings.total_steps:
            stopped_by = "step"
        run_dir = Path(str(settings.run_dir))  # as it was given
        return TrainingResult(
            run_dir=run_dir,
            agent=agent,
            steps=agent.steps,
            episodes=agent.episodes,
            return_mean=run.return_mean,
            solved=run.reaches(self._target()),
            checkpoint=RunFolder(run_dir).checkpoints / checkpoint.name,
            stopped_by=stopped_by or ("total_steps" if agent.steps >= settings.total_steps else "callback"),
            best=None if run.best is None else RunFolder(run_dir).checkpoints / self.session.checkpoints.best.name,
            best_return=run.best,
            best_step=run.best_step,
            best_evaluated=run.best_evaluation is not None,
        )

    def _target(self) -> float | None:
        """The return at which this run counts as solved."""
        stop = self.session.config.run.stop_at_return
        return stop if stop is not None else self.envs.solve_threshold

    def _headline(self) -> str:
        config, envs, workers = self.session.config, self.envs, self.session.workers
        how = f"{envs.num_envs} environments ({envs.vectorization})"
        if workers.count > 1:
            how = f"{workers.count} workers of {how}"
        return self.session.headline(f"{config.env.env} · {self.run.agent.name} · preset {config.run.preset} · {how}")

    def _best(self) -> KeepBest | None:
        """What keeps the best agent by its training episodes, where no evaluation does."""
        settings, session, run = self.session.config.run, self.session, self.run
        if settings.eval_interval or run.best_evaluation is not None or not session.first:
            return None
        interval = max(settings.log_interval, settings.total_steps // LOOKS)
        return KeepBest(run, interval=interval, save_best=lambda: session.checkpoints.save_best(run))

    def _evaluation(self, loggers: list[Logger]) -> PeriodicEvaluation:
        config, settings, process = self.session.config, self.session.config.run, self.process
        asked: dict[str, Any] = {"episodes": settings.eval_episodes, "seed": settings.seed}
        envs = process.stack.enter_context(evaluation_envs(config.env, **asked))
        table = self._table(self.session.folder.evaluations, EVALUATION_COLUMNS)

        def play() -> Scores | None:
            scores = evaluate(
                self.run.agent,
                envs,
                **asked,
                stream=SELECTION_STREAM,
                deterministic=not is_atari(config.env.env),  # the mode of a policy gets stuck in Atari games
                step_limit=settings.eval_step_limit,
                should_stop=lambda: bool(process.interruption),
                progress=now_and_then(process.display.say, settings.eval_episodes),
            )
            if told := "" if scores is None else scores.cut_off_told("--eval-step-limit"):
                process.display.say(f"step {self.run.steps:,}: {told}")
            return scores

        def log(row: Mapping[str, float]) -> None:
            table.log(row)
            for logger in loggers:
                if isinstance(logger, GroupLogger):
                    logger.log(row, group="evaluation")
            if (listeners := self.run.agent.listeners) is not None:
                told = {name: x for name, x in row.items() if name not in ("step", "seconds", "episodes")}
                listeners.evaluation(self.run.agent, told)

        return PeriodicEvaluation(
            self.run,
            interval=settings.eval_interval,
            play=play,
            log=log,
            save_best=lambda: self.session.checkpoints.save_best(self.run),
        )

    def _draw_curve(self) -> None:
        """The learning curve so far, by the first worker."""
        from relax_rl.runs.plotting import never_fatal, plot_learning

        session = self.session
        if not session.first:
            return
        title = f"{session.config.env.env} · {self.run.agent.name} · seed {session.config.run.seed}"
        with never_fatal("the learning curve"):
            plot_learning(session.folder, title, episodes=session.config.run.eval_episodes, threshold=self._target())
