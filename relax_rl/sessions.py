"""A run that is ready to learn: begun anew, or gone on with from its last checkpoint."""

from __future__ import annotations

import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from relax_rl import distributed, runs
from relax_rl.checkpoints import CheckpointFolder, RunState
from relax_rl.config import TrainConfig
from relax_rl.distributed import Workers
from relax_rl.errors import SettingsError
from relax_rl.loggers import truncate_csv
from relax_rl.presets import with_settings
from relax_rl.runs import RunFolder

if TYPE_CHECKING:
    from relax_rl.agents import ActorCritic
    from relax_rl.envs import VectorEnvs

__all__ = ["Session", "open_session"]


@dataclass(frozen=True)
class Session:
    """A run that is ready to learn."""

    config: TrainConfig
    folder: RunFolder
    agent: ActorCritic
    envs: VectorEnvs
    state: RunState
    checkpoints: CheckpointFolder
    workers: Workers
    resumed_from: Path | None = None


def open_session(config: TrainConfig, command: str, device: str, workers: Workers, stack: ExitStack) -> Session:
    """Make a new run's folder, or read that of the run to resume; all workers come out with the same agent.

    Args:
        config: the settings, the same on all workers.
        command: kept in `config.json`.
        device: where this process's networks go.
        workers: the processes that learn together; the first of them reads and writes the folder.
        stack: closes the environments.

    Raises:
        SettingsError: settings that cannot work, or a folder that already holds a run.
        CheckpointError: a run that cannot be resumed.
    """
    distributed.check_same_settings(config.to_dict(), workers)
    run = config.run
    resume = distributed.run_to_resume(run.resume, run.run_dir, _has_checkpoint, workers)
    config = with_settings(config, {"resume": resume})
    begin = _begin if config.run.resume is None else _resume
    session = begin(config, command, device, workers, stack)
    session.agent.join(workers)
    return session


def _has_checkpoint(run_dir: str) -> bool:
    return bool(CheckpointFolder(RunFolder(Path(run_dir)).checkpoints).newest_first())


def _begin(config: TrainConfig, command: str, device: str, workers: Workers, stack: ExitStack) -> Session:
    """A new run. Its folder is made last, so that settings that cannot work leave nothing behind."""
    from relax_rl.agents import AGENTS, resolve_estimator
    from relax_rl.agents.compiled import choose_step

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
    choose_step(agent, config.run.total_steps, config.env.num_envs)
    default = runs.default_run_dir(config.env.env, estimator, config.run.seed)
    path = Path(workers.told(str(config.run.run_dir or default)))
    config = with_settings(config, {"estimator": estimator, "run_dir": str(path)})
    folder = RunFolder(path)
    if first:
        folder.create()
        runs.write_config(folder, config, {"command": command, "started": _now(), "resumed": []})
    checkpoints = CheckpointFolder(folder.checkpoints, keep=config.run.keep_checkpoints, writes=first)
    return Session(config, folder, agent, envs, RunState(), checkpoints, workers)


def _resume(config: TrainConfig, command: str, device: str, workers: Workers, stack: ExitStack) -> Session:
    """A run that goes on from its newest good checkpoint."""
    assert config.run.resume is not None
    path = Path(config.run.resume)
    folder = RunFolder(path)
    saved = runs.read_config(folder)
    if config.run.run_dir is not None and Path(config.run.run_dir).resolve() != path.resolve():
        raise SettingsError(f"run_dir is {config.run.run_dir!r}, but a resumed run stays in its folder, {str(path)!r}")
    runs.check_resumable(saved, config)
    config = with_settings(config, {"estimator": saved.run.estimator, "resume": None, "run_dir": str(path)})
    checkpoints = CheckpointFolder(folder.checkpoints, keep=config.run.keep_checkpoints, writes=workers.rank == 0)
    agent, state, checkpoint = _load(checkpoints, device, workers)
    if agent.steps >= config.run.total_steps:
        raise SettingsError(
            f"{path} has already taken {agent.steps} of {config.run.total_steps} steps; raise --total-steps to go on"
        )
    # Native environments cannot be put back into the middle of an episode: new ones begin, from recorded seeds.
    envs = _make_envs(config, (config.run.seed, agent.steps), workers, stack)
    if checkpoints.writes:
        _record_resumption(config, folder, agent, checkpoint, command)
    return Session(config, folder, agent, envs, state, checkpoints, workers, resumed_from=checkpoint)


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
    for table in (folder.progress, folder.episodes, folder.evaluations):
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
            bins=env.bins,
            first_env=workers.rank * env.num_envs,
        )
    )


def _warn(line: str) -> None:
    warnings.warn(line, UserWarning, stacklevel=2)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
