"""A peer trained by Stable-Baselines3, in a run folder like ours: `python -m relax_rl.comparison.peer_training --help`.

A run that was stopped goes on from its last checkpoint, a file of Stable-Baselines3's own `save` with this run's counters,
its last episodes and the running statistics of VecNormalize as JSON in it. Parameters and optimiser come back by its
`set_parameters`, which reads no pickles; environments, their random numbers and those of exploration begin anew, and so
does the rollout that was being collected. So a resumed peer is no exact continuation.
"""

from __future__ import annotations

import io
import json
import signal
import sys
import zipfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.vec_env import VecEnv

from relax_rl.comparison.peer_envs import make_peer_envs
from relax_rl.comparison.peers import ALGORITHMS, Peer, check_actions, planned, with_overrides
from relax_rl.compute.serialization import write_bytes_atomic
from relax_rl.errors import CheckpointError, RelaxRLError, SettingsError, TrainingDiverged, in_one_line
from relax_rl.runs import RunFolder, read_record, write_config
from relax_rl.runs.agent import AgentRun
from relax_rl.runs.callbacks import Every, LogProgress
from relax_rl.runs.checkpoints import newest_first, remove_all_but
from relax_rl.runs.interruption import Interruption, interruptible
from relax_rl.runs.loggers import EPISODE_COLUMNS, PROGRESS_COLUMNS, CsvLogger, truncate_csv
from relax_rl.runs.record import entries, named_by_a_file, note, now
from relax_rl.runs.session import Clock
from relax_rl.settings.fields import check, from_json, setting
from relax_rl.settings.naming import is_own
from relax_rl.settings.options import parse
from relax_rl.settings.presets import same_env

__all__ = ["PeerConfig", "main", "train_peer"]

_STATE = "relax_rl.json"
"""Name of the run's state inside a checkpoint."""
_PARTS = {"step", "seconds", "episodes", "returns", "lengths", "normalization"}
"""What that holds."""


@dataclass(frozen=True, kw_only=True)
class PeerConfig:
    """Train a peer with the settings that are published for it."""

    env: str = "CartPole-v1"
    """Gymnasium id."""
    algo: str = setting("sb3-a2c", fits=ALGORITHMS.__contains__, expected=f"one of {', '.join(ALGORITHMS)}")
    """sb3-a2c, sb3-ppo or sb3-sac."""
    seed: int = 0
    """Seed of environments and algorithm."""
    total_steps: int = setting(500_000, least=1)
    """Environment steps; where a published schedule ends earlier, so does the run."""
    run_dir: str = "run"
    """Folder of the run."""
    stop_at_return: float | None = None
    """Stop once the mean return of the last 100 episodes reaches this."""
    bins: int = 0
    """Cut each dimension of continuous actions into this many values; 0 leaves them as they are."""
    env_kwargs: dict[str, Any] | None = None
    """Settings of the environment itself: name=value pairs, values in JSON, or one JSON object."""
    wrapper: tuple[str, ...] = setting((), repeatable=True)
    """module:Wrapper around each environment, its keyword arguments behind it as name=value; innermost first."""
    frame_stack: int = setting(0, least=0, cap=1_024)
    """Show the last so many observations at once; 0 for 4 in Atari and none elsewhere."""
    set: tuple[str, ...] = ()
    """Keyword arguments of the algorithm over the published ones: name=value, values in JSON."""
    log_interval: int = setting(2_000, least=1)
    """Steps between rows of progress.csv."""
    checkpoint_interval: int = setting(50_000, least=1)
    """Steps between checkpoints; one is always written at the end."""
    resume: str | None = None
    """Folder of a run to go on with, with its own settings."""

    def __post_init__(self) -> None:
        check(self)

    def planned(self) -> tuple[Peer, int]:
        """The peer as it is trained, and its steps.

        Raises:
            SettingsError: `set` is not JSON.
        """
        try:
            overrides = {name: json.loads(value) for name, _, value in (text.partition("=") for text in self.set)}
        except ValueError:
            raise SettingsError(f"set is {self.set!r}, expected name=value with values in JSON") from None
        peer, steps = planned(self.env, self.algo, self.bins, self.total_steps)
        return with_overrides(peer, overrides), steps


def main(args: Sequence[str] | None = None) -> int:
    """Train; returns the exit code: 0, 2 after a mistake told in one line, 129, 130 or 143 after a signal."""
    args = sys.argv[1:] if args is None else list(args)
    prog = "python -m relax_rl.comparison.peer_training"
    try:
        stopped_by = train_peer(parse(PeerConfig, args, prog=prog, description=__doc__ or ""))
    except RelaxRLError as error:
        print(f"error: {in_one_line(error)}", file=sys.stderr)
        return 2
    return 0 if stopped_by is None else 128 + stopped_by


