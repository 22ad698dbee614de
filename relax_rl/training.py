"""A training run: set up or resume, learn, and leave a folder with settings, curves and checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relax_rl import distributed, runs
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
from relax_rl.distributed import Workers
from relax_rl.errors import RelaxRLError, SettingsError, TrainingDiverged, WorkerLost
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
from relax_rl.profiling import Profile, Stopwatch
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
    workers: Workers
    resumed_from: Path | None = None


def train(config: TrainConfig, *, callbacks: Iterable[Callback] = (), command: str = "") -> TrainingResult:
    """Train an agent and leave a run folder.

    Ctrl-C and SIGTERM end the run after the update at hand, with a checkpoint, when this runs in the main thread.

    Processes that torchrun started learn together, each with `num_envs` environments; the first of them logs,
    evaluates and saves. When torchrun starts them anew after a failure they go on from the last checkpoint.

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
        interruption = stack.enter_context(interruptible())
        device = _device(config)
        timeout = config.run.worker_timeout
        workers = stack.enter_context(distributed.joined(device=device, timeout=timeout))
        display = make_display(quiet=config.run.quiet or workers.rank > 0)
        stack.callback(display.end)
        set_threads(config.run.threads, stack)
        _check_same(config, workers)
        config = _after_restart(config, workers)
        begin = _begin if config.run.resume is None else _resume
        session = begin(config, command, device, workers, stack)
        session.agent.join(workers)
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


def _check_same(config: TrainConfig, workers: Workers) -> None:
    """Raises:
    SettingsError: the workers were not all started with the same settings.
    """
    if workers.count == 1:
        return
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).digest()
    found = workers.gather(np.frombuffer(digest, np.uint8).astype(np.float64))
    if (found != found[0]).any():
        raise SettingsError("the workers were started with different settings; give all machines the same command")


def _after_restart(config: TrainConfig, workers: Workers) -> TrainConfig:
    """The settings, so that a command which torchrun has started anew goes on with the run that it had begun."""
    run = config.run
    if run.resume is not None or not distributed.restarted():
        return config
    if run.run_dir is None:
        raise SettingsError(
            "torchrun started the workers anew, but not for which run; give --run-dir beside --max-restarts"
        )
    saved = CheckpointFolder(RunFolder(Path(run.run_dir)).checkpoints).newest_first()
    return with_settings(config, {"resume": run.run_dir}) if workers.told(bool(saved)) else config


def _begin(config: TrainConfig, command: str, device: str, workers: Workers, stack: ExitStack) -> _Session:
    """A new run. Its folder is made last, so that settings that cannot work leave nothing behind."""
    from relax_rl.agents import AGENTS, resolve_estimator

    first = workers.rank == 0
    if first and config.run.run_dir is not None:
        RunFolder(Path(config.run.run_dir)).check_unused()
    envs = _make_envs(config, config.run.seed, workers, stack)
    estimator = resolve_estimator(config.run.estimator, envs.single_action_space)
    agent = AGENTS[estimator](
        envs.single_observation_space,
        envs.single_action_space,
        seed=config.run.seed,
        config=replace(config.agent, device=device),
    )
    default = runs.default_run_dir(config.env.env, estimator, config.run.seed)
    path = Path(workers.told(str(config.run.run_dir or default)))
    config = with_settings(config, {"estimator": estimator, "run_dir": str(path)})
    folder = RunFolder(path)
    if first:
        folder.create()
        runs.write_config(folder, config, {"command": command, "started": _now(), "resumed": []})
    checkpoints = CheckpointFolder(folder.checkpoints, writes=first)
    return _Session(config, folder, agent, envs, RunState(), checkpoints, workers)


def _resume(config: TrainConfig, command: str, device: str, workers: Workers, stack: ExitStack) -> _Session:
    """A run that goes on from its newest good checkpoint."""
    assert config.run.resume is not None
    path = Path(config.run.resume)
    folder = RunFolder(path)
    saved = runs.read_config(folder)
    if config.run.run_dir is not None and Path(config.run.run_dir).resolve() != path.resolve():
        raise SettingsError(f"run_dir is {config.run.run_dir!r}, but a resumed run stays in its folder, {str(path)!r}")
    runs.check_resumable(saved, config)
    config = with_settings(config, {"estimator": saved.run.estimator, "resume": None, "run_dir": str(path)})
    checkpoints = CheckpointFolder(folder.checkpoints, writes=workers.rank == 0)
    agent, state, checkpoint = _load(checkpoints, device, workers)
    if agent.steps >= config.run.total_steps:
        raise SettingsError(
            f"{path} has already taken {agent.steps} of {config.run.total_steps} steps; raise --total-steps to go on"
        )
    # Native environments cannot be put back into the middle of an episode: new ones begin, from recorded seeds.
    envs = _make_envs(config, (config.run.seed, agent.steps), workers, stack)
    if checkpoints.writes:
        _record_resumption(config, folder, agent, checkpoint, command)
    return _Session(config, folder, agent, envs, state, checkpoints, workers, resumed_from=checkpoint)


def _load(checkpoints: CheckpointFolder, device: str, workers: Workers) -> tuple[ActorCritic, RunState, Path]:
    """The newest good checkpoint, as the first worker finds it; the others' agents are made alike, and join later."""
    from relax_rl.agents import ActorCritic
    from relax_rl.agents.persistence import build_agent

    if checkpoints.writes:
        agent, state, path = checkpoints.load_newest(device, warn=_warn, set_aside=True)
        if workers.count > 1:
            workers.told([agent.state_dict()[1], state.to_json(), str(path)])
        return agent, state, path
    described, run, name = workers.told(None)
    agent = build_agent(ActorCritic, described, device, source=name)
    agent.steps = int(described["steps"])
    return agent, RunState.from_json(run), Path(name)


def _record_resumption(
    config: TrainConfig, folder: RunFolder, agent: ActorCritic, checkpoint: Path, command: str
) -> None:
    """Bring the run's tables back to the checkpoint, and write down the resumption."""
    for table in (folder.progress, folder.evaluations):
        truncate_csv(table, agent.steps)
    record = runs.read_record(folder)
    entry = {"step": agent.steps, "checkpoint": checkpoint.name, "time": _now(), "command": command}
    history = {"command": record.get("command", ""), "started": record.get("started", "")}
    runs.write_config(folder, config, {**history, "resumed": [*record.get("resumed", []), entry]})


def _make_envs(config: TrainConfig, seed: int | tuple[int, ...], workers: Workers, stack: ExitStack) -> VectorEnvs:
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
            first_env=workers.rank * env.num_envs,
        )
    )


def _learn(
    session: _Session,
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
        after=(lambda: _draw_curve(session)) if first else None,
    )
    standing: list[Callable[..., bool | None]] = [CountEpisodes(state), ShowProgress(state, display), log]
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


def _profile(session: _Session) -> Profile:
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


def _target(session: _Session) -> float | None:
    """The return at which this run counts as solved."""
    stop = session.config.run.stop_at_return
    return stop if stop is not None else session.envs.solve_threshold


def _headline(session: _Session) -> str:
    config, envs = session.config, session.envs
    how = f"{envs.num_envs} environments ({envs.vectorization})"
    if session.workers.count > 1:
        how = f"{session.workers.count} workers of {how}"
    line = f"{config.env.env} · {session.agent.name} · preset {config.run.preset} · {how} · {session.folder.path}"
    return line if session.resumed_from is None else f"{line} · resumed at step {session.agent.steps:,}"


def _warn(line: str) -> None:
    warnings.warn(line, UserWarning, stacklevel=2)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
