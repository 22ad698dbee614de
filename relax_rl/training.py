"""A training run: set up or resume, learn, and leave a folder with settings, curves and checkpoints."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relax_rl import runs
from relax_rl.callbacks import (
    CountEpisodes,
    LogProgress,
    PeriodicEvaluation,
    SaveCheckpoints,
    ShowProgress,
    StopAtReturn,
    StopWhenInterrupted,
)
from relax_rl.checkpoints import CheckpointFolder, RunState
from relax_rl.config import TrainConfig
from relax_rl.displays import Display, make_display
from relax_rl.errors import SettingsError, TrainingDiverged
from relax_rl.evaluation import evaluation_envs
from relax_rl.interruption import Interruption, interruptible
from relax_rl.loggers import (
    EVALUATION_COLUMNS,
    PROGRESS_COLUMNS,
    CsvLogger,
    Logger,
    TensorBoardGroup,
    TensorBoardLogger,
    read_csv,
    truncate_csv,
)
from relax_rl.presets import is_atari, with_settings
from relax_rl.runs import RunFolder

if TYPE_CHECKING:
    from relax_rl.agents import ActorCritic
    from relax_rl.agents.callback import Callback
    from relax_rl.envs import VectorEnvs

__all__ = ["TrainingResult", "resume_config", "set_threads", "train"]


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


@dataclass(frozen=True)
class _Session:
    """A run that is ready to learn."""

    config: TrainConfig
    folder: RunFolder
    agent: ActorCritic
    envs: VectorEnvs
    state: RunState
    checkpoints: CheckpointFolder
    resumed_from: Path | None = None


def train(config: TrainConfig, *, callbacks: Iterable[Callback] = (), command: str = "") -> TrainingResult:
    """Train an agent and leave a run folder.

    Ctrl-C and SIGTERM end the run after the update at hand, with a checkpoint, when this runs in the main thread.

    Args:
        config: taken as it is; `relax_rl.presets.preset_config` makes one from a preset, `resume_config` one that
            goes on with a run.
        callbacks: called after every update, besides those that the settings ask for; one that returns False ends
            the training.
        command: kept in `config.json`.

    Raises:
        SettingsError: settings that cannot work, or a folder that already holds a run.
        CheckpointError: a run that cannot be resumed.
        TrainingDiverged: something stopped being finite; the message names the last good checkpoint.
        RelaxRLError: the run's folder cannot be written.
    """
    with ExitStack() as stack:
        display = make_display(quiet=config.run.quiet)
        stack.callback(display.end)
        interruption = stack.enter_context(interruptible())
        set_threads(config.run.threads, stack)
        session = (_begin if config.run.resume is None else _resume)(config, command, stack)
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
    """CPU threads for tensor work; 0 takes all cores this process may use. Put back when `stack` is closed."""
    import torch

    if stack is not None:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or usable)


def _begin(config: TrainConfig, command: str, stack: ExitStack) -> _Session:
    """A new run. Its folder is made last, so that settings that cannot work leave nothing behind."""
    from relax_rl.agents import AGENTS, resolve_estimator
    from relax_rl.devices import resolve_device

    if config.run.run_dir is not None:
        RunFolder(Path(config.run.run_dir)).check_unused()
    device = str(resolve_device(config.agent.device))
    envs = _make_envs(config, config.run.seed, stack)
    estimator = resolve_estimator(config.run.estimator, envs.single_action_space)
    agent = AGENTS[estimator](
        envs.single_observation_space,
        envs.single_action_space,
        seed=config.run.seed,
        config=replace(config.agent, device=device),
    )
    path = Path(config.run.run_dir or runs.default_run_dir(config.env.env, estimator, config.run.seed))
    config = with_settings(config, {"estimator": estimator, "run_dir": str(path)})
    folder = RunFolder(path)
    folder.create()
    runs.write_config(folder, config, {"command": command, "started": _now(), "resumed": []})
    return _Session(config, folder, agent, envs, RunState(), CheckpointFolder(folder.checkpoints))


def _resume(config: TrainConfig, command: str, stack: ExitStack) -> _Session:
    """A run that goes on from its newest good checkpoint."""
    from relax_rl.devices import resolve_device

    assert config.run.resume is not None
    path = Path(config.run.resume)
    folder = RunFolder(path)
    saved = runs.read_config(folder)
    if config.run.run_dir is not None and Path(config.run.run_dir).resolve() != path.resolve():
        raise SettingsError(f"run_dir is {config.run.run_dir!r}, but a resumed run stays in its folder, {str(path)!r}")
    runs.check_resumable(saved, config)
    config = with_settings(config, {"estimator": saved.run.estimator, "resume": None, "run_dir": str(path)})
    checkpoints = CheckpointFolder(folder.checkpoints)
    device = str(resolve_device(config.agent.device))
    agent, state, checkpoint = checkpoints.load_newest(device, warn=_warn, set_aside=True)
    if agent.steps >= config.run.total_steps:
        raise SettingsError(
            f"{path} has already taken {agent.steps} of {config.run.total_steps} steps; raise --total-steps to go on"
        )
    # Native environments cannot be put back into the middle of an episode: new ones begin, from recorded seeds.
    envs = _make_envs(config, (config.run.seed, agent.steps), stack)
    for table in (folder.progress, folder.evaluations):
        truncate_csv(table, agent.steps)
    record = runs.read_record(folder)
    entry = {"step": agent.steps, "checkpoint": checkpoint.name, "time": _now(), "command": command}
    history = {"command": record.get("command", ""), "started": record.get("started", "")}
    runs.write_config(folder, config, {**history, "resumed": [*record.get("resumed", []), entry]})
    return _Session(config, folder, agent, envs, state, checkpoints, resumed_from=checkpoint)


def _make_envs(config: TrainConfig, seed: int | tuple[int, ...], stack: ExitStack) -> VectorEnvs:
    from relax_rl.envs import make_envs

    env = config.env
    return stack.enter_context(
        make_envs(
            env.env,
            num_envs=env.num_envs,
            seed=seed,
            vectorization=env.vectorization,
            sticky_actions=env.sticky_actions,
            life_loss_terminal=env.life_loss_terminal,
        )
    )


def _learn(
    session: _Session,
    callbacks: Iterable[Callback],
    display: Display,
    interruption: Interruption,
    stack: ExitStack,
) -> TrainingResult:
    run, agent, envs, state = session.config.run, session.agent, session.envs, session.state
    loggers = _loggers(session, stack)
    display.begin(_headline(session), step=agent.steps, total=run.total_steps)
    log = LogProgress(state, loggers, interval=run.log_interval, step=agent.steps)
    save = SaveCheckpoints(
        state,
        session.checkpoints,
        interval=run.checkpoint_interval,
        step=agent.steps,
        last=session.resumed_from,
        after=lambda: _draw_curve(session),
    )
    standing: list[Callable[..., bool | None]] = [CountEpisodes(state), ShowProgress(state, display), log]
    if run.eval_interval:
        standing.append(_evaluation(session, loggers, interruption, stack))
    standing += [save, StopWhenInterrupted(interruption, display)]
    if run.stop_at_return is not None:
        standing.append(StopAtReturn(state, run.stop_at_return))
    try:
        agent.learn(
            envs,
            run.total_steps - agent.steps,
            [*standing, *callbacks],
            reset_schedule=session.resumed_from is None,
        )
        log.write(agent)
        checkpoint = save.save(agent)
    except TrainingDiverged as error:
        where = f"the last good checkpoint is {save.last}" if save.last else "no checkpoint had been written yet"
        raise TrainingDiverged(f"{error}; {where}") from error
    _draw_curve(session)
    return _result(session, checkpoint, interruption)


def _loggers(session: _Session, stack: ExitStack) -> list[Logger]:
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
    session: _Session, loggers: list[Logger], interruption: Interruption, stack: ExitStack
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


def _draw_curve(session: _Session) -> None:
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


def _result(session: _Session, checkpoint: Path, interruption: Interruption) -> TrainingResult:
    run, agent, state = session.config.run, session.agent, session.state
    target = _target(session)
    if interruption.signal is not None:
        stopped_by = interruption.signal.name
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


def _target(session: _Session) -> float | None:
    """The return at which this run counts as solved."""
    stop = session.config.run.stop_at_return
    return stop if stop is not None else session.envs.solve_threshold


def _headline(session: _Session) -> str:
    config, envs = session.config, session.envs
    how = f"{envs.num_envs} environments ({envs.vectorization})"
    line = f"{config.env.env} · {session.agent.name} · preset {config.run.preset} · {how} · {session.folder.path}"
    return line if session.resumed_from is None else f"{line} · resumed at step {session.agent.steps:,}"


def _warn(line: str) -> None:
    warnings.warn(line, UserWarning, stacklevel=2)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