def train_peer(config: PeerConfig) -> signal.Signals | None:
    """Train a peer, or go on with one; returns the signal that has stopped it, if one has.

    Raises:
        SettingsError: the folder already holds a run, or another process is at work in it.
        CheckpointError: no run to go on with, or no checkpoint that can be read.
        TrainingDiverged: the policy has fallen apart, which Stable-Baselines3 meets with errors of many kinds.
        RelaxRLError: the folder cannot be written.
    """
    torch.set_num_threads(1)
    with interruptible() as interruption, ExitStack() as stack:
        folder, state, saved, seed = RunFolder(Path(config.resume or config.run_dir)), None, None, config.seed
        if config.resume is None:
            peer, steps = config.planned()
            stack.enter_context(folder.locked())
            folder.create()
            about = {"peer": asdict(peer), "seed": seed, "steps": steps, "resumed": []}
            write_config(folder, config, about, section="options", packages=("stable_baselines3", "torch"))
        else:
            config = _known(_saved_config(folder), config)
            stack.enter_context(folder.locked())
            peer, steps = config.planned()
            state, saved = _newest(folder.checkpoints)
            for table in (folder.progress, folder.episodes):
                truncate_csv(table, state["step"])
            earlier = entries(read_record(folder), "resumed")
            note(folder, resumed=[*earlier, {"step": state["step"], "time": now()}])
            seed = int(np.random.SeedSequence([config.seed, state["step"]]).generate_state(1)[0] % 2**31)
        around: dict[str, Any] = {"wrapper": config.wrapper, "frame_stack": config.frame_stack}
        envs = make_peer_envs(peer, seed, config.bins, config.env_kwargs, **around)
        try:
            model = make_peer(peer, envs, seed)
            run = _Run(config, folder, interruption)
            if state is not None:
                model.set_parameters(saved, device="cpu")
                run.restore(model, state)
            try:
                model.learn(steps - model.num_timesteps, callback=run, reset_num_timesteps=state is None)
            except Exception:
                if all(bool(weight.isfinite().all()) for weight in model.policy.parameters()):
                    raise
                run.log.write()
                raise TrainingDiverged(f"a weight is not finite after {run.steps} steps") from None
            run.end()
        finally:
            envs.close()
    return interruption.signal


class _Run(BaseCallback):
    """Records rows, episodes, and checkpoints of the moments between two rollouts.

    Episodes are those of the Monitor inside every environment, so returns are raw whatever lies around it.
    """

    def __init__(self, config: PeerConfig, folder: RunFolder, interruption: Interruption) -> None:
        super().__init__()
        self.config, self.folder, self.interruption = config, folder, interruption
        self.episodes = 0
        self.run = AgentRun(cast("Any", self))  # only what it counts is asked for

    @property
    def steps(self) -> int:
        """That the model has taken."""
        return int(self.model.num_timesteps)

    @property
    def returns(self) -> list[float]:
        """Of the last episodes."""
        return [return_ for return_, _ in self.run.episodes]

    def restore(self, model: Any, state: dict[str, Any]) -> None:
        """Counters, last episodes and running statistics as they were saved."""
        model.num_timesteps = state["step"]
        self.run.episodes.extend(zip(state["returns"], state["lengths"], strict=True))
        self.episodes, self.run.clock = state["episodes"], Clock(state["seconds"])
        for name, values in state["normalization"].items():
            statistics = getattr(model.get_vec_normalize_env(), name)
            for part, value in values.items():
                setattr(statistics, part, getattr(statistics, part) * 0 + value)

    def _on_training_start(self) -> None:
        self.table = CsvLogger(self.folder.episodes, EPISODE_COLUMNS)
        self.rows = CsvLogger(self.folder.progress, PROGRESS_COLUMNS)
        self.log = LogProgress(self.run, [self.rows], interval=self.config.log_interval)
        self.save_due = Every(self.config.checkpoint_interval, self.steps)

    def _on_rollout_start(self) -> None:
        """What is saved is the state of now: from what a rollout in progress has brought, nothing has been learned."""
        self.state = self.now()
        if self.save_due.due(self.steps):
            self.save()

    def _on_step(self) -> bool:
        for episode in (info["episode"] for info in self.locals["infos"] if "episode" in info):
            self.run.episodes.append((float(episode["r"]), int(episode["l"])))
            self.episodes += 1
            self.table.log({"step": self.steps, "return": float(episode["r"]), "length": int(episode["l"])})
        if self.log.every.due(self.steps):
            self.log.write()
        return not (self.run.reaches(self.config.stop_at_return) or self.interruption)

    def end(self) -> None:
        """Write the last row and the last checkpoint."""
        self.log.write()
        self.rows.close()
        self.table.close()
        if not self.interruption:
            self.state = self.now()
        self.save()

    def now(self) -> dict[str, Any]:
        """The run's counters and last episodes."""
        lengths = [length for _, length in self.run.episodes]
        episodes = {"episodes": self.episodes, "returns": self.returns, "lengths": lengths}
        return {"step": self.steps, "seconds": self.run.clock.seconds, **episodes}

    def save(self) -> None:
        """Write a checkpoint, and remove those that are no longer needed."""
        buffer = io.BytesIO()
        self.model.save(buffer)
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(_STATE, json.dumps({**self.state, "normalization": _normalization(self.model)}))
        write_bytes_atomic(self.folder.checkpoints / f"step_{self.state['step']:09d}.zip", buffer.getvalue())
        remove_all_but(self.folder.checkpoints)


