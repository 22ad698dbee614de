"""A training run: set up or resume, learn, and leave a folder with settings, curves and checkpoints."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relax_rl import distributed, runs
from relax_rl.callbacks import (
    CountEpisodes,
    LogEpisodes,
    LogProgress,
    PeriodicEvaluation,
    SaveCheckpoints,
    ShowProgress,
    StopAtReturn,
    StopWhenInterrupted,
)
from relax_rl.config import TrainConfig
from relax_rl.displays import Display, make_display
from relax_rl.errors import RelaxRLError, TrainingDiverged, WorkerLost
from relax_rl.evaluation import evaluation_envs
from relax_rl.interruption import Interruption, interruptible
from relax_rl.loggers import (
    EPISODE_COLUMNS,
    EVALUATION_COLUMNS,
    PROGRESS_COLUMNS,
    CsvLogger,
    Logger,
    TensorBoardGroup,
    TensorBoardLogger,
    read_csv,
)
from relax_rl.presets import is_atari, with_settings
from relax_rl.profiling import Profile, Stopwatch
from relax_rl.runs import RunFolder
from relax_rl.sessions import Session, open_session

if TYPE_CHECKING:
    from relax_rl.agents import ActorCritic
    from relax_rl.agents.callback import Callback

__all__ = ["TrainingResult", "resume_config", "set_threads", "train"]

_REDRAW = 30.0


@dataclass(frozen=True)
class TrainingResult:
    """What came of a run.

    Attributes:
        run_dir: the run's folder.
        agent: as trained.
        steps, episodes: that the agent has learned from, over all resumptions.
        return_mean: mean return of the last 100 episodes; NaN if none has finished.
        solved: whether that mean is over 100 episodes and reaches `stop_at_return`, or what the environment's
            registration calls solved.
        checkpoint: the last one.
        stopped_by: "total_steps", "return", "SIGINT", "SIGTERM", or "callback".
    """

    run_dir: Path
    agent: ActorCritic
    steps: int
    episodes: int
    return_mean: float
    solved: bool
    checkpoint: Path
    stopped_by: str


def train(config: TrainConfig, *, callbacks: Iterable[Callback] = (), command: str = "") -> TrainingResult:
    """Train an agent and leave a run folder.

    Ctrl-C and SIGTERM end the run after the update at hand, with a checkpoint, when this runs in the main thread.

    Processes that torchrun started learn together, each with `num_envs` environments; the first of them logs,
    evaluates and saves. Where torchrun starts them anew after a failure (`--max-restarts`), a run that is found in
    `run_dir` is gone on with.

    Args:
        config: taken as it is; `relax_rl.presets.preset_config` makes one from a preset, `resume_config` one that
            goes on with a run.
        callbacks: called after every update, besides those that the settings ask for, in every process; one that
            returns False ends the training.
        command: kept in `config.json`.

    Raises:
        SettingsError: settings that cannot work, or a folder that already holds a run.
        CheckpointError: a run that cannot be resumed.
        TrainingDiverged: something stopped being finite; the message names the last good checkpoint.
        WorkerLost: another process of the same run stopped or does not answer; the message names the last checkpoint.
        RelaxRLError: the run's folder cannot be written.
    """
    with ExitStack() as stack:
        device = _device(config)
        timeout = config.run.worker_timeout
        workers = stack.enter_context(distributed.joined(device=device, timeout=timeout))
        interruption = stack.enter_context(interruptible())  # while waiting for the others, a signal simply kills
        display = make_display(quiet=config.run.quiet or workers.rank > 0)
        stack.callback(display.end)
        set_threads(config.run.threads, stack)
        session = open_session(config, command, device, workers, stack)
        return _learn(session, callbacks, display, interruption, stack)


def resume_config(run_dir: str | os.PathLike[str], **changes: Any) -> TrainConfig:
    """The settings to go on with a run: its own, with `changes` (see `relax_rl.runs.CHANGEABLE`).

    Raises:
        CheckpointError: the folder holds no run, or its settings cannot be read.
        SettingsError: an unknown setting, or a value that a setting cannot have.
    """
    saved = runs.read_config(RunFolder(Path(run_dir)))
    return with_settings(saved, {"resume": str(run_dir), "run_dir": str(run_dir), **changes})


def set_threads(threads: int, stack: ExitStack | None = None) -> None:
    """CPU threads for tensor work; 0 takes all cores this process may use, or its share among the workers of a machine.

    Put back when `stack` is closed.
    """
    import torch

    if stack is not None:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or max(1, usable // distributed.local_count()))


def _device(config: TrainConfig) -> str:
    """Where this process's networks go."""
    from relax_rl.devices import resolve_device

    return str(distributed.local_device(resolve_device(config.agent.device)))


def _learn(
    session: Session,
    callbacks: Iterable[Callback],
    display: Display,
    interruption: Interruption,
    stack: ExitStack,
) -> TrainingResult:
    run, agent, workers, state = session.config.run, session.agent, session.workers, session.state
    first = workers.rank == 0
    loggers = _loggers(session, stack) if first else []
    display.begin(_headline(session), step=agent.steps, total=run.total_steps)
    log = LogProgress(state, loggers, interval=run.log_interval, step=agent.steps, workers=workers)
    save = SaveCheckpoints(
        state,
        session.checkpoints,
        interval=run.checkpoint_interval,
        step=agent.steps,
        last=session.resumed_from,
        after=_redraw(session) if first else None,
    )
    standing: list[Callable[..., bool | None]] = [CountEpisodes(state), ShowProgress(state, display), log]
    if first:
        episodes = CsvLogger(session.folder.episodes, EPISODE_COLUMNS)
        stack.callback(episodes.close)
        standing.append(LogEpisodes(episodes))
    if run.eval_interval and first:
        standing.append(_evaluation(session, loggers, interruption, stack))
    standing += [save, StopWhenInterrupted(interruption, display)]
    if run.stop_at_return is not None:
        standing.append(StopAtReturn(state, run.stop_at_return))
    profile = _profile(session) if run.profile and first else None
    try:
        if workers.count > 1:
            save.save(agent)  # so that there is something to go on from, whenever a worker is lost
        agent.learn(
            session.envs,
            run.total_steps - agent.steps,
            [*standing, *callbacks, *([profile] if profile is not None else [])],
            reset_schedule=session.resumed_from is None,
        )
        if profile is not None:
            profile.close()
        log.write(agent)
        checkpoint = save.save(agent)
        result = _result(session, checkpoint, interruption)
    except (TrainingDiverged, WorkerLost) as error:
        raise _with_last_checkpoint(error, save.last, session.folder.path) from error
    if first:
        _draw_curve(session)
    return result


def _with_last_checkpoint(error: RelaxRLError, last: Path | None, run_dir: Path) -> RelaxRLError:
    """The error, with what is left of the run."""
    if isinstance(error, WorkerLost):
        return WorkerLost(f"{error}; the last checkpoint is {last}; go on with --resume {run_dir}")
    where = f"the last good checkpoint is {last}" if last else "no checkpoint had been written yet"
    return TrainingDiverged(f"{error}; {where}")


def _profile(session: Session) -> Profile:
    """Have the agent's sections measured."""
    import torch

    config, agent, workers = session.config, session.agent, session.workers
    watch = Stopwatch(torch.cuda.synchronize if agent.device.type == "cuda" else None)
    agent.watch = watch
    about = {
        "environment": config.env.env,
        "estimator": agent.name,
        "batch": f"{workers.count * session.envs.num_envs} x {agent.config.num_steps}",
        "workers": workers.count,
        "device": str(agent.device),
        "threads": torch.get_num_threads(),
    }
    return Profile(watch, session.folder.path, about=about)