def make_peer(peer: Peer, envs: VecEnv, seed: int) -> Any:
    """The algorithm with the peer's settings, on the CPU.

    Raises:
        SettingsError: actions that it does not take.
    """
    check_actions(peer.algo, envs.action_space)
    kind = getattr(stable_baselines3, ALGORITHMS[peer.algo])
    schedules = {name: _linear_to_zero(start) for name, start in peer.linear.items()}
    classes = {"ReLU": torch.nn.ReLU, "RMSpropTFLike": RMSpropTFLike}
    policy_kwargs = {
        name: classes[value] if name in ("activation_fn", "optimizer_class") else value
        for name, value in peer.policy_kwargs.items()
    }
    arguments = {**peer.settings, **schedules, "policy_kwargs": policy_kwargs or None}
    parts = peer.policy == "MlpPolicy" and isinstance(envs.observation_space, spaces.Dict)
    policy = "MultiInputPolicy" if parts else peer.policy
    return kind(policy, envs, seed=seed, device="cpu", **arguments)


def _linear_to_zero(start: float) -> Callable[[float], float]:
    """Schedule of Stable-Baselines3: a function of the share of the run that remains, below 0 where its last rollout goes beyond."""
    return lambda remaining: max(remaining, 0.0) * start


def _normalization(model: Any) -> dict[str, Any]:
    """Running statistics of VecNormalize, if there is one."""
    normalization = model.get_vec_normalize_env()
    found = {} if normalization is None else {name: getattr(normalization, name) for name in ("obs_rms", "ret_rms")}
    return {
        name: {"mean": rms.mean.tolist(), "var": rms.var.tolist(), "count": rms.count} for name, rms in found.items()
    }


def _known(saved: PeerConfig, given: PeerConfig) -> PeerConfig:
    """The settings of a run that is gone on with; what only its file names is not imported.

    Raises:
        SettingsError: the environment is of a module, or a wrapper is, and not named again.
    """
    named = {"env": same_env(given.env, saved.env), "wrapper": given.wrapper == saved.wrapper}
    for name, again in named.items():
        before = getattr(saved, name)
        if is_own(before) and not again:
            raise SettingsError(named_by_a_file(name, before))
    return saved


def _saved_config(folder: RunFolder) -> PeerConfig:
    """The options of the run in a folder."""
    record = read_record(folder)
    try:
        return replace(from_json(PeerConfig, record.get("options")), run_dir=str(folder.path))
    except SettingsError:
        raise CheckpointError(f"{folder.config} is no peer's, or damaged; start a new run instead") from None


def _newest(folder: Path) -> tuple[dict[str, Any], Path]:
    """The run's state in the newest checkpoint whose every part is whole, and that checkpoint."""
    for path in newest_first(folder):
        try:
            with zipfile.ZipFile(path) as archive:
                state = json.loads(archive.read(_STATE)) if archive.testzip() is None else None
            if isinstance(state, dict) and state.keys() >= _PARTS:
                return state, path
        except (OSError, zipfile.BadZipFile, KeyError, ValueError):
            pass
        print(f"warning: checkpoint {path} is damaged; trying the one before it", file=sys.stderr)
        path.rename(path.with_name(f"{path.name}.damaged"))
    raise CheckpointError(f"{folder} holds no checkpoint that can be read; start a new run instead")


if __name__ == "__main__":
    sys.exit(main())