def _loggers(session: Session, stack: ExitStack) -> list[Logger]:
    folder, config = session.folder, session.config
    loggers: list[Logger] = [CsvLogger(folder.progress, PROGRESS_COLUMNS)]
    stack.callback(loggers[0].close)
    if config.run.tensorboard:
        flat = {name: value for section in config.to_dict().values() for name, value in section.items()}
        from_step = session.agent.steps + 1 if session.resumed_from is not None else None
        loggers.append(TensorBoardLogger(folder.path, from_step=from_step, settings=flat))
        stack.callback(loggers[1].close)
    return loggers


def _evaluation(
    session: Session, loggers: list[Logger], interruption: Interruption, stack: ExitStack
) -> PeriodicEvaluation:
    config, run = session.config, session.config.run
    envs = stack.enter_context(evaluation_envs(config.env, episodes=run.eval_episodes, seed=run.seed))
    table = CsvLogger(session.folder.evaluations, EVALUATION_COLUMNS)
    stack.callback(table.close)
    own: list[Logger] = [table]
    own += [TensorBoardGroup(logger, "evaluation") for logger in loggers if isinstance(logger, TensorBoardLogger)]
    return PeriodicEvaluation(
        session.state,
        envs,
        own,
        interval=run.eval_interval,
        episodes=run.eval_episodes,
        seed=run.seed,
        deterministic=not is_atari(config.env.env),  # the mode of a policy gets stuck in Atari games
        interruption=interruption,
        save_best=session.checkpoints.save_best,
        step=session.agent.steps,
    )


def _redraw(session: Session) -> Callable[[], None]:
    """Draws the curve while the run goes on, at most once in `_REDRAW` seconds: a drawing takes as long as many updates."""
    drawn = time.monotonic()

    def redraw() -> None:
        nonlocal drawn
        if time.monotonic() - drawn >= _REDRAW:
            _draw_curve(session)
            drawn = time.monotonic()

    return redraw


def _draw_curve(session: Session) -> None:
    """The learning curve so far; without a single row there is nothing to draw."""
    from relax_rl.plotting import Curve, plot_curves

    folder, run = session.folder, session.config.run
    progress = read_csv(folder.progress)
    if not progress:
        return
    curves = [Curve(steps=progress["step"], returns=progress["return_mean"], label="training, mean of 100 episodes")]
    evaluations = read_csv(folder.evaluations) if folder.evaluations.exists() else {}
    if evaluations:
        label = f"evaluation, mean of {run.eval_episodes} episodes"
        curves.append(Curve(steps=evaluations["step"], returns=evaluations["return_mean"], label=label, points=True))
    title = f"{session.config.env.env} · {session.agent.name} · seed {run.seed}"
    plot_curves(folder.curve, curves, title=title, threshold=_target(session))


def _result(session: Session, checkpoint: Path, interruption: Interruption) -> TrainingResult:
    run, agent, state = session.config.run, session.agent, session.state
    target = _target(session)
    received = session.workers.gather(np.array([float(interruption.signal or 0)])).max()
    if received:
        stopped_by = signal.Signals(int(received)).name
    elif run.stop_at_return is not None and state.window_full and state.return_mean >= run.stop_at_return:
        stopped_by = "return"
    else:
        stopped_by = "total_steps" if agent.steps >= run.total_steps else "callback"
    return TrainingResult(
        run_dir=session.folder.path,
        agent=agent,
        steps=agent.steps,
        episodes=agent.episodes,
        return_mean=state.return_mean,
        solved=target is not None and state.window_full and state.return_mean >= target,
        checkpoint=checkpoint,
        stopped_by=stopped_by,
    )


def _target(session: Session) -> float | None:
    """The return at which this run counts as solved."""
    stop = session.config.run.stop_at_return
    return stop if stop is not None else session.envs.solve_threshold


def _headline(session: Session) -> str:
    config, envs = session.config, session.envs
    how = f"{envs.num_envs} environments ({envs.vectorization})"
    if session.workers.count > 1:
        how = f"{session.workers.count} workers of {how}"
    line = f"{config.env.env} · {session.agent.name} · preset {config.run.preset} · {how} · {session.folder.path}"
    return line if session.resumed_from is None else f"{line} · resumed at step {session.agent.steps:,}"
